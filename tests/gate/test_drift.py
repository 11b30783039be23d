"""Drift: a shift of distributions is told, a broken feed stops the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.gate.market import market, train, with_column
from widedeep.bundle import Bundle
from widedeep.data.drift import DriftCounts
from widedeep.data.transform import Transform
from widedeep.gate import GateConfig, validate
from widedeep.gate.checks import drift_reasons
from widedeep.schema import Schema

ROWS = 3000
HOURS = np.arange(ROWS) % 24
CITIES = [f"city {at % 8}" for at in range(ROWS)]
SPEC = wd.FeatureSpec(features=[*wd.numeric("hour", "price"), *wd.categorical("city")])


def table(**columns: Any) -> pa.Table:
    price = np.random.default_rng(0).lognormal(1.5, 0.6, ROWS)
    return pa.table({"hour": HOURS, "price": price, "city": CITIES, **columns})


@pytest.fixture(scope="module")
def schema() -> Schema:
    return wd.fit_schema(SPEC, table())


def judged(schema: Schema, recent: pa.Table, **limits: Any) -> tuple[list[str], list[str]]:
    counts = DriftCounts(schema)
    counts.add(recent, Transform(schema)(recent, targets=False))
    return drift_reasons(counts.features(), GateConfig(**limits))


def test_an_evening_is_told_and_stops_nothing(schema: Schema) -> None:
    evening = table(hour=19 + HOURS % 5)
    reasons, notes = judged(schema, evening)
    assert reasons == []
    (note,) = notes
    assert "'hour' has moved since training (PSI " in note
    assert "which stops no model" in note
    reasons, notes = judged(schema, evening, max_psi=0.25)
    assert "limit 0.25" in reasons[0]
    assert notes == []
    assert judged(schema, evening, warn_psi=math.inf) == ([], [])
    assert judged(schema, table()) == ([], [])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"price": pa.nulls(ROWS, pa.float64())}, "'price' is missing in 100.0% of the rows"),
        ({"price": 100 * table()["price"].to_numpy()}, "of feature 'price' are new to the model"),
        ({"price": np.zeros(ROWS)}, "100.0% of the values of feature 'price' are new to the model"),
        ({"hour": np.full(ROWS, 12)}, "'hour' has nearly one value alone: 12 to"),
        ({"city": ["city 3"] * ROWS}, "'city' has nearly one value alone: city 3: 12.5%"),
        ({"city": [name.upper() for name in CITIES]}, "100.0% of the values of feature 'city'"),
    ],
)
def test_a_broken_feed_stops_the_model(schema: Schema, broken: Any, words: str) -> None:
    reasons, _ = judged(schema, table(**broken))
    assert len(reasons) == 1
    assert words in reasons[0]
    reasons, notes = judged(schema, table(**broken), ignore_drift=tuple(broken))
    assert reasons == []
    assert any(words in note for note in notes)


def test_a_number_that_no_longer_can_be_read_stops_the_model(schema: Schema) -> None:
    counts = DriftCounts(schema)
    counts._unreadable.add("price")
    (reason, *_), _ = drift_reasons(counts.features(), GateConfig())
    assert "'price' has moved since training (PSI nan" in reason


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(market(ROWS, 1), tmp_path_factory.mktemp("serving") / "bundle")


def test_a_better_model_passes_on_shifted_rows(serving: Bundle, tmp_path: Path) -> None:
    better = train(market(5 * ROWS, 2), tmp_path / "better")
    rows = market(3 * ROWS, 3)
    cheap = rows.filter(pa.array(rows["price"].to_numpy() < np.median(rows["price"].to_numpy())))
    config = GateConfig(unit="user", slices=(), max_latency_ms=1e4, max_calibration_rise=0.1)
    verdict = validate(better.path, serving.path, cheap, config=config)
    assert verdict.passed, verdict.reasons
    moved = {entry["feature"]: entry["psi"] for entry in verdict.drift["features"]}
    assert moved["price"] > 1
    assert any("'price' has moved since training" in note for note in verdict.notes)
    nothing = with_column(cheap, "price", np.zeros(len(cheap)))
    verdict = validate(better.path, serving.path, nothing, config=config)
    assert any("'price' are new to the model" in reason for reason in verdict.reasons)
