"""The posterior of a model's last layer: how uncertain its scores of items are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.bundle import Bundle
from widedeep.bundle.layout import BundleHead, BundleModel, WideCombiner
from widedeep.data.batch import Batch, Cells
from widedeep.errors import BundleError
from widedeep.features.spec import all_columns, feature_side
from widedeep.schema import Slot

__all__ = ["fit_posterior", "uncertainty_bundles"]

HIDDEN = "hidden"
_VARIANCE_BEFORE = 1.0  # of the logit of an item of which nothing is known
_DEVIATIONS_G = np.linspace(0, 4, 101)  # that a feature's effects may have, in logits


def fit_posterior(
    bundle: Bundle, rows: object, *, threads: int = 1
) -> dict[str, NDArray[np.float32]]:
    """Return the posterior of the last layer's weights, by Laplace's approximation.

    The last layer sums the wide weights and the last hidden layer's outputs. Its weights have a
    normal posterior whose precision is the prior's plus the sum over rows of p (1 - p) x x' (Bishop
    2006, equation 4.143), with p the score and x the layer's inputs. Hidden units have a full
    covariance (as in neural linear, Riquelme et al. 2018) and as prior variance the mean square of
    their weights. Wide weights have a diagonal one (Chapelle and Li 2011, algorithm 3), of
    features of the item and its crosses: what the query alone brings moves no item past another.

    Their prior variance, which is that of a value never seen, is how much the values of a feature
    differ in what they add to the logit beyond an unknown one, in the wide and the deep part. Each
    seen value tells it with an error: the model's own effect and one step of Newton's method to
    the labels, whose variance is one over the precision of the rows. The prior variance is its
    mean given all of these (empirical Bayes, Gelman 2006); before any row, the features together
    give an item's logit a variance of 1. Several values count as the model combines them.

    Args:
        bundle: The model. Its first head that gives a number must be binary.
        rows: What was shown, with labels and columns as in training.
        threads: Threads to score with.

    Returns:
        ``wide/<feature>`` (size, 1): the variance of each weight; ``hidden`` (H, H): a matrix L
        with variance |L h|^2 for the hidden outputs h. Each where the model has that part.

    Raises:
        BundleError: If the model has no such head, neither part, or no label.
        DataError: If the rows lack a column of training, such as the label.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="y", features=wd.categorical("app"), item=["app"])
        >>> rows = [{"app": "ab"[n % 2], "y": n % 3 == 0} for n in range(90)]
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4]))
        >>> _ = trainer.fit(rows)
        >>> posterior = fit_posterior(trainer.export("posterior"), rows)
        >>> posterior["wide/app"].shape, posterior["hidden"].shape
        ((4, 1), (4, 4))
    """
    head, slots = ranked_head(bundle.model), _item_slots(bundle)
    last = _last_hidden(bundle)
    if not slots and last is None:
        raise BundleError(
            f"{bundle.path}: got a model with no wide feature of the item and no standard tower, "
            "which has no last layer to be uncertain of; leave the posterior out"
        )
    if not bundle.schema.spec.labels:
        raise BundleError(f"{bundle.path}: its schema has no label, which the posterior reads")
    effects = {name: _Effects(bundle, head, index, slot) for name, (index, slot) in slots.items()}
    hidden_HH = np.zeros((last.model.n_logits,) * 2) if last is not None else np.zeros((0, 0))
    for batch in bundle.batches(rows, threads=threads, targets=True):
        logits_BC = bundle.logits(batch, threads=threads)
        p_B = head.scores(logits_BC, bundle.calibration.get(head.name))
        label_B, weight_B = head.targets(bundle.schema, batch)
        example_B = ~np.isnan(label_B) * (1.0 if weight_B is None else weight_B)
        error_B = example_B * (np.nan_to_num(label_B) - p_B)
        information_B = example_B * p_B * (1 - p_B)
        for each in effects.values():
            each.add(batch, logits_BC[:, head.start], error_B, information_B, threads)
        if last is not None:
            output_BH = last.logits(batch, threads=threads).astype(np.float64)
            hidden_HH += (output_BH * information_B[:, None]).T @ output_BH
    posterior = {
        f"wide/{name}": each.variances(_VARIANCE_BEFORE / len(effects))
        for name, each in effects.items()
    }
    if last is not None:
        weights_H = bundle.weights["head/weight"][head.start].astype(np.float64)
        prior = np.eye(len(weights_H)) / max(float((weights_H**2).mean()), 1e-12)
        factor_HH = np.linalg.inv(np.linalg.cholesky(prior + hidden_HH))
        posterior[HIDDEN] = factor_HH.astype(np.float32)
    return posterior


class _Effects:
    """What the values of a feature add to the logit beyond an unknown one."""

    def __init__(self, bundle: Bundle, head: BundleHead, index: int, slot: Slot) -> None:
        self._bundle, self._head, self._index, self._slot = bundle, head, index, slot
        self._wide_N = bundle.weights[f"wide/{slot.name}"][:, head.start].astype(np.float64)
        self._is_deep = any(column.name == slot.name for column in bundle.model.deep)
        # Of each weight: the sum of x^2 p (1 - p), of x (label - p), and of the deep part's share
        self._precision_N, self._score_N, self._deep_N = np.zeros((3, len(self._wide_N)))
        self._rows, self._squares = 0, 0.0

    def add(
        self,
        batch: Batch,
        logit_B: NDArray[np.float32],
        error_B: NDArray[np.float64],
        information_B: NDArray[np.float64],
        threads: int,
    ) -> None:
        """Add the rows of a batch."""
        cells, size = batch.cells(self._index), len(self._wide_N)
        row_N = np.repeat(np.arange(len(batch)), np.diff(cells.offsets))
        inputs_N = _inputs(cells, self._slot.wide_combiner(self._bundle.model.wide_combiner))
        precision_N = information_B[row_N] * inputs_N**2
        self._rows += len(batch)
        self._squares += float((inputs_N**2).sum())
        self._precision_N += np.bincount(cells.ids_N, precision_N, size)
        self._score_N += np.bincount(cells.ids_N, error_B[row_N] * inputs_N, size)
        if self._is_deep:
            unknown_B = self._bundle.logits(_unknown(batch, self._index), threads=threads)
            deep_B = logit_B.astype(np.float64) - unknown_B[:, self._head.start]
            own_N = inputs_N * (self._wide_N[cells.ids_N] - self._wide_N[0])
            deep_B -= np.bincount(row_N, own_N, len(batch))
            self._deep_N += np.bincount(cells.ids_N, precision_N * deep_B[row_N], size)

    def variances(self, expected: float) -> NDArray[np.float32]:
        """Return the posterior variance of each weight (size, 1).

        ``expected`` is the feature's part of a logit's variance before any row.
        """
        precision_N = self._precision_N.copy()
        if self._slot.is_value:
            precision_N[0] = 0  # out of vocabulary: another value each time
        seen_N = np.flatnonzero(precision_N[2:] > 0) + 2
        precision = precision_N[seen_N]
        effect = self._wide_N[seen_N] - (self._wide_N[0] if self._slot.is_value else 0.0)
        effect += (self._deep_N[seen_N] + self._score_N[seen_N]) / precision
        per_weight = expected * self._rows / max(self._squares, 1.0)
        prior = _spread(effect, 1 / precision, per_weight)
        return (prior / (1 + prior * precision_N)).astype(np.float32)[:, None]


def _unknown(batch: Batch, index: int) -> Batch:
    """Return a batch with values of a feature that no vocabulary holds."""
    slot_N = np.repeat(np.arange(len(batch.offsets_BF) - 1), np.diff(batch.offsets_BF))
    return replace(batch, ids_N=np.where(slot_N % batch.n_slots == index, 0, batch.ids_N))


def _spread(effect_N: NDArray[np.float64], error_N: NDArray[np.float64], expected: float) -> float:
    """Return the variance of effects, of mean 0, that are known up to errors of a variance each.

    Its mean given them; their standard deviation is half-normal before, with the mean square
    ``expected``.
    """
    log_G = -(_DEVIATIONS_G**2) / (2 * expected)
    for index, variance in enumerate((_DEVIATIONS_G**2).tolist()):
        total_N = variance + error_N
        log_G[index] -= float((np.log(total_N) + effect_N**2 / total_N).sum()) / 2
    weight_G = np.exp(log_G - log_G.max())
    return float(weight_G @ _DEVIATIONS_G**2 / weight_G.sum())


def _inputs(cells: Cells, combiner: str) -> NDArray[np.float64]:
    """Return by what each id's weight is multiplied in its row's sum."""
    lengths_B = np.diff(cells.offsets)
    ones_N = np.ones(len(cells.ids_N))
    values_N = ones_N if cells.values_N is None else cells.values_N.astype(np.float64)
    if combiner == "sum":
        return values_N
    row_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
    power = 2 if combiner == "sqrtn" else 1
    total_B = np.bincount(row_N, values_N**power, len(lengths_B)) ** (1 / power)
    return _ratio(values_N, total_B[row_N])


def ranked_head(model: BundleModel) -> BundleHead:
    """Return the head that is ranked by, if its logits have a posterior."""
    head = next((head for head in model.heads if not head.by_class), None)
    if head is None or head.kind != "binary" or head.through is not None:
        kind = "none" if head is None else f"{head.name!r}, {head.kind}"
        raise BundleError(
            f"the posterior of the last layer: got {kind} as the head that is ranked by, expected "
            "a binary one, not given through another"
        )
    return head


def _item_slots(bundle: Bundle) -> dict[str, tuple[int, Slot]]:
    """Return the wide features that tell items apart, with index and slot."""
    schema, wide = bundle.schema, bundle.model.wide
    return {
        slot.name: (index, slot)
        for index, slot in enumerate(schema.slots)
        if slot.name in wide
        and slot.name not in schema.spec.training_only
        and feature_side(schema.spec, slot.name) != "query"
    }


def _last_hidden(bundle: Bundle) -> Bundle | None:
    """Return a bundle whose logits are the outputs of the last hidden layer."""
    if bundle.manifest.engine != "native" or not bundle.model.hidden_units:
        return None
    return _linear_of_hidden(bundle, np.eye(bundle.model.hidden_units[-1], dtype=np.float32))


def _linear_of_hidden(bundle: Bundle, weight_HH: NDArray[np.float32]) -> Bundle:
    model = replace(bundle.model, heads=_numbers(len(weight_HH)), wide=(), rank_by=None)
    bias = np.zeros(len(weight_HH), np.float32)
    return bundle.derive(model, {**bundle.weights, "bias": bias, "head/weight": weight_HH})


def _numbers(n: int) -> tuple[BundleHead, ...]:
    return tuple(BundleHead(name=f"{i}", kind="regression", start=i, stop=i + 1) for i in range(n))


@dataclass(frozen=True, slots=True)
class WideUncertainty:
    """A bundle whose logits tell how uncertain the wide part is, and how to read them.

    Its features are pooled as ``sqrtn`` unless the model sums them: of n values with variances v
    that is a = sum(v) / sqrt(n), and sqrt(n) of a weight of 1. The variance of the mean is then
    a / sqrt(n)**3, that of ``sqrtn`` a / sqrt(n). Standard deviations s of values with weights x
    of their own give a = sum(x s) / |x|, and a weight of 1 gives sum(x) / |x|.
    """

    bundle: Bundle
    combiner: WideCombiner
    pooled: int  # Columns 1, 2, ...: a of features of several values
    weighted: int  # Columns behind them: a of features with weights, then of numbers
    numbers: int

    def deviations(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the variance, and a signed standard deviation per weighted feature (B, 1 + W)."""
        sums: NDArray[np.float64] = logits.astype(np.float64)
        several = self.pooled + self.weighted
        end = 1 + several + self.numbers
        a_BP, a_BW = sums[:, 1 : 1 + self.pooled], sums[:, 1 + self.pooled : 1 + several]
        one_BP, one_BW = sums[:, end : end + self.pooled], sums[:, end + self.pooled :]
        variance_B = sums[:, 0]
        if self.pooled:
            power = 3 if self.combiner == "mean" else 1
            variance_B = variance_B + _ratio(a_BP, one_BP**power).sum(axis=1)
        if self.combiner == "mean":
            a_BW = _ratio(a_BW, one_BW)
        return np.concatenate([variance_B[:, None], a_BW, sums[:, 1 + several : end]], axis=1)


