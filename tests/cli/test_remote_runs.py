"""Runs behind URLs: sent as they grow, taken up elsewhere; a lost connection loses nothing."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.command_line import Run
from tests.object_store import bucket, s3_endpoint  # noqa: F401
from tests.ranks.threads import run_threads
from widedeep import remote
from widedeep.bundle.manifest import MANIFEST
from widedeep.cli import remote_runs
from widedeep.cli.remote_runs import RemoteRun, run_folder
from widedeep.errors import ConfigError, DataError
from widedeep.ranks.ranks import Ranks


def contents(folder: Path, *but: str) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in but and not file.name.startswith(".")
    }


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Begin with an empty cache, as a machine does that never saw the run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def test_a_run_goes_on_elsewhere(
    ads_run: Path,
    run: Run,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The bundle is that of a run which was never interrupted."""
    url, words = f"{bucket}/run", ("train", ads_run / "ads.toml")
    another_machine(monkeypatch, tmp_path / "one")
    first = run(*words, "--out", url, "--set", "train.epochs=1")
    assert first.code == 0, first.err
    assert f"run: {url}" in first.out
    refused = run(*words, "--out", url)
    assert refused.code == 2
    assert f"{url}: holds a run; --resume trains it on, --force replaces it" in refused.err
    another_machine(monkeypatch, tmp_path / "two")
    assert run(*words, "--out", url, "--resume").code == 0
    another_machine(monkeypatch, tmp_path / "three")
    fetched = RemoteRun(url).fetch()
    # The schema's counts of the first call and of the second one are the same; times differ.
    assert contents(fetched / "bundle") == contents(ads_run / "run" / "bundle")
    one, other = contents(fetched / "checkpoints"), contents(ads_run / "run" / "checkpoints")
    assert one.keys() == other.keys()


