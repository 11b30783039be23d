"""Private copies of bundles, and rankers loaded from them and checked before they serve."""

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from widedeep.bundle import Bundle, BundleHead
from widedeep.bundle.manifest import MANIFEST, check_files, read_manifest
from widedeep.bundle.patch import apply_patch, find_base, read_patch
from widedeep.errors import BundleError, ConfigError
from widedeep.features.spec import item_columns
from widedeep.files import file_sha256, locked
from widedeep.serving.catalogue import Catalogue, SharedRows
from widedeep.serving.ranker import Ranker, RankerOptions

_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
_LOCK, _COPYING, _PARTIAL = ".lock", ".making", ".made"


def default_cache() -> Path:
    """Return the default folder of copies: in the user's cache, else beside temporary files."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    candidates = [Path(home) / "widedeep" / "serving"]
    candidates.append(Path(tempfile.gettempdir()) / f"widedeep-{os.getuid()}" / "serving")
    for directory in candidates:
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Another user who may write there could change what is served.
            if directory.stat().st_uid == os.getuid() and os.access(directory, os.W_OK):
                directory.chmod(0o700)
                return directory
    raise ConfigError(
        "got no directory for private copies of bundles: "
        f"{' and '.join(map(str, candidates))} cannot be written; name a directory of this "
        "user's with --cache"
    )


class PrivateCopy:
    """A copy of a bundle's files that only this user writes; :meth:`close` releases it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        """Release the copy; the last process that does deletes it. What is mapped stays."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            try:
                _delete_if_unused(self.path, lock)
            finally:
                os.close(lock)


