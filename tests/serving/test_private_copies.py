"""Private copies: as the bundle was, shared, deleted with their last holder, whole or refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.bundle import models
from tests.serving.versions import eventually, publish
from widedeep.bundle import Bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.serving import loading as private_copies
from widedeep.serving.loading import PrivateCopies, default_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return publish(tmp_path / "models", "1", seed=1).path


def scores(path: Path) -> list[float]:
    return np.asarray(Bundle.load(path).score(models.rows(20))).tolist()


def test_a_copy_scores_as_the_bundle_did_whatever_becomes_of_it(
    bundle: Path, tmp_path: Path
) -> None:
    right = scores(bundle)
    copies = PrivateCopies(tmp_path / "cache")
    copy = copies.take(bundle)
    loaded = Bundle.load(copy.path)
    for file in bundle.iterdir():
        os.truncate(file, 10)
    assert np.asarray(loaded.score(models.rows(20))).tolist() == right == scores(copy.path)
    assert copies.directory.stat().st_mode & 0o777 == 0o700
    copy.close()
    copy.close()
    assert list(copies.directory.iterdir()) == []
    # What is mapped lives on without its name.
    assert np.asarray(loaded.score(models.rows(20))).tolist() == right


def test_holders_share_one_copy_and_the_last_deletes_it(bundle: Path, tmp_path: Path) -> None:
    one, two = PrivateCopies(tmp_path / "cache"), PrivateCopies(tmp_path / "cache")
    first, second = one.take(bundle), two.take(bundle)
    assert first.path == second.path
    inode = (first.path / "weights.safetensors").stat().st_ino
    first.close()
    assert (second.path / "weights.safetensors").stat().st_ino == inode
    PrivateCopies(tmp_path / "cache")  # another server's start deletes nothing that is held
    assert scores(second.path) == scores(bundle)
    second.close()
    assert not second.path.exists()


def test_threads_that_take_and_close_at_once_find_whole_copies(
    bundle: Path, tmp_path: Path
) -> None:
    copies, failures = PrivateCopies(tmp_path / "cache"), []

    def work() -> None:
        for _ in range(40):
            copy = copies.take(bundle)
            try:
                Bundle.load(copy.path)
            except Exception as error:
                failures.append(error)
            copy.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and list(copies.directory.iterdir()) == []


HOLDER = """
import sys, time
from widedeep.serving.loading import PrivateCopies
copy = PrivateCopies(sys.argv[2]).take(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_held_is_deleted_at_the_next_start(
    bundle: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(bundle), str(cache)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    PrivateCopies(cache)
    assert any(path.is_dir() for path in cache.iterdir())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (cache / f"{'0' * 64}.made").mkdir()
    (cache / f"{'0' * 64}.lock").touch()
    PrivateCopies(cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("way", ["in the kernel", "as bytes"])
def test_a_bundle_that_changes_while_it_is_copied_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "as bytes":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    copy_file = private_copies._copy_file

    def changing(source: Path, target: Path) -> None:
        copy_file(source, target)
        if source.name == "schema.safetensors":
            weights = bundle / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:-4] + b"oops")

    right = scores(bundle)
    copies = PrivateCopies(tmp_path / "cache")
    copy = copies.take(bundle)
    assert scores(copy.path) == right
    copy.close()
    names = sorted(file.name for file in bundle.iterdir())
    assert names.index("schema.safetensors") < names.index("weights.safetensors")
    monkeypatch.setattr(private_copies, "_copy_file", changing)
    with pytest.raises(BundleError, match=rf"{bundle}/weights.safetensors: its SHA-256"):
        copies.take(bundle)
    assert not any(path.is_dir() for path in copies.directory.iterdir())


def test_only_a_whole_bundle_of_regular_files_is_copied(bundle: Path, tmp_path: Path) -> None:
    copies = PrivateCopies(tmp_path / "cache")
    with pytest.raises(BundleError, match="expected a bundle"):
        copies.take(tmp_path / "none")
    (bundle / "more").touch()
    with pytest.raises(BundleError, match="does not know"):
        copies.take(bundle)
    (bundle / "more").unlink()
    metrics = bundle / "metrics.json"
    whole = metrics.read_bytes()
    metrics.unlink()
    os.mkfifo(metrics)
    with pytest.raises(BundleError):
        copies.take(bundle)
    metrics.unlink()
    metrics.write_bytes(whole)
    os.rename(metrics, tmp_path / "elsewhere")
    metrics.symlink_to(tmp_path / "elsewhere")
    copy = copies.take(bundle)
    assert (copy.path / "metrics.json").is_file()
    assert not (copy.path / "metrics.json").is_symlink()
    copy.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_copy_that_finds_no_room_says_where_and_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(private_copies, "_copy_file", full)
    copies = PrivateCopies(tmp_path / "cache")
    with pytest.raises(BundleError, match=r"no private copy can be made in .*cache.*--cache") as e:
        copies.take(bundle)
    assert isinstance(e.value.__cause__, OSError)
    assert list(copies.directory.iterdir()) == []


def test_a_cache_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--cache"):
        PrivateCopies(tmp_path / "file" / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_cache() == tmp_path / f"widedeep-{os.getuid()}" / "serving"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_cache() == tmp_path / "cache" / "widedeep" / "serving"


def test_a_cache_that_is_taken_away_while_it_is_used_is_made_again(
    bundle: Path, tmp_path: Path
) -> None:
    copies = PrivateCopies(tmp_path / "cache")
    first = copies.take(bundle)
    import shutil

    shutil.rmtree(copies.directory)
    second = copies.take(bundle)
    assert scores(second.path) == scores(bundle)
    first.close()
    assert scores(second.path) == scores(bundle)
    second.close()
    eventually(lambda: not second.path.exists())
