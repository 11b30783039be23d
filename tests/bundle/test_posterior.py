"""The posterior of the last layer: variances against dense algebra, stored with the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.bundle.layout import POSTERIOR
from widedeep.bundle.posterior import WideUncertainty, fit_posterior, uncertainty_bundles
from widedeep.data.batch import Batch
from widedeep.errors import BundleError, DataError

ITEMS = ["maps", "mail", "chess", "go"]


def rows(n: int = 400) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    picked = rng.choice(len(ITEMS), n, p=[0.6, 0.25, 0.1, 0.05])
    return [
        {
            "user": f"u{rng.integers(3)}",
            "age": float(rng.integers(20, 60)),
            "app": ITEMS[item],
            "tags": [f"t{t}" for t in range(rng.integers(0, 3))],
            "y": int(rng.random() < 0.2 + 0.15 * item),
        }
        for item in picked
    ]


def spec(label: Any = "y") -> wd.FeatureSpec:
    return wd.FeatureSpec(
        label=label,
        features=[
            *wd.numeric("age"),
            *wd.categorical("user", "app", "tags"),
            wd.crossed("user", "app"),
        ],
        item=["app", "tags"],
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> wd.Bundle:
    model = wd.WideDeep(wd.fit_schema(spec(), rows()), hidden_units=[6, 4], embedding_dim=3)
    trainer = wd.Trainer(model, wide=wd.FTRL(lr=0.5), progress=False)
    trainer.fit(rows(), epochs=3)
    return trainer.export(tmp_path_factory.mktemp("p") / "bundle", posterior=rows())


def deviations(wide: WideUncertainty, batch: Batch) -> np.ndarray[Any, Any]:
    return wide.deviations(wide.bundle.logits(batch))


def trained(path: Path, spec: wd.FeatureSpec, data: list[dict[str, Any]], **model: Any) -> Any:
    options = {"embedding_dim": 3, **model}
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, data), **options), wide=wd.FTRL(lr=0.5), progress=False
    )
    trainer.fit(data, epochs=3)
    return trainer.export(path, posterior=data)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_variances_are_those_of_dense_algebra(
    bundle: wd.Bundle, combiner: Any, tmp_path: Path
) -> None:
    """One matrix of the inputs, its information inverted block by block."""
    if combiner != "sum":
        options = {"hidden_units": [6, 4], "wide_combiner": combiner}
        bundle = trained(tmp_path / "b", spec(), rows(), **options)
    data, scores = rows(), np.asarray(bundle.score(rows()))
    weight_B = scores * (1 - scores)
    batch = next(iter(bundle.batches(data)))
    names = [slot.name for slot in bundle.schema.slots]
    wide, hidden = uncertainty_bundles(bundle)
    assert wide is not None and hidden is not None
    assert set(wide.bundle.model.wide) == {"app", "tags", "user_x_app"}, "the user moves no item"
    expected_B = np.zeros(len(data))
    for name in wide.bundle.model.wide:
        cells = batch.cells(names.index(name))
        inputs = np.zeros((len(data), len(bundle.posterior[f"wide/{name}"])))
        lengths_B = np.diff(cells.offsets)
        row_N = np.repeat(np.arange(len(data)), lengths_B)
        power = {"sum": 0, "sqrtn": 0.5, "mean": 1}[combiner]
        np.add.at(inputs, (row_N, cells.ids_N), 1.0 / lengths_B[row_N] ** power)
        information = np.diag(inputs.T @ (inputs * weight_B[:, None])).copy()
        prior = bundle.posterior[f"wide/{name}"][0, 0]  # an unknown value's
        if name != "user_x_app":
            information[0] = 0
        variance = 1 / (1 / prior + information)
        expected_B += inputs**2 @ variance
    assert deviations(wide, batch)[:, 0] == pytest.approx(expected_B, rel=1e-5)

    # The hidden outputs, from the bundle's own weights, on its own concatenated input.
    head = bundle.weights["head/weight"][0].astype(np.float64)
    outputs = _hidden_outputs(bundle, data)
    assert outputs @ head == pytest.approx(
        bundle._forward.parts(batch)[1][:, 0], rel=1e-4, abs=1e-5
    )
    information = outputs.T @ (outputs * weight_B[:, None]) + np.eye(4) / (head**2).mean()
    expected = np.einsum("bi,ij,bj->b", outputs, np.linalg.inv(information), outputs)
    assert (hidden.logits(batch) ** 2).sum(axis=1) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_prior_is_how_much_values_differ(tmp_path: Path) -> None:
    """Whether the model learned it in the wide part, in the deep one, or not yet at all."""
    rng = np.random.default_rng(1)
    effect_A = rng.normal(0, 0.8, 60)
    app_B, kind_B = rng.integers(0, 60, 20_000), rng.integers(0, 40, 20_000)
    label_B = rng.random(20_000) < 1 / (1 + np.exp(2 - effect_A[app_B]))
    data = pa.table(
        {
            "app": [f"a{app}" for app in app_B],
            "kind": [f"k{kind}" for kind in kind_B],
            "y": label_B.astype(int),
        }
    )
    names = ["app", "kind"]
    spec = wd.FeatureSpec(label="y", features=wd.categorical(*names), item=names, wide=names)
    for rate, epochs in [(0.1, 4), (0.001, 1)]:
        model = wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[8], embedding_dim=4)
        rates = {"wide": wd.FTRL(lr=rate), "deep": wd.Adagrad(lr=rate)}
        trainer = wd.Trainer(model, progress=False, batch_size=256, **rates)
        trainer.fit(data, epochs=epochs)
        posterior = trainer.export(tmp_path / f"{rate}", posterior=data).posterior
        prior = {key: float(values[0, 0]) ** 0.5 for key, values in posterior.items()}
        assert prior["wide/app"] == pytest.approx(effect_A.std(), rel=0.1)
        assert prior["wide/kind"] < 0.08


def test_rows_without_labels_tell_no_posterior(bundle: wd.Bundle) -> None:
    unlabelled = [{name: value for name, value in row.items() if name != "y"} for row in rows(5)]
    with pytest.raises(DataError, match="no column 'y'"):
        fit_posterior(bundle, unlabelled)


def _hidden_outputs(bundle: wd.Bundle, data: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    weights, batch = bundle.weights, next(iter(bundle.batches(data)))
    names = [slot.name for slot in bundle.schema.slots]
    slots = {slot.name: slot for slot in bundle.schema.slots}
    inputs = np.zeros((len(data), bundle.model.width))
    for column in bundle.model.deep:
        if column.name in bundle.schema.dense_layout:
            inputs[:, column.start : column.stop] = batch.dense_BK[
                :, bundle.schema.dense_layout[column.name]
            ]
            continue
        cells = batch.cells(names.index(column.name))
        table = weights[f"table/{slots[column.name].table}"]
        for row, (first, last) in enumerate(zip(cells.offsets, cells.offsets[1:], strict=False)):
            if last > first:
                inputs[row, column.start : column.stop] = table[cells.ids_N[first:last]].mean(0)
    for layer in range(2):
        inputs = inputs @ weights[f"mlp/{layer}/weight"].T + weights[f"mlp/{layer}/bias"]
        inputs = np.maximum(inputs, 0)
    return inputs


def test_a_number_in_the_wide_part_is_uncertain_by_its_square(tmp_path: Path) -> None:
    """Its standardised value may be below 0, and no variance is."""
    price = wd.numeric("age", transform="standard")
    features = [*wd.categorical("app"), *price]
    both = wd.FeatureSpec(
        label="y", features=features, item=["app", "age"], wide=["app", "age"], deep=[]
    )
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(both, rows())), progress=False)
    trainer.fit(rows())
    bundle = trainer.export(tmp_path / "bundle", posterior=rows())
    wide, _ = uncertainty_bundles(bundle)
    assert wide is not None
    batch = next(iter(bundle.batches(rows())))
    got = deviations(wide, batch)
    names = [slot.name for slot in bundle.schema.slots]
    app, age = batch.cells(names.index("app")), batch.cells(names.index("age"))
    assert age.values_N is not None and age.values_N.min() < 0
    of_app = bundle.posterior["wide/app"][app.ids_N, 0]
    of_age = bundle.posterior["wide/age"][age.ids_N, 0] * age.values_N**2
    assert got[:, 0] == pytest.approx(of_app, rel=1e-5)
    assert (got[:, 1:] ** 2).sum(axis=1) == pytest.approx(of_age, rel=1e-5)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_values_with_weights_are_uncertain_as_they_are_combined(
    combiner: Any, tmp_path: Path
) -> None:
    data = [{**row, "strength": [0.5 + n for n, _ in enumerate(row["tags"])]} for row in rows(200)]
    features = [*wd.categorical("app"), *wd.categorical("tags", weights="strength")]
    both = wd.FeatureSpec(label="y", features=features, item=["app", "tags"], deep=[])
    bundle = trained(tmp_path / "bundle", both, data, wide_combiner=combiner)
    wide, _ = uncertainty_bundles(bundle)
    assert wide is not None
    batch = next(iter(bundle.batches(data)))
    cells = batch.cells([slot.name for slot in bundle.schema.slots].index("tags"))
    deviation_N = np.sqrt(bundle.posterior["wide/tags"][cells.ids_N, 0].astype(np.float64))
    expected_B = np.zeros(len(data))
    for row, (first, last) in enumerate(zip(cells.offsets, cells.offsets[1:], strict=False)):
        weights = cells.values_N[first:last].astype(np.float64)
        norm = {"sum": 1.0, "mean": weights.sum(), "sqrtn": np.sqrt((weights**2).sum())}[combiner]
        if last > first:
            expected_B[row] = (weights * deviation_N[first:last]).sum() / norm
    got = deviations(wide, batch)
    assert got.shape == (len(data), 2)
    assert got[:, 1] == pytest.approx(expected_B, rel=1e-5)


def test_what_was_shown_less_is_less_certain(bundle: wd.Bundle) -> None:
    wide, _ = uncertainty_bundles(bundle)
    assert wide is not None
    batch = bundle.encode([{"user": "u1", "app": app, "age": 30} for app in [*ITEMS, "new"]])
    variances = deviations(wide, batch)[:, 0]
    assert (np.diff(variances) > 0).all()


def test_a_bundle_keeps_its_posterior(bundle: wd.Bundle, tmp_path: Path) -> None:
    again = wd.Bundle.load(bundle.path)
    assert POSTERIOR in again.manifest.files
    fitted = fit_posterior(again, rows())
    assert set(fitted) == set(again.posterior)
    for name, values in fitted.items():
        np.testing.assert_array_equal(values, again.posterior[name])


def test_a_model_that_is_not_binary_has_none(tmp_path: Path) -> None:
    data = [{**row, "y": float(row["y"]) + 0.5} for row in rows(60)]
    model = wd.WideDeep(wd.fit_schema(spec(), data), hidden_units=[2], head="regression")
    trainer = wd.Trainer(model, progress=False)
    trainer.fit(data)
    with pytest.raises(BundleError, match="regression as the head that is ranked by"):
        trainer.export(tmp_path / "none", posterior=data)
    assert not (tmp_path / "none").exists()