class PrivateCopies:
    """Copies of bundles in one directory, each kept as long as a process uses it."""

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
        """Copy a bundle, or share another process's copy of it.

        Of a patch, its base is copied, from this directory where it has it, and changed before the
        copy gets its name: it is the whole bundle, byte by byte, or there is none.
        """
        source = Path(bundle)
        manifest = read_manifest(source)
        if read_patch(source) is None:
            check_files(source, manifest, verify=False)
        name = file_sha256(source / MANIFEST)
        copy, lock = self.directory / name, self._lock_copy(name)
        try:
            with locked(self.directory / f"{name}{_COPYING}"):  # others may make the same copy
                if not copy.is_dir():
                    self._copy(source, copy)
        except BaseException:
            PrivateCopy(copy, lock).close()
            raise
        return PrivateCopy(copy, lock)

    def _lock_copy(self, name: str) -> int:
        """Return a shared lock that keeps the copy of this name, which may not exist yet."""
        while True:
            # Cleaners of caches may delete the directory.
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self.directory / f"{name}{_LOCK}"
            lock = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not _is_gone(lock):
                return lock
            os.close(lock)  # its last user has just deleted it

    def _copy(self, source: Path, copy: Path) -> None:
        partial = copy.with_name(f"{copy.name}{_PARTIAL}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with self._base(source) as (base, patches):
                partial.mkdir(mode=0o700)
                for name in (MANIFEST, *read_manifest(base).files):
                    _copy_file(base / name, partial / name)
                for patch in patches:
                    apply_patch(patch, partial)
            check_files(partial, read_manifest(partial), verify=True)
            partial.rename(copy)
        except BundleError as error:
            raise type(error)(str(error).replace(str(partial), str(source))) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            raise BundleError(
                f"{source}: no private copy can be made in {self.directory} ({error.strerror}); "
                "make room there, or name another directory with --cache"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def _base(self, source: Path) -> Iterator[tuple[Path, list[Path]]]:
        """Give a whole bundle, here or beside ``source``, and the patches from it to ``source``."""
        patches: list[Path] = []
        with contextlib.ExitStack() as stack:
            while (patch := read_patch(source)) is not None:
                patches.insert(0, source)
                copy = PrivateCopy(self.directory / patch.base, self._lock_copy(patch.base))
                stack.callback(copy.close)
                if copy.path.is_dir():
                    source = copy.path
                    break
                source = find_base(source, patch)
            yield source, patches

    def _sweep(self) -> None:
        """Delete the copies that no process uses."""
        for path in self.directory.glob(f"*{_LOCK}"):
            with contextlib.suppress(OSError):
                lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    _delete_if_unused(path.with_suffix(""), lock)
                finally:
                    os.close(lock)


@contextlib.contextmanager
def whole_bundle(path: Path) -> Iterator[Path]:
    """Give the folder of a bundle; of a patch, that of a whole copy in the user's cache."""
    if read_patch(path) is None:
        yield path
        return
    copy = PrivateCopies(default_cache()).take(path)
    try:
        yield copy.path
    finally:
        copy.close()


def _is_gone(lock: int) -> bool:
    return os.fstat(lock).st_nlink == 0


def _delete_if_unused(copy: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if not _is_gone(lock):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(copy.with_name(f"{copy.name}{_PARTIAL}"), ignore_errors=True)
        for ending in (_COPYING, _LOCK):
            copy.with_name(f"{copy.name}{ending}").unlink(missing_ok=True)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file: by sharing its blocks or inside the kernel where possible, else as bytes."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"{source}: got no regular file; export the bundle again")
        with open(target, "wb", buffering=0) as output:
            if not _copy_in_kernel(descriptor, output.fileno()):
                with open(descriptor, "rb", closefd=False) as file:
                    shutil.copyfileobj(file, output, 1 << 20)
    finally:
        os.close(descriptor)


def _copy_in_kernel(source: int, target: int) -> bool:
    """Let the kernel copy; False, with nothing copied, where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    while True:
        try:
            count = os.copy_file_range(source, target, 1 << 30)
        except OSError as error:
            if copied or error.errno not in _NO_RANGE:
                raise
            return False
        if count == 0:
            return copied > 0 or os.fstat(source).st_size == 0
        copied += count


# Largest difference between a stored request's score and the one it is ranked with.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}


def load_ranker(
    path: Path,
    options: RankerOptions,
    read_items: Callable[[Sequence[str]], Catalogue | None] = lambda null_values: None,
    *,
    serving: Ranker | None = None,
    copy: Path | None = None,
    shared_rows: SharedRows | None = None,
) -> Ranker:
    """Load a version, from its private copy if there is one, and check what it answers."""
    bundle = Bundle.load(path) if copy is None else _load_copy(path, copy)
    bundle.limit_values(options.max_values)
    if serving is not None:
        _check_heads(bundle, serving.bundle)
    items = read_items(bundle.schema.spec.null_values)
    ranker = Ranker(bundle, items=items, shared_rows=shared_rows, options=options)
    _answer_stored_requests(bundle, ranker)
    return ranker


def _load_copy(path: Path, copy: Path) -> Bundle:
    try:
        bundle = Bundle.load(copy, verify=False)  # the files' checksums were compared by the copy
        bundle.check_warmup()
    except BundleError as error:  # operators know the bundle by its published path
        raise BundleError(str(error).replace(str(copy), str(path))) from error
    bundle.path = path
    return bundle


def _check_heads(bundle: Bundle, serving: Bundle) -> None:
    got, expected = _heads_text(bundle), _heads_text(serving)
    if got != expected:
        raise BundleError(
            f"{bundle.path}: got a model with the heads {got}, the version that serves has "
            f"{expected}: it is another model; publish it in a directory of its own"
        )


def _heads_text(bundle: Bundle) -> str:
    def classes(head: BundleHead) -> str:
        names = "".join(f" {name}" for name in head.classes)
        if not head.by_class:  # its score is the probability of the second class
            return f" of{names}" if names else ""
        return f" of {head.stop - head.start} classes{names}"

    return ", ".join(
        f"{head.name or 'score'} ({head.kind}{classes(head)})" for head in bundle.model.heads
    )


def _answer_stored_requests(bundle: Bundle, ranker: Ranker) -> None:
    """Compare each stored row's score with the one it gets as a request of one candidate."""
    of_item = item_columns(bundle.schema.spec)
    heads = [head.name for head in bundle.model.heads if not head.by_class]
    for index, row in enumerate(bundle.warmup.rows):
        # Where no feature is declared to be the item's, those that come with an item are.
        item = {name: [value] for name, value in row.items() if name in of_item or not of_item}
        user = {name: value for name, value in row.items() if name not in item}
        for head in heads if item else []:
            got = float(ranker.rank(user, candidates=item, head=head).scores[0])
            expected = float(bundle.warmup.scores[head][index])
            if not abs(got - expected) <= _TOLERANCE[ranker.precision] * max(1.0, abs(expected)):
                in_bfloat16 = ranker.precision == "bfloat16"
                remedy = "serve it in float32, or export it" if in_bfloat16 else "export it"
                raise BundleError(
                    f"{bundle.path}: stored request {index} is ranked with {got}, it scored "
                    f"{expected} when the bundle was written; {remedy} with this version"
                )


def lower_thread_priority(niceness: int = 19) -> None:
    """Let this thread run where others leave the processor idle (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
