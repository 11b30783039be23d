"""Exact counts of values in bounded memory: what does not fit is partitioned by hash on disk."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep import kernels
from widedeep.data.arrow_types import logical_type
from widedeep.errors import ConfigError, DataError
from widedeep.ranks.ranks import Ranks

Values: TypeAlias = pa.Array | pa.ChunkedArray | NDArray[np.int64]
Counted: TypeAlias = tuple[pa.LargeBinaryArray | NDArray[np.int64], NDArray[np.int64]]
CounterKind: TypeAlias = Literal["bytes", "int64", "tuple"]

PARTITION_BITS = 8
HASH_BITS = 64
TAKEN_KEYS = 65_536
MAX_VALUE_BYTES = 1 << 19
# Counts that went to disk are exchanged in so many rounds, so that a round fits into memory.
_EXCHANGE_ROUNDS = 16
# Leaders of keys on disk are cut to size when they have grown by so much.
_RANKED_BYTES = 16 << 20
_SIGN = np.uint64(1 << 63)


class _Keys(NamedTuple):
    """Byte strings and how often each occurred."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64] | None


class _Limits(NamedTuple):
    """Which keys lead, as :meth:`kernels.CountTable.ranked` takes it."""

    min_count: int
    max_size: int | None
    tail_size: int
    tail_bytes: int | None


