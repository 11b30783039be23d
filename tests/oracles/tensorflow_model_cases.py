"""The estimators whose checkpoints are kept: their columns, options, optimizers and inputs.

Plain data, so that a model's JSON holds what was built, word for word.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MODELS"]

Declaration = dict[str, Any]

WORKCLASS = ["Private", "Self-emp-not-inc", "Local-gov", "State-gov"]
EDUCATION = ["Bachelors", "HS-grad", "11th", "Masters", "Some-college"]
OCCUPATION = ["Tech-support", "Craft-repair", "Sales", "Exec-managerial", "Adm-clerical"]
GENRES = ["drama", "comedy", "horror", "noir"]
TAGS = ["new", "sale", "gift", "used"]


def _words(*values: str, bag: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    return {"dtype": "string", "values": list(values), "bag": list(bag)}


def _integers(low: int, high: int, bag: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    return {"dtype": "int64", "range": [low, high], "bag": list(bag)}


def _numbers(low: float, high: float, shape: int = 1) -> dict[str, Any]:
    return {"dtype": "float32", "range": [low, high], "bag": [shape, shape], "dense": True}


def _weights(key: str, low: float = 0.1, high: float = 2.0) -> dict[str, Any]:
    """One number per value of the feature `key`."""
    return {"dtype": "float32", "range": [low, high], "like": key}


def _numeric(key: str, **options: Any) -> Declaration:
    return {"kind": "numeric", "key": key, **options}


def _vocabulary(key: str, words: list[str], **options: Any) -> Declaration:
    return {"kind": "vocabulary", "key": key, "dtype": "string", "vocabulary": words, **options}


def _hashed(key: str, buckets: int, dtype: str = "string") -> Declaration:
    return {"kind": "hash_bucket", "key": key, "dtype": dtype, "buckets": buckets}


def _identity(key: str, buckets: int, **options: Any) -> Declaration:
    return {"kind": "identity", "key": key, "buckets": buckets, **options}


def _bucketized(key: str, boundaries: list[float], **options: Any) -> Declaration:
    return {"kind": "bucketized", "source": _numeric(key, **options), "boundaries": boundaries}


def _crossed(*parts: Any, buckets: int, **options: Any) -> Declaration:
    return {"kind": "crossed", "parts": list(parts), "buckets": buckets, **options}


def _weighted(source: Declaration, weight_key: str) -> Declaration:
    return {"kind": "weighted", "source": source, "weight_key": weight_key}


def _indicator(source: Declaration) -> Declaration:
    return {"kind": "indicator", "source": source}


def _embedding(source: Declaration, dimension: int, **options: Any) -> Declaration:
    return {"kind": "embedding", "source": source, "dimension": dimension, **options}


def _shared(*sources: Declaration, dimension: int, **options: Any) -> Declaration:
    entry = {"kind": "shared_embeddings", "sources": list(sources), "dimension": dimension}
    return {**entry, **options}


AGE_BUCKETS = _bucketized("age", [25.0, 35.0, 50.0])
FTRL = {"name": "Ftrl", "learning_rate": 0.1}
ADAGRAD = {"name": "Adagrad", "learning_rate": 0.05}


def _census() -> dict[str, Any]:
    """The columns of the wide_n_deep tutorial, smaller."""
    workclass, education = _vocabulary("workclass", WORKCLASS), _vocabulary("education", EDUCATION)
    occupation = _hashed("occupation", 7)
    return {
        "estimator": "DNNLinearCombinedClassifier",
        "linear": [
            workclass,
            education,
            occupation,
            AGE_BUCKETS,
            _crossed("education", "occupation", buckets=13),
            _crossed(AGE_BUCKETS, "education", "occupation", buckets=17),
        ],
        "deep": [
            _numeric("age"),
            _numeric("hours_per_week"),
            _indicator(workclass),
            _indicator(education),
            _embedding(occupation, 3),
        ],
        "options": {"dnn_hidden_units": [5, 3]},
        "optimizers": {"linear": {**FTRL, "l1_regularization_strength": 0.01}, "dnn": ADAGRAD},
        "inputs": {
            "workclass": _words(*WORKCLASS, "Never-worked"),
            "education": _words(*EDUCATION, "Preschool"),
            "occupation": _words(*OCCUPATION, "Armed-Forces"),
            "age": _numbers(17, 80),
            "hours_per_week": _numbers(1, 60),
        },
        "label": {"classes": 2},
    }


def _shared_weighted() -> dict[str, Any]:
    """Three named classes, batch norm; unseen words in buckets, a file of words, a default id."""
    genre = _vocabulary("genre", GENRES, oov_buckets=2)
    tags = {"kind": "vocabulary_file", "key": "tags", "words": TAGS, "default": 1}
    viewed, bought = _identity("viewed", 6), _identity("bought", 6)
    slot = _identity("slot", 3, default=0)
    return {
        "estimator": "DNNLinearCombinedClassifier",
        "linear": [genre, slot, _weighted(tags, "tag_weights")],
        "deep": [
            _shared(viewed, bought, dimension=2, combiner="mean"),
            _embedding(_weighted(tags, "tag_weights"), 2, combiner="sqrtn"),
            _embedding(genre, 2, combiner="sum"),
            _indicator(slot),
            _numeric("price", normalizer={"shift": 20.0, "scale": 0.125}),
        ],
        "options": {
            "dnn_hidden_units": [4],
            "batch_norm": True,
            "n_classes": 3,
            "label_vocabulary": ["skip", "view", "buy"],
        },
        "optimizers": {"linear": FTRL, "dnn": ADAGRAD},
        "inputs": {
            "genre": _words(*GENRES, "western", "musical", bag=(0, 3)),
            "tags": _words(*TAGS, "odd", bag=(0, 3)),
            "tag_weights": _weights("tags"),
            "viewed": _integers(0, 6, bag=(0, 4)),
            "bought": _integers(0, 6, bag=(0, 2)),
            "slot": _integers(0, 5),
            "price": _numbers(5, 60),
        },
        "label": {"vocabulary": ["skip", "view", "buy"]},
    }


def _linear_sqrtn() -> dict[str, Any]:
    """A linear classifier with bags under sqrtn and weighted examples."""
    return {
        "estimator": "LinearClassifier",
        "linear": [
            _vocabulary("genre", GENRES, oov_buckets=1),
            _hashed("code", 9, dtype="int64"),
            _numeric("price", shape=2),
        ],
        "options": {
            "sparse_combiner": "sqrtn",
            "weight_column": "weight",
            "label_vocabulary": ["no", "yes"],
            "loss_reduction": "sum",
        },
        "optimizers": {"linear": {**FTRL, "l2_regularization_strength": 0.02, "beta": 0.5}},
        "inputs": {
            "genre": _words(*GENRES, "western", bag=(0, 4)),
            "code": _integers(-5, 50, bag=(0, 3)),
            "price": _numbers(-1, 1, shape=2),
        },
        "weight": [0.0, 0.5, 1.0, 2.5],
        "label": {"vocabulary": ["no", "yes"]},
    }


def _linear_regressor() -> dict[str, Any]:
    """A linear regressor of buckets, a hashed word and a number with a default, under mean."""
    return {
        "estimator": "LinearRegressor",
        "linear": [AGE_BUCKETS, _hashed("occupation", 5), _numeric("hours", default=40.0)],
        "options": {"sparse_combiner": "mean"},
        "optimizers": {"linear": FTRL},
        "inputs": {
            "age": _numbers(17, 80),
            "occupation": _words(*OCCUPATION, bag=(0, 3)),
            "hours": _numbers(1, 60),
        },
        "missing": ["hours"],
        "label": {"dimension": 1},
    }


def _dnn_classifier() -> dict[str, Any]:
    """Dropout, elu and Adam; no table, because TensorFlow's Adam moves every row of one."""
    return {
        "estimator": "DNNClassifier",
        "deep": [
            _indicator(_vocabulary("genre", GENRES)),
            _numeric("price", normalizer={"shift": 30.0, "divisor": 12.5}),
            _numeric("pair", shape=2),
        ],
        "options": {"dnn_hidden_units": [5, 4], "dnn_activation_fn": "elu", "dnn_dropout": 0.25},
        "optimizers": {"dnn": {"name": "Adam", "learning_rate": 0.02}},
        "inputs": {
            "genre": _words(*GENRES, "western", bag=(0, 3)),
            "price": _numbers(5, 60),
            "pair": _numbers(-1, 1, shape=2),
        },
        "label": {"classes": 2},
    }


