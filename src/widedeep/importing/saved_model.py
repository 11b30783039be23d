"""A TensorFlow SavedModel's graph: operations, constants, signatures, and the variables' names."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from widedeep.data.protobuf import (
    UNREADABLE,
    Message,
    WireError,
    messages,
    number,
    numbers,
    read_message,
    signed,
    text,
)
from widedeep.errors import CheckpointError
from widedeep.importing.tensor_bundle import TensorBundle

SERVE = "serve"  # the tag of the graph that a server loads
_PASS = ("Identity", "ReadVariableOp", "IdentityN", "StopGradient", "Snapshot")
# TensorProto: field of the values, code of the wire, NumPy's type, by DataType.
_VALUES: Mapping[int, tuple[int, str, type[np.generic]]] = {
    1: (5, "f", np.float32),
    2: (6, "d", np.float64),
    3: (7, "varint", np.int32),
    9: (10, "varint", np.int64),
    10: (11, "varint", np.bool_),
}
_STRING = 7
_LARGEST = 1 << 31  # values of a constant: no message holds more bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """A node of the graph."""

    name: str
    kind: str  # What TensorFlow calls its op: "MatMul"
    inputs: tuple[str, ...]  # Names of tensors: "node:output"; control inputs are left out
    attributes: Mapping[str, Message] = field(repr=False)

    def integer(self, name: str, default: int = 0) -> int:
        """Return an attribute that is a number."""
        return signed(self.attributes[name], 3) if name in self.attributes else default

    def flag(self, name: str) -> bool:
        """Return an attribute that is true or false."""
        return bool(number(self.attributes[name], 5)) if name in self.attributes else False

    def real(self, name: str, default: float = 0.0) -> float:
        """Return an attribute that is a float32."""
        values = numbers(self.attributes.get(name, {}), 4, "f")
        return float(values[-1]) if values else default

    def type_number(self, name: str) -> int:
        """Return an attribute that is a type, as its number in types.proto."""
        return number(self.attributes[name], 6) if name in self.attributes else 0

    def word(self, name: str) -> str:
        """Return an attribute that is text."""
        return text(self.attributes[name], 2) if name in self.attributes else ""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an attribute that is a shape; -1 stands for any size."""
        shapes = messages(self.attributes.get(name, {}), 7)
        return _shape(shapes[-1]) if shapes else ()

    def reals(self, name: str) -> list[float]:
        """Return an attribute that is a list of float32."""
        lists = messages(self.attributes.get(name, {}), 1)
        return [float(n) for n in numbers(read_message(lists[-1]), 4, "f")] if lists else []

    def types(self, name: str) -> list[int]:
        """Return an attribute that is a list of types."""
        lists = messages(self.attributes.get(name, {}), 1)
        return [int(n) for n in numbers(read_message(lists[-1]), 6)] if lists else []

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Return an attribute that is a list of shapes."""
        lists = messages(self.attributes.get(name, {}), 1)
        return [_shape(shape) for shape in messages(read_message(lists[-1]), 7)] if lists else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a server is asked and answers under one name."""

    method: str
    inputs: Mapping[str, str]  # Key to tensor
    outputs: Mapping[str, str]


