"""Estimators that TensorFlow trained and saved: what is read of them is what TensorFlow reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles.models import MODEL_NAMES, unpack_model
from widedeep.importing.saved_model import SavedModel
from widedeep.importing.tensor_bundle import TensorBundle, find_bundle


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_variable_of_a_checkpoint_is_read(name: str, tmp_path: Path) -> None:
    state = unpack_model(name, tmp_path)["states"]["0"]
    bundle = TensorBundle(find_bundle(tmp_path / "checkpoint"))
    assert set(bundle.tensors) == set(state)
    for key, values in state.items():
        np.testing.assert_array_equal(bundle.read(key), np.array(values, bundle.read(key).dtype))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_saved_model_holds_the_checkpoints_weights(name: str, tmp_path: Path) -> None:
    state = unpack_model(name, tmp_path)["states"]["0"]
    model = SavedModel(tmp_path / "saved_model")
    assert {"predict", "serving_default"} <= set(model.signatures)
    assert set(model.variables.tensors) <= set(state)
    for key in model.variables.tensors:
        np.testing.assert_array_equal(model.variables.read(key), np.float32(state[key]))
    restored = {key for key, _ in model.names.values()}
    assert restored == set(model.variables.tensors)