def _dnn_regressor() -> dict[str, Any]:
    """Two targets, tanh, summed loss and weighted examples."""
    return {
        "estimator": "DNNRegressor",
        "deep": [
            _embedding(_hashed("code", 6, dtype="int64"), 2, combiner="mean"),
            _indicator(AGE_BUCKETS),
            _numeric("price"),
        ],
        "options": {
            "dnn_hidden_units": [4],
            "dnn_activation_fn": "tanh",
            "label_dimension": 2,
            "weight_column": "weight",
            "loss_reduction": "sum",
        },
        "optimizers": {"dnn": ADAGRAD},
        "inputs": {
            "code": _integers(0, 40, bag=(0, 3)),
            "age": _numbers(17, 80),
            "price": _numbers(-1, 1),
        },
        "weight": [0.5, 1.0, 2.0],
        "label": {"dimension": 2},
    }


def _poisson() -> dict[str, Any]:
    """Counts under the Poisson head, with the optimizers that the estimator takes by default."""
    genre = _vocabulary("genre", GENRES)
    return {
        "estimator": "DNNLinearCombinedEstimator",
        "head": {"name": "PoissonRegressionHead"},
        "linear": [genre, _identity("slot", 4)],
        "deep": [_embedding(genre, 2), _numeric("price")],
        "options": {"dnn_hidden_units": [3]},
        "optimizers": {},
        "inputs": {
            "genre": _words(*GENRES),
            "slot": _integers(0, 4),
            "price": _numbers(-1, 1),
        },
        "label": {"mean": 1.5},
    }


