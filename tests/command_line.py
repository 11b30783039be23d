"""How the tests call the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.join.small_log import actions, impressions

VERBS = [
    "init",
    "check",
    "simulate",
    "join",
    "prepare",
    "plan",
    "train",
    "import",
    "tune",
    "evaluate",
    "export",
    "calibrate",
    "validate",
    "publish",
    "rollback",
    "serve",  # which runs until it is told to end
    "score",
    "inspect",
    "report",
    "replay",
    "debias",
    "doctor",
    "bench",
]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def write_join(folder: Path) -> Path:
    """Write a small impressions and an actions log, and the join's configuration."""
    pq.write_table(pa.Table.from_pylist(impressions()), folder / "shown.parquet")
    pq.write_table(pa.Table.from_pylist(actions()), folder / "taken.parquet")
    (folder / "join.toml").write_text(
        """
        join.output = "examples"
        impressions = { path = "shown.parquet", position = "position" }
        actions = { path = "taken.parquet", kind = "kind", value = "price" }
        labels = [{ name = "click", kinds = ["click"], window = "10m" }]
        history = [{ name = "clicks", feature = "count", kinds = ["click"], window = "1h" }]
        """
    )
    return folder / "join.toml"
