"""Two towers: a vector of the query, a vector of the item, and a score that is their product."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep.errors import ConfigError, nearest
from widedeep.models.history_blocks import mean_pool
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, TrainingRows, register_tower
from widedeep.options import COUNT, Allowed, Count, Positive, Widths

_SEEN = 1 << 17  # counters of items; more ids share them
_HORIZON = 10_000.0  # steps after which an occurrence counts 1/e of a new one
_LOGITS_AT_ONCE = 1 << 22  # of positives by items
_NONE_OR_COUNT = Allowed(range(2**31).__contains__, f"0, or {COUNT}")
_NORM_FLOOR = 1e-12


class SideTower(nn.Module):
    """The vector of one side's features, of length 1.

    Shape:
        DeepInput -> (B, dim)
    """

    def __init__(self, layout: DeepLayout, side: str, config: TwoTower) -> None:
        super().__init__()
        names = [name for name, own in layout.sides.items() if own == side]
        self.columns = [layout.columns[name] for name in names if name in layout.columns]
        self.sequences = [name for name in names if name in layout.sequences]
        width = sum(columns.stop - columns.start for columns in self.columns)
        width += sum(layout.dims[name] for name in self.sequences)
        if not width:
            raise ConfigError(
                f"tower {config.name!r}: got no feature of the {side} alone in the deep part, "
                "expected at least one on each side; name the item's columns in item=[...] of the "
                "features, and put features of both sides into deep=[...]"
            )
        self.hidden = config.hidden_layers(width)
        self.output = nn.Linear(self.hidden.out_features, config.dim)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the vectors, (B, dim)."""
        parts = [inputs.concat_BX[:, columns] for columns in self.columns]
        for name in self.sequences:
            values_BTD, mask_BT = inputs.sequences[name].padded()
            weights_BT = inputs.sequences[name].padded_weights()
            parts.append(mean_pool(values_BTD * weights_BT[:, :, None], mask_BT))
        vectors_BD = self.output(self.hidden(torch.cat(parts, dim=1)))
        lengths_B1 = (vectors_BD * vectors_BD).sum(1, keepdim=True).add(_NORM_FLOOR).sqrt()
        unit_BD: Tensor = vectors_BD / lengths_B1
        return unit_BD


