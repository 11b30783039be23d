"""A model with a catalogue, its registry, and a server around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.http.calls import Local
from tests.serving.versions import publish, write_items
from widedeep.bundle import Bundle
from widedeep.serving.registry import Registry


@pytest.fixture(scope="session")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `apps` with version 1 of a model, and a catalogue `items.parquet` beside it."""
    folder = tmp_path_factory.mktemp("serving")
    publish(folder / "apps", "1", seed=1)
    write_items(folder / "items.parquet")
    return folder / "apps"


@pytest.fixture(scope="session")
def bundle(apps: Path) -> Bundle:
    return Bundle.load(apps / "1")


@pytest.fixture(scope="session")
def registry(apps: Path) -> Iterator[Registry]:
    items = apps.parent / "items.parquet"
    with Registry(apps, items=items, item_id="app") as registry:
        assert registry.wait_ready(60)
        yield registry


@pytest.fixture(scope="session")
def local(registry: Registry) -> Local:
    return Local({"apps": registry})
