"""Topic of the impression log: a Kafka message per row, bounded while the brokers are away."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from widedeep.data.topics import Topic, client_settings
from widedeep.errors import ConfigError, extra_imports
from widedeep.serving.native_rows import Chunk, chunk_table

_BUFFER_KB, _BUFFER_MESSAGES = 64 << 10, 10_000_000
_ROOM_S = 1.0  # for the brokers to take messages before a full buffer is an error
_FLUSH_S = 10.0  # at the end, for what is not yet delivered
_NEVER_S = 3600.0


class LogTopic:
    """Sends rows to a topic; the rows of a user go to one partition, in their order.

    A message's key is the user's id as text, its value a JSON object: the row by column, times in
    ISO 8601. Up to 64 MiB wait for brokers that are away; what was not delivered after five
    minutes, or was refused, is lost and counted. After an error that ends the producer another one
    takes over, with the messages that were not under way.

    Args:
        url: ``kafka://HOST:PORT[,HOST:PORT]/TOPIC``.
        settings: Further settings of librdkafka; ``$NAME`` stands for an environment variable.

    Raises:
        ConfigError: If the URL is none of a topic, or librdkafka knows no such setting.
        MissingPackageError: If confluent-kafka is not installed.
    """

    lost_bytes = 0  # A topic has no spools.

    def __init__(self, url: str, settings: Mapping[str, str]) -> None:
        with extra_imports():
            import confluent_kafka
        if "?" in url:
            raise ConfigError(f"got {url!r}, expected no options: kafka://HOST:PORT/TOPIC")
        self._kafka = confluent_kafka
        topic = Topic.of_url(url)
        self._name, self._brokers = topic.name, topic.brokers
        self._produced = self._delivered = self._failed = self._unfit = 0
        self._away = self._refusal = self._fatal = ""
        self._reports: list[tuple[Any, Any]] = []  # of messages that were not delivered
        self._unsent: list[tuple[bytes, bytes]] = []  # what an ended producer had not begun to send
        self._rows: pa.Table | Chunk | None = None  # the rows that are being sent
        self._messages: Iterator[tuple[bytes, bytes]] = iter(())
        self._message: tuple[bytes, bytes] | None = None
        self._settings: dict[str, Any] = {
            "enable.idempotence": True,  # retries send nothing twice, and keep the order
            "linger.ms": 20,
            "compression.type": "lz4",
            **client_settings(settings, "--log-kafka"),
            "bootstrap.servers": topic.brokers,
            "queue.buffering.max.kbytes": _BUFFER_KB,
            "queue.buffering.max.messages": _BUFFER_MESSAGES,
            "delivery.report.only.error": True,
            # All that can be done while the binding raises the error that ends a producer
            "on_delivery": lambda error, message: self._reports.append((error, message)),
            "error_cb": self._on_error,
            "log_level": 0,
        }
        try:
            self._producer = confluent_kafka.Producer(self._settings)
        except confluent_kafka.KafkaException as error:
            raise ConfigError(f"--log-kafka: {error.args[0].str()}") from error

    @property
    def waiting(self) -> int:
        """Rows that the brokers have not taken yet."""
        # The library's count holds events, too.
        return min(len(self._producer), self._produced - self._failed) + len(self._unsent)

    @property
    def lost_rows(self) -> int:
        """Rows that the brokers did not take in time or refused, and rows that are no messages."""
        return self._failed + self._unfit

    def write(self, rows: pa.Table | Chunk) -> None:
        """Send rows; after an error call again with the same ones: none is sent twice."""
        if rows is not self._rows:
            table = chunk_table(rows) if isinstance(rows, Chunk) else rows
            self._rows, self._messages, self._message = rows, messages(table), None
        while True:
            self._message = self._message or next(self._messages, None)
            if self._message is None:
                break
            self._send(*self._message)
            self._message = None
        self._rows = None

    def _send(self, key: bytes, value: bytes) -> None:
        end = time.monotonic() + _ROOM_S
        while True:
            try:
                self._producer.produce(self._name, value, key)
            except BufferError:
                if time.monotonic() >= end:
                    raise self._failure(f"{self._brokers}: no room for more messages") from None
                self._serve(self._producer.poll, 0.05)
            except self._kafka.KafkaException as error:
                if error.args[0].code() == self._kafka.KafkaError._FATAL:
                    self._replace_producer(error.args[0].str())
                    continue
                self._unfit += 1  # this message alone: it is too large
                self._refusal = error.args[0].str()
                return
            else:
                self._produced += 1
                return

    def _replace_producer(self, reason: str) -> None:
        """Go on after an error that ended the producer, as when a broker has forgotten it."""
        failed = self._failed
        self._serve(self._producer.poll, 0)
        self._producer.purge()
        self._serve(self._producer.flush, 1.0)  # may end by the error
        self._failed += self._serve(self._producer.flush, 1.0)
        unsent, self._unsent, self._fatal = self._unsent, [], ""
        self._producer = self._kafka.Producer(self._settings)
        for key, value in unsent:
            self._send(key, value)
        self._refusal = f"{reason}; a new producer goes on, {self._failed - failed} rows are lost"

    def _serve(self, serve: Callable[[float], int], seconds: float) -> int:
        """Let the producer report, which may raise the error that ended it; return what is left."""
        try:
            left = serve(seconds)
        except (
            self._kafka.KafkaException,
            SystemError,
        ) as error:  # the latter by a report after it
            self._fatal, left = str(error.__cause__ or error), len(self._producer)
        for failure, message in self._reports:
            if failure.code() == self._kafka.KafkaError._PURGE_QUEUE:
                self._unsent.append((message.key(), message.value()))
                self._produced -= 1
            else:
                self._failed += 1
                self._refusal = failure.str()
        self._reports.clear()
        return left

    def write_text(self, line: str) -> None:
        """Count a request with values that fit no column: readers expect rows alone."""
        self._unfit += len(json.loads(line)["items"])

    def rotate(self, *, all_of_them: bool = False) -> None:
        """See to what was sent; raise OSError while the brokers are away, or if they refused."""
        self._serve(self._producer.poll, 0)
        left = self._serve(self._producer.flush, _FLUSH_S) if all_of_them else 0
        if self._fatal:
            self._replace_producer(self._fatal)
            left = self._serve(self._producer.flush, _FLUSH_S) if all_of_them else 0
        if left or (all_of_them and self._unsent):
            self._producer.purge()
            self._serve(self._producer.flush, 1.0)
            self._produced += len(self._unsent)
            self._failed += len(self._unsent)
            self._unsent.clear()
            self._refusal = self._refusal or self._away or "the brokers did not take the last rows"
        delivered = self._produced - len(self._producer) - self._failed
        if delivered > self._delivered or not len(self._producer):
            self._away = ""
        self._delivered = max(delivered, self._delivered)
        refusal, self._refusal = self._refusal, ""
        if refusal or self._away:
            raise self._failure(refusal or self._away)

    def next_rotation(self) -> float:
        """Return the seconds until the topic needs to be seen to: it never does by itself."""
        return _NEVER_S

    def close(self) -> int:
        """Return how many rows wait in files: none."""
        return 0

    def _failure(self, reason: str) -> OSError:
        return OSError(errno.EAGAIN, reason, f"kafka://{self._brokers}/{self._name}")

    def _on_error(self, error: Any) -> None:
        self._away = error.str()


def messages(table: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each row's message."""
    with extra_imports():
        import msgspec
    encode = msgspec.json.Encoder().encode
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            yield str(row["user_id"]).encode(), encode(row)
