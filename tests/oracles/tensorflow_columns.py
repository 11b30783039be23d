"""Column vectors from TensorFlow: ids, pooled embeddings, indicator counts, linear sums."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tests.oracles.tensorflow_hashing import sparse_tensor

__all__ = ["build_column", "build_features", "column_ids", "column_vectors"]

tf: Any = import_module("tensorflow")
linear: Any = import_module("tensorflow_estimator.python.estimator.canned.linear")
fc = tf.feature_column

Declaration = dict[str, Any]
Features = dict[str, dict[str, Any]]

EDUCATION = ["Bachelors", "HS-grad", "Masters"]


def build_column(declaration: Declaration) -> Any:
    """The TensorFlow column that a stored declaration describes; what is stored is what ran."""
    arguments = dict(declaration)
    kind = arguments.pop("kind")
    if "source" in arguments:
        arguments["source"] = build_column(arguments["source"])
    if "sources" in arguments:
        arguments["sources"] = [build_column(source) for source in arguments["sources"]]
    if kind == "crossed":
        arguments["parts"] = [
            part if isinstance(part, str) else build_column(part) for part in arguments["parts"]
        ]
    return BUILDERS[kind](**arguments)


def _embedding(
    source: Any,
    combiner: str = "mean",
    table: list[list[float]] | None = None,
    dimension: int | None = None,
    **options: Any,
) -> Any:
    if table is None:
        return fc.embedding_column(source, dimension, combiner=combiner, **options)
    values = np.array(table, dtype=np.float32)
    start = tf.keras.initializers.Constant(values)
    return fc.embedding_column(source, values.shape[1], combiner=combiner, initializer=start)


def _numeric(
    key: str, shape: int = 1, default: Any = None, normalizer: dict[str, float] | None = None
) -> Any:
    """A number; users write its normalizer with a scale or with a divisor."""
    function = None
    if normalizer and "divisor" in normalizer:
        function = lambda x: (x - normalizer["shift"]) / normalizer["divisor"]  # noqa: E731
    elif normalizer:
        function = lambda x: (x - normalizer["shift"]) * normalizer["scale"]  # noqa: E731
    return fc.numeric_column(key, shape=shape, default_value=default, normalizer_fn=function)


def _vocabulary_file(key: str, words: list[str], oov_buckets: int = 0, default: int = -1) -> Any:
    """A vocabulary in a file; its path is kept in a SavedModel, so it is the same in every run."""
    path = Path(tempfile.gettempdir()) / "vocabularies" / f"{key}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{word}\n" for word in words))
    return fc.categorical_column_with_vocabulary_file(
        key,
        str(path),
        len(words),
        dtype=tf.string,
        default_value=default,
        num_oov_buckets=oov_buckets,
    )


BUILDERS: dict[str, Any] = {
    "numeric": _numeric,
    "bucketized": lambda source, boundaries: fc.bucketized_column(source, boundaries),
    "vocabulary": lambda key, dtype, vocabulary, oov_buckets=0, default=-1: (
        fc.categorical_column_with_vocabulary_list(
            key, vocabulary, tf.as_dtype(dtype), default, oov_buckets
        )
    ),
    "hash_bucket": lambda key, dtype, buckets: fc.categorical_column_with_hash_bucket(
        key, buckets, tf.as_dtype(dtype)
    ),
    "identity": lambda key, buckets, default=None: fc.categorical_column_with_identity(
        key, buckets, default
    ),
    "crossed": lambda parts, buckets, hash_key=None: fc.crossed_column(parts, buckets, hash_key),
    "weighted": lambda source, weight_key: fc.weighted_categorical_column(source, weight_key),
    "vocabulary_file": _vocabulary_file,
    "embedding": _embedding,
    "shared_embeddings": lambda sources, dimension, combiner="mean", **options: (
        fc.shared_embeddings(sources, dimension, combiner=combiner, **options)
    ),
    "indicator": lambda source: fc.indicator_column(source),
}


def build_features(features: Features) -> dict[str, Any]:
    """Stored rows as tensors: ragged rows become sparse, full ones dense if ``dense`` is set."""
    return {
        name: (
            tf.constant(feature["rows"], feature["dtype"])
            if feature.get("dense")
            else sparse_tensor(feature["rows"], feature["dtype"])
        )
        for name, feature in features.items()
    }


def _string(*rows: list[str]) -> dict[str, Any]:
    return {"dtype": "string", "rows": list(rows)}


def _int64(*rows: list[int]) -> dict[str, Any]:
    return {"dtype": "int64", "rows": list(rows)}


def _float32(*rows: list[float]) -> dict[str, Any]:
    return {"dtype": "float32", "rows": [[float(np.float32(x)) for x in row] for row in rows]}


def _dense(feature: dict[str, Any]) -> dict[str, Any]:
    return {**feature, "dense": True}


def _vocabulary(key: str = "education", **options: Any) -> Declaration:
    words = {"dtype": "string", "vocabulary": EDUCATION}
    return {"kind": "vocabulary", "key": key, **words, **options}


def _bucketized(key: str, boundaries: list[float], shape: int = 1) -> Declaration:
    source = {"kind": "numeric", "key": key, "shape": shape}
    return {"kind": "bucketized", "source": source, "boundaries": boundaries}


def _crossed(*parts: Any, buckets: int = 1000, **options: Any) -> Declaration:
    return {"kind": "crossed", "parts": list(parts), "buckets": buckets, **options}


BOUNDARIES = [-1.5, 0.0, 18.0, 18.5, 25.0]
ONE = np.float32(1)
AGES = _dense(
    _float32(
        *([value] for value in BOUNDARIES),
        *([float(np.nextafter(np.float32(value), -ONE * 1e9))] for value in BOUNDARIES),
        *([float(np.nextafter(np.float32(value), ONE * 1e9))] for value in BOUNDARIES),
        *([value] for value in (-1e30, 1e30, -0.0, 20.25)),
    )
)
# The words of a row: known, unknown, several, none, empty text, a word twice.
WORDS = _string(
    ["Masters"], ["Doctorate"], ["HS-grad", "Preschool", "Bachelors"], [], [""], ["HS-grad"] * 2
)
NUMBERS = _int64([0], [4], [-1], [5], [-2], [3, 3, 7, 0], [], [2**40])
JOBS = _string(["Sales"], ["Tech"], ["Sales", "Clerk"], ["Tech"], [], ["a", "b", "c"])
AGE_SIX = _dense(_float32([17.0], [18.0], [20.0], [25.0], [90.0], [-3.0]))

PAIRS = _dense(_float32([-1.0, 0.0], [0.5, 1.0], [2.0, -2.0], [0.0, 0.0], [1.0, 3.0], [-0.5, 0.99]))

ID_CASES: list[tuple[str, Declaration, Features]] = [
    ("bucketized: left-closed buckets", _bucketized("age", BOUNDARIES), {"age": AGES}),
    (
        "bucketized: id is bucket + (boundaries + 1) * position in a vector",
        _bucketized("pair", [0.0, 1.0], shape=2),
        {"pair": _dense(_float32([-1.0, 0.0], [0.5, 1.0], [2.0, -2.0]))},
    ),
    ("vocabulary: unseen is -1 (later dropped)", _vocabulary(), {"education": WORDS}),
    ("vocabulary: unseen takes a default id", _vocabulary(default=2), {"education": WORDS}),
    ("vocabulary: unseen goes to buckets", _vocabulary(oov_buckets=4), {"education": WORDS}),
    (
        "vocabulary: one unseen bucket",
        _vocabulary(oov_buckets=1),
        {"education": WORDS},
    ),
    (
        "vocabulary: empty text in a dense column is missing",
        _vocabulary(oov_buckets=4),
        {"education": _dense(_string(["Masters", ""], ["", ""], ["?", "HS-grad"]))},
    ),
    (
        "vocabulary of integers: unseen goes to buckets by decimal text",
        {
            "kind": "vocabulary",
            "key": "code",
            "dtype": "int64",
            "vocabulary": [10, -20, 30],
            "oov_buckets": 100,
        },
        {"code": _int64([10], [-20], [30], [0], [7, 1234567890123], [], [-1])},
    ),
    (
        "hash bucket: bags and empty rows",
        {"kind": "hash_bucket", "key": "education", "dtype": "string", "buckets": 50},
        {"education": WORDS},
    ),
    (
        "hash bucket of integers",
        {"kind": "hash_bucket", "key": "code", "dtype": "int64", "buckets": 50},
        {"code": NUMBERS},
    ),
    (
        "hash bucket of integers: -1 in a dense column is missing",
        {"kind": "hash_bucket", "key": "code", "dtype": "int64", "buckets": 50},
        {"code": _dense(_int64([-1], [1], [-2]))},
    ),
    (
        "identity: outside 0..4 takes the default",
        {"kind": "identity", "key": "code", "buckets": 5, "default": 2},
        {"code": NUMBERS},
    ),
    (
        "identity: -1 in a dense column is missing, not the default",
        {"kind": "identity", "key": "code", "buckets": 5, "default": 2},
        {"code": _dense(_int64([-1], [1], [-2], [9]))},
    ),
    (
        "crossed: two strings; the last part varies fastest; an empty part gives nothing",
        _crossed("education", "job"),
        {"education": WORDS, "job": JOBS},
    ),
    (
        "crossed: three parts",
        _crossed("education", "job", "city"),
        {
            "education": WORDS,
            "job": JOBS,
            "city": _string(["Rome", "Oslo"], [], ["Rome"], ["Oslo"], ["Rome"], ["Oslo", "Rome"]),
        },
    ),
    (
        "crossed: bucket ids enter as integers",
        _crossed(_bucketized("age", BOUNDARIES), "job"),
        {"age": AGE_SIX, "job": JOBS},
    ),
    (
        "crossed: vocabulary ids enter as integers, the unseen as -1",
        _crossed(_vocabulary(), "job"),
        {"education": WORDS, "job": JOBS},
    ),
    (
        "crossed: vocabulary with unseen buckets",
        _crossed(_vocabulary(oov_buckets=2), _bucketized("age", BOUNDARIES), buckets=10**5),
        {"education": WORDS, "age": AGE_SIX},
    ),
    (
        "crossed: identity part",
        _crossed({"kind": "identity", "key": "code", "buckets": 5, "default": 2}, "job"),
        {"code": _int64([0], [4], [9], [], [1], [1, 2]), "job": JOBS},
    ),
    (
        "crossed: a raw integer column",
        _crossed("code", "job"),
        {"code": _int64([0], [4], [-9], [], [1], [1, 2]), "job": JOBS},
    ),
    (
        "crossed: a dense raw column is folded after the sparse ones, whatever its place",
        _crossed("education", _bucketized("age", BOUNDARIES)),
        {
            "education": _dense(_string(["Masters"], ["x"], [""], ["Masters"], ["HS-grad"], ["x"])),
            "age": AGE_SIX,
        },
    ),
    (
        "crossed: a dense bag of raw text keeps its empty texts",
        _crossed("education", "job"),
        {
            "education": _dense(_string(["Masters", ""], ["x", "y"], ["", ""])),
            "job": _string(["Sales"], ["Sales", "Tech"], ["Tech"]),
        },
    ),
    (
        "crossed: a cross within a cross is flattened",
        _crossed(_crossed("education", "job"), "city"),
        {
            "education": WORDS,
            "job": JOBS,
            "city": _string(["Rome"], ["Oslo"], ["Rome"], ["Oslo"], ["Rome"], ["Oslo"]),
        },
    ),
    (
        "crossed: another hash key",
        _crossed("education", "job", hash_key=987654321),
        {"education": WORDS, "job": JOBS},
    ),
    (
        "crossed: a raw column whose key a vocabulary column has too",
        _crossed("education", _vocabulary(), "job"),
        {"education": WORDS, "job": JOBS},
    ),
    (
        "crossed: a vector's buckets",
        _crossed(_bucketized("pair", [0.0, 1.0], shape=2), "job"),
        {"pair": PAIRS, "job": JOBS},
    ),
]

TABLE = [[1.0, -2.0, 0.5], [0.25, 4.0, -1.0], [-3.0, 0.125, 8.0], [0.1, 0.2, 0.3]]
BAG_IDS = _int64([0], [1, 2], [], [3, 3, 0], [2, 1, 0, 3], [1, 2], [0, 1], [2])
BAG_WEIGHTS = _float32(
    [2.0], [0.5, 1.5], [], [1.0, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], [0.0, 2.0], [-1.0, 3.0], [-2.0]
)
BAG = {"kind": "identity", "key": "ids", "buckets": 4}
WEIGHTED_BAG = {"kind": "weighted", "source": BAG, "weight_key": "weights"}
COMBINERS = ("sum", "mean", "sqrtn")


def _dense_cases() -> list[tuple[str, Declaration, Features]]:
    ids = {"ids": BAG_IDS}
    weighted = {**ids, "weights": BAG_WEIGHTS}
    vocabulary = {"education": WORDS}
    cases: list[tuple[str, Declaration, Features]] = []
    for combiner in COMBINERS:
        pooling = {"kind": "embedding", "combiner": combiner, "table": TABLE}
        cases.append((f"embedding: {combiner}", {**pooling, "source": BAG}, ids))
        name = f"embedding: weighted {combiner}"
        cases.append((name, {**pooling, "source": WEIGHTED_BAG}, weighted))
        name = f"embedding: {combiner}, the unseen are dropped"
        unseen = {**pooling, "table": TABLE[:3], "source": _vocabulary()}
        cases.append((name, unseen, vocabulary))
    buckets = _bucketized("age", BOUNDARIES)
    return [
        *cases,
        ("indicator: counts", {"kind": "indicator", "source": BAG}, ids),
        ("indicator: weights", {"kind": "indicator", "source": WEIGHTED_BAG}, weighted),
        (
            "indicator: the unseen are dropped",
            {"kind": "indicator", "source": _vocabulary()},
            vocabulary,
        ),
        (
            "indicator: buckets of the unseen",
            {"kind": "indicator", "source": _vocabulary(oov_buckets=3)},
            vocabulary,
        ),
        (
            "indicator: unseen takes a default id",
            {"kind": "indicator", "source": _vocabulary(default=2)},
            vocabulary,
        ),
        (
            "indicator: combinations",
            {"kind": "indicator", "source": _crossed("education", "job", buckets=7)},
            {**vocabulary, "job": JOBS},
        ),
        ("bucketized: one-hot", buckets, {"age": AGE_SIX}),
        (
            "bucketized: one-hot of a vector",
            _bucketized("pair", [0.0, 1.0], shape=2),
            {"pair": PAIRS},
        ),
        (
            "numeric: a vector",
            {"kind": "numeric", "key": "pair", "shape": 2},
            {"pair": _dense(_float32([1.5, -2.0], [0.0, 1e-3]))},
        ),
    ]


def column_ids(declaration: Declaration, features: Features) -> list[list[int]]:
    """The ids of each row as the column gives them, -1 for what later is dropped."""
    cache = tf.__internal__.feature_column.FeatureTransformationCache(build_features(features))
    sparse = build_column(declaration).get_sparse_tensors(cache, None).id_tensor
    sparse = tf.sparse.reorder(sparse)
    rows: list[list[int]] = [[] for _ in range(int(sparse.dense_shape[0]))]
    for position, value in zip(sparse.indices.numpy(), sparse.values.numpy(), strict=True):
        rows[position[0]].append(int(value))
    return rows


def _dense_output(declaration: Declaration, features: Features) -> Any:
    return tf.keras.layers.DenseFeatures([build_column(declaration)])(build_features(features))


# Wide weights of two logits, for a bag with weights, a bag without, a number and a cross.
LINEAR_COLUMNS: dict[str, Declaration] = {
    "ids": BAG,
    "ids_weighted_by_weights": WEIGHTED_BAG,
    "education": _vocabulary(),
    "age": {"kind": "numeric", "key": "age", "shape": 1},
    "education_X_job": _crossed("education", "job", buckets=6),
    "age_bucketized": _bucketized("age", [18.0, 25.0]),
}
LINEAR_FEATURES: Features = {
    "ids": _int64([0], [1, 2], [], [3, 3, 0], [2, 1, 0, 3], [1, 2]),
    "weights": _float32([2.0], [0.5, 1.5], [], [1.0, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], [0.0, 2.0]),
    "education": WORDS,
    "job": JOBS,
    "age": AGE_SIX,
}
LINEAR_GROUPS: dict[str, list[str]] = {
    "a bag": ["ids"],
    "a weighted bag": ["ids_weighted_by_weights"],
    "a vocabulary, the unseen dropped": ["education"],
    "a cross, a number and buckets": ["age", "age_bucketized", "education_X_job"],
    "all": list(LINEAR_COLUMNS),
}


def _linear_entry(name: str, columns: list[str], combiner: str) -> dict[str, Any]:
    """One pass of the estimator's own linear model with known weights."""
    rng = np.random.default_rng(len(name))
    declarations = {column: LINEAR_COLUMNS[column] for column in columns}
    built = [build_column(declaration) for declaration in declarations.values()]
    keys = {key for declaration in declarations.values() for key in _raw_keys(declaration)}
    features = {key: LINEAR_FEATURES[key] for key in sorted(keys)}
    model = linear.LinearModel(built, units=2, sparse_combiner=combiner, name=f"m_{combiner}")
    model(build_features(features))
    weights: dict[str, Any] = {}
    for variable in model.variables:
        value = rng.normal(size=variable.shape).astype(np.float32).round(3)
        variable.assign(value)
        weights[variable.name.split("/")[-2 if "/weights" in variable.name else -1]] = value
    bias = weights.pop(next(key for key in weights if "bias" in key))
    if set(weights) != set(columns):
        raise AssertionError(f"got weights of {sorted(weights)}, expected {sorted(columns)}")
    return {
        "name": f"{name}: {combiner}",
        "combiner": combiner,
        "columns": declarations,
        "features": features,
        "weights": weights,
        "bias": bias,
        "ids": {
            key: column_ids(declaration, features)
            for key, declaration in declarations.items()
            if declaration["kind"] != "numeric"
        },
        "logits": model(build_features(features)).numpy(),
    }


def _raw_keys(declaration: Declaration | str) -> set[str]:
    if isinstance(declaration, str):
        return {declaration}
    own = {declaration[key] for key in ("key", "weight_key") if key in declaration}
    parts = list(declaration.get("parts", []))
    if "source" in declaration:
        parts.append(declaration["source"])
    return own.union(*(_raw_keys(part) for part in parts))


def column_vectors() -> dict[str, Any]:
    """Everything that goes into ``tensorflow_columns.json``."""
    return {
        "ids": [
            {
                "name": name,
                "column": column,
                "features": features,
                "ids": column_ids(column, features),
            }
            for name, column, features in ID_CASES
        ],
        "dense": [
            {
                "name": name,
                "column": column,
                "features": features,
                "outputs": _dense_output(column, features).numpy(),
            }
            for name, column, features in _dense_cases()
        ],
        "linear": [
            _linear_entry(name, columns, combiner)
            for name, columns in LINEAR_GROUPS.items()
            for combiner in COMBINERS
        ],
    }
