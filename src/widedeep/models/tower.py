"""The contract of a tower: its input, its layout, its configuration and its name.

A tower is a network over the deep part's input. Its configuration is a frozen dataclass with a
name, so that Python, TOML, checkpoints and bundles build the same one.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep.data.batch import Batch
from widedeep.errors import ConfigError, nearest
from widedeep.features import PeriodicEmbedding
from widedeep.features.spec import all_columns, feature_side
from widedeep.models.head_base import Head
from widedeep.options import as_table, check_types, read_section
from widedeep.schema import Schema, Slot

Returns = Literal["features", "logits", "members"]

EMBEDDING_RATE = 0.2
EMBEDDING_STD = 0.02
PAIRS_RATE = 0.02
"""Of embeddings whose scalar products are the logit: a step of one moves as many terms as there are
other fields, all the same way."""
PRODUCTS_STD = 0.1
"""Of initial embeddings of which hidden layers see products alone: those of smaller ones vanish
beside the numbers, and so do the gradients of their factors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLayout:
    """The deep part's input, known before any tower is made."""

    width: int  # X, columns of ``concat_BX``
    # Feature to its columns; pooled embeddings first, then the dense numbers
    columns: Mapping[str, slice]
    dense: slice  # The dense numbers' columns as one slice
    dense_columns: tuple[int, ...]  # Column of ``Batch.dense_BK`` for each column of ``dense``
    dims: Mapping[str, int]  # Feature to its embedding width, sequences too
    sequences: tuple[str, ...]  # Features that keep their sequence
    # The most ids that a sequence has, by feature; absent where it may have any number
    maxlen: Mapping[str, int] = field(default_factory=dict)
    # Name of the embedding table by feature: those of one name share it
    tables: Mapping[str, str] = field(default_factory=dict)
    # Sequences whose ids have weights (option ``weights``)
    weighted: frozenset[str] = frozenset()
    # Sequence to the one whose events it describes too
    parallel: Mapping[str, str] = field(default_factory=dict)
    # Feature to its columns of ``Batch.dense_BK``, for :attr:`widedeep.FeatureSpec.extra`
    extra: Mapping[str, slice]
    # Feature to the one side that it reads, "query" or "item"; absent where it reads both, or a
    # column that is there in training alone
    sides: Mapping[str, str] = field(default_factory=dict)
    # Head to its columns among the C logits
    heads: Mapping[str, slice] = field(default_factory=lambda: {"": slice(0, 1)})

    @property
    def n_logits(self) -> int:
        """C, the number of logit columns."""
        stops: list[int] = [columns.stop for columns in self.heads.values()]
        return max(stops)

    @property
    def numbers(self) -> int:
        """K, the number of dense columns."""
        return int(self.dense.stop - self.dense.start)

    @property
    def fields(self) -> tuple[str, ...]:
        """Features whose embeddings are the first columns of ``concat_BX``, in order.

        Pooled embeddings of ids, then those of numbers (``embedding="periodic"``).
        """
        return tuple(name for name in self.dims if name in self.columns)

    def field_dim(self, tower: str, *, least: int = 1) -> int:
        """Return D, the width that the embeddings of all fields have.

        Args:
            tower: The tower that needs it, named in errors.
            least: Least number of fields that the tower makes sense of.

        Raises:
            ConfigError: If widths differ, or there are fewer fields.
        """
        names = self.fields
        if len(names) < least:
            raise ConfigError(
                f"tower {tower!r}: got {len(names)} embedded features ({', '.join(names)}), "
                f"expected at least {least}; put categorical or bucketized features, or numbers "
                "with an embedding, into the deep part (deep=[...])"
            )
        by_width: dict[int, list[str]] = {}
        for name in names:
            by_width.setdefault(self.dims[name], []).append(name)
        if len(by_width) > 1:
            listed = ", ".join(f"{width} ({', '.join(by_width[width])})" for width in by_width)
            raise ConfigError(
                f"tower {tower!r}: got embeddings of the widths {listed}, expected one width; "
                "give these features the same embedding_dim, or none"
            )
        return next(iter(by_width))