class Graph:
    """The operations of a graph by name."""

    def __init__(self, graph: memoryview, where: str) -> None:
        self.where = where
        self.ops: dict[str, Op] = {}
        for node in messages(read_message(graph), 1):
            op = _op(read_message(node))
            self.ops[op.name] = op

    def op(self, tensor: str) -> Op:
        """Return the operation that gives a tensor."""
        name = tensor.partition(":")[0]
        if name not in self.ops:
            raise CheckpointError(f"{self.where}: its graph names {name!r}, which is not in it")
        return self.ops[name]

    def source(self, tensor: str) -> tuple[Op, int]:
        """Return the operation and the number of its output, past those that change nothing."""
        for _ in range(len(self.ops) + 1):
            op, output = self.op(tensor), int(tensor.partition(":")[2] or 0)
            if op.kind not in _PASS:
                return op, output
            tensor = op.inputs[output if op.kind == "IdentityN" else 0]
        raise WireError(f"holds a circle of operations, {tensor!r} among them")

    def uncast(self, tensor: str) -> Op:
        """Return the operation that gives a tensor's values, past changes of their type."""
        for _ in range(len(self.ops) + 1):
            op, _ = self.source(tensor)
            if op.kind != "Cast":
                return op
            tensor = op.inputs[0]
        raise WireError(f"holds a circle of operations, {tensor!r} among them")

    def inputs(self, op: Op) -> list[Op]:
        """Return the operations that give an operation's inputs, past those that change nothing."""
        return [self.source(tensor)[0] for tensor in op.inputs]

    @cached_property
    def consumers(self) -> Mapping[str, list[Op]]:
        """The operations that read a tensor of each operation."""
        consumers: dict[str, list[Op]] = {}
        for op in self.ops.values():
            for tensor in op.inputs:
                consumers.setdefault(tensor.partition(":")[0], []).append(op)
        return consumers

    def check_no_circle(self, tensor: str) -> None:
        """Raise unless the operations that a tensor is computed from follow each other."""
        done, open_ = set[str](), dict[str, Iterator[str]]()
        name = tensor.partition(":")[0]
        open_[name] = iter(self.op(name).inputs)
        while open_:
            name, inputs = next(reversed(open_.items()))
            following = next((i.partition(":")[0] for i in inputs), None)
            if following is None:
                done.add(name)
                del open_[name]
            elif following in open_:
                raise WireError(f"holds a circle of operations, {following!r} among them")
            elif following not in done:
                open_[following] = iter(self.op(following).inputs)

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Return the value of a constant tensor; None where it is none."""
        op, _ = self.source(tensor)
        return constant(op) if op.kind == "Const" else None

    def above(self, tensor: str) -> Iterator[Op]:
        """Yield the operations that a tensor is computed from, each once, nearest first."""
        pending, seen = [tensor], set[str]()
        while pending:
            name = pending.pop(0).partition(":")[0]
            if name not in seen:
                seen.add(name)
                op = self.op(name)
                yield op
                pending += op.inputs


class SavedModel:
    """A folder that ``export_saved_model`` wrote.

    Args:
        path: The folder, or one of versions in folders whose names are numbers: the newest.

    Raises:
        CheckpointError: If there is no SavedModel, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = saved_model_folder(path)
        file = self.path / "saved_model.pb"
        try:
            graphs = [read_message(meta) for meta in messages(_read(file), 2)]
            serving = [meta for meta in graphs if SERVE in _tags(meta)]
            if not serving:
                raise WireError("holds no graph with the tag 'serve'")
            meta = serving[0]
            self.graph = Graph(messages(meta, 2)[-1], str(file))
            self.signatures = dict(_signature(entry) for entry in messages(meta, 5))
            self.assets = dict(_asset(entry) for entry in _asset_files(meta))
            self.trainable = set(_variables(meta, "trainable_variables"))
        except UNREADABLE as error:
            raise CheckpointError(
                f"{file}: {error}: the file is damaged, or no SavedModel of an estimator; export "
                "it again with estimator.export_saved_model"
            ) from error
        self.variables = TensorBundle(self.path / "variables" / "variables")

    @cached_property
    def names(self) -> Mapping[str, tuple[str, str]]:
        """By variable's operation: the tensor that it is restored from, and its slice or ``""``."""
        return restored_names(self.graph)

    @property
    def warmup(self) -> Path:
        """The requests that a server replays when it loads the model; perhaps not there."""
        return self.path / "assets.extra" / "tf_serving_warmup_requests"

    def asset(self, tensor: str) -> Path | None:
        """Return the file whose path a tensor holds; None where it is none of the model's."""
        op, output = self.graph.source(tensor)
        name = self.assets.get(f"{op.name}:{output}")
        return None if name is None else self.path / "assets" / name


class GraphReader:
    """Follows a model's graph; operations that it does not expect are refused."""

    def __init__(self, model: SavedModel) -> None:
        self.model, self.graph = model, model.graph

    def _op(self, tensor: str, *kinds: str) -> Op:
        """Return the operation that gives a tensor; refuse one of other kinds."""
        op = self.graph.source(tensor)[0]
        self._expect(op, *kinds)
        return op

    def _expect(self, op: Op, *kinds: str) -> None:
        if op.kind not in kinds:
            self._refuse(op)

    def _refuse(self, op: Op) -> NoReturn:
        raise NotImplementedError


def restored_names(graph: Graph) -> dict[str, tuple[str, str]]:
    """Return what each variable is restored from, by its operation: a tensor, its slice or ""."""
    names = {}
    for op in graph.ops.values():
        if op.kind not in ("AssignVariableOp", "Assign"):
            continue
        restored, output = graph.source(op.inputs[1])
        if restored.kind == "RestoreV2":
            keys = graph.constant(restored.inputs[1])
            slices = graph.constant(restored.inputs[2])
            if keys is not None and slices is not None:
                variable = graph.source(op.inputs[0])[0].name
                names[variable] = (keys[output].decode(), slices[output].decode())
    return names


def training_graph(prefix: Path) -> Graph | None:
    """Return the graph that a checkpoint was trained by: ``PREFIX.meta``; None without one.

    Raises:
        CheckpointError: If it is damaged.
    """
    file = prefix.with_name(f"{prefix.name}.meta")
    if not file.is_file():
        return None
    try:
        return Graph(messages(_read(file), 2)[-1], str(file))
    except UNREADABLE as error:
        raise CheckpointError(
            f"{file}: {error}: the file is damaged; copy it again, or remove it: the optimizers' "
            "options are then TensorFlow's defaults"
        ) from error


