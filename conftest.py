"""What docstring examples and the documents' code blocks find when they run as tests.

They run in an empty folder that holds `train.parquet`, `valid.parquet` and `test.parquet` (UCI
Adult), so that an example reads as its reader would write it and leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ADULT = Path(__file__).parent / "src" / "widedeep" / "census"
VALID_ROWS = 6_512  # the last fifth of the train part
EXAMPLE_ROWS = 4_000  # enough for a docstring's example, and fast


def write_adult(folder: Path, rows: int | None) -> Path:
    """Write the three parts of Adult into `folder`, each cut to `rows`."""
    train = pq.read_table(ADULT / "train.parquet")
    parts = {
        "train": train.slice(0, train.num_rows - VALID_ROWS),
        "valid": train.slice(train.num_rows - VALID_ROWS),
        "test": pq.read_table(ADULT / "test.parquet"),
    }
    for name, table in parts.items():
        pq.write_table(table.slice(0, rows), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def adult(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole of Adult as train, valid and test."""
    return write_adult(tmp_path_factory.mktemp("adult"), rows=None)


@pytest.fixture(scope="session")
def small_adult(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a few thousand rows in each part."""
    return write_adult(tmp_path_factory.mktemp("small_adult"), rows=EXAMPLE_ROWS)


@pytest.fixture(autouse=True)
def example_folder(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[None]:
    """Run a docstring's example in a folder of its own, with the small Adult in it."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    folder = tmp_path_factory.mktemp("example")
    for path in request.getfixturevalue("small_adult").iterdir():
        (folder / path.name).symlink_to(path)
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def document_folder(adult: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run a document's blocks, one after the other, in one folder with the whole of Adult."""
    folder = tmp_path_factory.mktemp("document")
    for path in adult.iterdir():
        (folder / path.name).symlink_to(path)
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


# The blocks of a document share their names, as in one session; a block that cannot run says
# `<!--- skip: next -->` above itself, and why.
pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    fixtures=["document_folder"],
).pytest()