def auto_dim(size: int) -> int:
    """Return an embedding width for a vocabulary: 1.6 x size^0.56, at most 64, at least 2."""
    return max(2, min(64, round(1.6 * math.pow(size, 0.56))))


def _dim(slot: Slot, default: int | Literal["auto"]) -> int:
    if slot.embedding_dim is not None:
        return slot.embedding_dim
    return auto_dim(slot.size) if default == "auto" else default


def make_layout(
    schema: Schema,
    embedding_dim: int | Literal["auto"],
    heads: Mapping[str, slice] = MappingProxyType({"": slice(0, 1)}),
    *,
    copies: int = 1,
    gathered: bool = False,
) -> DeepLayout:
    """Lay out the deep input of a schema.

    Args:
        schema: Its features.
        embedding_dim: Width of embeddings that declare none.
        heads: Head to its columns among the logits.
        copies: Embeddings that each id has side by side (:attr:`TowerConfig.embedding_copies`).
        gathered: Lay out what is gathered, before numbers become fields (see
            :mod:`widedeep.models.numbers`).
    """
    deep = [slot for slot in schema.slots if slot.deep]
    dims = {slot.name: _dim(slot, embedding_dim) * copies for slot in deep}
    columns: dict[str, slice] = {}
    column = 0
    for slot in deep:
        if slot.combiner is not None:
            columns[slot.name] = slice(column, column + dims[slot.name])
            column += dims[slot.name]
    for name, embedding in {} if gathered else periodic_embeddings(schema).items():
        default = auto_dim(embedding.frequencies) if embedding_dim == "auto" else embedding_dim
        dims[name] = (schema.spec.by_name[name].deep_width or default) * copies
        columns[name] = slice(column, column + dims[name])
        column += dims[name]
    start = column
    dense_columns: list[int] = []
    for name in _deep_numbers(schema):
        if name not in columns:
            places = schema.dense_layout[name]
            columns[name] = slice(column, column + places.stop - places.start)
            dense_columns += range(places.start, places.stop)
            column += places.stop - places.start
    return DeepLayout(
        width=column,
        columns=columns,
        dense=slice(start, column),
        dense_columns=tuple(dense_columns),
        dims=dims,
        sequences=tuple(slot.name for slot in deep if slot.combiner is None),
        maxlen={
            slot.name: slot.maxlen
            for slot in deep
            if slot.combiner is None and slot.maxlen is not None
        },
        tables={slot.name: slot.table for slot in deep},
        weighted=frozenset(
            feature.name
            for feature in schema.spec.all_features
            if feature.deep_combiner is None
            and (feature.weight_column is not None or feature.is_weighted_number)
        ),
        parallel={
            feature.name: feature.parallel_to
            for feature in schema.spec.all_features
            if feature.parallel_to is not None
        },
        extra={name: schema.dense_layout[name] for name in schema.spec.extra},
        sides=_sides(schema, columns.keys() | {slot.name for slot in deep}),
        heads=heads,
    )


def _sides(schema: Schema, names: Collection[str]) -> dict[str, str]:
    """Return the side of each feature that a request or a catalogue gives by itself."""
    spec = schema.spec
    fixed = frozenset().union(*(all_columns(spec, name) for name in spec.training_only))
    served = [
        name for name in spec.by_name if name in names and not all_columns(spec, name) & fixed
    ]
    sides = {name: feature_side(spec, name) for name in served}
    return {name: side for name, side in sides.items() if side != "both"}


def _deep_numbers(schema: Schema) -> list[str]:
    """Return the features of dense columns that are part of ``concat_BX``, in their order."""
    deep = set(schema.spec.deep_names) - set(schema.spec.extra)
    return [name for name in schema.dense_layout if name in deep]


