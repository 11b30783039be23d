"""ImpressionLog: rows are what was scored, join and fit read them, files are whole or absent."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.bundle import models
from tests.serving.versions import ITEMS, USER, eventually, publish, write_items
from widedeep.errors import ConfigError
from widedeep.join import ImpressionLog as JoinedLog
from widedeep.schema import ColumnType
from widedeep.serving import impression_rows, impressions
from widedeep.serving.background import RequestLog, ThreadMonitor
from widedeep.serving.impression_files import RotatedFiles
from widedeep.serving.impression_rows import OWN_COLUMNS
from widedeep.serving.impressions import ImpressionLog, Retention, Rotation
from widedeep.serving.ranker import Ranker, Ranking

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Record:
    request_id: str
    user: dict[str, Any]
    candidates: Any
    ranking: Ranking
    ranker: Ranker
    version: str = "1"
    context: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    folder = tmp_path_factory.mktemp("log")
    return Ranker(
        publish(folder, "1", seed=1), items=write_items(folder / "items.parquet"), item_id="app"
    )


def ranked(
    ranker: Ranker,
    request_id: str = "r1",
    *,
    user: dict[str, Any] | None = None,
    candidates: Any = ITEMS,
    context: dict[str, Any] | None = None,
    k: int | None = None,
) -> Record:
    user = {"user_id": 7, **(USER if user is None else user)}
    ranking = ranker.rank(user, context, candidates, k=k)
    return Record(request_id, user, candidates, ranking, ranker, context=context or {})


def written(folder: Path) -> pa.Table:
    files = sorted(folder.glob("*/*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def test_the_rows_are_what_was_scored(ranker: Ranker, tmp_path: Path) -> None:
    requests = [
        ranked(ranker, "by id", k=4),
        ranked(ranker, "unknown", candidates=["mail", "never seen", "item 3"]),
        ranked(
            ranker,
            "a context",
            user={"user": 12, "seen": []},
            context={"age": 44, "tags": ["y", "z"]},
        ),
        ranked(
            ranker, "inline", candidates={"app": ["maps", "mail", "new"], "price": [3, None, 0.5]}
        ),
    ]
    with ImpressionLog(tmp_path) as log:
        before = time.time()
        assert all(log.offer(request) for request in requests)
        after = time.time()
    rows = written(tmp_path).to_pylist()
    assert len(rows) == 4 + 3 + len(ITEMS) + 3 == log.counts().rows
    for request in requests:
        own = [row for row in rows if row["request_id"] == request.request_id]
        assert [row["position"] for row in own] == list(range(1, len(request.ranking) + 1))
        assert [row["score"] for row in own] == request.ranking.scores.tolist()
        # The logged features alone give the scores again, bit for bit.
        assert request.ranker.bundle.score(own).tolist() == request.ranking.scores.tolist()  # type: ignore[union-attr]
        assert {(row["user_id"], row["model_version"]) for row in own} == {(7, "1")}
        assert all(before <= row["event_time"].timestamp() <= after + 1 for row in own)
        if request.request_id != "inline":
            assert [row["item_id"] for row in own] == request.ranking.items
    of_catalogue = {row["catalogue_version"] for row in rows if row["request_id"] == "by id"}
    assert ranker.catalogue is not None and of_catalogue == {ranker.catalogue.version}
    assert {row["price"] for row in rows if row["request_id"] == "inline"} == {3.0, None, 0.5}


def test_join_and_fit_read_the_log(ranker: Ranker, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    actions = []
    with ImpressionLog(tmp_path / "log", rotation=Rotation(rows=150)) as log:
        for n in range(60):
            user = {**USER, "user_id": n % 9, "age": float(rng.integers(15, 60))}
            record = ranked(ranker, f"request {n}", user=user, k=6)
            assert log.offer(record)
            if n % 2:
                actions.append(
                    {
                        "user_id": n % 9,
                        "item_id": record.ranking.items[1],
                        "event_time": time.time_ns() // 1000 + 1,
                    }
                )
            time.sleep(0.002)
    files = sorted((tmp_path / "log").glob("*/*.parquet"))
    assert len(files) > 1
    result = wd.join_actions(
        JoinedLog(path=tmp_path / "log", position="position"),
        actions,
        output=tmp_path / "examples",
        window="1ms",
        open_windows="keep",
    )
    assert sum(result.rows.values()) == 360
    examples = pq.read_table(sorted((tmp_path / "examples").rglob("*.parquet")))
    assert set(models.schema().columns) - {"installed"} <= set(examples.column_names)
    assert sum(examples["label"].to_pylist()) > 0
    spec = models.spec()
    spec = replace(spec, label="label")
    schema = wd.fit_schema(spec, examples)
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[4], embedding_dim=2))
    before = trainer.evaluate(examples)["log_loss"]
    trainer.fit(examples, epochs=5)
    assert trainer.evaluate(examples)["log_loss"] < before


def test_nothing_is_written_but_the_allowed_columns(ranker: Ranker, tmp_path: Path) -> None:
    with ImpressionLog(tmp_path, columns=["age", "price", "password"]) as log:
        log.offer(ranked(ranker, user={**USER, "password": "x"}))
    assert written(tmp_path).column_names == [*OWN_COLUMNS, "age", "price"]


def test_hashed_users_are_the_same_user_and_no_one_s_name(ranker: Ranker, tmp_path: Path) -> None:
    logs = {}
    for name, key in (("one", b"k" * 16), ("same", b"k" * 16), ("other", b"x" * 16)):
        with ImpressionLog(tmp_path / name, user_id="user", hash_users=key) as log:
            for user in ("bo", "anna", "bo"):
                log.offer(ranked(ranker, user=USER | {"user": user}, k=1))
        logs[name] = written(tmp_path / name)
    ids = logs["one"]["user_id"].to_pylist()
    assert ids[0] == ids[2] != ids[1]
    assert all(len(each) == 32 for each in ids)
    assert logs["same"]["user_id"].to_pylist() == ids
    assert not set(logs["other"]["user_id"].to_pylist()) & set(ids)
    assert "user" not in logs["one"].column_names
    with pytest.raises(ConfigError, match="a key of 3 bytes"):
        ImpressionLog(tmp_path, hash_users=b"abc")


def test_a_sample_takes_its_share_of_the_request_ids(ranker: Ranker, tmp_path: Path) -> None:
    record = ranked(ranker, k=1)
    ids = [f"request {n}" for n in range(2_000)]
    kept = []
    for folder in ("one", "two"):
        with ImpressionLog(tmp_path / folder, sample=0.25, queued=5_000) as log:
            kept.append({each for each in ids if log.offer(named(record, each))})
        assert set(written(tmp_path / folder)["request_id"].to_pylist()) == kept[-1]
        assert log.counts().left_out == len(ids) - len(kept[-1])
    assert kept[0] == kept[1]
    assert abs(len(kept[0]) / len(ids) - 0.25) < 4 * (0.25 * 0.75 / len(ids)) ** 0.5


def named(record: Record, request_id: str) -> Record:
    return replace(record, request_id=request_id)


def test_a_request_without_a_user_is_left_out_and_counted(ranker: Ranker, tmp_path: Path) -> None:
    record = ranked(ranker)
    with ImpressionLog(tmp_path, user_id="customer") as log:
        assert not log.offer(record)
    assert log.counts().without_user == 1
    assert list(tmp_path.glob("*/*")) == []


def test_a_full_queue_drops_and_counts_and_never_blocks(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, held, go = ranked(ranker, k=2), threading.Event(), threading.Event()
    log = ImpressionLog(tmp_path, queued=10)
    write = log._files.write

    def slowly(table: pa.Table) -> None:
        held.set()
        go.wait(30)
        write(table)

    monkeypatch.setattr(log._files, "write", slowly)
    assert log.offer(record)
    assert held.wait(30)
    started = time.perf_counter()
    taken = [log.offer(named(record, str(n))) for n in range(50)]
    assert time.perf_counter() - started < 15  # of the 30 s that the log is held
    assert taken == [True] * 10 + [False] * 40
    go.set()
    log.close()
    counts = log.counts()
    assert (counts.offered, counts.dropped, counts.requests, counts.rows) == (51, 40, 11, 22)
    assert written(tmp_path).num_rows == 22


def test_files_are_rotated_by_rows_bytes_and_seconds(ranker: Ranker, tmp_path: Path) -> None:
    record = ranked(ranker)
    for name, rotation in (
        ("rows", Rotation(rows=1)),
        ("bytes", Rotation(nbytes=100)),
        ("seconds", Rotation(seconds=0.05)),
    ):
        folder = tmp_path / name
        with ImpressionLog(folder, rotation=rotation) as log:
            for n in range(3):
                log.offer(named(record, str(n)))
                eventually(partial(complete, folder, n + 1))
    for bad in ({"rows": 0}, {"nbytes": -1}, {"seconds": 0.0}):
        with pytest.raises(ConfigError, match="expected more than 0"):
            Rotation(**bad)  # type: ignore[arg-type]


def complete(folder: Path, files: int) -> bool:
    return len(list(folder.glob("*/*.parquet"))) == files


def test_old_and_surplus_files_are_deleted(ranker: Ranker, tmp_path: Path) -> None:
    record = ranked(ranker)
    for n in range(4):
        with ImpressionLog(tmp_path) as log:
            log.offer(named(record, str(n)))
    files = sorted(tmp_path.glob("*/*.parquet"))
    assert len(files) == 4
    os.utime(files[0], (0, time.time() - 3600))
    ImpressionLog(tmp_path, retention=Retention(seconds=1800)).close()
    assert sorted(tmp_path.glob("*/*.parquet")) == files[1:]
    size = files[3].stat().st_size
    ImpressionLog(tmp_path, retention=Retention(nbytes=2 * size + size // 2)).close()
    assert sorted(tmp_path.glob("*/*.parquet")) == files[2:]


def test_another_model_s_columns_go_to_another_folder(ranker: Ranker, tmp_path: Path) -> None:
    schema = models.schema(item=("app",))
    narrow = models.model(schema, wide=False)
    from widedeep.bundle import write_bundle

    other = Ranker(
        write_bundle(
            tmp_path / "bundle",
            schema=schema,
            weights=models.random_weights(schema, narrow),
            model=narrow,
            metrics={},
            warmup_rows=[],
            config={},
        ),
        item_id="app",
    )
    text = {**USER, "user_id": "seven"}
    with ImpressionLog(tmp_path / "log") as log:
        log.offer(ranked(ranker))
        log.offer(ranked(ranker, "r2", user=text))
        log.offer(ranked(other, "r3", candidates=["mail"]))
    # Integers and text cannot stand in one column of ids.
    folders = sorted((tmp_path / "log").iterdir())
    assert len(folders) == 2
    assert sum(pq.read_table(folder).num_rows for folder in folders) == log.counts().rows


def test_rows_wait_for_a_disk_that_fails_and_what_is_beyond_their_bound_is_counted(
    ranker: Ranker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    record = ranked(ranker)
    monkeypatch.setattr(impressions, "_RETRY_S", (0.01, 0.05))
    with ImpressionLog(tmp_path) as log:
        write = log._files.write

        def full(table: pa.Table) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(log._files, "write", full)
        log.offer(record)
        eventually(lambda: log.counts().waiting == len(ITEMS))
        assert "No space left" in str(log.counts().error)
        monkeypatch.setattr(impressions, "_MAX_PENDING_BYTES", 0)
        log.offer(named(record, "beyond"))
        eventually(lambda: log.counts().failed == 1)
        monkeypatch.setattr(impressions, "_MAX_PENDING_BYTES", 1 << 20)
        monkeypatch.setattr(log._files, "write", write)
        log.offer(named(record, "r2"))
        eventually(lambda: log.counts().error is None)
    assert set(written(tmp_path)["request_id"].to_pylist()) == {"r1", "r2"}
    counts = log.counts()
    assert (counts.requests, counts.failed, counts.lost_rows) == (2, 1, len(ITEMS))
    assert (counts.rows, counts.waiting) == (2 * len(ITEMS), 0)
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert events == ["impression_log_fails", "impression_log_goes_on"]


def test_where_requests_wait_no_row_is_lost_for_want_of_room(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impressions, "_RETRY_S", (0.01, 0.05))
    monkeypatch.setattr(impressions, "_MAX_PENDING_BYTES", 1)
    with ImpressionLog(tmp_path, when_full="wait") as log:
        monkeypatch.setattr(log._files, "write", Mock(side_effect=OSError(28, "No space left")))
        assert log.offer(ranked(ranker))
        eventually(lambda: log.counts().waiting == len(ITEMS))
        assert all(log.offer(ranked(ranker, f"r{n}")) for n in range(2, 5))
        monkeypatch.undo()
    counts = log.counts()
    assert (counts.rows, counts.lost_rows) == (4 * len(ITEMS), 0)


HUGE = 10**30
ODD = {
    "an id beyond 64 bits": ({"user_id": 2**63}, {}, {"user_id": str(2**63)}),
    "an id of 5,000 digits": ({"user_id": 10**5000}, {}, {"user_id": hex(10**5000)}),
    "half an emoji as id": ({"user_id": "\ud83d"}, {}, {"user_id": "\ud83d"}),
    "half an emoji in a column": ({"user": "a\ud83d"}, {}, {"user": {"user": "a\ud83d"}}),
    "half an emoji in a list": ({"tags": ["x", "\udc00"]}, {}, {"user": {"tags": ["x", "\udc00"]}}),
    "a time after the year 292,277": ({}, {"time_us": 2**63}, {"event_time_us": str(2**63)}),
    "no number": ({"age": "?"}, {}, {"user": {"age": "?"}}),
    "a huge text": ({"age": "9" * 100_000 + "x"}, {}, {"user": {"age": "9" * 100_000 + "x"}}),
    "a list in a list": ({"tags": [["x"]]}, {}, {}),
    "a dict": ({"user": {"name": "bo"}, "age": {"years": 4}}, {}, {}),
    "a date that is none": ({"age": object()}, {}, {}),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_a_request_that_no_column_takes_is_kept_and_takes_no_other_with_it(
    ranker: Ranker, tmp_path: Path, odd: Any
) -> None:
    values, offered, kept = odd
    record = ranked(ranker, "before", k=2)
    bad = replace(record, request_id="odd", user={**record.user, **values})
    with ImpressionLog(tmp_path) as log:
        assert log.offer(record) and log.offer(bad, **offered)
        assert log.offer(named(record, "after"))
    counts = log.counts()
    ids = {row["request_id"] for row in written(tmp_path).to_pylist()}
    text = [
        json.loads(line)
        for file in tmp_path.glob("_as_text/*")
        for line in file.read_text().splitlines()
    ]
    assert {"before", "after"} <= set(ids)
    assert counts.requests == 3 and counts.failed == counts.lost_rows == 0
    assert ("odd" in ids) + len(text) == 1 == ("odd" in ids) + counts.as_text
    for line in text:
        assert line["request_id"] == "odd" and line["items"] == record.ranking.items
        assert line["scores"] == record.ranking.scores.tolist()
        features = kept.get("user", {})
        assert {name: line["user"][name] for name in features} == features
        assert all(line[name] == kept[name] for name in kept.keys() - {"user"})


def test_an_integer_column_takes_whole_numbers_alone(tmp_path: Path) -> None:
    kinds = {"a": ColumnType(kind="int"), "b": ColumnType(kind="bool")}
    assert impression_rows.typed_array([1, 2.0, "3", None], kinds["a"]).to_pylist() == [
        1,
        2,
        3,
        None,
    ]
    assert impression_rows.typed_array([True, "false", 1], kinds["b"]).to_pylist() == [
        True,
        False,
        True,
    ]
    for kind, value in (("a", 1.5), ("a", 1e300), ("a", float("inf")), ("a", HUGE), ("b", "yes")):
        with pytest.raises((ValueError, OverflowError, pa.ArrowException)):
            impression_rows.typed_array([1, value], kinds[kind])


@pytest.mark.parametrize("tags", ["xy", "", "x", ["x", "y"], [], None])
def test_a_list_s_column_logs_what_was_scored(ranker: Ranker, tmp_path: Path, tags: Any) -> None:
    """A bare text is a list of itself, not of its characters."""
    with ImpressionLog(tmp_path, user_id="user") as log:
        user = {**USER, "tags": tags}
        ranking = ranker.rank(user, candidates=ITEMS)
        assert log.offer(Record("r1", user, ITEMS, ranking, ranker))
    rows = pq.read_table(next(tmp_path.glob("*/*.parquet")))
    assert rows["tags"].to_pylist() == [[tags] if isinstance(tags, str) else tags] * len(ITEMS)
    assert list(ranker.bundle.score(rows)) == rows["score"].to_pylist()


def test_decimals_of_the_catalogue_are_logged_as_they_are_scored(tmp_path: Path) -> None:
    """0.3 is the nearest float64, also where Arrow's own cast gives its neighbour."""
    prices = [Decimal(n) / 10 for n in range(len(ITEMS))]
    items = pa.table({"app": ITEMS, "price": pa.array(prices, pa.decimal128(5, 1))})
    ranker = Ranker(
        publish(tmp_path, "1", seed=1), items=items, item_id="app", rank_by="price + 0 * installed"
    )
    with ImpressionLog(tmp_path / "log", user_id="user") as log:
        ranking = ranker.rank(USER, candidates=ITEMS)
        log.offer(Record("r1", USER, ITEMS, ranking, ranker))
    exact = sorted(map(float, prices), reverse=True)
    assert list(ranking.scores) == exact
    rows = pq.read_table(next((tmp_path / "log").glob("*/*.parquet")))
    assert rows["price"].to_pylist() == exact


