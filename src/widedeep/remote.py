"""Files behind URLs (``s3://``, ``gs://``, ``abfs://``, ``https://``), opened through fsspec."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.message import Message
from functools import lru_cache, partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, TypeAlias, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np

from widedeep.errors import ConfigError, DataError, MissingPackageError, WideDeepError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "azure", "abfss": "azure"}
_EXTRAS |= {"az": "azure", "http": "http", "https": "http"}
_REFUSED = (
    "Credential",
    "Forbidden",
    "AccessDenied",
    "Authentication",
    "InvalidAccessKeyId",
    "Unauthorized",
)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the machine's "
    "role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY",
    "http": "a URL that this machine may read",
}

_CONNECTIONS = 4  # To object stores and HTTP servers, in a process
_SIGNED_S = 600  # An address that is signed is used so long
_AVOIDED_S = 60.0  # A host that plain HTTP did not read is left to its library so long
_SILENT_S = 30.0  # A connection on which nothing comes so long is lost
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # Between tries to read ranges while a connection is lost
_PATIENCE_S = 10.0  # After so long no other try is begun
_avoided: dict[str, float] = {}  # Such hosts, and until when

Block: TypeAlias = bytes | memoryview
"""The bytes of a range."""
Result = TypeVar("Result")


def is_url(path: object) -> bool:
    """Tell whether a path is a URL of another place than this machine's file system."""
    return isinstance(path, str) and "://" in path and not path.startswith("file://")


def local_path(text: str) -> str:
    """Return a ``file://`` URL as a path; other text as it is."""
    return unquote(urlsplit(text).path) if text.startswith("file://") else text


def check_local(
    path: str | os.PathLike[str], option: str, advice: str = "write it here, then copy it"
) -> None:
    """Refuse a URL where a folder here is written; as a path it would be one named ``s3:``."""
    text = os.fspath(path)
    if "://" in text:
        raise ConfigError(f"{option}: got the URL {text}, expected a local path; {advice}")


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, which keeps no listing, and the path in it.

    Raises:
        MissingPackageError: If the package of that protocol is not installed.
        DataError: If the protocol is not known.
    """
    protocol = url.partition("://")[0]
    extra = _EXTRAS.get(protocol, "publish")
    try:
        import fsspec

        with remote_errors(url):
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise MissingPackageError(
            f"{url}: cannot be opened ({error}); run: pip install 'widedeep[{extra}]'"
        ) from error
    except ValueError as error:
        if protocol in _EXTRAS:
            text = str(error).splitlines()[0]
            raise DataError(
                f"{url}: cannot be opened ({text}); give credentials: {_CREDENTIALS[extra]}"
            ) from error
        raise DataError(
            f"{url}: got the protocol {protocol!r}, which nothing opens ({error}); use s3, gs, "
            "abfs, https, or a local path"
        ) from error
    return fs, str(path).rstrip("/")


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn what a storage library raises into a :class:`DataError` that says what to do."""
    try:
        yield
    except (WideDeepError, ImportError, ValueError, FileExistsError):
        raise
    # Each library has exceptions of its own; few of them are OSErrors.
    except Exception as raised:
        error: BaseException = raised
        if isinstance(error, FileNotFoundError):
            # Of HTTP it stands for any fault: a lost connection, and access that is refused.
            cause = error.__cause__ if url.startswith("http") else None
            if cause is None or getattr(cause, "status", 0) in (404, 410):
                raise DataError(
                    f"{url}: no such file, folder or bucket; check the address and that it was not "
                    "deleted"
                ) from error
            error = cause
        kind = f"{type(error).__name__} {error}"
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, PermissionError) or any(word in kind for word in _REFUSED):
            advice = _CREDENTIALS.get(_EXTRAS.get(url.partition("://")[0], ""), "its library's way")
            message = f"{url}: access is refused ({text}); give credentials: {advice}"
            raise DataError(message) from error
        raise RemoteUnavailable(
            f"{url}: cannot be read ({text}); check the connection, and the endpoint if it is one "
            "of your own (AWS_ENDPOINT_URL)"
        ) from error


