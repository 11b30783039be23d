"""Write the vectors that TensorFlow 2.15 gives, as JSON beside this file.

TensorFlow is not a dependency: the JSON is committed, and only whoever changes these scripts
needs it. In an environment of its own, from the root of the repository::

    python3.11 -m venv tensorflow-venv
    tensorflow-venv/bin/pip install "tensorflow-cpu==2.15.*" "tensorflow-estimator==2.15.*"
    tensorflow-venv/bin/python -m tests.oracles.make_tensorflow_vectors

The same machine gives the same files; ``git diff`` shows what changed. The formats are in
``README.md`` beside this file.
"""

from __future__ import annotations

import json
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

FOLDER = Path(__file__).parent
SECTIONS = {
    "hashing": "hashing_vectors",
    "columns": "column_vectors",
    "optimizers": "optimizer_vectors",
    "estimator": "estimator_vectors",
    "nets": "net_vectors",
}


def plain(value: Any) -> Any:
    """Arrays as lists; a float32 as its shortest decimal, which reads back to the same bits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value] if value.ndim else plain(value[()])
    if isinstance(value, np.floating):
        return float(str(value))
    return int(value) if isinstance(value, np.integer) else value


def write(section: str, entries: dict[str, Any]) -> None:
    """One JSON file, one line an entry, so that a change shows in a diff."""
    version = import_module("tensorflow").__version__
    lines = [f'"made_with": {json.dumps(f"tensorflow {version}")}']
    for name, value in plain(entries).items():
        body = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in value)
        lines.append(f'"{name}": [\n{body}\n]')
    path = FOLDER / f"tensorflow_{section}.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Make every section."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for section, function in SECTIONS.items():
        module = import_module(f"tests.oracles.tensorflow_{section}")
        write(section, getattr(module, function)())


if __name__ == "__main__":
    main()
