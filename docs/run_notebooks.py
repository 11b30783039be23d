"""Runs the notebooks beside it and keeps what they print: ``python docs/run_notebooks.py``."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent / "notebooks"


def main() -> None:
    """Run each notebook in its folder, and write it back with its outputs."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of a package that tqdm looks for
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=600, record_timing=False, resources=resources).execute()
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