def test_verbs_take_the_url_of_a_run(
    ads_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    another_machine(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    url, here = f"memory://{tmp_path.name}/run", ads_run / "run"
    written = RemoteRun(url, writes=True)
    shutil.copytree(here, written.folder, dirs_exist_ok=True)
    written.upload()
    evaluated, same = (run("evaluate", where, "--json") for where in (url, here))
    document = json.loads(evaluated.out)
    assert document["metrics"] == json.loads(same.out)["metrics"]
    assert document["bundle"] == f"{url}/bundle" and f"test data of {url} (" in document["note"]
    assert f"next: widedeep export {url} -o bundles/run" in run("evaluate", url).out
    exported = run("export", url, "-o", "exported", "--tables", "int8")
    assert exported.code == 0 and f"from {url}/" in exported.out
    assert (tmp_path / "exported" / MANIFEST).is_file()
    small = ("--set", "gate.min_rows=100", "--set", "gate.max_latency_ms=1e4")
    judged = run("validate", url, *small)
    assert judged.code == 0, judged.out + judged.err
    assert f"{url}/bundle: it may serve" in judged.out and f"test data of {url} (" in judged.out
    assert f"verdict: {url}/bundle.verdict.json; look at {url}/bundle.verdict.html" in judged.out
    published = run("publish", url, "models")
    assert published.code == 0, published.err
    warm = ("train", ads_run / "ads.toml", "--set", "train.epochs=1", "--out", "warm", "--json")
    started = run(*warm, "--warm-start", url)
    assert started.code == 0, started.err
    moved = {row["name"]: row for row in json.loads(started.out)["warm_start"]["moved"]}
    assert moved["table/job"]["optimizer"] == "carried"  # of its checkpoint, not of its bundle
    again = run(
        "export", f"memory://{tmp_path.name}/run/bundle", "-o", "packed", "--tables", "bf16"
    )
    assert again.code == 0, again.err


@pytest.mark.parametrize("name", ["run", "bundles/1"])
def test_a_verdict_lies_beside_the_bundle_where_any_machine_finds_it(
    ads_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fs, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/{name}"
    bundle = f"{url}/bundle" if name == "run" else url
    fs.put(str(ads_run / "run"), f"/{tmp_path.name}/run", recursive=True)
    fs.put(str(ads_run / "run" / "bundle"), f"/{tmp_path.name}/bundles/1", recursive=True)
    judge = ("validate", url, "--data", ads_run / "test.parquet", "--set")
    another_machine(monkeypatch, tmp_path / "one")
    assert run(*judge, "gate.min_rows=100", "--set", "gate.max_latency_ms=1e4").code == 0
    another_machine(monkeypatch, tmp_path / "two")
    assert run("publish", url, "models").code == 0
    another_machine(monkeypatch, tmp_path / "three")
    assert run(*judge, "gate.min_rows=1000000").code == 1  # it takes the place of the first
    another_machine(monkeypatch, tmp_path / "two")
    stopped = run("publish", url, "others")
    assert stopped.code == 1 and "did not pass the gate" in stopped.err

    def refused(*_: Any) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(type(fs), "put_file", refused)
    kept = run(*judge, "gate.min_rows=1000000")
    assert kept.code == 1
    assert f"{bundle}.verdict.html: access is refused (read only)" in kept.err
    file = Path(kept.err.split()[-1])
    assert kept.err.rstrip().endswith(f"name it, widedeep publish --verdict {file}")
    assert not json.loads(file.read_text())["passed"]


def test_ranks_copy_a_run_once_from_a_folder_that_they_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    another_machine(monkeypatch, tmp_path)
    url = f"memory://{tmp_path.name}/ranks"

    def train(ranks: Ranks) -> str:
        with run_folder(url, ranks, resume=False, force=False) as folder:
            assert folder is not None
            if ranks.is_first:
                (Path(folder) / "config.toml").write_text("x = 1")
            ranks.barrier()
            return folder

    folders = run_threads(3, train)
    assert len(set(folders)) == 1
    assert RemoteRun(url).listing().keys() == {"config.toml"}

    monkeypatch.setattr(remote_runs, "_reads", lambda file, text: False)
    refused = run_threads(2, lambda ranks: train(ranks))
    assert all("holds a run; --resume" in str(error) for error in refused)
    url = f"memory://{tmp_path.name}/elsewhere"
    first, second = run_threads(2, train)
    assert isinstance(first, ConfigError) and "rank 0 of 2" not in str(first)
    for part in ("another folder here, or none; set XDG_CACHE_HOME", f"export DIR -o {url}"):
        assert part in str(first) and part in str(second)


class Store:
    """A run behind a URL whose connection is lost now and then."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.remote = RemoteRun(url, writes=True)
        self.lines: list[str] = []
        self.failures = 0
        monkeypatch.setattr(remote_runs, "say", self.lines.append)
        monkeypatch.setattr(remote_runs, "_PAUSE_S", (0.01, 0.02))
        put = self.remote._remote.fs.put_file

        def put_file(local: str, path: str, **options: Any) -> None:
            if self.failures > 0:
                self.failures -= 1
                raise ConnectionError(errno.ECONNRESET, "the connection was reset")
            put(local, path, **options)

        monkeypatch.setattr(self.remote._remote.fs, "put_file", put_file)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    another_machine(monkeypatch, tmp_path / "cache")
    return Store(f"memory://{tmp_path.name}/run", monkeypatch)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_a_lost_connection_is_told_of_once_and_nothing_is_lost(store: Store) -> None:
    with store.remote.followed() as folder:
        write(folder, "config.toml", "x = 1")
        write(folder, "bundle/weights.safetensors", "weights")
        write(folder, "bundle/manifest.json", "{}")
        store.failures = 5
    lost, *tries, back = store.lines
    assert "cannot be read (the connection was reset)" in lost or "connection was reset" in lost
    assert f"what is written is kept in {folder} and sent later" in lost
    assert len(tries) == 5 and all("tried again in 0.0" in line for line in tries)
    assert back.endswith("reached again, all that was written is there")
    assert contents(RemoteRun(store.remote.url).fetch()) == contents(folder)


def test_a_connection_that_stays_lost_is_an_error_that_says_what_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_runs, "_GIVE_UP_S", 0.05)
    with (
        pytest.raises(DataError, match=r"the run is whole in .* --resume sends it"),
        store.remote.followed() as folder,
    ):
        write(folder, "config.toml", "x = 1")
        store.failures = 1 << 20
    store.failures = 0
    store.remote.begin(resume=True, force=False)  # nothing is there: what is here is further
    store.remote.upload()
    assert contents(RemoteRun(store.remote.url).fetch()) == {"config.toml": b"x = 1"}


def test_a_folder_without_its_last_file_is_not_taken(store: Store) -> None:
    folder, step = store.remote.folder, "checkpoints/step-0000000008"
    write(folder, "config.toml", "x = 1")
    for name in ("tensors.safetensors", "schema.safetensors", "state.json"):
        write(folder, f"{step}/{name}", name)
    store.remote.upload()
    store.remote._remote.fs.rm_file(f"{store.remote._remote.path}/{step}/state.json")
    assert contents(RemoteRun(store.remote.url).fetch()) == {"config.toml": b"x = 1"}
    shutil.rmtree(folder / "checkpoints")
    store.remote.upload()
    assert RemoteRun(store.remote.url).listing().keys() == {"config.toml"}


def test_what_replaces_a_bundle_comes_without_its_manifest_first(store: Store) -> None:
    folder = store.remote.folder
    write(folder, "config.toml", "x = 1")
    for text in ("old", "new weights"):
        write(folder, "bundle/weights.safetensors", text)
        write(folder, "bundle/manifest.json", f"manifest of {text}")
        store.failures = int(text != "old")
        if store.failures:
            with pytest.raises(DataError):
                store.remote.upload()
            assert "bundle/manifest.json" not in RemoteRun(store.remote.url).listing()
        store.remote.upload()
        assert contents(RemoteRun(store.remote.url).fetch()) == contents(folder)


def test_nothing_there_is_deleted_before_a_run_begins(store: Store) -> None:
    write(store.remote.folder, "config.toml", "x = 1")
    write(store.remote.folder, "metrics.json", "{}")
    store.remote.upload()
    with pytest.raises(ConfigError, match="holds a run; --resume trains it on, --force"):
        store.remote.begin(resume=False, force=False)
    store.remote.begin(resume=False, force=True)
    store.remote.upload()
    assert RemoteRun(store.remote.url).listing().keys() == {"config.toml", "metrics.json"}
    write(store.remote.folder, "config.toml", "x = 22")
    store.remote.upload()
    assert RemoteRun(store.remote.url).listing().keys() == {"config.toml"}


def test_files_of_others_stay(store: Store) -> None:
    """A run that is sent, and --force too, delete a run's files alone."""
    fs, path = store.remote._remote.fs, store.remote._remote.path
    for name in ("notes.txt", "other/config.toml", "other/bundle/manifest.json"):
        fs.pipe_file(f"{path}/{name}", b"another's")
    store.remote.begin(resume=False, force=False)
    for text in ("x = 1", "x = 22"):
        write(store.remote.folder, "config.toml", text)
        write(store.remote.folder, "candidate.verdict.json", "{}")
        store.remote.upload()
        present = RemoteRun(store.remote.url).listing().keys()
        assert {"notes.txt", "other/config.toml", "other/bundle/manifest.json"} < present
        assert "candidate.verdict.json" in present
        store.remote.begin(resume=False, force=True)
    write(store.remote.folder, "config.toml", "x = 333")
    store.remote.upload()
    assert "candidate.verdict.json" not in RemoteRun(store.remote.url).listing()


def test_a_folder_with_some_of_a_run_is_not_written_over(store: Store) -> None:
    store.remote._remote.fs.pipe_file(
        f"{store.remote._remote.path}/checkpoints/mine.ckpt", b"another's"
    )
    with pytest.raises(ConfigError, match="holds a run"):
        store.remote.begin(resume=False, force=False)


def test_nothing_is_asked_of_the_store_where_nothing_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store.remote.folder, "config.toml", "x = 1")
    store.remote.upload()
    for name in ("find", "put_file", "cat_file", "info"):
        monkeypatch.setattr(store.remote._remote.fs, name, None, raising=False)
    store.remote.upload()


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, folder: Path) -> RemoteRun:
    """Take the run up on another machine."""
    another_machine(monkeypatch, folder)
    other = RemoteRun(store.remote.url, writes=True)
    other.begin(resume=True, force=False)
    return other


def test_of_two_that_write_the_first_stops(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, mine = store.remote.url, store.remote.folder
    stops = pytest.raises(DataError, match=r"another run writes there by now \(process \d+ on ")
    with stops, store.remote.followed() as folder:
        write(folder, "config.toml", "x = 1")
        store.remote.upload()
        other = elsewhere(store, monkeypatch, tmp_path / "other")
        assert other.folder != mine
        write(other.folder, "metrics.json", "theirs")
        other.upload()
        write(folder, "metrics.json", "mine")
        with pytest.raises(DataError, match="nothing more of this one is sent"):
            store.remote.upload()
    assert f"what is written is kept in {mine}" in store.lines[-1]
    assert "sent later" not in store.lines[-1]
    assert contents(RemoteRun(url).fetch())["metrics.json"] == b"theirs"
    # Taken up here again, it is what the other wrote that goes on.
    store.remote.begin(resume=True, force=False)
    assert contents(mine)["metrics.json"] == b"theirs"
    assert "another machine wrote there; going on from that" in store.lines[-1]


def test_what_was_not_sent_goes_on_where_nobody_else_wrote(store: Store) -> None:
    """After a lost connection and a killed process, in the middle of sending."""
    step = "checkpoints/step-0000000008"
    write(store.remote.folder, "config.toml", "x = 1")
    store.remote.upload()
    for name in ("schema.safetensors", "state.json", "tensors.safetensors"):
        write(store.remote.folder, f"{step}/{name}", name)
    before = (store.remote.folder / remote_runs._ENTRIES).read_bytes()
    store.remote._remote.fs.put_file(
        str(store.remote.folder / step / "schema.safetensors"),
        f"{store.remote._remote.path}/{step}/schema.safetensors",
    )
    (store.remote.folder / remote_runs._ENTRIES).write_bytes(before)
    again = RemoteRun(store.remote.url, writes=True)
    again.begin(resume=True, force=False)
    assert f"{step}/state.json" in contents(again.folder)
    again.upload()
    assert contents(RemoteRun(again.url).fetch()) == contents(again.folder)


def test_what_was_deleted_there_is_sent_again(store: Store) -> None:
    write(store.remote.folder, "config.toml", "x = 1")
    store.remote.upload()
    store.remote._remote.fs.rm(store.remote._remote.path, recursive=True)
    again = RemoteRun(store.remote.url, writes=True)
    again.begin(resume=True, force=False)
    again.upload()
    assert again.listing().keys() == {"config.toml"}


def test_a_run_is_trained_by_one_command_on_a_machine(store: Store) -> None:
    other = RemoteRun(store.remote.url, writes=True)
    refused = pytest.raises(ConfigError, match="another process trains this run here")
    with store.remote.alone(), refused, other.alone():
        pass
    with other.alone():
        pass


def test_the_error_of_a_run_is_told_and_not_that_of_the_connection(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_runs, "_GIVE_UP_S", 0.05)
    with pytest.raises(ConfigError, match="of the run"), store.remote.followed() as folder:
        write(folder, "config.toml", "x = 1")
        store.failures = 1 << 20
        raise ConfigError("of the run")
    assert any("connection was reset" in line for line in store.lines)


def test_an_address_that_cannot_be_reached_is_no_missing_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bucket:
        """A file system that hides errors where it is asked whether something is there."""

        def __init__(self, error: Exception) -> None:
            self.error = error

        def exists(self, path: str) -> bool:
            return False

        def ls(self, path: str, detail: bool) -> list[str]:
            raise self.error

    for error, message in (
        (PermissionError("Unable to locate credentials"), "give credentials: AWS_ACCESS_KEY_ID"),
        (ConnectionError("no route"), r"cannot be read \(no route\)"),
        (FileNotFoundError(), "there is no 'bucket' there"),
    ):
        fs = Bucket(error)
        monkeypatch.setattr(remote, "open_filesystem", lambda url, fs=fs: (fs, "bucket/run"))
        with pytest.raises(DataError, match=message):
            remote.open_output("s3://bucket/run")


def test_what_lies_beside_a_run_that_is_read_stays(store: Store) -> None:
    write(store.remote.folder, "config.toml", "x = 1")
    write(store.remote.folder, "bundle/manifest.json", "{}")
    store.remote.upload()
    reader = RemoteRun(store.remote.url)
    write(reader.fetch(), "bundle.verdict.json", "{}")
    (store.remote.folder / "bundle/manifest.json").unlink()
    store.remote.upload()
    assert contents(reader.fetch()).keys() == {"config.toml", "bundle.verdict.json"}
