"""Memory that the ranks of one machine share: what one sends, the others read where it lies."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_TURNS = 2  # segments of a rank: the others may still read one while the next message is written
_PAGES = 1 << 20  # bytes by which a segment grows at least
_PLACE = struct.Struct("=qq")  # where a message begins in its segment, and its bytes


class Segment:
    """Memory of one rank, which grows; the ranks that have its descriptor see the same."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._bytes: Bytes = np.empty(0, np.uint8)

    def bytes_to(self, stop: int, *, grow: bool = False) -> Bytes:
        """Return its bytes up to some number of them, which its owner makes room for."""
        if stop > len(self._bytes):
            if grow:
                os.ftruncate(self.descriptor, max(2 * len(self._bytes), stop, _PAGES))
            size = os.fstat(self.descriptor).st_size
            self._bytes = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        return self._bytes[:stop]


class Neighbours:
    """The other ranks of this machine, by a socket each, and the memory that all of them share.

    Args:
        sockets: A connection to each, by rank.
        own: This rank's segments.
        of_others: Those of the others.
    """

    def __init__(
        self,
        sockets: dict[int, socket.socket],
        own: list[Segment],
        of_others: dict[int, list[Segment]],
    ) -> None:
        self.sockets, self._own, self._of_others = sockets, own, of_others
        self._turn = 0
        self.close = weakref.finalize(self, _close, list(sockets.values()))
        """Close the connections: who waits for this rank learns of it now."""

    def outgoing(self, size: int) -> Bytes:
        """Return the memory of the next message, (size,); it is to be written until it is told."""
        return self._own[self._turn].bytes_to(size, grow=True)

    def tell(self, message: Bytes, starts: list[int]) -> None:
        """Tell each neighbour where its part of a message is.

        Args:
            message: Those of all ranks, in rank order; copied unless it is :meth:`outgoing`.
            starts: (ranks + 1,) into it.
        """
        shared = self.outgoing(len(message))
        if not np.may_share_memory(shared, message):
            shared[:] = message
        for rank, connection in self.sockets.items():
            connection.sendall(_PLACE.pack(starts[rank], starts[rank + 1] - starts[rank]))

    def hear(self) -> dict[int, Bytes]:
        """Return what each neighbour tells, which may be read until this rank tells again.

        Raises:
            OSError: If one ended, or did not answer in time.
        """
        turn, self._turn = self._turn, (self._turn + 1) % _TURNS
        messages = {}
        for rank, connection in self.sockets.items():
            header = b""
            while len(header) < _PLACE.size:
                received = connection.recv(_PLACE.size - len(header))
                if not received:
                    raise ConnectionResetError(f"rank {rank} closed its connection")
                header += received
            start, size = _PLACE.unpack(header)
            messages[rank] = self._of_others[rank][turn].bytes_to(start + size)[start:]
        return messages


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def meet(
    rank: int, size: int, gather: Callable[[Any], list[Any]], timeout_seconds: float
) -> Neighbours | None:
    """Connect the ranks that see one file system and one memory; collective.

    Args:
        rank: This one.
        size: How many there are.
        gather: Returns what every rank gives, in rank order; JSON.
        timeout_seconds: How long to wait for what a neighbour tells.

    Returns:
        The neighbours; None where there are none, or the system has no such memory.
    """
    sockets: dict[int, socket.socket] = {}
    segments: dict[int, list[Segment]] = {}
    own: list[Segment] = []
    with contextlib.ExitStack() as stack, socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(timeout_seconds)
        folder = ""
        with contextlib.suppress(OSError, AttributeError):  # no such memory, a path that is long
            own = [Segment(os.memfd_create("widedeep")) for _ in range(_TURNS)]
            path = stack.enter_context(tempfile.TemporaryDirectory(prefix="widedeep-ranks-"))
            listener.bind(f"{path}/{rank}")
            listener.listen(size)
            folder = path
        for other, its_folder in enumerate(gather(folder)[:rank]):
            if not (folder and its_folder):
                continue
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout_seconds)
            try:
                connection.connect(f"{its_folder}/{other}")
                sockets[other] = connection
            except OSError:  # of another machine, or another user's
                connection.close()
        for connection in sockets.values():
            _send(connection, rank, own)
        called = gather(sorted(sockets))  # who connected waits for an answer
        for _ in range(sum(rank in others for others in called)):
            connection = listener.accept()[0]
            connection.settimeout(timeout_seconds)
            other, segments_there = _receive(connection)
            sockets[other], segments[other] = connection, segments_there
            _send(connection, rank, own)
        for other in called[rank]:
            segments[other] = _receive(sockets[other])[1]
    return Neighbours(dict(sorted(sockets.items())), own, segments) if sockets else None


def _send(connection: socket.socket, rank: int, segments: list[Segment]) -> None:
    descriptors = [segment.descriptor for segment in segments]
    socket.send_fds(connection, [struct.pack("=i", rank)], descriptors)


def _receive(connection: socket.socket) -> tuple[int, list[Segment]]:
    text, descriptors, _, _ = socket.recv_fds(connection, 4, _TURNS, socket.MSG_CMSG_CLOEXEC)
    if not text:
        raise ConnectionResetError("a rank closed its connection")
    return int(struct.unpack("=i", text)[0]), [Segment(each) for each in descriptors]
