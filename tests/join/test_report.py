"""The report says what the examples hold, in figures that can be checked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.join.small_log import actions, config, impressions
from widedeep.join import ActionLog, Label, Negatives, report, run_join
from widedeep.join.report import RateSums, column_statistics, drift


def test_column_statistics() -> None:
    found = column_statistics([pa.array(["b", "a", None]), pa.array(["b", "a", "c"])])
    assert found == {
        "rows": 6,
        "missing": 1,
        "different": 3,
        "top": [["a", 2], ["b", 2], ["c", 1]],
    }
    lists = column_statistics([pa.array([[3, 3], [], None, [4]])])
    assert lists["missing"] == 1
    assert lists["top"] == [["3", 2], ["4", 1]]
    assert lists["range"] == [3, 4]
    assert column_statistics([pa.array([None, None], pa.string())]) == {
        "rows": 2,
        "missing": 2,
        "different": 0,
        "top": [],
    }


def test_the_order_of_the_rows_has_no_say_in_the_most_frequent_values() -> None:
    values = [*range(50), 7, 7, 30]
    forth, back = (column_statistics([pa.array(rows)]) for rows in (values, values[::-1]))
    assert forth == back
    assert forth["top"] == [["7", 3], ["30", 2], ["0", 1], ["1", 1], ["2", 1]]
    told = column_statistics([pa.array([True, False, None, True])])
    assert told["top"] == [["True", 2], ["False", 1]]
    assert "range" not in told


def test_numbers_count_as_numbers() -> None:
    numbers = column_statistics([pa.array([-1.5, 0.0, -0.0, math.nan]), pa.array([math.nan, 2.5])])
    assert numbers["top"] == [["0.0", 2], ["nan", 2], ["-1.5", 1], ["2.5", 1]]
    assert numbers["different"] == 4
    assert numbers["range"] == [-1.5, 2.5]
    single = column_statistics([pa.array([0.1], pa.float32())])
    assert single["top"] == [[str(float(np.float32(0.1))), 1]]


def test_values_beyond_the_memory_are_counted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_COUNTER_BYTES", 10_000)
    values = list(range(5_000)) + list(range(0, 5_000, 100))
    batches = [pa.array(values[at : at + 700]) for at in range(0, len(values), 700)]
    found = column_statistics(batches, spill_dir=tmp_path)
    assert found["different"] == 5_000
    assert found["top"] == [[str(n), 2] for n in (0, 100, 200, 300, 400)]


def test_a_text_of_any_length_is_counted() -> None:
    longs = ["x" * 600_000, "x" * 600_000 + "y", "short"]
    found = column_statistics([pa.array(longs)])
    assert found["different"] == 2
    assert found["top"] == [["x" * 4_096, 2], ["short", 1]]


def test_label_rates_are_weighted() -> None:
    rates = RateSums()
    rates.add(pa.array([5, 6]), np.array([1.0, 2.0]), {"click": np.array([1.0, 0.0])})
    rates.add(pa.array([5, None]), np.array([3.0, 9.0]), {"click": np.array([0.0, 1.0])})
    assert rates.rates("click") == [
        {"from": 5, "rows": 2, "rate": 0.25},
        {"from": 6, "rows": 1, "rate": 0.0},
    ]


def test_label_rates_do_not_depend_on_the_order() -> None:
    draw = np.random.default_rng(0)
    keys, weights = draw.integers(0, 900, 2_000), draw.choice([1.0, 1 / 0.3], 2_000)
    labels = draw.random(2_000)
    forth, back = RateSums(low=-100, span=4), RateSums(low=-100, span=4)
    forth.add(pa.array(keys), weights, {"spend": labels})
    for part in np.array_split(draw.permutation(2_000), 7):
        back.add(pa.array(keys[part]), weights[part], {"spend": labels[part]})
    told = forth.rates("spend")
    other = back.rates("spend")
    assert [(row["from"], row["rows"]) for row in told] == [
        (row["from"], row["rows"]) for row in other
    ]
    assert [row["rate"] for row in told] == pytest.approx([row["rate"] for row in other], rel=1e-12)
    assert len(told) == 200
    assert (told[0]["from"], told[-1]["from"]) == (0, 796)
    chosen = keys < 4
    mean = np.average(labels[chosen], weights=weights[chosen])
    assert told[0]["rate"] == pytest.approx(mean, rel=1e-12)


def test_drift_of_equal_and_of_moved_columns() -> None:
    one = column_statistics([pa.array(["a"] * 3 + ["b"])])
    other = column_statistics([pa.array(["a"] + ["b"] * 3)])
    assert drift(one, one) == 0.0
    assert drift(one, other) == pytest.approx(0.5)


def test_the_report_beside_the_shards(tmp_path: Path) -> None:
    result = run_join(config(tmp_path / "out"))
    figures = json.loads((result.output / "report.json").read_text())
    train = pq.read_table(result.paths("train"))
    assert figures["columns"]["age"]["splits"]["train"]["missing"] == train["age"].null_count
    assert figures["splits"]["train"]["rows"] == train.num_rows
    assert len(figures["rates"]["click"]["by_position"]) == 4
    hits = figures["counts"]["attributes"]
    shown = figures["counts"]["impressions"]
    # Users u0 to u4 of seven have attributes, all since before the log; items 0 to 7 of nine.
    known = [row for row in impressions() if row["user_id"] < "u5"]
    assert hits["user"] == {"impressions": shown, "found": len(known)}
    assert hits["item"]["found"] == sum(row["item_id"] < 8 for row in impressions())
    page = (result.output / "report.html").read_text()
    assert "most frequent" in page
    assert f'had attributes by then</td><td class="n">{len(known)}' in page
    assert "http" not in page


def test_what_the_server_logged_wins(tmp_path: Path) -> None:
    result = run_join(config(tmp_path / "out"))
    columns = {column["name"]: column for column in result.manifest["columns"]}
    assert columns["shown_before"]["source"] == "logged, else computed"
    assert 0 < columns["shown_before"]["logged_rows"] < 400
    assert columns["pair_since"]["source"] == "computed"
    shown = pq.read_table(result.paths("train"))["shown_before"].to_pylist()
    assert None not in shown
    assert shown.count(3) > len(shown) // 3


def test_thinned_negatives_keep_the_total_weight(tmp_path: Path) -> None:
    whole = run_join(config(tmp_path / "whole", negatives=Negatives())).manifest["splits"]["train"]
    thin = run_join(config(tmp_path / "thin")).manifest["splits"]["train"]
    assert thin["labels"] == whole["labels"]
    assert thin["rows"] < 0.8 * whole["rows"]
    assert thin["weight"] == pytest.approx(whole["rows"], rel=0.15)


def test_drawn_negatives_were_not_taken_in_the_window(tmp_path: Path) -> None:
    taken = actions(400)
    result = run_join(
        config(
            tmp_path / "out",
            impressions=None,
            actions=ActionLog(path=taken),
            history=(),
            labels=(Label(window="5m"),),
            negatives=Negatives(per_positive=2),
        )
    )
    rows = pq.read_table(result.paths("train")).to_pylist()
    first_seen: dict[int, int] = {}
    for action in sorted(taken, key=lambda row: row["event_time"]):
        first_seen.setdefault(action["item_id"], action["event_time"])
    negatives = [row for row in rows if row["label"] == 0]
    assert len(rows) - len(negatives) < len(negatives) <= 2 * (len(rows) - len(negatives))
    for row in negatives:
        at = row["event_time"] // 1_000_000
        assert first_seen[row["item_id"]] < at
        assert not any(
            action["user_id"] == row["user_id"]
            and action["item_id"] == row["item_id"]
            and at <= action["event_time"] <= at + 300
            for action in taken
        )
