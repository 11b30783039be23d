"""Examples that come as messages of a Kafka topic: pieces of it, each named by its offsets.

A piece's name says which offsets of which partitions it holds, and a stream's checkpoint names the
pieces that were learned. A run that goes on therefore knows where to read from, and no broker has
to remember it: what was learned and where the reading stands are written in one file at once.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from widedeep.errors import ConfigError, DataError, extra_imports, nearest

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

SCHEME = "kafka://"
_NAME = re.compile(r"\d+:\d+-\d+")
_ANSWER_S = 20.0  # for a broker to answer when the run begins
_POLL_S = 0.5
_REFRESH_S = 60.0  # between looks for new partitions
_BATCH = 4096  # messages taken at a time
_OPTIONS = ("rows", "seconds", "from", "bad")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic and how it is cut into pieces: ``kafka://host:9092,host:9092/topic?rows=50000``.

    Raises:
        ConfigError: If a value is not allowed.
    """

    brokers: str  # Addresses, ``host:port``, separated by commas
    name: str  # The topic
    rows: int = 50_000  # Messages of a piece, at most
    seconds: float = 60.0  # After so long a piece ends with fewer
    # Where a stream that has learned nothing begins: ``"earliest"`` or ``"latest"``
    begin: str = "earliest"
    # What to do with a message that is no JSON object: ``"stop"``, or ``"skip"``, counted
    bad: str = "stop"
    # Further settings of librdkafka; ``$NAME`` stands for an environment variable
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_url(cls, url: str, settings: Mapping[str, str] | None = None) -> Topic:
        """Read the URL."""
        parts = urlsplit(url)
        name = parts.path.strip("/")
        if not parts.netloc or not name or "/" in name:
            raise ConfigError(f"got {url!r}, expected kafka://HOST:PORT[,HOST:PORT]/TOPIC")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        for key in options:
            if key not in _OPTIONS:
                raise ConfigError(f"{url}: got the option {key!r}; {nearest(key, _OPTIONS)}")
        return cls(
            brokers=parts.netloc,
            name=name,
            rows=int(_number(url, options, "rows", cls.rows, whole=True)),
            seconds=_number(url, options, "seconds", cls.seconds),
            begin=_choice(url, options, "from", ("earliest", "latest")),
            bad=_choice(url, options, "bad", ("stop", "skip")),
            settings=dict(settings or {}),
        )


def _number(
    url: str, options: Mapping[str, str], key: str, default: float, *, whole: bool = False
) -> float:
    text = options.get(key, str(default))
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = 0
    if not 0 < number < 1e9:
        kind = "an integer of at least 1" if whole else "a number above 0"
        raise ConfigError(f"{url}: got {key}={text!r}, expected {kind}")
    return number


def _choice(url: str, options: Mapping[str, str], key: str, choices: Sequence[str]) -> str:
    text = options.get(key, choices[0])
    if text not in choices:
        allowed = " or ".join(map(repr, choices))
        raise ConfigError(f"{url}: got {key}={text!r}, expected {allowed}")
    return text


def follow_topic(
    topic: Topic,
    columns: Collection[str],
    *,
    done: Collection[str] = (),
    idle_s: float | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, list[Row]]]:
    """Yield the topic's messages, piece by piece, from behind those that are done.

    A message is a JSON object: a row by column. Keys that it lacks are nulls, and are told once;
    keys that no column has are left out.

    Args:
        topic: The topic.
        columns: The columns to keep.
        done: Names of pieces that were learned, those of other topics perhaps among them.
        idle_s: End after so long without a message; None: never.
        notify: Called with a line for a person.

    Yields:
        A piece's name, which tells its offsets, and its rows.

    Raises:
        DataError: If the topic is not there, a message is no JSON object, or messages that were
            not learned yet are gone.
        MissingPackageError: If confluent-kafka is not installed.
    """
    reader = _Reader(topic, done, notify)
    try:
        yield from reader.pieces(set(columns), idle_s)
    finally:
        reader.close()