def test_what_is_kept_as_text_hides_what_the_columns_hide(ranker: Ranker, tmp_path: Path) -> None:
    record = ranked(ranker, k=1)
    bad = replace(record, user={**record.user, "user": "bo\ud83d", "age": "secret"})
    with ImpressionLog(tmp_path, user_id="user", hash_users=b"k" * 16, columns=["tags"]) as log:
        assert log.offer(bad)
        assert log.offer(replace(bad, request_id="\ud83d"))
    lines = "".join(file.read_text() for file in tmp_path.glob("_as_text/*"))
    assert "bo" not in lines and "secret" not in lines and "ud83d" in lines
    assert written(tmp_path)["user_id"].to_pylist()[0] == json.loads(lines)["user_id"]


def test_a_folder_that_is_taken_away_comes_back_with_all_rows(
    ranker: Ranker, tmp_path: Path
) -> None:
    record = ranked(ranker, k=3)

    def away(folder: Path) -> None:
        os.rename(folder, folder.with_name("moved"))

    for take_away in (shutil.rmtree, away):
        folder = tmp_path / take_away.__name__
        with ImpressionLog(folder) as log:
            log.offer(named(record, "before"))
            eventually(lambda: log.counts().requests == 1)
            take_away(folder)
            log.offer(named(record, "after"))
            eventually(lambda: log.counts().requests == 2)
        assert set(written(folder)["request_id"].to_pylist()) == {"before", "after"}
        assert log.counts().error is None


