"""In what order sums over the lanes of a batch are added: a tree of halves, whoever has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Sum = TypeVar("Sum")


def middle(start: int, stop: int) -> int:
    """Return where the second half of some lanes starts."""
    return (start + stop + 1) // 2


def spans(lanes: int, start: int, stop: int) -> list[range]:
    """Return the fewest nodes of the tree that make up the lanes ``start`` to ``stop``.

    The sum of a node's lanes is one that the tree asks for, so that who has all of them may add
    them up before anybody else adds to it.

    Args:
        lanes: Lanes of the whole batch.
        start: First lane.
        stop: Lane after the last one.

    Example:
        >>> spans(24, 0, 12), spans(6, 2, 4)
        ([range(0, 12)], [range(2, 3), range(3, 4)])
    """

    def within(first: int, last: int) -> list[range]:
        if last <= start or first >= stop:
            return []
        if start <= first and last <= stop:
            return [range(first, last)]
        half = middle(first, last)
        return within(first, half) + within(half, last)

    return within(0, lanes)


class LaneTree(Generic[Sum]):
    """Adds the sums of consecutive nodes, or lanes, up as soon as the tree allows.

    Args:
        lanes: Lanes of the whole batch.
        add: Returns the sum of two neighbours, which it may write into the first one.

    Example:
        >>> tree = LaneTree(4, lambda first, second: f"({first}+{second})")
        >>> for lane in range(4):
        ...     tree.push(lane, str(lane))
        >>> tree.total()
        '((0+1)+(2+3))'
    """

    def __init__(self, lanes: int, add: Callable[[Sum, Sum], Sum]) -> None:
        self.lanes, self._add = lanes, add
        self._open: list[tuple[int, Sum]] = []  # First lane of each, and its sum

    def adds_at_once(self, lane: int) -> bool:
        """Return whether the next lane is added to the last one, whatever comes after it."""
        if not self._open:
            return False
        return lane + 1 == self.lanes or self._depth(lane) > self._depth(lane + 1, lane)

    def add_to_last(self, value: Sum) -> None:
        """Add a lane of which :meth:`adds_at_once` says so, without keeping it."""
        lane, before = self._open.pop()
        self._open.append((lane, self._add(before, value)))

    def push(self, lane: int, value: Sum) -> None:
        """Take the sum of the next lane, or of a node that begins with it."""
        if self._open:
            self._close(self._depth(lane))
        self._open.append((lane, value))

    def total(self) -> Sum:
        """Return the sum of all that was pushed, which is forgotten."""
        self._close(-1)
        return self._open.pop()[1]

    def _close(self, depth: int) -> None:
        """Add what parts deeper than that."""
        while len(self._open) > 1 and self._depth(self._open[-1][0], self._open[-2][0]) > depth:
            _, value = self._open.pop()
            lane, before = self._open.pop()
            self._open.append((lane, self._add(before, value)))

    def _depth(self, lane: int, before: int | None = None) -> int:
        """Return how deep in the tree a lane parts from one before it; None: the last one."""
        first, last, depth = 0, self.lanes, 0
        before = self._open[-1][0] if before is None else before
        while True:
            half = middle(first, last)
            if lane < half:
                last = half
            elif before >= half:
                first = half
            else:
                return depth
            depth += 1
