"""Histories: the sequences of a model as its towers read them, with what each is compared to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError, nearest
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout


@dataclass(frozen=True, slots=True)
class Events:
    """One history of B examples: T places for events of width E each."""

    keys_BTE: Tensor  # The events, zeros in padding
    mask_BT: Tensor  # bool, True where a place holds an event
    query_BE: Tensor | None  # The candidate as an event, or None where nothing is compared
    name: str = ""  # The sequence
    attention: dict[str, Tensor] | None = None  # See :class:`widedeep.models.DeepInput`
    own_losses: list[Tensor] | None = None  # See :class:`widedeep.models.DeepInput`

    def leave_weights(self, weights_BT: Tensor) -> None:
        """Leave the weights of the events for an explanation, if one is asked for."""
        if self.attention is not None:
            self.attention[self.name] = weights_BT


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """A sequence and those parallel to it, read as one sequence of events."""

    sequences: tuple[str, ...]  # Features whose embeddings, side by side, are an event
    targets: tuple[str, ...]  # The candidate's features, one for each of the first ``sequences``
    width: int  # E, width of an event
    matched: int  # Columns of an event that the targets have too, the first ones
    maxlen: int | None  # Most events, or None for any number
    # Sequences whose embeddings are multiplied by the weights of their ids
    weighted: frozenset[str] = frozenset()

    def events(self, inputs: DeepInput) -> Events:
        """Return the history of a batch; what stands in padding is nothing to it."""
        parts: list[Tensor] = []
        mask_BT = torch.empty(0)
        for name in self.sequences:
            values_BTD, mask_BT = inputs.sequences[name].padded()
            if name in self.weighted:
                values_BTD = values_BTD * inputs.sequences[name].padded_weights()[:, :, None]
            parts.append(values_BTD)
        keys_BTE = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        keys_BTE = keys_BTE.masked_fill(~mask_BT[:, :, None], 0.0)
        query = [inputs.concat_BX[:, inputs.layout[name]] for name in self.targets]
        query_BE = torch.cat(query, dim=1) if query else None
        name, attention, own_losses = self.sequences[0], inputs.attention, inputs.own_losses
        return Events(keys_BTE, mask_BT, query_BE, name, attention, own_losses)


def find_histories(
    layout: DeepLayout, tower: str, targets: Mapping[str, str], *, compared: bool
) -> list[History]:
    """Return the histories of a model.

    Raises:
        ConfigError: If there is no sequence, or a target is missing or of another width.
    """
    if not layout.sequences:
        raise ConfigError(
            f"tower {tower!r}: got no sequence, expected at least one; keep one of a list column "
            "(combiner=None, in TOML combiner = 'none')"
        )
    for name in targets:
        if name not in layout.sequences:
            raise ConfigError(
                f"tower {tower!r}: got {name!r} in targets, which keeps no sequence; "
                f"{nearest(name, layout.sequences)}"
            )
    groups: dict[str, list[str]] = {}
    for name in layout.sequences:
        groups.setdefault(layout.parallel.get(name, name), []).append(name)
    for first, names in groups.items():  # those that describe its events come after it
        names.sort(key=lambda name: name != first)
    return [_history(layout, tower, targets, names, compared) for names in groups.values()]


def _history(
    layout: DeepLayout, tower: str, targets: Mapping[str, str], names: list[str], compared: bool
) -> History:
    found = {name: _target(layout, tower, name, targets) for name in names} if compared else {}
    pairs = {name: target for name, target in found.items() if target is not None}
    if compared and not pairs:
        raise ConfigError(
            f"tower {tower!r}: got no target for the sequence {names[0]!r}; name the feature that "
            f"it is compared with (targets = {{ {names[0]} = 'FEATURE' }}), or let both share a "
            "table (table=...)"
        )
    for name, target in pairs.items():
        if layout.dims[name] != layout.dims[target]:
            raise ConfigError(
                f"tower {tower!r}: got embeddings of width {layout.dims[name]} ({name!r}) and "
                f"{layout.dims[target]} ({target!r}), expected one width; give both the same "
                "embedding_dim"
            )
    ordered = (*pairs, *(name for name in names if name not in pairs))
    return History(
        sequences=ordered,
        targets=tuple(pairs.values()),
        width=sum(layout.dims[name] for name in ordered),
        matched=sum(layout.dims[name] for name in pairs),
        maxlen=layout.maxlen.get(names[0]),
        weighted=layout.weighted & {*names},
    )


def _target(layout: DeepLayout, tower: str, name: str, targets: Mapping[str, str]) -> str | None:
    if name in targets:
        if targets[name] not in layout.fields:
            raise ConfigError(
                f"tower {tower!r}: got {targets[name]!r} as the target of {name!r}, which has no "
                f"pooled embedding; {nearest(targets[name], layout.fields)}"
            )
        return targets[name]
    shared = [f for f in layout.fields if layout.tables.get(f) == layout.tables.get(name)]
    if len(shared) > 1:
        raise ConfigError(
            f"tower {tower!r}: got {len(shared)} features that share the table of {name!r} "
            f"({', '.join(shared)}); say which it is compared with (targets = {{ {name} = "
            f"'{shared[0]}' }})"
        )
    return shared[0] if shared else None


def required_bound(history: History, tower: str) -> int:
    """Return the most events of a history whose positions are learned."""
    if history.maxlen is None:
        raise ConfigError(
            f"tower {tower!r}: got the sequence {history.sequences[0]!r} of any length, expected a "
            "bound, for each position has weights of its own; give the feature one (maxlen=50)"
        )
    return history.maxlen


class HistoryTower(nn.Module):
    """Hidden layers over the concatenated input and a summary of each history.

    Shape:
        DeepInput -> features (B, hidden_units[-1]), or (B, X + summaries) without hidden layers
    """

    def __init__(self, layout: DeepLayout, config: HistoryConfig) -> None:
        super().__init__()
        self.histories = list(config.histories(layout))
        self.summaries = nn.ModuleList(config.summary(history) for history in self.histories)
        width = layout.width + sum(_width(summary) for summary in self.summaries)
        self.hidden = config.output_layers(width) if config.hidden_units else None

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the features."""
        parts = [inputs.concat_BX]
        for history, summary in zip(self.histories, self.summaries, strict=True):
            parts.append(summary(history.events(inputs)))
        features_BH = torch.cat(parts, dim=1)
        if self.hidden is not None:
            features_BH = self.hidden(features_BH)
        return features_BH


