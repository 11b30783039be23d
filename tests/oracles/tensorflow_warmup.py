"""A SavedModel's warm-up requests: TFRecords of TensorFlow Serving's PredictionLog.

TensorFlow Serving's messages are not in TensorFlow's package, so the few fields in use are written
by number, as `prediction_log.proto`, `predict.proto`, `classification.proto` and
`regression.proto` of TensorFlow Serving give them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["serialize_examples", "write_warmup_requests"]

tf: Any = import_module("tensorflow")

Features = dict[str, dict[str, Any]]


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _entry(number: int, key: str, tensor: Any) -> bytes:
    """One pair of a `map<string, TensorProto>`."""
    proto = tf.make_tensor_proto(tensor).SerializeToString(deterministic=True)
    return _field(number, _field(1, key.encode()) + _field(2, proto))


def serialize_examples(features: Features) -> list[bytes]:
    """Stored rows as tf.Example messages; an empty row has no feature of that name."""
    count = len(next(iter(features.values()))["rows"])
    return [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    name: _example_feature(feature["dtype"], feature["rows"][i])
                    for name, feature in sorted(features.items())
                    if feature["rows"][i]
                }
            )
        ).SerializeToString(deterministic=True)
        for i in range(count)
    ]


def _example_feature(dtype: str, row: list[Any]) -> Any:
    if dtype == "string":
        values = tf.train.BytesList(value=[word.encode() for word in row])
        return tf.train.Feature(bytes_list=values)
    if dtype == "int64":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=row))
    return tf.train.Feature(float_list=tf.train.FloatList(value=row))


def _model_spec(signature: str) -> bytes:
    return _field(1, b"model") + _field(3, signature.encode())


def _predict_log(examples: list[bytes], outputs: dict[str, Any]) -> bytes:
    request = _field(1, _model_spec("predict")) + _entry(2, "examples", examples)
    response = b"".join(_entry(1, key, value) for key, value in sorted(outputs.items()))
    return _field(6, _field(1, request) + _field(2, response))


def _request_of_examples(signature: str, examples: list[bytes]) -> bytes:
    listed = b"".join(_field(1, example) for example in examples)
    return _field(1, _model_spec(signature)) + _field(2, _field(1, listed))


def write_warmup_requests(path: Path, examples: list[bytes], outputs: dict[str, Any]) -> None:
    """One request to `predict` with its response, and one of tf.Examples without.

    Args:
        path: File to write.
        examples: Serialized tf.Example messages.
        outputs: Answers of the signature `predict` to these examples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(_predict_log(examples, outputs))
        if "classes" in outputs:
            request = _request_of_examples("classification", examples[:2])
            writer.write(_field(2, _field(1, request)))
        elif "predictions" in outputs:
            request = _request_of_examples("regression", examples[:2])
            writer.write(_field(3, _field(1, request)))
