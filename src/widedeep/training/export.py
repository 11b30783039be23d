"""A trained model as a bundle: plain arrays that score without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from widedeep.bundle import Bundle, BundleHead, BundleModel, DeepColumn, write_bundle
from widedeep.bundle.calibration import PriorCorrection, fit_isotonic, fit_platt
from widedeep.deep import MLP, has_hooks
from widedeep.errors import BundleError
from widedeep.model import WideDeep
from widedeep.training.agreement import check_agreement
from widedeep.training.evaluation import evaluating
from widedeep.training.state import run_tables

if TYPE_CHECKING:
    from widedeep.trainer import Trainer

__all__ = ["bundle_model", "bundle_weights", "export_bundle"]


def bundle_model(model: WideDeep) -> BundleModel:
    """Return the description of a model that scoring needs."""
    layout, slots = model.layout, {slot.name: slot for slot in model.schema.slots if slot.deep}
    columns = [
        DeepColumn(
            name=name,
            source="table" if name in slots else "dense",
            start=places.start,
            stop=places.stop,
            combiner=slots[name].combiner if name in slots else None,
        )
        for name, places in layout.columns.items()
    ]
    heads = [
        BundleHead(
            name=head.name,
            kind=head.kind,
            start=places.start,
            stop=places.stop,
            classes=tuple(model.schema.classes.get(head.name, ())),
            own_link=head.link,
        )
        for head, places in zip(model.heads, model.head_slices, strict=True)
    ]
    tower = _standard_tower(model)
    return BundleModel(
        heads=tuple(heads),
        activation=model.config.activation if tower is None else tower.activation,
        hidden_units=() if tower is None else tower.hidden_units,
        wide=tuple(slot.name for slot in model.schema.slots if slot.wide),
        wide_combiner=model.config.wide_combiner,
        deep=tuple(columns),
    )


def bundle_weights(model: WideDeep) -> dict[str, NDArray[Any]]:
    """Return a model's weights by their names in a bundle, batch norm folded into later layers."""
    weights: dict[str, NDArray[Any]] = {"bias": _array(model.bias)}
    if model.wide_table is not None:
        weights.update(
            {f"wide/{name}": _array(w) for name, w in model.wide_table.named_weights().items()}
        )
    # Sequences are for towers of one's own; the standard tower does not read them.
    used = {
        slot.table for slot in model.schema.slots if slot.deep and slot.name in model.layout.columns
    }
    for table in model.deep_tables.values():
        named = table.named_weights().items()
        weights.update({f"table/{name}": _array(w) for name, w in named if name in used})
    tower = _standard_tower(model)
    if tower is not None:
        (output,) = model.outputs.values()
        assert isinstance(output, nn.Linear)
        weights.update(_mlp_weights(tower, output, weights))
    return weights


def _standard_tower(model: WideDeep) -> MLP | None:
    """Return the standard tower if it is the only one; other models keep theirs in a graph."""
    towers, outputs = list(model.towers.values()), list(model.outputs.values())
    if len(towers) != 1 or not isinstance(towers[0], MLP) or not towers[0].is_standard:
        return None
    return towers[0] if type(outputs[0]) is nn.Linear and not has_hooks(outputs[0]) else None


def _mlp_weights(
    tower: MLP, output: nn.Linear, weights: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Fold each layer's norm, a * h + c, into the layer that reads h: W (a * h + c) + b."""
    found: dict[str, NDArray[Any]] = {}
    scale: NDArray[np.float64] | None = None
    shift: NDArray[np.float64] | None = None
    for i, layer in enumerate(tower.layers):
        assert isinstance(layer, nn.Linear)
        weight, bias = (
            _array(layer.weight).astype(np.float64),
            _array(layer.bias).astype(np.float64),
        )
        if scale is not None and shift is not None:
            weight, bias = weight * scale, bias + weight @ shift
        found[f"mlp/{i}/weight"], found[f"mlp/{i}/bias"] = (
            weight.astype(np.float32),
            bias.astype(np.float32),
        )
        if tower.norms is not None:
            norm = tower.norms[i]
            assert isinstance(norm, nn.BatchNorm1d)
            assert norm.running_mean is not None and norm.running_var is not None
            scale = _array(norm.weight) / np.sqrt(
                _array(norm.running_var).astype(np.float64) + norm.eps
            )
            shift = _array(norm.bias) - _array(norm.running_mean) * scale
    head = _array(output.weight).astype(np.float64)
    if scale is not None and shift is not None:
        found["bias"] = (weights["bias"] + head @ shift).astype(np.float32)
        head = head * scale
    found["head/weight"] = head.astype(np.float32)
    return found


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


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
    custom = len(model.towers) > 0 and _standard_tower(model) is None
    onnx = None
    if custom:
        from widedeep.training.onnx_export import tower_graph

        with evaluating(model):
            onnx = tower_graph(model)
    if metrics is None:
        metrics = _last_metrics(trainer)
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


def _last_metrics(trainer: Trainer) -> dict[str, float]:
    last = trainer.history[-1] if len(trainer.history) else {}
    return {
        name.removeprefix("valid/"): value
        for name, value in last.items()
        if name.startswith("valid/")
    }


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
