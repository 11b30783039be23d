"""What is not understood is named and refused; what is, is read in all its forms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importing.write_bundle import write_bundle
from tests.oracles.models import unpack_model
from widedeep.errors import CheckpointError, FeatureError, WideDeepError
from widedeep.importing import TensorBundle, from_estimator
from widedeep.importing.columns import CountColumn
from widedeep.importing.network import read_network
from widedeep.importing.saved_model import Op, SavedModel
from widedeep.importing.tensor_bundle import OBJECT_GRAPH, find_bundle
from widedeep.importing.warmup import read_warmup


def saved(name: str, folder: Path) -> SavedModel:
    unpack_model(name, folder)
    return SavedModel(folder / "saved_model")


def put(model: SavedModel, name: str, kind: str, *inputs: str) -> Op:
    """Put an operation into a graph, or in the place of one."""
    op = model.graph.ops.get(name, Op(name=name, kind=kind, inputs=inputs, attributes={}))
    model.graph.ops[name] = dataclasses.replace(op, kind=kind, inputs=inputs or op.inputs)
    return model.graph.ops[name]


@pytest.mark.parametrize(
    ("name", "operation", "kind", "said"),
    [
        ("dnn_classifier", "dnn/hiddenlayer_0/Elu", "Cos", r"got Cos \(operation 'dnn/hidden"),
        ("dnn_classifier", "dnn/hiddenlayer_1/Elu", "Relu", "differ in their activation"),
        ("poisson", "head/predictions/Exp", "Square", "its predictions are Square of the logits"),
        ("shared_weighted", "dnn/hiddenlayer_0/batchnorm_0/batchnorm/Rsqrt", "Rint", "got Rint"),
    ],
)
def test_other_operations_of_a_network(
    tmp_path: Path, name: str, operation: str, kind: str, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = saved(name, tmp_path)
    assert operation in model.graph.ops
    put(model, operation, kind)
    monkeypatch.setattr("widedeep.importing.estimator.SavedModel", lambda path: model)
    with pytest.raises(CheckpointError, match=said):
        from_estimator(tmp_path / "saved_model")


INPUT = "dnn/input_from_feature_columns/input_layer"


@pytest.mark.parametrize(
    ("name", "operation", "kind", "said"),
    [
        ("dnn_classifier", f"{INPUT}/price_1/truediv", "Pow", "'price': is computed by Pow"),
        ("shared_weighted", f"{INPUT}/price_1/sub", "Log", "'price': is computed by Log"),
        (
            "census",
            f"{INPUT}/occupation_embedding_1/lookup",
            "StringToHashBucketStrong",
            "'occupation_embedding': is computed by StringToHashBucketStrong",
        ),
        (
            "linear_regressor",
            "linear/linear_model/linear/linear_model/linear/linear_model/age_bucketized/Bucketize",
            "Floor",
            "'age_bucketized': is computed by Floor",
        ),
    ],
)
def test_other_operations_of_a_column(
    tmp_path: Path, name: str, operation: str, kind: str, said: str
) -> None:
    model = saved(name, tmp_path)
    assert operation in model.graph.ops
    put(model, operation, kind)
    with pytest.raises(FeatureError, match=said):
        read_network(model)


def test_every_activation_is_read(tmp_path: Path) -> None:
    model = saved("dnn_classifier", tmp_path)
    names = ["Relu", "Relu6", "Elu", "Selu", "Tanh", "Sigmoid", "Softplus", "Softsign"]
    for kind in names:
        for i in range(2):
            put(model, f"dnn/hiddenlayer_{i}/Elu", kind)
        assert {layer.activation for layer in read_network(model).layers} == {kind.lower()}


def test_swish_and_gelu_are_read(tmp_path: Path) -> None:
    model = saved("dnn_classifier", tmp_path)
    for i in range(2):
        linear = f"dnn/hiddenlayer_{i}/BiasAdd"
        put(model, f"gate_{i}", "Sigmoid", linear)
        put(model, f"dnn/hiddenlayer_{i}/Elu", "Mul", linear, f"gate_{i}")
    assert {layer.activation for layer in read_network(model).layers} == {"silu"}
    put(model, "gate_0", "Sigmoid", "dnn/hiddenlayer_0/MatMul")
    with pytest.raises(CheckpointError, match="got Mul"):
        read_network(model)


def test_counts_with_weights_are_read(tmp_path: Path) -> None:
    model = saved("shared_weighted", tmp_path)
    tags = f"{INPUT}/tags_weighted_by_tag_weights_embedding_1/hash_table_Lookup/LookupTableFindV2"
    put(model, "ids", "ExpandDims", tags, "one")
    put(model, "indices", "ConcatV2", "rows", "ids", "one")
    put(model, "width", "Pack", f"{INPUT}/slot_indicator_1/one_hot/depth")
    put(model, "shape", "ConcatV2", "size", "width", "one")
    for name in ("one", "zeros"):
        put(model, name, "Const")
    put(model, "rows", "Shape", tags)
    put(model, "size", "Shape", tags)
    put(model, "matrix", "SparseReorder", "indices", "ParseExample/ParseExampleV2:9", "shape")
    put(model, "slice", "SparseSlice", "matrix", "matrix:1", "shape", "zeros", "shape")
    put(model, f"{INPUT}/slot_indicator_1/Sum", "ScatterNd", "slice", "slice:1", "slice:2")
    (column,) = (c for _, c in read_network(model).deep if isinstance(c, CountColumn))
    assert column.width == 3
    assert column.column.values == ("new", "sale", "gift", "used")
    assert column.column.weights is not None
    assert column.column.weights.key == "tag_weights"


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved("census", tmp_path)
    predict = model.signatures["predict"]
    keras = dataclasses.replace(predict, outputs={"output_0": predict.outputs["logits"]})
    model.signatures = {"serving_default": keras}
    with pytest.raises(CheckpointError, match="expected the SavedModel of a canned estimator"):
        read_network(model)


def with_tensors(folder: Path, **changes: Any) -> TensorBundle:
    """A checkpoint with other tensors beside its own."""
    bundle = TensorBundle(find_bundle(folder))
    tensors = {name: bundle.read(name) for name in bundle} | changes
    return TensorBundle(write_bundle(bundle.prefix, tensors))


def test_a_variable_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    unpack_model("census", tmp_path)
    with_tensors(tmp_path / "saved_model" / "variables", tower=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="holds 'tower', which no part of the model uses"):
        from_estimator(tmp_path / "saved_model")


def test_checkpoints_of_other_steps_and_kinds(tmp_path: Path) -> None:
    unpack_model("census", tmp_path)
    with_tensors(tmp_path / "checkpoint", global_step=np.int64(9))
    with pytest.raises(CheckpointError, match="got checkpoints of step 9, expected step 5"):
        from_estimator(tmp_path / "saved_model", checkpoint=tmp_path / "checkpoint")
    with_tensors(tmp_path / "checkpoint", **{OBJECT_GRAPH: np.int64(0)})
    with pytest.raises(CheckpointError, match=r"got a checkpoint of Keras or tf\.train"):
        from_estimator(tmp_path / "saved_model", checkpoint=tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="a checkpoint alone does not say"):
        from_estimator(tmp_path / "checkpoint")


def test_without_a_checkpoint_the_optimizers_start_anew(tmp_path: Path) -> None:
    unpack_model("census", tmp_path)
    imported = from_estimator(tmp_path / "saved_model")
    assert "the optimizers start anew" in imported.notes[0]
    assert all(not tensor.state for tensor in imported.tensors)
    own = imported.trainer.state.checkpoint().tensors
    weights = own["wide/occupation.weight"]
    # FTRL's z stands for the weights: a first step must not forget them.
    assert np.array_equal(np.sign(own["wide/occupation.z"]), -np.sign(weights))


def test_a_circle_in_a_graph_is_told(tmp_path: Path) -> None:
    model = saved("census", tmp_path)
    put(model, "dnn/hiddenlayer_0/Relu", "Reshape", "dnn/hiddenlayer_1/Relu")
    put(model, "dnn/hiddenlayer_1/Relu", "Reshape", "dnn/hiddenlayer_0/Relu")
    with pytest.raises(CheckpointError, match="holds a circle of operations"):
        read_network(model)


def test_damaged_files_are_told_whatever_byte_is_wrong(tmp_path: Path) -> None:
    unpack_model("shared_weighted", tmp_path)
    folder = tmp_path / "saved_model"
    rng, refused = np.random.default_rng(5), 0
    for path in ("saved_model.pb", "assets.extra/tf_serving_warmup_requests"):
        file = folder / path
        raw = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(8):
            damaged = raw.copy()
            damaged[rng.integers(0, len(raw), size=3)] = rng.integers(0, 256, size=3)
            file.write_bytes(damaged.tobytes()[: rng.integers(len(raw) // 2, 2 * len(raw))])
            try:
                model = SavedModel(folder)
                read_network(model)
                read_warmup(model.warmup)
            except WideDeepError:
                refused += 1
        file.write_bytes(raw.tobytes())
    assert refused > 8
