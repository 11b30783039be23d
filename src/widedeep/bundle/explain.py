"""Explanation: one row's logits taken apart, by the names a person knows."""

from __future__ import annotations

from dataclasses import dataclass

from widedeep.bundle.layout import BundleHead, BundleModel

__all__ = ["Explanation", "WideTerm"]

_SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class WideTerm:
    """What one id of one feature adds to the logits.

    Args:
        feature: The feature's name.
        value: What the id stands for: a value, a bucket, the parts of a cross.
        weights: What it adds to each logit column.
    """

    feature: str
    value: str
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """One row's logits as wide terms + deep part + bias, before any calibration.

    Args:
        model: Says what each logit column is.
        wide: The wide terms, in feature order.
        deep: The deep part of each logit column.
        bias: Of each logit column.
        logits: Their sums.
        score: What :meth:`Bundle.score` gives for the row, by head.
    """

    model: BundleModel
    wide: tuple[WideTerm, ...]
    deep: tuple[float, ...]
    bias: tuple[float, ...]
    logits: tuple[float, ...]
    score: dict[str, float | tuple[float, ...]]

    def __str__(self) -> str:
        blocks = []
        for head in self.model.heads:
            for column in range(head.start, head.stop):
                blocks.append(self._column_text(head, column))
        return "\n\n".join(blocks)

    def _column_text(self, head: BundleHead, column: int) -> str:
        terms = sorted(self.wide, key=lambda term: -abs(term.weights[column]))
        terms = [term for term in terms if term.weights[column]]
        rows = [(f"{term.feature} = {term.value}", term.weights[column]) for term in terms]
        rest = len(rows) - _SHOWN
        rows, hidden = rows[:_SHOWN], rows[_SHOWN:]
        if rest > 0:
            rows.append((f"{rest} more wide terms", sum(weight for _, weight in hidden)))
        rows += [("deep part", self.deep[column]), ("bias", self.bias[column])]
        rows.append(("logit", self.logits[column]))
        score = self.score[head.name]
        shown = score if isinstance(score, float) else score[column - head.start]
        rows.append(("value" if head.kind == "regression" else "probability", shown))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value:+.4f}" for name, value in rows[:-1]]
        lines.append(f"{rows[-1][0].ljust(width)}   {rows[-1][1]:.4f}")
        title = _title(self.model, head, column)
        return "\n".join([title, *lines] if title else lines)


def _title(model: BundleModel, head: BundleHead, column: int) -> str:
    parts = [f"head {head.name}"] if len(model.heads) > 1 else []
    if head.kind == "multiclass":
        position = column - head.start
        parts.append(f"class {head.classes[position] if head.classes else position}")
    return ", ".join(parts)
