"""RemoteRun: a run behind a URL, trained in a folder here that is copied there as it grows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from widedeep.bundle.manifest import MANIFEST
from widedeep.cli.output import say
from widedeep.errors import ConfigError, DataError
from widedeep.files import locked, write_text_whole
from widedeep.remote import (
    RemoteFile,
    RemoteUnavailable,
    is_url,
    open_filesystem,
    open_output,
    remote_errors,
)
from widedeep.serving.loading import default_cache

_KNOWN = ".remote.json"  # What each file was, here and there, when they were the same
_LAST = ("state.json", MANIFEST)  # Without it a checkpoint's or a bundle's folder is not whole
_STEP = re.compile(r"(checkpoints|stream)/step-(\d+)/state\.json")
_STATE = ("checkpoints", "stream")
_NOT_SENT = ("encoded",)  # Rows as ids: they are made again from the data
_PERIOD_S = 2.0
_PAUSE_S = (1.0, 60.0)  # First and longest pause between tries at the end
_GIVE_UP_S = 600.0


class RemoteRun:
    """A run's folder behind a URL, and a folder here: what is written there, or a copy to read.

    Args:
        url: The run's folder.
        writes: Train there; else read.
    """

    def __init__(self, url: str, *, writes: bool = False) -> None:
        self.url = url.rstrip("/")
        self._fs, self._path = (open_output if writes else open_filesystem)(self.url)
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        name = self.url.rpartition("/")[2]
        kind = "runs" if writes else "copies"
        self.folder = default_cache().parent / kind / f"{name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ending = threading.Event()
        self._is_away = False

    # ---- what is there --------------------------------------------------------------------------

    def listing(self) -> dict[str, RemoteFile]:
        """Return the files behind the URL by their path in the run."""
        with remote_errors(self.url):
            infos = self._fs.find(self._path, detail=True)
        return {
            str(path)[len(self._path) :].strip("/"): RemoteFile.of(self._fs, self.url, info)
            for path, info in infos.items()
        }

    def begin(self, *, resume: bool, force: bool) -> None:
        """Bring a run that goes on, and refuse one that would be overwritten.

        Raises:
            ConfigError: If a run is there, and it is neither to go on nor to be replaced.
        """
        files = self.listing()
        if resume:
            if _progress(files) > _progress(self._local()):
                self.fetch(files)
            return
        holds_run = any(name == "config.toml" or _STEP.fullmatch(name) for name in files)
        if holds_run and not force:
            raise ConfigError(
                f"{self.url}: holds a run; --resume trains it on, --force replaces it, --out URL "
                "writes elsewhere"
            )
        if force:
            shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700)

    def fetch(
        self, files: dict[str, RemoteFile] | None = None, *, checkpoints: bool = True
    ) -> Path:
        """Bring the run here, without what is whole here already; return its folder.

        Args:
            files: From :meth:`listing`.
            checkpoints: Bring them too.
        """
        files = self.listing() if files is None else files
        with locked(self.folder / ".lock"):
            known = self._known()
            wanted = [
                name
                for name in sorted(files, key=_order)
                if _is_whole(name, files) and (checkpoints or name.split("/")[0] not in _STATE)
            ]
            for name in self._local().keys() - set(wanted):
                (self.folder / name).unlink(missing_ok=True)
            for name in wanted:
                file, local = files[name], self.folder / name
                if known.get(name, {}).get("there") == [file.size, file.tag] and local.exists():
                    continue
                local.parent.mkdir(parents=True, exist_ok=True)
                partial = local.with_name(f".{local.name}.fetched")
                with remote_errors(f"{self.url}/{name}"):
                    self._fs.get_file(file.path, str(partial))
                partial.replace(local)
                known[name] = {"here": _stamp(local), "there": [file.size, file.tag]}
            self._keep(known)
        return self.folder

    # ---- what is written ------------------------------------------------------------------------

    @contextlib.contextmanager
    def followed(self) -> Iterator[Path]:
        """Give the folder here, and copy what is written to it; at the end all of it is there."""
        thread = threading.Thread(target=self._follow, name="widedeep-upload", daemon=True)
        thread.start()
        try:
            yield self.folder
        finally:
            self._ending.set()
            thread.join()
            self._finish()

    def _follow(self) -> None:
        while not self._ending.wait(_PERIOD_S):
            with contextlib.suppress(DataError):
                self._try_upload()

    def _finish(self) -> None:
        """Copy what is left, and try again while the connection is lost."""
        pause, end = _PAUSE_S[0], time.monotonic() + _GIVE_UP_S
        while True:
            try:
                self._try_upload()
                return
            except RemoteUnavailable as error:
                if time.monotonic() > end:
                    raise DataError(
                        f"{error}; the run is whole in {self.folder}, and the same command with "
                        "--resume sends it"
                    ) from error
                say(f"widedeep: {self.url}: tried again in {pause:g} s")
                time.sleep(pause)
                pause = min(2 * pause, _PAUSE_S[1])

    def _try_upload(self) -> None:
        try:
            self.upload()
        except DataError as error:
            if not self._is_away:
                say(f"widedeep: {error}; what is written is kept in {self.folder} and sent later")
            self._is_away = True
            raise
        if self._is_away:
            say(f"widedeep: {self.url}: reached again, all that was written is there")
        self._is_away = False

    def upload(self) -> None:
        """Copy what changed: a folder's last file after its others, the run's own files last."""
        with locked(self.folder / ".lock"):
            known, local = self._known(), self._local()
            try:
                for folder in sorted({_folder(name) for name in local}, key=_folder_order):
                    names = [name for name in local if _folder(name) == folder]
                    changed = [n for n in names if known.get(n, {}).get("here") != local[n]]
                    if changed:
                        self._send(folder, sorted(names, key=_order), changed, local, known)
                if "config.toml" in local:  # else it has not begun, and nothing is replaced
                    gone = sorted(self.listing().keys() - local.keys(), key=_order, reverse=True)
                    for name in (n for n in gone if n.split("/")[0] not in _NOT_SENT):
                        with remote_errors(f"{self.url}/{name}"):
                            self._fs.rm_file(f"{self._path}/{name}")
                        known.pop(name, None)
            finally:
                self._keep(known)

    def _send(
        self,
        folder: str,
        names: list[str],
        changed: list[str],
        local: dict[str, list[int]],
        known: dict[str, Any],
    ) -> None:
        """Send a folder's changed files; not its last one if the folder changed meanwhile."""
        last = names[-1] if folder and PurePosixPath(names[-1]).name in _LAST else None
        with remote_errors(f"{self.url}/{folder}"):
            if last in known and known[last]["here"] != local[last]:
                self._fs.rm_file(f"{self._path}/{last}")
                known.pop(last)
            for name in changed:
                path = self.folder / name
                try:
                    self._fs.put_file(str(path), f"{self._path}/{name}")
                except FileNotFoundError:
                    if path.exists():
                        raise
                    return  # pruned since it was listed
                file = RemoteFile.of(self._fs, self.url, self._fs.info(f"{self._path}/{name}"))
                if not path.exists() or _stamp(path) != local[name]:
                    return  # written anew: the next time
                known[name] = {"here": local[name], "there": [file.size, file.tag]}

    # ---- the folder here ------------------------------------------------------------------------

    def _local(self) -> dict[str, list[int]]:
        """Return size and time of change of the files here, by their path in the run."""
        files = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name[0] != "." and name not in _NOT_SENT]
            for name in names:
                path = Path(parent) / name
                with contextlib.suppress(FileNotFoundError):  # pruned since
                    if name[0] != ".":
                        files[path.relative_to(self.folder).as_posix()] = _stamp(path)
        return {name: files[name] for name in sorted(files, key=_order)}

    def _known(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, Any] = json.loads((self.folder / _KNOWN).read_text(encoding="utf-8"))
            return known
        return {}

    def _keep(self, known: dict[str, Any]) -> None:
        write_text_whole(self.folder / _KNOWN, json.dumps(known))


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _folder_order(folder: str) -> tuple[bool, int, str]:
    """Order folders: those of checkpoints before what names them, the run's own files last."""
    return not folder, -folder.count("/"), folder


