"""ContinuousPublisher: publishes a model that keeps learning, through the gate, at intervals."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from widedeep.data.fragments import column_stream
from widedeep.data.paths import is_gone, names_files
from widedeep.data.sources import Data, open_source
from widedeep.errors import BundleError, ConfigError, RanksError, WideDeepError
from widedeep.files import write_text_whole
from widedeep.gate.config import GateConfig, check_judge_rows
from widedeep.gate.validation import validate
from widedeep.gate.verdict import bundle_identity, verdict_path
from widedeep.publish.publishing import (
    PublishRecord,
    check_full_every,
    next_depth,
    publish,
    round_changes,
    stream_path,
)
from widedeep.publish.storage import bundle_in_service, open_store
from widedeep.ranks.shared import on_first

if TYPE_CHECKING:
    from widedeep.training.stream import Shard
    from widedeep.training.trainer import Trainer

__all__ = ["Candidate", "ContinuousPublisher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A bundle that the gate has judged, and its verdict.

    Args:
        rows: Rows of the stream that the model had learned.
        judged: Rows that the gate judged on.
        bundle: SHA-256 of the bundle's manifest.
        passed: True if the gate passed it; None if the gate could not judge.
        version: Published version; None if it was not published.
        reasons: Reasons for not publishing it.
        time: Time of the verdict, ISO 8601 in UTC.
    """

    rows: int
    judged: int
    bundle: str
    passed: bool | None
    version: str | None
    reasons: tuple[str, ...]
    time: str

    def __str__(self) -> str:
        judged = f"{self.rows:,} rows learned, judged on {self.judged:,} newer ones"
        if self.version is not None:
            return f"{judged}: published as version {self.version}"
        why = "".join(f"\n  {reason}" for reason in self.reasons)
        return f"{judged}: not published; the serving version stays{why}"


