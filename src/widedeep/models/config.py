"""ModelConfig: the shape of a model, ``[model]`` in a TOML file."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from widedeep.bundle.formula import Formula
from widedeep.errors import ConfigError, show_value
from widedeep.features import EmbeddingOptions
from widedeep.models.layer_options import (
    Activation,
    BatchNorm,
    batch_norm_options,
    checked_activation,
)
from widedeep.options import (
    Allowed,
    AutoCount,
    FractionBelow1,
    Seed,
    Widths,
    check_types,
    import_modules,
)

HIDDEN_UNITS = (256, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a Wide & Deep model.

    Args:
        hidden_units: Width of each hidden layer of the standard tower, a multi-layer perceptron;
            empty for none. None: (256, 128), or no standard tower if ``deep`` names others.
        deep: Other towers, added up: a configuration of :mod:`widedeep.models` such as
            ``models.DCNv2(layers=3)``, a name, a table ``{ name = "dcn_v2", layers = 3 }``, or a
            list of these. Options that are left out have their defaults.
        join: Instead of adding the towers' parts up, join what they return by a perceptron with
            these options of :class:`widedeep.models.MLP`: ``{ hidden_units = [64] }``.
        embedding_dim: Width of embeddings that declare none, or ``"auto"``: 1.6 x size^0.56, at
            most 64.
        activation: Activation of the standard tower's hidden layers, a name or a table: see
            :class:`widedeep.models.MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer: true, false, ``"tensorflow"`` or a table,
            ``{ momentum = 0.99, eps = 0.001 }``; see :class:`widedeep.models.MLP`.
        wide_combiner: How a feature's several values are combined in the wide part: ``"sum"``,
            ``"mean"`` or ``"sqrtn"``. Numbers and vectors are summed as they are.
        wide_bias: Give the wide part a bias of its own, which its optimizer trains as it does the
            wide weights (with its L1, as TensorFlow's LinearModel), from 0. The other bias is then
            the deep part's, trained with the hidden layers; without towers it stays as it starts.
            A bundle holds their sum. None: as ``compat`` says, else false.
        bias_init: Start of the other bias: ``"prior"``, the best constant prediction, or
            ``"zeros"``. None: as ``compat`` says, else ``"prior"``.
        head: Head of every label: a name, ``"binary"``, ``"multiclass"``, ``"multilabel"``,
            ``"regression"``, ``"poisson"``, ``"tweedie"``, ``"ziln"``, ``"ranking"``, or a table
            with options, ``{ kind = "binary", loss = "focal", gamma = 2.0 }``
            (:mod:`widedeep.models.heads`); None: by the label.
        heads: Heads by label instead: ``heads.price = { kind = "ziln", loss_weight = 0.1 }``.
        embedding_std: Standard deviation of initial embeddings, at least 0; None: that of the
            towers (:attr:`widedeep.models.TowerConfig.embedding_std`), 0.02 for most, or
            ``"truncated_normal"`` at 1/√width with ``compat``.
        table_dtype: Numbers of the tables of embeddings in training: ``"fp32"``, or ``"bf16"`` for
            half the bytes. An update computes in float32 and rounds at random, up or down such that
            the mean is kept (Zamirai et al. 2020, arXiv 2010.06192); optimizer state and the wide
            part stay float32. On the CPU alone. A bundle with ``bundle_tables="bf16"`` holds them
            as they are.
        imports: Modules that register towers, heads or losses of your own
            (:func:`widedeep.models.register_tower`, :func:`widedeep.models.register_loss`), as
            import paths; the working directory is searched too.
        rank_by: Formula over heads and numbers of the items that a ranker ranks by, such as
            ``"click * buy * price"`` (:class:`widedeep.bundle.formula.Formula`); None: the score of
            one head.
        compat: ``"tensorflow"``: what is left open is as ``tf.estimator`` has it: initial values, a
            bias of the wide part, batch norm, optimizers and how losses are reduced; the model also
            goes by its names of metrics, predictions and signatures (the documentation's page
            "Coming from tf.estimator").
        seed: Seed of all initial values.
    """

    hidden_units: Widths | None = None
    deep: Any = ()
    join: Mapping[str, Any] | None = None
    embedding_dim: AutoCount = 16
    activation: Activation = "relu"
    dropout: FractionBelow1 = 0.0
    batch_norm: BatchNorm = False
    wide_combiner: Literal["sum", "mean", "sqrtn"] = "sum"
    wide_bias: bool | None = None
    bias_init: Literal["prior", "zeros"] | None = None
    head: Any = None
    heads: Mapping[str, Any] = field(default_factory=dict)
    embedding_std: Annotated[float, Allowed(lambda x: x >= 0, "a number >= 0")] | None = None
    table_dtype: Literal["fp32", "bf16"] = "fp32"
    imports: list[str] = field(default_factory=list)
    rank_by: str | None = None
    compat: Literal["tensorflow"] | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        owner = "[model]"
        check_types(self, owner)
        object.__setattr__(self, "activation", checked_activation(self.activation, owner))
        batch_norm_options(self.batch_norm, owner)
        import_modules(self.imports, f"{owner}: imports")
        _check_heads(self.head, self.heads)
        object.__setattr__(self, "deep", _tower_tables(self.deep))
        if self.join is not None:
            (joined,) = _checked(({"name": "mlp", **self.join},))
            object.__setattr__(self, "join", {k: v for k, v in joined.items() if k != "name"})
        if self.hidden_units is None:
            object.__setattr__(self, "hidden_units", () if self.deep else HIDDEN_UNITS)
        if self.rank_by is not None:
            Formula(self.rank_by)

    @property
    def norm(self) -> BatchNorm:
        """The standard tower's batch norm: with ``compat``, true means TensorFlow's."""
        return "tensorflow" if self.batch_norm is True and self.compat else self.batch_norm

    def row_options(self, options: EmbeddingOptions) -> EmbeddingOptions:
        """Return a table's options, with how its rows start where neither says: by ``compat``."""
        if options.changes_init or self.embedding_std is not None or self.compat is None:
            return options
        return dataclasses.replace(options, init="truncated_normal")

    @property
    def head_choice(self) -> Any:
        """What heads are made of: :attr:`heads` or :attr:`head`."""
        return self.heads or self.head


