"""What is wrong with a log is said, with where and what to do; nothing is written."""

from __future__ import annotations

import dataclasses
import decimal
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.join.small_log import START, Row, actions, config, impressions
from widedeep.errors import ConfigError, DataError, WideDeepError
from widedeep.join import (
    ActionLog,
    Attributes,
    History,
    ImpressionLog,
    JoinConfig,
    Label,
    Negatives,
    Split,
    load_join_config,
    open_dataset,
    run_join,
)
from widedeep.join.run import locked_workdir


def shown(rows: Any, **changes: Any) -> ImpressionLog:
    return ImpressionLog(path=rows, position="position", **changes)


def refuse(settings: JoinConfig, *told: str) -> None:
    """The run fails with a message that tells all of this, and leaves nothing behind."""
    with pytest.raises(WideDeepError) as raised:
        run_join(settings)
    for words in told:
        assert words in str(raised.value)
    assert list(Path(settings.output).parent.glob("*out*")) == []


def test_duplicate_impressions(tmp_path: Path) -> None:
    rows = [*impressions(), impressions()[5]]
    settings = config(tmp_path / "out", impressions=shown(rows))
    refuse(settings, "duplicates", "request 'r1'", "position 1 (2 times)", "duplicates = 'drop'")
    result = run_join(dataclasses.replace(settings, duplicates="drop"))
    assert result.manifest["counts"]["duplicates_dropped"] == 1
    assert result.manifest["counts"]["impressions"] == len(rows) - 1


@pytest.mark.parametrize("column", ["user_id", "item_id", "event_time", "request_id"])
def test_null_keys(tmp_path: Path, column: str) -> None:
    rows = impressions()
    rows[3] = {**rows[3], column: None}
    settings = config(tmp_path / "out", impressions=shown(rows))
    refuse(settings, "null keys", f"1 in '{column}'", "null_keys = 'drop'")
    result = run_join(dataclasses.replace(settings, null_keys="drop"))
    assert result.manifest["counts"]["null_keys"]["impressions"][column] == 1
    assert result.manifest["counts"]["impressions"] == len(rows) - 1


def test_actions_before_any_impression_are_counted(tmp_path: Path) -> None:
    early = [{**row, "event_time": START - 50_000} for row in actions(20)]
    settings = config(tmp_path / "out", actions=ActionLog(path=early, kind="kind", value="price"))
    # Nothing was observed after any impression: no label is known, unless windows need not close.
    refuse(settings, "before the first impression", "open_windows = 'keep'")
    result = run_join(dataclasses.replace(settings, open_windows="keep"))
    counted = result.manifest["counts"]["labels"]["click"]
    assert counted["orphaned"] == counted["actions"] == sum(r["kind"] == "click" for r in early)
    assert result.manifest["splits"]["train"]["labels"]["click"] == 0


def test_users_without_attributes_get_nulls(tmp_path: Path) -> None:
    result = run_join(config(tmp_path / "out"))
    for row in pq.read_table(result.paths("train")[0]).to_pylist():
        assert (row["age"] is None) == (row["user_id"] in ("u5", "u6"))


def test_a_mapping_to_a_column_that_is_not_there(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", impressions=shown(impressions(), user="userid"))
    refuse(settings, "user = 'userid'", "did you mean 'user_id'?")


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ([START, START * 1000], "units are mixed"),
        ([5, 6], "no plausible seconds"),
        ([START * 10**10, START * 10**9], "'event_time'"),
        ([START, START * 10**9], "units are mixed"),
        ([-START, START], "no plausible seconds"),
    ],
)
def test_implausible_times(tmp_path: Path, times: list[int], told: str) -> None:
    rows = [{**row, "event_time": t} for row, t in zip(impressions(), times, strict=False)]
    refuse(config(tmp_path / "out", impressions=shown(rows)), "impressions", told)


