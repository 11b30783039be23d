"""Gradients of the dense parameters: summed lane after lane, whichever rank computed a lane."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep.ranks.config import Wire
from widedeep.ranks.ranks import Ranks

_LINE = 16  # floats of a cache line


class LaneGradients:
    """The ``.grad`` of some parameters by lane of this rank, and their sum over all lanes.

    Each rank adds a slice of the numbers, lane after lane, and tells the others the sum: as many
    bytes as a ring of ranks would send where each has one lane.

    Args:
        parameters: They get their sums in ``.grad``.
        ranks: The ranks.
        wire: Numbers in which gradients travel; a lone process rounds to them as well.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], ranks: Ranks, *, wire: Wire = "fp32"
    ) -> None:
        self.ranks, self.wire = ranks, wire
        self.parameters = list(parameters)
        sizes = [-(-p.numel() // _LINE) * _LINE for p in self.parameters]
        first = np.cumsum([0, *sizes]).tolist()
        slices = zip(first, self.parameters, strict=False)
        self._spans = [slice(start, start + p.numel()) for start, p in slices]
        step = -(-first[-1] // (ranks.size * _LINE)) * _LINE
        self._edges = [step * r for r in range(ranks.size + 1)]
        self._lanes = torch.zeros(len(ranks.lanes_of()), step * ranks.size)
        self._sums = torch.zeros(step * ranks.size)

    @torch.no_grad()
    def take(self, lane: int) -> None:
        """Copy the gradients of this rank's lane, counted from 0; a missing one is zero."""
        for parameter, span in zip(self.parameters, self._spans, strict=True):
            target = self._lanes[lane, span].view(parameter.shape)
            if parameter.grad is None:
                target.zero_()
            else:
                target.copy_(parameter.grad)

    def clear(self, lane: int) -> None:
        """Take no gradients for a lane without examples."""
        self._lanes[lane].zero_()

    @torch.no_grad()
    def reduce(self) -> None:
        """Make each parameter's ``.grad`` the sum over all lanes of all ranks."""
        own, size = self._lanes, self.ranks.size
        if self.wire == "bf16":
            own = own.bfloat16()
        parts = [own[:, a:b] for a, b in zip(self._edges[:-1], self._edges[1:], strict=True)]
        lanes = parts
        if size > 1:
            lengths = [len(self.ranks.lanes_of(rank)) for rank in range(size)]
            lanes = self._received(self.ranks.all_to_all([_raw(p) for p in parts], lengths=lengths))
        slices = torch.cat(lanes).float()  # (lanes, numbers of the slice)
        total = slices[0].clone()
        for lane in slices[1:]:
            total += lane
        if self.wire == "bf16":
            total = total.bfloat16()
        if size > 1:
            total = torch.cat(self._received(self.ranks.gather(_raw(total))))
        self._sums.copy_(total)
        for parameter, span in zip(self.parameters, self._spans, strict=True):
            parameter.grad = self._sums[span].view(parameter.shape)

    def _received(
        self, arrays: list[NDArray[np.int16]] | list[NDArray[np.float32]]
    ) -> list[Tensor]:
        tensors = [torch.from_numpy(array) for array in arrays]
        return [t.view(torch.bfloat16) for t in tensors] if self.wire == "bf16" else tensors


def _raw(values: Tensor) -> NDArray[np.float32] | NDArray[np.int16]:
    """Return numbers as NumPy knows them."""
    values = values.contiguous()
    raw: NDArray[np.float32] | NDArray[np.int16]
    raw = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    return raw