def _ratio(a: NDArray[np.float64], b: NDArray[Any]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.divide(a, b, out=np.zeros_like(a), where=b != 0)
    return result  # 0 without a value


def uncertainty_bundles(bundle: Bundle) -> tuple[WideUncertainty | None, Bundle | None]:
    """Return what scores uncertainty, from the posterior that a bundle holds.

    The first gives a variance from wide weights that count once, and for each feature whose ids
    have weights of their own, or that is a number, a standard deviation, with its sign (values of
    one row are then taken to err alike); the logits of the second are the vector L h (B, H). The
    squared length of all but the first is a variance too, and their product with standard normal
    numbers is a draw. None where the posterior lacks that part.
    """
    posterior: Mapping[str, NDArray[Any]] = bundle.posterior
    names = [name.removeprefix("wide/") for name in posterior if name != HIDDEN]
    for name in names:
        expected, got = len(bundle.weights[f"wide/{name}"]), posterior[f"wide/{name}"].shape
        if got != (expected, 1):
            raise BundleError(
                f"{bundle.path}: the posterior of {name!r} has shape {got}, expected "
                f"{(expected, 1)}; export again"
            )
    wide = _wide_uncertainty(bundle, names) if names else None
    hidden = _linear_of_hidden(bundle, posterior[HIDDEN]) if HIDDEN in posterior else None
    return wide, hidden


def _has_several_ids(bundle: Bundle, name: str) -> bool:
    schema = bundle.schema
    nested = any(schema.columns[column].nested for column in all_columns(schema.spec, name))
    return nested or schema.spec.by_name[name].is_composed


def _wide_uncertainty(bundle: Bundle, names: Sequence[str]) -> WideUncertainty:
    combiner, features = bundle.model.wide_combiner, bundle.schema.spec.by_name
    numbers = [slot.name for slot in bundle.schema.slots if slot.is_number and slot.name in names]
    weighted = [n for n in names if n not in numbers and features[n].weight_column is not None]
    pooled = [
        name
        for name in names
        if combiner != "sum"
        and name not in (*numbers, *weighted)
        and _has_several_ids(bundle, name)
    ]
    several = [*pooled, *weighted]
    columns = {name: 1 + index for index, name in enumerate([*several, *numbers])}
    width = 1 + len(columns) + (len(several) if combiner != "sum" else 0)
    weights: dict[str, NDArray[Any]] = {"bias": np.zeros(width, np.float32)}
    for name in names:
        variance_N = bundle.posterior[f"wide/{name}"][:, 0]
        values_NW = np.zeros((len(variance_N), width), np.float32)
        deviates = name in weighted or name in numbers
        values_NW[:, columns.get(name, 0)] = np.sqrt(variance_N) if deviates else variance_N
        if name in several and combiner != "sum":
            values_NW[:, 1 + len(columns) + several.index(name)] = 1.0
        weights[f"wide/{name}"] = values_NW
    model = BundleModel(
        heads=_numbers(width),
        wide=tuple(names),
        wide_combiner="sum" if combiner == "sum" else "sqrtn",
    )
    return WideUncertainty(
        bundle.derive(model, weights), combiner, len(pooled), len(weighted), len(numbers)
    )
