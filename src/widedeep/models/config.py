"""ModelConfig: the shape of a model, ``[model]`` in a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from widedeep.options import COUNT, COUNTS, check_range, check_seed, check_types

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a Wide & Deep model.

    Args:
        hidden_units: Width of each hidden layer; empty for a wide-only model.
        embedding_dim: Width of embeddings that declare none, or ``"auto"``: 1.6 x size^0.56, at
            most 64.
        activation: Activation of the hidden layers.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.
        wide_combiner: How a feature's several values are combined in the wide part: ``"sum"``,
            ``"mean"`` or ``"sqrtn"``. Numbers and vectors are summed as they are.
        head: ``"binary"``, ``"multiclass"``, ``"regression"``, or None: by the label.
        embedding_std: Standard deviation of initial embeddings, at least 0.
        seed: Seed of all initial values.
    """

    hidden_units: tuple[int, ...] = (256, 128)
    embedding_dim: int | Literal["auto"] = 16
    activation: Literal["relu", "gelu", "tanh", "elu", "leaky_relu", "silu"] = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    wide_combiner: Literal["sum", "mean", "sqrtn"] = "sum"
    head: Literal["binary", "multiclass", "regression"] | None = None
    embedding_std: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        owner = "[model]"
        check_types(self, owner)
        check_range(owner, "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= dropout < 1")
        dim = self.embedding_dim
        in_range = dim == "auto" or dim in COUNTS
        check_range(owner, "embedding_dim", dim, in_range, f"{COUNT}, or 'auto'")
        for width in self.hidden_units:
            check_range(owner, "hidden_units", width, width in COUNTS, f"widths: {COUNT} each")
        std = self.embedding_std
        check_range(owner, "embedding_std", std, std >= 0, "a number >= 0")
        check_seed(owner, self.seed)
