"""The files that a path, a glob or a folder names, and those that are added to a folder."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from widedeep.data.formats import find_format
from widedeep.data.lake_tables import find_table, pinned
from widedeep.data.parquet_input import PARQUET, parquet_metadata
from widedeep.errors import DataError, WideDeepError
from widedeep.remote import (
    InputPath,
    RemoteFile,
    RemoteUnavailable,
    is_url,
    local_path,
    open_filesystem,
    remote_errors,
)

JOIN_KIND = "widedeep examples"  # What the manifest of a join says of itself
_GLOB_CHARACTERS = frozenset("*?[")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_UNFINISHED = (".tmp", ".crc", ".inprogress", "._COPYING_")
_ICEBERG = "metadata/*.metadata.json"
TABLE_FORMATS = (
    ("_delta_log", "Delta Lake", "deltalake.DeltaTable(PATH).to_pyarrow_dataset()"),
    (".hoodie", "Hudi", "hudi.HudiTable(PATH).read_snapshot()"),
    (_ICEBERG, "Iceberg", "a pyiceberg table's scan().to_arrow()"),
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of an input, and what the folders above it say of its rows (``day=7``)."""

    path: InputPath
    partitions: tuple[tuple[str, str | None], ...] = ()  # Column and value of each such folder


def file_to_json(file: InputFile) -> dict[str, Any]:
    """Return what another process needs to open the very file that was listed here."""
    path, told = file.path, {"path": str(file.path), "partitions": file.partitions}
    return {**told, "size": path.size, "tag": path.tag} if isinstance(path, RemoteFile) else told


def file_from_json(told: Mapping[str, Any]) -> InputFile:
    """Return the file that :func:`file_to_json` told of."""
    path: InputPath = Path(told["path"])
    if is_url(told["path"]):
        fs, name = open_filesystem(told["path"])
        path = RemoteFile(told["path"], name, fs, told["size"], told["tag"])
    return InputFile(path, tuple((column, value) for column, value in told["partitions"]))


_PATHS = (str, os.PathLike, InputFile)


def names_files(data: object) -> bool:
    """Tell whether data is a path, a glob, a folder, a table's folder or a list of such."""
    first = data[0] if isinstance(data, Sequence) and data else None
    return isinstance(data, _PATHS) or isinstance(first, _PATHS)


def rows_to_json(data: Any) -> Any:
    """Return what other processes need to open the files, or the table, that data names now."""
    files = input_files(data)
    return pinned(data) if files is None else [file_to_json(file) for file in files]


def rows_from_json(told: Any) -> Any:
    """Return the data that :func:`rows_to_json` told of."""
    return [file_from_json(file) for file in told] if isinstance(told, list) else told


def is_gone(data: object) -> bool:
    """Tell whether data is one local file that no longer exists."""
    path = data.path if isinstance(data, InputFile) else data
    if not isinstance(path, str | os.PathLike) or is_url(path):
        return False
    return not os.path.lexists(local_path(os.fspath(path)))


def input_paths(data: Any) -> list[InputPath] | None:
    """Return the files that a path, glob, folder or list of them names; None for other data."""
    files = input_files(data)
    return None if files is None else [file.path for file in files]


