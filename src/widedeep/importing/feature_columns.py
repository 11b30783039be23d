"""From the objects of ``tf.feature_column`` to a spec, told apart by the names of their classes.

TensorFlow itself is not imported: columns of TensorFlow 1 and 2 are named tuples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from widedeep.errors import FeatureError, show_value
from widedeep.features import EmbeddingOptions, FeatureSpec
from widedeep.importing.columns import (
    CROSS_KEY,
    CountColumn,
    DenseColumn,
    IdColumn,
    NumberColumn,
    ParsedFeature,
    TableColumn,
)
from widedeep.importing.declaration import Declaration
from widedeep.importing.network import Network, WideColumn

__all__ = ["from_feature_columns"]

_TYPES = {"float32": 1, "float64": 2, "int32": 3, "string": 7, "int64": 9}  # of types.proto
_FLOAT, _STRING = 1, 7
_CATEGORICAL = (
    "BucketizedColumn",
    "CrossedColumn",
    "HashedCategoricalColumn",
    "IdentityCategoricalColumn",
    "VocabularyFileCategoricalColumn",
    "VocabularyListCategoricalColumn",
    "WeightedCategoricalColumn",
)
_EMBEDDINGS = ("EmbeddingColumn", "SharedEmbeddingColumn")
_PROBE = 4096.0  # where a normalizer's slope is taken
_SAME = 1e-5  # relative distance of what a normalizer gives from a line


def from_feature_columns(
    linear_feature_columns: Iterable[object] = (),
    dnn_feature_columns: Iterable[object] = (),
    *,
    label: str | Sequence[str] | None = None,
    label_vocabulary: Sequence[str] | None = None,
    weight_column: str | None = None,
) -> FeatureSpec:
    """Return the spec of an estimator's feature columns.

    Values become the ids that TensorFlow gives them, and the features are placed as the columns
    are. ``spec.to_toml()`` is the declaration as text; the options of the model and of the
    optimizers follow from ``compat="tensorflow"``.

    Args:
        linear_feature_columns: Columns of the linear part.
        dnn_feature_columns: Columns of the deep part.
        label: Column of the label, or of each label.
        label_vocabulary: Names of the classes, where the label is text.
        weight_column: Column of example weights.

    Raises:
        FeatureError: If a column has no counterpart, such as one with a ``normalizer_fn`` that is
            no shift and scale; the message names it and what to do.

    Example:
        >>> from collections import namedtuple
        >>> Numeric = namedtuple("NumericColumn", "key shape default_value dtype normalizer_fn")
        >>> age = Numeric("age", (1,), None, "float32", lambda x: (x - 38.5) / 13.5)
        >>> spec = from_feature_columns(dnn_feature_columns=[age], label="income")
        >>> print(spec.to_toml())
        [data]
        label = "income"
        <BLANKLINE>
        [features]
        numeric = ["age"]
        ...
    """
    linear, deep = list(linear_feature_columns), list(dnn_feature_columns)
    reader = _Reader([*linear, *deep])
    network = Network(
        wide=tuple(reader.wide(column) for column in linear),
        deep=tuple(reader.deep(column) for column in deep),
    )
    declaration = Declaration(network, reader.shapes, reader.frozen)
    labels = [label] if isinstance(label, str) else list(label or ())
    spec = declaration.spec(labels or ["label"], weight_column, label_vocabulary or ())
    if not labels:
        spec = spec.replace(label=None)
    starts = zip((name for name, _ in declaration.inputs), deep, strict=True)
    return _with_initial_rows(spec, starts)


def _with_initial_rows(spec: FeatureSpec, columns: Iterable[tuple[str, object]]) -> FeatureSpec:
    """Return a spec whose embeddings start as their columns' initializers say."""
    embeddings: dict[str, EmbeddingOptions] = {}
    for name, column in columns:
        start = _initial_rows(column)
        if start is not None:
            options = getattr(spec.by_name[name], "embedding", None) or EmbeddingOptions()
            embeddings[name] = dataclasses.replace(options, **start)
    features = [
        dataclasses.replace(f, embedding=embeddings[f.name]) if f.name in embeddings else f  # type: ignore[call-arg]
        for f in spec.all_features
    ]
    return spec.replace(features=features) if embeddings else spec


