"""A bundle as an ONNX model scores as the bundle does, for every kind of feature and tower."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import widedeep as wd
from widedeep import models
from widedeep.bundle import (
    Bundle,
    Isotonic,
    Platt,
    PriorCorrection,
    export_onnx,
    onnx_inputs,
    onnx_model,
)
from widedeep.bundle.onnx_model import NULL_TEXT, TOLERANCE
from widedeep.errors import BundleError

RNG = np.random.default_rng(3)
JOBS = ["cook", "nurse", "smith", "Ἀριάδνη", ""]


def make_row(index: int) -> dict[str, Any]:
    def perhaps(value: Any) -> Any:
        return None if RNG.random() < 0.15 else value

    tags = [JOBS[i] for i in RNG.integers(4, size=RNG.integers(4))]
    return {
        "job": perhaps(JOBS[RNG.integers(5)]),
        "code": perhaps(int(RNG.integers(12)) - 1),
        "flag": perhaps(bool(RNG.random() < 0.5)),
        "age": perhaps(float(np.float32(RNG.normal(40, 12)))),
        "size": perhaps(int(RNG.integers(50))),
        "spot": perhaps([perhaps(float(x)) for x in RNG.normal(size=2)]),
        "tags": perhaps(tags),
        "scores": [float(x) for x in RNG.random(len(tags))],
        "y": int(RNG.random() < 0.5),
    }


ROWS = [make_row(i) for i in range(300)]
for row in ROWS:
    if row["tags"] is None:
        row["scores"] = None
UNSEEN = {"job": "pilot", "code": 11, "flag": None, "age": 1e6, "size": -4, "spot": [9.0, -9.0]}
EVERY_KIND = [
    wd.categorical("job", embedding_dim=3, empty_as_null=True),
    wd.categorical("job_dropped", source="job", oov="drop", vocabulary=["cook", "nurse"]),
    wd.categorical(
        "job_default", source="job", vocabulary=["cook", "nurse"], default_value="nurse"
    ),
    wd.categorical("job_hashed", source="job", hash_buckets=7, embedding_dim=3),
    wd.categorical("job_oov", source="job", oov_buckets=2, embedding_dim=3),
    wd.categorical("code", embedding_dim=2),
    wd.categorical("code_itself", source="code", num_buckets=10, embedding_dim=2),
    wd.categorical("flag", embedding_dim=2),
    wd.categorical("tags", combiner="sqrtn", embedding_dim=3),
    wd.categorical("tags_max", source="tags", combiner="max", oov="drop", embedding_dim=3),
    wd.categorical(
        "tags_weighed", source="tags", weights="scores", combiner="mean", embedding_dim=3
    ),
    wd.numeric("age"),
    wd.numeric("age_log", source="age", transform="log1p", missing="indicator"),
    wd.numeric("age_standard", source="age", transform="standard"),
    wd.numeric("age_pieces", source="age", embedding="piecewise", embedding_dim=2),
    wd.numeric("size", transform="minmax"),
    wd.numeric("spot", size=2, transform="standard", missing="indicator"),
    wd.bucketized("age_bucket", source="age", boundaries=[20, 40, 60]),
    wd.bucketized("spot_bucket", source="spot", boundaries=[-1.0, 0.0, 1.0], size=2),
    wd.indicator("job_counts", source="job"),
    wd.indicator("tag_counts", source="tags"),
    wd.crossed("job", "age_bucket"),
    wd.crossed("code", "flag", "job_dropped", name="three"),
    wd.crossed("job", "tags", name="job_tags"),
    wd.crossed("job", "code", hash_buckets=20, name="hashed"),
]


def make_bundle(folder: Path, **model: Any) -> Bundle:
    spec = wd.FeatureSpec(
        label="y", features=model.pop("features", EVERY_KIND), item=model.pop("item", ())
    )
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, ROWS), **model), batch_size=32, progress=False, threads=1
    )
    trainer.fit(ROWS, epochs=2)
    return trainer.export(folder)


def assert_same_scores(bundle: Bundle, file: Path, rows: list[dict[str, Any]]) -> None:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    results = dict(zip(names, session.run(None, onnx_inputs(bundle, rows)), strict=True))
    logits = bundle.logits(bundle.encode(rows))
    assert np.abs(results["logits"] - logits).max() < TOLERANCE * max(1.0, np.abs(logits).max())
    scores = bundle.score(rows)
    by_head = scores if isinstance(scores, dict) else {"scores": scores}
    for name, expected in by_head.items():
        assert results[name].shape == expected.shape
        np.testing.assert_allclose(results[name], expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("every") / "bundle", hidden_units=[16, 8])


def test_every_kind_of_feature_scores_as_in_the_bundle(every_kind: Bundle, tmp_path: Path) -> None:
    roles = export_onnx(every_kind, tmp_path / "model.onnx")
    assert_same_scores(every_kind, tmp_path / "model.onnx", [*ROWS, UNSEEN, {}])
    raw = {name: role for name, role in roles.items() if "/" not in name}
    assert raw == {
        "job": "text",
        "code": "integers",
        "flag": "integers",
        "age": "numbers",
        "size": "numbers",
        "spot": "numbers",
    }
    assert {name for name in roles if "/" in name} == {
        *("job_hashed/ids", "job_oov/ids", "tags/ids", "tags_max/ids", "tags_weighed/ids"),
        *("tags_weighed/weights", "job_tags/ids", "hashed/ids"),
    }


def test_the_file_says_what_goes_in(every_kind: Bundle, tmp_path: Path) -> None:
    roles = export_onnx(every_kind, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["widedeep.inputs"]) == roles
    assert metadata["widedeep.schema"] == every_kind.schema.fingerprint
    assert list(roles) == [entry.name for entry in session.get_inputs()]


class Ceilings(torch.nn.Module):
    """What the native program has no operation for."""

    def forward(self, inputs: Any) -> torch.Tensor:
        return torch.ceil(inputs.concat_BX[:, :2])


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        ({"deep": [models.DCNv2(), models.MLP(hidden_units=(8,))]}, "graph"),
        ({"deep": [models.DIN(attention_units=(4,), hidden_units=(8,))]}, "graph"),
        ({"deep": [models.FiBiNET(hidden_units=(8,))]}, "graph"),
        ({"deep": [models.AutoInt()]}, "graph"),
        ({"hidden_units": [8], "activation": "gelu", "towers": {"odd": Ceilings()}}, "onnx"),
        ({"deep": []}, "native"),
    ],
    ids=["dcn_v2", "din", "fibinet", "autoint", "onnx", "wide"],
)
def test_towers_score_as_in_the_bundle(model: dict[str, Any], engine: str, tmp_path: Path) -> None:
    features = [
        wd.categorical("job", embedding_dim=4, table="jobs"),
        wd.categorical("tags", embedding_dim=4, table="jobs", combiner=None, maxlen=3),
        wd.categorical("code", embedding_dim=4),
        wd.numeric("age", embedding="piecewise", embedding_dim=4),
    ]
    if engine != "graph" or not isinstance(model["deep"][0], models.DIN):
        features[1] = wd.categorical("tags", embedding_dim=4)
    bundle = make_bundle(tmp_path / "bundle", features=features, item=("job",), **model)
    assert bundle.manifest.engine == engine
    export_onnx(bundle, tmp_path / "model.onnx")
    assert_same_scores(bundle, tmp_path / "model.onnx", [*ROWS, UNSEEN])


def test_heads_and_a_calibration_are_in_the_model(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label={"click": "y", "kind": "job", "price": "size"},
        features=[wd.categorical("code"), wd.numeric("age")],
    )
    rows = [row for row in ROWS if row["job"] and (row["size"] or 0) > 0]
    heads = {
        "click": "binary",
        "kind": "multiclass",
        "price": "ziln",
    }
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[8], heads=heads)
    trainer = wd.Trainer(model, progress=False)
    trainer.fit(rows)
    bundle = trainer.export(tmp_path / "bundle")
    export_onnx(bundle, tmp_path / "model.onnx")
    assert_same_scores(bundle, tmp_path / "model.onnx", rows)


@pytest.mark.parametrize(
    "curve",
    [
        PriorCorrection(rate=0.1),
        Platt(slope=1.3, intercept=-0.2),
        Isotonic(logits=(-1.0, 0.1, 0.4), values=(0.2, 0.5, 0.9), slope=0.7),
        Isotonic(logits=(-1.0, 0.1, 0.4), values=(0.2, 0.5, 0.9)),
    ],
)
def test_a_calibrated_bundle(curve: Any, every_kind: Bundle, tmp_path: Path) -> None:
    bundle = copy.copy(every_kind)
    bundle.calibration = {"": curve}
    export_onnx(bundle, tmp_path / "model.onnx")
    assert_same_scores(bundle, tmp_path / "model.onnx", ROWS)


def test_a_model_without_stored_rows_is_refused(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, ROWS)), progress=False)
    bundle = trainer.export(tmp_path / "bundle", warmup=False)
    with pytest.raises(BundleError, match="without stored rows"):
        export_onnx(bundle, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_that_scores_otherwise_is_not_written(
    every_kind: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {**every_kind.weights, "bias": every_kind.weights["bias"] + np.float32(1e-3)}
    monkeypatch.setattr(every_kind, "weights", weights)  # the graph's; the bundle's own are native
    with pytest.raises(BundleError, match="not written: the ONNX model's logits of stored row"):
        export_onnx(every_kind, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_known_value_that_means_null_comes_in_as_ids(tmp_path: Path) -> None:
    rows = [{"job": [NULL_TEXT, "cook"][i % 2], "y": i % 2} for i in range(64)]
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False)
    trainer.fit(rows)
    bundle = trainer.export(tmp_path / "bundle")
    assert export_onnx(bundle, tmp_path / "model.onnx") == {"job/ids": "ids"}
    assert_same_scores(bundle, tmp_path / "model.onnx", rows)


def test_a_model_that_differs_where_no_stored_row_looks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = wd.FeatureSpec(label="y", features=wd.categorical("tags", combiner="max"))
    rows = [{"tags": ["ab"[i % 2]] if i % 3 else [], "y": i % 2} for i in range(40)]
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False, threads=1)
    trainer.fit(rows, epochs=2)
    bundle = trainer.export(tmp_path / "b", warmup=[{"tags": ["a"]}])
    export_onnx(bundle, tmp_path / "model.onnx")
    assert_same_scores(bundle, tmp_path / "model.onnx", [{"tags": ["a", "b", "zz"]}, {}])
    monkeypatch.setattr(onnx_model._Exporter, "_largest", lambda self, weights, rows: rows.sum(1))
    with pytest.raises(BundleError, match=r"not written: .* of row made up from the schema \d+"):
        export_onnx(bundle, tmp_path / "other.onnx")
