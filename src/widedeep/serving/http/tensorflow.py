"""TensorFlow Serving's REST API: predict, classify, regress, status, metadata."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.bundle.predictions import class_names, head_predictions, named_predictions
from widedeep.data.protobuf import WireError, read_example
from widedeep.errors import nearest
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.open_inference import (
    Row,
    Scored,
    check_columns,
    check_row_count,
    describe_model,
    output_name,
    rows_of_columns,
    score_call,
)
from widedeep.serving.http.service import Call, Reply, Service, json_reply

_DEFAULT = "serving_default"
_STATES = {"ready": "AVAILABLE", "loading": "LOADING", "unloading": "UNLOADING", "failed": "END"}


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``:predict``."""

    instances: list[Any] | None = None
    inputs: dict[str, list[Any]] | list[Any] | None = None
    signature_name: str = _DEFAULT


class ExamplesRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``:classify`` and ``:regress``."""

    examples: list[dict[str, Any]]
    context: dict[str, Any] = {}
    signature_name: str = _DEFAULT


_predict = msgspec.json.Decoder(PredictRequest)
_examples = msgspec.json.Decoder(ExamplesRequest)


# ---- predict ------------------------------------------------------------------------------------


async def predict(service: Service, call: Call) -> Reply:
    """Score rows or columns."""
    request = await call.json(_predict)
    if (request.instances is None) == (request.inputs is None):
        raise HttpError(400, "expected either instances (rows) or inputs (columns)", pointer="")
    values = request.instances if request.instances is not None else request.inputs
    if isinstance(values, dict):
        n_rows = max(map(len, values.values()), default=0)
    else:
        n_rows = len(values or [])
    check_row_count(service, n_rows)
    by_row = request.instances is not None

    def rows(bundle: Bundle) -> list[Row]:
        _check_signature(bundle, request.signature_name, signatures(bundle))
        bundle.encoder.check_values(n_rows * _outputs_width(bundle, request.signature_name))
        if request.instances is not None:
            return _instances(bundle, request.instances)
        return _inputs(bundle, request.inputs or {})

    def pointer_of(column: str, row: int) -> str:
        return f"/instances/{row}/{column}" if by_row else f"/inputs/{column}/{row}"

    scored = await score_call(service, call, n_rows, rows, pointer_of)
    outputs = _outputs(scored.bundle, request.signature_name, scored.logits_BC)
    columns = {name: values.tolist() for name, values in outputs.items()}
    if len(columns) == 1:
        (values,) = columns.values()
        return json_reply({"predictions" if by_row else "outputs": values})
    if not by_row:
        return json_reply({"outputs": columns})
    by_name = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json_reply({"predictions": by_name})


# ---- signatures ---------------------------------------------------------------------------------

_METHODS = {"classes": "classify", "values": "regress"}
_TYPES = {"f4": "DT_FLOAT", "f8": "DT_DOUBLE", "i8": "DT_INT64", "O": "DT_STRING"}


def signatures(bundle: Bundle) -> dict[str, str]:
    """Return what each signature of a model answers with, by name.

    ``"scores"``, ``"predictions"``, ``"classes"`` or ``"values"``. The default signature of a model
    with ``compat="tensorflow"`` is the one that ``tf.estimator`` exports as such; of several heads
    it gives all predictions.
    """
    (head, *others) = bundle.model.heads
    names = {_DEFAULT: "scores", "predict": "predictions"}
    if not others and (head.by_class or head.kind == "binary"):
        names["classification"] = "classes"
    if not others and not head.by_class:
        names["regression"] = "values"
    if bundle.compat == "tensorflow":
        own = [names[each] for each in ("classification", "regression") if each in names]
        names[_DEFAULT] = (own or ["predictions"])[0]
    return names


def _check_signature(bundle: Bundle, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise HttpError(
            400, f"got the signature {name!r}; {nearest(name, names)}", pointer="/signature_name"
        )


def _outputs(
    bundle: Bundle, signature: str, logits_BC: NDArray[np.float32]
) -> Mapping[str, NDArray[Any]]:
    """Return the outputs of a signature by name, one entry per row."""
    heads, kind = bundle.model.heads, signatures(bundle)[signature]
    scores = bundle.scores_by_head(logits_BC)
    if kind == "scores":
        return {output_name(head): values for head, values in scores.items()}
    predictions = named_predictions(heads, logits_BC, scores)
    if kind == "classes":
        probabilities = predictions["probabilities"]
        classes = np.array(class_names(heads[0]), dtype=object)
        return {
            "classes": np.broadcast_to(classes, probabilities.shape),
            "scores": probabilities,
        }
    if kind == "values":
        return {"outputs": predictions["logistic" if heads[0].kind == "binary" else "predictions"]}
    return predictions


def _outputs_width(bundle: Bundle, signature: str) -> int:
    """Return the number of values that a signature answers with for each row."""
    no_rows_BC = np.zeros((0, bundle.model.n_logits), np.float32)
    outputs = _outputs(bundle, signature, no_rows_BC).values()
    return sum(math.prod(values.shape[1:]) for values in outputs)


def _instances(bundle: Bundle, instances: list[Any]) -> list[Row]:
    rows = []
    for index, instance in enumerate(instances):
        serialized = _serialized(bundle, instance)
        if serialized is not None:
            rows.append(_example(bundle, serialized, f"/instances/{index}"))
            continue
        row = instance if isinstance(instance, dict) else {_only(bundle, index): instance}
        check_columns(bundle, list(row), partial(_at, f"/instances/{index}"))
        rows.append(_plain_row(bundle, row, f"/instances/{index}"))
    return rows


def _serialized(bundle: Bundle, value: Any) -> Any:
    """Return the ``{"b64": ...}`` of a serialized ``tf.Example``, or None.

    It stands alone, or under the one name that an estimator's serving input gave it.
    """
    if isinstance(value, dict) and len(value) == 1:
        ((name, inner),) = value.items()
        if name == "b64":
            return value
        if isinstance(inner, dict) and inner.keys() == {"b64"} and name not in bundle.input_columns:
            return inner
    return None


def _serialized_inputs(bundle: Bundle, inputs: dict[str, list[Any]] | list[Any]) -> list[Any]:
    """Return every row's ``{"b64": ...}``, or none where the inputs are the model's columns."""
    values: Any = inputs
    if isinstance(inputs, dict) and len(inputs) == 1:
        ((name, column),) = inputs.items()
        values = None if name in bundle.input_columns else column
    is_serialized = isinstance(values, list) and all(
        isinstance(value, dict) and value.keys() == {"b64"} for value in values
    )
    return values if is_serialized else []


def _example(bundle: Bundle, serialized: Any, pointer: str) -> Row:
    """Read a serialized ``tf.Example``; like TensorFlow's parser, only what the model reads."""
    try:
        example = read_example(_plain(serialized, pointer))
    except WireError as error:
        raise HttpError(400, f"got b64 that {error}", pointer=pointer) from error
    columns = bundle.input_columns
    row = {
        name: values
        for name, values in example.items()
        if name in columns and (values or columns[name].nested)
    }
    return _plain_row(bundle, row, pointer)