def test_a_unit_that_is_plainly_another(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", impressions=shown(impressions(), time_unit="ms"))
    refuse(settings, "'event_time'", "time_unit = 'ms'", "plausible as s")
    # Times of a simulation, which are plausible in no unit, are what they are said to be.
    shown_early = [{**row, "event_time": row["event_time"] - START} for row in impressions()]
    taken_early = [{**row, "event_time": row["event_time"] - START} for row in actions()]
    early = config(
        tmp_path / "early",
        impressions=shown(shown_early, time_unit="s"),
        actions=ActionLog(path=taken_early, kind="kind", value="price", time_unit="s"),
        user_attributes=None,
    )
    late = config(tmp_path / "late", user_attributes=None)
    assert run_join(early).manifest["counts"] == run_join(late).manifest["counts"]


def test_times_without_a_zone_beside_times_with_one(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(impressions())
    at = table.schema.get_field_index("event_time")
    naive = table["event_time"].cast(pa.timestamp("s"))
    table = table.set_column(at, "event_time", naive)
    settings = config(tmp_path / "out", impressions=shown(table))
    refuse(settings, "time zones are mixed", "timezone = 'UTC'")
    told = dataclasses.replace(settings, impressions=shown(table, timezone="UTC"))
    assert run_join(told).rows == run_join(config(tmp_path / "out")).rows


def test_text_times_with_and_without_a_zone(tmp_path: Path) -> None:
    rows: list[Row] = [{**row, "event_time": "2023-11-15T00:00:00+01:00"} for row in impressions()]
    rows[9]["event_time"] = "2023-11-15T00:00:00"
    settings = config(tmp_path / "out", impressions=shown(rows))
    refuse(settings, "time zones are mixed", "399 of 400 times name a zone")


def test_out_of_order_rows_change_nothing(tmp_path: Path) -> None:
    first = run_join(config(tmp_path / "one"))
    turned = config(
        tmp_path / "two",
        impressions=shown(impressions()[::-1]),
        actions=ActionLog(path=actions()[::-1], kind="kind", value="price"),
    )
    second = run_join(turned)
    for split in ("train", "valid", "test"):
        for one, two in zip(first.paths(split), second.paths(split), strict=True):
            assert Path(one).read_bytes() == Path(two).read_bytes()


@pytest.mark.parametrize("duration", ["-1d", "1 day", -5])
def test_durations(duration: Any) -> None:
    with pytest.raises(ConfigError, match="window: got"):
        Label(window=duration)


def test_an_empty_log(tmp_path: Path) -> None:
    empty = pa.Table.from_pylist(impressions()).slice(0, 0)
    refuse(config(tmp_path / "out", impressions=shown(empty)), "impressions: got an empty log")


def test_no_actions(tmp_path: Path) -> None:
    empty = pa.Table.from_pylist(actions()).slice(0, 0)
    settings = config(tmp_path / "out", actions=ActionLog(path=empty, kind="kind", value="price"))
    refuse(settings, "actions: got an empty log")


def test_a_window_longer_than_the_log(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", labels=(Label(name="click", window="1d"),))
    refuse(settings, "longer than the log", "open_windows = 'keep'")
    kept = run_join(dataclasses.replace(settings, open_windows="keep", negatives=Negatives()))
    assert kept.manifest["counts"]["open_windows"] == kept.manifest["counts"]["examples"] == 400


def write_files(folder: Path) -> list[Path]:
    table = pa.Table.from_pylist(impressions())
    paths = [folder / f"part-{number}.parquet" for number in range(4)]
    for number, path in enumerate(paths):
        pq.write_table(table.slice(number * 100, 100), path, compression="none")
    return paths


def test_a_truncated_file_among_good_ones(tmp_path: Path) -> None:
    damaged = write_files(tmp_path)[2]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    settings = config(tmp_path / "out", impressions=shown(str(tmp_path / "*.parquet")))
    refuse(settings, str(damaged), "not a complete Parquet file")


def test_a_damaged_page_among_good_files(tmp_path: Path) -> None:
    damaged = write_files(tmp_path)[2]
    bytes_ = bytearray(damaged.read_bytes())
    place = pq.read_metadata(damaged).row_group(0).column(1).data_page_offset
    bytes_[place : place + 24] = b"\xff" * 24
    damaged.write_bytes(bytes_)
    settings = config(tmp_path / "out", impressions=shown(str(tmp_path / "*.parquet")))
    refuse(settings, str(damaged), "row group 0 cannot be read", "damaged", "write it again")
    (tmp_path / "part-2.parquet").unlink()
    assert run_join(settings).manifest["counts"]["impressions"] == 300


def test_a_file_with_other_columns(tmp_path: Path) -> None:
    other = write_files(tmp_path)[3]
    pq.write_table(pq.read_table(other).drop_columns(["device"]), other)
    settings = config(tmp_path / "out", impressions=shown(str(tmp_path / "*.parquet")))
    refuse(settings, str(other), "no column 'device', which", "part-0.parquet has")


def test_ids_of_two_types(tmp_path: Path) -> None:
    rows = [{**row, "user_id": 7} for row in actions()]
    settings = config(tmp_path / "out", actions=ActionLog(path=rows, kind="kind", value="price"))
    refuse(settings, "user ids", "text", "integers")


@pytest.mark.parametrize("column", ["user_id", "hash", "request_id", "item_id", "position"])
def test_unsigned_integers_beyond_63_bits(tmp_path: Path, column: str) -> None:
    table = pa.table(
        {
            **{name: pa.array([1, 2], pa.int64()) for name in ("request_id", "user_id", "item_id")},
            "position": [1, 2],
            "event_time": [START, START + 1],
            "hash": [5, 6],
        }
    )
    place = table.schema.get_field_index(column)
    table = table.set_column(place, column, pa.array([7, 2**63 + 1], pa.uint64()))
    taken = [{"user_id": 1, "item_id": 1, "event_time": START + 1}]
    with pytest.raises(DataError, match=f"'{column}': got 9223372036854775809 in row 2"):
        wd.join_actions(shown(table), taken, output=tmp_path / "out", open_windows="keep")


@pytest.mark.parametrize("column", ["", "a\0b"])
def test_columns_without_a_name_that_engines_read(tmp_path: Path, column: str) -> None:
    table = pa.Table.from_pylist(impressions())
    table = table.append_column(column, pa.array([1] * table.num_rows))
    refuse(config(tmp_path / "out", impressions=shown(table)), f"is named {column!r}", "name it")


def test_values_of_lists_are_held_to_what_single_ones_are(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(impressions())
    for name, value, kind in [
        ("hashes", 2**63, pa.uint64()),
        ("costs", decimal.Decimal("1.5"), pa.decimal128(38, 9)),
    ]:
        lists = pa.array([[value]] * table.num_rows, pa.list_(kind))
        settings = config(tmp_path / "out", impressions=shown(table.append_column(name, lists)))
        if name == "hashes":
            refuse(
                settings,
                "'hashes': got 9223372036854775808 in row 1",
                "expected integers below 2^63",
            )
        else:
            notes = run_join(settings).notes
            assert any("'costs' is of type decimal128(38, 9)" in note for note in notes)


def test_wide_decimals_are_said(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(impressions())
    cents = pa.array([decimal.Decimal("1.5")] * table.num_rows, pa.decimal128(38, 9))
    result = run_join(
        config(tmp_path / "out", impressions=shown(table.append_column("cost", cents)))
    )
    assert any("column 'cost' is of type decimal128(38, 9)" in note for note in result.notes)


def test_two_versions_at_one_time(tmp_path: Path) -> None:
    twice = [{"user_id": "u1", "age": 1}, {"user_id": "u1", "age": 2}]
    settings = config(tmp_path / "out", user_attributes=Attributes(path=twice, key="user_id"))
    refuse(settings, "several versions", "'u1' (2 rows)", "valid_from")


def test_a_request_of_two_users(tmp_path: Path) -> None:
    rows = impressions()
    rows[1] = {**rows[1], "user_id": "u5"}
    refuse(config(tmp_path / "out", impressions=shown(rows)), "more than one user", "'r0'")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", labels=(Label(name="device", window="10m"),))
    refuse(settings, "two output columns are named 'device'")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="already exists"):
        run_join(config(tmp_path))
    assert (tmp_path / "thesis.txt").exists()


def test_a_changed_shard_is_told(tmp_path: Path) -> None:
    result = run_join(config(tmp_path / "out"))
    assert open_dataset(tmp_path / "out").manifest == result.manifest
    shard = Path(result.paths("train")[0])
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=f"{shard.name}: missing or changed"):
        open_dataset(tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("actions.path = 'a.parquet'\njoin.outputt = 'x'", "needs 'output'"),
        ("join = { output = 'x', tuch = 'last' }\nactions.path = 'a'", "did you mean 'touch'"),
        ("join.output = 'x'\nactoins.path = 'a'", "did you mean 'actions'"),
        ("join.output = 'x'\nactions.path = 'a'", "negatives.per_positive"),
        (
            "join.output='x'\nactions.path='a'\nimpressions.path='b'\nsplit.fractions=[1.0]",
            "three shares",
        ),
        (
            "join.output = 'x'\nactions.path = 'a'\nimpressions.path = 'b'\nnegatives.rate = 0.0",
            "0 < rate <= 1",
        ),
    ],
)
def test_toml(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "join.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=told):
        load_join_config(path)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Split(by="tme"), "by = 'tme', expected .* did you mean 'time'"),
        (lambda: Label(kinds="click"), "kinds = 'click', expected a list"),
        (lambda: Negatives(draw="popular"), "draw = 'popular', .* did you mean 'popularity'"),
        (lambda: History(name="x", feature="cuont"), "history 'x': got feature = 'cuont'"),
        (lambda: ActionLog(path="a", time_unit="min"), "time_unit = 'min'"),
        (lambda: config(Path("out"), touch="middle"), "touch = 'middle', expected 'last' or"),
        (lambda: config(Path("out"), engine="sparc"), "did you mean 'spark'"),
    ],
)
def test_words_in_python(made: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        made()


def test_one_kind_as_a_text(tmp_path: Path) -> None:
    log = ActionLog(path=actions(), kind="kind")
    one, other = (
        wd.join_actions(
            shown(impressions()), log, output=tmp_path / name, window="10m", kinds=kinds
        )
        for name, kinds in (("one", "click"), ("other", ["click"]))
    )
    assert one.manifest["splits"] == other.manifest["splits"]


def test_definitions() -> None:
    with pytest.raises(ConfigError, match="'last' lists items of the user"):
        History(name="x", feature="last", by="item")
    with pytest.raises(ConfigError, match="two times"):
        Split(boundaries=("2026-01-01",))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.join.small_log import config
from widedeep.join import run, run_join

before = run.write_part
def write_part(batches, folder, part, **rest):
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(batches, folder, part, **rest)
run.write_part = write_part
run_join(config(Path(sys.argv[1]), partition_rows=100))
"""


def test_a_kill_in_the_middle_leaves_no_half_dataset_and_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out"
    child = subprocess.run([sys.executable, "-c", KILLED, str(output)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not output.exists()
    work = tmp_path / ".out.join" / "parts"
    stamps = {path: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert [path.name for path in sorted(stamps)] == ["0.json", "1.json"]
    resumed = run_join(config(output, partition_rows=100), resume=True)
    whole = run_join(config(tmp_path / "whole", partition_rows=100))
    for split in ("train", "valid", "test"):
        assert [Path(p).read_bytes() for p in resumed.paths(split)] == [
            Path(p).read_bytes() for p in whole.paths(split)
        ]
    assert not work.exists()


KILLED_LATE = """
import os, signal, sys
from pathlib import Path
from tests.join.small_log import config
from widedeep.join import dataset, run_join

dataset.write_report = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
run_join(config(Path(sys.argv[1]), partition_rows=100))
"""


@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_while_the_dataset_is_put_together_leaves_nothing(
    tmp_path: Path, resume: bool
) -> None:
    output = tmp_path / "out"
    child = subprocess.run([sys.executable, "-c", KILLED_LATE, str(output)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not output.exists()
    run_join(config(output, partition_rows=100), resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_dataset(output).rows["train"] > 0


def test_two_joins_to_one_output(tmp_path: Path) -> None:
    with locked_workdir(tmp_path / ".out.join", resume=False):
        with pytest.raises(DataError, match="another join is writing the same output"):
            run_join(config(tmp_path / "out"))
        with pytest.raises(DataError, match="another join"):
            run_join(config(tmp_path / "out"), resume=True)
    assert run_join(config(tmp_path / "out")).rows["train"] > 0


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, str(output)], check=False)
    with pytest.raises(DataError, match="another configuration"):
        run_join(config(output, partition_rows=100, seed=1), resume=True)


def limited() -> None:
    """Let no file grow beyond 2 kB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def test_a_full_disk_is_told_and_leaves_no_dataset(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.join.small_log import config\n"
        "from widedeep.join import run_join; run_join(config(Path(sys.argv[1])))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        check=False,
        preexec_fn=limited,
        capture_output=True,
        text=True,
    )
    assert "DataError" in child.stderr
    assert "disk is full" in child.stderr
    assert not (tmp_path / "out").exists()


def test_kinds_without_a_column_of_kinds() -> None:
    with pytest.raises(ConfigError, match=r"'label' asks for kinds = \['install'\].*actions.kind"):
        JoinConfig(
            output="x",
            impressions=ImpressionLog(path="i"),
            actions=ActionLog(path="a"),
            labels=(Label(kinds=("install",)),),
        )
