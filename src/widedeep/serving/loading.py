"""Loads a ranker from a private copy of a version."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from widedeep.bundle import Bundle, BundleHead
from widedeep.bundle.manifest import MANIFEST, check_files, read_manifest
from widedeep.errors import BundleError, ConfigError
from widedeep.features.spec import item_columns
from widedeep.files import file_sha256
from widedeep.serving.candidates import MAX_VALUES
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.ranker import Ranker
from widedeep.serving.shared_rows import SharedRows

_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
_LOCK, _MAKING, _MADE = ".lock", ".making", ".made"


def default_cache() -> Path:
    """Return the default folder of copies: in the user's cache, else beside temporary files."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [Path(home) / "widedeep" / "serving"]
    places.append(Path(tempfile.gettempdir()) / f"widedeep-{os.getuid()}" / "serving")
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            about = place.stat()
            # Whoever else may write there could change what is served.
            if about.st_uid == os.getuid() and os.access(place, os.W_OK):
                place.chmod(0o700)
                return place
    raise ConfigError(
        f"got no place for private copies of bundles: {' and '.join(map(str, places))} cannot be "
        "written; name a directory of this user's with --cache"
    )


class PrivateCopy:
    """A bundle's files in a directory of this server's; :meth:`close` lets go of them."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        """Let go of the copy; the last process that does deletes it. What is mapped stays."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            try:
                _delete_if_unused(self.path, lock)
            finally:
                os.close(lock)


