"""Which impressions become examples, in which split, and which negatives are drawn."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.join.small_log import START, Row, actions, config, impressions
from widedeep.join import (
    ActionLog,
    ImpressionLog,
    JoinConfig,
    JoinResult,
    Label,
    Negatives,
    Split,
    run_join,
)

SPLITS = ("train", "valid", "test")


def rows_of(result: JoinResult, split: str) -> list[Row]:
    return pq.read_table(result.output / split).to_pylist() if result.rows[split] else []


def log(output: Path, **changes: Any) -> JoinConfig:
    """Forty users, so that a share of them is about a share of the rows."""
    users = [{**r, "user_id": f"u{int(r['request_id'][1:]) % 40}"} for r in impressions(800)]
    # Actions as long as there are impressions: windows that nobody observed are left out.
    taken = [
        {
            **row,
            "user_id": f"u{i % 40}",
            "event_time": START + 8 * (int(row["event_time"]) - START),
        }
        for i, row in enumerate(actions(2000))
    ]
    base = config(
        output,
        impressions=ImpressionLog(path=users, position="position"),
        actions=ActionLog(path=taken, kind="kind", value="price"),
        negatives=Negatives(),
        history=(),
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("by", ["time", "user", "both"])
def test_no_request_is_in_two_splits(tmp_path: Path, by: Any) -> None:
    # A request's impressions are shown one after the other, across any boundary of time.
    users = [
        {**row, "event_time": row["event_time"] + 90 * row["position"]} for row in impressions(400)
    ]
    result = run_join(
        log(
            tmp_path / "out",
            impressions=ImpressionLog(path=users, position="position"),
            split=Split(by=by, fractions=(0.5, 0.25, 0.25)),
        )
    )
    found = {name: rows_of(result, name) for name in SPLITS}
    requests = {name: {row["request_id"] for row in rows} for name, rows in found.items()}
    assert all(requests.values())
    assert sum(map(len, requests.values())) == len(set.union(*requests.values()))
    if by != "user":
        first = {name: min(row["event_time"] for row in rows) for name, rows in found.items()}
        assert first["train"] < first["valid"] < first["test"]
    if by != "time":
        users_of = [{row["user_id"] for row in rows} for rows in found.values()]
        assert sum(map(len, users_of)) == len(set.union(*users_of))
    if by == "both":
        assert result.manifest["counts"]["sampled_or_split_out"] > 0
    else:
        assert result.manifest["counts"]["sampled_or_split_out"] == 0


def test_shares_of_users(tmp_path: Path) -> None:
    result = run_join(log(tmp_path / "out", split=Split(by="user", fractions=(0.6, 0.2, 0.2))))
    users = {name: {row["user_id"] for row in rows_of(result, name)} for name in SPLITS}
    assert sum(map(len, users.values())) == 40
    assert 16 <= len(users["train"]) <= 32
    other = run_join(
        log(tmp_path / "other", split=Split(by="user", fractions=(0.6, 0.2, 0.2)), seed=5)
    )
    assert {row["user_id"] for row in rows_of(other, "train")} != users["train"]


def test_sampling_of_whole_requests(tmp_path: Path) -> None:
    whole = run_join(log(tmp_path / "whole"))
    thin = run_join(log(tmp_path / "thin", negatives=Negatives(rate=0.25, by="request")))

    def requests(result: JoinResult, split: str) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = collections.defaultdict(list)
        for row in rows_of(result, split):
            found[row["request_id"]].append(row)
        return found

    before, after = requests(whole, "train"), requests(thin, "train")
    positive = {key for key, rows in before.items() if any(r["click"] or r["spend"] for r in rows)}
    assert positive <= set(after) < set(before)
    for key, rows in after.items():
        assert len(rows) == len(before[key])  # whole or not at all
        assert {row["weight"] for row in rows} == {1.0 if key in positive else 4.0}
    kept = (len(after) - len(positive)) / (len(before) - len(positive))
    assert 0.18 < kept < 0.32
    assert rows_of(thin, "test") == rows_of(whole, "test")  # only train is thinned


def test_the_draw_is_of_the_ids_and_the_seed_alone(tmp_path: Path) -> None:
    thinned = Negatives(rate=0.5, splits=("train", "valid", "test"))
    one = run_join(log(tmp_path / "one", negatives=thinned))
    parts = run_join(log(tmp_path / "parts", negatives=thinned, partition_rows=300))
    other = run_join(log(tmp_path / "other", negatives=thinned, seed=7))

    def keys(result: JoinResult) -> set[Any]:
        return {
            (row["request_id"], row["position"]) for name in SPLITS for row in rows_of(result, name)
        }

    assert keys(parts) == keys(one)
    assert keys(other) != keys(one)


def baskets(output: Path, draw: Any, **changes: Any) -> JoinConfig:
    taken = [
        {**row, "item_id": 0 if i // 500 % 2 else 1 + i % 20, "user_id": f"u{i % 500}"}
        for i, row in enumerate(actions(3000))
    ]
    return JoinConfig(
        output=str(output),
        actions=ActionLog(path=taken),
        labels=(Label(window="1s"),),
        negatives=Negatives(per_positive=2, draw=draw),
        split=Split(by="none"),
        threads=1,
        **changes,
    )


# Of two different items, neither the positive: half of the actions are on item 0, and each of the
# twenty others has a fortieth. (1/2 / 39/40 + (1 - that) * 1/2 / 38/40) / 2 = 0.384.
@pytest.mark.parametrize(("draw", "share"), [("uniform", 0.05), ("popularity", 0.384)])
def test_how_often_an_item_is_drawn(tmp_path: Path, draw: Any, share: float) -> None:
    rows = rows_of(run_join(baskets(tmp_path / "out", draw)), "train")
    took = {
        (row["user_id"], row["event_time"]) for row in rows if row["label"] and not row["item_id"]
    }
    negatives = [
        row["item_id"]
        for row in rows
        if row["label"] == 0 and (row["user_id"], row["event_time"]) not in took
    ]
    assert len(negatives) > 2_000
    assert negatives.count(0) / len(negatives) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("draw", ["uniform", "popularity"])
def test_drawn_negatives_per_positive(tmp_path: Path, draw: Any) -> None:
    result = run_join(baskets(tmp_path / "out", draw))
    again = run_join(baskets(tmp_path / "again", draw, partition_rows=1000))
    other = run_join(baskets(tmp_path / "other", draw, seed=1))
    rows, negatives = rows_of(result, "train"), collections.Counter[Any]()
    positives = collections.Counter[Any]()
    for row in rows:
        (positives if row["label"] else negatives)[row["user_id"], row["event_time"]] += 1
    assert max(negatives[key] / count for key, count in positives.items()) <= 2
    assert sum(negatives.values()) > 1.7 * sum(positives.values())
    order = ("event_time", "request_id", "item_id")

    def ordered(found: list[Row]) -> list[Row]:
        return sorted(found, key=lambda row: tuple(row[name] for name in order))

    assert ordered(rows_of(again, "train")) == ordered(rows)
    assert ordered(rows_of(other, "train")) != ordered(rows)
