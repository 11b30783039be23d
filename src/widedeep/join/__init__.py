"""From raw logs to labelled, leak-free, sharded examples, on one machine or on Spark.

Impressions and actions go in; a folder of Parquet shards for train, valid and test comes out, with
a manifest that says what was made of what, and a report. A definition is SQL in a portable subset:
DuckDB runs it in this process, Spark on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from widedeep.join.config import (
    ActionLog,
    Attributes,
    History,
    HistoryState,
    ImpressionLog,
    JoinConfig,
    JoinInput,
    Label,
    Negatives,
    Split,
    load_join_config,
)
from widedeep.join.dataset import JoinResult, open_dataset
from widedeep.join.run import run_join
from widedeep.options import check_option_names, keyword_signature
from widedeep.traces import traced

__all__ = [
    "ActionLog",
    "Attributes",
    "History",
    "HistoryState",
    "ImpressionLog",
    "JoinConfig",
    "JoinInput",
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
    resume: bool = False,
    progress: bool = False,
    **options: Any,
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
        resume: Go on with what an interrupted run has finished.
        progress: Show progress on standard error.
        options: Fields of :class:`JoinConfig` by keyword, such as ``touch="first"``; ``labels``, in
            place of ``window`` and ``kinds``, and ``history`` may be one or several.

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
    check_option_names(options, JoinConfig, "join_actions")
    options = {name: value for name, value in options.items() if value is not None}
    labels = _listed(options.pop("labels", None), Label)
    config = JoinConfig(
        output=os.fspath(output),
        impressions=impressions,
        actions=actions,
        labels=labels or (Label(window=window, kinds=_listed(kinds, str)),),
        history=_listed(options.pop("history", None), History),
        **options,
    )
    return run_join(config, resume=resume, progress=progress)


join_actions.__signature__ = keyword_signature(join_actions, JoinConfig)  # type: ignore[attr-defined]


def _listed(values: Any, kind: type[Any]) -> tuple[Any, ...]:
    """Return one value or several as a tuple; a text is no list of its letters."""
    return () if values is None else (values,) if isinstance(values, kind) else tuple(values)
