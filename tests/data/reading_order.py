"""The order that a plan asks for, worked out plainly and all at once."""

from __future__ import annotations

from widedeep.data.reader import EpochPlan


def reading_order(plan: EpochPlan) -> list[tuple[int, int]]:
    """(fragment, row) of every row in reading order."""
    order: list[tuple[int, int]] = []
    for pool in plan.pools:
        waiting = []
        for share in pool.segments:
            rows = list(range(share.fragment.num_rows))
            if plan.shuffle:
                rows = plan.fragment_order(share.fragment).tolist()
            waiting.append(iter(rows[share.start : share.stop]))
        for number in plan.segment_order(pool).tolist():
            order.append((pool.segments[number].fragment.index, next(waiting[number])))
    return order
