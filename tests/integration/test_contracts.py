"""The library's promises, each held end to end through the public API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import widedeep as wd

ROWS = 512
FEATURES = [
    wd.numeric("age", missing="indicator"),
    wd.numeric("price", transform="log1p"),
    wd.bucketized("age_bucket", source="age", boundaries=[25, 45]),
    wd.categorical("job", "ad"),
    wd.categorical("tags", combiner="mean"),
    wd.categorical("city", hash_buckets=32),
    wd.crossed("job", "ad", "tags"),
    wd.crossed("age_bucket", "city", hash_buckets=64),
]


def clicks(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Rows with nulls, lists, weights, and a label of each kind."""
    rng = np.random.default_rng(seed)
    job, ad, age = rng.integers(0, 5, rows), rng.integers(0, 9, rows), rng.normal(40, 12, rows)
    logit = 0.8 * (job - 2) + 0.05 * (age - 40) + 1.5 * ((job + ad) % 3 == 0)
    return pa.table(
        {
            "age": pa.array([None if rng.random() < 0.1 else float(a) for a in age]),
            "price": rng.exponential(9.0, rows),
            "job": [f"job {j}" for j in job],
            "ad": pa.array([None if a == 8 else f"ad {a}" for a in ad]),
            "tags": [[f"t{t}" for t in rng.integers(0, 6, rng.integers(0, 4))] for _ in job],
            "city": [f"city {c}" for c in rng.integers(0, 80, rows)],
            "w": rng.choice([0.5, 1.0, 2.0], rows),
            "click": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
            "kind": [["red", "green", "blue"][k] for k in (job + ad) % 3],
            "spent": logit * 3 + rng.normal(size=rows),
        }
    )


TABLE = clicks()


def trained(
    label: Any, *, spec: dict[str, Any] | None = None, table: pa.Table = TABLE, **options: Any
) -> wd.Trainer:
    """A model of every kind of feature after two epochs."""
    declared = wd.FeatureSpec(label=label, features=FEATURES, **(spec or {}))
    settings: dict[str, Any] = {"hidden_units": [16, 8], "embedding_dim": 4, **options}
    model = wd.WideDeep(wd.fit_schema(declared, table), **settings)
    trainer = wd.Trainer(model, batch_size=64, threads=1, progress=False)
    trainer.fit(table, epochs=2)
    return trainer


def by_head(scores: Any) -> dict[str, NDArray[np.float64]]:
    return scores if isinstance(scores, dict) else {"": scores}


# ---- one score for a row, wherever it is worked out ----

HEADS = {"click": "binary", "kind": "multiclass", "spent": "regression"}
CASES: dict[str, dict[str, Any]] = {
    "binary": {"label": "click", "spec": {"weight": "w"}},
    "multiclass": {"label": "kind"},
    "regression": {"label": "spent", "head": "regression"},
    "heads": {"label": list(HEADS), "head": HEADS},
    "batch_norm": {"label": "click", "batch_norm": True, "dropout": 0.1, "activation": "gelu"},
    "items": {"label": "click", "spec": {"item": ("ad", "price")}, "wide_combiner": "mean"},
    "wide_only": {"label": "click", "hidden_units": []},
}

FRESH_PROCESS = """
import sys
sys.modules["torch"] = None  # importing it raises
import numpy as np
import widedeep as wd
for name in sys.argv[2:]:
    scores = wd.Bundle.load(f"{sys.argv[1]}/{name}").score(f"{sys.argv[1]}/rows.parquet")
    np.savez(f"{sys.argv[1]}/{name}.npz", **(scores if isinstance(scores, dict) else {"": scores}))
"""


def test_a_fresh_process_without_torch_scores_every_row_as_the_trainer(tmp_path: Path) -> None:
    rows = clicks(300, seed=1)
    pq.write_table(rows, tmp_path / "rows.parquet")
    predicted, here = {}, {}
    for name, case in CASES.items():
        trainer = trained(**case)
        here[name] = by_head(trainer.export(tmp_path / name).score(rows))
        predicted[name] = by_head(trainer.predict(rows))
    subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path), *CASES], check=True, timeout=300
    )
    for name, heads in predicted.items():
        with np.load(tmp_path / f"{name}.npz") as fresh:
            assert set(fresh) == set(heads)
            for head, want in heads.items():
                found = fresh[head]
                assert np.array_equal(found, here[name][head]), (name, head)
                allowed = 1e-6 * np.maximum(1.0, np.abs(want))
                assert (np.abs(found - want) <= allowed).all(), (name, head)
                assert np.ptp(want) > 0.01, (name, head)


def test_a_score_does_not_depend_on_its_batch_or_the_threads(tmp_path: Path) -> None:
    bundle = trained("click", spec={"item": ("ad", "price")}).export(tmp_path / "b")
    rows = TABLE.slice(0, 60).to_pylist()
    whole = np.asarray(bundle.score(rows))
    for threads in (1, 2, 5):
        assert np.array_equal(bundle.score(TABLE.slice(0, 60), threads=threads), whole)
    assert np.array_equal(np.concatenate([np.asarray(bundle.score([row])) for row in rows]), whole)


