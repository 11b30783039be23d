"""Files behind URLs (``s3://``, ``gs://``, ``abfs://``, ``https://``), opened through fsspec."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from widedeep.errors import ConfigError, DataError, MissingPackageError, WideDeepError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "azure", "abfss": "azure"}
_EXTRAS |= {"az": "azure", "http": "http", "https": "http"}
_REFUSED = ("Credential", "Forbidden", "AccessDenied", "Authentication", "InvalidAccessKeyId")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the machine's "
    "role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY",
    "http": "a URL that this machine may read",
}


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
    except FileNotFoundError as error:
        raise DataError(
            f"{url}: no such file, folder or bucket; check the address and that it was not deleted"
        ) from error
    # Each library has exceptions of its own; few of them are OSErrors.
    except Exception as error:
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
        keys = ("ETag", "etag", "generation", "LastModified", "last_modified", "mtime", "created")
        tag = next((str(info[key]) for key in keys if info.get(key)), "")
        size = info.get("size")
        return cls(url, str(info["name"]), fs, -1 if size is None else int(size), tag.strip('"'))

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

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop), fetched at the same time."""
        with remote_errors(self.url):
            starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
            blocks = self.fs.cat_ranges([self.path] * len(ranges), starts, stops, on_error="raise")
            return [bytes(block) for block in blocks]

    def start_ranges(self, ranges: Sequence[tuple[int, int]]) -> Callable[[], list[bytes]]:
        """Begin to fetch ranges [start, stop) of this version; return what waits for their bytes.

        What waits raises DataError if another version lies there. Where the library reads in the
        calling thread alone, it fetches them then.
        """
        if not getattr(self.fs, "async_impl", False):
            return lambda: self._checked_ranges(ranges)
        fetch = self._fetched_with_tags(ranges)
        future = asyncio.run_coroutine_threadsafe(fetch, self.fs.loop)

        def blocks() -> list[bytes]:
            try:
                fetched, tags = future.result()
            except Exception:  # each library has exceptions of its own; this also retries
                return self._checked_ranges(ranges)
            return fetched if tags == {self.tag} else self._checked_ranges(ranges)

        return blocks

    async def _fetched_with_tags(
        self, ranges: Sequence[tuple[int, int]]
    ) -> tuple[list[bytes], set[str]]:
        """Return the bytes of ranges and the tags of the versions that they come from."""
        fs = self.fs
        if hasattr(fs, "_call_s3"):  # S3 sends the tag along; others are asked for it beside.
            parts = await asyncio.gather(*(self._s3_range(*span) for span in ranges))
            return [block for block, _ in parts], {tag for _, tag in parts}
        paths = [self.path] * len(ranges)
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        info, blocks = await asyncio.gather(
            fs._info(self.path), fs._cat_ranges(paths, starts, stops, on_error="raise")
        )
        return [bytes(block) for block in blocks], {RemoteFile.of(fs, self.url, info).tag}

    async def _s3_range(self, start: int, stop: int) -> tuple[bytes, str]:
        bucket, key, _ = self.fs.split_path(self.path)
        span = f"bytes={start}-{stop - 1}"
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, Range=span)
        with contextlib.closing(answer["Body"]) as body:
            return await body.read(), str(answer["ETag"]).strip('"')

    def _checked_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Fetch ranges as the library does, with its retries, if this version lies there yet."""
        if self.look() != self:
            raise DataError(
                f"{self.url}: changed while being read; leave input files alone during a run"
            )
        return self.read_ranges(ranges)


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
    fs, fs_path = open_output(path)
    with remote_errors(path):
        old = [str(name) for name in fs.find(fs_path)]
    if old and not overwrite:
        raise DataError(f"{path}: already exists; choose another, or replace it with --force")
    if old and f"{fs_path}/{last}" not in old:
        raise DataError(
            f"{path}: got {len(old):,} files and no {last} there, expected what --force may "
            "replace; choose another, or delete it yourself"
        )
    with tempfile.TemporaryDirectory(prefix="widedeep-") as folder:
        out = Path(folder) / path.rstrip("/").rpartition("/")[2]
        yield out
        with remote_errors(path):
            for name in sorted(old, key=lambda name: name != f"{fs_path}/{last}"):
                fs.rm_file(name)
            for file in sorted(out.iterdir(), key=lambda file: (file.name == last, file.name)):
                fs.put_file(str(file), f"{fs_path}/{file.name}")


class FileRanges(io.RawIOBase):
    """A file of which some ranges are in memory; reading any other is an error."""

    def __init__(self, size: int, ranges: Iterable[tuple[int, bytes]]) -> None:
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