def join_manifest(folder: InputPath) -> Mapping[str, Any] | None:
    """Return what a join says of the dataset in a folder; None of what is none of its."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # none, or some other program's file of that name
    is_join = isinstance(content, Mapping) and content.get("kind") == JOIN_KIND
    return content if is_join else None


def check_output(out: str, data: Any) -> None:
    """Refuse to write a file that is read: its rows would be lost."""
    for path in input_paths(data) or ():
        if str(path) == out or (
            isinstance(path, Path) and os.path.realpath(path) == os.path.realpath(out)
        ):
            raise DataError(
                f"{out}: is an input too, whose rows would be lost; write to another file"
            )


def input_files(data: Any) -> list[InputFile] | None:
    """Return the files of :func:`input_paths` with the partitions that they lie in.

    None for the table of a table format too: its log says which of its files count.

    A folder ``NAME=VALUE`` below a folder that is named, or from the first wildcard of a pattern
    on, is a partition: its rows have the column ``NAME``.
    """
    if not names_files(data):
        return None
    if isinstance(data, _PATHS):
        return None if find_table(data) is not None else _expanded(data)
    for number, item in enumerate(data):
        if not isinstance(item, _PATHS):
            raise DataError(
                f"data[{number}]: got a {type(item).__name__} in a list of paths; expected "
                "paths alone"
            )
    return [file for item in data for file in _expanded(item)]


def local_files(data: Any) -> set[Path]:
    """Return the files of data on this machine's disks; none of a table's, or behind URLs."""
    try:
        files = input_files(data) or []
    except WideDeepError:  # told where they are read
        return set()
    return {file.path.resolve() for file in files if isinstance(file.path, Path)}


def _expanded(item: str | os.PathLike[str] | InputFile) -> list[InputFile]:
    if isinstance(item, InputFile):
        return [item]
    text = local_path(os.fspath(item))
    if is_url(text):
        return _behind_url(text)
    path = Path(text)
    if path.is_dir():
        return _whole_folder(text, [_partitioned(file, path) for file in _walk(path)])
    if path.exists():
        return [InputFile(path)]
    if _GLOB_CHARACTERS & set(text):
        return _matches(text)
    raise DataError(f"{text}: no such file; check the path (the working folder is {Path.cwd()})")


def _partitioned(file: Path, folder: Path) -> InputFile:
    return InputFile(file, _partitions(file.relative_to(folder).parts[:-1], str(file)))


def _partitions(folders: Sequence[str], origin: str) -> tuple[tuple[str, str | None], ...]:
    """Return the partitions that names of folders state, as Hive, Spark and DuckDB write them."""
    pairs = [unquote(name).partition("=") for name in folders if name.find("=") > 0]
    partitions = [(key, None if value == _NULL_PARTITION else value) for key, _, value in pairs]
    if len(dict(partitions)) < len(partitions):
        raise DataError(f"{origin}: two folders above it state the same column; rename one of them")
    return tuple(partitions)


def _whole_folder(folder: str, files: Sequence[InputFile]) -> list[InputFile]:
    formats = [(file, find_format(file.path)) for file in files]
    rows = [file for file, file_format in formats if file_format is PARQUET]
    others = [file for file, file_format in formats if file_format not in (None, PARQUET)]
    if not rows:
        raise DataError(
            f"{folder}: a folder without .parquet files; "
            "name its files by a glob such as 'folder/*.csv'"
        )
    if others:
        raise DataError(
            f"{folder}: a folder of .parquet files that holds {others[0].path} too; move it away, "
            "or name the files by a glob such as 'folder/*.parquet'"
        )
    return rows


def _matches(text: str) -> list[InputFile]:
    path = Path(text)
    anchor = Path(path.anchor)
    pattern = str(path.relative_to(anchor)) if path.anchor else text
    matches = sorted(set(anchor.glob(pattern)))
    visible = [file for file in matches if not _is_left_out(file, path.parts)]
    files = [file for file in visible if file.is_file()]
    # A folder that is matched stands for its files, unless they are matched themselves.
    holders = {parent for file in files for parent in file.parents}
    folders = [folder for folder in visible if folder.is_dir() and folder not in holders]
    for directory in {directory for file in files for directory in file.absolute().parents}:
        _refuse_table_format(directory)
    files = sorted({*files, *(file for folder in folders for file in _parquet_files(folder))})
    if not files:
        raise _nothing_matches(text, len(matches) - len(visible))
    fixed = anchor.joinpath(*_fixed_parts(Path(pattern).parts))
    return [_partitioned(file, fixed) for file in files]


def _nothing_matches(text: str, n_left_out: int) -> DataError:
    hint = f" ({n_left_out} hidden or unfinished are left out)" if n_left_out else ""
    return DataError(f"{text}: no file matches{hint}; check the pattern")


def _fixed_parts(parts: Sequence[str]) -> list[str]:
    """Return the parts of a pattern before its first wildcard."""
    return list(itertools.takewhile(lambda part: not _GLOB_CHARACTERS & set(part), parts))


def _parquet_files(folder: Path, *, looks_above: bool = True) -> list[Path]:
    """Return the Parquet files of a folder and those below it, in the order of their names."""
    files = _walk(folder, looks_above=looks_above)
    return [file for file in files if find_format(file) is PARQUET]


def _walk(folder: Path, *, looks_above: bool = True) -> list[Path]:
    """Return the files of a folder and those below it that are neither hidden nor unfinished."""
    files: list[Path] = []
    seen: set[str] = set()
    for name, below, names in os.walk(folder, followlinks=True):
        directory = Path(name)
        _refuse_listed_table(directory, {*below, *names})
        below[:] = [one for one in below if not _is_hidden(one)]
        if os.path.realpath(directory) in seen:  # a link to a folder above
            below.clear()
            continue
        seen.add(os.path.realpath(directory))
        files += [directory / one for one in names if not _is_hidden(one)]
    for parent in folder.absolute().parents if looks_above else ():
        _refuse_table_format(parent)
    return sorted(file for file in files if not file.name.endswith(_UNFINISHED))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) and name not in (".", "..")


def _is_left_out(file: PurePath, pattern: Sequence[str]) -> bool:
    """Tell whether a match is hidden or unfinished, and the pattern does not spell it so."""
    spelt = [component for component in pattern if _is_hidden(component)]
    hidden = [component for component in file.parts if _is_hidden(component)]
    if any(not any(fnmatch(component, one) for one in spelt) for component in hidden):
        return True
    return file.name.endswith(_UNFINISHED) and not pattern[-1].endswith(_UNFINISHED)


def _refuse_table_format(folder: Path) -> None:
    """Refuse a folder in which a table format keeps the log that says which files count."""
    for mark, name, reader in TABLE_FORMATS:
        if next(folder.glob(mark), None) is not None:
            raise _table_format_error(str(folder), name, reader)


def _refuse_listed_table(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder, or the one above it, whose names are those of a table format's log."""
    for mark, name, reader in TABLE_FORMATS:
        inner, _, pattern = mark.rpartition("/")
        if inner in ("", folder.name) and any(fnmatch(one, pattern) for one in names):
            raise _table_format_error(str(folder.parent if inner else folder), name, reader)


