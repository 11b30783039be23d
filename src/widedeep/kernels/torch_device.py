"""Which code runs on a device: Triton's kernels where they are, or torch's index operations.

Both give the same bits, but for the last digits of the float64 sums behind the features' rates
(:class:`widedeep.training.feature_rates.FeatureRates`). ``WIDEDEEP_KERNELS=reference`` takes the
index operations everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from widedeep.kernels import torch_ops


@functools.cache
def _triton() -> ModuleType | None:
    """Return the Triton kernels where Triton is installed, as it is beside torch's CUDA builds."""
    if (
        os.environ.get("WIDEDEEP_KERNELS") == "reference"
        or importlib.util.find_spec("triton") is None
    ):
        return None
    return importlib.import_module("widedeep.kernels.torch_triton")


_torch_ops_only: ContextVar[bool] = ContextVar("torch_ops_only", default=False)


@contextmanager
def index_operations_alone() -> Iterator[None]:
    """Take the index operations for a while, to compare."""
    before = _torch_ops_only.set(True)
    try:
        yield
    finally:
        _torch_ops_only.reset(before)


def triton_kernels(device: torch.device) -> ModuleType | None:
    """Return the Triton kernels if they run on this device, else None."""
    return _triton() if device.type == "cuda" and not _torch_ops_only.get() else None


def kernels_on(device: torch.device) -> ModuleType:
    """Return what runs the sparse kernels on this device: Triton's module, or torch operations."""
    return triton_kernels(device) or torch_ops


def segment_sum(
    grad_BX: Tensor,
    groups: torch_ops.TensorGroups,
    batch: torch_ops.TensorBatch,
    slots: torch_ops.TensorSlots,
    width: int,
    sequence_grads_MD: Tensor | None = None,
    sequence_place_N: Tensor | None = None,
) -> Tensor:
    """Do what :func:`widedeep.kernels.torch_ops.segment_sum` does."""
    triton = triton_kernels(grad_BX.device)
    if triton is None or sequence_grads_MD is not None:
        return torch_ops.segment_sum(
            grad_BX, groups, batch, slots, width, sequence_grads_MD, sequence_place_N
        )
    sums: Tensor = triton.segment_sum(grad_BX, groups, batch, slots, width)
    return sums


def seed_of(*key: object) -> int:
    """Return a seed, 0 to 2^63 - 1, that is a function of a key.

    Example:
        >>> seed_of("step", 0, 1) == seed_of("step", 0, 2)
        False
    """
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


@contextlib.contextmanager
def seeded(device: torch.device, *key: object, torch_alone: bool = False) -> Iterator[None]:
    """Run with torch's, NumPy's and Python's global generators started from a key.

    Afterwards they are as they were: nothing here depends on who drew from them before, and
    nobody's numbers change because a model was made or trained in between.

    Args:
        device: Its generator takes part, beside the CPU's.
        *key: What the numbers are a function of, such as a seed and a step.
        torch_alone: Leave NumPy's and Python's out, which take 0.1 ms, for modules that read
            torch's alone.

    Example:
        >>> with seeded(torch.device("cpu"), "dropout", 7):
        ...     first = torch.rand(2)
        >>> with seeded(torch.device("cpu"), "dropout", 7):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    start = seed_of(*key)
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    others = None if torch_alone else (np.random.get_state(), random.getstate())
    try:
        for generator in generators:
            generator.manual_seed(start)
        if others is not None:
            np.random.seed(start % 2**32)
            random.seed(start)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if others is not None:
            np.random.set_state(others[0])
            random.setstate(others[1])
