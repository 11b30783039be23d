"""The posterior of a model's last layer: how uncertain its scores of items are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.bundle import Bundle
from widedeep.bundle.layout import BundleHead, BundleModel, WideCombiner
from widedeep.data.batch import Cells
from widedeep.errors import BundleError
from widedeep.features.spec import all_columns, feature_side
from widedeep.schema import Slot

__all__ = ["fit_posterior", "uncertainty_bundles"]

HIDDEN = "hidden"


def fit_posterior(
    bundle: Bundle, rows: object, *, threads: int = 1
) -> dict[str, NDArray[np.float32]]:
    """Return the posterior of the last layer's weights, by Laplace's approximation.

    The last layer sums the wide weights and the last hidden layer's outputs. Its weights have a
    normal posterior whose precision is the prior's plus the sum over rows of p (1 - p) x x' (Bishop
    2006, equation 4.143), with p the score and x the layer's inputs: the labels do not count.
    Hidden units have a full covariance (as in neural linear, Riquelme et al. 2018), wide weights
    a diagonal one (Chapelle and Li 2011, algorithm 3), of features of the item and its crosses:
    what the query alone brings moves no item past another. The prior variance is the mean square
    of the weights that the model learned, per feature; of a value never seen, nothing but it is
    known. Several values count as the model combines them.

    Args:
        bundle: The model. Its first head that gives a number must be binary.
        rows: What :meth:`Bundle.score` reads: what was shown, labelled or not.
        threads: Threads to score with.

    Returns:
        ``wide/<feature>`` (size, 1): the variance of each weight; ``hidden`` (H, H): a matrix L
        with variance |L h|^2 for the hidden outputs h. Each where the model has that part.

    Raises:
        BundleError: If the model has no such head, or neither part.

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
    precision = {name: np.zeros(len(bundle.weights[f"wide/{name}"])) for name in slots}
    hidden_HH = np.zeros((last.model.n_logits,) * 2) if last is not None else np.zeros((0, 0))
    for batch in bundle.batches(rows, threads=threads):
        logits_BC = bundle.logits(batch, threads=threads)
        p_B = head.scores(logits_BC, bundle.calibration.get(head.name))
        weight_B = p_B * (1 - p_B)
        for name, (index, _) in slots.items():
            cells = batch.cells(index)
            inputs_N = _inputs(cells, slots[name][1].wide_combiner(bundle.model.wide_combiner))
            weight_N = np.repeat(weight_B, np.diff(cells.offsets))
            np.add.at(precision[name], cells.ids_N, weight_N * inputs_N**2)
        if last is not None:
            output_BH = last.logits(batch, threads=threads).astype(np.float64)
            hidden_HH += (output_BH * weight_B[:, None]).T @ output_BH
    posterior = {
        f"wide/{name}": _variances(bundle.weights[f"wide/{name}"][:, head.start], q, slots[name][1])
        for name, q in precision.items()
    }
    if last is not None:
        weights_H = bundle.weights["head/weight"][head.start].astype(np.float64)
        prior = np.eye(len(weights_H)) / max(float((weights_H**2).mean()), 1e-12)
        factor_HH = np.linalg.inv(np.linalg.cholesky(prior + hidden_HH))
        posterior[HIDDEN] = factor_HH.astype(np.float32)
    return posterior


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


def _variances(
    weight_N: NDArray[np.float32], precision_N: NDArray[np.float64], slot: Slot
) -> NDArray[np.float32]:
    """Return the posterior variance of each weight of a feature (size, 1)."""
    precision_N = precision_N.copy()
    if slot.is_value:
        precision_N[0] = 0  # out of vocabulary: another value each time
    learned = weight_N[2:][precision_N[2:] > 0].astype(np.float64)
    prior = float((learned**2).mean()) if len(learned) else 0.0
    return (prior / (1 + prior * precision_N)).astype(np.float32)[:, None]


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
