"""Dropout of whole embeddings: in a step, an example goes without a feature's embedding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from widedeep.kernels.torch_ops import to_device
from widedeep.models.tower import DeepInput
from widedeep.models.wide_deep import WideDeep


class EmbeddingDropout:
    """Draws which features' embeddings are dropped: a function of seed, step, lane and example."""

    def __init__(self, model: WideDeep, seed: int) -> None:
        rates = {
            slot.name: slot.embedding.dropout
            for slot in model.schema.slots
            if slot.deep and slot.embedding.dropout
        }
        self._columns = model.gathered.columns
        self._seed, self._device = seed, model.device
        self._features = list(rates)
        self._rates_F = np.array(list(rates.values()))

    def __bool__(self) -> bool:
        """Whether any feature has dropout."""
        return bool(self._features)

    def draw(self, rows: int, step: int, lane: int = 0) -> Tensor:
        """Return each example's factor of each feature, (B, F): 0, or 1 / (1 - dropout)."""
        generator = np.random.Generator(
            np.random.Philox(key=self._seed, counter=[0, 0, lane, step])
        )
        is_kept = generator.random((rows, len(self._features))) >= self._rates_F
        return to_device((is_kept / (1.0 - self._rates_F)).astype(np.float32), self._device)

    def scale_inputs(self, inputs: DeepInput, factors_BF: Tensor) -> None:
        """Multiply a batch's embeddings by their factors, in place."""
        unpooled = {name: s.values_ND for name, s in inputs.sequences.items()}
        self.scale(inputs.concat_BX, unpooled, inputs, factors_BF)

    def scale(
        self,
        concat_BX: Tensor,
        unpooled: Mapping[str, Tensor],
        inputs: DeepInput,
        factors_BF: Tensor,
    ) -> None:
        """Multiply embeddings, or their gradients, by the factors of a batch, in place."""
        for f, name in enumerate(self._features):
            if name in unpooled:
                lengths_B = inputs.sequences[name].offsets.diff()
                unpooled[name].mul_(torch.repeat_interleave(factors_BF[:, f], lengths_B)[:, None])
            if name in self._columns:
                concat_BX[:, self._columns[name]] *= factors_BF[:, f : f + 1]
