"""Gradients of the dense parameters: summed over lanes, whichever rank computed a lane."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep.ranks.config import Wire
from widedeep.ranks.lanes import LaneTree
from widedeep.ranks.ranks import Ranks

_LINE = 16  # floats of a cache line


class LaneGradients:
    """The ``.grad`` of some parameters, added up over the lanes of this rank, then over all.

    A rank adds what it may before it sends (:mod:`widedeep.ranks.lanes`). Each adds a slice of the
    numbers over all ranks and tells the others the sum: as many bytes as a ring of ranks would send
    where a rank's lanes are one node of the tree.

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
        self._sums = torch.zeros(step * ranks.size)
        self._addresses = [self._sums[span].data_ptr() for span in self._spans]
        self._free: list[Tensor] = []  # Buffers of lanes that were added
        self._tree = LaneTree(ranks.lanes, self._add)
        self._lasts = {node.stop - 1 for node in ranks.spans_of()}  # lane of each of its nodes
        self._totals: list[Tensor] = []  # Of each node of this rank

    def start(self) -> None:
        """Forget what was taken for a step that failed."""
        self._tree, self._totals = LaneTree(self.ranks.lanes, self._add), []

    @torch.no_grad()
    def take(self, lane: int, *, empty: bool = False) -> None:
        """Add the gradients of the next of this rank's lanes; missing ones are zero.

        Args:
            lane: Its number on all ranks.
            empty: Whether it has no examples, so that nothing was computed.
        """
        if not empty and self._in_place():
            grads = self._rounded(self._sums)
            if self._tree.adds_at_once(lane):
                self._tree.add_to_last(grads)
            else:
                self._tree.push(lane, self._buffer().copy_(grads))
        else:
            self._tree.push(lane, self._rounded(self._collected(empty)))
        if lane in self._lasts:
            self._totals.append(self._tree.total())

    def _in_place(self) -> bool:
        """Return whether all gradients lie where the last step left their sums."""
        return all(
            parameter.grad is not None and parameter.grad.data_ptr() == address
            for parameter, address in zip(self.parameters, self._addresses, strict=True)
        )

    def _buffer(self) -> Tensor:
        return self._free.pop() if self._free else torch.zeros_like(self._sums)

    def _collected(self, empty: bool) -> Tensor:
        """Copy the gradients from wherever they lie."""
        buffer = self._buffer()
        targets, grads = [], []
        for parameter, span in zip(self.parameters, self._spans, strict=True):
            if empty or parameter.grad is None:
                buffer[span].zero_()
            else:
                targets.append(buffer[span])
                grads.append(parameter.grad.reshape(-1))
        if targets:
            torch._foreach_copy_(targets, grads)
        return buffer

    def _add(self, first: Tensor, second: Tensor) -> Tensor:
        first += second
        if len(second) == len(self._sums) and second is not self._sums:
            self._free.append(second)
        return self._rounded(first)

    def _rounded(self, values: Tensor) -> Tensor:
        return values.copy_(values.bfloat16()) if self.wire == "bf16" else values

    @torch.no_grad()
    def reduce(self) -> None:
        """Make each parameter's ``.grad`` the sum over all lanes of all ranks."""
        size, totals = self.ranks.size, self._totals
        if size == 1:
            self._sums.copy_(totals[0])
        else:
            own = totals[0][None] if len(totals) == 1 else torch.stack(totals)
            own = own.bfloat16() if self.wire == "bf16" else own  # exactly
            parts = [own[:, a:b] for a, b in itertools.pairwise(self._edges)]
            nodes = [self.ranks.spans_of(rank) for rank in range(size)]
            received = self.ranks.all_to_all(
                [_raw(part) for part in parts], lengths=[len(own_nodes) for own_nodes in nodes]
            )
            rows = itertools.chain(*self._received(received))  # numbers of the slice, by node
            for node, values in zip(itertools.chain(*nodes), rows, strict=True):
                self._tree.push(node.start, values.float())
            total = self._tree.total()
            total = total.bfloat16() if self.wire == "bf16" else total
            slices = self.ranks.gather(_raw(total), [len(total)] * size)
            for (a, b), values in zip(
                itertools.pairwise(self._edges), self._received(slices), strict=True
            ):
                self._sums[a:b] = values
        self._free += totals
        self._totals = []
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
