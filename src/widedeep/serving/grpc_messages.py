"""The messages of the Open Inference Protocol over gRPC, described here and built when imported.

The protocol's own description is a .proto file; its messages are few, so they stand here as a
table, and no code is generated that would bind this package to one version of protobuf's compiler.
Field numbers are the protocol's.
"""

from __future__ import annotations

from typing import Any

from widedeep.errors import extra_imports

with extra_imports():
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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
_CONTENTS = f"{_TENSOR}, parameters=4 %InferParameter, contents=5 InferTensorContents"
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
    "ModelInferRequest.InferInputTensor": _CONTENTS,
    "ModelInferRequest.InferRequestedOutputTensor": "name=1 string, parameters=2 %InferParameter",
    "ModelInferRequest": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 %InferParameter, "
        "inputs=5 *ModelInferRequest.InferInputTensor, "
        "outputs=6 *ModelInferRequest.InferRequestedOutputTensor, raw_input_contents=7 *bytes"
    ),
    "ModelInferResponse.InferOutputTensor": _CONTENTS,
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
"""Each takes the message ``NAMERequest`` and gives ``NAMEResponse``."""


def message(name: str) -> Any:
    """Return the class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="widedeep/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name in sorted(_MESSAGES):  # an outer message before its inner ones
        outer, _, inner = name.partition(".")
        made[name] = made[outer].nested_type.add() if inner else file.message_type.add()
        made[name].name = inner or outer
    for name, fields in _MESSAGES.items():
        for field in filter(None, fields.split(", ")):
            _add_field(made[name], name, field)
    return file


def _add_field(owner: descriptor_pb2.DescriptorProto, path: str, text: str) -> None:
    place, kind = text.split(" ")
    name, number = place.split("=")
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
    """Add the pair that protobuf keeps a map's entries in, and return its name."""
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
