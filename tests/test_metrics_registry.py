"""Metrics of one's own: evaluated, stopped on, named in TOML, reported; merged over shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import widedeep as wd
from tests.command_line import Run
from widedeep import metrics as wm
from widedeep.errors import ConfigError
from widedeep.training.config import TrainConfig
from widedeep.training.early_stopping import EarlyStopping

Floats = NDArray[np.float64]


def brier(labels: Floats, predictions: Floats, weights: Floats) -> float:
    return float(np.average((predictions - labels) ** 2, weights=weights))


def brier_sums(labels: Floats, predictions: Floats, weights: Floats) -> list[float]:
    return [float(np.sum(weights * (predictions - labels) ** 2)), float(np.sum(weights))]


BRIER = wm.Metric(name="brier", title="Brier score", value=brier, headline=1)
HITS = wm.Metric(
    name="mean_hit",
    direction="higher",
    sums=lambda y, p, w: [np.sum(w * y * p), np.sum(w * y)],
    value=lambda sums: sums[0] / sums[1],
)


@pytest.fixture(autouse=True)
def own_metrics() -> Iterator[None]:
    wm.register(BRIER)
    wm.register(HITS)
    yield
    for name in ("brier", "mean_hit", "brier_from_file", "spread"):
        wm.unregister(name)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    kinds = random.integers(0, 4, 3000)
    labels = (random.random(3000) < (0.1 + 0.2 * kinds)).astype(np.int64)
    table = pa.table({"kind": [f"k{kind}" for kind in kinds], "label": labels})
    for name, part in (("train", table.slice(0, 2000)), ("test", table.slice(2000))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    return tmp_path


def trainer_of(rows: Path) -> wd.Trainer:
    spec = wd.FeatureSpec(label="label", features=[wd.categorical("kind")])
    model = wd.WideDeep(wd.fit_schema(spec, rows / "train.parquet"), hidden_units=[4])
    return wd.Trainer(model)


def test_evaluation_and_early_stopping(rows: Path) -> None:
    trainer = trainer_of(rows)
    stopping = EarlyStopping("brier", patience=1)
    trainer.fit(
        rows / "train.parquet", epochs=2, valid=rows / "test.parquet", early_stopping=stopping
    )
    measured = trainer.evaluate(rows / "test.parquet")
    predictions = trainer.predict(rows / "test.parquet")
    labels = pq.read_table(rows / "test.parquet")["label"].to_numpy().astype(float)
    assert measured["brier"] == pytest.approx(np.mean((predictions - labels) ** 2), abs=1e-9)
    assert stopping.best == pytest.approx(measured["brier"], abs=1e-12)
    assert "valid/brier" in trainer.history[0]


def test_report(rows: Path) -> None:
    trainer = trainer_of(rows)
    trainer.fit(rows / "train.parquet")
    bundle = trainer.export(rows / "bundle")
    report = wd.make_report(bundle, rows / "test.parquet")
    expected = trainer.evaluate(rows / "test.parquet")["brier"]
    assert report.heads[""]["metrics"]["model"]["brier"] == pytest.approx(expected, abs=1e-7)
    page = report.to_html()
    assert "Brier score" in page and "mean hit" in page
    assert f"{expected:.4f}" in page


def test_toml_names_the_module(rows: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    (rows / "my_metrics_of_a_file.py").write_text(
        "from widedeep import metrics\n"
        "metrics.register(metrics.Metric(\n"
        "    name='brier_from_file', title='Brier of a file',\n"
        "    value=lambda y, p, w: float((w * (p - y) ** 2).sum() / w.sum())))\n"
    )
    monkeypatch.chdir(rows)
    (rows / "run.toml").write_text(
        '[data]\ntrain = "train.parquet"\nvalid = "test.parquet"\ntest = "test.parquet"\n'
        'label = "label"\n[features]\ncategorical = ["kind"]\n[model]\nhidden_units = [4]\n'
        "[train]\nepochs = 2\npatience = 1\n"
        'metrics = ["my_metrics_of_a_file"]\nmonitor = "brier_from_file"\n'
    )
    ran = run("train", "run.toml", "--out", "runs/own")
    assert ran.code == 0, ran.err
    assert "brier_from_file" in ran.out
    test = json.loads((rows / "runs/own/metrics.json").read_text())["test"]
    assert test["brier_from_file"] == pytest.approx(test["brier"], abs=1e-12)
    assert run("report", "runs/own").code == 0
    assert "Brier of a file" in (rows / "runs/own/report.html").read_text()
    with pytest.raises(ConfigError, match="'no_such_metrics', which cannot be imported"):
        wd.Trainer(trainer_of(rows).model, metrics=["no_such_metrics"])


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("os", None, "which registers nothing"),
        (".", None, "which cannot be imported"),
        ("metrics_of_nothing", "import os", "which registers nothing"),
        ("metrics_that_raise", "raise KeyError('x')", r"cannot be imported \(KeyError: 'x'\)"),
        ("metrics_misspelt", "def f(:", r"cannot be imported \(SyntaxError"),
    ],
)
def test_modules_that_bring_no_metric(
    module: str,
    text: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / f"{module}.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig(metrics=[module])


def test_groups_and_reasons() -> None:
    def spread(labels: Floats, predictions: Floats, weights: Floats, groups: Floats) -> float:
        return float(np.ptp(predictions)) if len(np.unique(groups)) > 1 else wm.Undefined("1 group")

    wm.register(wm.Metric(name="spread", groups=True, value=spread, direction="higher"))
    metrics = wm.BinaryMetrics(names=["spread"], score_kind="probability")
    metrics.update([0.25, 0.75], [0, 1], groups_B=["ann", "ann"])
    assert np.isnan(metrics.compute()["spread"])
    assert metrics.reasons == {"spread": "1 group"}
    metrics.update([1.0], [1], groups_B=["bob"])
    assert metrics.compute() == {"spread": 0.75}
    assert "spread" not in wm.BinaryMetrics().compute()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="'auc' is already registered"):
        wm.register(wm.Metric(name="auc", value=brier))
    with pytest.raises(ConfigError, match="direction='up'"):
        wm.Metric(name="x", value=brier, direction="up")  # type: ignore[arg-type]
    broken = wm.Metric(name="spread", value=lambda y, p, w: 1 / 0)
    wm.register(broken)
    metrics = wm.BinaryMetrics(names=["spread"])
    metrics.update([0.5], [1])
    with pytest.raises(ConfigError, match="metric 'spread' failed on 1 rows"):
        metrics.compute()


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_shards_merge_to_the_metrics_of_the_whole(kind: wm.LabelKind) -> None:
    random = np.random.default_rng(7)
    scores = random.normal(size=(500, 3) if kind == "multiclass" else 500)
    labels = random.integers(0, 3 if kind == "multiclass" else 2, 500)
    weights, groups = random.random(500), random.integers(0, 40, 500)
    whole, first, second = (wm.metrics_of(kind, classes=3, groups=True) for _ in range(3))
    whole.update(scores, labels, weights, groups)
    first.update(scores[:170], labels[:170], weights[:170], groups[:170])
    second.update(scores[170:], labels[170:], weights[170:], groups[170:])
    first.merge(second)
    merged, expected = first.compute(), whole.compute()
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert merged[name] == pytest.approx(value, rel=1e-12), name


def test_directions() -> None:
    def better(name: str, value: float, best: float) -> bool:
        metric = wm.find_metric(name)
        assert metric is not None
        return metric.better(value, best)

    assert better("click/ndcg@5", 0.6, 0.5) and better("top_3_accuracy", 0.6, 0.5)
    assert better("brier", 0.1, 0.2) and better("calibration", 0.95, 1.2)
    assert better("mean_bias", -0.1, 0.2) and not better("mean_hit", 0.1, 0.2)