class TwoTowerTower(nn.Module):
    """A factor for each logit times the product of the query's and the item's vector.

    Shape:
        DeepInput -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.item = _item_feature(layout, config)
        self.label = _label(layout, config)
        self.query_tower = SideTower(layout, "query", config)
        self.item_tower = SideTower(layout, "item", config)
        self.factor_C = nn.Parameter(torch.full((layout.n_logits,), config.ranking))
        # In how many of the recent batches an item was, and how many these are
        self.register_buffer("seen", torch.zeros(_SEEN))
        self.register_buffer("batches", torch.zeros(1))

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return what the product adds to the logits, (B, C)."""
        query_BD, item_BD = self.query_tower(inputs), self.item_tower(inputs)
        if inputs.vectors is not None:
            inputs.vectors.update(query=query_BD, item=item_BD)
        if inputs.training is not None and inputs.own_losses is not None:
            with torch.autocast(query_BD.device.type, enabled=False):
                losses_B = self._losses(query_BD.float(), item_BD.float(), inputs.training)
            if losses_B is not None:
                inputs.own_losses.append(self.config.weight * losses_B)
        product_B1 = (query_BD * item_BD).sum(1, keepdim=True)
        logits_BC: Tensor = product_B1 * self.factor_C
        return logits_BC

    def _losses(self, query_BD: Tensor, item_BD: Tensor, rows: TrainingRows) -> Tensor | None:
        """Return each row's softmax loss over the items of the batch, 0 unless it is positive."""
        labels_B = rows.labels(self.label)
        positive_P = np.flatnonzero(labels_B > 0)  # no label is no positive
        ids_B = rows.single_ids(self.item)
        ids_U, first_U, item_B = np.unique(ids_B, return_index=True, return_inverse=True)
        chance_U = self._chances(torch.from_numpy(ids_U).to(query_BD.device))
        if not len(positive_P) or len(ids_U) < 2:
            return None
        # A large batch's later items are left out where all would be too many.
        count = min(len(ids_U), max(64, _LOGITS_AT_ONCE // len(positive_P)))
        kept_K = np.sort(np.argsort(first_U, kind="stable")[:count])  # items, by their ids
        device = query_BD.device

        def rows_of(table: Tensor, rows: NDArray[np.int64]) -> Tensor:
            return table[torch.from_numpy(rows).to(device)]

        scale = 1.0 / self.config.temperature
        positive_PD, items_KD = rows_of(query_BD, positive_P), rows_of(item_BD, first_U[kept_K])
        own_PD = rows_of(item_BD, positive_P)
        correction_U = self.config.log_q * chance_U.log()
        item_P = torch.from_numpy(item_B[positive_P]).to(device)
        kept = torch.from_numpy(kept_K).to(device)
        logits_PK = scale * positive_PD @ items_KD.T - correction_U[kept]
        logits_PK = logits_PK.masked_fill(kept == item_P[:, None], -math.inf)
        own_P1 = (scale * (positive_PD * own_PD).sum(1) - correction_U[item_P])[:, None]
        losses_P = torch.logsumexp(torch.cat([own_P1, logits_PK], dim=1), dim=1) - own_P1[:, 0]
        hardest = min(self.config.hard_negatives, len(kept_K) - 1)
        if hardest > 0:
            hard_PH = logits_PK.topk(hardest, dim=1).values
            hard_P = torch.logsumexp(torch.cat([own_P1, hard_PH], dim=1), dim=1) - own_P1[:, 0]
            losses_P = losses_P + hard_P
        losses_B = torch.zeros(len(query_BD), device=device)
        return losses_B.index_copy(0, torch.from_numpy(positive_P).to(device), losses_P)

    @torch.no_grad()
    def _chances(self, ids_U: Tensor) -> Tensor:
        """Count a batch's items, and return the probability that each is in a batch, (U,)."""
        seen: Tensor = self.get_buffer("seen")
        batches: Tensor = self.get_buffer("batches")
        decay = 1.0 - 1.0 / _HORIZON
        places_U = ids_U % _SEEN
        seen.mul_(decay).index_add_(0, places_U, torch.ones_like(places_U, dtype=seen.dtype))
        batches.mul_(decay).add_(1.0)
        return (seen[places_U] / batches).clamp(max=1.0)


def _item_feature(layout: DeepLayout, config: TwoTower) -> str:
    """Return the feature that says which item a row is of."""
    owner = f"tower {config.name!r}"
    names = [name for name in layout.fields if layout.sides.get(name) == "item"]
    if config.item is not None:
        if config.item not in names:
            raise ConfigError(
                f"{owner}: got item={config.item!r}, which is no embedded feature of the item in "
                f"the deep part; {nearest(config.item, names)}"
            )
        return config.item
    if len(names) != 1:
        raise ConfigError(
            f"{owner}: got {len(names)} embedded features of the item ({', '.join(names)}); "
            "name the one that tells items apart: item = 'FEATURE'"
        )
    return names[0]


def _label(layout: DeepLayout, config: TwoTower) -> str:
    """Return the head whose label says which rows are positive."""
    names = list(layout.heads)
    if config.label is None:
        return names[0]
    if config.label not in names:
        raise ConfigError(
            f"tower {config.name!r}: got label={config.label!r}, which is no label of several; "
            f"{nearest(config.label, names)}"
        )
    return config.label


@register_tower
class TwoTower(HiddenConfig):
    """Two towers for retrieval, trained beside a ranker on the same rows and tables.

    Equation: ``s(x, y) = <u(x), v(y)>``, both of length 1, and for each row with a label above 0
    the loss ``-log(e^(s/t - c log q) / sum_(items of the batch) e^(s/t - c log q))``, where q is
    the probability that an item is in a batch (Yi et al. 2019, *Sampling-Bias-Corrected Neural
    Modeling*, equations 3 to 6 and algorithm 2, with counts for its intervals). The items of all
    rows of the batch are candidates, each once. The model's logit gets ``f <u, v>``, with a factor
    f that is learned, so that the ranker's loss and rows without success teach the vectors too.

    A bundle then has a vector of each query and item: see
    :class:`widedeep.serving.retrieval.Retriever`.

    Args:
        item: Feature that tells items apart, such as their id; None: the only embedded one of the
            item in the deep part.
        label: Label whose rows above 0 are positive; None: the first.
        dim: D, width of the vectors.
        temperature: t, greater than 0: the smaller, the more the hardest items count.
        log_q: c, from 0 to 1. 0 lets s follow how much more often an item is chosen than it is in
            the rows: for impressions, how likely it is taken if it is shown; 1 how often it is
            chosen, for rows that are successes alone.
        hard_negatives: Number of the batch's items, those that score highest for a positive row,
            that a second softmax is over; 0 for none.
        weight: Factor of this loss beside the heads', greater than 0.
        ranking: Value that f starts from.
        hidden_units: Width of each hidden layer of both towers.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) and sequences -> logits (B, C)

    Raises:
        ConfigError: If a side has no feature in the deep part, or ``item`` is none of the item's.
    """

    name = "two_tower"
    network = TwoTowerTower
    has_vectors = True
    hidden_units: Widths = (128,)
    item: str | None = None
    label: str | None = None
    dim: Count = 32
    temperature: Positive = 0.1
    log_q: Annotated[float, Allowed(lambda c: 0 <= c <= 1, "0 to 1")] = 0.0
    hard_negatives: Annotated[int, _NONE_OR_COUNT] = 0
    weight: Positive = 1.0
    ranking: float = 1.0
