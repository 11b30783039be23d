"""A directory of versions behind a URL, as a local one that holds what was fetched of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from widedeep.bundle.manifest import MANIFEST, check_files, read_manifest
from widedeep.bundle.patch import read_patch
from widedeep.errors import ConfigError
from widedeep.files import atomic_directory, locked, write_text_whole
from widedeep.remote import RemoteFile, RemoteUnavailable, open_filesystem, remote_errors
from widedeep.serving.loading import default_cache
from widedeep.serving.versions import Signature, version_key

STATE = "serving.json"
_FETCHED = "_fetched"  # What each version that is here was, as JSON


class RemoteModels:
    """The versions of a model behind a URL, or one bundle there.

    ``root`` is a local directory that has a folder for each of them, empty until :meth:`fetch`,
    and the servers' state; all processes of this user share it. What is there already serves on
    while the connection is lost.

    Args:
        url: The directory of versions, a run's folder, or a bundle.
        cache: Where ``root`` is made; None: the user's cache.
    """

    def __init__(self, url: str, cache: str | os.PathLike[str] | None = None) -> None:
        self.url = url.rstrip("/")
        self._fs, self._path = open_filesystem(self.url)
        name = self.url.rpartition("/")[2]
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        folder = default_cache() if cache is None else Path(cache)
        self._cache = folder
        self.root = folder / "remote" / f"{name}-{digest}"
        try:
            (self.root / _FETCHED).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"{self.root}: versions behind {url} cannot be kept there ({error.strerror}); name "
                "another directory with --cache"
            ) from error
        self._listing: dict[str, Signature] | None = None
        self._state_tag = ""
        self.is_bundle = False

    def refresh(self) -> dict[str, Signature]:
        """Look at the URL: return the complete versions, and bring the servers' state.

        Raises:
            DataError: If there is no such bucket, or access is refused.
            RemoteUnavailable: If the connection is lost, and that is not the first look at
                versions some of which were fetched before.
        """
        try:
            with remote_errors(self.url):
                infos = self._fs.find(self._path, detail=True)
        except RemoteUnavailable:
            if self._listing is None and (listing := self._fetched()):
                self._listing = listing
                return listing
            raise
        tags = self._tags(infos)
        with locked(self.root / ".lock"):
            listing = self._versions(tags)
            for name in listing:
                (self.root / name).mkdir(exist_ok=True)
            for folder in self.root.iterdir():
                is_version = folder.is_dir() and not folder.name.startswith((".", "_"))
                if is_version and folder.name not in listing:
                    shutil.rmtree(folder, ignore_errors=True)
                    (self.root / _FETCHED / folder.name).unlink(missing_ok=True)
            if not self.is_bundle:
                self._bring_state()
        self._listing = listing
        return listing

    def _tags(self, infos: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """Return size and a number of the tag of each file, by its path in the directory."""
        tags = {}
        for path, info in infos.items():
            file = RemoteFile.of(self._fs, self.url, info)
            number = int.from_bytes(hashlib.sha256(file.tag.encode()).digest()[:7], "big")
            tags[str(path)[len(self._path) :].strip("/")] = (file.size, number)
        return tags

    def _versions(self, tags: dict[str, tuple[int, int]]) -> dict[str, Signature]:
        self.is_bundle = MANIFEST in tags
        files: dict[str, list[tuple[str, int, int, int]]] = {}
        for path, (size, number) in sorted(tags.items()):
            version, _, file = path.rpartition("/")
            version = version or (self.url.rpartition("/")[2] if self.is_bundle else "")
            if version and "/" not in version and not version.startswith((".", "_")):
                files.setdefault(version, []).append((file, size, number, 0))
        # The manifest is written last.
        whole = [v for v, entries in files.items() if any(e[0] == MANIFEST for e in entries)]
        return {version: tuple(files[version]) for version in sorted(whole, key=version_key)}

    def _bring_state(self) -> None:
        """Write the state behind the URL to ``root``; with the lock held."""
        url, file = f"{self.url}/{STATE}", self.root / STATE
        with remote_errors(url):
            try:
                tag = RemoteFile.of(self._fs, url, self._fs.info(f"{self._path}/{STATE}")).tag
                if tag != self._state_tag:
                    text = self._fs.cat_file(f"{self._path}/{STATE}").decode()
                    write_text_whole(file, text)
                    self._state_tag = tag
            except FileNotFoundError:
                file.unlink(missing_ok=True)
                self._state_tag = ""

    @contextlib.contextmanager
    def changing_state(self) -> Iterator[None]:
        """Bring the state, let it be changed in ``root``, and write it behind the URL."""
        with locked(self.root / ".lock"):
            if self.is_bundle:  # it has no directory in which a state could lie
                yield
                return
            self._bring_state()
            yield
            with remote_errors(f"{self.url}/{STATE}"):
                self._fs.pipe_file(f"{self._path}/{STATE}", (self.root / STATE).read_bytes())
            self._state_tag = ""

    def fetch(self, version: str) -> Path:
        """Return a version's folder; its files, and those of a patch's base, are here afterwards.

        Raises:
            BundleError: If what came is no whole bundle.
            RemoteUnavailable: If the connection is lost.
        """
        if self._listing is None:
            self.refresh()
        signature = (self._listing or {}).get(version, ())
        folder, marker = self.root / version, self.root / _FETCHED / version
        remote = self._path if self.is_bundle else f"{self._path}/{version}"
        with locked(self.root / f".{version}.lock"):
            if self._fetched().get(version) != signature:
                with atomic_directory(folder) as temporary:
                    for name, *_ in signature:
                        with remote_errors(f"{self.url}/{version}/{name}"):
                            self._fs.get_file(f"{remote}/{name}", str(temporary / name))
                    if read_patch(temporary) is None:
                        check_files(temporary, read_manifest(temporary), verify=True)
                write_text_whole(marker, json.dumps(signature))
        patch = read_patch(folder)
        if patch is not None and self.is_bundle:  # what it applies to lies beside it
            parent, _, name = self.url.rpartition("/")
            return RemoteModels(parent, self._cache).fetch(name)
        if patch is not None and patch.version in (self._listing or {}):
            self.fetch(patch.version)
        return folder

    def _fetched(self) -> dict[str, Signature]:
        """Return what was fetched and is still here."""
        fetched: dict[str, Signature] = {}
        for marker in (self.root / _FETCHED).iterdir():
            if (self.root / marker.name / MANIFEST).is_file():
                with contextlib.suppress(ValueError, OSError):
                    entries = json.loads(marker.read_text(encoding="utf-8"))
                    fetched[marker.name] = tuple(tuple(entry) for entry in entries)
        return fetched
