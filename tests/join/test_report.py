"""The report says what the examples hold, in figures that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.join.small_log import actions, config, impressions
from widedeep.data.join import ActionLog, Label, Negatives, run_join
from widedeep.data.join.statistics import column_statistics, drift, label_rates


def test_column_statistics() -> None:
    found = column_statistics(pa.chunked_array([["b", "a", None], ["b", "a", "c"]]))
    assert found == {
        "rows": 6,
        "missing": 1,
        "different": 3,
        "top": [["a", 2], ["b", 2], ["c", 1]],
    }
    lists = column_statistics(pa.chunked_array([[[3, 3], [], None, [4]]]))
    assert lists["missing"] == 1
    assert lists["top"] == [["3", 2], ["4", 1]]
    assert lists["range"] == [3, 4]


def test_the_order_of_the_rows_has_no_say_in_the_most_frequent_values() -> None:
    values = [*range(50), 7, 7, 30]
    forth, back = (
        column_statistics(pa.chunked_array([pa.array(rows)])) for rows in (values, values[::-1])
    )
    assert forth == back
    assert forth["top"] == [["7", 3], ["30", 2], ["0", 1], ["1", 1], ["2", 1]]
    told = column_statistics(pa.chunked_array([pa.array([True, False, None, True])]))
    assert told["top"] == [["True", 2], ["False", 1]]


def test_label_rates_are_weighted() -> None:
    labels, weights = pa.chunked_array([[1, 0, 0]]), pa.chunked_array([[1.0, 3.0, 2.0]])
    rates = label_rates(labels, weights, pa.chunked_array([[5, 5, 6]]), None)
    assert rates == [{"from": 5, "rows": 2, "rate": 0.25}, {"from": 6, "rows": 1, "rate": 0.0}]


def test_drift_of_equal_and_of_moved_columns() -> None:
    one = column_statistics(pa.chunked_array([["a"] * 3 + ["b"]]))
    other = column_statistics(pa.chunked_array([["a"] + ["b"] * 3]))
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
    assert thin["labels"] == pytest.approx(whole["labels"])  # sums of another order
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
