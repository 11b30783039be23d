"""Charts of a training: its figures over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from widedeep.page.charts import line_chart
from widedeep.page.document import subsection


def training_charts(
    history: Sequence[Mapping[str, Any]], kept_step: int | None = None
) -> list[str]:
    """Loss, the metric that ranks or fits, and how many wide weights are not zero."""
    stepped = all(is_number(row.get("step")) for row in history)
    xs = [float(row["step"]) if stepped else index + 1.0 for index, row in enumerate(history)]

    def points(column: str) -> list[tuple[float, float]]:
        return [
            (x, float(row[column]))
            for x, row in zip(xs, history, strict=True)
            if is_number(row.get(column))
        ]

    columns = list(dict.fromkeys(name for row in history for name in row))
    columns_of = {
        "Loss": ["loss", *_measured(columns, "log_loss")],
        "AUC": _measured(columns, "auc"),
        "Root mean squared error": _measured(columns, "rmse"),
        "Accuracy": [] if _measured(columns, "auc") else _measured(columns, "accuracy"),
        "Wide weights that are not zero": ["nonzero_wide"],
    }
    mark = None if kept_step is None else (float(kept_step), "kept")
    label = "step" if stepped else "evaluation"
    blocks = []
    for heading, names in columns_of.items():
        lines = {_line_name(name): points(name) for name in names}
        chart = line_chart(lines, x_label=label, mark=mark if stepped else None)
        blocks.append(subsection(heading, chart) if chart else "")
    return blocks


def _measured(columns: Sequence[str], metric: str) -> list[str]:
    """The columns of a metric on rows not yet learned: validation, or a stream's next shard."""
    return [
        name
        for name in columns
        if name.partition("/")[0] in ("valid", "before") and name.rpartition("/")[2] == metric
    ]


def _line_name(column: str) -> str:
    names = {"loss": "training", "nonzero_wide": "not zero"}
    kind, *suffix = column.split("/")
    name = {"valid": "validation", "before": "next shard"}.get(kind, names.get(kind, kind))
    return " ".join([name, *suffix[:-1]])


def is_number(value: object) -> bool:
    """True for an integer or a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
