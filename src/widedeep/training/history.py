"""History: what was measured while training, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_SHOWN = (
    "epoch",
    "step",
    "rows",
    "loss",
    "rows_per_s",
    "nonzero_wide",
    "valid/auc",
    "valid/log_loss",
    "valid/calibration",
)


class History:
    """Rows of figures, one an evaluation or epoch; printing it shows a table."""

    def __init__(
        self, rows: list[dict[str, Any]] | None = None, warnings: Sequence[str] = ()
    ) -> None:
        self.rows: list[dict[str, Any]] = list(rows or [])
        self.warnings = list(warnings)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row of figures."""
        self.rows.append(row)

    def column(self, name: str) -> list[Any]:
        """Return one figure over time; None where a row has none."""
        return [row.get(name) for row in self.rows]

    def valid_metrics(self, step: int) -> dict[str, float]:
        """Return the validation metrics of the model at a step; none if it was not evaluated."""
        none: dict[str, Any] = {}
        row = next((row for row in reversed(self.rows) if row.get("step") == step), none)
        return {k.removeprefix("valid/"): v for k, v in row.items() if k.startswith("valid/")}

    def live_metrics(self) -> dict[str, float]:
        """Return the metrics of the last shard of a stream, before it was learned."""
        row = self.rows[-1] if self.rows else {}
        return {k.removeprefix("before/"): v for k, v in row.items() if k.startswith("before/")}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __repr__(self) -> str:
        names = [name for name in _SHOWN if any(name in row for row in self.rows)]
        if not names:
            return "History (empty)"
        cells = [names, *([_text(row.get(name)) for name in names] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in cells
        ]
        return "\n".join([*table, *(f"warning: {warning}" for warning in self.warnings)])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
