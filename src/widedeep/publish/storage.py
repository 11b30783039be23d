"""Storage of published versions: a local directory, or a URL that fsspec opens."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import BundleError, ConfigError, DataError
from widedeep.files import file_sha256, fsync_path, locked, write_text_whole
from widedeep.remote import RemoteFolder, is_url, local_path, remote_errors
from widedeep.serving.loading import whole_bundle
from widedeep.serving.remote_models import STATE, RemoteModels
from widedeep.serving.versions import (
    Latest,
    ServingState,
    find_versions,
    make_plan,
    parse_state,
    read_state,
    state_path,
    version_key,
)

__all__ = ["bundle_in_service"]

RECORDS = "_published"
"""Folder of records beside the versions; servers ignore names with a leading underscore."""

_LOCK = ".publish.lock"
_MADE = ".publish-"
_PENDING = ".pending"  # suffix of a record whose version may not exist yet

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class ModelStore(Protocol):
    """A directory of versions, with their records."""

    name: str

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Exclude other publishers."""

    def versions(self) -> list[str]:
        """Return the complete versions, oldest first."""

    def served(self) -> str | None:
        """Return the version that takes the traffic, by the state of the directory."""

    def state(self) -> ServingState:
        """Return what operators have set."""

    def records(self) -> dict[str, str]:
        """Return the records' texts by version."""

    def identity(self, version: str) -> str | None:
        """Return the SHA-256 of a version's manifest; None if it does not exist."""

    def bundle(self, version: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a version as a local directory."""

    def put(self, bundle: Path, version: str, record: str) -> None:
        """Write a bundle and its record as a version, atomically."""


def open_store(models: str | os.PathLike[str]) -> ModelStore:
    """Return the store of a path or a URL (``s3://bucket/models``)."""
    text = os.fspath(models)
    if is_url(text):
        return FsspecStore(text)
    root = Path(local_path(text))
    if (root / MANIFEST).is_file():
        raise ConfigError(
            f"{root}: is itself a bundle; name a directory in which each version has its own"
        )
    return LocalStore(root)


class LocalStore:
    """A local directory: a version is copied to a temporary name, synced, and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other publishers; delete leftovers of interrupted ones."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / _LOCK, 0o644):
            for leftover in self.root.glob(f"{_MADE}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._settle()
            yield

    def _settle(self) -> None:
        """Settle the pending records of interrupted publishers: keep those whose version exists."""
        for pending in (self.root / RECORDS).glob(f"*{_PENDING}"):
            if (self.root / pending.stem).is_dir():
                pending.replace(pending.with_suffix(".json"))
            else:
                pending.unlink()

    def versions(self) -> list[str]:
        """Return the versions, oldest first."""
        return list(find_versions(self.root)) if self.root.is_dir() else []

    def served(self) -> str | None:
        """Return the version that takes the traffic by the state and the directory."""
        return make_plan(self.versions(), Latest(), self.state(), ()).default

    def state(self) -> ServingState:
        """Return what operators have set."""
        return read_state(state_path(self.root))

    def records(self) -> dict[str, str]:
        """Return the records' texts by version."""
        folder = self.root / RECORDS
        texts: dict[str, str] = {}
        for pending in folder.glob(f"*{_PENDING}"):
            if (self.root / pending.stem).is_dir():
                with contextlib.suppress(FileNotFoundError):  # it has its final name by now
                    texts[pending.stem] = pending.read_text(encoding="utf-8")
        for file in sorted(folder.glob("*.json")):
            texts[file.stem] = file.read_text(encoding="utf-8")
        return texts

    def identity(self, version: str) -> str | None:
        """Return the SHA-256 of a version's manifest; None if it does not exist."""
        manifest = self.root / version / MANIFEST
        return file_sha256(manifest) if manifest.is_file() else None

    @contextlib.contextmanager
    def bundle(self, version: str) -> Iterator[Path]:
        """Yield the directory of a version; of a patch, that of the whole bundle."""
        with whole_bundle(self.root / version) as path:
            yield path

    def put(self, bundle: Path, version: str, record: str) -> None:
        """Copy, sync and rename the bundle."""
        temporary = Path(tempfile.mkdtemp(prefix=_MADE, dir=self.root))
        try:
            for file in sorted(bundle.iterdir()):
                shutil.copyfile(file, temporary / file.name)
                fsync_path(temporary / file.name)
            fsync_path(temporary)
            temporary.chmod(0o755)
            (self.root / RECORDS).mkdir(exist_ok=True)
            pending = self.root / RECORDS / f"{version}{_PENDING}"
            write_text_whole(pending, record)
            fsync_path(self.root / RECORDS)
            os.rename(temporary, self.root / version)
            fsync_path(self.root)
            os.replace(pending, pending.with_suffix(".json"))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


class FsspecStore:
    """A directory behind a URL. Object stores cannot rename, so the manifest is written last."""

    def __init__(self, url: str) -> None:
        self._remote = RemoteFolder(url)
        self.name = self._remote.url

    def _names(self, folder: str = "") -> list[str]:
        path, entries = f"{self._remote.path}/{folder}".rstrip("/"), []
        with remote_errors(self.name), contextlib.suppress(FileNotFoundError):
            entries = self._remote.fs.ls(path, detail=False, refresh=True)
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock nothing: :meth:`put` claims a version by its record."""
        with remote_errors(self.name):
            self._remote.fs.makedirs(f"{self._remote.path}/{RECORDS}", exist_ok=True)
        yield

    def versions(self) -> list[str]:
        """Return the versions whose manifest is there, oldest first."""
        names = [name for name in self._names() if not name.startswith((".", "_"))]
        whole = [name for name in names if self._remote.look(f"{name}/{MANIFEST}") is not None]
        return sorted(whole, key=version_key)

    def served(self) -> str | None:
        """Return the version that takes the traffic by the state and the directory."""
        return make_plan(self.versions(), Latest(), self.state(), ()).default

    def state(self) -> ServingState:
        """Return what operators have set."""
        raw = self._remote.read(STATE)
        return ServingState() if raw is None else parse_state(raw, f"{self.name}/{STATE}")

    def records(self) -> dict[str, str]:
        """Return the records' texts by version."""
        names = sorted(name for name in self._names(RECORDS) if name.endswith(".json"))
        texts = {name: self._remote.read(f"{RECORDS}/{name}") for name in names}
        return {n.removesuffix(".json"): t.decode() for n, t in texts.items() if t is not None}

    def identity(self, version: str) -> str | None:
        """Return the SHA-256 of a version's manifest; None if it does not exist."""
        manifest = self._remote.read(f"{version}/{MANIFEST}")
        return None if manifest is None else hashlib.sha256(manifest).hexdigest()

    @contextlib.contextmanager
    def bundle(self, version: str) -> Iterator[Path]:
        """Fetch a version to the user's cache, and yield its directory there, whole."""
        remote = RemoteModels(self.name)
        try:
            remote.refresh()
            folder = remote.fetch(version)
        except DataError as error:
            raise BundleError(
                f"{self.name}/{version}: cannot be fetched ({error}); check the connection and "
                "the permissions"
            ) from error
        with whole_bundle(folder) as path:
            yield path

    def put(self, bundle: Path, version: str, record: str) -> None:
        """Claim the version by its record, then write the bundle, its manifest last."""
        self._remote.write(f"{RECORDS}/{version}.json", record.encode(), mode="create")
        with remote_errors(self.name):
            self._remote.fs.makedirs(f"{self._remote.path}/{version}", exist_ok=True)
        for file in sorted(bundle.iterdir(), key=lambda file: (file.name == MANIFEST, file.name)):
            self._remote.send(file, f"{version}/{file.name}")


@contextlib.contextmanager
def bundle_in_service(models: ModelStore | str | os.PathLike[str]) -> Iterator[Path | None]:
    """Yield the bundle that takes the traffic; None where nothing was ever published.

    One behind a URL is fetched, and is gone again afterwards.

    Args:
        models: The directory of versions, or its URL.

    Raises:
        BundleError: If versions were published and none of them serves, or it cannot be fetched.

    Example:
        >>> with bundle_in_service("no such folder yet") as serving:
        ...     print(serving)
        None
    """
    store = open_store(models) if isinstance(models, str | os.PathLike) else models
    version = store.served()
    if version is None:
        names = sorted({*store.versions(), *store.records()})
        if names:
            raise BundleError(
                f"{store.name}: the model in service is gone: versions {', '.join(names)} were "
                "published, and none of them is there and in service; restore one, or publish "
                "another by force (--force --reason TEXT)"
            )
        yield None
        return
    with store.bundle(version) as path:
        yield path