def _initial_rows(column: object) -> dict[str, Any] | None:
    """Return the options of an embedding column's initializer; None: what is the default anyway."""
    initializer = _option(column, "initializer")
    if _kind(column) not in _EMBEDDINGS or initializer is None:
        return None
    kind = _kind(initializer).removesuffix("V2")
    numbers = {name.lstrip("_"): value for name, value in vars(initializer).items()}
    if kind in ("TruncatedNormal", "RandomNormal", "Normal") and not numbers.get("mean"):
        deviation = float(numbers["stddev"])
        if kind == "TruncatedNormal" and math.isclose(deviation, _dimension(column) ** -0.5):
            return None
        init = "truncated_normal" if kind == "TruncatedNormal" else "normal"
        return {"init": init, "init_std": deviation}
    if kind in ("RandomUniform", "Uniform") and numbers["minval"] == -(numbers["maxval"] or 0.0):
        return {"init": "uniform", "init_std": float(numbers["maxval"]) / math.sqrt(3.0)}
    if kind == "Zeros":
        return {"init": "zeros"}
    raise FeatureError(
        f"feature column {_name(column)!r}: got the initializer {kind}, expected a normal one of "
        "mean 0, a uniform one around 0, or zeros; declare the column without it"
    )


class _Reader:
    """Reads columns; notes the shapes of the tables that they would have."""

    def __init__(self, columns: Sequence[object]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.frozen: set[str] = set()
        self._types: dict[str, int] = {}  # of keys, as columns declare them
        for column in columns:
            self._note_types(column)

    def _note_types(self, column: object) -> None:
        kind = _kind(column)
        if kind == "CrossedColumn":
            for part in _option(column, "keys"):
                if not isinstance(part, str):
                    self._note_types(part)
        inner = _option(column, "categorical_column", _option(column, "source_column"))
        if inner is not None:
            self._note_types(inner)
        elif _option(column, "key") is not None:
            dtype = "int64" if kind == "IdentityCategoricalColumn" else _option(column, "dtype")
            self._types.setdefault(_option(column, "key"), _type_number(column, dtype))

    # ---- columns of the two parts ---------------------------------------------------------------

    def wide(self, column: object) -> WideColumn:
        """Return a column of the linear part."""
        name, kind = _name(column), _kind(column)
        variable = f"linear/{name}"
        if kind == "NumericColumn":
            return WideColumn(name=name, column=self.number(column), variable=variable)
        if kind == "IndicatorColumn":
            return WideColumn(name=name, column=self._counts(column), variable=variable)
        ids = self.ids(column)
        self.shapes[variable] = (self._count(column), 1)
        table = TableColumn(column=ids, variable=variable, combiner="sum")
        return WideColumn(name=name, column=table, variable=variable)

    def deep(self, column: object) -> tuple[str, DenseColumn]:
        """Return a column of the deep part, with its name."""
        name, kind = _name(column), _kind(column)
        if kind == "NumericColumn":
            return name, self.number(column)
        if kind == "IndicatorColumn":
            return name, self._counts(column)
        if kind == "BucketizedColumn":  # is one-hot there
            return f"{name}_indicator", CountColumn(
                column=self.ids(column), width=self._count(column)
            )
        if kind not in _EMBEDDINGS:
            raise FeatureError(
                f"feature column {name!r}: got a {kind} in the deep part, expected a number, an "
                "embedding or an indicator; wrap it in embedding_column or indicator_column"
            )
        if _option(column, "ckpt_to_load_from") is not None:
            raise FeatureError(
                f"feature column {name!r}: starts from the checkpoint "
                f"{_option(column, 'ckpt_to_load_from')!r}; import that model, and start from it "
                "by 'widedeep train --warm-start'"
            )
        creator = _option(column, "shared_embedding_column_creator")
        shared = _option(column, "shared_embedding_collection_name")
        variable = f"deep/{name}" if shared is None else shared
        if creator is not None:
            variable = _option(creator, "name", _option(creator, "_name", variable))
        categorical = _option(column, "categorical_column")
        self.shapes[variable] = (self._count(categorical), _dimension(column))
        if not _option(column, "trainable", _option(creator, "_trainable", True)):
            self.frozen.add(variable)
        return name, TableColumn(
            column=self.ids(categorical),
            variable=variable,
            combiner=_option(column, "combiner") or "mean",
            max_norm=_option(column, "max_norm"),
        )

    def _counts(self, column: object) -> CountColumn:
        categorical = _option(column, "categorical_column")
        return CountColumn(column=self.ids(categorical), width=self._count(categorical))

    # ---- numbers and ids ------------------------------------------------------------------------

    def number(self, column: object) -> NumberColumn:
        """Return a numeric column."""
        size = math.prod(_option(column, "shape") or (1,))
        default = _option(column, "default_value")
        values = None if default is None else np.ravel(np.asarray(default, np.float64)).tolist()
        source = ParsedFeature(
            key=_option(column, "key"),
            dtype=self._types[_option(column, "key")],
            size=size,
            default=None if values is None else tuple(values),
        )
        normalizer = _option(column, "normalizer_fn")
        if normalizer is None:
            return NumberColumn(source=source)
        shift, scale = _shift_and_scale(source.key, normalizer, size)
        return NumberColumn(source=source, shift=shift, scale=scale)

    def ids(self, column: object) -> IdColumn:
        """Return a categorical column."""
        kind, name = _kind(column), _name(column)
        if kind not in _CATEGORICAL:
            raise FeatureError(
                f"feature column {name!r}: got a {kind}, expected one of {', '.join(_CATEGORICAL)}"
            )
        if kind == "BucketizedColumn":
            number = self.number(_option(column, "source_column"))
            if not number.is_plain:
                raise FeatureError(
                    f"feature column {name!r}: cuts the number {number.source.key!r} after its "
                    "normalizer_fn; give the boundaries in raw units, and no normalizer_fn"
                )
            cuts = tuple(float(cut) for cut in _option(column, "boundaries"))
            return IdColumn(kind="bucketized", source=number.source, boundaries=cuts)
        if kind == "CrossedColumn":
            return IdColumn(
                kind="crossed",
                buckets=_option(column, "hash_bucket_size"),
                parts=tuple(self._parts(column)),
                hash_key=int(_option(column, "hash_key", CROSS_KEY)) % 2**64,
            )
        if kind == "WeightedCategoricalColumn":
            inner = self.ids(_option(column, "categorical_column"))
            weights = _option(column, "weight_feature_key")
            source = ParsedFeature(key=weights, dtype=_FLOAT, size=None)
            return dataclasses.replace(inner, weights=source)
        return self._values(column)

    def _values(self, column: object) -> IdColumn:
        kind, source = _kind(column), self._text(_option(column, "key"))
        if kind == "HashedCategoricalColumn":
            buckets = _option(column, "hash_bucket_size")
            return IdColumn(kind="hashed", source=source, buckets=buckets)
        default = _option(column, "default_value")
        default = None if default is None or default < 0 else int(default)
        if kind == "IdentityCategoricalColumn":
            count = int(_option(column, "number_buckets", _option(column, "num_buckets")))
            return IdColumn(kind="identity", source=source, buckets=count, default=default)
        values = tuple(_option(column, "vocabulary_list", ()))
        if kind == "VocabularyFileCategoricalColumn":
            values = _file_values(column, source.is_integer)
        return IdColumn(
            kind="vocabulary",
            source=source,
            values=tuple(v.item() if isinstance(v, np.generic) else v for v in values),
            buckets=_option(column, "num_oov_buckets") or 0,
            default=default,
        )

    def _parts(self, column: object) -> list[IdColumn | ParsedFeature]:
        parts: list[IdColumn | ParsedFeature] = []
        for part in _option(column, "keys"):
            if isinstance(part, str):
                parts.append(self._text(part))
            elif _kind(part) == "CrossedColumn":  # a cross inside a cross is flattened
                parts += self._parts(part)
            else:
                parts.append(self.ids(part))
        return parts

    def _text(self, key: str) -> ParsedFeature:
        dtype = self._types.get(key, _STRING)
        return ParsedFeature(key=key, dtype=dtype, size=None, drops_empty=dtype == _STRING)

    def _count(self, column: object) -> int:
        return self.ids(column).count(0)


def _file_values(column: object, integers: bool) -> tuple[str | int, ...]:
    path = _option(column, "vocabulary_file")
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(
            f"feature column {_name(column)!r}: got vocabulary_file={path!r}, which cannot be read "
            f"({error}); copy the file here, and name it in the column"
        ) from error
    lines = lines[: _option(column, "vocabulary_size") or len(lines)]
    lines = lines[:-1] if lines and not lines[-1] else lines
    return tuple(map(int, lines)) if integers else tuple(lines)


def _shift_and_scale(
    key: str, normalizer: Callable[[Any], Any], size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what (x - shift) * scale a function computes, by components."""
    draw = np.random.default_rng(0).normal(scale=100.0, size=(5, size))
    inputs_PK = np.concatenate([np.zeros((1, size)), np.full((1, size), _PROBE), draw])
    problem = "it is no shift and scale of each number"
    outputs_PK = np.zeros((0, size))
    try:
        with np.errstate(all="ignore"):
            outputs_PK = np.asarray(normalizer(inputs_PK), np.float64)
    except Exception as error:  # any error of a function that is not ours
        problem = f"it fails on an array ({type(error).__name__}: {error})"
    if outputs_PK.shape == inputs_PK.shape:
        scale_K = (outputs_PK[1] - outputs_PK[0]) / _PROBE
        line_PK = outputs_PK[0] + inputs_PK * scale_K
        error_PK = np.abs(outputs_PK - line_PK)
        if (scale_K != 0).all() and (error_PK <= _SAME * np.maximum(1.0, np.abs(line_PK))).all():
            shift_K = -outputs_PK[0] / scale_K + 0.0
            return tuple(shift_K.tolist()), tuple(scale_K.tolist())
    raise FeatureError(
        f"feature column {key!r}: got a normalizer_fn that cannot be carried over: {problem}; "
        "compute the column before both models, or declare the number with a transform of ours "
        '("log1p", "quantile", "standard")'
    )


def _kind(column: object) -> str:
    """Return the name of a column's class; TensorFlow 1 has an underscore before it."""
    return type(column).__name__.lstrip("_")


def _option(column: object, name: str, default: Any = None) -> Any:
    value = getattr(column, name, None)
    return default if value is None else value


def _dimension(column: object) -> int:
    creator = _option(column, "shared_embedding_column_creator")
    dimension: int = _option(column, "dimension", _option(creator, "dimension"))
    return dimension


def _type_number(column: object, dtype: object) -> int:
    name = _option(dtype, "name", str(dtype))
    if name not in _TYPES:
        raise FeatureError(
            f"feature column {_name(column)!r}: got dtype {show_value(name)}, expected one of "
            f"{', '.join(_TYPES)}"
        )
    return _TYPES[name]


def _name(column: object) -> str:
    """Return a column's name, as TensorFlow makes it."""
    kind = _kind(column)
    inner = _option(column, "categorical_column", _option(column, "source_column"))
    if kind == "CrossedColumn":
        return "_X_".join(sorted(_leaves(column)))
    if kind == "WeightedCategoricalColumn":
        return f"{_name(inner)}_weighted_by_{_option(column, 'weight_feature_key')}"
    suffixes = {
        "BucketizedColumn": "_bucketized",
        "EmbeddingColumn": "_embedding",
        "IndicatorColumn": "_indicator",
        "SharedEmbeddingColumn": "_shared_embedding",
    }
    if inner is not None:
        return _name(inner) + suffixes.get(kind, "")
    return str(_option(column, "key", show_value(column)))


def _leaves(column: object) -> list[str]:
    leaves = []
    for part in _option(column, "keys"):
        nested = not isinstance(part, str) and _kind(part) == "CrossedColumn"
        leaves += _leaves(part) if nested else [part if isinstance(part, str) else _name(part)]
    return leaves