class RemoteUnavailable(DataError):
    """A file behind a URL cannot be reached now; it may be later."""


class RangesIgnored(DataError):
    """A server gives nothing but whole files."""

    @classmethod
    def by(cls, url: str) -> RangesIgnored:
        """Return the error of a URL."""
        return cls(
            f"{url}: the server ignores the ranges of bytes that are asked for (HTTP's Range) and "
            "sends the whole file; download it and name the copy, or serve it by nginx or an "
            "object store"
        )


def version_tag(info: Mapping[str, Any] | Message) -> str:
    """Return what tells versions of a file apart; "" if nothing does.

    Args:
        info: What a file system says of the file, or headers of an answer of HTTP.
    """
    keys = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified")
    return next((str(info[k]) for k in (*keys, "mtime", "created") if info.get(k)), "").strip('"')


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, as it was when it was listed."""

    url: str  # As a person names it
    path: str = field(compare=False)  # In the file system
    fs: Any = field(compare=False, repr=False)
    size: int = -1
    tag: str = ""  # Its ETag; where there is none, the time of its last change

    @classmethod
    def of(cls, fs: Any, url: str, info: Mapping[str, Any]) -> RemoteFile:
        """Return a file from what its file system says of it."""
        size = info.get("size")
        return cls(url, str(info["name"]), fs, -1 if size is None else int(size), version_tag(info))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def suffix(self) -> str:
        """The end of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def look(self) -> RemoteFile:
        """Return the file as it is now."""
        with remote_errors(self.url):
            return RemoteFile.of(self.fs, self.url, self.fs.info(self.path))

    @property
    def parent(self) -> RemoteFile:
        """The folder that it lies in."""
        return RemoteFile(self.url.rpartition("/")[0], self.path.rpartition("/")[0], self.fs)

    def __truediv__(self, name: str) -> RemoteFile:
        """Return the file of this name below, which need not exist."""
        return RemoteFile(f"{self.url}/{name}", f"{self.path}/{name}", self.fs)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text of a small file; raise OSError if there is none that may be read."""
        try:
            return str(self.fs.cat_file(self.path), encoding)
        except OSError:
            raise
        except Exception as error:  # each library has exceptions of its own
            raise OSError(f"{self.url}: {error}") from error

    def open(self) -> IO[bytes]:
        """Open it for reading from its start."""
        with remote_errors(self.url):
            file: IO[bytes] = self.fs.open(self.path, "rb")
            return file

    def start_ranges(self, ranges: Sequence[tuple[int, int]]) -> Callable[[], list[Block]]:
        """Begin to fetch ranges [start, stop) of this version; return what waits for their bytes.

        Threads fetch them at the same time: by plain HTTP where that gives them, else as the
        library does.

        What waits raises:
            RangesIgnored: If the server gives nothing but whole files.
            RemoteUnavailable: If the connection is lost, and again when it is tried again.
            DataError: If another version lies there.
        """
        direct = _start_direct(self, ranges)
        if direct is None:
            return _start(lambda connections: self._checked_ranges(ranges)).result

        def blocks() -> list[Block]:
            try:
                with remote_errors(self.url):
                    return direct()
            except RangesIgnored:
                raise
            except Exception:  # each library has exceptions of its own
                _avoid_direct(self)
            return self._checked_ranges(ranges)

        return blocks

    def _checked_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[Block]:
        """Fetch ranges as the library does, if this version lies there yet; try again if lost."""
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        paths, started = [self.path] * len(ranges), time.monotonic()
        for pause in (*_PAUSES_S, None):
            try:
                if self.look() != self:
                    raise self._changed()
                with remote_errors(self.url):
                    blocks = self.fs.cat_ranges(paths, starts, stops, on_error="raise")
                    return self._whole(blocks, ranges)
            except RemoteUnavailable:
                # Some libraries have tried for minutes by then.
                if pause is None or time.monotonic() - started > _PATIENCE_S:
                    raise
                time.sleep(pause)
        raise AssertionError

    def _changed(self) -> DataError:
        return DataError(
            f"{self.url}: changed while being read; leave input files alone during a run"
        )

    def _whole(self, blocks: Sequence[Block], ranges: Sequence[tuple[int, int]]) -> list[Block]:
        """Return blocks that are as long as their ranges; HTTP servers may ignore the ranges."""
        if any(len(b) != stop - start for b, (start, stop) in zip(blocks, ranges, strict=True)):
            raise RangesIgnored.by(self.url)
        return list(blocks)


# ---- ranges over plain HTTP ---------------------------------------------------------------------
# The libraries' event loop copies what comes several times, in one thread. Here each of a few
# threads reads from its own connection into the buffer that Parquet is decoded from.


def _start_direct(
    file: RemoteFile, ranges: Sequence[tuple[int, int]]
) -> Callable[[], list[Block]] | None:
    """Begin to fetch ranges by plain HTTP; return what waits for them, None where it will not do.

    What waits raises whatever goes wrong, such as an answer that is not of this version.
    """
    address = _address_now(file)
    if address is None or _avoided.get(address.netloc, 0.0) > time.monotonic():
        return None
    fetches = [_start(partial(_fetch, file, address, start, stop)) for start, stop in ranges]
    return lambda: [fetch.result() for fetch in fetches]


def _avoid_direct(file: RemoteFile) -> None:
    """Leave a host to its library for a while: it may need a proxy, or certificates."""
    address = _address_now(file)
    if address is not None:
        _avoided[address.netloc] = time.monotonic() + _AVOIDED_S


def _address_now(file: RemoteFile) -> SplitResult | None:
    """Return where plain HTTP gives a file; None where its library alone knows."""
    return _address(file, getattr(file.fs, "_s3", None), int(time.monotonic() // _SIGNED_S))


@lru_cache(maxsize=1024)
def _address(file: RemoteFile, client: object, period: int) -> SplitResult | None:
    """Return the address of a file, by a client of S3, for a period of ``_SIGNED_S``."""
    address = None
    if file.url.startswith("http") and not file.fs.kwargs:  # else headers, a password
        address = urlsplit(file.path)
    elif hasattr(file.fs, "_call_s3"):
        with contextlib.suppress(Exception):  # without credentials its library says so
            address = urlsplit(file.fs.sign(file.path, expiration=6 * _SIGNED_S))
    if address is None or (address.scheme in getproxies() and not proxy_bypass(address.netloc)):
        return None
    return address


def _start(fetch: Callable[[dict[str, HTTPConnection]], Result]) -> Future[Result]:
    """Let one of the fetching threads do what it does with connections of its own."""
    future: Future[Result] = Future()
    _fetch_queue(os.getpid()).put((future, fetch))
    return future


@lru_cache(maxsize=1)
def _fetch_queue(process: int) -> SimpleQueue[Any]:
    """Return the queue of a process's fetching threads, which its end does not wait for."""
    queue: SimpleQueue[Any] = SimpleQueue()
    for _ in range(_CONNECTIONS):
        Thread(target=_serve_fetches, args=(queue,), name="widedeep-fetch", daemon=True).start()
    return queue


