"""Every door to a folder opens the same files, and none those that a writer has not finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.join.small_log import actions, config, impressions
from widedeep.data.paths import follow_folder, input_paths
from widedeep.data.sources import open_source
from widedeep.errors import DataError
from widedeep.join import ActionLog, ImpressionLog, run_join

ROWS = pa.Table.from_pylist(impressions())
UNFINISHED = (
    "_temporary/0/part.parquet",
    ".staging/part.parquet",
    "_tmp.part/part.parquet",
    "day-1/.hidden/part.parquet",
    "day-1/_part.parquet",
    ".part.parquet",
    ".part.parquet.crc",
    "_SUCCESS",
    "part.parquet.tmp",
    "part.parquet.inprogress",
)
GOOD = ("part-0.parquet", "day-1/part-1.parquet", "day-1/deep/PART-2.PQ")


def write(folder: Path, name: str, rows: pa.Table = ROWS) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)
    return path


def logs(folder: Path) -> Path:
    for number, name in enumerate(GOOD):
        write(folder, name, ROWS.slice(number * 100, 100 if number < 2 else 200))
    for name in UNFINISHED:
        write(folder, name)
    return folder


def names(paths: list[Path] | None, folder: Path) -> list[str]:
    assert paths is not None
    return sorted(str(path.relative_to(folder)) for path in paths)


def test_a_folder_and_a_follower_and_the_join_leave_out_the_same(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs")
    assert names(input_paths(folder), folder) == sorted(GOOD)
    assert sorted(name for name, _ in follow_folder(folder, idle_s=0)) == sorted(GOOD)
    with open_source(folder) as source:
        assert source.num_rows == ROWS.num_rows
    log = ImpressionLog(path=str(folder), position="position")
    counts = run_join(config(tmp_path / "out", impressions=log)).manifest["counts"]
    assert counts["impressions"] == ROWS.num_rows


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.parquet", ["part-0.parquet"]),
        ("**/*.parquet", ["part-0.parquet", "day-1/part-1.parquet"]),
        ("*/*.parquet", ["day-1/part-1.parquet"]),
        ("part*", ["part-0.parquet"]),
        ("day-*", ["day-1/part-1.parquet", "day-1/deep/PART-2.PQ"]),
        ("*", list(GOOD)),
        ("_tmp*/*.parquet", ["_tmp.part/part.parquet"]),
        (".part.parq*t", [".part.parquet"]),
        ("*.inprogress", ["part.parquet.inprogress"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, found: list[str]) -> None:
    folder = logs(tmp_path / ".cache" / "_logs")
    assert names(input_paths(f"{folder}/{pattern}"), folder) == sorted(found)


def test_a_glob_of_unfinished_files_alone_says_so(tmp_path: Path) -> None:
    write(tmp_path, "_part.parquet")
    with pytest.raises(DataError, match=r"no file matches \(1 hidden or unfinished are left out\)"):
        input_paths(f"{tmp_path}/*.parquet")


def test_a_file_by_its_name_is_read_whatever_its_name(tmp_path: Path) -> None:
    paths = [write(tmp_path, name) for name in ("_a.parquet", "b[1]*.parquet", ".c/d.parquet")]
    for path in paths:
        assert input_paths(path) == [path]
    log = ImpressionLog(path=[str(path) for path in paths[1:2]], position="position")
    assert run_join(config(tmp_path / "out[1]", impressions=log)).manifest["counts"]["impressions"]


def test_other_rows_in_a_folder_are_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "part-0.parquet")
    (tmp_path / "part-1.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"holds .*part-1\.csv too; move it away"):
        input_paths(tmp_path)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "other/part-1.parquet")
    write(tmp_path, "logs/part-0.parquet")
    (tmp_path / "logs" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "logs")
    folder = tmp_path / "logs"
    assert names(input_paths(folder), folder) == ["more/part-1.parquet", "part-0.parquet"]


def _follow(path: str) -> object:
    return list(follow_folder(path, idle_s=0))


def _join(path: str) -> object:
    log = ImpressionLog(path=path, position="position")
    return run_join(config(Path(path).parent / "out", impressions=log))


def _join_actions(path: str) -> object:
    log = ActionLog(path=path, kind="kind", value="price")
    return run_join(config(Path(path).parent / "out", actions=log))


@pytest.mark.parametrize(
    ("mark", "owner"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        ("metadata/v1.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
    ],
)
@pytest.mark.parametrize("door", [open_source, _follow, _join, _join_actions, input_paths])
def test_the_folder_of_a_table_format_is_refused(
    tmp_path: Path, mark: str, owner: str, door: Callable[[str], object]
) -> None:
    table = tmp_path / "table"
    path = write(table, "data/day-1/part-0.parquet", pa.Table.from_pylist(actions()))
    (table / mark).parent.mkdir(parents=True)
    (table / mark).touch()
    for place in (table, table / "data", tmp_path):
        expected = rf"table: the folder of an? {owner}.*list the files"
        if place == table and door != _follow and owner != "Hudi":
            if door == input_paths:
                continue  # no files: its library says which rows there are
            expected = rf"the {owner} table cannot be opened"
        with pytest.raises(DataError, match=expected):
            door(str(place))
    assert input_paths([path]) == [path]


@pytest.mark.parametrize("pattern", ["*.parquet", "day-1/*.parquet", "**/*.parquet", "day-*"])
def test_a_glob_into_a_table_format_is_refused(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "part-0.parquet")
    write(tmp_path, "day-1/part-0.parquet")
    (tmp_path / "_delta_log").mkdir()
    with pytest.raises(DataError, match=r"Delta Lake.*deltalake\.DeltaTable"):
        input_paths(f"{tmp_path}/{pattern}")
