"""Ranks: the processes that train one model, and what they say to each other."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import itertools
import json
import math
import os
import re
import socket
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep import __version__
from widedeep.errors import ConfigError, RanksError
from widedeep.kernels import isa
from widedeep.kernels.threads import usable_cores
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.lanes import spans
from widedeep.ranks.launch import TOLD_BESIDE, launched_size
from widedeep.ranks.neighbours import Neighbours, meet

_PATIENCE = datetime.timedelta(hours=1)
_SILENCE_SECONDS = 3.0
"""How long a rank whose exchange failed waits for the others to say that theirs failed too."""

_joined: dict[str, Any] = {}
"""The key-value store of the ranks that this process joined, by which failed ones are named, and
whether it left them since an exchange failed."""
_UNKNOWN = "another rank ended, or did not answer in time"


class Ranks:
    """The process's place among those that train one model; by itself: the only one of them.

    Every method is collective: all ranks call it, in the same order. In a lone process all of them
    work and none needs ``torch.distributed``.

    Args:
        rank: This process, 0 <= rank < size.
        size: How many processes there are.
        lanes: Parts of a batch, at least ``size``.
        group: A gloo process group of ``torch.distributed``; None for a lone process.

    Raises:
        ConfigError: If there are more ranks than lanes.

    Example:
        >>> ranks = Ranks(lanes=6)
        >>> ranks.rank, ranks.size, list(ranks.lanes_of())
        (0, 1, [0, 1, 2, 3, 4, 5])
        >>> ranks.gather(np.arange(3))
        [array([0, 1, 2])]
    """

    def __init__(self, rank: int = 0, size: int = 1, lanes: int = 1, group: Any = None) -> None:
        if lanes < size:
            raise ConfigError(
                f"[distributed]: got lanes = {lanes} with {size} ranks, expected at least as many "
                "lanes as ranks; set it once to the most ranks that you will ever use, such as "
                "--set distributed.lanes=24: results depend on it, and not on the number of ranks"
            )
        self.rank, self.size, self.lanes = rank, size, lanes
        self.sent_bytes = 0
        """Payload that this rank sent to others since it began."""
        self.waited_seconds = 0.0
        """Time spent in exchanges, which is waiting for others for the most part."""
        self.hosts: list[str] = [socket.gethostname()] * size
        # Torch keeps a group until it is destroyed, and joins its threads when nobody holds it.
        self._group = None if group is None else weakref.ref(group)
        self._patient: Ranks | None = None
        self.neighbours: Neighbours | None = None
        """The ranks of this machine, which read each other's messages where they lie."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone logs, calls back, writes and decides."""
        return self.rank == 0

    def lanes_of(self, rank: int | None = None) -> range:
        """Return the lanes that a rank computes; None: this one."""
        rank = self.rank if rank is None else rank
        return range(self.lanes * rank // self.size, self.lanes * (rank + 1) // self.size)

    def spans_of(self, rank: int | None = None) -> list[range]:
        """Return the lanes of a rank as the sums over lanes ask for them; None: this rank's."""
        lanes = self.lanes_of(rank)
        return spans(self.lanes, lanes.start, lanes.stop)

    def patient(self) -> Ranks:
        """Return the same ranks with an hour's time to answer, for work that one does longer."""
        if self.size == 1:
            return self
        if self._patient is None:
            import torch.distributed as dist

            with self._failures("a group"):
                group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            self._patient = Ranks(self.rank, self.size, self.lanes, group)
            self._patient.hosts = self.hosts
        return self._patient

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        total = torch.tensor([int(flag)], dtype=torch.int32)
        with self._failures("a flag"):
            dist.all_reduce(total, op=dist.ReduceOp.MAX, group=self._connected())
        return bool(total.item())

    def broadcast(self, value: Any, what: str = "") -> Any:
        """Return rank 0's value on every rank.

        Args:
            value: Bytes, or what JSON holds; of the other ranks it is not looked at.
            what: Its name in errors.
        """
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        is_bytes = isinstance(value, bytes)
        payload = b""
        if self.is_first:
            payload = value if is_bytes else json.dumps(value).encode()
        header = torch.tensor([len(payload), int(is_bytes)], dtype=torch.int64)
        with self._failures(what or "a value"):
            dist.broadcast(header, 0, group=self._connected())
            length = int(header[0])
            buffer = torch.frombuffer(
                bytearray(payload or bytes(max(length, 1))), dtype=torch.uint8
            )
            dist.broadcast(buffer, 0, group=self._connected())
        self.sent_bytes += len(payload) * (self.size - 1)
        received = buffer.numpy()[:length].tobytes()
        return received if header[1] else json.loads(received)

    def check_alike(self, facts: Mapping[str, str], remedy: str) -> None:
        """Refuse ranks that differ from the first in one of some facts.

        Args:
            facts: Texts by what they tell.
            remedy: What differs otherwise, and what to do; the end of the error.

        Raises:
            ConfigError: On every rank.
        """
        every: list[dict[str, str]] = self.gather_json(dict(facts))
        for name, first in every[0].items():
            for rank, one in enumerate(every):
                if one.get(name) != first:
                    raise ConfigError(
                        f"rank {rank} ({self.hosts[rank]}): got {name} {one.get(name)}, but "
                        f"{first} on rank 0 ({self.hosts[0]}){remedy}"
                    )

    def gather(
        self, array: NDArray[Any], lengths: Sequence[int] | None = None
    ) -> list[NDArray[Any]]:
        """Return every rank's array, in rank order, on every rank.

        Args:
            array: (rows, ...); the ranks' rows may differ, type and further axes may not.
            lengths: Rows of each rank, where they are known: saves an exchange.
        """
        return self.all_to_all([array] * self.size, lengths)

    def gather_json(self, value: Any) -> list[Any]:
        """Return every rank's value, which JSON holds, in rank order; floats keep all bits."""
        if self.size == 1:
            return [value]
        texts = self.gather(np.frombuffer(json.dumps(value).encode(), np.uint8))
        return [json.loads(text.tobytes()) for text in texts]

    def sums(self, *numbers: int) -> list[int]:
        """Return the sum of each number over all ranks."""
        every = self.gather(np.array([numbers], np.int64))
        return [int(total) for total in np.concatenate(every).sum(axis=0)]

    def gather_to_first(self, array: NDArray[Any]) -> list[NDArray[Any]] | None:
        """Return every rank's array, in rank order, on rank 0; None on the others."""
        parts = [array if rank == 0 else array[:0] for rank in range(self.size)]
        arrays = self.all_to_all(parts)
        return arrays if self.is_first else None

    def columns_to_first(self, columns: Sequence[NDArray[Any]]) -> list[NDArray[Any]] | None:
        """Return columns of every rank's rows, in rank order, on rank 0; None on the others.

        Args:
            columns: (rows, K) arrays of some types, with as many rows each; a rank that has no rows
                may give none.
        """
        rows = [np.ascontiguousarray(column).view(np.uint8) for column in columns]
        own = np.concatenate(rows, axis=1) if rows else np.empty((0, 1), np.uint8)
        received = self.gather_to_first(own)
        if received is None:
            return None
        every = np.concatenate([part for part in received if len(part)] or [own])
        parts = np.split(every, np.cumsum([part.shape[1] for part in rows])[:-1], axis=1)
        return [
            np.ascontiguousarray(part).view(column.dtype)
            for part, column in zip(parts, columns, strict=True)
        ]

    def all_to_all(
        self, parts: Sequence[NDArray[Any]], lengths: Sequence[int] | None = None
    ) -> list[NDArray[Any]]:
        """Send ``parts[r]`` to rank r; return what each rank sent here, in rank order.

        Args:
            parts: One (rows, ...) array for each rank; rows may differ, type and further axes may
                not.
            lengths: Rows that come from each rank, where they are known: saves an exchange.
        """
        if self.size == 1:
            return [parts[0]]
        first = np.asarray(parts[0])
        tail = first.shape[1:]
        width = first.dtype.itemsize * math.prod(tail)
        sent = [len(part) for part in parts]
        received = self._lengths(sent) if lengths is None else list(lengths)
        others = [_as_bytes(part) for rank, part in enumerate(parts) if rank != self.rank]
        in_place = len(others) == 1 and others[0].flags.writeable  # torch takes no other array
        incoming = self.trade(
            others[0] if in_place else np.concatenate(others),
            [n * width for n in sent],
            [n * width for n in received],
        )
        if self.neighbours is not None:
            incoming = [bytes_.copy() for bytes_ in incoming]  # theirs to overwrite
        arrays = [bytes_.view(first.dtype).reshape(-1, *tail) for bytes_ in incoming]
        arrays[self.rank] = np.ascontiguousarray(parts[self.rank])
        return arrays

    def outgoing(self, size: int) -> NDArray[np.uint8]:
        """Return room for the bytes of the next :meth:`trade`, which needs no copy of them then."""
        if self.neighbours is not None:
            return self.neighbours.outgoing(size)
        return np.empty(size, np.uint8)

    def trade(
        self, outgoing: NDArray[np.uint8], sent: Sequence[int], received: Sequence[int]
    ) -> list[NDArray[np.uint8]]:
        """Send bytes to the other ranks; return what each of them sent here, in rank order.

        Args:
            outgoing: Those for the first of the others, then for the next one, and so on.
            sent: How many go to each rank; its own number is not looked at.
            received: How many come from each rank, likewise; that rank's bytes are none.

        Returns:
            Bytes that may be read until the next exchange.
        """
        near = {} if self.neighbours is None else self.neighbours.sockets
        starts = list(itertools.accumulate(self._of_others(sent), initial=0))
        far_sent, far_received = (
            [0 if rank in near else n for rank, n in enumerate(self._of_others(numbers))]
            for numbers in (sent, received)
        )
        with self._failures("rows"):
            if self.neighbours is not None:
                self.neighbours.tell(outgoing, starts)
            if near:
                pieces = [outgoing[starts[rank] :][:n] for rank, n in enumerate(far_sent)]
                outgoing = np.concatenate(pieces)
            incoming = np.empty(sum(far_received), np.uint8)
            if len(near) < self.size - 1:
                import torch
                import torch.distributed as dist

                dist.all_to_all_single(
                    torch.from_numpy(incoming),
                    torch.from_numpy(outgoing),
                    far_received,
                    far_sent,
                    group=self._connected(),
                )
            arrays = np.split(incoming, np.cumsum(far_received)[:-1])
            if self.neighbours is not None:
                for rank, message in self.neighbours.hear().items():
                    if len(message) != received[rank]:
                        raise RuntimeError(
                            f"rank {rank} sent {len(message)} bytes, expected {received[rank]}"
                        )
                    arrays[rank] = message
        self.sent_bytes += starts[-1]
        return arrays

    def _of_others(self, numbers: Sequence[int]) -> list[int]:
        return [0 if rank == self.rank else int(n) for rank, n in enumerate(numbers)]

    def lane_sums(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums of every lane, (lanes, K): the caller adds them in lane order.

        Args:
            own: (own lanes, K).
        """
        if self.size == 1:
            return own
        lengths = [len(self.lanes_of(rank)) for rank in range(self.size)]
        return np.concatenate(self.gather(own, lengths))

    def _lengths(self, sent: Sequence[int]) -> list[int]:
        import torch
        import torch.distributed as dist

        received = torch.empty(self.size, dtype=torch.int64)
        with self._failures("lengths"):
            outgoing = torch.tensor(list(sent), dtype=torch.int64)
            dist.all_to_all_single(received, outgoing, group=self._connected())
        return [int(n) for n in received]

    def _connected(self) -> Any:
        """Return the process group of ``torch.distributed``."""
        group = None if self._group is None else self._group()
        if group is None:
            raise self._error("anything", "this rank left the others", "the group was destroyed")
        return group

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Say which rank did not answer where an exchange fails."""
        if _joined.get("left"):  # an exchange failed before, and what it raised is on its way
            raise self._error(what, _UNKNOWN, "the connections are closed")
        started = time.perf_counter()
        try:
            yield
            self.waited_seconds += time.perf_counter() - started
        except (RuntimeError, OSError) as error:
            traceback.clear_frames(error.__traceback__)  # they hold the connections
            silent = self._silent_ranks()
            names = ", ".join(f"{rank} ({self.hosts[rank]})" for rank in silent)
            who = f"rank {names} ended, or did not answer in time" if silent else _UNKNOWN
            lost = self._error(what, who, _brief(error))
            if silent:
                self.note_if_told_beside(lost, silent)
            raise lost from error

    def _error(self, what: str, who: str, reason: str) -> RanksError:
        return RanksError(
            f"rank {self.rank} of {self.size} ({self.hosts[self.rank]}): exchanging {what} "
            f"failed: {who}; start the run again with --resume: it goes on from the last "
            f"checkpoint, on as many ranks as there are ({reason})"
        )

    def note_if_told_beside(self, error: BaseException, silent: Sequence[int] = ()) -> None:
        """Leave it to the first rank of this machine to print an error that all but some raise."""
        host = self.hosts[self.rank]
        if any(self.hosts[r] == host and r not in silent for r in range(self.rank)):
            error.add_note(TOLD_BESIDE)

    def _silent_ranks(self) -> list[int]:
        """Return the ranks that do not say that their exchange failed too; [] if nobody knows."""
        store = _joined.get("store")
        if self.neighbours is not None:
            self.neighbours.close()
        if store is None:
            return []
        _joined["left"] = True
        _leave()  # closes the connections: who waits for this rank learns of it now
        silent = [rank for rank in range(self.size) if rank != self.rank]
        with contextlib.suppress(RuntimeError):
            store.set(f"widedeep/failed/{self.rank}", "1")
            ends = time.monotonic() + _SILENCE_SECONDS
            while silent and time.monotonic() < ends:
                silent = [r for r in silent if not store.check([f"widedeep/failed/{r}"])]
                time.sleep(0.05)
            return silent
        return []


def _brief(error: Exception) -> str:
    """Return what gloo says happened, without where in its source, and its advice."""
    line = str(error).strip().splitlines()[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).partition(". This is typically")[0]


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def local_threads() -> int:
    """Return how many threads this process may use: the ranks of a machine share its cores."""
    cores, ranks = usable_cores(), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if launched_size() > 1 and ranks.isdecimal():
        return max(1, cores // max(1, int(ranks)))
    return cores


def ranks_of(config: DistributedConfig) -> Ranks:
    """Join the ranks of this run: those of ``torch.distributed`` or torchrun, else none.

    Args:
        config: Lanes, and how long to wait for others.

    Returns:
        The ranks: a lone process where nobody launched several.

    Raises:
        ConfigError: If there are more ranks than lanes, or ranks differ in version, instruction set
            or lanes.
        RanksError: If a rank does not come.
    """
    size = launched_size()
    if size == 1:
        return Ranks(lanes=config.lanes)
    Ranks(size=size, lanes=config.lanes)  # refuses more ranks than lanes before anybody waits
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    timeout = datetime.timedelta(seconds=config.timeout_seconds)
    if not dist.is_initialized():
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=size, timeout=timeout
            )
        except (RuntimeError, ValueError) as error:
            raise RanksError(
                f"rank {os.environ['RANK']} of {size}: the others cannot be joined at "
                f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({error}); "
                "launch all of them by torchrun, within distributed.timeout"
            ) from error
        _joined.update(store=store, left=False)
        atexit.register(_leave)
    is_gloo = dist.get_backend() == "gloo"
    ranks = Ranks(
        dist.get_rank(),
        dist.get_world_size(),
        config.lanes,
        dist.group.WORLD if is_gloo else dist.new_group(backend="gloo", timeout=timeout),
    )
    _check_alike(ranks)
    with ranks._failures("memory"):
        ranks.neighbours = meet(ranks.rank, ranks.size, ranks.gather_json, config.timeout_seconds)
    return ranks


def _leave() -> None:
    """Close the connections, and end the threads that served them.

    One that lived on would free the last message's tensors as the interpreter ends, where Python
    ends every thread that calls it, and C++ the process: "terminate called without an active
    exception".
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _check_alike(ranks: Ranks) -> None:
    """Refuse ranks that would compute other bits than the first."""
    import torch

    hosts = ranks.gather(np.frombuffer(socket.gethostname().encode(), np.uint8))
    ranks.hosts = [host.tobytes().decode() for host in hosts]
    facts = {
        "widedeep": __version__,
        "torch": str(torch.__version__),
        "instruction set": f"{isa()} ({torch.backends.cpu.get_cpu_capability()})",
        "lanes": str(ranks.lanes),
    }
    ranks.check_alike(facts, ", whose bits it would not compute; run the same on all of them")