def _at(row: str, name: str) -> str:
    return f"{row}/{name}"


def _only(bundle: Bundle, index: int) -> str:
    names = list(bundle.input_columns)
    if len(names) != 1:
        raise HttpError(
            400,
            f"got a value, expected an object: the model has {len(names)} columns",
            pointer=f"/instances/{index}",
        )
    return names[0]


def _inputs(bundle: Bundle, inputs: dict[str, list[Any]] | list[Any]) -> list[Row]:
    serialized = _serialized_inputs(bundle, inputs)
    if serialized:
        return [_example(bundle, each, f"/inputs/{i}") for i, each in enumerate(serialized)]
    columns = inputs if isinstance(inputs, dict) else {_only(bundle, 0): inputs}
    check_columns(bundle, list(columns), lambda name: f"/inputs/{name}")
    n_rows = len(next(iter(columns.values()), []))
    for name, values in columns.items():
        if len(values) != n_rows:
            raise HttpError(
                400,
                f"column {name!r}: got {len(values)} values, but {n_rows} in "
                f"{next(iter(columns))!r}; give as many in every column",
                pointer=f"/inputs/{name}",
            )
    return [_plain_row(bundle, row, "/inputs") for row in rows_of_columns(columns)]


def _plain_row(bundle: Bundle, row: Mapping[str, Any], pointer: str) -> Row:
    """Return a row with TensorFlow's notation of values resolved: [39] and {"b64": ...}."""
    kinds = bundle.schema.columns
    plain = {}
    for name, value in row.items():
        if isinstance(value, list):
            kind = kinds.get(name)
            nested = kind is not None and kind.nested
            if len(value) == 1 and not nested:
                value = value[0]
            if isinstance(value, list):
                value = [_plain(each, pointer) for each in value]
        plain[name] = _plain(value, pointer)
    return plain


def _plain(value: Any, pointer: str) -> Any:
    if not (isinstance(value, dict) and value.keys() == {"b64"}):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise HttpError(400, f"got b64 that is not base64 ({error})", pointer=pointer) from error


# ---- classify and regress -----------------------------------------------------------------------


async def classify(service: Service, call: Call) -> Reply:
    """Return the probabilities of the classes for each example."""
    scored = await _score_examples(service, call, "classification")
    head = _head(scored, ("binary", "multiclass", "multilabel"), call)
    predictions = head_predictions(head, scored.logits_BC, scored.scores[head.name])
    names, rows = class_names(head), predictions["probabilities"].tolist()
    pairs = [[list(pair) for pair in zip(names, row, strict=True)] for row in rows]
    return json_reply({"results": pairs})


