"""Calibration by slice: what is fitted, what is written, and what it is worth on other rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import Run
from widedeep.bundle.posterior import fit_posterior
from widedeep.errors import BundleError, DataError
from widedeep.evaluation.slice_calibration import calibrate_slices, fit_slices
from widedeep.kernels.score import sigmoid

SHIFTS = np.array([0.9, -0.7, 0.3, 0.0, -0.5])


def rows(count: int, seed: int, shifts: np.ndarray) -> pa.Table:
    """Clicks by shop; in each country they are shifted."""
    rng = np.random.default_rng(seed)
    country, shop = rng.integers(0, 5, count), rng.integers(0, 12, count)
    logit = -1.0 + 0.25 * (shop - 6) + shifts[country]
    return pa.table(
        {
            "country": pa.array([f"c{c}" for c in country]),
            "shop": pa.array([f"s{s}" for s in shop]),
            "tags": pa.array([["a", "b"][: 1 + s % 2] for s in shop]),
            "click": (rng.random(count) < sigmoid(logit)).astype(np.int8),
        }
    )


def train(
    folder: Path, *, posterior: bool = False, group: str | None = None, **model: object
) -> wd.Bundle:
    features = wd.categorical("country", "shop", "tags")
    wide = ["country", "shop", "tags"]
    spec = wd.FeatureSpec(label="click", group=group, features=features, wide=wide, item=["shop"])
    data = rows(4000, 0, np.zeros(5))
    data = data.append_column("session", pa.array(np.arange(len(data))))
    options = {"hidden_units": [4], "embedding_dim": 2, **model}
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, data), **options),  # type: ignore[arg-type]
        batch_size=64,
        progress=False,
        threads=1,
    )
    trainer.fit(data, epochs=2)
    return trainer.export(folder, posterior=data if posterior else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sliced")
    train(folder / "mlp")
    train(folder / "dcn", deep="dcn_v2", hidden_units=None)
    pq.write_table(rows(6000, 1, SHIFTS), folder / "moved.parquet")
    pq.write_table(rows(6000, 2, SHIFTS), folder / "later.parquet")
    pq.write_table(rows(3000, 3, np.zeros(5)), folder / "same.parquet")
    return folder


def test_the_fit_is_the_top_of_its_penalised_likelihood() -> None:
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.2, 8000) - 1, 19)  # the last ones have few rows
    truth = rng.normal(0, 0.6, 20)
    logits = rng.normal(-1, 1, 8000)
    labels = (rng.random(8000) < sigmoid(1.3 * logits + 0.2 + truth[ids])).astype(float)
    weights = rng.uniform(0.5, 2, 8000)
    line, shifts, variance = fit_slices(logits, labels, weights, {"f": (ids, 20)})
    shift = shifts["f"]
    error = weights * (labels - sigmoid(line.slope * logits + line.intercept + shift[ids]))
    of_ids = np.bincount(ids, error, 20)
    assert of_ids == pytest.approx(shift / variance["f"], abs=0.05)
    assert [error.sum(), error @ logits] == pytest.approx([0, 0], abs=0.05)
    assert np.sqrt(variance["f"]) == pytest.approx(0.6, abs=0.2)
    assert line.slope == pytest.approx(1.3, abs=0.08)
    # Ten times as few rows: nearer to the line of all rows.
    few = np.arange(0, 8000, 10)
    _, nearer, _ = fit_slices(logits[few], labels[few], weights[few], {"f": (ids[few], 20)})
    assert np.abs(nearer["f"][10:]).mean() < 0.8 * np.abs(truth[10:]).mean()


def test_a_feature_that_needs_no_correction_gets_none() -> None:
    rng = np.random.default_rng(1)
    logits, ids = rng.normal(-1, 1, 20_000), rng.integers(0, 50, 20_000)
    labels = (rng.random(20_000) < sigmoid(logits)).astype(float)
    _, shifts, _ = fit_slices(logits, labels, np.ones(20_000), {"f": (ids, 50)})
    assert np.abs(shifts["f"]).max() < 0.06
    # By itself each value would be moved by its noise.
    alone = [(labels - sigmoid(logits))[ids == i].mean() for i in range(50)]
    assert np.abs(alone).max() / 0.2 > 0.1


@pytest.mark.parametrize("tower", ["mlp", "dcn"])
def test_the_bundle_carries_the_correction(folder: Path, tower: str) -> None:
    bundle, out = wd.Bundle.load(folder / tower), folder / f"{tower}-even"
    result = calibrate_slices(bundle, str(folder / "moved.parquet"), ["country"], out)
    assert result.better
    even = wd.Bundle.load(out)  # compares its warm-up rows with their scores
    assert even.manifest.engine == bundle.manifest.engine
    later = pq.read_table(folder / "later.parquet")
    codes = np.array([int(name[1:]) for name in later["country"].to_pylist()])
    labels = later["click"].to_numpy().astype(float)
    before, after = (np.asarray(each.score(later)) for each in (bundle, even))
    for code, shift in enumerate(SHIFTS):
        own = codes == code
        if abs(shift) > 0.4:
            assert abs(np.log(before[own].mean() / labels[own].mean())) > 0.2
        assert after[own].mean() == pytest.approx(labels[own].mean(), rel=0.12)
    shift_of = {entry["value"]: entry["shift"] for entry in result.slices}
    logits = bundle.logits(next(iter(bundle.batches(later))))[:, 0].astype(float)
    shifts = np.array([shift_of[f"c{code}"] for code in codes])
    expected = sigmoid(result.slope * logits + result.intercept + shifts)
    assert after == pytest.approx(expected, rel=1e-5)
    explained = {
        t.feature: t.weights[0] for t in even.explain(later.slice(0, 1).to_pylist()[0]).wide
    }
    old = {t.feature: t.weights[0] for t in bundle.explain(later.slice(0, 1).to_pylist()[0]).wide}
    moved = explained["country"] - old["country"]
    assert moved == pytest.approx(shifts[0] / result.slope, abs=1e-6)
    assert explained["shop"] == old["shop"]


def test_rows_of_a_group_are_no_more_evidence_than_one(tmp_path: Path) -> None:
    bundle = train(tmp_path / "grouped", group="session", hidden_units=[])
    once = rows(1500, 1, SHIFTS).append_column("session", pa.array(np.arange(1500)))
    often = once.take(np.repeat(np.arange(1500), 10))
    few, many = (
        calibrate_slices(bundle, data, ["country"], tmp_path / str(len(data)))
        for data in (once, often)
    )
    assert many.gain_error == pytest.approx(few.gain_error, rel=0.2)


def test_the_verb_writes_what_is_better_on_rows_held_out(folder: Path, run: Run) -> None:
    out = folder / "even"
    words = ["calibrate", folder / "mlp", folder / "moved.parquet", "--by", "country,shop"]
    ran = run(*words, "-o", out, "--json")
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)
    assert printed["log_loss"]["by slice"] < printed["log_loss"]["one line"]
    assert printed["error"]["by slice"] < 0.5 * printed["error"]["now"]
    assert printed["spread"]["country"] > 3 * printed["spread"]["shop"]
    refused = run(*words, "-o", out)
    assert (refused.code, "replace it with --force" in refused.err) == (2, True)
    ran = run(*words, "-o", out, "--force")
    assert "next: widedeep validate" in ran.out
    none = ["calibrate", out, folder / "later.parquet", "--by", "shop", "-o", folder / "none"]
    ran = run(*none)
    assert (ran.code, (folder / "none").exists()) == (1, False)
    assert "not written: log loss of held-out halves falls by" in ran.out


def test_a_posterior_is_fitted_again_or_left_out(folder: Path, run: Run) -> None:
    bundle = train(folder / "sure", posterior=True)
    assert bundle.posterior
    words = ["calibrate", bundle.path, folder / "moved.parquet", "--by", "country", "-o"]
    ran = run(*words, folder / "unsure")
    assert ran.code == 0 and "note: the posterior of the last layer" in ran.out
    assert not wd.Bundle.load(folder / "unsure").posterior
    ran = run(*words, folder / "again", "--posterior", folder / "moved.parquet")
    again = wd.Bundle.load(folder / "again")
    assert ran.code == 0 and "note: the posterior" not in ran.out
    fitted = fit_posterior(again, str(folder / "moved.parquet"))
    assert set(again.posterior) == set(bundle.posterior) == set(fitted)
    for name, values in fitted.items():
        np.testing.assert_array_equal(again.posterior[name], values)


def test_features_and_rows_that_cannot_be_calibrated_by(folder: Path) -> None:
    bundle = wd.Bundle.load(folder / "mlp")
    with pytest.raises(BundleError, match="'land', which is not in the wide part"):
        calibrate_slices(bundle, str(folder / "same.parquet"), ["land"], folder / "x")
    with pytest.raises(DataError, match="feature 'tags': got 2 values in a row"):
        calibrate_slices(bundle, str(folder / "same.parquet"), ["tags"], folder / "x")
    data = pq.read_table(folder / "same.parquet")
    zeros = data.set_column(3, "click", pa.array(np.zeros(len(data), np.int8)))
    with pytest.raises(DataError, match="every label of the data is the same"):
        calibrate_slices(bundle, zeros, ["country"], folder / "x")