@dataclass(frozen=True, kw_only=True)
class HistoryConfig(HiddenConfig):
    """A tower over histories: the options that all of these have.

    Args:
        hidden_units: Width of each hidden layer over the histories and all other columns; empty
            for none.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.
    """

    network = HistoryTower

    def histories(self, layout: DeepLayout) -> Iterator[History]:
        """Yield the histories that the tower reads."""
        yield from find_histories(layout, self.name, {}, compared=False)

    def summary(self, history: History) -> nn.Module:
        """Return the module from :class:`Events` to (B, out_features)."""
        raise NotImplementedError

    def output_layers(self, in_features: int) -> nn.Module:
        """Return the hidden layers over histories and other columns."""
        return self.hidden_layers(in_features)


@dataclass(frozen=True, kw_only=True)
class TargetConfig(HistoryConfig):
    """A tower that compares histories with the candidate."""

    # Sequence to the feature that it is compared with. By default the pooled feature that shares
    # its table. Of parallel sequences, those without a target are what is said of an event
    targets: Mapping[str, str] = field(default_factory=dict)

    def histories(self, layout: DeepLayout) -> Iterator[History]:
        """Yield the histories that the tower reads, with their targets."""
        yield from find_histories(layout, self.name, self.targets, compared=True)


def _width(summary: nn.Module) -> int:
    width: int = summary.out_features  # type: ignore[assignment]
    return width
