"""FeatureRates: one factor of the learning rate for each wide feature, learned on the way.

Most features of a wide model say nothing, some say much, and one learning rate for all makes the
weights of the first kind noise and those of the second kind timid. FTRL's closed form makes a
weight proportional to its rate, w ~ α, so the loss's derivative by log α is w times the gradient
that w is about to see. A weight was made by earlier examples: on examples it has not seen yet, this
product says whether the feature's weights, as they stand, help or harm. Descending along it is
IDBD's idea (Sutton 1992, *Adapting Bias by Gradient Descent*) with one rate a feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.errors import CheckpointError
from widedeep.kernels.torch_device import triton_kernels

LOWEST = 0.01
HIGHEST = 5.0
_RANGE = (LOWEST, HIGHEST)
_PARTS = ("log_rates", "evidence")


class FeatureRates:
    """Factors of a wide table's learning rate, one per feature, moved by Adagrad on their log."""

    def __init__(self, n_features: int, step: float, *, device: str | torch.device = "cpu") -> None:
        self.step = step
        self.frozen = False
        self.log_rates = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.evidence = torch.zeros_like(self.log_rates)
        self._told: Tensor | None = None

    @property
    def factors(self) -> NDArray[np.float32]:
        """The present factor of each feature's rate."""
        found: NDArray[np.float32] = np.exp(self.log_rates.cpu().numpy()).astype(np.float32)
        return found

    def of_rows(self, starts_T: NDArray[np.int64], there: Tensor | None = None) -> Tensor:
        """Return each touched row's factor, float32 (U,)."""
        if there is not None and there.device.type != "cpu":
            factors, rows = self.log_rates.exp().float(), int(starts_T[-1])
            kernels = triton_kernels(there.device)
            if kernels is None:
                return torch.repeat_interleave(factors, there.diff(), output_size=rows)
            found: Tensor = kernels.expand(factors, there, rows)
            return found
        return torch.from_numpy(np.repeat(self.factors, np.diff(starts_T)))

    def learn(
        self, products_U: Tensor, starts_T: NDArray[np.int64], there: Tensor | None = None
    ) -> None:
        """Move the factors."""
        touched = np.diff(starts_T) > 0
        if self.frozen or not touched.any():
            return
        if there is not None and there.device.type != "cpu":
            self._learn_there(products_U, there)
            return
        products = products_U.numpy().astype(np.float64)
        starts = starts_T[:-1][touched]
        log_rates, evidence = self.log_rates.numpy(), self.evidence.numpy()
        sums = np.add.reduceat(products, starts)
        evidence[touched] += np.add.reduceat(products * products, starts)
        # A feature whose weights are all 0 so far has no evidence: its rate stays.
        roots = np.sqrt(np.maximum(evidence[touched], np.finfo(np.float64).tiny))
        moved = log_rates[touched] - self.step * sums / roots
        log_rates[touched] = moved.clip(math.log(LOWEST), math.log(HIGHEST))

    def _learn_there(self, products_U: Tensor, starts_T: Tensor) -> None:
        """Do it on a device, without waiting for it; a feature without rows has sums of 0."""
        kernels = triton_kernels(starts_T.device)
        if kernels is not None:
            if self._told is None:
                told = [self.step, float(np.finfo(np.float64).tiny), *map(math.log, _RANGE)]
                self._told = torch.tensor(told, dtype=torch.float64, device=starts_T.device)
            kernels.learn_rates(products_U, starts_T, self.log_rates, self.evidence, self._told)
            return

        def sums(values_U: Tensor) -> Tensor:
            return torch.segment_reduce(
                values_U, "sum", lengths=starts_T.diff(), initial=0.0, unsafe=True
            )

        products = products_U.double()
        self.evidence += sums(products * products)
        roots = self.evidence.clamp(min=np.finfo(np.float64).tiny).sqrt()
        self.log_rates -= self.step * sums(products) / roots
        self.log_rates.clamp_(math.log(LOWEST), math.log(HIGHEST))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: views."""
        return {name: getattr(self, name) for name in _PARTS}

    def load_tensors(self, tensors: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the state that :meth:`tensors` returned."""
        for name, held in self.tensors().items():
            if name not in tensors or tuple(tensors[name].shape) != tuple(held.shape):
                raise CheckpointError(
                    f"the wide features' rates ({name!r}) are missing or of another number; use "
                    "the checkpoint's own features and wide optimizer"
                )
            held.copy_(torch.from_numpy(np.array(tensors[name])))
