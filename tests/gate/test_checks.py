"""The check of rounded tables: a bundle that rounding moved too far does not pass."""

from __future__ import annotations

import math

from widedeep.bundle.layout import Rounding
from widedeep.gate import GateConfig
from widedeep.gate.checks import rounding_reasons


def test_rounding_beyond_its_limit_stops_and_less_is_told() -> None:
    config = GateConfig()
    assert rounding_reasons(None, config) == ([], [])
    little = Rounding(tables="int8", rows=200, mean=1e-4, worst=0.02)
    assert rounding_reasons(little, config) == ([], [f"rounding: {little}"])
    much = Rounding(tables="int4", rows=200, mean=0.0051, worst=0.02)
    (reason,), notes = rounding_reasons(much, config)
    assert not notes and reason == (
        "rounding: tables in int4: of 200 rows, scores changed by 0.0051 on average, 0.02 at most, "
        "limit 0.005 on average (max_rounding); export it in int8"
    )
    assert rounding_reasons(much, GateConfig(max_rounding=0.01))[0] == []
    coarse = Rounding(tables="bf16", rows=3, mean=0.1, worst=0.2)
    (reason,), _ = rounding_reasons(coarse, config)
    assert reason.endswith("export it in fp32")


def test_rounding_that_no_row_shows_does_not_pass() -> None:
    unseen = Rounding(tables="int8")
    (reason,), _ = rounding_reasons(unseen, GateConfig())
    assert "cannot be judged: export it with rows (warmup), or set max_rounding = inf" in reason
    reasons, (note,) = rounding_reasons(unseen, GateConfig(max_rounding=math.inf))
    assert not reasons and note == "rounding: tables in int8"
