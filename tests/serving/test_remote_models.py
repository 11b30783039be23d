"""Versions behind a URL: fetched, checked, swapped; a lost connection changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests.command_line import Run
from tests.object_store import bucket, s3_endpoint  # noqa: F401
from tests.serving import versions
from tests.serving.versions import ITEMS, USER, eventually, whole_rows
from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import BundleError, ConfigError
from widedeep.publish import publish
from widedeep.publish.storage import FsspecStore
from widedeep.serving.registry import NoVersion, Registry
from widedeep.serving.remote_models import RemoteModels


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FsspecStore]:
    """A store in memory with the versions 9 and 10, whose bundles lie in ``tmp_path/local``."""
    store = FsspecStore(f"memory://{tmp_path.name}/models")
    for version in ("9", "10"):
        put(store, tmp_path, version)
    yield store
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def put(store: FsspecStore, folder: Path, version: str, seed: int | None = None) -> Path:
    bundle = folder / "local" / version
    versions.publish(bundle.parent, version, seed=int(version) if seed is None else seed)
    publish(bundle, store.name, version=version, force=True, reason="a test")
    return bundle


def registry_of(store: FsspecStore, folder: Path) -> Registry:
    return Registry(store.name, poll_s=0.02, cache=folder / "cache")


def answer(registry: Registry) -> tuple[str, list[float]]:
    with registry.lease("r") as served:
        prices = [float(number) for number in range(len(ITEMS))]
        ranking = served.rank(USER, candidates={"app": ITEMS, "price": prices})
        scores = np.empty(len(ITEMS))
        scores[ranking.positions] = ranking.scores
        return served.version, scores.tolist()


def expected(bundle: Path) -> list[float]:
    scores = Bundle.load(bundle).score(whole_rows(ITEMS))
    assert not isinstance(scores, dict)
    return scores.tolist()


def lose_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise ConnectionResetError("connection lost")

    fs = type(fsspec.filesystem("memory"))
    for name in ("find", "get_file", "cat_file"):
        monkeypatch.setattr(fs, name, lost)


def test_a_published_version_is_fetched_and_takes_the_traffic(
    store: FsspecStore, tmp_path: Path
) -> None:
    with registry_of(store, tmp_path) as registry:
        assert registry.wait_ready(30)
        assert answer(registry) == ("10", expected(tmp_path / "local" / "10"))
        assert not any((registry.root / "9").iterdir())  # nobody asked for it
        bundle = put(store, tmp_path, "11")
        eventually(lambda: answer(registry)[0] == "11")
        assert answer(registry)[1] == expected(bundle)
        assert registry.rollback(wait_s=30) == "10"
        assert store.served() == "10"
        with registry_of(store, tmp_path / "other") as other:
            assert other.wait_ready(30)
            assert answer(other) == ("10", expected(tmp_path / "local" / "10"))
            other.load("11", wait_s=30)
            eventually(lambda: answer(registry)[0] == "11")
        with pytest.raises(NoVersion, match="'12'"):
            registry.load("12")


def test_a_damaged_download_is_fetched_again(
    store: FsspecStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = type(fsspec.filesystem("memory"))
    get_file = fs.get_file

    def damage(self: Any, path: str, target: str, **options: Any) -> None:
        get_file(self, path, target, **options)
        if path.endswith("weights.safetensors"):
            content = Path(target).read_bytes()
            Path(target).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    models = RemoteModels(store.name, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(fs, "get_file", damage)
        with pytest.raises(BundleError, match=r"weights\.safetensors"):
            models.fetch("10")
    assert expected(models.fetch("10")) == expected(tmp_path / "local" / "10")


def test_a_lost_connection_keeps_what_serves(
    store: FsspecStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry_of(store, tmp_path) as registry:
        assert registry.wait_ready(30)
        with monkeypatch.context() as patch:
            lose_connection(patch)
            eventually(lambda: registry.problem is not None)
            assert "cannot be read (connection lost)" in str(registry.problem)
            assert answer(registry)[0] == "10"
            # A server that starts now serves what was fetched before.
            with registry_of(store, tmp_path) as second:
                assert second.wait_ready(30)
                assert answer(second)[0] == "10"
            with pytest.raises(ConfigError, match="connection lost"):
                registry_of(store, tmp_path / "empty").start()
        put(store, tmp_path, "11")
        eventually(lambda: answer(registry)[0] == "11")
        assert registry.problem is None


def test_a_version_is_served_whole_or_not_at_all(store: FsspecStore, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}/models"
    with registry_of(store, tmp_path) as registry:
        assert registry.wait_ready(30)
        bundle = tmp_path / "local" / "11"
        versions.publish(bundle.parent, "11", seed=11)
        for file in sorted(bundle.iterdir()):
            if file.name != MANIFEST:
                fs.put_file(str(file), f"{root}/11/{file.name}")
        registry._watcher.look()
        assert [status.version for status in registry.status()] == ["9", "10"]
        damaged = bytearray(fs.cat_file(f"{root}/11/weights.safetensors"))
        damaged[-1] ^= 1
        fs.pipe_file(f"{root}/11/weights.safetensors", bytes(damaged))
        fs.put_file(str(bundle / MANIFEST), f"{root}/11/{MANIFEST}")
        eventually(lambda: registry.status()[-1].state == "failed")
        assert "weights.safetensors" in str(registry.status()[-1].error)
        assert answer(registry)[0] == "10"
        fs.put_file(str(bundle / "weights.safetensors"), f"{root}/11/weights.safetensors")
        eventually(lambda: answer(registry)[0] == "11")
        fs.rm(f"{root}/11", recursive=True)
        eventually(lambda: answer(registry)[0] == "10")
        eventually(lambda: not (registry.root / "11").exists())


def test_verbs_take_urls(
    store: FsspecStore, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    code, out, err = run("inspect", store.name)
    assert (code, "next: widedeep report memory://" in out) == (0, True), err
    of_bundle = json.loads(run("inspect", f"{store.name}/9", "--json").out)
    same = json.loads(run("inspect", tmp_path / "local" / "9", "--json").out)
    assert {**of_bundle, "bundle": None} == {**same, "bundle": None}
    code, out, _ = run("rollback", store.name, "--json")
    assert (code, json.loads(out)["version"], store.served()) == (0, "9", "9")
    served = run("inspect", store.name, "--json")
    assert [v["serves"] for v in json.loads(served.out)["versions"]] == [True, False]
    code, _, err = run("rollback", store.name)
    assert (code, "no version before '9'" in err, store.name in err) == (1, True, True)
    rows = "".join(json.dumps(row) + "\n" for row in whole_rows(ITEMS))
    (tmp_path / "rows.jsonl").write_text(rows)
    scored = run("score", store.name, "rows.jsonl", "-o", "-")
    same = run("score", tmp_path / "local" / "9", "rows.jsonl", "-o", "-")
    assert scored.out == same.out
    code, _, err = run("score", store.name, "rows.jsonl", "-o", f"{store.name}/scores.jsonl")
    assert code == 0, err
    with fsspec.open(f"{store.name}/scores.jsonl") as file:
        assert file.read().decode() == same.out
    with fsspec.open(f"{store.name}/rows.jsonl", "w") as file:
        file.write(rows)
    assert run("score", store.name, f"{store.name}/rows.jsonl", "-o", "-").out == same.out
    code, _, err = run("score", "memory://nowhere/models", "rows.jsonl", "-o", "-")
    assert (code, "memory://nowhere/models: got no bundle" in err) == (2, True)


def test_an_object_store(bucket: str, tmp_path: Path) -> None:  # noqa: F811
    store = FsspecStore(f"{bucket}/models")
    for version in ("1", "2"):
        put(store, tmp_path, version)
    with registry_of(store, tmp_path) as registry:
        assert registry.wait_ready(60)
        assert answer(registry) == ("2", expected(tmp_path / "local" / "2"))
        assert registry.rollback(wait_s=60) == "1"
    assert store.served() == "1"
    with pytest.raises(FileExistsError):
        store.put(tmp_path / "local" / "2", "2", "{}")  # another publisher has the number
