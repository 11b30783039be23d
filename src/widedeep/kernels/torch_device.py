"""Which code runs on a device: Triton's kernels where they are, or torch's index operations.

Both give the same bits, but for the last digits of the float64 sums behind the features' rates
(:class:`widedeep.training.step.FeatureRates`). ``WIDEDEEP_KERNELS=reference`` takes the
index operations everywhere.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from widedeep.kernels import torch_twins as twins

__all__ = [
    "find_rows",
    "gather_pool",
    "index_operations_alone",
    "segment_sum",
    "sort_ids",
    "triton_kernels",
    "wide_forward",
]


@functools.cache
def _triton() -> ModuleType | None:
    """Return the Triton kernels where Triton is installed, as it is beside torch's CUDA builds."""
    wanted = os.environ.get("WIDEDEEP_KERNELS", "") != "reference"
    if not wanted or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("widedeep.kernels.torch_triton")


_twins_alone: ContextVar[bool] = ContextVar("twins_alone", default=False)


@contextmanager
def index_operations_alone() -> Iterator[None]:
    """Take the index operations for a while, to compare."""
    before = _twins_alone.set(True)
    try:
        yield
    finally:
        _twins_alone.reset(before)


def triton_kernels(device: torch.device) -> ModuleType | None:
    """Return the Triton kernels if they run on this device, else None."""
    return _triton() if device.type == "cuda" and not _twins_alone.get() else None


def sort_ids(
    batch: twins.TensorBatch, slots: twins.TensorSlots, bounds_T: Tensor, n_rows: int
) -> twins.SortedIds:
    """Do what :func:`widedeep.kernels.torch_twins.sort_ids` does."""
    chosen = triton_kernels(batch.ids_N.device) or twins
    found: twins.SortedIds = chosen.sort_ids(batch, slots, bounds_T, n_rows)
    return found


def find_rows(found: twins.SortedIds) -> twins.TensorGroups:
    """Do what :func:`widedeep.kernels.torch_twins.find_rows` does."""
    groups: twins.TensorGroups = (triton_kernels(found.rows_N.device) or twins).find_rows(found)
    return groups


def gather_pool(
    weights_RD: Tensor, batch: twins.TensorBatch, slots: twins.TensorSlots, out_BX: Tensor
) -> None:
    """Do what :func:`widedeep.kernels.torch_twins.gather_pool` does."""
    found = triton_kernels(weights_RD.device) or twins
    found.gather_pool(weights_RD, batch, slots, out_BX)


def wide_forward(
    weights_RC: Tensor, batch: twins.TensorBatch, slots: twins.TensorSlots, logits_BC: Tensor
) -> None:
    """Do what :func:`widedeep.kernels.torch_twins.wide_forward` does."""
    found = triton_kernels(weights_RC.device) or twins
    found.wide_forward(weights_RC, batch, slots, logits_BC)


def segment_sum(
    grad_BX: Tensor,
    groups: twins.TensorGroups,
    batch: twins.TensorBatch,
    slots: twins.TensorSlots,
    width: int,
    sequence_grads_MD: Tensor | None = None,
    sequence_place_N: Tensor | None = None,
) -> Tensor:
    """Do what :func:`widedeep.kernels.torch_twins.segment_sum` does."""
    found = triton_kernels(grad_BX.device)
    if found is None or sequence_grads_MD is not None:
        return twins.segment_sum(
            grad_BX, groups, batch, slots, width, sequence_grads_MD, sequence_place_N
        )
    sums: Tensor = found.segment_sum(grad_BX, groups, batch, slots, width)
    return sums
