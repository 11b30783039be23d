"""Rates of a wide model's features: factors of the learning rate, learned on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.errors import CheckpointError
from widedeep.kernels.torch_device import triton_kernels
from widedeep.ranks.ranks import Ranks

LOWEST = 0.01
HIGHEST = 5.0
RANGE = (math.log(LOWEST), math.log(HIGHEST))  # of the factors' logarithms


class FeatureRates:
    """Factors of a wide table's learning rate, one per feature, moved by Adagrad on their log.

    Most features of a wide model say nothing, some say much, and one learning rate for all makes
    the weights of the first kind noise and those of the second kind timid. FTRL's closed form makes
    a weight proportional to its rate, w ~ α, so the loss's derivative by log α is w times the
    gradient that w is about to see. A weight was made by earlier examples: on examples it has not
    seen yet, this product says whether the feature's weights, as they stand, help or harm.
    Descending along it is IDBD's idea (Sutton 1992, *Adapting Bias by Gradient Descent*) with one
    rate per feature.
    """

    def __init__(self, n_features: int, step: float, *, device: str | torch.device = "cpu") -> None:
        self.step = step
        self.frozen = False
        self.log_rates = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.evidence = torch.zeros_like(self.log_rates)
        self._constants: Tensor | None = None  # Step and limits, on a device

    @property
    def factors(self) -> NDArray[np.float32]:
        """The present factor of each feature's rate."""
        factors: NDArray[np.float32] = np.exp(self.log_rates.cpu().numpy()).astype(np.float32)
        return factors

    def of_rows(self, starts_T: NDArray[np.int64], device_starts_T: Tensor | None = None) -> Tensor:
        """Return each touched row's factor, float32 (U,).

        ``starts_T[t]`` is the first of the U rows that belongs to feature t; the last is U.
        """
        if device_starts_T is not None and device_starts_T.device.type != "cpu":
            factors, rows = self.log_rates.exp().float(), int(starts_T[-1])
            programs = triton_kernels(device_starts_T.device)
            if programs is None:
                lengths_T = device_starts_T.diff()
                return torch.repeat_interleave(factors, lengths_T, output_size=rows)
            rates_U: Tensor = programs.expand(factors, device_starts_T, rows)
            return rates_U
        rates_U = torch.empty(int(starts_T[-1]))
        kernels.fill_rates(self.log_rates.numpy(), starts_T, rates_U.numpy())
        return rates_U

    def learn(
        self,
        products_U: Tensor,
        starts_T: NDArray[np.int64],
        device_starts_T: Tensor | None = None,
    ) -> None:
        """Move the factors by each row's gradient times its weight."""
        if self.frozen or not starts_T[-1]:
            return
        if device_starts_T is not None and device_starts_T.device.type != "cpu":
            self._learn_on_device(products_U, device_starts_T)
            return
        kernels.learn_rates(
            self.log_rates.numpy(), self.evidence.numpy(), starts_T, products_U.numpy(),
            step=self.step, lowest=RANGE[0], highest=RANGE[1],
        )  # fmt: skip

    def _move(
        self, touched_T: NDArray[np.bool_], sums: NDArray[np.float64], squares: NDArray[np.float64]
    ) -> None:
        log_rates, evidence = self.log_rates.numpy(), self.evidence.numpy()
        evidence[touched_T] += squares
        # A feature whose weights are all 0 so far has no evidence: its rate stays.
        roots = np.sqrt(np.maximum(evidence[touched_T], np.finfo(np.float64).tiny))
        updated = log_rates[touched_T] - self.step * sums / roots
        log_rates[touched_T] = updated.clip(*RANGE)

    def learn_over(self, ranks: Ranks, products_U: Tensor, starts_T: NDArray[np.int64]) -> None:
        """Do what :meth:`learn` does with the rows of all ranks, in whatever order they come.

        The numbers are cut to grids, from one of 2^36 to one of 2^-72, on each of which float64
        sums are exact: large ones too, as regressions have.
        """
        if self.frozen:
            return
        sums = kernels.sum_rates(products_U.numpy(), starts_T)
        own = np.concatenate([sums, np.diff(starts_T)[None] > 0])
        totals = np.sum(ranks.gather(own[None], [1] * ranks.size), axis=0)[0]
        touched_T = totals[-1] > 0
        of_products, of_squares = np.split(totals[:-1, touched_T], 2)
        self._move(touched_T, _sum_grids(of_products), _sum_grids(of_squares))

    def _learn_on_device(self, products_U: Tensor, starts_T: Tensor) -> None:
        """Do it without waiting for the device; a feature without rows has sums of 0."""
        programs = triton_kernels(starts_T.device)
        if programs is not None:
            if self._constants is None:
                values = [self.step, float(np.finfo(np.float64).tiny), *RANGE]
                self._constants = torch.tensor(values, dtype=torch.float64, device=starts_T.device)
            programs.learn_rates(
                products_U, starts_T, self.log_rates, self.evidence, self._constants
            )
            return

        def sums(values_U: Tensor) -> Tensor:
            return torch.segment_reduce(
                values_U, "sum", lengths=starts_T.diff(), initial=0.0, unsafe=True
            )

        products = products_U.double()
        self.evidence += sums(products * products)
        roots = self.evidence.clamp(min=np.finfo(np.float64).tiny).sqrt()
        self.log_rates -= self.step * sums(products) / roots
        self.log_rates.clamp_(*RANGE)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: views."""
        return {"log_rates": self.log_rates, "evidence": self.evidence}

    def load_tensors(self, tensors: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the state that :meth:`tensors` returned."""
        for name, tensor in self.tensors().items():
            if name not in tensors or tuple(tensors[name].shape) != tuple(tensor.shape):
                raise CheckpointError(
                    f"the wide features' rates ({name!r}) are missing or of another number; use "
                    "the checkpoint's own features and wide optimizer"
                )
            tensor.copy_(torch.from_numpy(np.array(tensors[name])))


def _sum_grids(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add sums on the grids, (grids, T), the coarsest first."""
    total: NDArray[np.float64] = sum(sums[1:], start=sums[0])
    return total
