"""Settings for every test: the same examples each run, no deadline on a busy machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.ads import write_ads
from widedeep.cli import main

settings.register_profile("widedeep", deadline=None, derandomize=True)
settings.load_profile("widedeep")


@pytest.fixture(scope="session")
def ads_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a click log, its configuration, and a finished run in `run`; read it only."""
    folder = write_ads(tmp_path_factory.mktemp("ads"))
    assert main(["train", str(folder / "ads.toml"), "--out", str(folder / "run")]) == 0
    return folder
