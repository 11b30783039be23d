"""TensorFlow Serving's REST API: predict, classify, regress, status, metadata."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from widedeep.bundle import Bundle, BundleHead
from widedeep.errors import nearest
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.open_inference import (
    Row,
    Scored,
    check_columns,
    check_row_count,
    model_metadata,
    output_name,
    rows_of_columns,
    score_call,
)
from widedeep.serving.http.service import Call, Reply, Service, json_reply

_STATES = {"ready": "AVAILABLE", "loading": "LOADING", "unloading": "UNLOADING", "failed": "END"}


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``:predict``."""

    instances: list[Any] | None = None
    inputs: dict[str, list[Any]] | list[Any] | None = None
    signature_name: str = "serving_default"


class ExamplesRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of ``:classify`` and ``:regress``."""

    examples: list[dict[str, Any]]
    context: dict[str, Any] = {}
    signature_name: str = "serving_default"


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
    if request.instances is not None:
        instances = request.instances
        scored = await score_call(
            service,
            call,
            n_rows,
            lambda bundle: _instances(bundle, instances),
            lambda column, row: f"/instances/{row}/{column}",
        )
        return json_reply({"predictions": _by_row(scored)})
    scored = await score_call(
        service,
        call,
        n_rows,
        lambda bundle: _inputs(bundle, request.inputs or {}),
        lambda column, row: f"/inputs/{column}/{row}",
    )
    scores = {output_name(head): each.tolist() for head, each in scored.scores.items()}
    outputs = next(iter(scores.values())) if len(scores) == 1 else scores
    return json_reply({"outputs": outputs})


def _instances(bundle: Bundle, instances: list[Any]) -> list[Row]:
    rows = []
    for index, instance in enumerate(instances):
        row = instance if isinstance(instance, dict) else {_only(bundle, index): instance}
        check_columns(bundle, list(row), partial(_at, f"/instances/{index}"))
        rows.append(_plain_row(bundle, row, f"/instances/{index}"))
    return rows


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


def _by_row(scored: Scored) -> list[Any]:
    scores = {output_name(head): each.tolist() for head, each in scored.scores.items()}
    if len(scores) == 1:
        return next(iter(scores.values()))
    return [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]


# ---- classify and regress -----------------------------------------------------------------------


async def classify(service: Service, call: Call) -> Reply:
    """Return the probabilities of the classes for each example."""
    scored = await _score_examples(service, call)
    head = _head(scored, ("binary", "multiclass", "multilabel"), call)
    scores = scored.scores[head.name]
    if head.kind == "binary":
        names = head.classes or ("0", "1")
        pairs = [[[names[0], 1.0 - p], [names[1], p]] for p in scores.tolist()]
    else:
        names = head.classes or tuple(map(str, range(head.stop - head.start)))
        pairs = [[list(pair) for pair in zip(names, row, strict=True)] for row in scores.tolist()]
    return json_reply({"results": pairs})


async def regress(service: Service, call: Call) -> Reply:
    """Return one number per example: a probability, or a regression's value."""
    scored = await _score_examples(service, call)
    head = _head(scored, ("regression", "binary", "ranking"), call)
    return json_reply({"results": scored.scores[head.name].tolist()})


async def _score_examples(service: Service, call: Call) -> Scored:
    request = await call.json(_examples)

    def rows(bundle: Bundle) -> list[Row]:
        check_columns(bundle, list(request.context), lambda name: f"/context/{name}")
        shared = _plain_row(bundle, request.context, "/context")
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
    """Return the signature of a model: its columns and outputs."""
    model, version, label = (call.params.get(each) for each in ("model", "version", "label"))
    with service.models.lease(model, call.request_id, version, label) as served:
        version = served.version
    about = model_metadata(service, call.params["model"], version, call.request_id)
    signature = {
        "inputs": {each["name"]: _tensor_info(each) for each in about["inputs"]},
        "outputs": {each["name"]: _tensor_info(each) for each in about["outputs"]},
        "method_name": "tensorflow/serving/predict",
    }
    return json_reply(
        {
            "model_spec": {"name": model, "signature_name": "", "version": version},
            "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
        }
    )


def _tensor_info(tensor: Mapping[str, Any]) -> dict[str, Any]:
    names = {"BYTES": "DT_STRING", "INT64": "DT_INT64", "FP64": "DT_DOUBLE", "BOOL": "DT_BOOL"}
    sizes = [{"size": str(size), "name": ""} for size in tensor["shape"]]
    return {
        "dtype": names[tensor["datatype"]],
        "tensor_shape": {"dim": sizes, "unknown_rank": False},
        "name": tensor["name"],
    }
