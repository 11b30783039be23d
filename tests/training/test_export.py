"""An exported model scores as the model it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from tests.bundle import models
from widedeep.bundle import write_bundle
from widedeep.errors import BundleError
from widedeep.features import FeatureSpec
from widedeep.metrics import log_loss
from widedeep.models.tower import DeepInput, DeepLayout
from widedeep.schema import Schema
from widedeep.training.export import bundle_model, bundle_weights

ROWS = models.rows(300)
LABELLED = [{**row, "installed": number % 2} for number, row in enumerate(ROWS)]


class Squares(nn.Module):
    """A tower that no standard one can stand in for."""

    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.linear = nn.Linear(layout.width, 4)

    def forward(self, inputs: DeepInput) -> Tensor:
        # Small ones: ages squared would leave float32 no room for 1e-6.
        squares: Tensor = self.linear(inputs.concat_BX / 10) ** 2
        return squares + sum(inputs.extra.values())


def made(schema: Schema, **options: Any) -> wd.WideDeep:
    """A model that looks trained: wide weights and norms that are not where they started."""
    torch.manual_seed(0)
    model = wd.WideDeep(schema, embedding_dim=8, **options)
    if model.wide_table is not None:
        model.wide_table.weight.normal_(std=0.3)
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.normal_()
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({"hidden_units": [32, 16]}, "native"),
        ({"hidden_units": [32, 16], "wide_combiner": "mean", "activation": "elu"}, "native"),
        ({"hidden_units": [9], "activation": "leaky_relu"}, "native"),
        ({"hidden_units": [9], "activation": "silu"}, "native"),
        ({"hidden_units": [9], "activation": "tanh"}, "native"),
        (
            {"hidden_units": [9, 8], "activation": "gelu", "batch_norm": True, "dropout": 0.2},
            "native",
        ),
        ({"hidden_units": [9], "activation": "hardswish", "batch_norm": True}, "graph"),
        ({"hidden_units": [9], "batch_norm": "tensorflow", "wide_bias": True}, "native"),
        (
            {
                "deep": {
                    "name": "ensemble",
                    "members": 2,
                    "of": {
                        "name": "deep_fm",
                        "hidden_units": [5],
                        "activation": {"name": "leaky_relu", "negative_slope": 0.2},
                        "batch_norm": {"momentum": 0.5, "biased": True},
                    },
                },
            },
            "graph",
        ),
        ({"hidden_units": []}, "native"),
        ({"towers": {"squares": Squares}}, "graph"),
        ({"towers": {"mlp": Squares}}, "graph"),
        ({"towers": {"squares": Squares}, "hidden_units": [8], "batch_norm": True}, "graph"),
    ],
)
def test_bundles_score_as_their_trainer_predicts(
    tmp_path: Path, options: dict[str, Any], engine: str
) -> None:
    extra = ("price",) if engine == "graph" else ()
    trainer = wd.Trainer(made(models.schema(extra=extra), **options))
    bundle = trainer.export(tmp_path / "b", metrics={"auc": 0.5}, warmup=ROWS[:3])
    assert bundle.manifest.engine == engine
    loaded = wd.Bundle.load(tmp_path / "b")
    assert np.abs(loaded.score(ROWS) - trainer.predict(ROWS)).max() <= 1e-6


class Signs(nn.Module):
    """What the native program has no operation for."""

    def forward(self, inputs: DeepInput) -> Tensor:
        return torch.ceil(inputs.concat_BX)


def test_a_tower_that_goes_through_onnx_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = wd.Trainer(made(models.schema(), towers={"signs": lambda layout: Signs()}))
    bundle = trainer.export(tmp_path / "b")
    assert bundle.manifest.engine == "onnx"
    told = capsys.readouterr().err
    assert "note: towers 'signs' go through ONNX Runtime" in told
    assert "(not native: the operation prims.ceil" in told
    assert np.abs(bundle.score(ROWS) - trainer.predict(ROWS)).max() <= 1e-6


def test_sequences_are_left_out_where_nothing_reads_them(tmp_path: Path) -> None:
    schema = models.schema()
    features = [
        *(f for f in schema.spec.features if f.name != "tags"),
        *wd.categorical("tags", combiner=None),
    ]
    spec = FeatureSpec(features=features, item=schema.spec.item)
    schema = Schema(
        spec=spec,
        columns=schema.columns,
        vocabularies=schema.vocabularies,
        boundaries=schema.boundaries,
        numerics=schema.numerics,
    )
    model = made(schema, hidden_units=[8])
    assert "table/tags" not in bundle_weights(model)
    trainer = wd.Trainer(model)
    bundle = trainer.export(tmp_path / "b")
    assert np.abs(bundle.score(ROWS) - trainer.predict(ROWS)).max() <= 1e-6


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_a_calibration_is_fitted_on_the_data_named(tmp_path: Path, kind: Any) -> None:
    trainer = wd.Trainer(made(models.schema(), hidden_units=[8]))
    bundle = trainer.export(tmp_path / "b", calibration=kind, calibrate_on=LABELLED)
    mean = np.mean([row["installed"] for row in LABELLED])
    assert bundle.score(ROWS).mean() == pytest.approx(mean, abs=0.01)
    assert abs(trainer.predict(ROWS).mean() - mean) > 0.05


def test_an_isotonic_curve_keeps_the_ranking_of_adult(adult: Path, tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label="income",
        features=[
            *wd.numeric("age", "education_num", "capital_gain", "hours_per_week"),
            *wd.categorical("education", "marital_status", "occupation", "relationship"),
        ],
    )
    schema = wd.fit_schema(spec, adult / "train.parquet")
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[32], seed=0), progress=False)
    trainer.fit(adult / "train.parquet")
    bundle = trainer.export(
        tmp_path / "b", calibration="isotonic", calibrate_on=adult / "valid.parquet"
    )
    raw, scores = trainer.predict(adult / "test.parquet"), bundle.score(adult / "test.parquet")
    assert isinstance(raw, np.ndarray) and isinstance(scores, np.ndarray)
    assert len(scores) == 16_281
    order = np.argsort(raw, kind="stable")
    assert ((np.diff(scores[order]) > 0) == (np.diff(raw[order]) > 0)).all()
    assert scores.min() > 0 and scores.max() < 1
    labels = pq.read_table(adult / "test.parquet")["income"].to_numpy()
    assert log_loss(labels, scores) < log_loss(labels, raw) + 0.001
    assert scores.mean() == pytest.approx(labels.mean(), rel=0.05)


def test_weights_of_another_schema_are_refused(tmp_path: Path) -> None:
    model = made(models.schema(), hidden_units=[8])
    smaller = models.schema()
    smaller.vocabularies["tags"] = models._words(models.TAGS[:2])  # type: ignore[index]
    with pytest.raises(BundleError, match=r"tags': .* the weights belong to another schema"):
        write_bundle(
            tmp_path / "b",
            schema=smaller,
            weights=bundle_weights(model),
            model=bundle_model(model),
            metrics={},
            warmup_rows=[],
            config={},
        )
