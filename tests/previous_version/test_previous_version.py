"""Files written by the version before the rooms were laid anew still load, with the same scores.

`files.tar.gz` holds what that version (863995f) wrote, all small: tables, a run with its
checkpoints and its bundle, a directory with two published versions of which the newer one is
withdrawn, and a joined dataset; `expected.json` holds the scores that it gave. ``@HERE@`` stands
for the folder in which it was written.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import widedeep as wd

FILES = Path(__file__).with_name("files.tar.gz")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(FILES) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.suffix in {".toml", ".json"}:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("@HERE@", str(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(unpacked: Path) -> dict[str, object]:
    return json.loads((unpacked / "expected.json").read_text(encoding="utf-8"))


def scores(bundle: wd.Bundle, folder: Path) -> np.ndarray:
    return np.ravel(bundle.score(pq.read_table(folder / "valid.parquet")))[:50]


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "widedeep", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_bundle_gives_the_same_scores(unpacked: Path, expected: dict[str, object]) -> None:
    bundle = wd.Bundle.load(unpacked / "run" / "bundle")
    np.testing.assert_allclose(scores(bundle, unpacked), expected["bundle"], rtol=0, atol=1e-6)


def test_a_run_goes_on_from_its_checkpoint(
    unpacked: Path, expected: dict[str, object], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(unpacked, folder)
    for path in [*folder.rglob("*.toml"), *folder.rglob("*.json")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(str(unpacked), str(folder)), encoding="utf-8")
    command(folder, "train", "run.toml", "--out", "run", "--resume", "--set", "train.epochs=4")
    bundle = wd.Bundle.load(folder / "run" / "bundle")
    np.testing.assert_allclose(scores(bundle, folder), expected["resumed"], rtol=0, atol=1e-5)


def test_a_run_starts_a_warm_one(unpacked: Path, tmp_path: Path) -> None:
    words = ("train", "run.toml", "--warm-start", "run", "--set", "data.train=next.parquet")
    done = command(unpacked, *words, "--out", str(tmp_path / "warm"), "--json")
    carried = json.loads((tmp_path / "warm" / "warm_start.json").read_text(encoding="utf-8"))
    assert carried, done.stdout
    assert wd.Bundle.load(tmp_path / "warm" / "bundle")


def test_published_versions_are_served_as_they_were(
    unpacked: Path, expected: dict[str, dict[str, list[float]]]
) -> None:
    for version in ("1", "2"):
        bundle = wd.Bundle.load(unpacked / "models" / version)
        got = scores(bundle, unpacked)
        np.testing.assert_allclose(got, expected["published"][version], rtol=0, atol=1e-6)
    listed = command(unpacked, "inspect", "models").stdout
    assert "withdrawn" in listed


def test_a_joined_dataset_is_trained_on(unpacked: Path, tmp_path: Path) -> None:
    words = ("init", "examples", "--label", "label", "-o", str(tmp_path / "ads.toml"))
    command(unpacked, *words)
    run = str(tmp_path / "run")
    command(unpacked, "train", str(tmp_path / "ads.toml"), "--out", run, "--set", "train.epochs=1")
    assert wd.Bundle.load(Path(run) / "bundle")
