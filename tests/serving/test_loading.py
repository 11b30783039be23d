"""A version answers the requests stored in its bundle before it takes others'."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundle import models
from widedeep.bundle import Bundle, BundleHead, write_bundle
from widedeep.errors import BundleError
from widedeep.serving.loading import load_ranker
from widedeep.serving.ranker import RankerOptions

REGRESSION = (BundleHead(name="", kind="regression", start=0, stop=1),)


def write(
    path: Path,
    heads: tuple[BundleHead, ...] = REGRESSION,
    *,
    scale: float = 1.0,
    bias: float = 0.0,
) -> Bundle:
    """A model whose deep part counts for `scale`."""
    schema = models.schema()
    shape = models.model(schema, heads=heads)
    weights = models.random_weights(schema, shape)
    weights["head/weight"] *= scale
    weights["bias"][:] = bias
    return write_bundle(
        path,
        schema=schema,
        weights=weights,
        model=shape,
        metrics={},
        warmup_rows=models.rows(5),
        config={},
    )


def test_a_model_that_bfloat16_serves_well_is_loaded_in_it(tmp_path: Path) -> None:
    half = load_ranker(
        write(tmp_path / "b", models.BINARY).path, RankerOptions(precision="bfloat16")
    )
    assert half.precision == "bfloat16"


def test_a_model_that_loses_too_much_in_bfloat16_is_refused_in_it(tmp_path: Path) -> None:
    large = write(tmp_path / "large", scale=300)
    # What is left of large numbers when one is taken from another.
    small = write(tmp_path / "small", scale=300, bias=-large.warmup.scores[""][0]).path
    load_ranker(small, RankerOptions())
    with pytest.raises(BundleError, match=r"stored request 0.* serve it in float32, or export it"):
        load_ranker(small, RankerOptions(precision="bfloat16"))