class PrivateCopies:
    """Copies of bundles in one directory, each kept as long as a process holds it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
        except OSError as error:
            raise ConfigError(
                f"{self.directory}: private copies of bundles cannot be kept there "
                f"({error.strerror or error}); name another directory with --cache"
            ) from error

    def take(self, bundle: str | os.PathLike[str]) -> PrivateCopy:
        """Copy a bundle, or share the copy that another process has made of it."""
        source = Path(bundle)
        manifest = read_manifest(source)
        check_files(source, manifest, verify=False)
        name = file_sha256(source / MANIFEST)
        copy, lock = self.directory / name, self._hold(name)
        try:
            with self._alone(name):
                if not copy.is_dir():
                    self._make(source, [MANIFEST, *manifest.files], copy)
        except BaseException:
            PrivateCopy(copy, lock).close()
            raise
        return PrivateCopy(copy, lock)

    def _hold(self, name: str) -> int:
        """Return a lock that keeps the copy of this name, which may not be made yet."""
        while True:
            lock = self._open(f"{name}{_LOCK}")
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not _is_gone(lock):
                return lock
            os.close(lock)  # deleted by whoever held it last, just now

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keep out who would make the same copy."""
        lock = self._open(f"{name}{_MAKING}")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _open(self, name: str) -> int:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # cleaners of caches take it
        return os.open(self.directory / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def _make(self, source: Path, names: list[str], copy: Path) -> None:
        made = copy.with_name(f"{copy.name}{_MADE}")
        shutil.rmtree(made, ignore_errors=True)
        try:
            made.mkdir(mode=0o700)
            for name in names:
                _copy_file(source / name, made / name)
            check_files(made, read_manifest(made), verify=True)
            made.rename(copy)
        except BundleError as error:
            raise BundleError(str(error).replace(str(made), str(source))) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            raise BundleError(
                f"{source}: no private copy can be made in {self.directory} ({error.strerror}); "
                "make room there, or name another directory with --cache"
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete what no process holds."""
        for path in self.directory.glob(f"*{_LOCK}"):
            with contextlib.suppress(OSError):
                lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    _delete_if_unused(path.with_suffix(""), lock)
                finally:
                    os.close(lock)


def _is_gone(lock: int) -> bool:
    return os.fstat(lock).st_nlink == 0


def _delete_if_unused(copy: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if not _is_gone(lock):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(copy.with_name(f"{copy.name}{_MADE}"), ignore_errors=True)
        for ending in (_MAKING, _LOCK):
            copy.with_name(f"{copy.name}{ending}").unlink(missing_ok=True)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file: by sharing its blocks, inside the kernel, or as bytes, as far as it can."""
    given = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(given).st_mode):
            raise BundleError(f"{source}: got no regular file; export the bundle again")
        with open(target, "wb", buffering=0) as made:
            if not _copy_range(given, made.fileno()):
                with open(given, "rb", closefd=False) as file:
                    shutil.copyfileobj(file, made, 1 << 20)
    finally:
        os.close(given)


def _copy_range(given: int, made: int) -> bool:
    """Let the kernel copy; False, with nothing copied, where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    while True:
        try:
            count = os.copy_file_range(given, made, 1 << 30)
        except OSError as error:
            if copied or error.errno not in _NO_RANGE:
                raise
            return False
        if count == 0:
            return copied > 0 or os.fstat(given).st_size == 0
        copied += count


_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerOptions:
    """How a version's :class:`~widedeep.serving.ranker.Ranker` is made."""

    # The catalogue's Parquet file; None: candidates are given inline
    items: str | os.PathLike[str] | None = None
    item_id: str | None = None  # The catalogue's column of item ids
    # Items that are not in the catalogue are scored as never seen, or refused
    unknown_items: Literal["score", "refuse"] = "score"
    # Of the catalogue's prebuilt rows and of the hidden layers' products
    precision: Literal["float32", "bfloat16"] = "float32"
    max_values: int = MAX_VALUES  # Most ids and numbers that a request may come to
    threads: int = 1  # Threads that a long request is split over
    # Where several processes keep one copy of the catalogue's rows
    shared_rows: SharedRows | None = None
    copies: PrivateCopies | None = None  # Where bundles are copied to before they are served


def load_ranker(
    path: Path,
    options: RankerOptions,
    catalogue: Catalogue | None = None,
    *,
    like: Ranker | None = None,
    files: Path | None = None,
) -> Ranker:
    """Load a version and have it answer the requests stored in its bundle."""
    bundle = _load_bundle(path, files)
    bundle.limit_values(options.max_values)
    if like is not None:
        _check_heads(bundle, like.bundle)
    ranker = Ranker(
        bundle,
        items=catalogue,
        item_id=options.item_id,
        unknown_items=options.unknown_items,
        precision=options.precision,
        threads=options.threads,
        shared_rows=options.shared_rows,
    )
    _answer_stored_requests(bundle, ranker)
    return ranker


def _load_bundle(path: Path, files: Path | None) -> Bundle:
    if files is None:
        return Bundle.load(path)
    try:
        bundle = Bundle.load(files, verify=False)
        bundle._check_warmup()
    except BundleError as error:  # operators know the bundle by where it was published
        raise BundleError(str(error).replace(str(files), str(path))) from error
    bundle.path = path
    return bundle


def _check_heads(bundle: Bundle, serving: Bundle) -> None:
    got, want = _told(bundle), _told(serving)
    if got != want:
        raise BundleError(
            f"{bundle.path}: got a model with the heads {got}, the version that serves has {want}: "
            "it is another model; publish it in a directory of its own"
        )


def _told(bundle: Bundle) -> str:
    def classes(head: BundleHead) -> str:
        names = "".join(f" {name}" for name in head.classes)
        if head.kind != "multiclass":  # its score is the probability of the second class
            return f" of{names}" if names else ""
        return f" of {head.stop - head.start} classes{names}"

    return ", ".join(
        f"{head.name or 'score'} ({head.kind}{classes(head)})" for head in bundle.model.heads
    )


def _answer_stored_requests(bundle: Bundle, ranker: Ranker) -> None:
    """Compare each stored row's score with the one it gets as a request of one candidate."""
    of_item = item_columns(bundle.schema.spec)
    heads = [head.name for head in bundle.model.heads if head.kind != "multiclass"]
    for index, row in enumerate(bundle.warmup.rows):
        # Where no feature is declared to be the item's, those that come with an item are.
        item = {name: [value] for name, value in row.items() if name in of_item or not of_item}
        user = {name: value for name, value in row.items() if name not in item}
        for head in heads if item else []:
            got = float(ranker.rank(user, candidates=item, head=head).scores[0])
            want = float(bundle.warmup.scores[head][index])
            if not abs(got - want) <= _TOLERANCE[ranker.precision] * max(1.0, abs(want)):
                half = ranker.precision == "bfloat16"
                cure = "serve it in float32, or export it" if half else "export it"
                raise BundleError(
                    f"{bundle.path}: stored request {index} is ranked with {got}, it scored {want} "
                    f"when the bundle was written; {cure} with this version"
                )


def lower_thread_priority(niceness: int = 19) -> None:
    """Let this thread run where others leave the processor idle (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