def periodic_embeddings(schema: Schema) -> dict[str, PeriodicEmbedding]:
    """Return the numbers of the deep part that become fields by sines and cosines."""
    embeddings = {
        name: schema.spec.by_name[name].periodic_embedding for name in _deep_numbers(schema)
    }
    return {name: embedding for name, embedding in embeddings.items() if embedding is not None}


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """The unpooled embeddings of a feature with ``combiner=None``.

    A tower reads them by :meth:`padded`, whose shapes an exported graph has too. What is given one
    after the other (``values_ND``, ``ids_N``, ``weights_N``, ``offsets``) is there in training
    alone.

    Args:
        values_ND: One row an id, of all examples one after the other.
        offsets: int64 of length B + 1; example b's rows are ``values_ND[offsets[b]:offsets[b +
            1]]``.
        ids_N: int64 ids of the feature: 0 unseen, 1 missing, known values from 2.
        weights_N: Weight of each id (option ``weights``); None where all are 1.
        longest: The most ids that an example has, where it is known.
    """

    values_ND: Tensor
    offsets: Tensor
    ids_N: Tensor | None = None
    weights_N: Tensor | None = None
    longest: int | None = None

    @property
    def lengths_B(self) -> Tensor:
        """int64 number of ids of each example."""
        return self.offsets.diff()

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings with one row a place, and which places hold one.

        T is the longest example's length, at least 1; in an exported graph the feature's
        ``maxlen``. Places from an example's length on hold zeros.

        Shape:
            (N, D) -> (B, T, D) and bool (B, T)
        """
        return self._padded(self.values_ND), self._mask()

    def part(self, columns: slice, grad_factor: float = 1.0) -> SequenceInput:
        """Return the sequence with some columns of its embeddings.

        Args:
            columns: Columns of ``values_ND`` to keep.
            grad_factor: Factor of the gradient that comes back through them.
        """
        values_ND = scale_grad(self.values_ND[:, columns], grad_factor)
        return dataclasses.replace(self, values_ND=values_ND)

    def padded_weights(self) -> Tensor:
        """Return the weights as (B, T); 0 in padding, 1 for an id without a weight."""
        weights_N = self.weights_N
        if weights_N is None:
            return self._mask().to(self.values_ND.dtype)
        return self._padded(weights_N)

    def _steps(self) -> int:
        longest = self.longest
        if longest is None:
            longest = int(self.lengths_B.max()) if len(self.offsets) > 1 else 0
        return max(1, longest)

    def _mask(self) -> Tensor:
        steps = torch.arange(self._steps(), device=self.offsets.device)
        return steps < self.lengths_B[:, None]

    def _padded(self, values: Tensor) -> Tensor:
        examples, steps = len(self.offsets) - 1, self._steps()
        position_N = torch.arange(len(values), device=values.device)
        example_N = torch.searchsorted(self.offsets, position_N, right=True) - 1
        place_N = position_N - self.offsets[example_N] + example_N * steps
        padded = values.new_zeros((examples * steps, *values.shape[1:]))
        return padded.index_copy(0, place_N, values).view(examples, steps, *values.shape[1:])


class PaddedSequence(SequenceInput):
    """A sequence as an exported graph gets it: padded to the feature's ``maxlen``.

    Args:
        name: The feature, for errors.
        values_BTD: Embeddings, zeros in padding.
        mask_BT: bool, True where a place holds an id.
        weights_BT: Weights, zeros in padding.
        used: Takes the names of sequences as a tower reads them.
    """

    __slots__ = ("mask_BT", "name", "used", "values_BTD", "weights_BT")
    name: str
    values_BTD: Tensor
    mask_BT: Tensor
    weights_BT: Tensor
    used: set[str]

    def __init__(
        self, name: str, values_BTD: Tensor, mask_BT: Tensor, weights_BT: Tensor, used: set[str]
    ) -> None:
        set_field = object.__setattr__
        set_field(self, "name", name)
        set_field(self, "values_BTD", values_BTD)
        set_field(self, "mask_BT", mask_BT)
        set_field(self, "weights_BT", weights_BT)
        set_field(self, "used", used)

    def __getattribute__(self, name: str) -> Any:
        """Refuse what a graph of fixed shapes has not."""
        if name in ("values_ND", "offsets", "ids_N", "weights_N", "longest"):
            raise ConfigError(
                f"sequence {self.name!r}: got a tower that reads {name}, which an exported graph "
                "does not have; read padded(), padded_weights() and lengths_B"
            )
        return object.__getattribute__(self, name)

    def part(self, columns: slice, grad_factor: float = 1.0) -> SequenceInput:
        """Return the sequence with some columns of its embeddings."""
        values_BTD = self.values_BTD[..., columns]
        return PaddedSequence(self.name, values_BTD, self.mask_BT, self.weights_BT, self.used)

    @property
    def lengths_B(self) -> Tensor:
        """int64 number of ids of each example."""
        self.used.add(self.name)
        return self.mask_BT.sum(1)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, T, D) and mask (B, T)."""
        self.used.add(self.name)
        return self.values_BTD, self.mask_BT

    def padded_weights(self) -> Tensor:
        """Return the weights as (B, T)."""
        self.used.add(self.name)
        return self.weights_BT


