"""A trained model as a bundle: plain arrays that score without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widedeep.bundle import Bundle, write_bundle
from widedeep.bundle.calibration import PriorCorrection, fit_isotonic, fit_platt
from widedeep.errors import BundleError
from widedeep.training.agreement import check_agreement
from widedeep.training.bundle_parts import bundle_model, bundle_weights, standard_tower
from widedeep.training.evaluation import evaluating
from widedeep.training.state import run_tables

if TYPE_CHECKING:
    from widedeep.trainer import Trainer


def export_bundle(
    trainer: Trainer,
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float] | None,
    warmup: Sequence[Mapping[str, Any]] | bool,
    calibration: Literal["platt", "isotonic"] | None,
    calibrate_on: object | None,
    negative_rate: float | None,
    overwrite: bool,
) -> Bundle:
    """Write a trainer's model as a bundle; see :meth:`widedeep.Trainer.export`."""
    model = trainer.model
    custom = len(model.towers) > 0 and standard_tower(model) is None
    onnx = None
    if custom:
        from widedeep.training.onnx_export import tower_graph

        with evaluating(model):
            onnx = tower_graph(model)
    if metrics is None:
        metrics = trainer.valid_metrics if trainer.step.is_current else {}
    rows = _warmup_rows(trainer, warmup)
    curve = _calibration(trainer, calibration, calibrate_on, negative_rate)
    curves = {} if curve is None else {model.heads[0].name: curve}
    return write_bundle(
        path,
        schema=model.schema,
        weights=bundle_weights(model),
        model=bundle_model(model),
        metrics=dict(metrics),
        warmup_rows=rows,
        config=run_tables(trainer),
        calibration=curves,
        engine="onnx" if custom else "native",
        onnx=onnx,
        overwrite=overwrite,
        check=lambda bundle: check_agreement(trainer, bundle, curves, rows, Path(path)),
    )


def _warmup_rows(
    trainer: Trainer, warmup: Sequence[Mapping[str, Any]] | bool
) -> Sequence[Mapping[str, Any]]:
    if isinstance(warmup, bool):
        return trainer.warmup.rows if warmup else []
    rows = list(warmup) if isinstance(warmup, Sequence) else [None]
    if not all(isinstance(row, Mapping) for row in rows):
        raise BundleError(
            f"got warmup={warmup!r}, expected a list of rows (dicts), True for rows of the "
            "training data, or False for none"
        )
    return warmup


def _calibration(
    trainer: Trainer, kind: str | None, data: object | None, negative_rate: float | None
) -> Any:
    if kind is None and negative_rate is None:
        return None
    if len(trainer.model.heads) != 1 or trainer.model.heads[0].kind != "binary":
        raise BundleError(
            "calibration and negative_rate are for a model with one binary head; leave them out"
        )
    if kind is not None and negative_rate is not None:
        raise BundleError(
            "got calibration and negative_rate; a calibration fitted on real data corrects the "
            "rate too: give one"
        )
    if negative_rate is not None:
        return PriorCorrection(rate=negative_rate)
    if data is None:
        raise BundleError(
            f"got calibration={kind!r} without calibrate_on=...; give labelled data kept from "
            "training"
        )
    logits_B, labels_B, weight_B = trainer.labelled_logits(data)
    if kind == "platt":
        return fit_platt(logits_B, labels_B, weight_B)
    if kind == "isotonic":
        return fit_isotonic(logits_B, labels_B, weight_B)
    raise BundleError(f"got calibration={kind!r}, expected 'platt' or 'isotonic'")