def _table_format_error(folder: str, name: str, reader: str) -> DataError:
    article = "an" if name == "Iceberg" else "a"
    return DataError(
        f"{folder}: the folder of {article} {name} table, whose log says which of its files "
        "count; pass what its own library reads "
        f"({reader.replace('PATH', repr(folder))}), or list the files by name"
    )


# ---- behind URLs ---------------------------------------------------------------------------------


def _behind_url(url: str) -> list[InputFile]:
    """Return the files that a URL, or a pattern of them, names."""
    fs, path = open_filesystem(url)
    if _GLOB_CHARACTERS & set(path) and not url.startswith("http"):
        return _remote_matches(fs, url.rstrip("/"), path)
    with remote_errors(url):
        info = fs.info(path)
    if info["type"] == "file":
        return [InputFile(RemoteFile.of(fs, url, info))]
    return _whole_folder(url, _remote_walk(fs, url.rstrip("/"), path))


def _remote_walk(fs: Any, url: str, path: str, *, looks_above: bool = True) -> list[InputFile]:
    """Return the files of a remote folder that are neither hidden nor unfinished."""
    with remote_errors(url):
        infos = fs.find(path, detail=True)
    names = {str(name)[len(path) :].strip("/"): info for name, info in infos.items()}
    _refuse_remote_table(fs, url, path, names, looks_above=looks_above)
    return [
        _remote_file(fs, url, name, info)
        for name, info in sorted(names.items())
        if name and not _is_left_out(PurePosixPath(name), ("",))
    ]


def _remote_file(fs: Any, url: str, name: str, info: Mapping[str, Any]) -> InputFile:
    file = RemoteFile.of(fs, f"{url}/{name}", info)
    return InputFile(file, _partitions(name.split("/")[:-1], str(file)))


def _remote_matches(fs: Any, url: str, pattern: str) -> list[InputFile]:
    parts = pattern.split("/")
    n_fixed = len(_fixed_parts(parts))
    root, base = "/".join(parts[:n_fixed]), url.rsplit("/", len(parts) - n_fixed)[0]
    with remote_errors(url):
        infos = fs.glob(pattern, detail=True)
    names = {str(path)[len(root) :].strip("/"): info for path, info in infos.items()}
    spelt = tuple(parts[n_fixed:])
    visible = {n: i for n, i in names.items() if not _is_left_out(PurePosixPath(n), spelt)}
    _refuse_remote_table(fs, base, root, visible)
    files = {n: _remote_file(fs, base, n, i) for n, i in visible.items() if i["type"] == "file"}
    holders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for folder in visible.keys() - files.keys() - holders:
        for file in _remote_walk(fs, f"{base}/{folder}", f"{root}/{folder}"):
            if find_format(file.path) is PARQUET:
                above = _partitions(folder.split("/"), str(file.path))
                files[str(file.path)] = InputFile(file.path, (*above, *file.partitions))
    if not files:
        raise _nothing_matches(url, len(names) - len(visible))
    return sorted(files.values(), key=lambda file: str(file.path))