Table = Mapping[str, Any]


def _check_heads(head: object, heads: Mapping[str, Any]) -> None:
    """Refuse heads of a wrong form; options are checked where there is torch."""
    if head is not None and heads:
        raise ConfigError(
            "[model]: got head and heads, expected one of them; heads names a head by label"
        )
    tables = {f"heads.{name}": table for name, table in heads.items()}
    for name, table in tables.items() if heads else [("head", head)]:
        if isinstance(table, Mapping) and not isinstance(table.get("kind"), str):
            raise ConfigError(
                f"[model]: got {name} = {show_value(table)}, expected a table with a kind, such as "
                '{ kind = "poisson" }'
            )
        if table is not None and not isinstance(table, (str, Mapping)):
            raise ConfigError(
                f'[model]: got {name} = {show_value(table)}, expected a name such as "poisson", '
                "or a table of it and options"
            )
        if table is not None and importlib.util.find_spec("torch") is not None:
            from widedeep.models.head_config import head_from_table

            head_from_table({"kind": table} if isinstance(table, str) else table)


def _tower_tables(deep: object) -> tuple[Table, ...]:
    """Return one table a tower, with its name and all of its options."""
    entries = list(deep) if isinstance(deep, (list, tuple)) else [] if deep is None else [deep]
    return _checked(tuple(_table(entry) for entry in entries))


def _table(entry: object) -> Table:
    if isinstance(entry, str):
        return {"name": entry}
    if isinstance(entry, Mapping):
        return dict(entry)
    if hasattr(entry, "make"):
        from widedeep.models.tower import TowerConfig, tower_table

        if isinstance(entry, TowerConfig):
            return tower_table(entry)
    raise ConfigError(
        f"[model]: got deep={show_value(entry)}, expected a configuration of widedeep.models, the "
        'name of one, or a table such as { name = "dcn_v2", layers = 3 }'
    )


def _checked(tables: tuple[Table, ...]) -> tuple[Table, ...]:
    """Check options and fill defaults in, where there is torch: without it nothing is trained."""
    if not tables or importlib.util.find_spec("torch") is None:
        return tables
    from widedeep.models.tower import tower_config, tower_table

    return tuple(tower_table(tower_config(table)) for table in tables)
