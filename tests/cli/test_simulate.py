"""The verb simulate: a folder of logs that the other verbs take."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.command_line import Run
from widedeep.data.sources import open_source

SMALL = ["--users", "1500", "--apps", "120", "--requests", "600"]


@pytest.fixture
def week(tmp_path: Path, run: Run) -> Path:
    folder = tmp_path / "week"
    assert run("simulate", folder, *SMALL, "--days", 3).code == 0
    return folder


def rows(folder: Path) -> int:
    with open_source(str(folder / "*.parquet")) as source:
        return source.num_rows


def test_its_logs_join_and_its_configuration_trains(week: Path, run: Run) -> None:
    assert rows(week / "impressions") == rows(week / "truth") == 3 * 600 * 10
    assert run("join", week / "join.toml").code == 0
    checked = run("check", week / "app_store.toml", "--json")
    assert (checked.code, json.loads(checked.out)["problems"]) == (0, [])
    catalogue = pq.read_table(week / "catalogue.parquet")
    assert catalogue.num_rows == 120 + 3 * 3  # with those that arrived


def test_attributes_are_versions_that_a_join_can_look_up(week: Path, run: Run) -> None:
    text = (week / "join.toml").read_text()
    served = 'columns = ["device", "hour", "user_installed", "app"]\nposition = "position"'
    text = text.replace('position = "position"', served)
    text += '\n[user_attributes]\npath = "users/*.parquet"\nkey = "user_id"\n'
    text += 'valid_from = "valid_from"\n'
    text += '\n[item_attributes]\npath = "items/*.parquet"\nkey = "item_id"\n'
    text += 'valid_from = "valid_from"\n'
    (week / "looked_up.toml").write_text(text)
    assert run("join", week / "looked_up.toml").code == 0
    found = pq.read_table(week / "examples" / "train")
    assert found["user_country"].null_count == found["app_rating"].null_count == 0
    logged = pq.read_table(week / "impressions")
    keys = ["request_id", "item_id"]
    both = found.select([*keys, "user_country", "app_rating"]).join(
        logged.select([*keys, "user_country", "app_rating"]), keys, right_suffix="_served"
    )
    assert both["user_country"].equals(both["user_country_served"])
    assert both["app_rating"].equals(both["app_rating_served"])


def test_a_store_lives_on_with_its_users_in_two_arms(week: Path, tmp_path: Path, run: Run) -> None:
    words = ["--policy", "old=popularity", "--policy", "best=oracle", "--days", "2", "--json"]
    found = run("simulate", tmp_path / "next", "--resume", week, *words)
    assert found.code == 0
    told = json.loads(found.out)
    assert (told["first_day"], told["days"]) == (3, 2)
    assert told["impressions"] == 2 * 600 * 10
    assert told["arms"]["best"]["of_the_best"] == pytest.approx(1)
    assert told["arms"]["old"]["of_the_best"] < 0.6
    assert "day 2 of 2" in found.err
    first, second = (
        pq.read_table(folder / "impressions", columns=["event_time"])["event_time"].to_numpy()
        for folder in (week, tmp_path / "next")
    )
    assert second.min() > first.max()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "best"], "got the policy 'best', expected popularity, random, oracle"),
        (["--policy", "oracle", "--policy", "oracle"], "got two arms named 'oracle'"),
        (["--explore", "2"], "--explore: got '2', expected a number of at least 0, at most 1"),
        (["--users", "3"], "got users = 3, expected at least 10"),
        (["--resume", "nowhere"], "no such file; 'widedeep simulate' writes it"),
        (["--resume", "nowhere", "--seed", "1"], "got --seed with --resume"),
        (["--days", "0"], "got '0', expected an integer of at least 1"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], message: str, tmp_path: Path, run: Run
) -> None:
    found = run("simulate", tmp_path / "out", *words)
    assert found.code == 2
    assert message in found.err


def test_a_folder_that_holds_a_store_is_not_written_over(week: Path, run: Run) -> None:
    found = run("simulate", week, *SMALL)
    assert found.code == 2
    assert f"--resume {week}" in found.err
