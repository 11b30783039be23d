"""From raw logs to labelled, leak-free, sharded examples, on one machine or on Spark.

Impressions and actions go in; a folder of Parquet shards for train, valid and test comes out, with
a manifest that says what was made of what, and a report. A definition is SQL in a portable subset:
DuckDB runs it in this process, Spark on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from widedeep.join.config import (
    ActionLog,
    Attributes,
    History,
    HistoryState,
    ImpressionLog,
    JoinConfig,
    Label,
    Negatives,
    Split,
    load_join_config,
)
from widedeep.join.dataset import JoinResult, open_dataset
from widedeep.join.run import run_join
from widedeep.traces import traced

__all__ = [
    "ActionLog",
    "Attributes",
    "History",
    "HistoryState",
    "ImpressionLog",
    "JoinConfig",
    "JoinResult",
    "Label",
    "Negatives",
    "Split",
    "join_actions",
    "load_join_config",
    "open_dataset",
    "run_join",
]


@traced("join")
def join_actions(
    impressions: Any,
    actions: Any,
    *,
    output: str | os.PathLike[str],
    window: str | float = "1d",
    kinds: Sequence[str] = (),
    labels: Label | Sequence[Label] | None = None,
    touch: Literal["last", "first", "all"] = "last",
    user_attributes: Attributes | None = None,
    item_attributes: Attributes | None = None,
    history: History | Sequence[History] = (),
    split: Split | None = None,
    negatives: Negatives | None = None,
    open_windows: Literal["drop", "keep"] = "drop",
    duplicates: Literal["error", "drop"] = "error",
    null_keys: Literal["error", "drop"] = "error",
    seed: int = 0,
    engine: Literal["duckdb", "spark"] = "duckdb",
    memory_limit: str | None = None,
    partition_rows: int = 1_000_000,
    resume: bool = False,
    progress: bool = False,
) -> JoinResult:
    """Label impressions by the actions that follow them, and write the examples of three splits.

    Args:
        impressions: A path, a glob, a list of paths, a data frame or an Arrow table with the
            columns of :class:`ImpressionLog`'s defaults; or an :class:`ImpressionLog`; or None for
            a log of positives only (``negatives`` then says how many to draw).
        actions: Likewise, or an :class:`ActionLog`.
        output: The folder that is made.
        window: How long after an impression an action still counts.
        kinds: Kinds of actions that make the label; empty: all.
        labels: Several labels, in place of ``window`` and ``kinds``.
        touch: The impression that gets the credit where several precede an action.
        user_attributes: Users' attributes, versioned.
        item_attributes: Items' attributes, versioned.
        history: Features computed from earlier events.
        split: How examples are split; default: by time, 80/10/10.
        negatives: How negatives are sampled or drawn.
        open_windows: Leave out or keep impressions whose window had not closed: the log ends where
            both logs reach. What else a person should know is in the result's ``notes``.
        duplicates: What to do about duplicate impressions.
        null_keys: What to do about rows without a user, item, time or request.
        seed: Seed of all random draws.
        engine: ``"duckdb"`` or ``"spark"``; a cluster is named in a :class:`JoinConfig`.
        memory_limit: DuckDB's memory limit, such as ``"1GB"``; beyond it DuckDB spills to disk.
        partition_rows: Impressions a pass over a part of the users, about. Examples come one part
            after the other, in order of time within a part: at least as many as there are
            impressions keeps all in order of time, and needs the memory.
        resume: Go on with what an interrupted run has finished.
        progress: Show progress on standard error.

    Raises:
        ConfigError: If the settings do not fit each other or the inputs.
        DataError: If an input cannot be used as it is.

    Example:
        >>> import widedeep as wd
        >>> shown = [
        ...     {"request_id": n, "user_id": 7, "item_id": n % 3, "event_time": 1_700_000_000 + n}
        ...     for n in range(10)
        ... ]
        >>> taken = [
        ...     {"user_id": 7, "item_id": n % 3, "event_time": 1_700_000_000 + n} for n in (5, 9)
        ... ]
        >>> result = wd.join_actions(shown, taken, output="examples", window="2s")
        >>> result.rows
        {'train': 7, 'valid': 1, 'test': 0}
    """
    if impressions is not None and not isinstance(impressions, ImpressionLog):
        impressions = ImpressionLog(path=impressions)
    if not isinstance(actions, ActionLog):
        actions = ActionLog(path=actions)
    config = JoinConfig(
        output=os.fspath(output),
        impressions=impressions,
        actions=actions,
        labels=_listed(labels, Label) or (Label(window=window, kinds=_listed(kinds, str)),),
        touch=touch,
        user_attributes=user_attributes,
        item_attributes=item_attributes,
        history=_listed(history, History),
        split=split or Split(),
        negatives=negatives or Negatives(),
        open_windows=open_windows,
        duplicates=duplicates,
        null_keys=null_keys,
        seed=seed,
        engine=engine,
        memory_limit=memory_limit,
        partition_rows=partition_rows,
    )
    return run_join(config, resume=resume, progress=progress)


def _listed(values: Any, kind: type[Any]) -> tuple[Any, ...]:
    """Return one value or several as a tuple; a text is no list of its letters."""
    return () if values is None else (values,) if isinstance(values, kind) else tuple(values)
