"""Reading order and batches."""

from __future__ import annotations

import atexit
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeGuard
from weakref import WeakSet

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.data.fragments import Fragment, Source
from widedeep.data.packed import PackedExamples
from widedeep.data.requests import RequestBatch, RequestSource
from widedeep.errors import ConfigError, RowError

ORDER_VERSION = 2
"""Changes with the order itself; a position within an epoch means nothing in another one."""

FEWEST_OPEN, MOST_OPEN = 6, 16
"""Fragments of the largest size that deal their rows at the same time."""

POOLS, HANDS = 16, 64
"""Pools in a stretch of the epoch, and in how many parts at most fragments fill a pool."""

_MASK_64 = (1 << 64) - 1
_MOST_POOL_ROWS = 1 << 40
_FRAGMENT_STREAM, _ROW_STREAM, _SEGMENT_STREAM, _PHASE_STREAM, _HAND_STREAM, _LANE_STREAM = range(
    1, 7
)
_GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Segment:
    """What one pool takes of a fragment: rows ``start`` to ``stop`` of its own random order."""

    fragment: Fragment
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows that are shuffled together."""

    index: int  # Its place in the epoch
    first_row: int  # The position of its first row in the epoch's order
    segments: tuple[Segment, ...]  # In the order in which their rows are numbered within the pool

    @property
    def num_rows(self) -> int:
        """Rows of all its segments."""
        return sum(len(segment) for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a batch begins: ``row`` counts in the shuffled order of ``pool``."""

    pool: int
    row: int


