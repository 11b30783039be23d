"""The Open Inference Protocol v2 over gRPC, for compatibility.

A call in Python's gRPC costs about 0.3 ms beside the scoring; REST is faster. The protocol's
messages are few, so they stand here as a table with the protocol's field numbers: no generated code
binds this package to one version of protobuf's compiler.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from widedeep import traces
from widedeep._version import __version__
from widedeep.errors import ConfigError, RequestError, WideDeepError, extra_imports

with extra_imports():
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# After gRPC's own packages: where nothing is installed, their extra is named, which holds the rest.
from widedeep.serving.http.admin import run_action
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.open_inference import (
    EXTENSIONS,
    InferInput,
    InferOutput,
    InferRequest,
    check_row_count,
    from_bytes,
    from_json,
    is_model_ready,
    model_metadata,
    model_statistics,
    repository_index,
    requested_outputs,
    rows_of_inputs,
    score_rows,
    to_bytes,
)
from widedeep.serving.http.service import Service, busy_error
from widedeep.serving.registry import Registry

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}

# message -> "name=number type", `*` repeated, `%` a map from string, `|` one of a group.
_NAMED = "name=1 string, version=2 string"
_TENSOR = "name=1 string, datatype=2 string, shape=3 *int64"
_CONTENT_TENSOR = f"{_TENSOR}, parameters=4 %InferParameter, contents=5 InferTensorContents"
_REPOSITORY = (
    "repository_name=1 string, model_name=2 string, parameters=3 %ModelRepositoryParameter"
)
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live=1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready=1 bool",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "ready=1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name=1 string, version=2 string, extensions=3 *string",
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": (
        "name=1 string, versions=2 *string, platform=3 string, "
        "inputs=4 *ModelMetadataResponse.TensorMetadata, "
        "outputs=5 *ModelMetadataResponse.TensorMetadata"
    ),
    "InferParameter": (
        "bool_param=1 |bool, int64_param=2 |int64, string_param=3 |string, "
        "double_param=4 |double, uint64_param=5 |uint64"
    ),
    "InferTensorContents": (
        "bool_contents=1 *bool, int_contents=2 *int32, int64_contents=3 *int64, "
        "uint_contents=4 *uint32, uint64_contents=5 *uint64, fp32_contents=6 *float, "
        "fp64_contents=7 *double, bytes_contents=8 *bytes"
    ),
    "ModelInferRequest.InferInputTensor": _CONTENT_TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "name=1 string, parameters=2 %InferParameter",
    "ModelInferRequest": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 %InferParameter, "
        "inputs=5 *ModelInferRequest.InferInputTensor, "
        "outputs=6 *ModelInferRequest.InferRequestedOutputTensor, raw_input_contents=7 *bytes"
    ),
    "ModelInferResponse.InferOutputTensor": _CONTENT_TENSOR,
    "ModelInferResponse": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 %InferParameter, "
        "outputs=5 *ModelInferResponse.InferOutputTensor, raw_output_contents=6 *bytes"
    ),
    "ModelRepositoryParameter": (
        "bool_param=1 |bool, int64_param=2 |int64, string_param=3 |string, bytes_param=4 |bytes"
    ),
    "RepositoryIndexRequest": "repository_name=1 string, ready=2 bool",
    "RepositoryIndexResponse.ModelIndex": (
        "name=1 string, version=2 string, state=3 string, reason=4 string"
    ),
    "RepositoryIndexResponse": "models=1 *RepositoryIndexResponse.ModelIndex",
    "RepositoryModelLoadRequest": _REPOSITORY,
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": _REPOSITORY,
    "RepositoryModelUnloadResponse": "",
    "StatisticDuration": "count=1 uint64, ns=2 uint64",
    "InferStatistics": ", ".join(
        f"{name}={number} StatisticDuration"
        for number, name in enumerate(
            ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"), 1
        )
    ),
    "ModelStatistics": (
        "name=1 string, version=2 string, last_inference=3 uint64, inference_count=4 uint64, "
        "execution_count=5 uint64, inference_stats=6 InferStatistics"
    ),
    "ModelStatisticsRequest": _NAMED,
    "ModelStatisticsResponse": "model_stats=1 *ModelStatistics",
}

METHODS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics"),
)
"""Each receives the message ``NAMERequest`` and returns ``NAMEResponse``."""


def message(name: str) -> Any:
    """Return the class of a protobuf message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="widedeep/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    messages: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name in sorted(_MESSAGES):  # an outer message before its inner ones
        outer, _, inner = name.partition(".")
        messages[name] = messages[outer].nested_type.add() if inner else file.message_type.add()
        messages[name].name = inner or outer
    for name, fields in _MESSAGES.items():
        for field in filter(None, fields.split(", ")):
            _add_field(messages[name], name, field)
    return file


