"""The join agrees row by row with plain Python, over small logs with many ties and duplicates."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.join.oracle import Row, Wanted, expected, log_end
from widedeep.errors import ConfigError
from widedeep.join import (
    ActionLog,
    Attributes,
    History,
    HistoryState,
    ImpressionLog,
    JoinConfig,
    Label,
    Split,
    run_join,
)

START = 1_700_000_000_000_000
SECOND = 1_000_000
USERS, ITEMS = ["u0", "u1", "u2"], [0, 1, 2]
# Few different times, so that most events share theirs with others.
TIMES = st.integers(0, 12).map(lambda step: START + step * SECOND)
KINDS = st.sampled_from(["click", "buy"])
# A failing log is small as it is; shrinking it would take minutes of joins.
PHASES = (Phase.explicit, Phase.generate)

HISTORY = (
    History(name="last_taken", feature="last", k=2),
    History(name="last_shown", feature="last", of="impressions", k=3),
    History(name="last_bought", feature="last", kinds=("buy",), k=4),
    History(name="user_taken", feature="count", window="4s"),
    History(name="user_shown", feature="count", of="impressions"),
    History(name="item_bought", feature="count", by="item", kinds=("buy",), window="6s"),
    History(name="item_taken", feature="count", by="item"),
    History(name="pair_shown", feature="count", by="pair", of="impressions"),
    History(name="pair_since", feature="since", by="pair"),
    History(name="user_since", feature="since", window="5s"),
    History(name="item_since", feature="since", by="item", of="impressions"),
    History(name="item_rate", feature="rate", by="item", window="8s", prior=0.1, strength=3.0),
    History(name="user_rate", feature="rate", kinds=("click",), prior=0.25, strength=2.0),
)


@st.composite
def logs(draw: st.DrawFn) -> dict[str, list[Row]]:
    """Impressions (each request of one user, at one time), actions and versions."""
    impressions = []
    for request in range(draw(st.integers(1, 8))):
        user, time = draw(st.sampled_from(USERS)), draw(TIMES)
        items = draw(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=3))
        impressions += [
            {
                "request_id": request,
                "user_id": user,
                "item_id": item,
                "position": position,
                "event_time": time,
            }
            for position, item in enumerate(items)
        ]
    action = st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(USERS),
            "item_id": st.sampled_from(ITEMS),
            "event_time": TIMES,
            "kind": KINDS,
            "value": st.sampled_from([0.0, 0.1, 2.5, 1e-9, 1.0000005, -3.3, 9e12]),
        }
    )
    actions = draw(st.lists(action, min_size=1, max_size=12))
    # At-least-once logging: some actions are there twice.
    actions += [dict(actions[i]) for i in range(len(actions)) if draw(st.integers(0, 3)) == 0]
    return {
        "impressions": impressions,
        "actions": draw(st.permutations(actions)),
        "users": _versions(draw, "user_id", USERS, "age"),
        "items": _versions(draw, "item_id", ITEMS, "brand"),
    }


def _versions(draw: st.DrawFn, key: str, ids: list[Any], column: str) -> list[Row]:
    keys = st.tuples(st.sampled_from(ids), TIMES)
    found = draw(st.lists(keys, min_size=1, max_size=6, unique=True))
    return [{key: k, "valid_from": t, column: n} for n, (k, t) in enumerate(found)]


def config(log: dict[str, list[Row]], output: Path, **changes: Any) -> JoinConfig:
    return dataclasses.replace(
        JoinConfig(
            output=str(output),
            impressions=ImpressionLog(path=log["impressions"], position="position"),
            actions=ActionLog(path=log["actions"], kind="kind", value="value"),
            user_attributes=Attributes(path=log["users"], key="user_id", valid_from="valid_from"),
            item_attributes=Attributes(path=log["items"], key="item_id", valid_from="valid_from"),
            labels=(
                Label(name="click", kinds=("click",), window="3s"),
                Label(name="any", kinds=("click", "buy"), window="2s"),
                Label(name="spend", kinds=("buy",), window="4s", value=True),
            ),
            history=HISTORY,
            split=Split(by="none"),
            log_end="2023-11-14T22:13:34Z",  # two seconds after the last possible event
            threads=1,
        ),
        **changes,
    )


def wanted(touch: str, delay: int = 0) -> Wanted:
    features = []
    for feature in HISTORY:
        row = dataclasses.asdict(feature)
        row["window"] = feature.window_us
        features.append(row)
    return Wanted(
        labels=(
            ("click", ("click",), 3 * SECOND, False),
            ("any", ("click", "buy"), 2 * SECOND, False),
            ("spend", ("buy",), 4 * SECOND, True),
        ),
        touch=touch,
        log_end=START + 14 * SECOND,
        history=tuple(features),
        action_delay=delay,
        impression_delay=delay,
    )


def joined(settings_: JoinConfig) -> list[Row]:
    result = run_join(settings_)
    tables = [pq.read_table(path) for path in result.paths("train")]
    rows: list[Row] = pa.concat_tables(tables).to_pylist()
    return rows


@pytest.mark.parametrize("touch", ["last", "first", "all"])
@settings(max_examples=10, phases=PHASES)
@given(log=logs(), parts=st.sampled_from([7, 100]))
def test_every_row_equals_plain_python(touch: str, log: dict[str, list[Row]], parts: int) -> None:
    rows = expected(log["impressions"], log["actions"], wanted(touch), log["users"], log["items"])
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        got = joined(config(log, Path(folder) / "out", touch=touch, partition_rows=parts))
    key = ("event_time", "request_id", "position", "item_id")
    got.sort(key=lambda row: tuple(row[name] for name in key))
    assert [row.pop("spend") for row in got] == pytest.approx(
        [row["spend"] for row in rows], rel=1e-15, abs=0
    )
    assert [{k: v for k, v in row.items() if k != "weight"} for row in got] == [
        {name: row[name] for name in got[0] if name != "weight"} for row in rows
    ]


@settings(max_examples=8, phases=PHASES)
@given(log=logs())
def test_the_log_ends_where_both_logs_reach(log: dict[str, list[Row]]) -> None:
    wanted_ = dataclasses.replace(
        wanted("last"), log_end=log_end(log["impressions"], log["actions"]), history=()
    )
    rows = expected(log["impressions"], log["actions"], wanted_, log["users"], log["items"])
    with tempfile.TemporaryDirectory() as folder:
        settings_ = config(log, Path(folder) / "out", log_end=None, history=())
        if not rows:
            with pytest.raises(ConfigError, match="no impression's window has closed"):
                run_join(settings_)
            return
        got = joined(settings_)
    assert len(got) == len(rows)
    assert sum(row["click"] for row in got) == sum(row["click"] for row in rows)


@settings(max_examples=6, phases=PHASES)
@given(log=logs(), delay=st.sampled_from([0, 1, 3]))
def test_the_history_state_equals_the_join(log: dict[str, list[Row]], delay: int) -> None:
    rows = expected(log["impressions"], log["actions"], wanted("last", delay * SECOND))
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        base = config(log, Path(folder) / "out")
        assert base.impressions is not None
        got = joined(
            dataclasses.replace(
                base,
                impressions=dataclasses.replace(base.impressions, availability_delay=delay),
                actions=dataclasses.replace(base.actions, availability_delay=delay),
            )
        )
    state = HistoryState(HISTORY, action_delay=delay, impression_delay=delay)
    for event in log["actions"]:
        state.observe_action(event["user_id"], event["item_id"], event["event_time"], event["kind"])
    for event in log["impressions"]:
        state.observe_impression(event["user_id"], event["item_id"], event["event_time"])
    for row, want in zip(got, rows, strict=True):
        served = state.features(row["user_id"], row["item_id"], row["event_time"])
        assert served == {feature.name: row[feature.name] for feature in HISTORY}
        assert served == {feature.name: want[feature.name] for feature in HISTORY}


@settings(max_examples=20)
@given(log=logs(), at=st.integers(0, 14))
def test_forgetting_changes_no_later_feature(log: dict[str, list[Row]], at: int) -> None:
    whole, short = (HistoryState(HISTORY, action_delay=1, impression_delay=2) for _ in range(2))
    for state in (whole, short):
        for event in log["actions"]:
            kind = event["kind"]
            state.observe_action(event["user_id"], event["item_id"], event["event_time"], kind)
        for event in log["impressions"]:
            state.observe_impression(event["user_id"], event["item_id"], event["event_time"])
    short.forget(START + at * SECOND)
    for step in range(at, 16):
        for user in USERS:
            moment = START + step * SECOND
            assert short.features(user, 1, moment) == whole.features(user, 1, moment)