class EpochPlan:
    """Which rows make up each batch of one epoch; of a :class:`RequestSource`, which requests.

    With several lanes each has an equal, consecutive part of the fragments' rows, the fragments in
    a random order, and a plan of its own over it. A batch holds as many rows of each lane.
    """

    def __init__(
        self,
        source: Source | RequestSource | LaneSource,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        pool_rows: int = 262_144,
        lanes: int = 1,
    ) -> None:
        _check_at_least(1, batch_size=batch_size, pool_rows=pool_rows, lanes=lanes)
        _check_at_least(0, seed=seed, epoch=epoch)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.lanes, self._pool_rows = lanes, min(pool_rows, _MOST_POOL_ROWS)
        # A lane knows its number, by which its random numbers differ from those of others.
        self._lane, self._of = (source.lane, source.lanes) if is_lane(source) else (0, 1)
        self._source, self._lane_plans = source, dict[int, EpochPlan]()
        self.num_rows = source.num_rows
        self.pools: tuple[Pool, ...] = self._own_pools() if lanes == 1 else self.lane(0).pools
        self.num_batches = -(-self.num_rows // batch_size)
        self._first_rows = [pool.first_row for pool in self.pools]

    def _own_pools(self) -> tuple[Pool, ...]:
        fragments = self._source.fragments
        if self.shuffle and fragments:
            return tuple(_numbered(self._dealt_pools(fragments, self._pool_rows)))
        return tuple(_numbered([Segment(part, 0, part.num_rows)] for part in fragments))

    def lane(self, lane: int) -> EpochPlan:
        """Return the plan of one of several lanes."""
        if lane not in self._lane_plans:
            fragments = self._source.fragments
            order = np.arange(len(fragments))
            if self.shuffle:
                order = _permutation(len(fragments), self.seed, self.epoch, _LANE_STREAM, 0)
            self._lane_plans[lane] = EpochPlan(
                LaneSource([fragments[i] for i in order.tolist()], lane, self.lanes),
                batch_size=self.batch_size // self.lanes,
                seed=self.seed,
                epoch=self.epoch,
                shuffle=self.shuffle,
                pool_rows=-(-self._pool_rows // self.lanes),
            )
        return self._lane_plans[lane]

    def first_fragment(self) -> Fragment:
        """Return the first fragment of the epoch, or the part of it that the first lane has."""
        plans = iter([self]) if self.lanes == 1 else map(self.lane, range(self.lanes))
        return next(plan.pools[0].segments[0].fragment for plan in plans if plan.pools)

    def _dealt_pools(self, fragments: Sequence[Fragment], pool_rows: int) -> list[list[Segment]]:
        """Let each fragment deal its rows, a hand at a time, over its stretch of the epoch."""
        sizes = np.array([fragment.num_rows for fragment in fragments], np.int64)
        largest = int(sizes.max())
        if len(fragments) == 1 and POOLS * largest <= 2 * pool_rows:  # all hands in one pool
            return [[Segment(fragments[0], 0, largest)]]
        # Half of the rows of a stretch are dealt already: memory holds the other half.
        # All lanes together have as many fragments open as one has by itself.
        fewest, most = (max(2, -(-n // self._of)) for n in (FEWEST_OPEN, MOST_OPEN))
        stretch = max(2 * pool_rows, fewest * largest)
        step = -(-stretch // POOLS)
        stretch = min(stretch, most * largest)
        order = self._fragment_order(sizes, max(stretch, step))
        sizes = sizes[order]
        first, last = _stretches(sizes, stretch)
        hands = np.minimum(-(-sizes * HANDS // step), sizes)
        offsets = self._fractions(_HAND_STREAM, len(sizes))
        # One item per hand from here on; consecutive ones of a fragment in one pool are a segment.
        dealer = np.repeat(np.arange(len(sizes)), hands)  # (H,) the fragment that deals the hand
        turn = np.arange(len(dealer)) - np.repeat(np.cumsum(hands) - hands, hands)  # 0, 1, ... each
        width = (last - first)[dealer]
        # (H,) where in its fragment's stretch the hand is dealt, and the pool that lies there
        rows = ((turn + offsets[dealer]) / hands[dealer] * width).astype(np.int64)
        pool = (first[dealer] + np.minimum(rows, width - 1)) // step
        # (S,) the first hand of each segment
        new = np.flatnonzero(np.diff(dealer, prepend=-1) | np.diff(pool, prepend=-1))
        dealer, start = dealer[new], (turn * sizes[dealer] // hands[dealer])[new]
        # A segment ends where the fragment's next one starts; its last one at the fragment's end.
        stop = np.append(start[1:], 0)
        stop = np.where(stop == 0, sizes[dealer], stop)
        pools: list[list[Segment]] = [[] for _ in range(0, int(sizes.sum()), step)]
        columns = (order[dealer], pool[new], start, stop)
        for number, index, begin, end in zip(*(c.tolist() for c in columns), strict=True):
            pools[index].append(Segment(fragments[number], begin, end))
        return pools

    def _fragment_order(self, sizes: NDArray[np.int64], stretch: int) -> NDArray[np.int64]:
        """Permute fragments so that those of any stretch of an epoch come from all the input."""
        random = _permutation(len(sizes), self.seed, self.epoch, _FRAGMENT_STREAM, self._lane)
        ends = np.cumsum(sizes)
        # (F,) stratum of each fragment: equal runs of rows of the input, as many as a stretch holds
        n_strata = -(-stretch * int(ends[-1]) // int((sizes * sizes).sum()))
        strata = (ends - sizes // 2 - 1) * n_strata // ends[-1]
        by_stratum = random[np.argsort(strata[random], kind="stable")]
        strata, sizes = strata[by_stratum], sizes[by_stratum]
        rows = np.bincount(strata, weights=sizes)  # rows per stratum
        # (F,) rows of its stratum that come before a fragment
        before = np.cumsum(sizes) - sizes - (np.cumsum(rows) - rows)[strata]
        # Strata that mirror each other share a phase, so that their fragments come in turn.
        pairs = np.minimum(strata, n_strata - 1 - strata)
        turns = self._fractions(_PHASE_STREAM, n_strata)
        second = (strata != pairs) ^ (turns[pairs] < 0.5)
        phases = (pairs * _GOLDEN_RATIO + turns[-1] + second * 1e-6) % 1.0
        return by_stratum[np.argsort((before + sizes * phases) / rows[strata], kind="stable")]

    def _fractions(self, stream: int, n: int) -> NDArray[np.float64]:
        words = _words(n, self.seed, self.epoch, stream, self._lane)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def batch_rows(self, batch: int) -> tuple[int, int]:
        """Return where a global batch begins and ends in the epoch's order of rows."""
        first, last = batch * self.batch_size, (batch + 1) * self.batch_size
        return min(first, self.num_rows), min(last, self.num_rows)

    def position(self, batch: int) -> Position:
        """Return the pool a global batch begins in; reading can start there."""
        if not 0 <= batch <= self.num_batches:
            raise ConfigError(
                f"batch {batch}: this epoch has batches 0 to {self.num_batches - 1}; "
                "resume with the data and batch size of the interrupted run"
            )
        return self._position(min(batch * self.batch_size, self.num_rows))

    def _position(self, row: int) -> Position:
        pool = max(bisect_right(self._first_rows, row) - 1, 0)
        return Position(pool, row - self._first_rows[pool] if self.pools else 0)

    def fragment_order(self, fragment: Fragment) -> NDArray[np.int64]:
        """Return the order in which a fragment deals its rows."""
        return _permutation(fragment.num_rows, self.seed, self.epoch, _ROW_STREAM, fragment.index)

    def batch_row(
        self, batch: int, row: int, lanes: range, lane_starts: NDArray[np.int64] | None
    ) -> tuple[str, int]:
        """Return the input, and the place in it, of a row of a batch that holds some lanes."""
        if self.lanes == 1 or lane_starts is None:
            return self.source_row(batch * self.batch_size + row)
        number = int(np.searchsorted(lane_starts, row, side="right")) - 1
        plan = self.lane(lanes[number])
        return plan.source_row(batch * plan.batch_size + row - int(lane_starts[number]))

    def source_row(self, row: int) -> tuple[str, int]:
        """Return the input, and the place in it, of a row of the epoch's order."""
        pool = self.pools[max(bisect_right(self._first_rows, row) - 1, 0)]
        within = row - pool.first_row
        order = self.segment_order(pool)
        number = int(order[within])
        segment = pool.segments[number]
        turn = segment.start + int(np.count_nonzero(order[:within] == number))
        fragment = segment.fragment
        place = int(self.fragment_order(fragment)[turn]) if self.shuffle else turn
        return fragment.origin, fragment.first_row + place

    def segment_order(self, pool: Pool) -> NDArray[np.unsignedinteger[Any]]:
        """Return which of a pool's segments gives the next row, for each row of the pool."""
        numbers = np.arange(len(pool.segments), dtype=np.min_scalar_type(len(pool.segments)))
        segments = np.repeat(numbers, [len(segment) for segment in pool.segments])
        if len(numbers) == 1:
            return segments
        return segments[
            _permutation(
                len(segments), self.seed, self.epoch, _SEGMENT_STREAM, pool.index, self._lane
            )
        ]


class LaneSource:
    """The rows of one lane: an equal, consecutive part of the rows of fragments in an order."""

    def __init__(self, fragments: Sequence[Fragment], lane: int, lanes: int) -> None:
        self.lane, self.lanes = lane, lanes
        ends = np.cumsum([0, *(fragment.num_rows for fragment in fragments)])
        total = int(ends[-1])
        low, high = total * lane // lanes, total * (lane + 1) // lanes
        parts = []
        touched = range(*np.searchsorted(ends, [low, high], side="right").tolist())
        for number in range(max(touched.start - 1, 0), min(touched.stop, len(fragments))):
            whole, before = fragments[number], int(ends[number])
            first, last = max(low - before, 0), min(high - before, whole.num_rows)
            if first < last:
                first_row = whole.first_row + first
                parts.append(
                    replace(whole, num_rows=last - first, first_row=first_row, skipped=first)
                )
        # In the order of the input, over which a plan mixes them anew.
        self.fragments: tuple[Fragment, ...] = tuple(sorted(parts, key=lambda part: part.index))
        self.num_rows = high - low


def is_lane(source: Source | RequestSource | LaneSource) -> TypeGuard[LaneSource]:
    """Tell whether a source is one of several lanes."""
    return isinstance(source, LaneSource)


def large_fragments(source: Source, pool_rows: int) -> str | None:
    """Return a warning if fragments are so large that few of them are mixed at a time."""
    largest = max((fragment.num_rows for fragment in source.fragments), default=0)
    if largest <= pool_rows // 2 or source.num_rows <= FEWEST_OPEN * largest:
        return None
    return (
        f"row groups hold up to {largest:,} rows, so rows are mixed over {FEWEST_OPEN} of "
        f"{len(source.fragments):,} at a time, and memory holds {FEWEST_OPEN // 2} and more; "
        "files written with row_group_size=65536 are mixed better and take less"
    )


def _check_at_least(lowest: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if not lowest <= number <= _MASK_64:
            raise ConfigError(f"{name}: got {number}, expected {lowest} <= {name} < 2**64")


def _stretches(
    sizes: NDArray[np.int64], stretch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return between which rows of the epoch each fragment deals its own."""
    ends = np.cumsum(sizes)
    starts, total = ends - sizes, int(ends[-1])
    margin = (stretch - int(sizes.max())) // 2
    last = np.where(starts >= total - stretch, total, np.minimum(ends + margin, total))
    return np.maximum(starts - margin, 0), last


def _numbered(pools: Iterable[Sequence[Segment]]) -> Iterator[Pool]:
    index = first_row = 0
    for segments in pools:
        if segments:
            pool = Pool(index, first_row, tuple(segments))
            yield pool
            index, first_row = index + 1, first_row + pool.num_rows


def _words(
    n: int, seed: int, epoch: int, stream: int, index: int, lane: int = 0
) -> NDArray[np.uint64]:
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, lane, index, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def _permutation(
    n: int, seed: int, epoch: int, stream: int, index: int, lane: int = 0
) -> NDArray[np.int64]:
    """Sort random words whose low bits are positions: all differ, so every sort agrees."""
    words = _words(n, seed, epoch, stream, index, lane)
    low_bits = np.uint64((1 << n.bit_length()) - 1)
    words = (words & ~low_bits) | np.arange(n, dtype=np.uint64)
    return (kernels.sorted_words(words) & low_bits).astype(np.int64)


BLOCK_ROWS = 4096
"""Rows that are gathered from a pool at once; small batches are views of such blocks.

Blocks of a few hundred kilobytes an array come out of memory that the process has already; larger
ones are new pages each time, which cost as much as copying the rows.
"""

POOLS_AHEAD = 2
"""Pools whose fragments are read before they are needed."""


class BatchReader:
    """Iterates over the encoded batches of an epoch, from any batch on.

    With ``batches_at_once`` it yields so many of them as one, the last time what is left: small
    batches cost a cut each.

    Of a plan with several lanes it reads ``lanes`` alone: a batch holds their rows, lane after
    lane, and may have none at the end of an epoch.

    A few rows are read and encoded by the thread that asks for them. ``fragments`` holds what was
    encoded of each fragment, by its number, and is filled: see :func:`is_small`.
    """

    def __init__(
        self,
        source: Source | RequestSource,
        encode: Callable[[pa.Table], Batch | PackedExamples | RequestBatch],
        plan: EpochPlan,
        *,
        start_batch: int = 0,
        prefetch: int = 2,
        threads: int = 1,
        encoded: Callable[[Fragment], PackedExamples] | None = None,
        lanes: range | None = None,
        batches_at_once: int = 1,
        fragments: dict[int, Any] | None = None,
    ) -> None:
        numbers = {"prefetch": prefetch, "threads": threads, "batches_at_once": batches_at_once}
        for name, number in numbers.items():
            if number < 1:
                raise ConfigError(f"{name}: got {number}, expected at least 1")
        plan.position(start_batch)
        lanes = range(plan.lanes) if lanes is None else lanes
        self._read_batches = _BatchCutter(
            source, encode, encoded, plan, start_batch, threads, lanes, plan.num_batches,
            batches_at_once, fragments,
        )  # fmt: skip
        self._prefetch = prefetch
        self._open: list[tuple[_Channel, threading.Thread]] = []
        self._is_closed = False

    def __iter__(self) -> Iterator[Batch]:
        channel = _Channel(self._prefetch)
        if is_small(self._read_batches.source, self._read_batches.plan.lanes):
            for rows in self._read_batches._batches(_CallingThread(), channel):
                if self._is_closed:
                    return
                yield rows
            return
        thread = threading.Thread(
            target=self._read_batches.run, args=(channel,), name="widedeep-batches", daemon=True
        )
        opened = (channel, thread)
        self._open.append(opened)
        thread.start()
        _iterated.add(self)
        try:
            while (batch := channel.get()) is not None:
                yield batch.rows if isinstance(batch, RequestBatch) else batch
        finally:
            channel.close()
            thread.join()
            self._open.remove(opened)

    def close(self) -> None:
        """End the background threads of iterations that were not run to their end."""
        self._is_closed = True
        for channel, thread in self._open:
            channel.close()
            thread.join()

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_iterated: WeakSet[BatchReader] = WeakSet()


@atexit.register
def _close_readers() -> None:
    """End the threads of iterations that nobody ended.

    Python ends a thread that comes back from native code once the interpreter is gone, and C++ the
    process with it: "terminate called without an active exception".
    """
    for reader in list(_iterated):
        reader.close()


def is_small(source: Source | RequestSource, lanes: int) -> bool:
    """Tell whether a source holds a few rows alone, for which threads cost more than they save."""
    return isinstance(source, Source) and source.num_rows <= BLOCK_ROWS and lanes == 1


class _CallingThread(Executor):
    """Does at once what is asked for."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **options))
        except Exception as error:  # raised after the batches before it
            future.set_exception(error)
        return future


class _Channel:
    """A bounded queue between two threads that either side can close at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._finished = False
        self.closed = False

    def put(self, batch: Any) -> bool:
        """Wait for room; return False if the reader is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._items) < self._capacity)
            self._items.append(batch)
            self._changed.notify_all()
            return not self.closed

    def finish(self, error: BaseException | None) -> None:
        """End the stream, or pass on the error that ended it."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def get(self) -> Any:
        """Wait for the next batch; None is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._finished or self.closed)
            if self.closed:
                return None
            if self._items:
                batch = self._items.popleft()
                self._changed.notify_all()
                return batch
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Wake both sides and drop the waiting batches."""
        with self._changed:
            self.closed = True
            self._items.clear()
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _BatchCutter:
    """The background side: fills pools ahead and cuts batches from them."""

    source: Source | RequestSource
    encode: Callable[[pa.Table], Batch | PackedExamples | RequestBatch]
    encoded: Callable[[Fragment], PackedExamples] | None
    plan: EpochPlan
    start_batch: int
    threads: int
    lanes: range
    num_batches: int  # Those of the whole epoch, also where ``plan`` is of one lane
    at_once: int
    fragments: dict[int, Any] | None  # Whole fragments that were encoded before, or None

    def run(self, channel: _Channel) -> None:
        error: BaseException | None = None
        workers = ThreadPoolExecutor(self.threads, thread_name_prefix="widedeep-encode")
        try:
            for batch in self._batches(workers, channel):
                if not channel.put(batch):
                    break
        except BaseException as caught:
            error = caught
        finally:
            workers.shutdown(wait=True, cancel_futures=True)
            channel.finish(error)

    def _rows(self, workers: Executor, channel: _Channel) -> Iterator[Any]:
        """Yield the epoch's rows from the first batch on, in order, in blocks of any size."""
        first = self.plan._position(self.plan.batch_rows(self.start_batch)[0])
        pools = self.plan.pools[first.pool :]

        def load(fragment: Fragment, segments: Sequence[Segment]) -> Future[deque[Any]]:
            if self.encoded is None and isinstance(self.source, Source):
                self.source.start(self.source.fragments[fragment.index])
            return workers.submit(self._segments, fragment, segments, channel)

        fragments = _Fragments(pools, load)
        # In order a pool is one fragment, so that more of them keep several threads busy.
        ahead = POOLS_AHEAD if self.plan.shuffle else self.threads
        n_started = 0
        start = first.row
        for number, pool in enumerate(pools):
            while n_started < len(pools) and (
                n_started <= number + ahead or not fragments.any_waits
            ):
                fragments.start(pools[n_started])
                n_started += 1
            blocks = _pool_rows(fragments.take(pool), self.plan.segment_order(pool), start)
            is_large = self.plan.batch_size * self.at_once >= BLOCK_ROWS // 8
            yield from blocks if is_large else _unpacked(blocks)
            start = 0

    def _encoded(self, fragment: Fragment, channel: _Channel) -> Any:
        if channel.closed:
            raise _ClosedError
        if self.encoded is not None:
            rows = self.encoded(self.source.fragments[fragment.index])
            return rows.slice(fragment.skipped, fragment.skipped + fragment.num_rows)
        table = self.source.read(fragment)
        try:
            batch = self.encode(table)
        except RowError as error:
            where = f"row {fragment.first_row + error.row:,} of {fragment.origin}"
            raise error.at(where) from None
        if len(batch) != fragment.num_rows:
            raise RuntimeError(
                f"encode made {len(batch)} examples of {fragment.num_rows} rows, {fragment.origin}"
            )
        return batch

    def _segments(
        self, fragment: Fragment, segments: Sequence[Segment], channel: _Channel
    ) -> deque[Any]:
        """Read a fragment and cut it in segments of its own random order."""
        batch = None if self.fragments is None else self.fragments.get(fragment.index)
        if batch is None:
            batch = self._encoded(fragment, channel)
            if self.plan.shuffle and isinstance(batch, Batch):
                batch = PackedExamples.pack(batch, None)
            if self.fragments is not None:
                self.fragments[fragment.index] = batch
        if not self.plan.shuffle:
            return deque([batch])
        order = self.plan.fragment_order(fragment)
        if not isinstance(batch, RequestBatch):
            rows = batch.take(order)
            return deque(rows.slice(segment.start, segment.stop) for segment in segments)
        parts: deque[Any] = deque()
        for copied in _copied_at_once(segments):
            first, last = copied[0].start, copied[-1].stop
            rows = batch.take(order[first:last])
            parts += [rows.slice(segment.start - first, segment.stop - first) for segment in copied]
        return parts

    def _batches(self, workers: Executor, channel: _Channel) -> Iterator[Any]:
        """Cut at the plan's boundaries."""
        if self.plan.lanes > 1:
            yield from self._lane_batches(workers, channel)
            return
        last, rows_of = self.num_batches - 1, self.plan.batch_rows
        sizes = (
            rows_of(min(batch + self.at_once - 1, last))[1] - rows_of(batch)[0]
            for batch in range(self.start_batch, self.num_batches, self.at_once)
        )
        for piece in _cut(self._rows(workers, channel), sizes):
            yield piece.unpack() if isinstance(piece, PackedExamples) else piece

    def _lane_batches(self, workers: Executor, channel: _Channel) -> Iterator[Batch]:
        """Put the batches of the lanes one behind the other."""
        cutters = [replace(self, plan=self.plan.lane(lane)) for lane in self.lanes]
        none: Batch | None = None
        for pieces in zip(*(cutter._batches(workers, channel) for cutter in cutters), strict=True):
            parts = [piece for piece in pieces if piece is not None]
            if parts:
                none = parts[0].slice(0, 0)
            elif none is None:  # no lane has a row: what an example looks like says another one
                fragment = self.source.fragments[0]
                example = self._encoded(replace(fragment, num_rows=1), channel)
                if isinstance(example, PackedExamples):
                    example = example.unpack()
                none = example.slice(0, 0)
            lengths = [0 if piece is None else len(piece) for piece in pieces]
            starts = np.cumsum([0, *lengths], dtype=np.int64)
            assert none is not None
            yield replace(Batch.concat(parts) if parts else none, lane_starts=starts)


class _Fragments:
    """The fragments that are open: each is read once, and freed segment by segment."""

    def __init__(
        self,
        pools: Sequence[Pool],
        load: Callable[[Fragment, Sequence[Segment]], Future[deque[Any]]],
    ) -> None:
        self._load = load
        self._segments: dict[int, list[Segment]] = {}
        for pool in pools:
            for segment in pool.segments:
                self._segments.setdefault(segment.fragment.index, []).append(segment)
        self._open: dict[int, Future[deque[Any]]] = {}
        self._waiting: set[int] = set()

    @property
    def any_waits(self) -> bool:
        """True if a fragment was started from which no pool has taken rows yet."""
        return bool(self._waiting)

    def start(self, pool: Pool) -> None:
        """Start to read what a pool needs."""
        for segment in pool.segments:
            index = segment.fragment.index
            if index in self._segments:
                self._waiting.add(index)
                self._open[index] = self._load(segment.fragment, self._segments.pop(index))

    def take(self, pool: Pool) -> list[Any]:
        """Wait for a pool's segments and hand them over."""
        parts = []
        for segment in pool.segments:
            index = segment.fragment.index
            self._waiting.discard(index)
            segments = self._open[index].result()
            parts.append(segments.popleft())
            if not segments:
                del self._open[index]
        # Freed pages go back to the system now, before the next fragments take as many again.
        pa.default_memory_pool().release_unused()
        return parts


class _ClosedError(Exception):
    """Stops work for a reader that was closed."""


def _cut(pieces: Iterator[Any], sizes: Iterable[int]) -> Iterator[Any]:
    """Cut consecutive pieces anew: ``sizes[0]`` rows, then ``sizes[1]``, ...; None for no row."""
    piece: Any = None
    used = 0
    for size in sizes:
        head: list[Any] = []
        missing = size
        while missing:
            if piece is None or used == len(piece):
                piece, used = next(pieces), 0
            n_taken = min(missing, len(piece) - used)
            head.append(piece.slice(used, used + n_taken))
            used += n_taken
            missing -= n_taken
        yield type(head[0]).concat(head) if head else None


def _unpacked(blocks: Iterator[Any]) -> Iterator[Any]:
    """Unpack examples as many at a time as stay in the processor's cache."""
    for block in blocks:
        if not isinstance(block, PackedExamples):
            yield block
            continue
        for first in range(0, len(block), BLOCK_ROWS):
            yield block.slice(first, first + BLOCK_ROWS).unpack()


def _copied_at_once(segments: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    """Group the segments of a fragment whose memory is freed together; small ones cost too much."""
    first = 0
    for last, segment in enumerate(segments, 1):
        if segment.stop - segments[first].start >= BLOCK_ROWS or last == len(segments):
            yield segments[first:last]
            first = last


def _pool_rows(
    batches: Sequence[Any], order: NDArray[np.unsignedinteger[Any]], start: int
) -> Iterator[Any]:
    """Yield a pool's rows as ``order`` takes them from its segments, each in its own order."""
    if len(batches) == 1:
        yield batches[0].slice(start, len(batches[0]))
        return
    if isinstance(batches[0], PackedExamples):
        # (B,) where each of the pool's rows stands: the inverse of a stable sort
        position_B = np.empty(len(order), np.int64)
        position_B[np.argsort(order, kind="stable")] = np.arange(len(order))
        yield PackedExamples.concat(batches).take(position_B[start:])
        return
    used_S = np.bincount(order[:start], minlength=len(batches))  # (S,) rows taken per segment
    block = BLOCK_ROWS
    if isinstance(batches[0], RequestBatch):
        rows = sum(len(batch.rows) for batch in batches)
        block = max(1, BLOCK_ROWS * len(order) // max(rows, 1))
    for first in range(start, len(order), block):
        segment_B = order[first : first + block]  # (B,) the segment of each row
        before_S, used_S = used_S, used_S + np.bincount(segment_B, minlength=len(batches))
        limits = zip(batches, before_S.tolist(), used_S.tolist(), strict=True)
        # The block's rows, segment after segment.
        parts = [batch.slice(low, high) for batch, low, high in limits if low < high]
        # (B,) where each of the block's rows stands among them: the inverse of a stable sort
        position_B = np.empty(len(segment_B), np.int64)
        position_B[np.argsort(segment_B, kind="stable")] = np.arange(len(segment_B))
        yield type(parts[0]).concat(parts).take(position_B)
