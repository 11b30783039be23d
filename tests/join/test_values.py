"""Labels of value: the sums are those of exact arithmetic, whatever the values' size and order."""

from __future__ import annotations

import decimal
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.errors import DataError
from widedeep.join import ActionLog, JoinResult, Label, Split
from widedeep.join.plan import LIMB_BITS
from widedeep.join.resolve import scale_of

START = 1_700_000_000


def spend(
    folder: Path, values: Any, *, kind: list[str] | None = None, kinds: Sequence[str] = ()
) -> JoinResult:
    """Join one impression with an action a value, one second apart."""
    rows = len(values)
    taken = pa.table(
        {
            "user_id": ["u"] * rows,
            "item_id": ["lamp"] * rows,
            "event_time": [START + 1 + n for n in range(rows)],
            "price": values,
            "kind": kind or ["buy"] * rows,
        }
    )
    shown = [{"request_id": 1, "user_id": "u", "item_id": "lamp", "event_time": START}]
    return wd.join_actions(
        shown,
        ActionLog(path=taken, value="price", kind="kind"),
        output=folder / "out",
        labels=Label(name="spend", window="1d", value=True, kinds=tuple(kinds)),
        split=Split(by="none"),
        open_windows="keep",
    )


def value_of(result: JoinResult) -> float:
    return float(pq.read_table(result.paths("train"))["spend"][0].as_py())


@pytest.mark.parametrize(
    "values",
    [
        [1e-7, 1e-7],
        [5e-7],
        [1e-30, 1e-30, 3e-30],
        [9.9e12],
        [9e12, -9e12, 1e-7],
        [0.1] * 10,
        [-0.05, 0.05, -1e-9],
        [0.0, -0.0],
        [1e9, 1e-9],
    ],
)
def test_sums_of_every_size(tmp_path: Path, values: list[float]) -> None:
    wanted = float(sum(Fraction(value) for value in values))
    assert value_of(spend(tmp_path, values)) == pytest.approx(wanted, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array([1, 2, 3], pa.int64()), 6.0),
        (pa.array([1, None, 3], pa.uint64()), 4.0),
        (pa.array([0.1, 0.2], pa.float32()), float(np.float32(0.1)) + float(np.float32(0.2))),
        (pa.array([decimal.Decimal("0.10"), decimal.Decimal("2.05")]), 2.15),
        (pa.array([decimal.Decimal("0.0000000000000000000000001")], pa.decimal128(38, 25)), 1e-25),
    ],
)
def test_types_of_values(tmp_path: Path, values: pa.Array, wanted: float) -> None:
    assert value_of(spend(tmp_path, values)) == pytest.approx(wanted, rel=1e-15, abs=0)


@settings(max_examples=8, phases=(Phase.explicit, Phase.generate), deadline=None)
@given(
    values=st.lists(
        st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12) | st.just(0.0), min_size=1, max_size=40
    ),
    seed=st.integers(0, 9),
)
def test_the_order_of_actions_has_no_say(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], seed: int
) -> None:
    turned = values[:]
    random.Random(seed).shuffle(turned)
    one, other = (value_of(spend(tmp_path_factory.mktemp("v"), some)) for some in (values, turned))
    assert one == other
    exact = sum(Fraction(value) for value in values)
    assert one == pytest.approx(float(exact), rel=1e-9, abs=0)


@settings(max_examples=300)
@given(values=st.lists(st.floats(1e-12, 9e12), min_size=1, max_size=20))
def test_limbs_hold_every_bit(values: list[float]) -> None:
    scale = scale_of(min(values), max(values), "price")
    for value in values:
        rest, total = math.ldexp(value, scale.shift), Fraction(0)
        for limb in range(scale.limbs):
            whole = math.floor(rest)
            assert whole < 2**LIMB_BITS
            total += whole * Fraction(scale.unit(limb))
            rest = math.ldexp(rest - whole, LIMB_BITS)
        assert (total, rest) == (Fraction(value), 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([math.nan, 1.0], "nan of user 'u' and item 'lamp' at 2023-11-14T22:13:21"),
        ([1.0, 1.0, math.nan], "at 2023-11-14T22:13:23"),
        ([math.inf, 1.0], "inf of user"),
        ([1.0, -math.inf], "-inf of user"),
        ([math.nan, math.nan, math.nan, math.nan], "got 4 values"),
        ([1.0, 1e13], "below 1e+13 in magnitude"),
        ([1e-290, 1.0], "too far apart"),
        ([1e-300], "too small"),
    ],
)
def test_values_that_cannot_be_added_up(tmp_path: Path, values: list[float], told: str) -> None:
    with pytest.raises(DataError, match="column 'price'") as raised:
        spend(tmp_path, values)
    assert told in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_values_of_other_kinds_are_not_looked_at(tmp_path: Path) -> None:
    kind = ["click", "buy", "click"]
    result = spend(tmp_path, [math.nan, 2.5, 1e300], kind=kind, kinds=["buy"])
    assert value_of(result) == 2.5


def test_null_values_add_nothing_and_are_counted(tmp_path: Path) -> None:
    result = spend(tmp_path, pa.array([None, 2.5, None]))
    assert value_of(result) == 2.5
    assert any(
        "'price': 2 of 3 actions have no value; they add 0 to 'spend'" in note
        for note in result.notes
    )


def test_actions_that_are_told_twice_are_counted(tmp_path: Path) -> None:
    shown = [{"request_id": 1, "user_id": "u", "item_id": "lamp", "event_time": START}]
    event = {"user_id": "u", "item_id": "lamp", "event_time": START + 5, "kind": "buy"}
    taken = [
        *({**event, "price": price} for price in (2.5, 2.5, 2.5, 4.0)),
        *({**event, "price": None, "kind": "click"} for _ in range(2)),
    ]
    result = wd.join_actions(
        shown,
        ActionLog(path=taken, value="price", kind="kind"),
        output=tmp_path / "out",
        labels=Label(name="spend", window="1d", value=True, kinds=("buy",)),
        split=Split(by="none"),
        open_windows="keep",
    )
    assert value_of(result) == 11.5
    (note,) = [note for note in result.notes if "the same as another" in note]
    assert note.startswith("actions: 2 are the same as another")