class _Reader:
    """A consumer that reads all partitions, from offsets of its own."""

    def __init__(self, topic: Topic, done: Collection[str], notify: Callable[[str], None]) -> None:
        with extra_imports():
            import confluent_kafka
        self._kafka, self._topic, self._notify = confluent_kafka, topic, notify
        self._next = offsets_after(topic.name, done)  # Offset to read next, by partition
        self._resumes = bool(self._next)
        self._away = ""
        self._absent: set[str] = set()
        self._bad = 0
        self._assigned: set[int] = set()
        self._ended: set[int] = set()  # Partitions of which all messages have come
        self._refreshed = time.monotonic()
        settings = client_settings(topic.settings, "[follow] kafka")
        self._consumer: Consumer = confluent_kafka.Consumer(
            {
                "group.id": "widedeep",  # librdkafka wants one; nothing is committed to it
                **settings,
                "bootstrap.servers": topic.brokers,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "error_cb": self._on_error,
                "log_level": 0,
            }
        )
        self._assign(self._partitions(_ANSWER_S))

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()

    def pieces(self, columns: set[str], idle_s: float | None) -> Iterator[tuple[str, list[Row]]]:
        """Yield pieces until the topic has been silent for so long."""
        topic, rows = self._topic, list[Row]()
        first = dict(self._next)
        began = heard = time.monotonic()
        while True:
            room = min(topic.rows - len(rows), _BATCH)
            for message in self._consumer.consume(room, timeout=_POLL_S):
                if self._skips(message):
                    continue
                if not rows:
                    began = time.monotonic()
                heard = time.monotonic()
                self._ended.discard(partition_of(message))
                row = self._row(message, columns)
                self._next[partition_of(message)] = int(message.offset() or 0) + 1
                if row is not None:
                    rows.append(row)
            now = time.monotonic()
            if not self._ended >= self._assigned:  # what is on its way is no silence
                heard = now
            silent = idle_s is not None and now - heard >= idle_s
            if rows and (len(rows) >= topic.rows or now - began >= topic.seconds or silent):
                yield piece_name(topic.name, first, self._next), rows
                rows, first = [], dict(self._next)
                heard = time.monotonic()  # learning takes its time
            elif silent:
                return
            if now - self._refreshed >= _REFRESH_S:
                self._look_for_partitions(first)

    def _skips(self, message: Message) -> bool:
        """Tell whether it is no message but an event; errors that lose data are raised."""
        error = message.error()
        if error is None:
            if self._away:
                self._notify(f"{self._topic.brokers}: there again")
                self._away = ""
            return False
        codes = self._kafka.KafkaError
        if error.code() in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE):
            partition = partition_of(message)
            raise DataError(
                f"topic {self._topic.name!r}, partition {partition}: messages from offset "
                f"{self._next.get(partition)} on are gone ({error.str()}): they were deleted "
                "before they were learned; keep them for longer, or begin a new stream"
            )
        if error.code() == codes._PARTITION_EOF:
            self._ended.add(partition_of(message))
        else:
            self._on_error(error)
        return True

    def _on_error(self, error: Any) -> None:
        """Tell once that brokers are away; the library goes on trying."""
        if not self._away:
            self._away = error.str()
            self._notify(f"{self._topic.brokers}: {self._away}; trying again")

    def _row(self, message: Message, columns: set[str]) -> Row | None:
        value = message.value()
        try:
            row = json.loads(value) if value is not None else None
        except ValueError:
            row = value
        if isinstance(row, dict):
            if absent := columns - row.keys() - self._absent:
                self._absent |= absent
                self._notify(
                    f"{self._where(message)} has no {', '.join(sorted(absent))}: taken for null, "
                    "here and in the messages behind it"
                )
            return {name: row.get(name) for name in columns}
        if self._topic.bad == "stop":
            raise DataError(
                f"{self._where(message)}: got {str(row)[:60]!r}, expected a JSON object, a row by "
                "column; mend the sender, and give bad=skip in the URL to pass over such messages"
            )
        self._bad += 1
        if self._bad & (self._bad - 1) == 0:  # 1, 2, 4, ...: a topic of them fills no log
            self._notify(f"{self._where(message)} is no JSON object: skipped, {self._bad:,} so far")
        return None

    def _where(self, message: Message) -> str:
        offset = f"partition {message.partition()}, offset {message.offset()}"
        return f"topic {self._topic.name!r}, {offset}"

    # ---- partitions --------------------------------------------------------------------------

    def _partitions(self, timeout_s: float) -> list[int]:
        topic = self._topic
        try:
            listed = self._consumer.list_topics(topic.name, timeout=timeout_s).topics[topic.name]
        except self._kafka.KafkaException as error:
            raise DataError(
                f"{topic.brokers}: no answer within {timeout_s:g} s ({error.args[0].str()}); check "
                "the address, and what the brokers ask of a client (kafka = {...} under [follow])"
            ) from error
        if listed.error is not None or not listed.partitions:
            reason = "" if listed.error is None else f" ({listed.error.str()})"
            raise DataError(
                f"{topic.brokers}: there is no topic {topic.name!r}{reason}; check its name"
            )
        return sorted(listed.partitions)

    def _look_for_partitions(self, first: dict[int, int]) -> None:
        self._refreshed = time.monotonic()
        try:
            new = [p for p in self._partitions(_POLL_S) if p not in self._assigned]
        except DataError:  # told by the callback already; reading goes on by itself
            return
        if new:
            self._assign(new)
            first.update({p: self._next[p] for p in new})

    def _assign(self, partitions: Sequence[int]) -> None:
        """Read partitions from where the stream stands, or from where a new one begins."""
        of_partition = self._kafka.TopicPartition
        for partition in partitions:
            low, high = self._consumer.get_watermark_offsets(
                of_partition(self._topic.name, partition), timeout=_ANSWER_S
            )
            # A partition that came later is read from its first message.
            latest = self._topic.begin == "latest" and not (self._resumes or self._assigned)
            offset = self._next.setdefault(partition, high if latest else low)
            self._check(partition, offset, low, high)
        self._assigned |= {*partitions}
        self._consumer.incremental_assign(
            [
                of_partition(self._topic.name, partition, self._next[partition])
                for partition in partitions
            ]
        )

    def _check(self, partition: int, offset: int, low: int, high: int) -> None:
        where = (
            f"topic {self._topic.name!r}, partition {partition}: the stream stands at offset "
            f"{offset}"
        )
        if offset < low:
            raise DataError(
                f"{where}, but the first message is {low}: {low - offset:,} were deleted before "
                "they were learned; keep messages for longer, or begin a new stream"
            )
        if offset > high:
            raise DataError(
                f"{where}, but the partition ends at {high}: the topic was made anew; begin a new "
                "stream, or name the topic that the stream has followed"
            )


