"""The measures that the gate limits: which options hold each, overall and in slices."""

from __future__ import annotations

from dataclasses import dataclass

from widedeep.metrics import find_metric


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A metric that the gate compares, with the options of its limits."""

    limit: str  # Option of the largest loss of quality over all rows
    slice_limit: str | None = None  # The same within a slice; None: not judged there
    absolute_limit: str | None = None  # Limit of the candidate's own value
    other_values: tuple[str, ...] = ()  # Other values of an entry that must be defined
    overall_values: tuple[str, ...] = ()  # Those of all rows alone


_LOSS = Measure(
    limit="max_log_loss_rise",
    slice_limit="max_slice_log_loss_rise",
    overall_values=("normalized_loss",),
)
MEASURES = {
    **dict.fromkeys(("log_loss", "squared_error", "poisson_deviance"), _LOSS),
    "auc": Measure(limit="max_auc_drop", slice_limit="max_slice_auc_drop"),
    "gauc": Measure(limit="max_gauc_drop"),
    "calibration": Measure(
        limit="max_calibration_rise",
        slice_limit="max_slice_calibration_rise",
        absolute_limit="max_calibration_error",
        other_values=("calibration_distance", "calibration_error"),
    ),
}


def measure_title(name: str, *, short: bool = True) -> str:
    """Return the title of a measure: the metric's, or its name in words."""
    metric = find_metric(name)
    return name.replace("_", " ") if metric is None else metric.label(name, short=short)