def saved_model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a SavedModel: this one, or the newest of its numbered folders.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return path
    versions = [folder for folder in path.glob("*/") if (folder / "saved_model.pb").is_file()]
    numbered = sorted((f for f in versions if f.name.isdigit()), key=lambda f: int(f.name))
    if not numbered:
        raise CheckpointError(
            f"{path}: got no SavedModel (saved_model.pb is not there); name the folder that "
            "estimator.export_saved_model returned"
        )
    return numbered[-1]


def is_saved_model(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder is a SavedModel, or one of versions of it."""
    try:
        saved_model_folder(path)
    except CheckpointError:
        return False
    return True


def constant(op: Op) -> NDArray[Any]:
    """Return the value of a ``Const``: numbers, or an object array of bytes."""
    return tensor_value(read_message(messages(op.attributes["value"], 8)[-1]))


def tensor_value(tensor: Message) -> NDArray[Any]:
    """Return the value of a ``TensorProto``: numbers, or an object array of bytes."""
    dtype, shape = number(tensor, 1), _shape(messages(tensor, 2)[-1]) if 2 in tensor else ()
    size = math.prod(shape)
    if not 0 <= size < _LARGEST:
        raise WireError(f"holds a constant of shape {shape}")
    content = messages(tensor, 4)
    if dtype == _STRING:
        raw: list[Any] = [bytes(value) for value in messages(tensor, 8)]
        values = np.empty(size, object)
        values[:] = raw if len(raw) == size else [*raw, *raw[-1:] * (size - len(raw))]
        return values.reshape(shape)
    if dtype not in _VALUES:
        raise WireError(f"holds a constant of type {dtype}, which is not known")
    field_number, form, kind = _VALUES[dtype]
    if content:
        return np.frombuffer(bytes(content[-1]), np.dtype(kind).newbyteorder("<")).reshape(shape)
    listed = np.array(numbers(tensor, field_number, form), kind)
    if len(listed) < size:  # the last one stands for those that follow
        last = listed[-1] if len(listed) else 0
        listed = np.concatenate([listed, np.full(size - len(listed), last, kind)])
    return listed.reshape(shape)


def _read(file: Path) -> Message:
    return read_message(file.read_bytes())


def _tags(meta: Message) -> list[str]:
    info = messages(meta, 1)
    return [bytes(tag).decode() for tag in messages(read_message(info[-1]), 4)] if info else []


def _op(node: Message) -> Op:
    entries = [read_message(entry) for entry in messages(node, 5)]
    inputs = [bytes(name).decode() for name in messages(node, 3)]
    return Op(
        name=text(node, 1),
        kind=text(node, 2),
        inputs=tuple(name for name in inputs if not name.startswith("^")),
        attributes={text(e, 1): read_message(messages(e, 2)[-1]) for e in entries},
    )


def _signature(entry: memoryview) -> tuple[str, Signature]:
    pair = read_message(entry)
    definition = read_message(messages(pair, 2)[-1])
    return text(pair, 1), Signature(
        method=text(definition, 3),
        inputs=dict(_tensor_info(one) for one in messages(definition, 1)),
        outputs=dict(_tensor_info(one) for one in messages(definition, 2)),
    )


def _tensor_info(entry: memoryview) -> tuple[str, str]:
    pair = read_message(entry)
    return text(pair, 1), text(read_message(messages(pair, 2)[-1]), 1)


def _variables(meta: Message, collection: str) -> Iterator[str]:
    """Yield the operations that hold the variables of a collection."""
    for entry in map(read_message, messages(meta, 4)):
        if text(entry, 1) == collection:
            for listed in map(read_message, messages(read_message(messages(entry, 2)[-1]), 2)):
                for definition in messages(listed, 1):
                    yield text(read_message(definition), 1).partition(":")[0]


def _asset_files(meta: Message) -> Iterator[memoryview]:
    """Yield the definitions of assets: a field, and in older exports a collection."""
    yield from messages(meta, 6)
    for entry in map(read_message, messages(meta, 4)):
        if text(entry, 1) == "saved_model_assets":
            collection = read_message(messages(entry, 2)[-1])
            for any_list in map(read_message, messages(collection, 5)):
                yield from (messages(read_message(one), 2)[-1] for one in messages(any_list, 1))


def _asset(entry: memoryview) -> tuple[str, str]:
    definition = read_message(entry)
    info = read_message(messages(definition, 1)[-1])
    return text(info, 1), text(definition, 2)


def _shape(shape: memoryview) -> tuple[int, ...]:
    return tuple(signed(read_message(dim), 1) for dim in messages(read_message(shape), 2))