def partition_of(message: Message) -> int:
    """Return the number of a message's partition."""
    return int(message.partition() or 0)


def piece_name(topic: str, first: Mapping[int, int], behind: Mapping[int, int]) -> str:
    """Return a piece's name: its topic, and the offsets that it holds of each partition.

    Example:
        >>> piece_name("clicks", {0: 0, 1: 5}, {0: 100, 1: 5})
        'kafka:clicks 0:0-100'
    """
    ranges = [
        f"{partition}:{first[partition]}-{end}"
        for partition, end in sorted(behind.items())
        if end > first[partition]
    ]
    return f"kafka:{topic} {' '.join(ranges)}"


def offsets_after(topic: str, names: Collection[str]) -> dict[int, int]:
    """Return the offset behind the pieces of a topic, by partition.

    Example:
        >>> offsets_after("clicks", ["kafka:clicks 0:0-100", "kafka:clicks 0:100-150 1:0-7"])
        {0: 150, 1: 7}
    """
    behind: dict[int, int] = {}
    for name in names:
        lead, _, ranges = name.partition(" ")
        if lead != f"kafka:{topic}":
            continue
        for text in _NAME.findall(ranges):
            partition, _, span = text.partition(":")
            end = int(span.partition("-")[2])
            behind[int(partition)] = max(end, behind.get(int(partition), 0))
    return behind


def client_settings(settings: Mapping[str, str], owner: str) -> dict[str, str]:
    """Return settings of librdkafka; ``$NAME`` stands for an environment variable."""
    values = {}
    for key, value in settings.items():
        if value.startswith("$") and value[1:] not in os.environ:
            raise ConfigError(
                f"{owner}: {key} = {value!r}: there is no such environment variable; set it"
            )
        values[key] = os.environ[value[1:]] if value.startswith("$") else value
    return values
