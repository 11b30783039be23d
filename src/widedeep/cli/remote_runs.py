"""RemoteRun: a run behind a URL, trained in a folder here that is copied there as it grows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from widedeep.bundle.manifest import MANIFEST
from widedeep.cli.output import say
from widedeep.errors import ConfigError, DataError
from widedeep.files import locked, try_locked, write_text_whole
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first, shared_failures
from widedeep.remote import RemoteFile, RemoteFolder, RemoteUnavailable, is_url
from widedeep.serving.loading import default_cache

_ENTRIES = ".remote.json"  # What each file was, here and there, when they were the same
_WRITER = ".writer"  # Behind the URL: who wrote there last; here: the same, if that was this folder
_MARK = ".ranks"  # By which the other ranks know the first one's folder
_LAST = ("state.json", MANIFEST)  # Without it a checkpoint's or a bundle's folder is not whole
_OF_RUN = re.compile(
    r"(checkpoints|stream|bundle|candidate)/.+|candidate\.[^/]+|config\.toml|schema\.safetensors|"
    r"(inputs|history|metrics|warm_start|attributions)\.json"
)
_STATE = ("checkpoints", "stream")
_NOT_SENT = ("encoded",)  # Rows as ids: they are made again from the data
_PERIOD_S = 2.0
_PAUSE_S = (1.0, 60.0)  # First and longest pause between tries at the end
_GIVE_UP_S = 600.0


class Superseded(DataError):
    """Another run began to write behind the URL."""


class RemoteRun:
    """A run's folder behind a URL, and a folder here: what is written there, or a copy to read.

    Args:
        url: The run's folder.
        writes: Train there; else read.
    """

    def __init__(self, url: str, *, writes: bool = False) -> None:
        self._remote = RemoteFolder(url, writes=writes)
        self.url = self._remote.url
        kind = "runs" if writes else "copies"
        self.folder = default_cache().parent / kind / self._remote.cache_name
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._writes, self._writer = writes, ""
        self._ending = threading.Event()
        self._is_away = False

    # ---- what is there --------------------------------------------------------------------------

    def listing(self) -> dict[str, RemoteFile]:
        """Return the files behind the URL by their path in the run."""
        return {name: file for name, file in self._remote.files().items() if name != _WRITER}

    def begin(self, *, resume: bool, force: bool) -> None:
        """Bring a run that goes on, and refuse one that would be overwritten.

        A run that goes on is brought unless what is there is what this folder sent: then the folder
        is as new, or newer.

        Raises:
            ConfigError: If a run is there, and it is neither to go on nor to be replaced.
        """
        files = self.listing()
        tags = {name: [file.size, file.tag] for name, file in files.items()}
        if resume:
            entries = self._read_entries()
            is_ours = self._writer_there() == self._read(_WRITER) != ""
            is_new = any(entries.get(name, {}).get("there") != tags[name] for name in tags)
            if is_new and not is_ours:
                if entries:
                    say(f"widedeep: {self.url}: another machine wrote there; going on from that")
                self.fetch(files)
        elif not force and any(map(_OF_RUN.fullmatch, files)):
            raise ConfigError(
                f"{self.url}: holds a run; --resume trains it on, --force replaces it, --out URL "
                "writes elsewhere"
            )
        elif force:
            shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700)
        # What is there and not here is deleted when this run is sent: a run's files, no others.
        entries = self._read_entries()
        entries = {name: entries[name] for name in entries.keys() & tags.keys()}
        for name, tag in tags.items():
            if entries.get(name, {}).get("there") != tag and (
                name in entries or _OF_RUN.match(name)
            ):
                entries[name] = {"here": None, "there": tag}
        self._write_entries(entries)

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
            entries = self._read_entries()
            names = [
                name
                for name in sorted(files, key=_order)
                if _is_whole(name, files) and (checkpoints or name.split("/")[0] not in _STATE)
            ]
            # Where a run is only read, what a verb wrote beside it (a verdict) stays.
            gone = self._local().keys() - set(names) if self._writes else entries.keys() - files
            for name in gone:
                (self.folder / name).unlink(missing_ok=True)
                entries.pop(name, None)
            for name in names:
                file, local = files[name], self.folder / name
                same = {"here": _stamp(local), "there": [file.size, file.tag]}
                if same["here"] is not None and entries.get(name) == same:
                    continue
                local.parent.mkdir(parents=True, exist_ok=True)
                partial = local.with_name(f".{local.name}.fetched")
                self._remote.fetch(name, partial)
                partial.replace(local)
                entries[name] = {"here": _stamp(local), "there": [file.size, file.tag]}
            self._write_entries(entries)
        return self.folder

    # ---- what is written ------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Exclude other processes of this user that would train in the folder here."""
        with try_locked(self.folder.with_name(f"{self.folder.name}.lock")) as is_alone:
            if not is_alone:
                raise ConfigError(
                    f"{self.url}: another process trains this run here, in {self.folder}; wait for "
                    "it or end it, or write elsewhere (--out URL)"
                )
            yield

    @contextlib.contextmanager
    def followed(self) -> Iterator[Path]:
        """Give the folder here, and copy what is written to it; at the end all of it is there."""
        thread = threading.Thread(target=self._follow, name="widedeep-upload", daemon=True)
        thread.start()
        try:
            yield self.folder
        except BaseException:
            self._end(thread)
            with contextlib.suppress(DataError):  # told of; what the run says counts
                self._finish()
            raise
        self._end(thread)
        self._finish()

    def _end(self, thread: threading.Thread) -> None:
        self._ending.set()
        thread.join()

    def _follow(self) -> None:
        while not self._ending.wait(_PERIOD_S):
            with contextlib.suppress(DataError, OSError):
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
        except (DataError, OSError) as error:
            if not self._is_away:
                sent = "" if isinstance(error, Superseded) else " and sent later"
                say(f"widedeep: {error}; what is written is kept in {self.folder}{sent}")
            self._is_away = True
            raise
        if self._is_away:
            say(f"widedeep: {self.url}: reached again, all that was written is there")
        self._is_away = False

    def upload(self) -> None:
        """Copy what changed: a folder's last file after its others, the run's own files last.

        Raises:
            Superseded: If another run has begun to write there since this one did.
        """
        with locked(self.folder / ".lock"):
            entries, local = self._read_entries(), self._local()
            changed = {n for n, stamp in local.items() if entries.get(n, {}).get("here") != stamp}
            # Before there is a configuration, it has not begun, and nothing is replaced.
            gone = entries.keys() - local.keys() if "config.toml" in local else set()
            if not changed and not gone:
                return
            self._claim()
            for folder in sorted({_folder(name) for name in changed}, key=_folder_order):
                names = [name for name in local if _folder(name) == folder]
                self._send(folder, names, [n for n in names if n in changed], local, entries)
            for name in sorted(gone, key=_order, reverse=True):
                self._remote.remove(name)
                self._set_entry(entries, name, None)

    def _claim(self) -> None:
        """Say that this run writes behind the URL; of two, the one that began first stops."""
        if not self._writer:
            writer = f"{uuid.uuid4().hex} {socket.gethostname()} {os.getpid()}"
            write_text_whole(self.folder / _WRITER, writer)
            self._remote.write(_WRITER, writer.encode())
            self._writer = writer
        elif (writer := self._writer_there()) != self._writer:
            _, host, process = (*writer.split(), "", "", "")[:3]
            raise Superseded(
                f"{self.url}: another run writes there by now (process {process or '?'} on "
                f"{host or 'another machine'}), and nothing more of this one is sent; end one of "
                "them, and train with --resume to go on from what is there"
            )

    def _writer_there(self) -> str:
        return (self._remote.read(_WRITER) or b"").decode(errors="replace")

    def _send(
        self,
        folder: str,
        names: list[str],
        changed: list[str],
        local: dict[str, list[int]],
        entries: dict[str, Any],
    ) -> None:
        """Send a folder's changed files; not its last one if the folder changed meanwhile."""
        last = names[-1] if folder and PurePosixPath(names[-1]).name in _LAST else None
        if last in entries and entries[last]["here"] != local[last]:
            self._remote.remove(last)
            self._set_entry(entries, last, None)
        for name in changed:
            path = self.folder / name
            try:
                self._remote.send(path, name)
            except DataError:
                if path.exists():
                    raise
                return  # pruned since it was listed
            file = self._remote.look(name)
            is_same = file is not None and _stamp(path) == local[name]
            here, tag = local[name] if is_same else None, [file.size, file.tag] if file else None
            self._set_entry(entries, name, {"here": here, "there": tag})
            if not is_same:
                return  # written anew: the next time

    # ---- the folder here ------------------------------------------------------------------------

    def _local(self) -> dict[str, list[int]]:
        """Return what tells versions of a file apart, by the files' path in the run."""
        files = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name[0] != "." and name not in _NOT_SENT]
            for name in names:
                path = Path(parent) / name
                stamp = None if name[0] == "." else _stamp(path)
                if stamp is not None:  # else it was pruned since
                    files[path.relative_to(self.folder).as_posix()] = stamp
        return {name: files[name] for name in sorted(files, key=_order)}

    def _read_entries(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            entries: dict[str, Any] = json.loads(self._read(_ENTRIES))
            return entries
        return {}

    def _write_entries(self, entries: dict[str, Any]) -> None:
        write_text_whole(self.folder / _ENTRIES, json.dumps(entries))

    def _set_entry(self, entries: dict[str, Any], name: str, entry: dict[str, Any] | None) -> None:
        """Keep what a file is at once, for the process may be killed."""
        entries.pop(name, None)
        entries |= {} if entry is None else {name: entry}
        self._write_entries(entries)

    def _read(self, name: str) -> str:
        """Return the text of one of the mirror's own files; "" if there is none."""
        with contextlib.suppress(OSError, ValueError):
            return (self.folder / name).read_text(encoding="utf-8")
        return ""


def _stamp(path: Path) -> list[int] | None:
    """Return what changes when a file is written again; None if it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


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


@contextlib.contextmanager
def run_folder(out: str | None, ranks: Ranks, *, resume: bool, force: bool) -> Iterator[str | None]:
    """Give the folder that a run is trained in: ``out``, or one here that is copied to that URL.

    Of several ranks the first one copies, from a folder that all of them see; collective.
    """
    if out is None or not is_url(out):
        yield out
        return
    with contextlib.ExitStack() as stack:

        def begin() -> list[str]:
            remote, mark = RemoteRun(out, writes=True), uuid.uuid4().hex
            stack.enter_context(remote.alone())
            remote.begin(resume=resume, force=force)
            write_text_whole(remote.folder / _MARK, mark)
            return [str(stack.enter_context(remote.followed())), mark]

        folder, mark = on_first(ranks, begin, "the run's folder")
        with shared_failures(ranks):
            if not _reads(Path(folder) / _MARK, mark):
                raise ConfigError(
                    f"--out {out}: {folder}, from which the first rank copies the run, is "
                    "another folder here, or none; set XDG_CACHE_HOME to a folder that all "
                    "machines share, or train into one (--out DIR), then: widedeep export DIR -o "
                    f"{out}"
                )
        yield folder
        with shared_failures(ranks):
            stack.close()


def _reads(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def fetched_run(path: str, *, checkpoints: bool = False) -> Path | None:
    """Bring a run from behind a URL; None if there is no run."""
    remote = RemoteRun(path)
    files = remote.listing()
    if "config.toml" not in files:
        return None
    return remote.fetch(files, checkpoints=checkpoints)
