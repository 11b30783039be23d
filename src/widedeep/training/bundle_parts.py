"""What a bundle holds of a model: its shape, and its weights with batch norm folded in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from widedeep.bundle import BundleHead, BundleModel, DeepColumn
from widedeep.deep import MLP, has_hooks
from widedeep.model import WideDeep


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
    tower = standard_tower(model)
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
    tower = standard_tower(model)
    if tower is not None:
        (output,) = model.outputs.values()
        assert isinstance(output, nn.Linear)
        weights.update(mlp_weights(tower, output, weights["bias"]))
    return weights


def standard_tower(model: WideDeep) -> MLP | None:
    """Return the standard tower if it is the only one; other models keep theirs in a graph."""
    towers, outputs = list(model.towers.values()), list(model.outputs.values())
    if len(towers) != 1 or not isinstance(towers[0], MLP) or not towers[0].is_standard:
        return None
    return towers[0] if type(outputs[0]) is nn.Linear and not has_hooks(outputs[0]) else None


def mlp_weights(tower: MLP, output: nn.Linear, bias_C: NDArray[Any]) -> dict[str, NDArray[Any]]:
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
        found["bias"] = (bias_C + head @ shift).astype(np.float32)
        head = head * scale
    found["head/weight"] = head.astype(np.float32)
    return found


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array
