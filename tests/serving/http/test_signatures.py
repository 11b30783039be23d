"""TensorFlow Serving's signatures, by the names that `tf.estimator` exports."""

from __future__ import annotations

import base64
import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.bundle import models
from tests.serving.http.calls import Local
from tests.serving.versions import publish
from widedeep.bundle import Bundle, BundleHead
from widedeep.serving.registry import Registry

ROWS = models.rows(5)
COMPAT = {"model": {"compat": "tensorflow"}}
NUMBER = (BundleHead(name="", kind="regression", start=0, stop=1),)
YES = (BundleHead(name="", kind="binary", start=0, stop=1, classes=("no", "yes")),)
LABELS = (BundleHead(name="", kind="multilabel", start=0, stop=2, classes=("x", "y")),)
MODELS = {
    "ours": (models.BINARY, {}),
    "binary": (YES, COMPAT),
    "classes": (models.MULTICLASS, COMPAT),
    "number": (NUMBER, COMPAT),
    "labels": (LABELS, COMPAT),
    "heads": (models.THREE_HEADS, COMPAT),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("signatures")
    return {
        name: publish(folder / name, "1", seed=1, heads=heads, config=config)
        for name, (heads, config) in MODELS.items()
    }


@pytest.fixture(scope="module")
def local(bundles: dict[str, Bundle]) -> Iterator[Local]:
    with contextlib.ExitStack() as stack:
        registries = {
            name: stack.enter_context(Registry(bundle.path.parent))
            for name, bundle in bundles.items()
        }
        for registry in registries.values():
            assert registry.wait_ready(60)
        yield Local(registries)


def predict(local: Local, model: str, signature: str | None = None) -> Any:
    body: dict[str, Any] = {"instances": ROWS}
    if signature is not None:
        body["signature_name"] = signature
    answer = local.post(f"/v1/models/{model}:predict", body)
    assert answer.status == 200, answer.json
    return answer.json["predictions"]


def test_a_binary_classifier_answers_as_the_estimator_exports_it(
    local: Local, bundles: dict[str, Bundle]
) -> None:
    scores = np.asarray(bundles["binary"].score(ROWS))
    rows = predict(local, "binary", "predict")
    assert [row["logistic"] for row in rows] == [[score] for score in scores.tolist()]
    assert [row["probabilities"] for row in rows] == [[1 - s, s] for s in scores.tolist()]
    assert [row["class_ids"] for row in rows] == [[int(s > 0.5)] for s in scores]
    assert [row["classes"] for row in rows] == [[["no", "yes"][int(s > 0.5)]] for s in scores]
    logits = np.array([row["logits"] for row in rows])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0])), scores, rtol=1e-6)
    classes = [
        {"classes": ["no", "yes"], "scores": [1 - score, score]} for score in scores.tolist()
    ]
    assert predict(local, "binary") == classes
    assert predict(local, "binary", "classification") == classes
    assert predict(local, "binary", "regression") == [[score] for score in scores.tolist()]


def test_a_model_of_ours_keeps_its_default_and_knows_the_names(
    local: Local, bundles: dict[str, Bundle]
) -> None:
    scores = np.asarray(bundles["ours"].score(ROWS)).tolist()
    assert predict(local, "ours") == predict(local, "ours", "serving_default") == scores
    assert predict(local, "ours", "regression") == [[score] for score in scores]
    classes = {row["classes"][0] for row in predict(local, "ours", "predict")}
    assert classes <= {"0", "1"}


def test_several_classes_labels_and_numbers(local: Local, bundles: dict[str, Bundle]) -> None:
    by_class = np.asarray(bundles["classes"].score(ROWS))
    rows = predict(local, "classes")
    assert [row["scores"] for row in rows] == by_class.tolist()
    best = [row["class_ids"] for row in predict(local, "classes", "predict")]
    assert best == by_class.argmax(axis=1)[:, None].tolist()
    assert predict(local, "labels")[0]["classes"] == ["x", "y"]
    assert sorted(predict(local, "labels", "predict")[0]) == ["logits", "probabilities"]
    numbers = np.asarray(bundles["number"].score(ROWS))[:, None].tolist()
    assert predict(local, "number") == numbers == predict(local, "number", "predict")