def scale_grad(values: Tensor, factor: float) -> Tensor:
    """Return a tensor as it is, whose gradient comes back times a factor."""
    if values.requires_grad and factor != 1.0:
        values.register_hook(lambda grad: grad * factor)  # type: ignore[no-untyped-call]
    return values


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows of a training step, for a tower whose own loss reads labels or ids."""

    batch: Batch  # The rows
    schema: Schema  # Their schema

    def labels(self, head: str) -> NDArray[np.float32]:
        """Return the labels of a head, (B,); NaN for none."""
        assert self.batch.labels_BL is not None  # as the heads' losses saw
        return self.batch.labels_BL[:, self.schema.label_layout[head].start]

    def single_ids(self, name: str) -> NDArray[np.int64]:
        """Return a feature's id of each row, (B,): the first of several, 0 for none."""
        slot = next(i for i, own in enumerate(self.schema.slots) if own.name == name)
        cells = self.batch.cells(slot)
        if len(cells.ids_N) == len(self.batch) and cells.longest == 1:
            return cells.ids_N
        ids_B = np.zeros(len(self.batch), np.int64)
        filled = np.diff(cells.offsets) > 0
        ids_B[filled] = cells.ids_N[cells.offsets[:-1][filled]]
        return ids_B


@dataclass(frozen=True, slots=True)
class DeepInput:
    """What a tower is called with.

    Args:
        concat_BX: Pooled embeddings and dense numbers in one buffer.
        layout: Feature to its columns in ``concat_BX``.
        sequences: Feature to its unpooled embeddings, for features with ``combiner=None``.
        dense_BK: The dense columns of ``concat_BX``.
        extra: Dense tensors of :attr:`widedeep.FeatureSpec.extra` by name, for encoders.
        attention: Where a tower leaves the weights (B, T) that it gives to the places of a
            sequence, by the sequence, for explanations; None where nobody reads them.
        own_losses: Where a tower leaves losses (B,) of its own, already weighed against the heads'
            losses, to which they are added in training; None outside of it.
        vectors: Where a tower leaves the vectors (B, D) of the query and the item for retrieval,
            ``"query"`` and ``"item"``; None where nobody reads them.
        training: The rows, for such losses; None outside of training.
    """

    concat_BX: Tensor
    layout: Mapping[str, slice]
    dense_BK: Tensor
    sequences: Mapping[str, SequenceInput] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] | None = None
    own_losses: list[Tensor] | None = None
    vectors: dict[str, Tensor] | None = None
    training: TrainingRows | None = None

    def fields_BFD(self, dim: int) -> Tensor:
        """Return the pooled embeddings as a view (B, F, D), where all have the width ``dim``."""
        width = self.concat_BX.shape[1] - self.dense_BK.shape[1]
        return self.concat_BX[:, :width].view(-1, width // dim, dim)


def empty_input(rows: int, layout: DeepLayout) -> DeepInput:
    """Return an input of zeros with one id in each sequence: it tells what a tower returns."""
    concat = torch.zeros(rows, layout.width)
    offsets = torch.arange(rows + 1)
    return DeepInput(
        concat_BX=concat,
        layout=layout.columns,
        dense_BK=concat[:, layout.dense],
        sequences={
            name: SequenceInput(torch.zeros(rows, layout.dims[name]), offsets)
            for name in layout.sequences
        },
        extra={name: torch.zeros(rows, s.stop - s.start) for name, s in layout.extra.items()},
    )


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The options of a tower, and how it is made of them.

    A tower of one's own is a subclass with a ``name``, which :func:`register_tower` makes a frozen
    dataclass: it may then be named in Python and TOML as those of
    :mod:`widedeep.models` are, and is trained, resumed, warm-started and exported like them.

    Example:
        >>> from torch import nn
        >>> import widedeep as wd
        >>> from widedeep.models import TowerConfig, register_tower, unregister_tower
        >>> class Gated(nn.Module):
        ...     def __init__(self, inputs: int, width: int) -> None:
        ...         super().__init__()
        ...         self.layer, self.gate = nn.Linear(inputs, width), nn.Linear(inputs, width)
        ...     def forward(self, inputs):
        ...         return self.layer(inputs.concat_BX) * self.gate(inputs.concat_BX).sigmoid()
        >>> @register_tower
        ... class GatedConfig(TowerConfig):
        ...     name = "gated"
        ...     width: int = 8
        ...     def make(self, layout):
        ...         return Gated(layout.width, self.width)
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(8)]
        >>> spec = wd.FeatureSpec(label="y", features=wd.categorical("job"))
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), deep={"name": "gated", "width": 4})
        >>> list(model.towers)
        ['gated']
        >>> unregister_tower("gated")
    """

    name: ClassVar[str] = ""
    """The tower's name in TOML, in checkpoints and among a model's towers."""
    has_members: ClassVar[bool] = False
    """Whether it is an ensemble itself, whose module ``returns`` members."""
    has_vectors: ClassVar[bool] = False
    """Whether it leaves the vectors that a bundle retrieves by."""

    network: ClassVar[type[nn.Module] | None] = None
    """The module that :meth:`make` makes of a layout and the options."""

    def __post_init__(self) -> None:
        check_types(self, f"tower {self.name!r}")

    def refusal(self, problem: str) -> ConfigError:
        """Return the error about an option."""
        return ConfigError(f"tower {self.name!r}: {problem}")

    def embedding_dim(self, fields: int) -> int | None:
        """Return the width of embeddings that declare none, for F fields; None: the model's."""
        return None

    @property
    def embedding_copies(self) -> int:
        """How many embeddings of the declared width each id has, side by side."""
        return 1

    @property
    def embedding_rate(self) -> float:
        """The learning rate of embeddings for which no optimizer is given."""
        return EMBEDDING_RATE

    @property
    def embedding_std(self) -> float:
        """The deviation of initial embeddings where the model has none; the least of several."""
        return EMBEDDING_STD

    def link_heads(self, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        """Return the model's heads, linked if the tower's equation links its tasks."""
        return heads

    def make(self, layout: DeepLayout) -> nn.Module:
        """Return the tower, with torch's generator started from the model's seed.

        It is called with a :class:`DeepInput` of B examples and returns features (B, width), or,
        if its attribute ``returns`` is ``"logits"``, what it adds to the logits, (B, C), or, if it
        is ``"members"``, what each of M members adds, (B, M, C): each is trained by its own loss,
        the mean is scored.
        With ``reads_numbers = False`` it reads embeddings alone: if no tower reads the numbers,
        they get a linear term, so that none is left out in silence.

        Raises:
            ConfigError: If the tower cannot read such an input.
        """
        if self.network is None:
            raise NotImplementedError
        return self.network(layout, self)


Config = TypeVar("Config", bound=type[TowerConfig])
_registered: dict[str, type[TowerConfig]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def register_tower(config: Config) -> Config:
    """Make a class of options a frozen dataclass, unless it is one, and a tower known by its name.

    Raises:
        ConfigError: If the name is no identifier, or another tower's.
    """
    if not config.name.isidentifier():
        raise ConfigError(
            f"tower {config.__name__}: got name={config.name!r}, expected letters, digits and _"
        )
    known = _registered.get(config.name)
    if known is not None and known.__qualname__ != config.__qualname__:
        raise ConfigError(f"tower {config.name!r} is registered already, as {known.__qualname__}")
    if "__dataclass_params__" not in vars(config):
        dataclass(frozen=True, kw_only=True)(config)
    _registered[config.name] = config
    return config


def unregister_tower(name: str) -> None:
    """Forget a tower, such as one that a test registered."""
    _registered.pop(name, None)


def registered_towers() -> dict[str, type[TowerConfig]]:
    """Return the configurations of all towers by name.

    Example:
        >>> "deep_fm" in registered_towers()
        True
    """
    for module in pkgutil.iter_modules([os.path.dirname(__file__)]):  # a file a tower
        importlib.import_module(f"widedeep.models.{module.name}")
    return dict(sorted(_registered.items()))


def tower_config(table: Mapping[str, Any]) -> TowerConfig:
    """Read a table with a ``name`` and options into the configuration of that tower."""
    name, towers = table.get("name"), registered_towers()
    if name not in towers:
        raise ConfigError(
            f"[model]: got a tower of the name {name!r}; {nearest(str(name), towers)}"
        )
    options = {key: value for key, value in table.items() if key != "name"}
    return read_section(towers[str(name)], options, f"tower {name!r}")


def tower_table(config: TowerConfig) -> dict[str, Any]:
    """Return what :func:`tower_config` reads, defaults included."""
    table = {key: value for key, value in as_table(config).items() if value is not None}
    return {"name": config.name, **table}


def tower_configs(deep: Sequence[Mapping[str, Any]]) -> dict[str, TowerConfig]:
    """Return the towers by the name that each has in the model: ``fm``, then ``fm_2``."""
    configs: dict[str, TowerConfig] = {}
    for table in deep:
        config = tower_config(table)
        name, number = config.name, 1
        while name in configs:
            number += 1
            name = f"{config.name}_{number}"
        configs[name] = config
    return configs


def embedding_copies(towers: Mapping[str, TowerConfig]) -> int:
    """Return how many embeddings each id has side by side: the most that a tower takes."""
    return max((config.embedding_copies for config in towers.values()), default=1)


def shared_dim(
    schema: Schema, embedding_dim: int | Literal["auto"], towers: Mapping[str, TowerConfig]
) -> int | Literal["auto"]:
    """Return the width of embeddings that declare none: the towers', or the model's."""
    fields = sum(slot.deep and slot.combiner is not None for slot in schema.slots)
    fields += len(periodic_embeddings(schema))
    widths = {name: config.embedding_dim(fields) for name, config in towers.items()}
    demanded = {width for width in widths.values() if width is not None}
    if len(demanded) > 1:
        raise ConfigError(
            f"got towers that need embeddings of the widths {widths}, expected one width; drop one "
            "of them, or change its options"
        )
    return demanded.pop() if demanded else embedding_dim