def _partitioned() -> dict[str, Any]:
    """TensorFlow 1's estimator: its names, partitioned tables, a checkpoint of two shards."""
    occupation = _hashed("occupation", 11)
    return {
        "version": 1,
        "estimator": "DNNLinearCombinedClassifier",
        "partitions": 3,
        "devices": 2,
        "linear": [occupation, _vocabulary("genre", GENRES), _numeric("price")],
        "deep": [_embedding(occupation, 3), _numeric("price")],
        "options": {"dnn_hidden_units": [4, 3]},
        "optimizers": {"linear": FTRL, "dnn": ADAGRAD},
        "inputs": {
            "occupation": _words(*OCCUPATION, bag=(0, 2)),
            "genre": _words(*GENRES),
            "price": _numbers(-1, 1),
        },
        "label": {"classes": 2},
    }


def _crosses() -> dict[str, Any]:
    """A hash key, raw columns that bear a feature's name, a vector in buckets, a cross embedded."""
    genre = _vocabulary("genre", GENRES)
    pair = _bucketized("pair", [-0.5, 0.0, 0.5], shape=2)
    keyed = _crossed("genre", "shop", buckets=11, hash_key=987654321)
    return {
        "estimator": "DNNLinearCombinedClassifier",
        "linear": [
            genre,
            _identity("code", 8),
            pair,
            keyed,
            _crossed(genre, _identity("code", 8), AGE_BUCKETS, buckets=12),
            _crossed(AGE_BUCKETS, "genre", buckets=9),
        ],
        "deep": [_embedding(keyed, 2), _indicator(pair), _indicator(genre)],
        "options": {"dnn_hidden_units": [4], "linear_sparse_combiner": "mean"},
        "optimizers": {"linear": FTRL, "dnn": ADAGRAD},
        "inputs": {
            "genre": _words(*GENRES, "western", bag=(0, 2)),
            "shop": _words("Oslo", "Rome", "Bern", bag=(1, 2)),
            "code": _integers(0, 8),
            "pair": _numbers(-1, 1, shape=2),
            "age": _numbers(17, 80),
        },
        "label": {"classes": 2},
    }


def _multi_label() -> dict[str, Any]:
    """Three labels at once."""
    tags = _vocabulary("tags", TAGS)
    return {
        "estimator": "DNNLinearCombinedEstimator",
        "head": {"name": "MultiLabelHead", "n_classes": 3},
        "linear": [tags, _hashed("occupation", 5)],
        "deep": [_embedding(tags, 2), _numeric("price")],
        "options": {"dnn_hidden_units": [4]},
        "optimizers": {"linear": FTRL, "dnn": ADAGRAD},
        "inputs": {
            "tags": _words(*TAGS, bag=(0, 3)),
            "occupation": _words(*OCCUPATION),
            "price": _numbers(-1, 1),
        },
        "label": {"multi_hot": 3},
    }