async def regress(service: Service, call: Call) -> Reply:
    """Return one number per example: a probability, or a regression's value."""
    scored = await _score_examples(service, call, "regression")
    head = _head(scored, ("regression", "binary", "ranking"), call)
    return json_reply({"results": scored.scores[head.name].tolist()})


async def _score_examples(service: Service, call: Call, signature: str) -> Scored:
    request = await call.json(_examples)

    def rows(bundle: Bundle) -> list[Row]:
        _check_signature(bundle, request.signature_name, (_DEFAULT, signature))
        check_columns(bundle, list(request.context), lambda name: f"/context/{name}")
        shared = _plain_row(bundle, request.context, "/context")
        bundle.encoder.check_values(2 * len(request.examples) * bundle.model.n_logits)  # and names
        example_rows = []
        for index, example in enumerate(request.examples):
            check_columns(bundle, list(example), partial(_at, f"/examples/{index}"))
            example_rows.append({**shared, **_plain_row(bundle, example, f"/examples/{index}")})
        return example_rows

    def pointer_of(column: str, row: int) -> str:
        if row < len(request.examples) and column in request.examples[row]:
            return f"/examples/{row}/{column}"
        return f"/context/{column}"

    check_row_count(service, len(request.examples))
    return await score_call(service, call, len(request.examples), rows, pointer_of)


def _head(scored: Scored, kinds: tuple[str, ...], call: Call) -> BundleHead:
    for kind in kinds:
        for head in scored.bundle.model.heads:
            if head.kind == kind:
                return head
    have = ", ".join(head.kind for head in scored.bundle.model.heads)
    raise HttpError(
        400, f"{call.path}: got a model with a {have} head, expected {' or '.join(kinds)}"
    )


# ---- models and versions ------------------------------------------------------------------------


async def status(service: Service, call: Call) -> Reply:
    """Return the state of each version of a model."""
    versions = service.models.registry(call.params["model"]).status()
    for param, name in call.params.items():
        if param == "version":
            versions = [each for each in versions if each.version == name]
        if param == "label":
            versions = [each for each in versions if name in each.labels]
    if not versions and len(call.params) > 1:
        names = (each.version for each in service.models.registry(call.params["model"]).status())
        name = call.params.get("version") or call.params["label"]
        raise HttpError(404, f"got {name!r}; {nearest(name, names)}")
    return json_reply(
        {
            "model_version_status": [
                {
                    "version": each.version,
                    "state": _STATES.get(each.state, "START"),
                    "status": {
                        "error_code": "UNKNOWN" if each.state == "failed" else "OK",
                        "error_message": each.error or "",
                    },
                }
                for each in versions
            ]
        }
    )


async def metadata(service: Service, call: Call) -> Reply:
    """Return the signatures of a model: its columns and outputs."""
    model, version, label = (call.params.get(each) for each in ("model", "version", "label"))
    with service.models.lease(model, call.request_id, version, label) as served:
        version, bundle = served.version, served.ranker.bundle
    about = describe_model(service, call.params["model"], bundle)
    inputs = {each["name"]: _input_info(each) for each in about["inputs"]}
    logits_BC = np.zeros((0, bundle.model.n_logits), np.float32)
    by_name = {
        name: {
            "inputs": inputs,
            "outputs": {
                output: _output_info(output, values)
                for output, values in _outputs(bundle, name, logits_BC).items()
            },
            "method_name": f"tensorflow/serving/{_METHODS.get(kind, 'predict')}",
        }
        for name, kind in signatures(bundle).items()
    }
    return json_reply(
        {
            "model_spec": {"name": model, "signature_name": "", "version": version},
            "metadata": {"signature_def": {"signature_def": by_name}},
        }
    )


def _input_info(tensor: Mapping[str, Any]) -> dict[str, Any]:
    types = {
        "BYTES": "DT_STRING",
        "INT64": "DT_INT64",
        "FP16": "DT_HALF",
        "FP32": "DT_FLOAT",
        "FP64": "DT_DOUBLE",
        "BOOL": "DT_BOOL",
    }
    return _tensor_info(tensor["name"], types[tensor["datatype"]], tensor["shape"])


def _output_info(name: str, values: NDArray[Any]) -> dict[str, Any]:
    return _tensor_info(name, _TYPES[values.dtype.str[1:]], [-1, *values.shape[1:]])


def _tensor_info(name: str, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in shape]
    tensor_shape = {"dim": sizes, "unknown_rank": False}
    return {"dtype": dtype, "tensor_shape": tensor_shape, "name": name}
