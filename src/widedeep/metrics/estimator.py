"""Metrics by the names that ``tf.estimator`` gives them."""

from __future__ import annotations

from collections.abc import Mapping

# The mean of the losses comes first: of a head, the first that it has counts.
_LOSSES = ("loss", "log_loss", "mse")
_NAMES = {
    "pr_auc": "auc_precision_recall",
    "label_mean": "label/mean",
    "prediction_mean": "prediction/mean",
}
_SAME = ("accuracy", "accuracy_baseline", "auc", "precision", "recall")


def estimator_metrics(
    metrics: Mapping[str, float], heads: tuple[str, ...] = ("",)
) -> dict[str, float]:
    """Return metrics of a model as ``Estimator.evaluate`` names them.

    ``auc`` is exact and ``auc_precision_recall`` the average precision, where TensorFlow
    interpolates between 200 thresholds; ``loss`` is the mean over examples, ``average_loss``, and
    not over batches.

    Args:
        metrics: As :meth:`widedeep.Trainer.evaluate` names them.
        heads: Names of the model's heads; of several, theirs come behind a slash.

    Example:
        >>> estimator_metrics({"log_loss": 0.25, "auc": 0.75, "label_mean": 0.5})
        {'auc': 0.75, 'label/mean': 0.5, 'average_loss': 0.25, 'loss': 0.25}
    """
    several = len(heads) > 1
    names = dict.fromkeys(_SAME) | _NAMES
    named: dict[str, float] = {}
    for head in heads:
        prefix, suffix = (f"{head}/", f"/{head}") if several else ("", "")
        for name, estimator_name in names.items():
            if prefix + name in metrics:
                named[(estimator_name or name) + suffix] = metrics[prefix + name]
        losses = [metrics[prefix + name] for name in _LOSSES if prefix + name in metrics]
        for name in ("average_loss", "loss") if losses else ():
            named[name + suffix] = losses[0]
    if several and "loss" in metrics:
        named["loss"] = metrics["loss"]
    return named