def _frozen() -> dict[str, Any]:
    """A table that does not train beside one that does, and leaky units."""
    genre = _vocabulary("genre", GENRES)
    return {
        "estimator": "DNNLinearCombinedRegressor",
        "linear": [genre],
        "deep": [
            _embedding(genre, 2, trainable=False),
            _embedding(_identity("slot", 4), 3, combiner="sum"),
        ],
        "options": {"dnn_hidden_units": [4], "dnn_activation_fn": "leaky_relu"},
        "optimizers": {"linear": FTRL, "dnn": ADAGRAD},
        "inputs": {"genre": _words(*GENRES), "slot": _integers(0, 4, bag=(0, 3))},
        "label": {"dimension": 1},
    }


def _max_norm() -> dict[str, Any]:
    """A table with a largest norm, which TensorFlow applies as rows are looked up."""
    return {
        "estimator": "DNNRegressor",
        "deep": [_embedding(_identity("slot", 4), 3, max_norm=0.6), _numeric("price")],
        "options": {"dnn_hidden_units": [4]},
        "optimizers": {"dnn": ADAGRAD},
        "inputs": {"slot": _integers(0, 4, bag=(0, 3)), "price": _numbers(-1, 1)},
        "label": {"dimension": 1},
    }


def _shared_v1() -> dict[str, Any]:
    """A shared table and batch norm of TensorFlow 1; TensorFlow 2 leaves such a table untrained."""
    viewed, bought = _identity("viewed", 6), _identity("bought", 6)
    return {
        "version": 1,
        "estimator": "DNNClassifier",
        "deep": [
            {**_shared(viewed, bought, dimension=2), "kind": "shared_embedding_columns"},
            _numeric("price"),
        ],
        "options": {"dnn_hidden_units": [4, 3], "batch_norm": True, "n_classes": 3},
        "optimizers": {"dnn": {**ADAGRAD, "initial_accumulator_value": 0.2}},
        "inputs": {
            "viewed": _integers(0, 6, bag=(0, 4)),
            "bought": _integers(0, 6, bag=(0, 2)),
            "price": _numbers(-1, 1),
        },
        "label": {"classes": 3},
    }


def _momentum() -> dict[str, Any]:
    """RMSprop on the linear part, momentum after Nesterov on the deep part.

    Each batch holds every word: TensorFlow's RMSprop moves the state of words that are absent too.
    """
    genre = _vocabulary("genre", GENRES)
    return {
        "estimator": "DNNLinearCombinedClassifier",
        "linear": [genre, _numeric("price")],
        "deep": [_embedding(genre, 2), _numeric("price")],
        "options": {"dnn_hidden_units": [4, 3], "dnn_activation_fn": "selu"},
        "optimizers": {
            "linear": {"name": "RMSprop", "learning_rate": 0.02},
            "dnn": {"name": "SGD", "learning_rate": 0.03, "momentum": 0.9, "nesterov": True},
        },
        "inputs": {"genre": _words(*GENRES, bag=(3, 5)), "price": _numbers(-1, 1)},
        "label": {"classes": 2},
    }


def _linear_v1() -> dict[str, Any]:
    """TensorFlow 1's linear classifier."""
    return {
        "version": 1,
        "estimator": "LinearClassifier",
        "linear": [_vocabulary("genre", GENRES), _numeric("price")],
        "options": {},
        "optimizers": {"linear": {**FTRL, "initial_accumulator_value": 0.2}},
        "inputs": {"genre": _words(*GENRES, bag=(0, 2)), "price": _numbers(-1, 1)},
        "label": {"classes": 2},
    }


MODELS: dict[str, dict[str, Any]] = {
    "census": _census(),
    "shared_weighted": _shared_weighted(),
    "linear_sqrtn": _linear_sqrtn(),
    "linear_regressor": _linear_regressor(),
    "dnn_classifier": _dnn_classifier(),
    "dnn_regressor": _dnn_regressor(),
    "poisson": _poisson(),
    "partitioned": _partitioned(),
    "crosses": _crosses(),
    "multi_label": _multi_label(),
    "frozen": _frozen(),
    "max_norm": _max_norm(),
    "momentum": _momentum(),
    "shared_v1": _shared_v1(),
    "linear_v1": _linear_v1(),
}
