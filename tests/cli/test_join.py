"""The verb join, and check of a join, as a user meets them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.command_line import Run, write_join
from widedeep.join.dataset import write_part


def test_a_join_from_its_file(run: Run, ads: Path) -> None:
    write_join(ads)
    before = sorted(ads.iterdir())
    code, out, err = run("check", "join.toml")
    assert (code, err) == (0, "")
    assert "The examples of all users:" in out
    assert out.endswith("nothing written\nnext: widedeep join join.toml\n")
    assert sorted(ads.iterdir()) == before

    code, out, err = run("join", "join.toml")
    assert code == 0
    assert "joining part 1 of 1" in err
    rows = pq.read_table("examples/train")
    assert f"train  {rows.num_rows:>4,}" in " ".join(out.splitlines()[1:2])
    assert "next: widedeep init " in out
    assert sum(rows["click"].to_pylist()) > 0

    code, out, _ = run("join", "join.toml", "--set", "split.by=user", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["splits"]["train"]["rows"] != rows.num_rows  # replaced
    assert document["counts"]["labels"]["click"]["orphaned"] > 0


def test_a_master_is_sparks(run: Run, ads: Path) -> None:
    write_join(ads)
    code, out, err = run("join", "join.toml", "--spark-master", "local[2]")
    assert (code, out) == (2, "")
    assert "got --spark-master local[2] for the engine 'duckdb'; add --engine spark, or" in err


def test_a_sample_of_the_users_is_checked(run: Run, ads: Path) -> None:
    write_join(ads)
    code, out, _ = run("check", "join.toml", "--rows", "120", "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    assert document["inputs"]["impressions"]["rows"] == 400
    sampled = document["sample"]
    assert 1 < sampled["one_user_in"] <= 4
    assert 0 < sampled["counts"]["impressions"] < 400
    assert sampled["columns"]["user_id"]["distinct"] < 7


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("impressions.user=userid", "user = 'userid', but there is no such column; did you mean"),
        ("actions.kind=kinds", "kind = 'kinds', but there is no such column"),
        ("split.by=usr", "got by = 'usr'"),
        ("impressions.path=no.parquet", "no.parquet: no such file"),
        ("join.output=runs.txt", "already exists"),
    ],
)
def test_a_check_of_a_join_that_could_not_succeed(
    run: Run, ads: Path, override: str, told: str
) -> None:
    write_join(ads)
    (ads / "runs.txt").write_text("notes")
    words = ["join.toml", "--set", override]
    code, out, err = run("check", *words)
    assert (code, err) == (1, "")
    assert told in out
    assert out.endswith("1 problem; the join would fail\n")
    code, out, err = run("join", *words)
    assert (code, out) == (2, "")
    assert told in err
    assert not (ads / "examples").exists()


def test_a_check_tells_logs_that_do_not_meet_and_empty_splits(run: Run, ads: Path) -> None:
    write_join(ads)
    actions = pq.read_table("taken.parquet")
    place = actions.schema.get_field_index("event_time")
    early = pc.subtract(actions["event_time"], 10_000_000)
    pq.write_table(actions.set_column(place, "event_time", early), "early.parquet")
    words = ["--set", "actions.path=early.parquet", "--set", "split.fractions=[1.0,0.0,0.0]"]
    code, out, _ = run("check", "join.toml", *words)
    assert code == 1
    assert "before the first impression" in out  # so that no window has closed
    words += ["--set", "join.open_windows=keep"]
    code, out, _ = run("check", "join.toml", *words)
    assert code == 0
    assert "note: all actions lie before the first impression" in out
    assert "falls in" not in out
    code, out, _ = run(
        "check", "join.toml", "--set", 'split.boundaries=["2020-01-01","2020-01-02"]'
    )
    assert code == 1
    assert "problem: no example of the sample falls in train: check [split]" in out
    assert "all actions" not in out


def test_an_interrupted_join_says_how_to_go_on(
    run: Run, ads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_join(ads)
    parts = ["--set", "join.partition_rows=100"]
    written = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal written
        written += 1
        if written == 3:
            raise KeyboardInterrupt
        return write_part(*arguments, **options)

    monkeypatch.setattr("widedeep.join.run.write_part", interrupted)
    code, out, err = run("join", "join.toml", *parts)
    assert (code, out) == (130, "")
    command = err.splitlines()[-1].partition("go on with: ")[2]
    assert shlex.split(command) == ["widedeep", "join", "join.toml", "--resume", *parts]
    assert run(*shlex.split(command)[1:]).code == 0
    assert written == 3 + 2  # the first two parts were not made again
    resumed = json.loads((ads / "examples/manifest.json").read_text())
    assert run("join", "join.toml", *parts).code == 0
    assert json.loads((ads / "examples/manifest.json").read_text()) == resumed
