"""Raw rows in, probabilities out: without torch, and the same bits however rows arrive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bundle import models
from tests.reference.score import Scorer
from widedeep.bundle import (
    Bundle,
    BundleHead,
    Calibration,
    Isotonic,
    Platt,
    PriorCorrection,
    write_bundle,
)
from widedeep.errors import DataError, SchemaError
from widedeep.features import FeatureSpec
from widedeep.schema import Schema

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = models.schema()
ROWS = models.rows(1000)


def bundle_of(
    path: Path,
    *,
    schema: Schema = SCHEMA,
    heads: tuple[BundleHead, ...] = models.BINARY,
    calibration: Calibration | None = None,
    **shape: Any,
) -> Bundle:
    model = models.model(schema, heads=heads, **shape)
    return write_bundle(
        path / "b",
        schema=schema,
        weights=models.random_weights(schema, model),
        model=model,
        metrics={},
        warmup_rows=[],
        config={},
        calibration=calibration,
    )


def logit(probability: Any) -> Any:
    return np.log(probability / (1 - probability))


def float64_logits(bundle: Bundle, rows: list[dict[str, Any]]) -> Any:
    """The reference: another code path and another precision."""
    batch = bundle._encode_rows(rows)
    schema, model, weights = bundle.schema, bundle.model, bundle.weights
    scorer = Scorer(len(schema.slots), schema.n_dense, model.n_logits, np.float64)
    names = [slot.name for slot in schema.slots]
    for name in model.wide:
        slot = names.index(name)
        combiner = schema.slots[slot].wide_combiner(model.wide_combiner)
        scorer.add_wide(slot, weights[f"wide/{name}"], combiner, item=False)
    for column in model.deep:
        if column.source == "dense":
            scorer.add_dense(schema.dense_layout[column.name].start, column.stop - column.start)
        else:
            slot = schema.slots[names.index(column.name)]
            table = weights[f"table/{slot.table}"]
            scorer.add_embedding(names.index(column.name), table, str(column.combiner))
    for i in range(len(model.hidden_units)):
        layer = weights[f"mlp/{i}/weight"], weights[f"mlp/{i}/bias"]
        scorer.add_layer(*layer, model.activation)
    if model.deep:
        scorer.add_layer(weights["head/weight"], None, "none")
    arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
    wide, deep = scorer.forward(*arrays, threads=1)
    return wide + (0 if deep is None else deep) + weights["bias"]


@pytest.mark.parametrize("item", [(), ("app", "price"), ("age", "price", "użytkownik 👤", "tags")])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"deep": False},
        {"wide": False},
        {"hidden_units": ()},
        {"activation": "tanh", "hidden_units": (9,)},
    ],
)
def test_scores_are_those_of_float64(
    tmp_path: Path, item: tuple[str, ...], shape: dict[str, Any]
) -> None:
    bundle = bundle_of(tmp_path, schema=models.schema(item), **shape)
    expected = 1 / (1 + np.exp(-float64_logits(bundle, ROWS[:200])[:, 0]))
    found = bundle.score(ROWS[:200])
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    assert np.abs(found - expected).max() <= 1e-6


def test_a_row_scores_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, hidden_units=(100, 30), heads=models.THREE_HEADS)
    whole = bundle.score(ROWS)
    for size in (1, 2, 7, 200, 1000):
        for threads in (1, 2, 3):
            starts = range(0, 200 if size == 1 else len(ROWS), size)
            parts = [bundle.score(ROWS[s : s + size], threads=threads) for s in starts]
            for head, expected in whole.items():
                found = np.concatenate([part[head] for part in parts])
                assert np.array_equal(found, expected[: len(found)]), (size, threads, head)


def test_every_kind_of_input_scores_the_same_bits(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    rows = ROWS[:60]
    expected = bundle.score(rows)
    types = [(name, SCHEMA.columns[name].arrow()) for name in rows[0]]
    table = pa.Table.from_pylist(rows, pa.schema(types))
    pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=25)
    frame = pl.from_arrow(table)
    inputs = {
        "dicts": list(rows),
        "table": table,
        "reader": table.to_reader(7),
        "path": tmp_path / "part-0.parquet",
        "text path": str(tmp_path / "part-0.parquet"),
        "glob": str(tmp_path / "part-*.parquet"),
        "paths": [tmp_path / "part-0.parquet"],
        "pandas": table.to_pandas(),
        "polars": frame,
        "other order and more columns": table.append_column("z", pa.array(range(60))).select(
            ["z", *reversed(table.column_names)]
        ),
    }
    assert isinstance(inputs["pandas"], pd.DataFrame)
    for kind, given in inputs.items():
        assert np.array_equal(bundle.score(given), expected), kind
    assert np.array_equal(bundle.score(rows[3]), expected[3:4])


def test_large_tables_are_scored_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from widedeep.bundle import bundle as scoring

    bundle = bundle_of(tmp_path)
    expected = bundle.score(ROWS)
    monkeypatch.setattr(scoring, "_CHUNK_ROWS", 64)
    seen = []
    forward = bundle._forward.logits
    monkeypatch.setattr(
        bundle._forward, "logits", lambda b, threads: seen.append(len(b)) or forward(b)
    )
    assert np.array_equal(bundle.score(ROWS), expected)
    table = pa.Table.from_pylist(
        ROWS, pa.schema([(name, SCHEMA.columns[name].arrow()) for name in ROWS[0]])
    )
    assert np.array_equal(bundle.score(table), expected)
    assert max(seen) == 64 and sum(seen) == 2000


def test_heads_give_what_they_are_for(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, heads=models.THREE_HEADS)
    logits = float64_logits(bundle, ROWS)
    scores = bundle.score(ROWS)
    assert isinstance(scores, dict) and list(scores) == ["click", "kind", "price"]
    np.testing.assert_allclose(scores["click"], 1 / (1 + np.exp(-logits[:, 0])), atol=1e-6)
    powers = np.exp(logits[:, 1:4])
    np.testing.assert_allclose(scores["kind"], powers / powers.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(scores["kind"].sum(axis=1), 1)
    np.testing.assert_allclose(scores["price"], logits[:, 4], atol=1e-5)
    classes = bundle_of(tmp_path / "2", heads=models.MULTICLASS)
    assert classes.score(ROWS).shape == (1000, 3)


@pytest.mark.parametrize(
    "calibration",
    [
        PriorCorrection(rate=0.1),
        Platt(slope=0.5, intercept=0.3),
        Isotonic(logits=(-1.0, 1.0), values=(0.1, 0.4)),
    ],
)
def test_scores_are_calibrated_after_loading(tmp_path: Path, calibration: Calibration) -> None:
    plain = bundle_of(tmp_path / "plain")
    bundle_of(tmp_path, calibration=calibration)
    loaded = Bundle.load(tmp_path / "b")
    expected = calibration.probabilities(logit(plain.score(ROWS)))
    np.testing.assert_allclose(loaded.score(ROWS), expected, rtol=1e-6)
    assert f"calibration: {calibration.kind}" in repr(loaded)


def test_an_absent_key_is_null_unless_strict(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    whole = {**ROWS[0], "app": None}
    absent = {name: value for name, value in whole.items() if name != "app"}
    assert np.array_equal(bundle.score([absent, absent], threads=2)[:1], bundle.score([whole]))
    assert bundle.absent == {"app": 2}
    with pytest.raises(DataError, match="'app'"):
        bundle.score([absent], strict=True)


def test_a_table_must_have_every_column_and_a_row(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    table = pa.Table.from_pylist(
        ROWS[:3], pa.schema([(name, SCHEMA.columns[name].arrow()) for name in ROWS[0]])
    )
    with pytest.raises(DataError, match="no column 'app'"):
        bundle.score(table.drop_columns(["app"]))
    with pytest.raises(DataError, match="without rows"):
        bundle.score(table.slice(0, 0))
    with pytest.raises(DataError, match="empty list"):
        bundle.score([])


def test_a_batch_of_another_schema_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    batch = models.random_batch(SCHEMA, 4)
    batch.offsets_BF = batch.offsets_BF[:-1]
    with pytest.raises(
        SchemaError, match=r"does not fit the model .* encode rows with the bundle's"
    ):
        bundle.logits(batch)


def test_a_feature_fixed_at_serving_is_not_read(tmp_path: Path) -> None:
    spec = FeatureSpec(
        features=SCHEMA.spec.features, item=SCHEMA.spec.item, training_only={"price": 2.0}
    )
    schema = Schema(
        spec=spec,
        columns=SCHEMA.columns,
        vocabularies=SCHEMA.vocabularies,
        boundaries=SCHEMA.boundaries,
        numerics=SCHEMA.numerics,
    )
    expected = bundle_of(tmp_path / "all").score([{**row, "price": 2.0} for row in ROWS[:50]])
    bundle = bundle_of(tmp_path, schema=schema)
    without = [{name: row[name] for name in row if name != "price"} for row in ROWS[:50]]
    assert np.array_equal(bundle.score(ROWS[:50]), expected)
    assert np.array_equal(bundle.score(without, strict=True), expected)
    types = [(name, SCHEMA.columns[name].arrow()) for name in without[0]]
    assert np.array_equal(bundle.score(pa.Table.from_pylist(without, pa.schema(types))), expected)


TORCH_FREE = """
import builtins, importlib.abc, pickle, sys
class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not here")
sys.meta_path.insert(0, NoTorch())
def refuse(*_, **__):
    raise AssertionError("unpickled something")
