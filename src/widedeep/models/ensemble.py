"""Ensemble: several towers of one kind, each with weights and embeddings of its own, averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from widedeep.errors import show_value
from widedeep.models.head_base import Head
from widedeep.models.tower import (
    DeepInput,
    DeepLayout,
    Returns,
    TowerConfig,
    empty_input,
    register_tower,
    scale_grad,
    tower_config,
    tower_table,
)
from widedeep.options import Count


class EnsembleTower(nn.Module):
    """M towers, each with its output layer, over its own columns of every embedding.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits of each member (B, M, C)
    """

    returns: ClassVar[Returns] = "members"

    def __init__(self, layout: DeepLayout, config: Ensemble) -> None:
        super().__init__()
        of = tower_config(config.of)
        self.copies = config.embedding_copies
        self.layout = _member_layout(layout, self.copies)
        self.spans = [
            [
                _member_columns(columns, layout, m, self.copies)
                for columns in layout.columns.values()
            ]
            for m in range(config.members)
        ]  # by member: each feature's columns of ``concat_BX``
        self.towers = nn.ModuleList(of.make(self.layout) for _ in range(config.members))
        first = self.towers[0]
        self.reads_numbers = bool(getattr(first, "reads_numbers", True))
        form = getattr(first, "returns", "features")
        self.outputs = nn.ModuleList()
        if form == "features":
            with torch.no_grad():
                width = first.eval()(empty_input(2, self.layout)).shape[1]
            first.train()
            for _ in self.towers:
                output = nn.Linear(width, layout.n_logits, bias=False)
                nn.init.xavier_uniform_(output.weight)
                self.outputs.append(output)

    def member_input(self, inputs: DeepInput, member: int) -> DeepInput:
        """Return a member's embedding of each id, and all numbers.

        Losses are the members' mean, of which embeddings of its own would see but a part each: they
        get the whole of their member's gradient, so that rates mean the same for any M.
        """
        if self.copies == 1:
            return inputs
        factor = float(len(self.towers))
        parts = [inputs.concat_BX[:, span] for span in self.spans[member]]
        concat_BX = scale_grad(torch.cat(parts, dim=1), factor)
        sequences = {}
        for name, sequence in inputs.sequences.items():
            dim = self.layout.dims[name]
            sequences[name] = sequence.part(slice(member * dim, (member + 1) * dim), factor)
        return dataclasses.replace(
            inputs,
            concat_BX=concat_BX,
            layout=self.layout.columns,
            dense_BK=concat_BX[:, self.layout.dense],
            sequences=sequences,
        )

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the members' logits, (B, M, C)."""
        logits: list[Tensor] = []
        attention: dict[str, list[Tensor]] = {}  # by sequence, of each member
        for member, tower in enumerate(self.towers):
            own = self.member_input(inputs, member)
            if inputs.attention is not None:
                own = dataclasses.replace(own, attention={})
            if inputs.own_losses is not None:
                own = dataclasses.replace(own, own_losses=[])
            out = tower(own)
            if inputs.own_losses is not None:
                inputs.own_losses.extend(x_B / len(self.towers) for x_B in own.own_losses or ())
            logits.append(self.outputs[member](out) if len(self.outputs) else out)
            for name, weights_BT in (own.attention or {}).items():
                attention.setdefault(name, []).append(weights_BT)
        if inputs.attention is not None:
            for name, weights in attention.items():
                inputs.attention[name] = torch.stack(weights).mean(dim=0)
        return torch.stack(logits, dim=1)


def _member_layout(layout: DeepLayout, copies: int) -> DeepLayout:
    """Return the layout of one member's input: a copy of each embedding, and all numbers."""
    dims = {name: dim // copies for name, dim in layout.dims.items()}
    columns: dict[str, slice] = {}
    start = 0
    for name, span in layout.columns.items():
        width = (span.stop - span.start) // (copies if span.start < layout.dense.start else 1)
        columns[name] = slice(start, start + width)
        start += width
    dense = slice(start - layout.numbers, start)
    return dataclasses.replace(layout, width=start, columns=columns, dims=dims, dense=dense)


def _member_columns(span: slice, layout: DeepLayout, member: int, copies: int) -> slice:
    """Return a member's columns of a feature's: its copy of an embedding, or a number as it is."""
    if span.start >= layout.dense.start:
        return span
    width = (span.stop - span.start) // copies
    start = span.start + (member * width if copies > 1 else 0)
    return slice(start, start + width)


@register_tower
class Ensemble(TowerConfig):
    """M towers of one kind in one model, their logits averaged (Lakshminarayanan et al. 2017).

    Equation: ``logit = mean_m f_m(v_m, x)``; each member m is trained by its own loss. With
    embeddings of their own (``"own"``) members are as independent as models of different seeds
    that read the same batches; the wide part is shared. Trained ``"apart"`` they are models of
    their own, wide part and stop included, and read the rows in orders of their own; the wide part
    that is kept is their mean. The paper averages probabilities, which is no sum of a tower and a
    wide part.

    Args:
        of: The members' tower: a configuration, a name, or a table with options, ``{ name =
            "mlp", hidden_units = [64, 32] }``.
        members: M; a bundle is about M times as large, and takes M times as long to train.
        embeddings: ``"own"``: each id has M embeddings of the declared width, one a member;
            ``"shared"``: members read the same ones.
        training: ``"together"``: all members learn each batch in one step; ``"apart"``: one after
            the other, each by all passes. It needs all towers to be ensembles trained apart,
            embeddings of their own, and data that can be read more than once.

    Shape:
        (B, X) -> logits (B, M, C)
    """

    name = "ensemble"
    network = EnsembleTower
    has_members = True
    of: Any = field(default_factory=lambda: {"name": "mlp"})
    members: Count = 4
    embeddings: Literal["own", "shared"] = "own"
    training: Literal["together", "apart"] = "together"

    def __post_init__(self) -> None:
        super().__post_init__()
        of = self.of
        table = {"name": of} if isinstance(of, str) else of
        if not isinstance(table, Mapping | TowerConfig):
            raise self.refusal(
                f"got of = {show_value(of)}, expected a tower: a name such as 'mlp', or "
                "a table with its options"
            )
        config = table if isinstance(table, TowerConfig) else tower_config(table)
        if config.has_members:
            raise self.refusal(
                f"got of = {config.name!r}, which has members itself; name a tower that "
                "has none, or use it without an ensemble"
            )
        if config.has_vectors:
            raise self.refusal(
                f"got of = {config.name!r}, but vectors for retrieval are those of one "
                "model; use it without an ensemble, beside one"
            )
        object.__setattr__(self, "of", tower_table(config))

    @property
    def embedding_copies(self) -> int:
        """M embeddings of each id where they are the members' own."""
        return self.members if self.embeddings == "own" else 1

    @property
    def embedding_rate(self) -> float:
        """The rate of the members' tower."""
        return tower_config(self.of).embedding_rate

    @property
    def embedding_std(self) -> float:
        """The deviation of the members' tower."""
        return tower_config(self.of).embedding_std

    def embedding_dim(self, fields: int) -> int | None:
        """Return the width that the members' tower needs."""
        return tower_config(self.of).embedding_dim(fields)

    def link_heads(self, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        """Return the heads, linked if the members' tower links them."""
        return tower_config(self.of).link_heads(heads)
