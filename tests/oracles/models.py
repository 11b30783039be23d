"""The estimators that TensorFlow trained, as folders that look as TensorFlow left them."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

__all__ = ["MODEL_NAMES", "unpack_model"]

FOLDER = Path(__file__).parent / "tensorflow_models"
MODEL_NAMES = sorted(path.name for path in FOLDER.iterdir())


def unpack_model(name: str, folder: Path) -> dict[str, Any]:
    """Write `checkpoint/` and `saved_model/` of a model into `folder`; return its answers."""
    for part in ("checkpoint", "saved_model"):
        shutil.copytree(FOLDER / name / part, folder / part)
    packed = folder / "saved_model" / "saved_model.pb.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    answers: dict[str, Any] = json.loads((FOLDER / name / "answers.json").read_text())
    return answers
