"""Streams that ranks learn together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks.processes import run_ranks
from tests.ranks.test_training import make_trainer, rows
from tests.ranks.threads import run_threads
from widedeep.data.paths import InputFile
from widedeep.errors import DataError
from widedeep.ranks.ranks import Ranks
from widedeep.remote import RemoteFile
from widedeep.training.stream import shards_of_first

FILES: list[tuple[str, Any]] = [
    ("a", InputFile(Path("in/a.parquet"))),
    ("day=1/b", InputFile(Path("in/day=1/b.parquet"), (("day", "1"), ("hour", None)))),
    ("c", InputFile(RemoteFile("memory://in/c.parquet", "/in/c.parquet", None, 7, "tag"))),
    ("kafka:clicks 0:0-2", [{"job": "cook", "y": 1}, {"job": None, "y": 0.5}]),
]


def test_all_ranks_get_what_the_first_one_finds() -> None:
    def learn(ranks: Ranks) -> list[tuple[str, Any]]:
        return list(shards_of_first(ranks, FILES if ranks.is_first else ()))

    assert run_threads(3, learn) == [FILES] * 3


def test_a_source_that_fails_is_told_to_all() -> None:
    def shards() -> Any:
        yield FILES[0]
        raise DataError("messages are gone")

    errors = run_threads(2, lambda ranks: list(shards_of_first(ranks, shards())))
    assert all("messages are gone" in str(error) for error in errors)


def learn_stream(folder: Path) -> dict[str, Any]:
    trainer = make_trainer(checkpoints=folder / "stream")
    ranks = trainer.state.ranks
    gone = ("gone", InputFile(folder / "gone.parquet"))
    shards = [("one", rows(200, 1)), gone, ("two", rows(130, 2))]
    trainer.fit_stream(shards_of_first(ranks, shards), grow=True, evict_after=3)
    trainer.export(folder / "bundle")
    told = [{k: v for k, v in row.items() if k != "rows_per_s"} for row in trainer.history.rows]
    return {"history": told, "shards": trainer.shards}


@pytest.mark.slow
def test_two_ranks_follow_as_one_process_does(tmp_path: Path) -> None:
    alone = learn_stream(tmp_path / "alone")
    assert alone["shards"] == ["one", "two"]
    assert run_ranks(2, learn_stream, tmp_path / "ranks") == [alone, alone]
    weights = [tmp_path / run / "bundle/weights.safetensors" for run in ("alone", "ranks")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