def _add_field(owner: descriptor_pb2.DescriptorProto, path: str, text: str) -> None:
    name_and_number, kind = text.split(" ")
    name, number = name_and_number.split("=")
    field = owner.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind[0] == "|":
        if not owner.oneof_decl:
            owner.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind[0] in "*%":
        field.label = _Field.LABEL_REPEATED
    if kind[0] == "%":
        _set_type(field, f"{path}.{_add_entry(owner, name, kind[1:])}")
    else:
        _set_type(field, kind.lstrip("*|"))


def _add_entry(owner: descriptor_pb2.DescriptorProto, name: str, kind: str) -> str:
    """Add the message of a map's entries, and return its name."""
    entry = owner.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    for number, (key, of) in enumerate((("key", "string"), ("value", kind)), start=1):
        _set_type(entry.field.add(name=key, number=number, label=_Field.LABEL_OPTIONAL), of)
    return str(entry.name)


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


with extra_imports():
    import grpc

_CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WITHOUT_KEY = ("ServerLive", "ServerReady")
_ADMIN = ("RepositoryModelLoad", "RepositoryModelUnload")
_LOAD_S = 60.0
Fields: TypeAlias = dict[str, Any]  # of a reply
_MAX_CALLS = 1_024
_MAX_DETAILS = 2_000  # bytes: callers read trailers of 8 KB, in which a byte may take three


class GrpcServer:
    """A gRPC server with threads of its own."""

    def __init__(self, service: Service, address: str, *, shared: bool = False) -> None:
        self._service = service
        settings = service.settings
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name),
                request_deserializer=message(f"{name}Request").FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name in METHODS
            if settings.admin or name not in _ADMIN
        }
        self._server = grpc.server(
            ThreadPoolExecutor(settings.threads + 2, thread_name_prefix="widedeep-grpc"),
            handlers=[grpc.method_handlers_generic_handler(SERVICE, handlers)],
            options=[
                ("grpc.so_reuseport", int(shared)),
                ("grpc.max_receive_message_length", settings.max_body),
                ("grpc.max_send_message_length", -1),
            ],
            maximum_concurrent_rpcs=settings.queue or _MAX_CALLS,
        )
        try:
            self.port = self._bind(address)
        except RuntimeError as error:
            raise ConfigError(f"gRPC: {address} cannot be bound; choose another port") from error
        if not self.port:
            raise ConfigError(f"gRPC: {address} cannot be bound; choose another port")

    def _bind(self, address: str) -> int:
        settings = self._service.settings
        if settings.tls_certificate is None:
            return int(self._server.add_insecure_port(address))
        files = (settings.tls_key or settings.tls_certificate, settings.tls_certificate)
        pair = tuple(_bytes_of(path) for path in files)
        client_ca = settings.tls_client_ca
        credentials = grpc.ssl_server_credentials(
            [pair],
            root_certificates=None if client_ca is None else _bytes_of(client_ca),
            require_client_auth=client_ca is not None,
        )
        return int(self._server.add_secure_port(address, credentials))

    def start(self) -> None:
        """Start to answer calls."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Accept no more calls, and give the running ones ``grace_s`` seconds."""
        self._server.stop(grace_s).wait()

    # ---- every call -----------------------------------------------------------------------------

    def _handler(self, name: str) -> Callable[[Any, Any], Any]:
        answer: Callable[[Any, Any], Fields] = getattr(self, f"_{name}")
        reply, service, route = message(f"{name}Response"), self._service, f"grpc/{name}"

        def handle(request: Any, context: Any) -> Any:
            start, status, fields, built = time.monotonic(), 200, Fields(), reply()
            attributes = {"rpc_system": "grpc", "rpc_service": SERVICE, "rpc_method": name}
            with traces.request_span(_trace_headers(context), start, **attributes) as span:
                try:
                    self._check_key(name, context)
                    fields = answer(request, context)
                    built = reply(**fields)
                except (HttpError, WideDeepError) as error:
                    problem = error if isinstance(error, HttpError) else HttpError(400, str(error))
                    status, details = problem.status, problem.message.encode()[:_MAX_DETAILS]
                    context.set_details(details.decode(errors="ignore"))
                except Exception as error:  # a bug: logged for the operator, not for the caller
                    status = 500
                    service.metrics.bugs.inc()
                    service.log.bug(error, route=route)
                    context.set_details("the server failed; see its log")
                code = _CODES.get(status, grpc.StatusCode.UNKNOWN)
                context.set_code(code)
                if span is not None:
                    span.set_attributes(_attributes(code, request, fields))
            service.metrics.answered(route, status, time.monotonic() - start)
            return built

        return handle

    def _check_key(self, name: str, context: Any) -> None:
        keys = self._service.keys
        if keys is None or name in _WITHOUT_KEY:
            return
        sent = dict(context.invocation_metadata())
        bearer = str(sent.get("authorization", ""))
        offered = bearer[7:] if bearer[:7].lower() == "bearer " else sent.get("x-api-key")
        keys.check(offered, admin=name in _ADMIN)

    # ---- the protocol's calls, under their own names --------------------------------------------

    def _ServerLive(self, request: Any, context: Any) -> Fields:
        return {"live": True}

    def _ServerReady(self, request: Any, context: Any) -> Fields:
        return {"ready": self._service.ready()}

    def _ModelReady(self, request: Any, context: Any) -> Fields:
        return {"ready": is_model_ready(self._service, request.name, request.version)}

    def _ServerMetadata(self, request: Any, context: Any) -> Fields:
        return {"name": "widedeep", "version": __version__, "extensions": EXTENSIONS[1:]}

    def _ModelMetadata(self, request: Any, context: Any) -> Fields:
        version = request.version or None
        return model_metadata(self._service, request.name, version, uuid.uuid4().hex)

    def _RepositoryIndex(self, request: Any, context: Any) -> Fields:
        return {"models": repository_index(self._service, ready=request.ready)}

    def _RepositoryModelLoad(self, request: Any, context: Any) -> Fields:
        run_action(lambda: self._registry(request).load_newest(wait_s=_LOAD_S))
        return {}

    def _RepositoryModelUnload(self, request: Any, context: Any) -> Fields:
        run_action(self._registry(request).unload_all)
        return {}

    def _registry(self, request: Any) -> Registry:
        return self._service.models.registry(request.model_name)

    def _ModelStatistics(self, request: Any, context: Any) -> Fields:
        statistics = model_statistics(self._service, request.name or None, request.version or None)
        for each in statistics:
            del each["batch_stats"]
        return {"model_stats": statistics}

    def _ModelInfer(self, request: Any, context: Any) -> Fields:
        service = self._service
        if not service.slots.enter():
            raise busy_error()
        try:
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                raise HttpError(504, "the deadline passed before the call's turn came")
            return self._infer(request)
        finally:
            service.slots.leave()

    def _infer(self, request: Any) -> Fields:
        inputs = [
            InferInput(name=each.name, shape=list(each.shape), datatype=each.datatype)
            for each in request.inputs
        ]
        rows = max((each.shape[0] for each in inputs if each.shape), default=0)
        check_row_count(self._service, rows)
        tensors = _tensors(request, inputs)
        identity = request.id or uuid.uuid4().hex
        scored = score_rows(
            self._service,
            model=request.model_name,
            request_id=identity,
            rows=lambda bundle: rows_of_inputs(bundle, inputs, tensors),
            pointer_of=lambda column, row: None,
            version=request.model_version or None,
        )
        requested = [InferOutput(name=each.name) for each in request.outputs]
        outputs = requested_outputs(InferRequest(inputs=inputs, outputs=requested), scored)
        return {
            "model_name": request.model_name,
            "model_version": scored.version,
            "id": request.id,
            "outputs": [
                {"name": name, "datatype": "FP64", "shape": scores.shape}
                for name, scores, _ in outputs
            ],
            "raw_output_contents": [to_bytes(scores) for _, scores, _ in outputs],
        }


