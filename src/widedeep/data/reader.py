"""Encoded batches of one epoch, read, encoded and shuffled in background threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.data.fragments import Fragment, Source
from widedeep.data.order import EpochPlan, Pool, Share, rank_rows
from widedeep.errors import ConfigError

BLOCK_ROWS = 4096
"""Rows that are gathered from a pool at once; batches are views of such blocks.

Blocks of a few hundred kilobytes an array come out of memory that the process has already; larger
ones are new pages each time, which cost as much as copying the rows.
"""

POOLS_AHEAD = 2
"""Pools whose fragments are read before they are needed."""


class BatchReader:
    """Iterates over the encoded batches of an epoch, from any batch on."""

    def __init__(
        self,
        source: Source,
        encode: Callable[[pa.Table], Batch],
        plan: EpochPlan,
        *,
        start_batch: int = 0,
        prefetch: int = 2,
        threads: int = 1,
        encoded: Callable[[Fragment], Batch] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, number in (("prefetch", prefetch), ("threads", threads)):
            if number < 1:
                raise ConfigError(f"{name}: got {number}, expected at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank: got {rank}, expected 0 <= rank < world_size = {world_size}")
        plan.position(start_batch)
        self._read_batches = _BatchCutter(
            source, encode, encoded, plan, start_batch, threads, (rank, world_size)
        )
        self._prefetch = prefetch
        self._open: list[tuple[_Channel, threading.Thread]] = []

    def __iter__(self) -> Iterator[Batch]:
        channel = _Channel(self._prefetch)
        thread = threading.Thread(
            target=self._read_batches.run, args=(channel,), name="widedeep-batches", daemon=True
        )
        opened = (channel, thread)
        self._open.append(opened)
        thread.start()
        try:
            while (batch := channel.get()) is not None:
                yield batch
        finally:
            channel.close()
            thread.join()
            self._open.remove(opened)

    def close(self) -> None:
        """End the background threads of iterations that were not run to their end."""
        for channel, thread in self._open:
            channel.close()
            thread.join()

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Channel:
    """A bounded queue between two threads that either side can close at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._finished = False
        self.closed = False

    def put(self, batch: Batch) -> bool:
        """Wait for room; False means that nobody listens any more."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._items) < self._capacity)
            self._items.append(batch)
            self._changed.notify_all()
            return not self.closed

    def finish(self, error: BaseException | None) -> None:
        """Say that nothing follows, or why."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def get(self) -> Batch | None:
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
        """Wake both sides and drop what waits."""
        with self._changed:
            self.closed = True
            self._items.clear()
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _BatchCutter:
    """The background side: fills pools ahead and cuts batches from them."""

    source: Source
    encode: Callable[[pa.Table], Batch]
    encoded: Callable[[Fragment], Batch] | None
    plan: EpochPlan
    start_batch: int
    threads: int
    share: tuple[int, int]

    def run(self, channel: _Channel) -> None:
        error: BaseException | None = None
        workers = ThreadPoolExecutor(self.threads, thread_name_prefix="widedeep-encode")
        try:
            pieces = self._rows(workers, channel)
            for batch in self._batches(pieces):
                if not channel.put(batch):
                    break
        except BaseException as caught:
            error = caught
        finally:
            workers.shutdown(wait=True, cancel_futures=True)
            channel.finish(error)

    def _rows(self, workers: ThreadPoolExecutor, channel: _Channel) -> Iterator[Batch]:
        """Yield the epoch's rows from the first batch on, in order, in blocks of any size."""
        first = self.plan.position(self.start_batch)
        pools = self.plan.pools[first.pool :]

        def load(fragment: Fragment, shares: Sequence[Share]) -> Future[deque[Batch]]:
            return workers.submit(self._shares, fragment, shares, channel)

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
            yield from _pool_rows(fragments.parts(pool), self.plan.share_order(pool), start)
            start = 0

    def _encoded(self, fragment: Fragment, channel: _Channel) -> Batch:
        if channel.closed:
            raise _ClosedError
        if self.encoded is not None:
            return self.encoded(fragment)
        table = self.source.read(fragment)
        batch = self.encode(table)
        if len(batch) != fragment.num_rows:
            raise RuntimeError(
                f"encode made {len(batch)} examples of {fragment.num_rows} rows, {fragment.origin}"
            )
        return batch

    def _shares(
        self, fragment: Fragment, shares: Sequence[Share], channel: _Channel
    ) -> deque[Batch]:
        """Read a fragment and cut it in shares of its own random order."""
        batch = self._encoded(fragment, channel)
        if not self.plan.shuffle:
            return deque([batch])
        order = self.plan.fragment_order(fragment)
        parts: deque[Batch] = deque()
        for copied in _copied_at_once(shares):
            first, last = copied[0].start, copied[-1].stop
            rows = batch.take(order[first:last])
            parts += [rows.slice(share.start - first, share.stop - first) for share in copied]
        return parts

    def _batches(self, pieces: Iterator[Batch]) -> Iterator[Batch]:
        """Cut at the plan's boundaries and take this rank's share."""
        limits = map(self.plan.batch_rows, range(self.start_batch, self.plan.num_batches))
        rank, world_size = self.share
        for batch in _cut(pieces, (last - first for first, last in limits)):
            if world_size == 1:
                yield batch
            else:
                yield batch.slice(*rank_rows(len(batch), rank, world_size))