def _serve_fetches(queue: SimpleQueue[Any]) -> None:
    connections: dict[str, HTTPConnection] = {}
    while True:
        future, fetch = queue.get()
        try:
            future.set_result(fetch(connections))
        except BaseException as error:
            future.set_exception(error)
        del future, fetch  # what was fetched is freed by who reads it


def _fetch(
    file: RemoteFile,
    address: SplitResult,
    start: int,
    stop: int,
    connections: dict[str, HTTPConnection],
) -> Block:
    """Return the bytes [start, stop), by a connection that is left open or, if it fails, anew."""
    for is_last in (False, True):
        connection = connections.pop(address.netloc, None)
        if connection is None:
            kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
            connection = kind(address.netloc, timeout=_SILENT_S)
        try:
            block = _received(file, connection, address, start, stop)
            connections[address.netloc] = connection
            return block
        except (OSError, HTTPException):
            connection.close()
            if is_last:
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError


def _received(
    file: RemoteFile, connection: HTTPConnection, address: SplitResult, start: int, stop: int
) -> Block:
    target = urlunsplit(("", "", address.path or "/", address.query, ""))
    connection.request("GET", target, headers={"Range": f"bytes={start}-{stop - 1}"})
    with connection.getresponse() as response:
        content_range = response.headers.get("Content-Range")
        if response.status == HTTPStatus.OK:
            raise RangesIgnored.by(file.url)
        if response.status != HTTPStatus.PARTIAL_CONTENT or (
            content_range != f"bytes {start}-{stop - 1}/{file.size}"
            or version_tag(response.headers) != file.tag
        ):
            raise DataError(f"{file.url}: got status {response.status} and range {content_range}")
        block = np.empty(stop - start, np.uint8).data
        n_read = 0
        while n_read < len(block):
            n_new = response.readinto(block[n_read:])
            if not n_new:
                raise ConnectionError(f"connection lost after {n_read:,} of {len(block):,} bytes")
            n_read += n_new
        response.read()  # its end, so that the connection serves the next
    return block