def _trace_headers(context: Any) -> dict[bytes, bytes]:
    """Return a call's metadata as headers, if spans are made of them."""
    if not traces.is_on():
        return {}
    sent = [(key, value) for key, value in context.invocation_metadata() if isinstance(value, str)]
    return {key.encode(): value.encode("latin-1", "replace") for key, value in sent}


def _attributes(code: grpc.StatusCode, request: Any, fields: Fields) -> dict[str, Any]:
    """Return what the span of a call says of it, beside its method."""
    outputs = fields.get("outputs") if "model_version" in fields else None  # Else of any rows: -1
    attributes = {
        "widedeep.request_id": fields.get("id"),
        "widedeep.model": getattr(request, "model_name", None) or getattr(request, "name", None),
        "widedeep.version": fields.get("model_version"),
        "widedeep.rows": int(outputs[0]["shape"][0]) if outputs else None,
    }
    attributes = {name: value for name, value in attributes.items() if value}
    return {"rpc.grpc.status_code": code.value[0], **attributes}


def _tensors(request: Any, inputs: list[InferInput]) -> list[list[Any]]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise HttpError(400, f"got {len(raw)} raw contents for {len(inputs)} inputs")
    tensors = []
    for position, each in enumerate(inputs):
        try:
            if raw:
                data = memoryview(raw[position])
                tensors.append(from_bytes(each.name, each.datatype, each.shape, data))
                continue
            field = _CONTENTS.get(each.datatype)
            contents = request.inputs[position].contents
            values = list(getattr(contents, field)) if field else []
            tensors.append(from_json(each.name, each.datatype, each.shape, values))
        except RequestError as error:
            raise HttpError(400, f"inputs[{position}].{error}") from error
    return tensors


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS: {path}: {error.strerror}; check the path") from error
