"""Impressions in a Kafka topic: the rows of the file log, none lost while brokers are away.

The broker is librdkafka's own mock cluster, in a process of its own; see test_follow_topic.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.test_follow_topic import broker as broker
from tests.serving.http.calls import Running, running
from tests.serving.test_impressions import ranked, ranker
from tests.serving.versions import ITEMS, USER, eventually
from widedeep.data.topics import Topic, follow_topic
from widedeep.errors import ConfigError
from widedeep.kernels.native_server import has_native_server
from widedeep.serving import impression_topic
from widedeep.serving.impression_topic import LogTopic
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.ranker import Ranker

confluent_kafka = pytest.importorskip("confluent_kafka")

__all__ = ["broker", "ranker"]
COLUMNS = ["age", "app", "price", "seen", "tags", "user"]
OWN = ["request_id", "user_id", "item_id", "position", "event_time", "model_version", "score"]


def rows_of(address: str, topic: str, columns: list[str], idle_s: float = 1.0) -> list[Any]:
    pieces = follow_topic(Topic(brokers=address, name=topic), columns, idle_s=idle_s)
    return [row for _, rows in pieces for row in rows]


def create(address: str, topic: str) -> None:
    """Have the mock cluster make the topic: it does when it is asked about it."""
    confluent_kafka.Producer({"bootstrap.servers": address}).list_topics(topic, timeout=20)


def by_position(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["request_id"], row["position"]))


def test_messages_are_the_rows_of_files(
    ranker: Ranker, tmp_path: Path, broker: tuple[str, int]
) -> None:
    address, _ = broker
    create(address, "offered")
    users = [{**USER, "user_id": n, "tags": [None, "y"]} for n in (7, 8, "nine")]
    records = [ranked(ranker, f"r{n}", user=user) for n, user in enumerate(users)]
    for place in (tmp_path / "log", f"kafka://{address}/offered"):
        with ImpressionLog(place) as log:
            assert all(log.offer(record, time_us=10**15 + 1) for record in records)
        counts = log.counts()
        assert (counts.rows, counts.lost_rows, counts.waiting) == (3 * len(ITEMS), 0, 0)
    tables = [pq.read_table(file) for file in tmp_path.glob("log/*/*.parquet")]
    files = [row for table in tables for row in table.to_pylist()]
    found = rows_of(address, "offered", [*files[0]])
    for row in found:
        row["event_time"] = datetime.fromisoformat(row["event_time"])
    assert by_position(found) == by_position(files)


@pytest.mark.slow
@pytest.mark.parametrize("away_s", [3, 65])  # requests to brokers time out after a minute
@pytest.mark.skipif(not has_native_server(), reason="no native server here")
def test_the_server_s_answers_are_in_the_topic_once(
    apps: Path, tmp_path: Path, broker: tuple[str, int], away_s: float
) -> None:
    address, process = broker
    topic = f"served-{away_s}"
    create(address, topic)
    words = (apps, "--items", apps.parent / "items.parquet", "--item-id", "app")
    with running(*words, "--log", f"kafka://{address}/{topic}") as server:
        server.wait_ready()
        ask(server, 0, 50)
        os.kill(process, signal.SIGSTOP)  # the broker is away for a while
        ask(server, 50, 100)
        time.sleep(away_s)
        os.kill(process, signal.SIGCONT)
        ask(server, 100, 150)
        eventually(lambda: counts_of(server)["rows"] == 150 * len(ITEMS))
        eventually(lambda: counts_of(server)["waiting"] == 0)
    rows = rows_of(address, topic, [*OWN, *COLUMNS])
    times = Counter((row["request_id"], row["position"]) for row in rows)
    assert len(times) == 150 * len(ITEMS)
    # Unlike a broker, the mock cluster does not know a batch that is sent again after a minute.
    assert max(times.values()) == (1 if away_s < 60 else 2)
    ranker = Ranker(apps / "1", items=apps.parent / "items.parquet", item_id="app")
    want = ranker.rank(USER, candidates=ITEMS)
    for row in rows:
        place = row["position"] - 1
        assert (row["item_id"], row["score"]) == (want.items[place], want.scores[place])
        assert row["user"] == "bo" and row["seen"] == ["mail"] and row["app"] == row["item_id"]
        assert row["request_id"] == f"r{row['user_id']}"


def ask(server: Running, first: int, end: int) -> None:
    for number in range(first, end):
        user = {**USER, "user_id": number}
        body = {"user": user, "candidates": ITEMS, "request_id": f"r{number}"}
        assert server.call("POST", "/v1/rank", body).status == 200


def counts_of(server: Running) -> dict[str, Any]:
    counts: dict[str, Any] = server.call("GET", "/v1/status").json["impression_log"]
    return counts


def test_brokers_that_stay_away_are_told_and_what_they_miss_is_counted(
    ranker: Ranker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(impression_topic, "_FLUSH_S", 0.1)
    with ImpressionLog("kafka://127.0.0.1:1/nobody") as log:
        assert log.offer(ranked(ranker, "lost", k=2))
        eventually(lambda: log.counts().error is not None)
        assert log.counts().waiting == 2
    counts = log.counts()
    assert (counts.lost_rows, counts.waiting) == (2, 0)
    assert "127.0.0.1:1" in str(counts.error)
    assert "impression_log_fails" in capfd.readouterr().err


class EndingProducer:
    """A producer that an error ends after some messages: it sends nothing more, and takes none.

    As librdkafka's, it raises the error in what takes its events, once: in ``poll`` or ``flush``.
    """

    def __init__(self, producer: Any, takes: int) -> None:
        self._producer, self._takes, self._told = producer, takes, False

    def produce(self, *words: Any) -> None:
        if self._takes == 0:
            codes = confluent_kafka.KafkaError
            raise confluent_kafka.KafkaException(codes(codes._FATAL, "fatal error"))
        self._takes -= 1
        self._producer.produce(*words)

    def poll(self, seconds: float) -> int:
        self._tell()
        return int(self._producer.poll(seconds))

    def flush(self, seconds: float) -> int:
        self._tell()
        return int(self._producer.flush(seconds))

    def _tell(self) -> None:
        if self._takes == 0 and not self._told:
            self._told = True
            code = confluent_kafka.KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
            error = confluent_kafka.KafkaError(code, "out of order", fatal=True)
            raise confluent_kafka.KafkaException(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def __len__(self) -> int:
        return len(self._producer)


@pytest.mark.parametrize("takes", [3, 5], ids=["told by produce", "told by poll"])
def test_after_a_fatal_error_another_producer_goes_on(
    ranker: Ranker, broker: tuple[str, int], capfd: pytest.CaptureFixture[str], takes: int
) -> None:
    address, _ = broker
    create(address, f"fatal{takes}")
    slow = {"linger.ms": "60000"}  # so that what the first has taken waits in its queue
    with ImpressionLog(f"kafka://{address}/fatal{takes}", kafka=slow) as log:
        ending = EndingProducer(log._files._producer, takes)  # type: ignore[union-attr]
        log._files._producer = ending  # type: ignore[union-attr]
        assert log.offer(ranked(ranker, "r0", k=5))
        eventually(lambda: log.counts().errors == 1)
    assert (log.counts().rows, log.counts().lost_rows) == (5, 0)
    rows = rows_of(address, f"fatal{takes}", ["position"])
    assert Counter(row["position"] for row in rows) == dict.fromkeys(range(1, 6), 1)
    told = capfd.readouterr().err
    assert "a new producer goes on, 0 rows are lost" in told
    assert "KafkaException" not in told


def test_a_fatal_error_while_the_last_rows_are_sent_loses_none(broker: tuple[str, int]) -> None:
    address, _ = broker
    create(address, "ending")
    topic = LogTopic(f"kafka://{address}/ending", {"linger.ms": "60000"})
    topic.write(pa.table({"user_id": [1, 1, 2], "position": [1, 2, 1]}))
    ending = EndingProducer(topic._producer, 0)
    ending.poll = ending._producer.poll  # type: ignore[method-assign]
    topic._producer = ending  # type: ignore[assignment]
    with pytest.raises(OSError, match="a new producer goes on, 0 rows are lost"):
        topic.rotate(all_of_them=True)
    assert (topic.waiting, topic.lost_rows) == (0, 0)
    assert len(rows_of(address, "ending", ["position"])) == 3


def test_a_full_buffer_holds_up_rows_and_sends_none_twice(
    ranker: Ranker, broker: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = broker
    create(address, "full")
    monkeypatch.setattr(impression_topic, "_BUFFER_MESSAGES", 3)
    with ImpressionLog(f"kafka://{address}/full") as log:
        for n in range(20):
            assert log.offer(ranked(ranker, f"r{n}"))
        eventually(lambda: log.counts().rows == 20 * len(ITEMS))
    assert log.counts().lost_rows == 0
    rows = rows_of(address, "full", ["request_id", "position"])
    distinct = {(row["request_id"], row["position"]) for row in rows}
    assert len(distinct) == len(rows) == 20 * len(ITEMS)


def test_a_message_that_is_too_large_is_lost_alone(ranker: Ranker, broker: tuple[str, int]) -> None:
    address, _ = broker
    create(address, "large")
    users = [{**USER, "user_id": n, "user": "bo" * (2_000 if n == 1 else 1)} for n in range(3)]
    small = {"message.max.bytes": "1000"}
    with ImpressionLog(f"kafka://{address}/large", kafka=small) as log:
        for n, user in enumerate(users):
            assert log.offer(ranked(ranker, f"r{n}", user=user))
    assert log.counts().lost_rows == len(ITEMS)
    assert "large" in str(log.counts().error)
    rows = rows_of(address, "large", ["request_id"])
    assert Counter(row["request_id"] for row in rows) == {"r0": len(ITEMS), "r2": len(ITEMS)}


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("kafka://a:1", {}, "kafka://HOST:PORT"),
        ("kafka://a:1/t?rows=3", {}, "no options"),
        ("kafka://a:1/t", {"no.such": "x"}, "no.such"),
        ("kafka://a:1/t", {"sasl.password": "$NO_SUCH_NAME"}, "no such environment variable"),
    ],
)
def test_bad_places_are_refused(url: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partial(ImpressionLog, url)(kafka=settings)
