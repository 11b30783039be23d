"""Embeddings of numbers that a model computes: sines and cosines of learned frequencies."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from widedeep.features import PeriodicEmbedding
from widedeep.models.tower import DeepInput, DeepLayout, periodic_embeddings
from widedeep.schema import Schema

_PREFIX = "number "


class PeriodicLayer(nn.Module):
    """A number's field: ``ReLU(W [sin(2 pi c x), cos(2 pi c x), missing] + b)``, c learned.

    Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", section
    3.3 (PLR). x has mean 0 and deviation 1; ``missing`` is there where the number has a flag for
    nulls.

    Args:
        embedding: Number of frequencies, and how the dense value is standardised.
        dim: D, width of the field.
        flags: Columns that follow the value: 1 with a flag for nulls, else 0.

    Shape:
        (B, 1 + flags) -> (B, D)
    """

    def __init__(self, embedding: PeriodicEmbedding, dim: int, flags: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.frequencies = nn.Parameter(torch.randn(embedding.frequencies) * embedding.std)
        self.linear = nn.Linear(2 * embedding.frequencies + flags, dim)

    def forward(self, number: Tensor) -> Tensor:
        """Return the field, (B, D)."""
        standard_B1 = (number[:, :1] - self.embedding.shift) * self.embedding.scale
        phases = 2.0 * math.pi * self.frequencies * standard_B1  # (B, frequencies)
        waves = torch.cat([phases.sin(), phases.cos(), number[:, 1:]], dim=1)
        return torch.relu(self.linear(waves))


class NumberFields(nn.Module):
    """Replaces numbers by their fields: what is gathered becomes what towers read.

    Args:
        schema: Says which numbers have such a field.
        gathered: Layout of what is gathered: pooled embeddings, then all numbers.
        layout: Layout of what towers read: pooled embeddings, fields of numbers, other numbers.
    """

    def __init__(self, schema: Schema, gathered: DeepLayout, layout: DeepLayout) -> None:
        super().__init__()
        self.layout = layout
        self.pooled = slice(0, gathered.dense.start)
        by_name = periodic_embeddings(schema)
        self.spans = {name: gathered.columns[name] for name in by_name}
        self.plain = [
            span
            for name, span in gathered.columns.items()
            if span.start >= gathered.dense.start and name not in by_name
        ]
        self.layers = nn.ModuleDict()
        for name, embedding in by_name.items():
            width = self.spans[name].stop - self.spans[name].start
            layer = PeriodicLayer(embedding, layout.dims[name], width - 1)
            self.layers[_module_key(name)] = layer

    def forward(self, inputs: DeepInput) -> DeepInput:
        """Return the input of towers; ``concat_BX`` is a new tensor."""
        gathered = inputs.concat_BX
        parts = [gathered[:, self.pooled]]
        for name, span in self.spans.items():
            parts.append(self.layers[_module_key(name)](gathered[:, span]).to(gathered.dtype))
        parts += [gathered[:, span] for span in self.plain]
        concat_BX = torch.cat(parts, dim=1)
        return replace(
            inputs,
            concat_BX=concat_BX,
            layout=self.layout.columns,
            dense_BK=concat_BX[:, self.layout.dense],
        )


def number_of_parameter(key: str) -> str | None:
    """Return the feature that a model's parameter embeds, None for other parameters."""
    owner, _, rest = key.partition(f".layers.{_PREFIX}")
    if owner != "numbers":
        return None
    return rest.split(".")[0].replace("%2E", ".").replace("%25", "%")


def _module_key(name: str) -> str:
    """Return a name that torch takes for a module: no dots, no attribute of a ModuleDict."""
    return _PREFIX + name.replace("%", "%25").replace(".", "%2E")