def _order(name: str) -> tuple[bool, int, str, bool, str]:
    """Order files: the one without which a folder is not whole is its last."""
    last = PurePosixPath(name).name in (*_LAST, "metrics.json")
    return *_folder_order(_folder(name)), last, name


def _is_whole(name: str, files: Container[str]) -> bool:
    """Tell whether a file belongs to a folder that has its last file."""
    folder = _folder(name)
    is_state = folder.count("/") == 1 and folder.split("/")[0] in _STATE
    if not is_state and folder not in ("bundle", "candidate"):
        return True
    return f"{folder}/{_LAST[0] if is_state else MANIFEST}" in files


def _progress(names: Iterable[str]) -> tuple[int, int, bool]:
    """Return the newest steps of a run and of its stream, and whether the run is finished."""
    names = set(names)
    steps = {kind: 0 for kind in _STATE}
    for match in filter(None, map(_STEP.fullmatch, names)):
        steps[match[1]] = max(steps[match[1]], int(match[2]))
    return steps["stream"], steps["checkpoints"], "metrics.json" in names


@contextlib.contextmanager
def run_folder(out: str | None, *, resume: bool, force: bool) -> Iterator[str | None]:
    """Give the folder that a run is trained in: ``out``, or one here that is copied to that URL."""
    if out is None or not is_url(out):
        yield out
        return
    remote = RemoteRun(out, writes=True)
    remote.begin(resume=resume, force=force)
    with remote.followed() as folder:
        yield str(folder)


def fetched_run(path: str, *, checkpoints: bool = False) -> Path | None:
    """Bring a run from behind a URL; None if there is no run."""
    remote = RemoteRun(path)
    files = remote.listing()
    if "config.toml" not in files:
        return None
    return remote.fetch(files, checkpoints=checkpoints)
