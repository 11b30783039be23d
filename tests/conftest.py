"""Settings for every test: the same examples each run, no deadline on a busy machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.ads import write_ads
from tests.command_line import Ran, Run
from widedeep.cli.main import main

settings.register_profile("widedeep", deadline=None, derandomize=True)
settings.load_profile("widedeep")
# Tests send Ctrl-C to themselves; a shell has what it runs in the background ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where servers keep private copies of bundles: nowhere in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def ads_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a click log, its configuration, and a finished run in `run`; read it only."""
    folder = write_ads(tmp_path_factory.mktemp("ads"))
    assert main(["train", str(folder / "ads.toml"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> Ran:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def ads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_ads(tmp_path)
