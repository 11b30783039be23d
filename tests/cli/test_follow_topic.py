"""A run that follows a Kafka topic: nothing learned twice or lost, killed or not, away or not.

The broker is librdkafka's own mock cluster, in a process of its own: it speaks Kafka's protocol on
loopback, with four partitions a topic.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.ads import ads_table, write_ads
from tests.command_line import Run
from widedeep.cli.main import main
from widedeep.data import topics
from widedeep.data.topics import Topic, follow_topic, offsets_after
from widedeep.errors import ConfigError, DataError
from widedeep.files import map_tensors

confluent_kafka = pytest.importorskip("confluent_kafka")

BROKER = """
import time
from confluent_kafka import Producer
cluster = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "x", "log_level": 0})
(broker,) = cluster.list_topics(timeout=20).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
while True:
    time.sleep(1)
"""
ROWS = 300


@pytest.fixture(scope="module")
def broker() -> Iterator[tuple[str, int]]:
    """The address of a broker, and its process."""
    command = [sys.executable, "-c", BROKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
        process.kill()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and three shards to follow as files."""
    place = write_ads(tmp_path_factory.mktemp("base"))
    (place / "new").mkdir()
    for i in range(3):
        pq.write_table(ads_table(ROWS, 10 + i), place / f"new/{i}.parquet")
    assert main(["train", str(place / "ads.toml"), "--out", str(place / "run")]) == 0
    return place