def test_several_heads_have_predictions_by_head(local: Local) -> None:
    row = predict(local, "heads")[0]
    assert {"click/logistic", "kind/class_ids", "price/predictions"} < row.keys()


def test_columns_give_outputs_by_name(local: Local, bundles: dict[str, Bundle]) -> None:
    inputs = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    body = {"inputs": inputs, "signature_name": "predict"}
    outputs = local.post("/v1/models/binary:predict", body).json["outputs"]
    assert outputs["logistic"] == np.asarray(bundles["binary"].score(ROWS))[:, None].tolist()


@pytest.mark.parametrize(
    ("model", "verb", "signature"),
    [
        ("binary", "predict", "predic"),
        ("number", "predict", "classification"),
        ("heads", "predict", "regression"),
        ("binary", "classify", "regression"),
        ("number", "regress", "predict"),
    ],
)
def test_an_unknown_signature_is_refused(
    local: Local, model: str, verb: str, signature: str
) -> None:
    rows = {"instances": ROWS} if verb == "predict" else {"examples": ROWS}
    answer = local.post(f"/v1/models/{model}:{verb}", {**rows, "signature_name": signature})
    assert (answer.status, answer.json["pointer"]) == (400, "/signature_name")
    assert repr(signature) in answer.json["error"]


def test_metadata_lists_the_signatures(local: Local) -> None:
    def signatures(model: str) -> Any:
        about = local.get(f"/v1/models/{model}/metadata").json["metadata"]
        return about["signature_def"]["signature_def"]

    binary = signatures("binary")
    assert binary.keys() == {"serving_default", "predict", "classification", "regression"}
    assert binary["serving_default"]["method_name"] == "tensorflow/serving/classify"
    outputs = binary["predict"]["outputs"]
    assert outputs["class_ids"]["dtype"] == "DT_INT64"
    sizes = [size["size"] for size in outputs["probabilities"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "2"]
    assert signatures("number")["serving_default"]["method_name"] == "tensorflow/serving/regress"
    assert signatures("ours")["serving_default"]["outputs"].keys() == {"score"}


# ---- serialized examples ------------------------------------------------------------------------


def field(number: int, body: bytes) -> bytes:
    """A field of a protocol buffer that has a length."""
    size, length = len(body), b""
    while size > 127:
        length, size = length + bytes([size % 128 + 128]), size // 128
    return bytes([number * 8 + 2]) + length + bytes([size]) + body


def serialize(row: dict[str, Any]) -> dict[str, str]:
    """A row as TensorFlow's clients send it: a ``tf.train.Example`` in base64."""
    features = b""
    for name, value in row.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, float):
            kind = field(2, field(1, struct.pack("<f", value)))
        else:
            kind = field(1, b"".join(field(1, word.encode()) for word in values))
        features += field(1, field(1, name.encode()) + field(2, kind))
    return {"b64": base64.b64encode(field(1, features)).decode()}


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [serialize(row) for row in ROWS]},
        {"instances": [{"examples": serialize(row)} for row in ROWS]},
        {"inputs": {"examples": [serialize(row) for row in ROWS]}},
        {"inputs": [serialize({**row, "not_a_feature": "x"}) for row in ROWS]},
    ],
)
def test_serialized_examples_are_rows(
    local: Local, bundles: dict[str, Bundle], body: dict[str, Any]
) -> None:
    answer = local.post("/v1/models/ours:predict", body)
    assert answer.status == 200, answer.json
    (scores,) = answer.json.values()
    rows = [{**row, "age": float(np.float32(row["age"]))} for row in ROWS]
    assert scores == bundles["ours"].score(rows).tolist()


@pytest.mark.parametrize(
    "bad", [b"not an example", field(1, b"")[:1], b"\x0a\x04\x0a\x02\x0a\xff", b"\x0a\x02\x0a\x00"]
)
def test_bytes_that_are_no_example_are_refused(local: Local, bad: bytes) -> None:
    body = {"instances": [serialize(ROWS[0]), {"b64": base64.b64encode(bad).decode()}]}
    answer = local.post("/v1/models/ours:predict", body)
    assert answer.status == 400
    assert "no tf.train.Example" in answer.body.decode()
    assert "/instances/1" in answer.body.decode()