def test_a_spool_that_is_cut_is_counted_and_leaves_no_torn_file(
    ranker: Ranker, tmp_path: Path
) -> None:
    record = ranked(ranker, k=2)
    with ImpressionLog(tmp_path) as log:
        for n in range(3):
            log.offer(named(record, str(n)))
            eventually(lambda n=n: log.counts().requests == n + 1)  # type: ignore[misc]
        (spool,) = tmp_path.glob("*/.*.rows.tmp")
        os.truncate(spool, spool.stat().st_size - 100)
    assert written(tmp_path)["request_id"].to_pylist() == ["0", "0", "1", "1"]
    assert log.counts().lost_rows == 2


def test_a_spool_that_a_power_cut_has_damaged_ends_no_later_start(
    ranker: Ranker, tmp_path: Path
) -> None:
    """Whatever stands in it, what was written before the damage becomes a file."""
    record, rng = ranked(ranker, k=2), np.random.default_rng(0)
    with ImpressionLog(tmp_path / "log") as log:
        for n in range(3):
            log.offer(named(record, str(n)))
            eventually(lambda n=n: log.counts().requests == n + 1)  # type: ignore[misc]
        (spool,) = (tmp_path / "log").glob("*/.*.rows.tmp")
        whole = spool.read_bytes()
    counts = set()
    for case in range(150):
        damaged = bytearray(whole)
        at = int(rng.integers(len(whole)))
        damaged[at : at + int(rng.choice([1, 8, 4096]))] = rng.choice([b"\0", b"\xff", b"\x7f"]) * 8
        folder = tmp_path / f"{case}" / spool.parent.name
        folder.mkdir(parents=True)
        (folder / spool.name).write_bytes(damaged)
        files = RotatedFiles(folder.parent, Rotation(), Retention())
        assert not list(folder.glob(".*"))
        found = [pq.read_table(path) for path in folder.glob("*.parquet")]
        ids = [id_ for table in found for id_ in table["request_id"].to_pylist()]
        assert sorted(2 * list(dict.fromkeys(ids))) == ids and set(ids) <= {"0", "1", "2"}
        # What is missing is counted: none of it, or some.
        assert (len(ids) == 6) == (files.lost_bytes == 0)
        counts.add(tuple(dict.fromkeys(ids)))
    assert counts >= {(), ("0", "1"), ("0", "2"), ("1", "2")}


