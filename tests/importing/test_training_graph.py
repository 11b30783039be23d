"""Options of optimizers that a checkpoint holds in its training graph alone."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.importing.write_bundle import field, write_bundle
from widedeep.data.protobuf import WireError
from widedeep.errors import CheckpointError
from widedeep.importing.optimizers import Slot, read_optimizers
from widedeep.importing.saved_model import Graph
from widedeep.importing.tensor_bundle import TensorBundle

W, V = "dnn/logits/kernel", "linear/linear_model/job/weights"


def node(name: str, kind: str, *inputs: str, attributes: dict[str, bytes] | None = None) -> bytes:
    """A node of a graph."""
    body = field(1, name.encode()) + field(2, kind.encode())
    body += b"".join(field(3, tensor.encode()) for tensor in inputs)
    for key, value in (attributes or {}).items():
        body += field(5, field(1, key.encode()) + field(2, value))
    return field(1, body)


def number(name: str, value: float) -> bytes:
    """A constant."""
    tensor = field(1, 1) + field(2, b"") + field(5, struct.pack("<f", value))
    return node(name, "Const", attributes={"value": field(8, tensor)})


def texts(name: str, *values: str) -> bytes:
    """A constant of texts."""
    tensor = field(1, 7) + field(2, field(2, field(1, len(values))))
    tensor += b"".join(field(8, value.encode()) for value in values)
    return node(name, "Const", attributes={"value": field(8, tensor)})


def training_graph() -> bytes:
    """What TensorFlow 1 writes beside a checkpoint, as far as it matters."""
    return field(
        2,
        b"".join(
            [
                node("w", "VarHandleOp"),
                node("v/part_0", "VarHandleOp"),
                texts("save/names", W, V),
                texts("save/slices", "", "3 1 0,3:0,1"),
                node("save/restore", "RestoreV2", "file", "save/names", "save/slices"),
                node("save/w", "Identity", "save/restore:0"),
                node("save/v", "Identity", "save/restore:1"),
                node("save/assign", "AssignVariableOp", "w", "save/w"),
                node("save/assign_1", "AssignVariableOp", "v/part_0", "save/v"),
                number("rate", 0.03),
                number("share", 0.8),
                number("wide/rate", 0.2),
                number("l1", 0.5),
                number("l2", 0.0),
                number("power", -0.5),
                node(
                    *("train/w", "ResourceApplyMomentum", "w", "m", "rate", "g", "share"),
                    attributes={"use_nesterov": field(5, 1)},
                ),
                node(
                    *("train/v", "ResourceSparseApplyFtrl", "v/part_0", "n", "z", "g", "ids"),
                    *("wide/rate", "l1", "l2", "power"),
                ),
            ]
        ),
    )


def test_the_rates_are_those_of_the_training_graph(tmp_path: Path) -> None:
    one = np.ones((3, 1), np.float32)
    tensors = {W: one, f"{W}/Momentum": one, V: one, f"{V}/Ftrl": one, f"{V}/Ftrl_1": one}
    prefix = write_bundle(tmp_path / "model.ckpt-7", tensors)
    parts = {"wide": {V}, "dense": {W}}
    plain = read_optimizers(TensorBundle(prefix), parts)
    assert len(plain.notes) == 3
    (tmp_path / "model.ckpt-7.meta").write_bytes(training_graph())
    state = read_optimizers(TensorBundle(prefix), parts)
    momentum = {"optimizer": "sgd", "lr": 0.03, "momentum": 0.8, "nesterov": True}
    assert state.tables["dense"] == momentum
    ftrl = state.tables["wide"]
    assert (ftrl["lr"], ftrl["l1"], ftrl["l2"], ftrl["lr_power"]) == (0.2, 0.5, 0.0, -0.5)
    assert state.slots[V] == {"n": Slot(tensor=f"{V}/Ftrl"), "z": Slot(tensor=f"{V}/Ftrl_1")}
    assert not state.notes
    (tmp_path / "model.ckpt-7.meta").write_bytes(training_graph()[:100])
    with pytest.raises(CheckpointError, match=r"model\.ckpt-7\.meta: .*damaged"):
        read_optimizers(TensorBundle(prefix), parts)


def test_gradient_descent_without_momentum_has_a_rate_and_no_state(tmp_path: Path) -> None:
    one = np.ones((3, 1), np.float32)
    tensors = {W: one, "table": one, V: one, f"{V}/Ftrl": one, f"{V}/Ftrl_1": one}
    parts = {"wide": {V}, "deep": {"table"}, "dense": {W}}
    graph = field(
        2,
        b"".join(
            [
                node("w", "VarHandleOp"),
                texts("save/names", W),
                texts("save/slices", ""),
                node("save/restore", "RestoreV2", "file", "save/names", "save/slices"),
                node("save/w", "Identity", "save/restore:0"),
                node("save/assign", "AssignVariableOp", "w", "save/w"),
                number("rate", 0.03),
                node("train/w", "ResourceApplyGradientDescent", "w", "rate", "g"),
            ]
        ),
    )
    older = write_bundle(tmp_path / "older.ckpt-7", tensors)
    (tmp_path / "older.ckpt-7.meta").write_bytes(graph)
    keras = write_bundle(
        tmp_path / "keras.ckpt-7",
        {
            **{name: one for name in (W, "table", V)},
            **{f"training/Ftrl/{V}/{slot}": one for slot in ("accumulator", "linear")},
            "training/Ftrl/learning_rate": np.float32(0.2),
            "training_2/SGD/learning_rate": np.float32(0.03),
            "training_2/SGD/momentum": np.float32(0.0),
        },
    )
    for prefix in (older, keras):
        state = read_optimizers(TensorBundle(prefix), parts)
        assert state.tables["wide"]["optimizer"] == "ftrl"
        assert state.tables["deep"] == state.tables["dense"] == {"optimizer": "sgd", "lr": 0.03}
        assert not [note for note in state.notes if "deep" in note or "dense" in note]


@pytest.mark.parametrize("kind", ["Cast", "Identity"])
def test_a_circle_in_a_graph_is_an_error(kind: str) -> None:
    graph = Graph(memoryview(node("a", kind, "b") + node("b", "Cast", "a")), "graph")
    with pytest.raises(WireError, match="holds a circle of operations"):
        graph.uncast("a")
