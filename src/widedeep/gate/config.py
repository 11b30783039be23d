"""GateConfig: what a candidate may cost against the model in service, ``[gate]`` in a TOML file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from widedeep.errors import ConfigError
from widedeep.options import check_range, check_types, read_section, read_tables

__all__ = ["GateConfig", "load_gate_config"]


def _limit(default: float) -> float:
    limit: float = field(default=default, metadata={"may_be_infinite": True})
    return limit


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Limits of the gate. A limit is broken where the data shows so at the level of confidence.

    An infinite limit leaves its measure out; nothing else does: a measure that is asked for and
    not defined stops the model.

    Args:
        confidence: Confidence of each decision, 0.5 < confidence < 1.
        bootstrap: Resamples, at least 200.
        seed: Bootstrap seed.
        unit: Column whose values are resampled whole: a user or a request. None: the schema's
            group, else the rows.
        slices: Columns that cut the rows into slices; None: the categorical columns of few values;
            empty: none.
        correction: For many slices: ``"holm"`` keeps the chance of any false stop below
            ``1 - confidence``, ``"bh"`` the expected fraction of false ones among those named.
        min_rows: With fewer rows the gate does not pass.
        min_positives: With a smaller sum of labels it does not pass; nor of ``1 - label``.
        min_slice_rows: Slices with fewer rows do not decide.
        min_slice_positives: Slices with a smaller sum of labels do not decide.
        max_log_loss_rise: Largest rise of the mean loss, relative to the serving model: log loss,
            squared error, or the Poisson deviance of counts and amounts.
        max_auc_drop: Largest drop of the AUC.
        max_gauc_drop: Largest drop of the mean AUC within groups.
        max_calibration_rise: Largest rise of |log(predicted / observed)|.
        max_calibration_error: Largest |log(predicted / observed)| of the candidate.
        max_slice_log_loss_rise: Largest rise of the mean loss within a slice.
        max_slice_auc_drop: Largest drop of the AUC within a slice.
        max_slice_calibration_rise: Largest rise of |log(predicted / observed)| within a slice.
        propensity: Column with the chance that each item had to be shown where it was, in a log
            of a policy that explores; None: ``"propensity"``, where the data has it.
        position: Column of places in the list, from 1, beside propensities.
        request: Column of requests' ids, beside propensities; None: ``"request_id"``, where the
            data has it, else the schema's group.
        max_reward_drop: Largest drop of the reward per request that the log's propensities say of
            the model's rankings (doubly robust), relative to the serving model's.
        warn_psi: Population stability index of a feature against its training data, beyond which
            a note warns.
        max_psi: Index beyond which the model is stopped; infinite by default: a shifted
            distribution stops no model that is good on the shifted rows.
        max_missing_psi: Index of null and not null beyond which the model is stopped.
        max_new_values: Fraction of a feature's values that training did not see, 0 to 1: categories
            that it did not know, numbers outside of its range.
        max_score_psi: Largest index of the scores against the serving model's.
        ignore_drift: Features whose drift decides nothing: a date, an id.
        max_rounding: Largest mean change of scores, relative to max(1, |score|), by rounding the
            bundle's tables (``bundle_tables``), as the bundle tells it.
        max_latency_ms: Median of scoring 100 rows on one thread in a fresh process.
        max_memory_mb: Largest resident memory of that process; None: any.
        max_load_s: Largest time to load the bundle there; None: any.
    """

    confidence: float = 0.95
    bootstrap: int = 1000
    seed: int = 0
    unit: str | None = None
    slices: tuple[str, ...] | None = None
    correction: Literal["holm", "bh"] = "holm"
    min_rows: int = 1000
    min_positives: int = 50
    min_slice_rows: int = 500
    min_slice_positives: int = 30
    max_log_loss_rise: float = _limit(0.005)
    max_auc_drop: float = _limit(0.005)
    max_gauc_drop: float = _limit(0.01)
    max_calibration_rise: float = _limit(0.01)
    max_calibration_error: float = _limit(0.25)
    max_slice_log_loss_rise: float = _limit(0.05)
    max_slice_auc_drop: float = _limit(0.03)
    max_slice_calibration_rise: float = _limit(0.1)
    propensity: str | None = None
    position: str = "position"
    request: str | None = None
    max_reward_drop: float = _limit(0.05)
    warn_psi: float = _limit(0.25)
    max_psi: float = _limit(math.inf)
    max_missing_psi: float = _limit(0.25)
    max_new_values: float = 0.5
    max_score_psi: float = _limit(0.25)
    ignore_drift: tuple[str, ...] = ()
    max_rounding: float = _limit(0.005)
    max_latency_ms: float = _limit(100.0)
    max_memory_mb: float | None = None
    max_load_s: float | None = None

    def __post_init__(self) -> None:
        owner = "[gate]"
        check_types(self, owner)
        for name in ("slices", "ignore_drift"):  # TOML has lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        inside = 0.5 < self.confidence < 1
        check_range(owner, "confidence", self.confidence, inside, "0.5 < confidence < 1")
        check_range(owner, "bootstrap", self.bootstrap, self.bootstrap >= 200, "at least 200")
        for name in ("min_rows", "min_positives", "min_slice_rows", "min_slice_positives"):
            value = getattr(self, name)
            check_range(owner, name, value, value >= 1, "an integer of at least 1")
        limits = [entry.name for entry in fields(self) if "may_be_infinite" in entry.metadata]
        for name in (*limits, "max_memory_mb", "max_load_s"):
            value = getattr(self, name)
            check_range(owner, name, value, value is None or value >= 0, "a number >= 0")
        fraction = self.max_new_values
        check_range(owner, "max_new_values", fraction, 0 <= fraction <= 1, "a share, 0 to 1")


def check_judge_rows(judge_rows: int, gate: GateConfig) -> None:
    """Refuse to judge on fewer rows than the gate asks for: no candidate could pass."""
    if judge_rows < gate.min_rows:
        raise ConfigError(
            f"got judge_rows={judge_rows:,}, but the gate asks for at least {gate.min_rows:,} "
            "rows; raise it, or lower min_rows under [gate]"
        )


def load_gate_config(
    path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()
) -> GateConfig:
    """Read the ``[gate]`` section of a TOML file; a run's file may hold it.

    Args:
        path: The file; None takes the defaults.
        overrides: ``"gate.max_auc_drop=0.01"`` and the like.

    Raises:
        ConfigError: For a missing or broken file, an unknown key, or a bad value.

    Example:
        >>> load_gate_config(overrides=["gate.slices=['country']"]).slices
        ('country',)
    """
    for override in overrides:
        if not override.strip().startswith("gate."):
            keys = ", ".join(field.name for field in fields(GateConfig))
            raise ConfigError(f"got --set {override!r}, expected gate.KEY=VALUE; keys: {keys}")
    tables = read_tables(os.devnull if path is None else path, overrides)
    table = tables.get("gate", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: got gate = {table!r}, expected a section [gate]")
    return read_section(GateConfig, table, f"{path or 'the options'}: [gate]")