def test_bytes_that_a_killed_process_lost_are_told(ranker: Ranker, tmp_path: Path) -> None:
    with ImpressionLog(tmp_path / "log") as log:
        log.offer(ranked(ranker, k=2))
        eventually(lambda: log.counts().requests == 1)
        (spool,) = (tmp_path / "log").glob("*/.*.rows.tmp")
        torn = spool.read_bytes()[:-7]
    left = tmp_path / "next" / spool.parent.name
    left.mkdir(parents=True)
    (left / spool.name).write_bytes(torn)
    stream = io.StringIO()
    with ImpressionLog(tmp_path / "next", monitor=ThreadMonitor(RequestLog("all", stream))) as log:
        assert log.counts().lost_bytes > 0
    assert f'"event":"impression_log_damaged","lost_bytes":{log.counts().lost_bytes}' in (
        stream.getvalue()
    )


def test_files_that_cannot_be_completed_are_tried_again(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impressions, "_RETRY_S", (0.01, 0.05))
    rename, mended = os.rename, threading.Event()

    def failing(source: Path, target: Path) -> None:
        if not mended.is_set():
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(impressions.os, "rename", failing)
    with ImpressionLog(tmp_path, rotation=Rotation(seconds=0.01)) as log:
        log.offer(ranked(ranker, "kept", k=1))
        eventually(lambda: log.counts().errors >= 2)
        assert not list(tmp_path.glob("*/*.parquet"))
        mended.set()
        eventually(lambda: complete(tmp_path, 1))
    assert written(tmp_path)["request_id"].to_pylist() == ["kept"]


