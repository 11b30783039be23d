"""Patches as versions: served as the whole bundle would be, whoever is killed meanwhile."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests.bundle.test_patch import WORDS, contents, first_bundle, next_bundle, versions
from tests.serving.versions import eventually
from widedeep.bundle import Bundle
from widedeep.bundle.manifest import PATCH
from widedeep.cli.runs import bundle_path_of, served_bundle
from widedeep.errors import ConfigError, DataError
from widedeep.gate.verdict import bundle_identity
from widedeep.publish import bundle_in_service, publish, read_lineage
from widedeep.publish.publishing import _again
from widedeep.publish.storage import open_store
from widedeep.serving.loading import PrivateCopies
from widedeep.serving.registry import Registry

ROOT = Path(__file__).parents[2]
ROWS = {"word": [f"word {n}" for n in range(0, WORDS, 7)]}


def answer(registry: Registry) -> tuple[str, bytes]:
    with registry.lease("r") as served:
        ranking = served.rank({}, candidates=ROWS)
        scores = np.empty(len(ranking.scores))
        scores[ranking.positions] = ranking.scores
        return served.version, scores.tobytes()


def scores(bundle: Bundle) -> bytes:
    found = bundle.score([{"word": word} for word in ROWS["word"]])
    return np.asarray(found, np.float64).tobytes()


def test_patches_are_served_as_they_come(tmp_path: Path) -> None:
    models, bundles = versions(tmp_path, 2, full_every=5)
    with Registry(models, poll_s=0.02, cache=tmp_path / "cache") as registry:
        assert registry.wait_ready(60)
        assert answer(registry) == ("2", scores(bundles[1]))
        for number in (3, 4):
            bundles.append(next_bundle(bundles[-1], tmp_path / str(number), seed=number))
            publish(bundles[-1].path, models, force=True, reason="a test", full_every=5)
            eventually(lambda name=str(number): answer(registry)[0] == name)  # type: ignore[misc]
            assert answer(registry)[1] == scores(bundles[-1])
        assert registry.rollback() == "3"
        assert [(entry.record.patches, entry.serves) for entry in read_lineage(models)] == [
            (0, False), (1, False), (2, True), (3, False),
        ]  # fmt: skip
    assert contents(served_bundle(models)) == contents(bundles[2].path)
    assert contents(bundle_path_of(models / "2")) == contents(bundles[1].path)


def test_a_version_whose_base_comes_later_is_loaded_then(tmp_path: Path) -> None:
    models, bundles = versions(tmp_path, 2, full_every=5)
    shutil.move(models / "1", tmp_path / "aside")
    with Registry(models, poll_s=0.02, cache=tmp_path / "cache") as registry:
        eventually(lambda: any(entry.error for entry in registry.status()))
        assert "patch of version 1, which is not in" in str(registry.status()[0].error)
        shutil.move(tmp_path / "aside", models / "1")
        eventually(lambda: registry.ready() and answer(registry) == ("2", scores(bundles[1])))


def test_patches_behind_a_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/models"
    _, bundles = versions(tmp_path, 3)
    for bundle in bundles:
        publish(bundle.path, url, force=True, reason="a test", full_every=5)
    present = fsspec.filesystem("memory").find(f"/{tmp_path.name}/models/3")
    assert [Path(name).name for name in present] == ["manifest.json", PATCH]
    with Registry(url, cache=tmp_path / "cache") as registry:
        assert registry.wait_ready(60)
        assert answer(registry) == ("3", scores(bundles[2]))
    with bundle_in_service(url) as path:
        assert path is not None
        assert contents(path) == contents(bundles[2].path)
    assert contents(bundle_path_of(f"{url}/2")) == contents(bundles[1].path)


def test_after_a_damaged_version_comes_a_whole_one(tmp_path: Path) -> None:
    """No server could make what stands on it."""
    models, bundles = versions(tmp_path, 1)
    bundles.append(next_bundle(bundles[0], tmp_path / "2", seed=2))
    file = models / "1" / "weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    record = publish(bundles[1].path, models, force=True, reason="a test", full_every=5)
    assert record.patches == 0
    assert contents(models / "2") == contents(bundles[1].path)


@pytest.mark.parametrize("full_every", [0, -1, 201, 2.5, "3"])
def test_how_often_a_version_is_whole_is_checked(tmp_path: Path, full_every: Any) -> None:
    with pytest.raises(ConfigError, match=r"got full_every=.*, expected a whole number .* to 200"):
        publish(tmp_path, tmp_path, full_every=full_every)


def test_a_cut_upload_leaves_the_versions_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}/cut"
    first = first_bundle(tmp_path / "1")
    publish(first.path, url, force=True, reason="a test", full_every=5)
    second = next_bundle(first, tmp_path / "2", seed=2)

    def cut(fs: object, local: str, path: str) -> None:
        raise ConnectionError("the connection was reset")

    with monkeypatch.context() as patched:
        patched.setattr(type(fsspec.filesystem("memory")), "put_file", cut)
        with pytest.raises(DataError, match="the connection was reset"):
            publish(second.path, url, force=True, reason="a test", full_every=5)
    with bundle_in_service(url) as path:
        assert path is not None and contents(path) == contents(first.path)
    refused = _again(open_store(url), ["1"], bundle_identity(second.path))
    assert refused is not None and "as version 2, which is not there" in refused
    record = publish(second.path, url, force=True, reason="a test", full_every=5)
    assert (record.version, record.parent, record.patches) == ("3", "1", 1)


PUBLISHER = """
import sys, time
from pathlib import Path
from widedeep.publish import publish
folder, models = map(Path, sys.argv[1:])
print("ready", flush=True)
while True:
    names = [p.name for p in models.iterdir() if p.name.isdecimal()] if models.is_dir() else []
    publish(folder / str(len(names) + 1), models, force=True, reason="killed", full_every=4)
    time.sleep(0.1)