pickle.load = pickle.loads = refuse
import widedeep as wd
from tests.bundle import models
bundle = wd.Bundle.load(sys.argv[1])
assert "torch" not in sys.modules
import numpy as np
np.save(sys.argv[2], bundle.score(models.rows(100)))
"""


def in_a_process(script: str, *arguments: Path, **environment: str) -> None:
    paths = {"PYTHONPATH": f"{ROOT}/src:{ROOT}", **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    subprocess.run(command, env={**os.environ, **paths}, check=True)


def test_a_process_without_torch_scores_the_same_bits(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    in_a_process(TORCH_FREE, bundle.path, tmp_path / "scores.npy")
    assert np.array_equal(np.load(tmp_path / "scores.npy"), bundle.score(models.rows(100)))


def test_the_reference_kernels_score_the_same(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    place = tmp_path / "scores.npy"
    in_a_process(
        "from tests import reference; reference.install()\n" + TORCH_FREE, bundle.path, place
    )
    found, expected = np.load(place), bundle.score(models.rows(100))
    assert 0 < np.abs(found - expected).max() <= 1e-6


def test_repr_says_what_it_is(tmp_path: Path) -> None:
    text = repr(bundle_of(tmp_path, heads=models.THREE_HEADS))
    assert f"Bundle at {tmp_path / 'b'}" in text
    assert "heads: click binary, kind multiclass, price regression" in text
    assert "wide: 6 features; deep: 6 features, 22 columns, hidden units [37, 20], relu" in text
    assert SCHEMA.fingerprint[:12] in text
