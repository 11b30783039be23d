"""A head's predictions by the names that ``tf.estimator`` gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.layout import BundleHead
from widedeep.errors import ConfigError, nearest

Predictions: TypeAlias = dict[str, NDArray[Any]]

_CLASSES = ("class_ids", "classes", "all_class_ids", "all_classes")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "binary": ("logits", "logistic", "probabilities", *_CLASSES),
    "multiclass": ("logits", "probabilities", *_CLASSES),
    "multilabel": ("logits", "probabilities"),
}


def prediction_keys(head: BundleHead) -> tuple[str, ...]:
    """Return the names of a head's predictions.

    Example:
        >>> prediction_keys(BundleHead(name="", kind="regression", start=0, stop=1))
        ('predictions',)
    """
    own = () if head.link == "identity" else ("logits",)
    return _KEYS.get(head.kind, ("predictions", *own))


def class_names(head: BundleHead) -> tuple[str, ...]:
    """Return the names of a classifier's classes, numbers where they have none."""
    count = 2 if head.kind == "binary" else head.stop - head.start
    return head.classes or tuple(map(str, range(count)))


def head_predictions(
    head: BundleHead, logits_BC: NDArray[np.float32], scores: NDArray[np.float64]
) -> Predictions:
    """Return a head's predictions by name.

    Args:
        head: The head.
        logits_BC: Logits of all heads.
        scores: The head's scores, (B,) or (B, classes).

    Example:
        >>> head = BundleHead(name="", kind="binary", start=0, stop=1, classes=("no", "yes"))
        >>> logits = np.array([[2.0]], np.float32)
        >>> predictions = head_predictions(head, logits, head.scores(logits))
        >>> predictions["probabilities"].round(3).tolist(), predictions["classes"].tolist()
        ([[0.119, 0.881]], [['yes']])
    """
    columns_BC = scores[:, None] if scores.ndim == 1 else scores
    logits = logits_BC[:, head.start : head.stop]
    if head.kind not in _KEYS:
        return {"predictions": columns_BC, "logits": logits}
    if head.kind == "multilabel":
        return {"logits": logits, "probabilities": columns_BC}
    probabilities = columns_BC
    if head.kind == "binary":
        probabilities = np.concatenate([1.0 - columns_BC, columns_BC], axis=1)
    names = np.array(class_names(head), dtype=object)
    ids = probabilities.argmax(axis=1)[:, None]
    all_ids = np.broadcast_to(np.arange(len(names)), probabilities.shape)
    return {
        "logits": logits,
        "logistic": columns_BC,
        "probabilities": probabilities,
        "class_ids": ids,
        "classes": names[ids],
        "all_class_ids": all_ids,
        "all_classes": names[all_ids],
    }


def named_predictions(
    heads: Sequence[BundleHead],
    logits_BC: NDArray[np.float32],
    scores: Mapping[str, NDArray[np.float64]],
    keys: Iterable[str] | None = None,
) -> Predictions:
    """Return the predictions of all heads, prefixed ``head/`` where there are several.

    Args:
        heads: The model's heads.
        logits_BC: Their logits.
        scores: Scores by head.
        keys: Names of the predictions wanted; None: all.

    Raises:
        ConfigError: If the model has no prediction of such a name.
    """
    prefixes = [f"{head.name}/" if len(heads) > 1 else "" for head in heads]
    names = [
        prefix + key
        for prefix, head in zip(prefixes, heads, strict=True)
        for key in prediction_keys(head)
    ]
    selected = names if keys is None else [keys] if isinstance(keys, str) else list(keys)
    for key in selected:
        if key not in names:
            raise ConfigError(f"keys: got {key!r}; {nearest(key, names)}")
    values = {
        prefix + key: value
        for prefix, head in zip(prefixes, heads, strict=True)
        for key, value in head_predictions(head, logits_BC, scores[head.name]).items()
    }
    return {key: values[key] for key in selected}