"""
SERVER = """
import hashlib, sys
from tests.serving.test_patches import answer
from widedeep.serving.registry import Registry
with Registry(sys.argv[1], poll_s=0.01, cache=sys.argv[2]) as registry:
    registry.wait_ready(60)
    while True:
        version, scores = answer(registry)
        print(version, hashlib.sha256(scores).hexdigest(), flush=True)
"""


def started(script: str, *words: Path) -> subprocess.Popen[str]:
    """Start a process, and wait until it is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_publisher_and_server_are_killed_at_random_moments(tmp_path: Path) -> None:
    """Every version is whole at any time, and every answer is that of its bundle, by bytes."""
    count, chance = 30, random.Random(5)
    bundles = [first_bundle(tmp_path / "1")]
    for number in range(2, count + 1):
        bundles.append(next_bundle(bundles[-1], tmp_path / str(number), seed=number))
    expected = {str(n): sha256(scores(bundle)).hexdigest() for n, bundle in enumerate(bundles, 1)}
    models, whole = tmp_path / "models", set()
    answered: dict[str, str] = {}
    publish(bundles[0].path, models, force=True, reason="killed")
    for _ in range(6):
        server = started(SERVER, models, tmp_path / "cache")
        present = len(list(models.glob("[0-9]*")))
        pair = [server, started(PUBLISHER, tmp_path, models)]
        eventually(lambda: len(list(models.glob("[0-9]*"))) > present)  # noqa: B023
        time.sleep(chance.uniform(0.0, 0.5))
        for victim in chance.sample(pair, 2):
            victim.send_signal(signal.SIGKILL)
            time.sleep(chance.uniform(0.0, 0.1))
        for line in server.communicate()[0].splitlines()[:-1]:  # the last may be cut
            version, got = line.split()
            assert got == expected[version]
            answered[version] = got
        pair[1].communicate()
        for entry in read_lineage(models):
            if entry.exists and entry.version not in whole:
                copy = PrivateCopies(tmp_path / "other").take(models / entry.version)
                assert contents(copy.path) == contents(tmp_path / entry.version)
                whole.add(entry.version)
                copy.close()
        if len(whole) == count:
            break
    assert len(whole) > 3 and len(answered) > 2
