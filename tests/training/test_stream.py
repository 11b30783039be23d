"""A stream of shards: scored before learned, resumed with the same bits, nothing lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.data.fragments import Source
from widedeep.data.paths import follow_folder
from widedeep.errors import ConfigError, DataError, WideDeepError
from widedeep.training.evaluation import Metrics


def make_rows(seed: int, count: int = 96) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    jobs = rng.integers(4, size=count)
    clicks = rng.random(count) < np.array([0.1, 0.3, 0.6, 0.9])[jobs]
    return [{"job": "abcd"[j], "y": int(y)} for j, y in zip(jobs, clicks, strict=True)]


SHARDS = [(f"{i}.parquet", make_rows(i)) for i in range(6)]
SPEC = wd.FeatureSpec(label="y", features=wd.categorical("job", embedding_dim=4))


def make_trainer(checkpoints: Path | None = None, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(wd.fit_schema(SPEC, SHARDS[0][1]), hidden_units=[8])
    return wd.Trainer(
        model, batch_size=16, progress=False, checkpoints=checkpoints, threads=1, **options
    )


def tensors(trainer: wd.Trainer) -> dict[str, np.ndarray[Any, Any]]:
    return {k: np.array(v) for k, v in trainer.state.checkpoint().tensors.items()}


def test_a_shard_is_scored_before_it_is_learned() -> None:
    # A stream has no end that rates could decay towards.
    trainer, by_hand = make_trainer(), make_trainer(schedule="constant")
    history = trainer.fit_stream(SHARDS)
    for row, (name, rows) in zip(history.rows, SHARDS, strict=True):
        wanted = by_hand.evaluate(rows)
        by_hand.fit(rows)
        assert row["shard"] == name
        assert row["before/log_loss"] == wanted["log_loss"]
    assert [row["rows"] for row in history.rows] == [96 * (i + 1) for i in range(6)]
    assert history.rows[-1]["before/auc"] > 0.75 > history.rows[0]["before/auc"]


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_resumed_it_is_what_it_would_have_been(tmp_path: Path, stop_after: int) -> None:
    whole = make_trainer()
    whole.fit_stream(SHARDS)
    make_trainer(tmp_path).fit_stream(itertools.islice(SHARDS, stop_after))
    resumed = make_trainer(tmp_path)
    learned: list[str] = []
    resumed.fit_stream(SHARDS, resume=True, on_shard=lambda row: learned.append(row["shard"]))
    assert learned == [name for name, _ in SHARDS[stop_after:]]
    found = tensors(resumed)
    for name, value in tensors(whole).items():
        np.testing.assert_array_equal(found[name], value, name)
    assert len(resumed.history) == len(SHARDS)


def test_interrupted_within_a_shard(tmp_path: Path) -> None:
    """What was half learned is learned anew from the checkpoint before it."""

    class Stop:
        def on_step(self, figures: dict[str, Any]) -> None:
            if figures["step"] == 2 * 6 + 3:
                raise KeyboardInterrupt

        def on_evaluate(self, figures: dict[str, Any]) -> None: ...

        def on_end(self, figures: dict[str, Any]) -> None: ...

    trainer = make_trainer(tmp_path)
    trainer.callbacks.append(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_stream(SHARDS)
    resumed, whole = make_trainer(tmp_path), make_trainer()
    resumed.fit_stream(SHARDS, resume=True)
    whole.fit_stream(SHARDS)
    np.testing.assert_array_equal(tensors(resumed)["wide/job.z"], tensors(whole)["wide/job.z"])


def test_a_shard_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(SHARDS[1][1]), tmp_path / "bad.parquet")
    content = (tmp_path / "bad.parquet").read_bytes()
    (tmp_path / "bad.parquet").write_bytes(content[:100] + b"\xff" * 60 + content[160:])
    trainer = make_trainer(tmp_path / "c")
    trainer.fit_stream(SHARDS[:1])
    before = tensors(trainer)
    with pytest.raises(WideDeepError, match=r"bad\.parquet"):
        trainer.fit_stream([("bad.parquet", tmp_path / "bad.parquet")])
    for name, value in tensors(trainer).items():
        np.testing.assert_array_equal(before[name], value, name)
    assert trainer.shards == ["0.parquet"]
    assert trainer.directory is not None


@pytest.mark.parametrize("when", ["before it is scored", "before it is learned"])
def test_a_shard_that_vanishes_is_passed_over(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "gone.parquet"
    pq.write_table(pa.Table.from_pylist(SHARDS[1][1]), place)
    trainer, by_hand = make_trainer(), make_trainer()
    if when == "before it is scored":
        place.unlink()
    else:
        evaluate = trainer.evaluator.evaluate
        calls = itertools.count()

        def last_look(source: Source) -> Metrics:
            metrics = evaluate(source)
            if next(calls) == 1:  # of the shard that vanishes
                place.unlink()
            return metrics

        monkeypatch.setattr(trainer.evaluator, "evaluate", last_look)
    history = trainer.fit_stream([SHARDS[0], ("gone.parquet", place), SHARDS[2]])
    assert [row["shard"] for row in history] == ["0.parquet", "2.parquet"]
    by_hand.fit_stream([SHARDS[0], SHARDS[2]])
    found = tensors(trainer)
    for name, value in tensors(by_hand).items():
        np.testing.assert_array_equal(found[name], value, name)
    with pytest.raises(DataError, match="no such file"):
        trainer.fit(place)


def test_shards_of_no_rows_and_of_one_class() -> None:
    trainer = make_trainer()
    empty = pa.Table.from_pylist(SHARDS[0][1]).slice(0, 0)
    ones = [{"job": "a", "y": 1}] * 20
    history = trainer.fit_stream([("empty", empty), ("ones", ones)])
    (row,) = history.rows
    assert row["shard"] == "ones"
    assert np.isnan(row["before/auc"])
    assert row["before/log_loss"] > 0


def test_a_shard_without_a_name() -> None:
    with pytest.raises(ConfigError, match=r"got the shard 'x.parquet', expected \(name, data\)"):
        make_trainer().fit_stream(["x.parquet"])  # type: ignore[list-item]


# ---- the folder ---------------------------------------------------------------------------------


def write(place: Path, seed: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(make_rows(seed)), place)


def follow(folder: Path, **options: Any) -> list[str]:
    return [name for name, _ in follow_folder(folder, poll_s=0.02, idle_s=0.2, **options)]


def test_files_come_when_they_are_whole(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", 1)
    write(tmp_path / "day=2/a.parquet", 1)
    write(tmp_path / "_temporary/c.parquet", 1)
    write(tmp_path / ".d.parquet", 1)
    (tmp_path / "note.txt").write_text("x")
    assert follow(tmp_path) == ["b.parquet", "day=2/a.parquet"]
    assert follow(tmp_path, done=["b.parquet"]) == ["day=2/a.parquet"]
    with pytest.raises(DataError, match="got a file, expected the folder"):
        follow(tmp_path / "note.txt")
    with pytest.raises(DataError, match="no such folder, expected the folder that new files"):
        follow(tmp_path / "not there")


def test_an_empty_folder_and_one_that_goes_are_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    told: list[str] = []
    assert follow(folder, notify=told.append) == []
    assert told == [f"{folder}: no Parquet file yet; waiting for the first"]

    write(folder / "a.parquet", 1)
    told.clear()

    def bring_back(line: str) -> None:
        told.append(line)
        write(folder / "b.parquet", 2)

    names = iter(follow_folder(folder, poll_s=0.02, idle_s=0.5, notify=bring_back))
    assert next(names)[0] == "a.parquet"
    folder.rename(tmp_path / "out")
    assert [name for name, _ in names] == ["b.parquet"]
    assert told == [f"{folder}: the folder is gone; trying again"]


def test_half_written_and_vanished_files(tmp_path: Path) -> None:
    write(tmp_path / "whole/a.parquet", 1)
    content = (tmp_path / "whole/a.parquet").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("half.parquet", "gone.parquet"):
        (folder / name).write_bytes(content[: len(content) // 2])
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 2:  # both were looked at
            (folder / "gone.parquet").unlink()
            (folder / "half.parquet").write_bytes(content)

    found = []
    for name, _ in follow_folder(folder, poll_s=0.02, idle_s=0.2, notify=tell):
        found.append(name)
        if name == "half.parquet":
            write(folder / "next.parquet", 2)
    assert found == ["half.parquet", "next.parquet"]
    assert [line.partition(": ")[2].partition(" (")[0] for line in told] == [
        "cannot be read yet",
        "cannot be read yet",
        "vanished before it could be read",
    ]
