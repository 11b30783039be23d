"""Options of a feature's embedding: where its rows start, and how they move."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from widedeep.errors import FeatureError, nearest, show_value
from widedeep.options import check_types

RowInit = Literal["normal", "uniform", "xavier", "zeros", "truncated_normal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingOptions:
    """How the embeddings of a feature start and are trained; its option ``embedding``.

    Features that share a table have equal options.

    Args:
        pretrained: A file that maps values to vectors: Parquet, Arrow, ``.npz`` or
            ``.safetensors``; see :func:`widedeep.data.pretrained.read_vectors`. Rows of values that
            are not in it start as ``init`` says.
        frozen: The rows never move: no gradient is summed for them, and no optimizer state is kept.
        init: Distribution of initial rows: ``"normal"`` (nearly: no value beyond 3.47 standard
            deviations), ``"uniform"``, ``"zeros"``, or ``"xavier"``: uniform within ±√(6 / (1 + D))
            for embeddings of width D (Glorot & Bengio 2010, with the one row that an id selects as
            the layer's input, so that it stays the same as the table grows), or
            ``"truncated_normal"``: normal within two deviations, as TensorFlow's
            embedding columns start.
        init_std: Standard deviation of ``"normal"`` and ``"uniform"``, and of
            ``"truncated_normal"`` before the cut, > 0. None: the model's ``embedding_std``, and
            1/√D for ``"truncated_normal"``.
        l2: Penalty of each occurrence of a row w in an example: l2/2·|w|² is added to the
            example's loss, so a row that occurs n times in a batch gets the gradient n·l2·w beside
            that of its examples. Over a pass the penalties of a row add up to its occurrences times
            l2/2·|w|², whatever the batches are. It stands in the place of the optimizer's own
            decay, which acts once a batch; None keeps that one.
        max_norm: Rows that a step moved are scaled back to this Euclidean norm if they are longer.
        dropout: Probability that an example's embedding of the feature is zero in a step of
            training, 0 <= dropout < 1; those that stay are divided by 1 - dropout.

    Raises:
        FeatureError: If an option is outside its range.

    Example:
        >>> EmbeddingOptions(l2=1e-5, max_norm=2).to_table()
        {'l2': 1e-05, 'max_norm': 2}
    """

    pretrained: str | None = None
    frozen: bool = False
    init: RowInit = "normal"
    init_std: float | None = None
    l2: float | None = None
    max_norm: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        owner = "embedding"
        check_types(self, owner, FeatureError)
        limits = {
            "init_std": (self.init_std is None or 0 < self.init_std < 1e30, "a number > 0"),
            "l2": (self.l2 is None or 0 <= self.l2 < 1e30, "a number >= 0"),
            "max_norm": (self.max_norm is None or 0 < self.max_norm < 1e30, "a number > 0"),
            "dropout": (0 <= self.dropout < 1, "0 <= dropout < 1"),
            "pretrained": (self.pretrained != "", "a path"),
        }
        for name, (is_valid, expected) in limits.items():
            if not is_valid:
                got = show_value(getattr(self, name))
                raise FeatureError(f"{owner}: got {name} = {got}, expected {expected}")
        if self.init_std is not None and self.init in ("xavier", "zeros"):
            raise FeatureError(
                f"{owner}: got init_std = {self.init_std} with init = {self.init!r}, which has no "
                'deviation to choose; drop one, or give init = "normal", "uniform" or '
                '"truncated_normal"'
            )
        moves = [name for name in ("l2", "max_norm") if getattr(self, name) is not None]
        if self.frozen and moves:
            raise FeatureError(f"{owner}: got frozen and {moves[0]}; frozen rows do not move")

    @property
    def changes_init(self) -> bool:
        """Whether rows start otherwise than the model's rows do."""
        return self.init != "normal" or self.init_std is not None

    def initial_rows(
        self, std: float, dim: int
    ) -> tuple[float, Literal["normal", "uniform", "truncated_normal"]]:
        """Return the deviation and the distribution of initial rows.

        Args:
            std: The model's deviation.
            dim: Width of the rows.
        """
        if self.init == "xavier":
            return math.sqrt(2.0 / (1 + dim)), "uniform"
        if self.init == "zeros":
            return 0.0, "normal"
        default = 1 / math.sqrt(dim) if self.init == "truncated_normal" else std
        return (default if self.init_std is None else self.init_std), self.init

    def to_table(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {
            entry.name: value
            for entry in dataclasses.fields(self)
            if (value := getattr(self, entry.name)) != entry.default
        }


DEFAULT = EmbeddingOptions()


def embedding_options(feature: str, value: object) -> EmbeddingOptions | None:
    """Return a feature's option ``embedding``, which may be given as a table."""
    if isinstance(value, EmbeddingOptions) or value is None:
        return value
    if not isinstance(value, Mapping):
        raise FeatureError(
            f"feature {feature!r}: got embedding={show_value(value)}, expected a table of options "
            'such as { init = "uniform", l2 = 1e-5 }'
        )
    names = [entry.name for entry in dataclasses.fields(EmbeddingOptions)]
    for key in value:
        if key not in names:
            raise FeatureError(
                f"feature {feature!r}: got the unknown option {show_value(key)} of embedding; "
                f"{nearest(str(key), names)}"
            )
    try:
        return EmbeddingOptions(**value)
    except FeatureError as error:
        raise FeatureError(f"feature {feature!r}: {error}") from None