InputPath: TypeAlias = Path | RemoteFile
"""A file of an input, here or behind a URL."""


def readable(file: InputPath) -> Path | IO[bytes]:
    """Return what libraries read a file from: its path, or what is opened behind its URL."""
    return file.open() if isinstance(file, RemoteFile) else file


def open_bytes(file: InputPath) -> IO[bytes]:
    """Open a file here or behind a URL for reading; one in gzip (``.gz``) is decompressed."""
    if file.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(readable(file)))
    return file.open() if isinstance(file, RemoteFile) else open(file, "rb")


def file_size(file: InputPath) -> int:
    """Return a file's size in bytes."""
    return file.size if isinstance(file, RemoteFile) else os.stat(file).st_size


def modified(file: InputPath) -> int | str:
    """Return what changes when a file is written again: its time, or its tag behind a URL."""
    return file.tag if isinstance(file, RemoteFile) else os.stat(file).st_mtime_ns


@contextlib.contextmanager
def output_file(path: str, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a local file to write: the path's, or one that is uploaded if the block ends well.

    One behind a URL is refused if it exists and ``overwrite`` is False.
    """
    if not is_url(path):
        yield Path(local_path(path))
        return
    fs, fs_path = open_output(path)
    with remote_errors(path):
        if not overwrite and fs.exists(fs_path):
            raise DataError(f"{path}: already exists; choose another, or replace it with --force")
    with tempfile.TemporaryDirectory(prefix="widedeep-") as folder:
        file = Path(folder) / path.rpartition("/")[2]
        yield file
        with remote_errors(path):
            fs.put_file(str(file), fs_path)


def open_output(url: str) -> tuple[Any, str]:
    """Return file system and path; before the work, which a wrong address would lose."""
    if url.startswith("http"):
        raise DataError(f"{url}: cannot be written by HTTP; name a local path or an object store")
    fs, path = open_filesystem(url)
    bucket = path.partition("/")[0]
    with remote_errors(url):
        if bucket and not fs.exists(bucket):
            with contextlib.suppress(FileNotFoundError):
                fs.ls(bucket, detail=False)  # raises what exists() hides: credentials, a lost line
            raise DataError(f"{url}: there is no {bucket!r} there; check the address")
    return fs, path


@contextlib.contextmanager
def output_folder(path: str, *, last: str, overwrite: bool) -> Iterator[Path]:
    """Give a local folder to write: the path's, or one that is uploaded if the block ends well.

    Object stores rename nothing, so the file ``last`` is uploaded after all others, and removed
    first where it is replaced: without it the folder does not count. A folder that has no ``last``
    is another's, and not replaced.
    """
    if not is_url(path):
        yield Path(local_path(path))
        return
    folder = RemoteFolder(path, writes=True)
    old = list(folder.files())
    if old and not overwrite:
        raise DataError(f"{path}: already exists; choose another, or replace it with --force")
    if old and last not in old:
        raise DataError(
            f"{path}: got {len(old):,} files and no {last} there, expected what --force may "
            "replace; choose another, or delete it yourself"
        )
    with tempfile.TemporaryDirectory(prefix="widedeep-") as temporary:
        out = Path(temporary) / path.rstrip("/").rpartition("/")[2]
        yield out
        for name in sorted(old, key=lambda name: name != last):
            folder.remove(name)
        for file in sorted(out.iterdir(), key=lambda file: (file.name == last, file.name)):
            folder.send(file, file.name)


class RemoteFolder:
    """A folder behind a URL, of whose files some are here too.

    Args:
        url: The folder.
        writes: Files are to be written there, so its bucket must exist.
    """

    def __init__(self, url: str, *, writes: bool = False) -> None:
        self.url = url.rstrip("/")
        self.fs, self.path = (open_output if writes else open_filesystem)(self.url)

    @property
    def cache_name(self) -> str:
        """The name of the folder here that holds what was fetched of it."""
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return f"{self.url.rpartition('/')[2]}-{digest}"

    def files(self) -> dict[str, RemoteFile]:
        """Return all files, by their path in the folder."""
        with remote_errors(self.url):
            infos = self.fs.find(self.path, detail=True)
        names = {str(path)[len(self.path) :].strip("/"): info for path, info in infos.items()}
        return {n: RemoteFile.of(self.fs, f"{self.url}/{n}", info) for n, info in names.items()}

    def look(self, name: str) -> RemoteFile | None:
        """Return a file as it is now; None if there is none."""
        url = f"{self.url}/{name}"
        with remote_errors(url):
            try:
                return RemoteFile.of(self.fs, url, self.fs.info(f"{self.path}/{name}"))
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """Return what a small file holds; None if there is none."""
        with remote_errors(f"{self.url}/{name}"):
            try:
                return bytes(self.fs.cat_file(f"{self.path}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes, **options: str) -> None:
        """Write a small file; ``mode="create"`` raises FileExistsError if there is one."""
        with remote_errors(f"{self.url}/{name}"):
            self.fs.pipe_file(f"{self.path}/{name}", content, **options)

    def fetch(self, name: str, file: Path) -> None:
        """Copy one of its files to a file here."""
        with remote_errors(f"{self.url}/{name}"):
            self.fs.get_file(f"{self.path}/{name}", str(file))

    def send(self, file: Path, name: str) -> None:
        """Copy a file here to one of its files."""
        with remote_errors(f"{self.url}/{name}"):
            self.fs.put_file(str(file), f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file, which need not be there."""
        with remote_errors(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")


class FileRanges(io.RawIOBase):
    """A file of which some ranges are in memory; reading any other is an error."""

    def __init__(self, size: int, ranges: Iterable[tuple[int, Block]]) -> None:
        self._size, self._ranges, self._offset = size, list(ranges), 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read anywhere."""
        return True

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to where the next byte is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        self._offset = base + offset
        return self._offset

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return bytes(self.read_buffer(size))

    def read_buffer(self, size: int = -1) -> memoryview:
        """Return the next bytes without a copy, which Arrow asks for where it can."""
        stop = self._size if size < 0 else min(self._offset + size, self._size)
        start = min(self._offset, stop)
        for first, block in self._ranges:
            if first <= start and stop <= first + len(block):
                self._offset = stop
                return memoryview(block)[start - first : stop - first]
        raise OSError(f"bytes {start} to {stop} were not fetched")
