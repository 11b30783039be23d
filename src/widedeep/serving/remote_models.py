"""A directory of versions behind a URL, as a local one that holds what was fetched of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from widedeep.bundle.manifest import MANIFEST, check_files, read_manifest
from widedeep.bundle.patch import read_patch
from widedeep.errors import ConfigError
from widedeep.files import atomic_directory, locked, write_text_whole
from widedeep.remote import RemoteFile, RemoteFolder, RemoteUnavailable
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
        self._remote = RemoteFolder(url)
        self.url = self._remote.url
        self._cache = default_cache() if cache is None else Path(cache)
        self.root = self._cache / "remote" / self._remote.cache_name
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
            files = self._remote.files()
        except RemoteUnavailable:
            if self._listing is None and (listing := self._fetched()):
                self._listing = listing
                return listing
            raise
        with locked(self.root / ".lock"):
            listing = self._versions(files)
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

    def _versions(self, files: dict[str, RemoteFile]) -> dict[str, Signature]:
        self.is_bundle = MANIFEST in files
        by_version: dict[str, list[tuple[str, int, int, int]]] = {}
        for path, file in sorted(files.items()):
            version, _, name = path.rpartition("/")
            version = version or (self.url.rpartition("/")[2] if self.is_bundle else "")
            if version and "/" not in version and not version.startswith((".", "_")):
                number = int.from_bytes(hashlib.sha256(file.tag.encode()).digest()[:7], "big")
                by_version.setdefault(version, []).append((name, file.size, number, 0))
        # The manifest is written last.
        whole = [v for v, entries in by_version.items() if any(e[0] == MANIFEST for e in entries)]
        return {version: tuple(by_version[version]) for version in sorted(whole, key=version_key)}

    def _bring_state(self) -> None:
        """Write the state behind the URL to ``root``; with the lock held."""
        state, file = self._remote.look(STATE), self.root / STATE
        if state is None:
            file.unlink(missing_ok=True)
            self._state_tag = ""
        elif state.tag != self._state_tag and (text := self._remote.read(STATE)) is not None:
            write_text_whole(file, text.decode())
            self._state_tag = state.tag

    @contextlib.contextmanager
    def changing_state(self) -> Iterator[None]:
        """Bring the state, let it be changed in ``root``, and write it behind the URL."""
        with locked(self.root / ".lock"):
            if self.is_bundle:  # it has no directory in which a state could lie
                yield
                return
            self._bring_state()
            yield
            self._remote.write(STATE, (self.root / STATE).read_bytes())
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
        prefix = "" if self.is_bundle else f"{version}/"
        with locked(self.root / f".{version}.lock"):
            if self._fetched().get(version) != signature:
                with atomic_directory(folder) as temporary:
                    for name, *_ in signature:
                        self._remote.fetch(f"{prefix}{name}", temporary / name)
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