@pytest.fixture
def copy(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def send(address: str, topic: str, values: Sequence[Any], partition: int = 0) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": address})
    for value in values:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        producer.produce(topic, data, partition=partition)
    assert producer.flush(30) == 0


def shard_rows() -> list[dict[str, Any]]:
    return [row for i in range(3) for row in ads_table(ROWS, 10 + i).to_pylist()]


def follow(url: str, *more: str) -> list[str]:
    return ["train", "ads.toml", "--out", "run", "--resume", "--follow", url, "--idle", "1", *more]


def learned(place: Path) -> list[str]:
    state = json.loads(max(place.glob("run/stream/step-*/state.json")).read_text())
    shards: list[str] = state["state"]["shards"]
    return shards


def test_messages_are_learned_as_the_same_rows_in_files(
    run: Run, copy: Path, broker: tuple[str, int]
) -> None:
    address, _ = broker
    send(address, "ads", shard_rows())
    code, _, err = run(*follow(f"kafka://{address}/ads?rows={ROWS}"))
    assert code == 0, err
    assert learned(copy) == [
        f"kafka:ads 0:{i * ROWS}-{(i + 1) * ROWS}" for i in range(3)
    ]  # fmt: skip
    by_topic = map_tensors(copy / "run" / "bundle" / "weights.safetensors")
    (copy / "run").rename(copy / "by_topic")
    assert main(["train", "ads.toml", "--out", "run"]) == 0
    code, _, err = run(*follow("new"))
    assert code == 0, err
    by_files = map_tensors(copy / "run" / "bundle" / "weights.safetensors")
    assert by_topic.keys() == by_files.keys()
    for name, weights in by_files.items():
        assert np.array_equal(by_topic[name], weights), name


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(copy: Path, broker: tuple[str, int]) -> None:
    address, _ = broker
    rows = shard_rows()
    for partition in range(4):
        send(address, "killed", rows[partition::4], partition)
    words = follow(f"kafka://{address}/killed?rows=50")
    for wait_s in (2.5, 3.0):  # a moment of the following, whichever it is
        process = subprocess.Popen(
            [sys.executable, "-m", "widedeep", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(copy.glob("run/stream/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(wait_s / 5)
        process.kill()
        process.communicate()
    assert main(words) == 0
    ranges: dict[int, list[tuple[int, int]]] = {}
    for name in learned(copy):
        for partition, first, end in re.findall(r"(\d+):(\d+)-(\d+)", name):
            ranges.setdefault(int(partition), []).append((int(first), int(end)))
    assert ranges.keys() == {0, 1, 2, 3}
    for spans in ranges.values():
        assert spans[0][0] == 0 and spans[-1][1] == 3 * ROWS // 4
        assert all(before[1] == behind[0] for before, behind in pairwise(spans))
    state = json.loads(max(copy.glob("run/stream/step-*/state.json")).read_text())["state"]
    assert state["position"]["rows"] == 3 * ROWS


@pytest.mark.parametrize(
    ("away_s", "settings"),
    [
        (0, {"socket.timeout.ms": "1000", "fetch.wait.max.ms": "100"}),
        pytest.param(65, {}, marks=pytest.mark.slow),  # requests time out after a minute
    ],
)
def test_a_broker_that_is_away_and_comes_back(
    broker: tuple[str, int], away_s: float, settings: dict[str, str]
) -> None:
    (address, process), name = broker, f"away-{away_s}"
    send(address, name, [{"n": i} for i in range(10)])
    lines: list[str] = []
    topic = Topic.of_url(f"kafka://{address}/{name}?rows=10", settings)
    pieces = follow_topic(topic, ["n"], idle_s=20 + 2 * away_s, notify=lines.append)
    assert next(pieces) == (f"kafka:{name} 0:0-10", [{"n": i} for i in range(10)])
    with ThreadPoolExecutor(1) as pool:
        os.kill(process, signal.SIGSTOP)
        try:
            piece = pool.submit(next, pieces)  # asks while nobody answers
            time.sleep(away_s)
            deadline = time.monotonic() + 30
            while not lines and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            os.kill(process, signal.SIGCONT)
        assert "trying again" in lines[0], lines
        send(address, name, [{"n": i} for i in range(10, 20)])
        rows = [{"n": i} for i in range(10, 20)]
        assert piece.result(timeout=60) == (f"kafka:{name} 0:10-20", rows)
    assert lines[-1].endswith("there again")
    pieces.close()


def test_messages_that_are_no_rows(broker: tuple[str, int]) -> None:
    address, _ = broker
    send(address, "odd", [{"n": 1, "more": 2}, {}, b"{", [3], {"n": 4}])
    url = f"kafka://{address}/odd"
    lines: list[str] = []
    with pytest.raises(DataError, match=r"topic 'odd', partition 0, offset 2: got .* JSON object"):
        list(follow_topic(Topic.of_url(url), ["n"], idle_s=1))
    skipping = Topic.of_url(f"{url}?bad=skip")
    (piece,) = follow_topic(skipping, ["n"], idle_s=1, notify=lines.append)
    assert piece == ("kafka:odd 0:0-5", [{"n": 1}, {"n": None}, {"n": 4}])
    assert "offset 1 has no n: taken for null" in lines[0]
    assert "offset 2 is no JSON object: skipped, 1 so far" in lines[1]
    late = Topic.of_url(f"{url}?from=latest")
    assert list(follow_topic(late, ["n"], idle_s=1)) == []


def test_silence_begins_behind_the_last_message(
    broker: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = broker
    monkeypatch.setattr(topics, "_POLL_S", 0.001)  # before the first message can be here
    send(address, "waiting", [{"n": i} for i in range(300)])
    topic = Topic.of_url(f"kafka://{address}/waiting?rows=100")
    pieces = [rows for _, rows in follow_topic(topic, ["n"], idle_s=0.001)]
    assert [row["n"] for rows in pieces for row in rows] == [*range(300)]


def test_what_cannot_be_followed(broker: tuple[str, int], monkeypatch: Any) -> None:
    address, _ = broker
    send(address, "known", [{"n": 1}])
    topic = Topic.of_url(f"kafka://{address}/known")
    done = ["kafka:known 0:0-1", "kafka:other 0:0-9", "0.parquet"]
    assert list(follow_topic(topic, ["n"], done=done, idle_s=0.5)) == []
    with pytest.raises(DataError, match=r"offset 9, but the partition ends at 1: .* made anew"):
        next(follow_topic(topic, ["n"], done=["kafka:known 0:0-9"]))
    monkeypatch.setattr("widedeep.data.topics._ANSWER_S", 1.0)
    with pytest.raises(DataError, match="no answer within 1 s"):
        next(follow_topic(Topic.of_url("kafka://127.0.0.1:1/ads"), ["n"]))
    with pytest.raises(ConfigError, match="no such environment variable"):
        settings = {"sasl.password": "$NO_SUCH_VARIABLE"}
        next(follow_topic(Topic.of_url(f"kafka://{address}/known", settings), ["n"]))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://host:9092", "expected kafka://HOST:PORT"),
        ("kafka:///ads", "expected kafka://HOST:PORT"),
        ("kafka://host:9092/a/b", "expected kafka://HOST:PORT"),
        ("kafka://host/ads?row=5", "did you mean 'rows'"),
        ("kafka://host/ads?rows=0.5", "an integer of at least 1"),
        ("kafka://host/ads?seconds=-1", "a number above 0"),
        ("kafka://host/ads?from=middle", "'earliest' or 'latest'"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Topic.of_url(url)


def test_offsets_come_from_the_names() -> None:
    assert offsets_after("a b", ["kafka:a b 0:0-7"]) == {}  # Kafka's names have no spaces
    assert offsets_after("a", ["kafka:a 0:0-7 12:3-9", "kafka:a 0:7-8", "kafka:ab 0:0-99"]) == {
        0: 8, 12: 9,
    }  # fmt: skip