def test_a_feature_of_training_only_is_fixed_in_every_score(tmp_path: Path) -> None:
    trainer = trained("click", spec={"training_only": {"price": 5.0}})
    bundle = trainer.export(tmp_path / "b")
    rows = TABLE.slice(0, 50)
    fixed = rows.set_column(1, "price", pa.array(np.full(50, 5.0)))
    gone = rows.drop_columns(["price"])
    for score in (trainer.predict, bundle.score):
        want = np.asarray(score(fixed))
        assert np.array_equal(np.asarray(score(rows)), want)
        assert np.array_equal(np.asarray(score(gone)), want)


def test_predicting_one_row_leaves_the_model_as_it_is() -> None:
    trainer = trained("click")
    before = trainer.logits(TABLE)
    one = [trainer.logits(TABLE.slice(row, 1))[0] for row in range(5)]
    assert np.array_equal(trainer.logits(TABLE), before)
    np.testing.assert_allclose(one, before[:5], atol=1e-6)


# ---- steps ----


def simple(table: pa.Table, weight: str | None = None, **options: Any) -> wd.Trainer:
    spec = wd.FeatureSpec(
        label="click", weight=weight,
        features=[wd.numeric("price"), wd.categorical("job", "ad"), wd.crossed("job", "ad")],
    )  # fmt: skip
    model = wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[8], embedding_dim=4)
    settings: dict[str, Any] = {"threads": 1, "progress": False, "shuffle": False}
    return wd.Trainer(model, **{**settings, **options})


def test_batches_of_256_and_2048_learn_the_same() -> None:
    table, test = clicks(8_192, seed=2), clicks(4_096, seed=3)
    found = []
    for size in (256, 2048):
        trainer = simple(table, batch_size=size, shuffle=True)
        trainer.fit(table, epochs=6)
        found.append(trainer.evaluate(test)["auc"])
    assert min(found) > 0.72
    assert abs(found[0] - found[1]) < 0.02


@pytest.mark.parametrize("optimizer", [wd.FTRL(lr=0.3, l1=0.1), wd.Adagrad(lr=0.1), wd.SGD(lr=0.1)])
def test_grad_scale_is_a_factor_of_every_weight(optimizer: Any) -> None:
    """Twice the weight of every row is twice grad_scale, for the sparse part."""
    table = clicks(100)
    heavy = table.set_column(table.column_names.index("w"), "w", pa.array(np.full(100, 2.0)))
    options: dict[str, Any] = {"batch_size": 64, "wide": optimizer, "deep": wd.SGD(lr=1e-9)}
    weighted = simple(heavy, weight="w", **options)
    scaled = simple(table, grad_scale=2.0, **options)
    for trainer, data in ((weighted, heavy), (scaled, table)):
        trainer.fit(data)  # the second batch is a short one
    assert weighted.model.wide_table is not None and scaled.model.wide_table is not None
    a, b = weighted.model.wide_table.weight, scaled.model.wide_table.weight
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)
    assert float(a.abs().max()) > 0.01


def test_a_short_last_batch_follows_the_rule_of_the_others() -> None:
    """With a sum over examples and plain SGD, a row moves the weights alike in any batch size."""
    table = clicks(70)
    still = {"wide": wd.SGD(lr=1e-5), "deep": wd.SGD(lr=1e-5), "loss_reduction": "sum"}
    still |= {"schedule": "constant"}  # type: ignore[dict-item]
    moved = []
    for size in (70, 64, 23, 1):
        trainer = simple(table, batch_size=size, **still)  # type: ignore[arg-type]
        before = trainer.logits(table)
        trainer.fit(table)
        moved.append(trainer.logits(table) - before)
    assert np.abs(moved[0]).max() > 1e-4
    for other in moved[1:]:
        np.testing.assert_allclose(other, moved[0], atol=0.01 * float(np.abs(moved[0]).max()))


def test_the_number_of_threads_changes_no_logit_beyond_rounding() -> None:
    table = clicks(1_024)
    logits = []
    for threads in (1, 2, 4):
        trainer = simple(table, batch_size=256, threads=threads)
        trainer.fit(table, epochs=2)
        logits.append(trainer.logits(table))
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5)


TRAIN = """
import sys
import numpy as np
from tests.integration import test_contracts as t
np.save(sys.argv[1], t.trained(["click", "spent"], head={"click": "binary", "spent": "regression"},
                               wide_combiner="sqrtn").logits(t.TABLE))
"""


def test_the_reference_kernels_train_the_same_model(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    on_the_reference = "from tests import reference; reference.install()\n"
    for name, script in (("native", TRAIN), ("reference", on_the_reference + TRAIN)):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": paths}, check=True,
        )  # fmt: skip
    native, reference = (np.load(tmp_path / f"{name}.npy") for name in ("native", "reference"))
    np.testing.assert_allclose(native, reference, rtol=1e-4, atol=1e-4)
    assert np.ptp(native) > 1
