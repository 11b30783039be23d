"""Warm-up requests of a SavedModel: rows, and what TensorFlow answered to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from widedeep.data.protobuf import (
    UNREADABLE,
    Message,
    map_entry,
    messages,
    numbers,
    read_example,
    read_message,
)
from widedeep.data.tfrecord_input import read_records
from widedeep.errors import CheckpointError
from widedeep.importing.saved_model import tensor_value

Row = dict[str, list[Any]]
_CLASSIFY, _REGRESS, _PREDICT = 2, 3, 6  # kinds of a PredictionLog


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupRequests:
    """What was asked, row by row, and the answers by name where they are recorded."""

    rows: Sequence[Row] = ()
    # By the name of an output: values of those rows that have them
    answers: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)


def read_warmup(path: Path) -> WarmupRequests:
    """Read ``tf_serving_warmup_requests``: records of serialized ``PredictionLog`` messages.

    Raises:
        CheckpointError: If the file is damaged.
    """
    rows: list[Row] = []
    answers: dict[str, dict[int, Any]] = {}
    try:
        for record in _records_of(path):
            log = read_message(record)
            for kind in (_CLASSIFY, _REGRESS, _PREDICT):
                for entry in messages(log, kind):
                    parts = read_message(entry)
                    asked = messages(parts, 1)
                    new = _request_rows(read_message(asked[-1]), kind) if asked else []
                    for name, values in _answers(parts, kind).items():
                        if len(values) == len(new):
                            column = answers.setdefault(name, {})
                            column.update(enumerate(values, len(rows)))
                    rows += new
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path}: {error}: the warm-up requests are damaged; write them again, or remove the "
            "file"
        ) from error
    return WarmupRequests(rows=rows, answers=answers)


def _records_of(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from read_records(file)


def _request_rows(request: Message, kind: int) -> list[Row]:
    if kind != _PREDICT:
        listed = messages(read_message(messages(request, 2)[-1]), 1)
        examples = messages(read_message(listed[-1]), 1) if listed else []
        return [_example(bytes(example)) for example in examples]
    tensors = dict(map_entry(entry) for entry in messages(request, 2))
    values = {name: tensor_value(read_message(raw)) for name, raw in tensors.items()}
    if len(values) == 1:
        (serialized,) = values.values()
        if serialized.dtype == object:
            return [_example(raw) for raw in serialized.reshape(-1).tolist()]
    sizes = {len(value) for value in values.values() if value.ndim}
    n_rows = sizes.pop() if len(sizes) == 1 else 0
    columns = {name: value.reshape(n_rows, -1) for name, value in values.items() if value.ndim}
    return [
        {name: [_plain(item) for item in value[i].tolist()] for name, value in columns.items()}
        for i in range(n_rows)
    ]


def _example(serialized: bytes) -> Row:
    """Read a ``tf.train.Example``."""
    example = read_example(serialized)
    return {name: [_plain(value) for value in values] for name, values in example.items()}


def _answers(parts: Message, kind: int) -> dict[str, NDArray[Any] | list[Any]]:
    responses = messages(parts, 2)
    if not responses:
        return {}
    response = read_message(responses[-1])
    if kind == _PREDICT:
        outputs = dict(map_entry(entry) for entry in messages(response, 1))
        return {name: tensor_value(read_message(raw)) for name, raw in outputs.items()}
    results = messages(response, 1)
    entries = messages(read_message(results[-1]), 1) if results else []
    if kind == _REGRESS:
        return {"predictions": [numbers(read_message(e), 1, "f")[-1] for e in entries]}
    scores = [
        [numbers(read_message(c), 2, "f")[-1] for c in messages(read_message(entry), 1)]
        for entry in entries
    ]
    return {"probabilities": scores}


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
