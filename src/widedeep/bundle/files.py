"""The names of a bundle's files, and what the small ones hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widedeep.bundle.calibration import Calibration, calibration_from_json, calibration_to_json
from widedeep.bundle.layout import BundleModel
from widedeep.bundle.plain_json import read_json, write_json
from widedeep.options import check_value

SCHEMA = "schema.safetensors"
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
METRICS = "metrics.json"
WARMUP = "warmup.json"
CALIBRATION = "calibration.json"
GRAPH = "graph.onnx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """Rows with the scores they had when the bundle was written."""

    rows: list[dict[str, Any]]  # Raw rows, as a request gives them
    scores: Mapping[str, list[Any]]  # By head, one score (or one list of class scores) a row


def write_config(path: Path, config: Mapping[str, Any], model: BundleModel) -> None:
    """Write the run's configuration and the model's shape into the bundle at ``path``."""
    write_json(path / CONFIG, {"run": config, "model": model.to_json()}, "config")


def read_config(path: Path) -> tuple[dict[str, Any], BundleModel]:
    """Return the run's configuration and the model's shape."""
    value = read_json(path / CONFIG)
    check_value(value, Mapping[str, Mapping[str, Any]], CONFIG)
    return value["run"], BundleModel.from_json(value["model"])


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the metrics that were given at export."""
    value = read_json(path / METRICS)
    check_value(value, Mapping[str, Any], METRICS)
    metrics: dict[str, Any] = value
    return metrics


def write_calibration(path: Path, calibration: Mapping[str, Calibration]) -> None:
    """Write the heads' calibrations into the bundle at ``path``, if there are any."""
    if calibration:
        values = {head: calibration_to_json(curve) for head, curve in calibration.items()}
        write_json(path / CALIBRATION, values, "calibration")


def read_calibration(path: Path) -> dict[str, Calibration]:
    """Return the calibrations by head."""
    file = path / CALIBRATION
    if not file.exists():
        return {}
    value = read_json(file)
    check_value(value, Mapping[str, Any], CALIBRATION)
    return {head: calibration_from_json(curve) for head, curve in value.items()}


def write_warmup(path: Path, warmup: Warmup) -> None:
    """Write the warm-up rows and their scores into the bundle at ``path``."""
    write_json(path / WARMUP, {"rows": warmup.rows, "scores": warmup.scores}, "warmup")


def read_warmup(path: Path) -> Warmup:
    """Return the warm-up rows; none while the bundle is being written."""
    file = path / WARMUP
    value = read_json(file) if file.exists() else {"rows": [], "scores": {}}
    check_value(value, Mapping[str, Any], WARMUP)
    check_value(value["rows"], list[Mapping[str, Any]], f"{WARMUP}: rows")
    scores = Mapping[str, list[float] | list[list[float]]]
    check_value(value["scores"], scores, f"{WARMUP}: scores")
    return Warmup(rows=value["rows"], scores=value["scores"])