def test_a_log_that_recovers_deletes_no_file_that_another_is_about_to_lock(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, before_locks = fcntl.flock, iter(["rows", "parquet"])

    def lock_late(file: IO[bytes], operation: int) -> None:
        if operation == fcntl.LOCK_EX and next(before_locks, None):
            ImpressionLog(tmp_path).close()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with ImpressionLog(tmp_path) as log:
        log.offer(ranked(ranker, "kept", k=1))
        eventually(lambda: log.counts().requests == 1)
        assert any(tmp_path.glob("*/.*.rows.tmp"))
    assert next(before_locks, None) is None and log.counts().errors == 0
    assert written(tmp_path)["request_id"].to_pylist() == ["kept"]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written there"):
        ImpressionLog(tmp_path / "file" / "log")


KILLED = """
import sys, time
from functools import partial
from pathlib import Path
from tests.serving.test_impressions import ranked
from tests.serving.versions import write_items
from widedeep.serving.impressions import Rotation
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.ranker import Ranker

bundle, items, folder = sys.argv[1:]
ranker = Ranker(bundle, items=items, item_id="app")
log = ImpressionLog(folder, rotation=Rotation(seconds=0.3))
for n in range(10**9):
    log.offer(ranked(ranker, f"request {n}"))
    time.sleep(0.001)
"""


def test_kill_9_leaves_only_complete_files(ranker: Ranker, tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.parquet")
    folder = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(ranker.bundle.path), str(items), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        cwd=ROOT,
    )

    def stopped_with_an_open_spool() -> bool:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if any(folder.glob("*/.*.tmp")):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    try:
        eventually(lambda: len(list(folder.glob("*/*.parquet"))) >= 2)
        eventually(stopped_with_an_open_spool)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert list(folder.glob("*/.*.tmp"))
    table = written(folder)
    assert table.num_rows % len(ITEMS) == 0
    numbers = {int(each.removeprefix("request ")) for each in table["request_id"].to_pylist()}
    assert numbers == set(range(len(numbers)))
    # The next process makes a file of what this one left; one that is alive keeps its own.
    with ImpressionLog(folder) as log:
        assert not list(folder.glob("*/.*.tmp"))
        both = {int(e.removeprefix("request ")) for e in written(folder)["request_id"].to_pylist()}
        assert both == set(range(len(both))) and len(both) >= len(numbers)
        log.offer(ranked(ranker, "after"))
        eventually(lambda: any(folder.glob("*/.*.tmp")))
        ImpressionLog(folder).close()
        assert list(folder.glob("*/.*.tmp"))
    assert "after" in written(folder)["request_id"].to_pylist()
