"""Times that split the impressions by fractions, found exactly without sorting them."""

from __future__ import annotations

from widedeep.data.join.engine import Engine
from widedeep.data.join.plan import JoinPlan

_BITS = 12
_WAYS = 1 << _BITS


def time_boundaries(engine: Engine, plan: JoinPlan) -> tuple[int, int] | None:
    """Return the times at which valid and test begin, or None where time does not split."""
    split = plan.config.split
    if split.by not in ("time", "both"):
        return None
    if split.boundaries_us is not None:
        return split.boundaries_us
    end = plan.log_end_us - plan.window_us if plan.config.open_windows == "drop" else None
    closed = "" if end is None else f" WHERE wd_time <= {end}"
    found = engine.rows(
        f"SELECT COUNT(*) AS n, MIN(wd_time) AS low, MAX(wd_time) AS high "
        f"FROM wd_impressions{closed}"
    )[0]
    if not found["n"]:
        return (0, 0)
    total, low, high = int(found["n"]), int(found["low"]), int(found["high"])
    train, valid, _ = split.fractions
    first = _quantile(engine, low, high, train * total)
    second = _quantile(engine, low, high, (train + valid) * total)
    return first, second


def _quantile(engine: Engine, low: int, high: int, wanted: float) -> int:
    """Return the first time before which at least ``wanted`` impressions lie, within 1e-6."""
    before, span = 0, high - low + 1
    shift = max(0, span.bit_length() - _BITS)
    while True:
        end = min(low + (_WAYS << shift), high + 1)
        rows = engine.rows(
            f"SELECT (wd_time - {low}) >> {shift} AS bucket, COUNT(*) AS n FROM wd_impressions "
            f"WHERE wd_time >= {low} AND wd_time < {end} GROUP BY 1 ORDER BY 1"
        )
        bucket = 0
        for row in rows:
            bucket = int(row["bucket"])
            if before + int(row["n"]) >= wanted - 1e-6:
                break
            before += int(row["n"])
        else:
            return end
        low += bucket << shift
        if shift == 0:
            return low + 1
        shift = max(0, shift - _BITS)
