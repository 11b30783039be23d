"""The Open Inference Protocol over JSON: rows of a request, and its replies."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from widedeep import traces
from widedeep._version import __version__
from widedeep.bundle import Bundle
from widedeep.errors import RequestError, WideDeepError, nearest
from widedeep.schema import ColumnType
from widedeep.serving.http.errors import HttpError, feature_error
from widedeep.serving.http.service import Call, Reply, Service, decode, json_reply

DATATYPES: dict[str, str] = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BYTES": "O",
}
"""NumPy's type for each of the protocol's."""

_BY_KIND = {"string": "BYTES", "int": "INT64", "float": "FP64", "bool": "BOOL"}
_LENGTH_PREFIX = struct.Struct("<I")


def datatype_of(kind: ColumnType) -> str:
    """Return the protocol's datatype of a column."""
    if kind.storage in ("float16", "float32"):
        return f"FP{kind.storage[5:]}"
    return _BY_KIND[kind.kind]


def check_tensor(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Check a tensor's datatype and shape, and return its number of values."""
    if datatype not in DATATYPES:
        raise RequestError("datatype", f"got {datatype!r}; {nearest(datatype, DATATYPES)}")
    if not shape or any(size < 0 for size in shape):
        raise RequestError(
            "shape",
            f"input {name!r}: got {list(shape)}, expected [rows], or [rows, values per row]",
        )
    return math.prod(shape)


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> list[Any]:
    r"""Return the values of a binary tensor in a flat list."""
    n = check_tensor(name, datatype, shape)
    if datatype == "BYTES":
        values = list(_texts(name, raw))
        if len(values) != n:
            raise RequestError(
                "data", f"input {name!r}: got {len(values)} values, the shape says {n}"
            )
        return values
    dtype = np.dtype(DATATYPES[datatype])
    if len(raw) != n * dtype.itemsize:
        raise RequestError(
            "data",
            f"input {name!r}: got {len(raw)} bytes, expected {n * dtype.itemsize}: "
            f"{n} values of {datatype}",
        )
    flat: list[Any] = np.frombuffer(raw, dtype).tolist()
    return flat


def _texts(name: str, raw: memoryview) -> Iterator[bytes]:
    offset = 0
    while offset < len(raw):
        start = offset + _LENGTH_PREFIX.size
        if start > len(raw):
            raise RequestError("data", f"input {name!r}: got a length cut off at byte {offset}")
        offset = start + _LENGTH_PREFIX.unpack_from(raw, offset)[0]
        if offset > len(raw):
            raise RequestError(
                "data",
                f"input {name!r}: got a text of {offset - start} bytes that ends after the data",
            )
        yield bytes(raw[start:offset])


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> list[Any]:
    """Return the values of a JSON tensor in a flat list."""
    n = check_tensor(name, datatype, shape)
    values = list(_flat(data))
    if len(values) != n:
        raise RequestError(
            "data", f"input {name!r}: got {len(values)} values, the shape {list(shape)} says {n}"
        )
    allowed: tuple[type, ...] = {"BOOL": (bool,), "BYTES": (str, bytes)}.get(datatype, (int, float))
    if datatype.startswith(("INT", "UINT")):
        allowed = (int,)
    for index, value in enumerate(values):
        plain = type(value) is not bool or datatype == "BOOL"
        if value is not None and not (isinstance(value, allowed) and plain):
            raise RequestError(
                f"data[{index}]",
                f"input {name!r}: got {str(value)[:80]!r} ({type(value).__name__}), expected "
                f"{datatype} or null",
            )
        if isinstance(value, int | float) and datatype != "BOOL":
            values[index] = _in_range(name, datatype, index, value)
    return values


def _in_range(name: str, datatype: str, index: int, value: float) -> float:
    """Round a number to its datatype; refuse one out of range."""
    dtype, number = np.dtype(DATATYPES[datatype]), math.inf
    if dtype.kind == "f":
        with np.errstate(over="ignore"), suppress(OverflowError):
            number = float(dtype.type(value))
    elif np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        number = value
    if math.isinf(number) and not (isinstance(value, float) and math.isinf(value)):
        raise RequestError(
            f"data[{index}]",
            f"input {name!r}: got {str(value)[:80]}, expected a number within {datatype} or null",
        )
    return number


def _flat(data: object) -> Iterator[Any]:
    # Without recursion: a body may nest as deeply as the decoder allows.
    stack = [iter([data])]
    while stack:
        value = next(stack[-1], stack)
        if value is stack:
            stack.pop()
        elif isinstance(value, list):
            stack.append(iter(value))
        else:
            yield value


def column_of(
    name: str, kind: ColumnType | None, shape: Sequence[int], values: list[Any]
) -> list[Any]:
    """Return one value, or one list of values, per row."""
    width = math.prod(shape[1:])
    if kind is not None and kind.nested:
        return [values[row * width : (row + 1) * width] for row in range(shape[0])]
    if width != 1:
        raise RequestError(
            "shape",
            f"input {name!r}: got {list(shape)}, expected [rows] or [rows, 1]: one value per row",
        )
    return values


def to_bytes(values: NDArray[Any]) -> bytes:
    """Return scores as the protocol's bytes: FP64, little-endian."""
    return np.ascontiguousarray(values, "<f8").tobytes()


Row = dict[str, Any]
PointerOf = Callable[[str, int], str | None]  # of a column's value in a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scores of a request's rows, and the version that gave them."""

    version: str
    bundle: Bundle
    scores: dict[str, NDArray[np.float64]]  # By head, (B,) or (B, C)
    logits_BC: NDArray[np.float32]


def output_name(head: str) -> str:
    """Return the output's name of a head: ``"score"`` for an only head without a name."""
    return head or "score"


def check_columns(bundle: Bundle, names: Sequence[str], pointer: Callable[[str], str]) -> None:
    """Refuse columns that the model does not have: a misspelt one would silently be null."""
    columns = bundle.schema.columns
    for name in names:
        if name not in columns:
            hint = nearest(name, bundle.input_columns)
            raise HttpError(400, f"got the column {name!r}; {hint}", pointer=pointer(name))


def check_row_count(service: Service, n_rows: int, pointer: str | None = None) -> None:
    """Raise the answer 413 for more rows than a request may have."""
    limit = service.settings.max_candidates
    if n_rows > limit:
        raise HttpError(413, f"got {n_rows} rows, expected at most {limit}", pointer=pointer)


async def score_call(
    service: Service,
    call: Call,
    n_rows: int,
    rows: Callable[[Bundle], list[Row]],
    pointer_of: PointerOf,
) -> Scored:
    """Score the rows of a call with the version that its path names, when its turn has come."""
    call.model, call.rows = call.params["model"], n_rows
    scored = await service.scheduler.run(
        f"score/{call.model}",
        n_rows,
        call.deadline,
        lambda: score_rows(
            service,
            model=call.params["model"],
            request_id=call.request_id,
            rows=rows,
            pointer_of=pointer_of,
            version=call.params.get("version"),
            label=call.params.get("label"),
        ),
    )
    call.version = scored.version
    return scored


def score_rows(
    service: Service,
    *,
    model: str,
    request_id: str,
    rows: Callable[[Bundle], list[Row]],
    pointer_of: PointerOf,
    version: str | None = None,
    label: str | None = None,
) -> Scored:
    """Score rows with a version, and count the request."""
    start = time.perf_counter()
    with service.models.lease(model, request_id, version, label) as served:
        bundle = served.ranker.bundle
        request_rows: list[Row] = []
        try:
            with traces.span("features"):
                request_rows = rows(bundle)
            bundle.encoder.check_values(len(request_rows) * bundle.model.n_logits)
            with traces.span("score"):
                logits_BC = _logits(bundle, request_rows, service.threads)
                scores = bundle.scores_by_head(logits_BC)
        except (HttpError, WideDeepError, UnicodeError) as error:
            service.statistics.failed(model, served.version, time.perf_counter() - start)
            if isinstance(error, WideDeepError):
                raise feature_error(error, bundle.schema, pointer_of) from error
            if isinstance(error, UnicodeError):
                raise HttpError(400, f"got text that is no Unicode: {error}") from error
            raise
        first = next(iter(scores.values()))
        service.metrics.scored(model, served.version, first)
        if request_rows:
            service.sample_unseen_values(model, served.ranker, request_rows[0], {})
        took = time.perf_counter() - start
        service.statistics.answered(model, served.version, len(request_rows), took)
        return Scored(version=served.version, bundle=bundle, scores=scores, logits_BC=logits_BC)


def _logits(bundle: Bundle, rows: list[Row], threads: int) -> NDArray[np.float32]:
    if not rows:
        return np.zeros((0, bundle.model.n_logits), np.float32)
    batches = bundle.batches(rows, threads=threads)
    return np.concatenate([bundle.logits(batch, threads=threads) for batch in batches])


def rows_of_columns(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Return columns of equal length as rows."""
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
_BINARY = b"application/octet-stream"
_LENGTH = b"inference-header-content-length"


class InferInput(msgspec.Struct, kw_only=True):
    """A column of the model."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class InferOutput(msgspec.Struct, kw_only=True):
    """A head of the model: ``"score"`` where there is one."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, kw_only=True):
    """The body of an inference request."""

    inputs: list[InferInput]
    outputs: list[InferOutput] | None = None
    id: str | None = None
    parameters: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(InferRequest)
Outputs = list[tuple[str, NDArray[np.float64], bool]]


async def infer(service: Service, call: Call) -> Reply:
    """Score rows given as columns."""
    call.check_media_type(b"application/json", _BINARY)
    body = await call.body()
    header, binary = split_body(body, call.header(_LENGTH))
    request = decode(header, _decoder)
    if request.id:
        call.request_id = request.id[:128]
    n_rows = max((each.shape[0] for each in request.inputs if each.shape), default=0)
    check_row_count(service, n_rows, "/inputs")
    tensors = _tensors(request.inputs, binary)
    scored = await score_call(
        service,
        call,
        n_rows,
        lambda bundle: rows_of_inputs(bundle, request.inputs, tensors),
        lambda column, row: _pointer(request.inputs, column, row),
    )
    return _reply(call, request, scored)


def split_body(body: bytes, length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a body, and the bytes behind it."""
    if length is None:
        return body, memoryview(b"")
    n = int(length) if length.isascii() and length.isdigit() and len(length) < 12 else -1
    if not 0 <= n <= len(body):
        raise HttpError(
            400,
            f"header Inference-Header-Content-Length: got {length!r}, expected the JSON's length "
            f"in a body of {len(body)} bytes",
        )
    return body[:n], memoryview(body)[n:]


def _tensors(inputs: Sequence[InferInput], binary: memoryview) -> list[list[Any]]:
    """Return the values of each input; binary ones follow each other in the inputs' order."""
    tensors, offset = [], 0
    for position, each in enumerate(inputs):
        size = each.parameters.get("binary_data_size")
        try:
            if size is None:
                tensors.append(from_json(each.name, each.datatype, each.shape, each.data or []))
                continue
            if type(size) is not int or not 0 <= size <= len(binary) - offset:
                raise RequestError(
                    "parameters.binary_data_size",
                    f"got {size!r}, but {len(binary) - offset} bytes follow the JSON",
                )
            raw = binary[offset : offset + size]
            tensors.append(from_bytes(each.name, each.datatype, each.shape, raw))
            offset += size
        except RequestError as error:
            raise _tensor_error(error, position) from error
    if offset != len(binary):
        raise HttpError(400, f"got {len(binary) - offset} bytes behind the last binary input")
    return tensors


def _tensor_error(error: RequestError, position: int) -> HttpError:
    where = error.where.replace("[", "/").replace("]", "").replace(".", "/")
    return HttpError(400, str(error), pointer=f"/inputs/{position}/{where}")


def rows_of_inputs(
    bundle: Bundle, inputs: Sequence[InferInput], tensors: Sequence[list[Any]]
) -> list[Row]:
    """Return the rows of tensors."""
    if not inputs:
        raise HttpError(400, "got no inputs, expected at least one column", pointer="/inputs")
    check_columns(bundle, [each.name for each in inputs], lambda name: _pointer(inputs, name, None))
    columns: dict[str, list[Any]] = {}
    kinds, n_rows = bundle.schema.columns, inputs[0].shape[0]
    for position, (each, values) in enumerate(zip(inputs, tensors, strict=True)):
        if each.name in columns:
            raise HttpError(
                400, f"got the input {each.name!r} twice", pointer=f"/inputs/{position}/name"
            )
        if each.shape[0] != n_rows:
            raise HttpError(
                400,
                f"input {each.name!r}: got {each.shape[0]} rows, but {n_rows} in "
                f"{inputs[0].name!r}; give as many in every input",
                pointer=f"/inputs/{position}/shape",
            )
        try:
            columns[each.name] = column_of(each.name, kinds.get(each.name), each.shape, values)
        except RequestError as error:
            raise _tensor_error(error, position) from error
    return rows_of_columns(columns)


def first_row(bundle: Bundle, body: bytes, length: str | None) -> Row:
    """Return the first row of a request's body, of which ``length`` bytes are JSON."""
    header, binary = split_body(body, length)
    request = decode(header, _decoder)
    return rows_of_inputs(bundle, request.inputs, _tensors(request.inputs, binary))[0]


def _pointer(inputs: Sequence[InferInput], column: str, row: int | None) -> str:
    for position, each in enumerate(inputs):
        if each.name == column:
            if row is None or "binary_data_size" in each.parameters:
                return f"/inputs/{position}/name"
            return f"/inputs/{position}/data/{row * math.prod(each.shape[1:])}"
    return "/inputs"


def _reply(call: Call, request: InferRequest, scored: Scored) -> Reply:
    described, blobs = [], []
    for name, scores, binary in requested_outputs(request, scored):
        about: dict[str, Any] = {"name": name, "datatype": "FP64", "shape": list(scores.shape)}
        if binary:
            blobs.append(to_bytes(scores))
            about["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            about["data"] = scores.ravel().tolist()
        described.append(about)
    answer: dict[str, Any] = {"model_name": call.model, "model_version": scored.version}
    if request.id is not None:
        answer["id"] = request.id
    reply = json_reply({**answer, "outputs": described})
    if not blobs:
        return reply
    length = str(len(reply.body)).encode()
    return Reply(
        b"".join([reply.body, *blobs]),
        media_type=_BINARY,
        headers=[(_LENGTH, length)],
    )


def requested_outputs(request: InferRequest, scored: Scored) -> Outputs:
    """Return the requested heads: name, scores, and whether as bytes."""
    heads = {output_name(head): scores for head, scores in scored.scores.items()}
    everything = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return [(name, scores, everything) for name, scores in heads.items()]
    outputs: Outputs = []
    for position, output in enumerate(request.outputs):
        if output.name not in heads:
            raise HttpError(
                400,
                f"got the output {output.name!r}; {nearest(output.name, heads)}",
                pointer=f"/outputs/{position}/name",
            )
        if any(name == output.name for name, _, _ in outputs):
            raise HttpError(
                400, f"got the output {output.name!r} twice", pointer=f"/outputs/{position}/name"
            )
        binary = output.parameters.get("binary_data", everything) is True
        outputs.append((output.name, heads[output.name], binary))
    return outputs


# ---- models and versions ------------------------------------------------------------------------


async def server(service: Service, call: Call) -> Reply:
    """Return the server's name, version and extensions."""
    return json_reply({"name": "widedeep", "version": __version__, "extensions": EXTENSIONS})


async def metadata(service: Service, call: Call) -> Reply:
    """Return the inputs and outputs of a model."""
    return json_reply(
        model_metadata(service, call.params["model"], call.params.get("version"), call.request_id)
    )


def model_metadata(
    service: Service, model: str, version: str | None, request_id: str
) -> dict[str, Any]:
    """Return a model's inputs and outputs."""
    with service.models.lease(model, request_id, version) as served:
        return describe_model(service, model, served.ranker.bundle)


def describe_model(service: Service, model: str, bundle: Bundle) -> dict[str, Any]:
    """Return the inputs and outputs of a model's version, and the versions that are ready."""
    inputs = [
        {"name": name, "datatype": datatype_of(kind), "shape": [-1, -1] if kind.nested else [-1]}
        for name, kind in bundle.input_columns.items()
    ]
    outputs = [
        {
            "name": output_name(head.name),
            "datatype": "FP64",
            "shape": [-1, head.stop - head.start] if head.by_class else [-1],
        }
        for head in bundle.model.heads
    ]
    versions = [s.version for s in service.models.registry(model).status() if s.state == "ready"]
    platform = f"widedeep_{bundle.manifest.engine}"
    about = {"name": model, "versions": versions, "platform": platform}
    return {**about, "inputs": inputs, "outputs": outputs}


def is_model_ready(service: Service, model: str, version: str | None) -> bool:
    """Tell whether a model, or one version of it, can answer."""
    registry = service.models.registry(model)
    if not version:
        return registry.ready()
    return any(s.version == version and s.state == "ready" for s in registry.status())


async def model_ready(service: Service, call: Call) -> Reply:
    """Return whether a model, or one version of it, can answer."""
    model = call.params["model"]
    ready = is_model_ready(service, model, call.params.get("version"))
    return json_reply({"name": model, "ready": ready}, 200 if ready else 503)


async def index(service: Service, call: Call) -> Reply:
    """List every version of every model, with its state and why it did not load."""
    body = await call.body()
    options = decode(body, msgspec.json.Decoder(dict[str, Any])) if body.strip() else {}
    return json_reply(repository_index(service, ready=options.get("ready") is True))


def repository_index(service: Service, *, ready: bool) -> list[dict[str, str]]:
    """Return every version, or those that are ready."""
    states = {"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING"}
    versions = []
    for name, registry in service.models.registries.items():
        for each in registry.status():
            state = states.get(each.state, "UNAVAILABLE")
            if state == "READY" or not ready:
                about = {"name": name, "version": each.version, "state": state}
                versions.append({**about, "reason": each.error or ""})
    return versions


async def statistics(service: Service, call: Call) -> Reply:
    """Return how many requests each version scored in this process, and in what time."""
    name, version = call.params.get("model"), call.params.get("version")
    return json_reply({"model_stats": model_statistics(service, name, version)})


def model_statistics(
    service: Service, model: str | None, version: str | None
) -> list[dict[str, Any]]:
    """Return the counts of each version as Triton's statistics extension reports them."""
    if model is not None:
        service.models.registry(model)
    service.publish()  # what native threads counted
    reports = []
    for (name, number), each in list(service.statistics.by_version.items()):
        if (model or name) != name or (version or number) != number:
            continue
        success = {"count": each.answered, "ns": int(each.seconds * 1e9)}
        none = {"count": 0, "ns": 0}
        reports.append(
            {
                "name": name,
                "version": number,
                "last_inference": int(each.last * 1e3),
                "inference_count": each.rows,
                "execution_count": each.answered,
                "inference_stats": {
                    "success": success,
                    "fail": {"count": each.failed, "ns": int(each.failed_seconds * 1e9)},
                    **{stage: none for stage in ("queue", "compute_input", "compute_output")},
                    "compute_infer": success,
                },
                "batch_stats": [],
            }
        )
    return reports