class ContinuousPublisher:
    """Publishes the model of :meth:`widedeep.Trainer.fit_stream` at intervals, through the gate.

    At each interval the model is exported and judged on the shards that come next, which it has not
    learned yet, as many as hold ``judge_rows`` rows. A model that passes is published. The shards
    are learned in either case. Without a serving version, the first model is judged at once.

    An error of the gate or the storage (a full disk, a serving model that cannot be read) is
    reported and does not stop training.

    Args:
        trainer: Trainer of the model.
        models: Directory of versions, or its URL.
        bundle: Folder for candidates; the verdict and a log of candidates are written beside it.
        every_rows: Rows to learn between two candidates; None: not by rows.
        every_minutes: Minutes between two candidates; None: not by time.
        judge_rows: Rows to judge on, at least.
        full_every: Every so many-th published version is whole, and those between are patches; see
            :func:`publish`. The gate judges each as it judges a whole one.
        patch_precision: ``"bfloat16"`` rounds the numbers of changed rows in patches, of tables and
            of the wide part, to 8 bits of precision. The gate judges the rounded model; rounding
            does not add up, for each patch starts from the trainer's own numbers.
        items: Items whose vectors each bundle keeps; see :meth:`widedeep.Trainer.export`.
        gate: Limits of the gate; None: the defaults.
        on_message: Called with a message for each candidate.

    Raises:
        ConfigError: If neither interval is given, or the gate needs more rows than ``judge_rows``.

    Example:
        >>> import widedeep as wd
        >>> from widedeep.gate import GateConfig
        >>> hours = [[{"job": "ab"[i % 2], "y": i % 3 % 2} for i in range(600)] for _ in range(4)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, hours[0])), progress=False)
        >>> live = ContinuousPublisher(trainer, "live", bundle="candidate", every_rows=600,
        ...                      judge_rows=600, gate=GateConfig(min_rows=600, slices=()))
        >>> named = ((f"hour {i}", rows) for i, rows in enumerate(hours))
        >>> _ = trainer.fit_stream(live.shards(named))
        >>> [candidate.rows for candidate in live.candidates]
        [600, 1200, 1800]
    """

    def __init__(
        self,
        trainer: Trainer,
        models: str | os.PathLike[str],
        *,
        bundle: str | os.PathLike[str],
        every_rows: int | None = None,
        every_minutes: float | None = None,
        judge_rows: int = 10_000,
        full_every: int = 1,
        patch_precision: Literal["float32", "bfloat16"] = "float32",
        items: Data | None = None,
        gate: GateConfig | None = None,
        on_message: Callable[[str], None] = lambda line: None,
    ) -> None:
        if every_rows is None and every_minutes is None:
            raise ConfigError(
                "ContinuousPublisher: got no interval; give every_rows or every_minutes"
            )
        check_full_every(full_every)
        self.gate = gate or GateConfig()
        check_judge_rows(judge_rows, self.gate)
        self.store = open_store(models)
        self.bundle = Path(bundle)
        self.log = verdict_path(self.bundle).with_name(f"{self.bundle.name}.attempts.json")
        self.candidates = _read(self.log)
        self._trainer, self._on_message = trainer, on_message
        self._ranks = trainer.state.ranks
        self._every_rows, self._every_minutes = every_rows, every_minutes
        self._judge_rows, self._items = judge_rows, items
        self._full_every, self._patch_precision = full_every, patch_precision
        # From a checkpoint older than the last candidate, count from the checkpoint.
        rows = self.candidates[-1].rows if self.candidates else trainer.position.rows
        self._rows = min(rows, trainer.position.rows)
        self._time = time.monotonic()

    def shards(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """Yield the shards to learn; the model may be published between two of them.

        Args:
            shards: As :meth:`widedeep.Trainer.fit_stream` takes them, data that can be read more
                than once.
        """
        coming = iter(shards)
        for shard in coming:
            done = shard[0] in self._trainer.shards
            if done or not on_first(self._ranks, self._is_time):
                yield shard
                continue
            newest, rows = self._gather(shard, coming)
            if rows >= self._judge_rows:
                self._attempt(newest, rows)
            yield from newest

    def _is_time(self) -> bool:
        position = self._trainer.position
        if not self.candidates and position.updates and self._nothing_serves():
            return True
        learned = position.rows - self._rows
        minutes = (time.monotonic() - self._time) / 60.0
        by_rows = self._every_rows is not None and learned >= self._every_rows
        by_time = self._every_minutes is not None and minutes >= self._every_minutes
        return learned > 0 and (by_rows or by_time)

    def _nothing_serves(self) -> bool:
        try:
            return self.store.served() is None
        except Exception as error:  # unreadable for now: wait
            self._on_message(
                f"{self.store.name}: cannot be read ({error}); the model is not published"
            )
            return False

    def _gather(self, first: Shard, coming: Iterator[Shard]) -> tuple[list[Shard], int]:
        """Take shards until they hold enough rows to judge on, or the stream ends."""
        shards, rows = [first], self._rows_of(first)
        while rows < self._judge_rows:
            shard = next(coming, None)
            if shard is None:
                self._on_message(
                    f"got {rows:,} new rows, too few to judge on ({self._judge_rows:,}); the model "
                    "is not published"
                )
                break
            shards.append(shard)
            rows += self._rows_of(shard)
        return shards, rows

    def _rows_of(self, shard: Shard) -> int:
        return int(on_first(self._ranks, lambda: _rows(shard[1])))

    def _attempt(self, newest: Sequence[Shard], rows: int) -> None:
        trainer, why = self._trainer, ""
        try:
            metrics = trainer.history.live_metrics()
            trainer.export(self.bundle, metrics=metrics, items=self._items, overwrite=True)
        except RanksError:
            raise
        except Exception as error:
            why = _reason(error)
        told = on_first(self._ranks, lambda: asdict(self._judged(newest, rows, why)))
        candidate = Candidate(**{**told, "reasons": tuple(told["reasons"])})
        self._rows, self._time = trainer.position.rows, time.monotonic()
        self.candidates.append(candidate)
        self._on_message(str(candidate))
        if self._ranks.is_first:
            self._write(self.log, [asdict(candidate) for candidate in self.candidates])

    def _judged(self, newest: Sequence[Shard], rows: int, why: str) -> Candidate:
        """Judge what was exported, unless that failed: ``why``."""
        passed, version, identity = None, None, ""
        reasons: tuple[str, ...] = (why,) if why else ()
        try:
            if not why:
                self._round_patch()
                identity = bundle_identity(self.bundle)
                version = self._already(identity)
                if version is None:
                    passed, version, reasons = self._judge([data for _, data in newest])
                else:  # interrupted between publishing and logging it
                    passed = True
        except Exception as error:
            reasons = (_reason(error),)
        return Candidate(
            rows=self._trainer.position.rows,
            judged=rows,
            bundle=identity,
            passed=passed,
            version=version,
            reasons=reasons,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _judge(self, newest: list[Any]) -> tuple[bool, str | None, tuple[str, ...]]:
        with bundle_in_service(self.store) as serving:
            verdict = validate(
                self.bundle, serving, _together(newest), config=self.gate,
                threads=self._trainer.threads,
            )  # fmt: skip
        verdict.save(verdict_path(self.bundle))
        self._write(
            stream_path(self.bundle),
            {
                "bundle": verdict.candidate["sha256"],
                "rows": self._trainer.position.rows,
                "shards": self._trainer.shards,
            },
        )
        if not verdict.passed:
            return False, None, verdict.reasons
        record = publish(self.bundle, self.store.name, verdict=verdict, full_every=self._full_every)
        return True, record.version, ()

    def _round_patch(self) -> None:
        """Round the rows that a patch would hold, if that is asked for and one comes next."""
        parent = self.store.served()
        if (
            self._patch_precision == "bfloat16"
            and parent is not None
            and next_depth(self.store, parent, self._full_every)
        ):
            with self.store.bundle(parent) as base:
                round_changes(base, self.bundle)

    def _already(self, identity: str) -> str | None:
        """Return the serving version if it is this bundle."""
        text = self.store.records().get(self.store.served() or "")
        if text is None:
            return None
        record = PublishRecord.from_text(text, origin=self.store.name)
        return record.version if record.bundle == identity else None

    def _write(self, path: Path, value: Any) -> None:
        try:
            write_text_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            self._on_message(f"{path}: cannot be written ({error.strerror or error})")


def _reason(error: Exception) -> str:
    """Return why a model was not published; training goes on, after a bug too."""
    if isinstance(error, WideDeepError | OSError):
        return str(error)
    return f"bug in the publisher: {''.join(format_exception(error)).strip()}"


def _read(log: Path) -> list[Candidate]:
    try:
        rows = json.loads(log.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it holds no list")
        return [Candidate(**{**row, "reasons": tuple(row["reasons"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{log}: expected a log of candidates ({error}); delete it to begin a new one"
        ) from error


def _rows(data: object) -> int:
    """Return the rows of a shard; 0 for a deleted one, which training reports."""
    if is_gone(data):
        return 0
    with open_source(data) as source:
        return source.num_rows or 0


def _together(newest: list[Any]) -> Any:
    """Return several shards as one source: a list of paths, or one table."""
    present = [data for data in newest if not is_gone(data)]
    if len(present) == 1:
        return present[0]
    if all(map(names_files, present)):
        return present
    tables = []
    for data in present:
        with open_source(data) as source:
            tables += list(column_stream(source))
    return pa.concat_tables(tables, promote_options="default")
