"""Fingerprint64 against TensorFlow's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from widedeep.kernels.transform import fingerprint64

VECTORS = json.loads(
    (Path(__file__).parents[1] / "oracles" / "tensorflow_hashing.json").read_text()
)


def test_agrees_with_tensorflow_at_every_length() -> None:
    for entry in VECTORS["fingerprint64"]:
        text = bytes.fromhex(entry["input_hex"])
        assert fingerprint64(text) == int(entry["fingerprint64"]), f"length {len(text)}"


def test_text_is_hashed_as_utf8() -> None:
    assert fingerprint64("Zürich") == fingerprint64("Zürich".encode())


def test_anything_but_text_is_refused() -> None:
    with pytest.raises(TypeError):
        fingerprint64(7)  # type: ignore[arg-type]