class _Fragments:
    """The fragments that are open: each is read once, and freed share by share."""

    def __init__(
        self,
        pools: Sequence[Pool],
        load: Callable[[Fragment, Sequence[Share]], Future[deque[Batch]]],
    ) -> None:
        self._load = load
        self._shares: dict[int, list[Share]] = {}
        for pool in pools:
            for share in pool.shares:
                self._shares.setdefault(share.fragment.index, []).append(share)
        self._open: dict[int, Future[deque[Batch]]] = {}
        self._waiting: set[int] = set()

    @property
    def any_waits(self) -> bool:
        """True if a fragment was started of which no pool has taken anything."""
        return bool(self._waiting)

    def start(self, pool: Pool) -> None:
        """Start to read what a pool needs."""
        for share in pool.shares:
            index = share.fragment.index
            if index in self._shares:
                self._waiting.add(index)
                self._open[index] = self._load(share.fragment, self._shares.pop(index))

    def parts(self, pool: Pool) -> list[Batch]:
        """Wait for a pool's shares and hand them over."""
        parts = []
        for share in pool.shares:
            index = share.fragment.index
            self._waiting.discard(index)
            shares = self._open[index].result()
            parts.append(shares.popleft())
            if not shares:
                del self._open[index]
        # Freed pages go back to the system now, before the next fragments take as many again.
        pa.default_memory_pool().release_unused()
        return parts


class _ClosedError(Exception):
    """Ends work that nobody waits for."""


def _cut(pieces: Iterator[Batch], sizes: Iterable[int]) -> Iterator[Batch]:
    """Cut consecutive pieces at other places: ``sizes[0]`` rows, then ``sizes[1]``, ..."""
    piece: Batch | None = None
    used = 0
    for size in sizes:
        head: list[Batch] = []
        missing = size
        while missing:
            if piece is None or used == len(piece):
                piece, used = next(pieces), 0
            n_taken = min(missing, len(piece) - used)
            head.append(piece.slice(used, used + n_taken))
            used += n_taken
            missing -= n_taken
        yield Batch.concat(head)


def _copied_at_once(shares: Sequence[Share]) -> Iterator[Sequence[Share]]:
    """Group the shares of a fragment whose memory is freed together: small ones are dear."""
    first = 0
    for last, share in enumerate(shares, 1):
        if share.stop - shares[first].start >= BLOCK_ROWS or last == len(shares):
            yield shares[first:last]
            first = last


def _pool_rows(
    parts: Sequence[Batch], order: NDArray[np.unsignedinteger[Any]], start: int
) -> Iterator[Batch]:
    """Yield a pool's rows as ``order`` takes them from its shares, each in its own order."""
    if len(parts) == 1:
        yield parts[0].slice(start, len(parts[0]))
        return
    used_S = np.bincount(order[:start], minlength=len(parts))  # rows taken of each share
    for first in range(start, len(order), BLOCK_ROWS):
        shares_B = order[first : first + BLOCK_ROWS]
        before_S, used_S = used_S, used_S + np.bincount(shares_B, minlength=len(parts))
        limits = zip(parts, before_S.tolist(), used_S.tolist(), strict=True)
        rows = Batch.concat([part.slice(begin, end) for part, begin, end in limits if begin < end])
        place_B = np.empty(len(shares_B), np.int64)
        place_B[np.argsort(shares_B, kind="stable")] = np.arange(len(shares_B))
        yield rows.take(place_B)
