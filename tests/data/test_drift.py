"""Drift is measured of numbers whatever they are scaled to."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.data.drift import DriftCounts
from widedeep.data.transform import Transform


@pytest.mark.parametrize("transform", ["quantile", "standard", "minmax", "log1p", "none"])
def test_a_number_that_moved_within_its_range_is_seen(transform: str) -> None:
    rng = np.random.default_rng(0)
    rows = pa.table({"hour": rng.integers(0, 24, 2000), "y": rng.integers(0, 2, 2000)})
    features = wd.numeric("hour", transform=transform)  # type: ignore[arg-type]
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=features), rows)
    evening, same = rows.filter(pa.compute.greater(rows["hour"], 19)), rows.slice(0, 300)
    moved = [drift_of(schema, today) for today in (evening, same)]
    assert moved[0] > 1.0
    assert moved[1] < 0.25


def drift_of(schema: wd.Schema, today: pa.Table) -> float:
    counts = DriftCounts(schema)
    counts.add(today, Transform(schema)(today))
    (feature,) = counts.features()
    assert feature.psi is not None
    return feature.psi
