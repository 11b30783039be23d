"""The files that a path, a glob or a folder names, and those that are added to a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.formats import find_format
from widedeep.data.parquet_input import PARQUET
from widedeep.errors import DataError

_GLOB_CHARACTERS = frozenset("*?[")
_UNFINISHED = (".tmp", ".crc", ".inprogress", "._COPYING_")
_TABLE_FORMATS = (
    ("_delta_log", "Delta Lake", "deltalake.DeltaTable(PATH).to_pyarrow_dataset()"),
    (".hoodie", "Hudi", "hudi.HudiTable(PATH).read_snapshot()"),
    ("metadata/*.metadata.json", "Iceberg", "a pyiceberg table's scan().to_arrow()"),
)


def input_paths(data: Any) -> list[Path] | None:
    """Return the files that a path, glob, folder or list of them names; None for other data."""
    if isinstance(data, str | os.PathLike):
        return _expanded(os.fspath(data))
    if isinstance(data, Sequence) and data and isinstance(data[0], str | os.PathLike):
        for number, item in enumerate(data):
            if not isinstance(item, str | os.PathLike):
                raise DataError(
                    f"data[{number}]: got a {type(item).__name__} in a list of paths; expected "
                    "paths alone"
                )
        return [path for item in data for path in _expanded(os.fspath(item))]
    return None


def folder_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder and those below it, in the order of their names."""
    return [file for file in _walk(folder) if find_format(file) is PARQUET]


def _walk(folder: Path) -> list[Path]:
    """Return the files of a folder and those below it that are neither hidden nor unfinished."""
    files: list[Path] = []
    seen: set[str] = set()
    for name, below, names in os.walk(folder, followlinks=True):
        directory = Path(name)
        _refuse_table_format(directory)
        below[:] = [one for one in below if not _is_hidden(one)]
        if os.path.realpath(directory) in seen:  # a link to a folder above
            below.clear()
            continue
        seen.add(os.path.realpath(directory))
        files += [directory / one for one in names if not _is_hidden(one)]
    for parent in folder.absolute().parents:
        _refuse_table_format(parent)
    return sorted(file for file in files if not file.name.endswith(_UNFINISHED))


def _expanded(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        return _whole_folder(path)
    if path.exists():
        return [path]
    if "://" in text:
        raise DataError(
            f"{text}: only local files are opened by path; copy it here, or pass a reader "
            "(pyarrow.dataset.dataset(...).scanner().to_reader())"
        )
    if _GLOB_CHARACTERS & set(text):
        return _matches(text)
    raise DataError(f"{text}: no such file; check the path (the working folder is {Path.cwd()})")


def _whole_folder(folder: Path) -> list[Path]:
    formats = {file: find_format(file) for file in _walk(folder)}
    files = [file for file, file_format in formats.items() if file_format is PARQUET]
    others = [file for file, file_format in formats.items() if file_format not in (None, PARQUET)]
    if not files:
        raise DataError(
            f"{folder}: a folder without .parquet files; "
            "name its files by a glob such as 'folder/*.csv'"
        )
    if others:
        raise DataError(
            f"{folder}: a folder of .parquet files that holds {others[0]} too; move it away, or "
            "name the files by a glob such as 'folder/*.parquet'"
        )
    return files


def _matches(text: str) -> list[Path]:
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
    files = sorted({*files, *(file for folder in folders for file in folder_files(folder))})
    if not files:
        left_out = len(matches) - len(visible)
        hint = f" ({left_out} hidden or unfinished are left out)" if left_out else ""
        raise DataError(f"{text}: no file matches{hint}; check the pattern")
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) and name not in (".", "..")


def _is_left_out(file: Path, pattern: Sequence[str]) -> bool:
    """Tell whether a match is hidden or unfinished, and the pattern does not spell it so."""
    spelt = [component for component in pattern if _is_hidden(component)]
    hidden = [component for component in file.parts if _is_hidden(component)]
    if any(not any(fnmatch(component, one) for one in spelt) for component in hidden):
        return True
    return file.name.endswith(_UNFINISHED) and not pattern[-1].endswith(_UNFINISHED)


def _refuse_table_format(folder: Path) -> None:
    """Refuse a folder in which a table format keeps the log that says which files count."""
    for mark, name, reader in _TABLE_FORMATS:
        if next(folder.glob(mark), None) is not None:
            raise DataError(
                f"{folder}: the folder of a {name} table, whose log says which of its files "
                "count; pass what its own library reads "
                f"({reader.replace('PATH', repr(str(folder)))}), or list the files by name"
            )


def follow_folder(
    folder: str | os.PathLike[str],
    *,
    done: Collection[str] = (),
    poll_s: float = 1.0,
    idle_s: float | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, Path]]:
    """Yield each new Parquet file of a folder and those below it, as soon as it is whole."""
    directory, seen = Path(folder), set(done)
    if directory.is_file():
        raise DataError(f"{directory}: got a file, expected the folder that new files come to")
    broken: dict[str, tuple[int, int]] = {}
    last = time.monotonic()
    while True:
        names = _names(directory)
        for name in sorted(broken.keys() - set(names)):
            notify(f"{directory / name}: vanished before it could be read")
            del broken[name]
        for name in names:
            if name in seen or not _whole(directory, name, broken, notify):
                continue
            seen.add(name)
            yield name, directory / name
            last = time.monotonic()
        if idle_s is not None and time.monotonic() - last >= idle_s:
            return
        time.sleep(poll_s)


def _names(directory: Path) -> list[str]:
    return ["/".join(file.relative_to(directory).parts) for file in folder_files(directory)]


def _whole(
    directory: Path,
    name: str,
    broken: dict[str, tuple[int, int]],
    notify: Callable[[str], None],
) -> bool:
    file, now = directory / name, (-1, -1)
    try:
        status = file.stat()
        now = (status.st_size, status.st_mtime_ns)
        if broken.get(name) == now:
            return False
        pq.read_metadata(file)
    except FileNotFoundError:
        return False  # reported at the next poll, if it was listed before
    except (OSError, pa.ArrowException) as error:
        if name not in broken:
            notify(f"{file}: cannot be read yet ({_brief(error)}); waiting for it to change")
        broken[name] = now
        return False
    broken.pop(name, None)
    return True


def _brief(error: Exception) -> str:
    return str(error).split(". ")[0].splitlines()[0]