class ValueCounter:
    """Counts every distinct value exactly, whatever the order in which the values come."""

    def __init__(
        self,
        kind: CounterKind = "bytes",
        *,
        memory_limit_bytes: int = 64 << 20,
        spill_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if kind not in ("bytes", "int64", "tuple"):
            raise ConfigError(f"kind: got {kind!r}, expected 'bytes', 'int64' or 'tuple'")
        if memory_limit_bytes < 1:
            raise ConfigError(f"memory_limit_bytes: got {memory_limit_bytes}, expected at least 1")
        self._kind = kind
        self._limits = memory_limit_bytes, spill_dir
        self._table = _SpillingTable(*self._limits, level=0)
        self._ranks = Ranks()
        self._n_parts = 1
        self._distinct: int | None = 0
        self.total = 0

    def add(self, values: Values, counts: NDArray[np.int64] | None = None) -> None:
        """Count values; nulls are passed over."""
        for keys in self._keys(values, counts):
            if len(keys.offsets) > 1:
                self._check_lengths(keys)
                self._table.add(keys)
                self._distinct = None
                n_values = len(keys.offsets) - 1
                self.total += n_values if keys.counts is None else int(keys.counts.sum())

    def exchange(self, ranks: Ranks) -> None:
        """Add up the counts of all ranks: each comes to own the values whose hashes are its part.

        Afterwards the results, ``total`` and ``distinct`` are those of all ranks' values, on every
        rank, and asking for them is collective.
        """
        if ranks.size == 1:
            return
        facts = np.array([[self._table.is_spilled, self.total, self._n_parts]], np.int64)
        spilled, totals, n_parts = np.concatenate(ranks.gather(facts)).T
        owned = _SpillingTable(*self._limits, level=0)
        for partitions in _rounds(ranks.size, _EXCHANGE_ROUNDS if spilled.any() else 1):
            parts = [self._table.packed(of_rank) for of_rank in partitions]
            for buffer in ranks.all_to_all(parts):
                for keys in _unpacked(buffer):
                    owned.add(keys)
        self._table.close()
        self._table, self._ranks, self._distinct = owned, ranks, None
        self.total, self._n_parts = int(totals.sum()), int(n_parts.max())

    def tuples_of(self, n_parts: int) -> None:
        """Say how long tuples are, where none may have been counted."""
        self._n_parts = n_parts

    def result(self, min_count: int = 1, max_size: int | None = None) -> Counted:
        """Return the values by count, the most frequent first and equal ones by value."""
        return self.split(min_count, max_size, 0)[0]

    def split(
        self, min_count: int, max_size: int | None, tail_size: int, tail_bytes: int | None = None
    ) -> tuple[Counted, Counted]:
        """Return what :meth:`result` does, and the most frequent values that it leaves out."""
        keys, distinct = self._table.ranked(_Limits(min_count, max_size, tail_size, tail_bytes))
        self._distinct = self._ranks_sum(distinct)
        if self._ranks.size > 1:
            table = kernels.CountTable(sys.maxsize)
            for buffer in self._ranks.gather(_packed([keys])):
                for owned in _unpacked(buffer):
                    table.add(*owned)
            keys = _Keys(*table.ranked(min_count, max_size, tail_size, tail_bytes))
        assert keys.counts is not None
        n_leaders = int(np.count_nonzero(keys.counts >= min_count))
        n_leaders = n_leaders if max_size is None else min(max_size, n_leaders)
        buffers = [None, pa.py_buffer(keys.offsets), pa.py_buffer(keys.data)]
        values = pa.Array.from_buffers(pa.large_binary(), len(keys.counts), buffers)
        return (
            (self._typed(values[:n_leaders]), keys.counts[:n_leaders]),
            (self._typed(values[n_leaders:]), keys.counts[n_leaders:]),
        )

    def _typed(self, values: pa.LargeBinaryArray) -> pa.LargeBinaryArray | NDArray[np.int64]:
        if self._kind == "bytes":
            return values
        numbers = _numbers_of(values)
        return numbers.reshape(-1, self._n_parts) if self._kind == "tuple" else numbers

    @property
    def distinct(self) -> int:
        """The number of different values; once some went to disk, it costs as much as a result."""
        if self._distinct is None:
            n_keys = sum(len(keys.offsets) - 1 for keys in self._table.merged())
            self._distinct = self._ranks_sum(n_keys)
        return self._distinct

    def _ranks_sum(self, number: int) -> int:
        return int(np.sum(self._ranks.gather(np.array([number], np.int64))))

    def close(self) -> None:
        """Free the memory and the temporary file."""
        self._table.close()

    def __enter__(self) -> ValueCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keys(self, values: Values, counts: NDArray[np.int64] | None) -> Iterator[_Keys]:
        if isinstance(values, pa.ChunkedArray):
            start = 0
            for chunk in values.chunks:
                chunk_counts = None if counts is None else counts[start : start + len(chunk)]
                yield from self._keys(chunk, chunk_counts)
                start += len(chunk)
        elif isinstance(values, pa.Array):
            yield self._arrow_keys(values, counts)
        else:
            yield self._matrix_keys(values, counts)

    def _arrow_keys(self, values: pa.Array, counts: NDArray[np.int64] | None) -> _Keys:
        if pa.types.is_dictionary(values.type):
            counts = kernels.entry_counts(values.__arrow_c_array__(), counts)
            values = values.dictionary
        if values.null_count:
            valid = np.asarray(values.is_valid()).astype(np.int64)
            counts = valid if counts is None else valid * counts
        plain = logical_type(values.type)
        try:
            if self._kind == "bytes" and plain in (pa.string(), pa.binary()):
                return _Keys(*_bytes_of(values), counts)
            if self._kind == "int64" and pa.types.is_integer(plain):
                numbers = np.asarray(values.cast(pa.int64()).fill_null(0))
                return _Keys(*_bytes_of_numbers(numbers, 1), counts)
        except pa.ArrowInvalid as error:
            raise DataError(f"values: {error}; expected integers below 2**63") from error
        raise DataError(f"values: got {values.type}, expected {self._kind}")

    def _matrix_keys(self, values: NDArray[np.int64], counts: NDArray[np.int64] | None) -> _Keys:
        array = np.asarray(values)
        if array.dtype.kind not in "iu" or array.ndim != (2 if self._kind == "tuple" else 1):
            raise DataError(
                f"values: got {array.dtype} of shape {array.shape}, expected {self._kind}"
            )
        if self._kind == "bytes":
            raise DataError("values: got integers, expected text or bytes")
        n_parts = array.shape[1] if array.ndim == 2 else 1
        if self.total and n_parts != self._n_parts:
            raise DataError(f"values: got tuples of {n_parts}, expected {self._n_parts} as before")
        self._n_parts = n_parts
        return _Keys(*_bytes_of_numbers(array.astype(np.int64, copy=False), n_parts), counts)

    def _check_lengths(self, keys: _Keys) -> None:
        if keys.offsets[-1] - keys.offsets[0] <= MAX_VALUE_BYTES:
            return
        longest = int(np.diff(keys.offsets).max())
        if longest > MAX_VALUE_BYTES:
            raise DataError(
                f"values: one has {longest} bytes, expected at most {MAX_VALUE_BYTES}; "
                "is this column a category?"
            )


def _bytes_of(values: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    plain = values.type in (pa.string(), pa.binary())
    array = values if plain else values.cast(pa.large_binary())
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    first = array.offset
    starts = np.frombuffer(offsets, np.int32 if plain else np.int64)
    return np.frombuffer(data, np.uint8), starts[first : first + len(array) + 1].astype(np.int64)


def _bytes_of_numbers(
    numbers: NDArray[np.int64], n_parts: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Write numbers so that byte strings sort as the numbers do: big-endian, sign flipped."""
    words = np.ascontiguousarray(numbers).reshape(-1).view(np.uint64) ^ _SIGN
    offsets = np.arange(len(numbers) + 1, dtype=np.int64) * (8 * n_parts)
    return words.astype(">u8").view(np.uint8), offsets


def _numbers_of(values: pa.LargeBinaryArray) -> NDArray[np.int64]:
    data, offsets = _bytes_of(values)
    words = data[offsets[0] : offsets[-1]].view(">u8").astype(np.uint64) ^ _SIGN
    return words.view(np.int64)


class _SpillingTable:
    """A count table that writes itself to a file when it is full."""

    def __init__(
        self, limit_bytes: int, spill_dir: str | os.PathLike[str] | None, level: int
    ) -> None:
        self._limit_bytes = limit_bytes
        self._spill_dir = spill_dir
        self._level = level
        # Keys that agree in all bits of their hashes cannot be parted further.
        all_bits_used = level * PARTITION_BITS >= HASH_BITS
        self._table = kernels.CountTable(sys.maxsize if all_bits_used else limit_bytes)
        self._file: IO[bytes] | None = None
        self._runs: list[NDArray[np.int64]] = []  # (partitions, 3): a _Block a row

    def add(self, keys: _Keys) -> None:
        first, n_keys = 0, len(keys.offsets) - 1
        while (first := self._table.add(keys.data, keys.offsets, keys.counts, first)) < n_keys:
            self._spill()

    def ranked(self, limits: _Limits) -> tuple[_Keys, int]:
        """Return the keys that lead, as :class:`CountTable` ranks them, and how many there are."""
        if not self._runs:
            return _Keys(*self._table.ranked(*limits)), len(self._table)
        leaders, kept_bytes, distinct = kernels.CountTable(sys.maxsize), 0, 0
        for keys in self.merged():
            distinct += leaders.add(*keys)
            if leaders.nbytes > 2 * kept_bytes + _RANKED_BYTES:
                leading = leaders.ranked(*limits)
                leaders.clear()
                leaders.add(*leading)
                kept_bytes = leaders.nbytes
        return _Keys(*leaders.ranked(*limits)), distinct

    def merged(self) -> Iterator[_Keys]:
        """Yield every key once, with all its counts."""
        if not self._runs:
            order, _ = self._table.partitions(0, 0)
            for start in range(0, len(order), TAKEN_KEYS):
                yield _Keys(*self._table.take(order[start : start + TAKEN_KEYS]))
            return
        if len(self._table):
            self._spill()
        for partition in range(1 << PARTITION_BITS):
            yield from self._merged_partition(partition)

    def _merged_partition(self, partition: int) -> Iterator[_Keys]:
        table = _SpillingTable(self._limit_bytes, self._spill_dir, self._level + 1)
        try:
            for run in self._runs:
                block = _Block(*run[partition].tolist())
                if block.n_keys:
                    table.add(self._read(block))
            yield from table.merged()
        finally:
            table.close()

    @property
    def is_spilled(self) -> bool:
        """Whether any key went to disk."""
        return bool(self._runs)

    def packed(self, partitions: Sequence[int]) -> NDArray[np.uint8]:
        """Return the keys of some partitions with their counts, for :func:`_unpacked`."""
        if self._runs:
            if len(self._table):
                self._spill()
            pieces = [keys for one in partitions for keys in self._merged_partition(one)]
        else:
            order, starts = self._table.partitions(0, PARTITION_BITS)
            by_partition = [order[starts[one] : starts[one + 1]] for one in partitions]
            pieces = [_Keys(*self._table.take(keys)) for keys in by_partition if len(keys)]
        return _packed(pieces)

    def close(self) -> None:
        self._table.clear()
        self._runs.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        try:
            if self._file is None:
                # The file has no name: it is gone with the process, however that ends.
                self._file = tempfile.TemporaryFile(dir=self._spill_dir)  # noqa: SIM115
            self._runs.append(self._write_run(self._file))
        except OSError as error:
            folder = self._spill_dir or tempfile.gettempdir()
            raise DataError(
                f"{folder}: counts cannot be written ({error}); free some space, raise the memory "
                "limit or name another folder"
            ) from error
        self._table.clear()

    def _write_run(self, file: IO[bytes]) -> NDArray[np.int64]:
        # (keys,) keys by partition; (partitions + 1,) where each partition begins
        order, starts = self._table.partitions(PARTITION_BITS * self._level, PARTITION_BITS)
        run = np.zeros((1 << PARTITION_BITS, len(_Block._fields)), np.int64)
        file.seek(0, os.SEEK_END)
        for partition in np.flatnonzero(np.diff(starts)).tolist():
            keys = order[starts[partition] : starts[partition + 1]]
            data, offsets, counts = self._table.take(keys)
            run[partition] = _Block(offset=file.tell(), n_keys=len(counts), n_bytes=len(data))
            for array in (offsets, counts, data):
                file.write(array.data)
        return run

    def _read(self, block: _Block) -> _Keys:
        assert self._file is not None
        self._file.seek(block.offset)
        n_words = 2 * block.n_keys + 1
        content = self._file.read(8 * n_words + block.n_bytes)
        words = np.frombuffer(content, np.int64, n_words)
        data = np.frombuffer(content, np.uint8, offset=8 * n_words)
        return _Keys(data, words[: block.n_keys + 1], words[block.n_keys + 1 :])


def _rounds(n_ranks: int, at_least: int) -> Iterator[list[list[int]]]:
    """Yield for each round the partitions that each rank receives; partition p goes to p mod W."""
    step = max(1, (1 << PARTITION_BITS) // (n_ranks * at_least)) if at_least > 1 else 1 << 30
    owned = [list(range(rank, 1 << PARTITION_BITS, n_ranks)) for rank in range(n_ranks)]
    for start in range(0, max(map(len, owned)), step):
        yield [of_rank[start : start + step] for of_rank in owned]


def _packed(pieces: Sequence[_Keys]) -> NDArray[np.uint8]:
    """Write keys one piece after the other: two lengths, offsets, counts, and bytes, padded."""
    buffers: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)]
    for keys in pieces:
        assert keys.counts is not None
        n_bytes = int(keys.offsets[-1] - keys.offsets[0])
        header = np.array([len(keys.counts), n_bytes], np.int64)
        words = np.concatenate([header, keys.offsets - keys.offsets[0], keys.counts])
        data = keys.data[keys.offsets[0] : keys.offsets[-1]]
        buffers += [words.view(np.uint8), data, np.zeros(-n_bytes % 8, np.uint8)]
    return np.concatenate(buffers)


def _unpacked(buffer: NDArray[np.uint8]) -> Iterator[_Keys]:
    start = 0
    while start < len(buffer):
        n_keys, n_bytes = np.frombuffer(buffer, np.int64, 2, start).tolist()
        words = np.frombuffer(buffer, np.int64, 2 * n_keys + 1, start + 16)
        start += 16 + words.nbytes
        data = buffer[start : start + n_bytes]
        yield _Keys(data, words[: n_keys + 1], words[n_keys + 1 :])
        start += n_bytes + -n_bytes % 8


class _Block(NamedTuple):
    """One partition of one run: its offset in the file, its keys and their bytes."""

    offset: int
    n_keys: int
    n_bytes: int
