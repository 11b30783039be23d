"""The stored models are whole, small, and what their answers say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles.models import FOLDER, MODEL_NAMES, unpack_model


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_models_are_small() -> None:
    assert max(folder_bytes(FOLDER / name) for name in MODEL_NAMES) < 60_000
    assert folder_bytes(FOLDER) < 600_000


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_model_is_unpacked_as_tensorflow_left_it(name: str, tmp_path: Path) -> None:
    answers = unpack_model(name, tmp_path)
    graph = (tmp_path / "saved_model" / "saved_model.pb").read_bytes()
    assert graph[:2] == b"\x08\x01"  # field 1 of SavedModel: schema version 1
    for column in answers["rows"]["ids"]:
        assert column.encode() in graph
    (index,) = (tmp_path / "checkpoint").glob("*.index")
    assert index.stem in (tmp_path / "checkpoint" / "checkpoint").read_text()
    assert len(answers["losses"]) == 20
    assert set(answers["states"]) == {"0", "1", "3", "20"}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_predictions_follow_from_logits(name: str, tmp_path: Path) -> None:
    answers = unpack_model(name, tmp_path)
    predictions = answers["predictions"]
    head = answers["model"].get("head", {}).get("name")
    if "predictions" in predictions:
        values = np.array(predictions["predictions"])
        logits = np.log(values) if head == "PoissonRegressionHead" else values
        np.testing.assert_allclose(logits, predictions.get("logits", logits), atol=3e-7)
        return
    logits = np.array(predictions["logits"])
    if head == "MultiLabelHead":
        np.testing.assert_allclose(
            predictions["probabilities"], 1 / (1 + np.exp(-logits)), rtol=1e-6
        )
        return
    two_logits = np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits
    np.testing.assert_allclose(predictions["probabilities"], softmax(two_logits), rtol=1e-5)
    assert np.array(predictions["class_ids"]).ravel().tolist() == two_logits.argmax(axis=1).tolist()
