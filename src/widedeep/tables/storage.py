"""Where a table's numbers lie: one record a row, its weights and optimizer state side by side.

An update touches a row's weights and all of its state. In one record they share cache lines and a
page, so a row in a table far larger than the caches costs one trip to memory, not one a tensor.
"""

from __future__ import annotations

import mmap

import numpy as np
import torch
from torch import Tensor

_LINE = 16  # floats of a cache line
_HUGE_BYTES = 4 << 20  # from here on, ask for huge pages


class RowStorage:
    """R records, each of one or more parts of D floats: the weights, then each state tensor."""

    def __init__(self, n_rows: int, dim: int, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.records = _zeros(n_rows, record_stride(dim * len(names)), device)
        # Made once: every step asks for each of them.
        self._parts = {
            name: self.records[:, i * dim : (i + 1) * dim] for i, name in enumerate(names)
        }

    def part(self, name: str) -> Tensor:
        """Return a view of one part, (R, D); its rows lie a record apart."""
        return self._parts[name]


def batch_rows(rows: int, width: int, device: torch.device) -> Tensor:
    """Return a buffer of zeros, (rows, width), for embeddings or gradients of a batch."""
    lines = -(-max(width, 1) // _LINE)
    return _zeros(rows, (lines + 1 - lines % 2) * _LINE, device)[:, :width]


def record_stride(width: int) -> int:
    """Return the floats from one record to the next, so that few records straddle a cache line."""
    if width <= _LINE:
        return 1 << (width - 1).bit_length()
    lines = -(-width // _LINE) * _LINE
    return lines if lines <= width * 1.25 else -(-width // 4) * 4


def _zeros(n_rows: int, stride: int, device: torch.device) -> Tensor:
    """Return zeros, in huge pages where the system grants them: fewer misses of the TLB."""
    n_bytes = n_rows * stride * 4
    if device.type != "cpu" or n_bytes < _HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(n_rows, stride, device=device)
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, np.float32)).view(n_rows, stride)