def _refuse_remote_table(
    fs: Any, url: str, path: str, names: Iterable[str], *, looks_above: bool = True
) -> None:
    """Refuse files of a table format: of the folder, of those below it, and of those above."""
    folders = [path, *(str(parent) for parent in PurePosixPath(path).parents)][:-1]
    for mark, name, reader in TABLE_FORMATS:
        pattern = f"*/{mark}/*" if mark != _ICEBERG else f"*/{mark}"
        if any(fnmatch(f"/{file}", pattern) for file in names):
            raise _table_format_error(url, name, reader)
        if not looks_above:
            continue
        with remote_errors(url):
            tables = [folder for folder in folders if fs.glob(f"{folder}/{mark}")]
        if tables:
            raise _table_format_error(tables[0], name, reader)


# ---- files that come later -----------------------------------------------------------------------


def check_followed(folder: str | os.PathLike[str]) -> str:
    """Return a folder that can be followed as text; behind a URL it comes with its first file."""
    text = local_path(os.fspath(folder))
    if not is_url(text) and not os.path.isdir(text):
        got = "got a file" if os.path.exists(text) else "no such folder"
        raise DataError(
            f"{text}: {got}, expected the folder that new files come to; make the folder first, or "
            f"correct the path (the working folder is {Path.cwd()})"
        )
    return text


def follow_folder(
    folder: str | os.PathLike[str],
    *,
    done: Collection[str] = (),
    poll_s: float = 1.0,
    idle_s: float | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, InputFile]]:
    """Yield each new Parquet file of a folder and those below it, as soon as it is whole."""
    text, seen = check_followed(folder), set(done)
    broken: dict[str, object] = {}
    last, problem, is_first = time.monotonic(), "", True
    while True:
        try:
            files, problem = _listing(text, is_first=is_first), ""
            if is_first and not files:
                notify(f"{text}: no Parquet file yet; waiting for the first")
            is_first = False
        except RemoteUnavailable as error:
            if not problem:
                notify(f"{error}; trying again")
            files, problem = {}, str(error)
        for name in sorted(broken.keys() - set(files)) if not problem else ():
            notify(f"{text}/{name}: vanished before it could be read")
            del broken[name]
        for name, file in files.items():
            if name in seen or not _whole(name, file.path, broken, notify):
                continue
            seen.add(name)
            yield name, file
            last = time.monotonic()
        if idle_s is not None and time.monotonic() - last >= idle_s:
            return
        time.sleep(poll_s)


def _listing(folder: str, *, is_first: bool) -> dict[str, InputFile]:
    """Return the Parquet files of a folder and those below it, by their names from there.

    Only the first look asks whether the folder lies in a table's.
    """
    if is_url(folder):
        fs, path = open_filesystem(folder)
        url = folder.rstrip("/")
        files = [
            file
            for file in _remote_walk(fs, url, path, looks_above=is_first)
            if find_format(file.path) is PARQUET
        ]
        return {str(file.path)[len(url) + 1 :]: file for file in files}
    directory = Path(folder)
    if not directory.is_dir():  # its disk may come back
        raise RemoteUnavailable(f"{folder}: the folder is gone")
    return {
        file.relative_to(directory).as_posix(): _partitioned(file, directory)
        for file in _parquet_files(directory, looks_above=is_first)
    }


def _whole(
    name: str, file: InputPath, broken: dict[str, object], notify: Callable[[str], None]
) -> bool:
    now: object = None
    try:
        now = (file.size, file.tag) if isinstance(file, RemoteFile) else _size_and_time(file)
        if broken.get(name) == now:
            return False
        parquet_metadata(file)
    except FileNotFoundError:
        return False  # reported at the next poll, if it was listed before
    except (OSError, pa.ArrowException, RemoteUnavailable) as error:
        if name not in broken:
            notify(f"{file}: cannot be read yet ({_brief(error)}); waiting for it to change")
        broken[name] = now
        return False
    broken.pop(name, None)
    return True


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _brief(error: Exception) -> str:
    return str(error).split(". ")[0].splitlines()[0]
