"""Following a folder: its Parquet files in the order in which they are whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.paths import folder_files
from widedeep.errors import DataError


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
        return False  # told of at the next look, if it was there before
    except (OSError, pa.ArrowException) as error:
        if name not in broken:
            notify(f"{file}: cannot be read yet ({_brief(error)}); waiting for it to change")
        broken[name] = now
        return False
    broken.pop(name, None)
    return True


def _brief(error: Exception) -> str:
    return str(error).split(". ")[0].splitlines()[0]
