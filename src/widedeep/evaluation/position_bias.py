"""Position bias: how likely each place of a list is looked at, and weights that make up for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from widedeep.bundle import Bundle
from widedeep.data.fragments import Source, column_stream, row_chunks
from widedeep.data.paths import check_output
from widedeep.data.sources import Data, open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError, nearest
from widedeep.evaluation.logged_rankings import (
    PROPENSITY,
    read_numbers,
    read_positions,
    read_propensities,
)
from widedeep.files import atomic_file
from widedeep.kernels.score import sigmoid

__all__ = ["PositionBias", "fit_position_bias", "write_weights"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHUNK_ROWS = 16_384
_MAX_STEPS = 500
_TOLERANCE = 1e-5
_LEAST_POSITIVES = 20
WEIGHT = "weight"


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """How likely each place is looked at, against the first.

    Args:
        examination: A number above 0 per place from 1 on; the first is 1.
        method: ``"given"``, ``"randomised"`` or ``"em"``: see :func:`fit_position_bias`.
        positives: Positive labels at each place; empty if given.

    Raises:
        DataError: If a value is out of its range.

    Example:
        >>> bias = PositionBias(examination=(1.0, 0.5))
        >>> bias.weights([1, 2, 2, 0], [1, 1, 0, 0]).tolist()
        [1.0, 2.0, 1.0, 0.0]
    """

    examination: tuple[float, ...]
    method: str = "given"
    positives: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        values = self.examination
        if not values or values[0] != 1 or not all(0 < value < np.inf for value in values):
            raise DataError(
                f"got the examination {list(values)}, expected numbers above 0 for the places from "
                "1 on, the first of them 1"
            )

    def weights(self, positions_B: ArrayLike, labels_B: ArrayLike) -> Floats:
        """Return inverse propensity weights: 1 / examination for a positive, 1 for the others.

        A positive at a place that few look at stands for those who did not look (Joachims,
        Swaminathan and Schnabel 2017). With weights of 1 for the others the odds that are learned
        are p / (1 - examination x p), p the probability of a positive where everyone looks:
        p / (1 - p) but for a factor of 1 - p to 1.

        Args:
            positions_B: Places from 1; 0: not shown, which gets weight 0.
            labels_B: Labels.

        Raises:
            DataError: For a place beyond those that are known.
        """
        positions = np.asarray(positions_B, np.int64)
        if positions.max(initial=0) > len(self.examination):
            raise DataError(
                f"got position {positions.max()}, but the examination of {len(self.examination)} "
                "places; learn or give that of more"
            )
        of_place = np.array([np.inf, *self.examination])[positions]
        return np.where(positions == 0, 0.0, np.where(np.asarray(labels_B) > 0, 1 / of_place, 1.0))


def fit_position_bias(
    data: Data,
    *,
    label: str,
    position: str = "position",
    propensity: str | None = None,
    bundle: Bundle | None = None,
    threads: int = 1,
) -> PositionBias:
    """Learn how likely each place is looked at.

    A label is taken to be positive if its place is looked at and the item is wanted
    (position-based model, Craswell et al. 2008). With propensities (``"randomised"``) the mean
    label at each place is taken over rows weighted by 1 / propensity, as if every item were shown
    there (Joachims et al. 2017, section 5.1). With a bundle instead (``"em"``) its probabilities
    say how much items are wanted, up to a common shift of their log odds, and expectation
    maximisation does the rest (Wang et al. 2018, *Position Bias Estimation for Unbiased Learning
    to Rank in Personal Search*); it is right if the bundle knows what is wanted from elsewhere, or
    was trained with the position as a feature that is fixed at scoring (``training_only``).

    Args:
        data: A log of rankings; rows with a null position were not shown, and say nothing.
        label: Column of labels, 0 or 1.
        position: Column of places, from 1.
        propensity: Column of propensities; None: ``"propensity"`` if there is no bundle.
        bundle: The model that says how much items are wanted.
        threads: Threads to score with.

    Raises:
        DataError: If a column is absent or out of its range, or a place has fewer than 20 positive
            labels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> place = np.tile([1, 2], 20_000)
        >>> log = pa.table({
        ...     "position": place,
        ...     "propensity": np.full(40_000, 0.5),
        ...     "click": rng.random(40_000) < 0.2 * np.array([0, 1, 0.5])[place],
        ... })
        >>> fit_position_bias(log, label="click").examination[1] > 0.45
        True
    """
    by_chance = bundle is None or propensity is not None
    extra = [propensity or PROPENSITY] if by_chance else []
    positions: list[Ints] = []
    labels: list[Floats] = []
    third: list[Floats] = []  # Propensities, or logits
    columns = [position, label, *extra]
    transform = None if bundle is None or by_chance else Transform(bundle.schema, threads=threads)
    if transform is not None and bundle is not None:
        if bundle.model.heads[0].kind != "binary":
            raise DataError(
                f"{bundle.path}: its first head is {bundle.model.heads[0].kind}, expected binary: "
                "a probability that says how much an item is wanted"
            )
        columns += transform.columns(targets=False)
    for chunk in _shown_chunks(data, list(dict.fromkeys(columns)), position):
        positions.append(_places(chunk[position]))
        labels.append(_labels(chunk[label], label))
        if transform is None:
            third.append(read_propensities(chunk[extra[0]]))
        else:
            assert bundle is not None
            logits_BC = bundle.logits(transform(chunk, targets=False), threads=threads)
            third.append(logits_BC[:, 0].astype(np.float64))
    if not positions:
        raise DataError("no row has a position; there is nothing to learn from")
    place_B, label_B, third_B = (
        np.concatenate(positions),
        np.concatenate(labels),
        np.concatenate(third),
    )
    positives_K = np.bincount(place_B, label_B > 0)[1:].astype(int)
    if positives_K.min() < _LEAST_POSITIVES:
        rarest = int(positives_K.argmin())
        raise DataError(
            f"position {rarest + 1}: got {positives_K[rarest]} positive labels, expected at least "
            f"{_LEAST_POSITIVES} at every place; take a longer log, or leave the last places out"
        )
    learn = _randomised if transform is None else _em
    examination = learn(place_B, label_B, third_B)
    return PositionBias(
        examination=tuple((examination / examination[0]).tolist()),
        method="randomised" if transform is None else "em",
        positives=tuple(positives_K.tolist()),
    )


def _shown_chunks(data: Data, columns: list[str], position: str) -> Iterator[pa.Table]:
    with open_source(data, columns=columns) as source:
        for rows, _, _ in row_chunks(source, _CHUNK_ROWS):
            chunk = rows.filter(rows[position].is_valid())
            if chunk.num_rows:
                yield chunk


def _places(column: pa.ChunkedArray) -> Ints:
    return read_positions(column, shown_B=~np.asarray(column.is_null()))


def _labels(column: pa.ChunkedArray, name: str) -> Floats:
    labels = read_numbers(column, f"label {name!r}")
    if not ((labels >= 0) & (labels <= 1)).all():
        raise DataError(f"label {name!r}: got values that are not from 0 to 1, or null")
    return labels


def _randomised(place_B: Ints, label_B: Floats, propensity_B: Floats) -> Floats:
    """Return the mean label at each place, each item as if it were always shown there."""
    has_propensity_B = ~np.isnan(propensity_B)
    if not has_propensity_B.any():
        raise DataError("no row has a propensity; give a model that says how much items are wanted")
    weight_B = np.where(has_propensity_B, 1 / propensity_B, 0.0)
    total, positive = (np.bincount(place_B, v)[1:] for v in (weight_B, weight_B * label_B))
    if not total.all():
        raise DataError(
            f"position {int((total == 0).argmax()) + 1}: no row has a propensity; give a model, or "
            "leave the places without propensities out"
        )
    return np.asarray(positive / total)


def _em(place_B: Ints, label_B: Floats, logits_B: Floats) -> Floats:
    """Return the probability that each place is looked at, where the first always is."""
    rows_K = np.bincount(place_B)[1:]
    theta_K, shift = np.full(len(rows_K), 0.5), 0.0
    for _ in range(_MAX_STEPS):
        wanted_B, seen_B = sigmoid(logits_B + shift), theta_K[place_B - 1]
        not_both = (1 - label_B) / np.maximum(1 - seen_B * wanted_B, 1e-12)
        # Expected, given the label: that the place was looked at; that the item was wanted.
        looked_B = label_B + not_both * seen_B * (1 - wanted_B)
        liked_B = label_B + not_both * wanted_B * (1 - seen_B)
        before = theta_K
        theta_K = np.bincount(place_B, looked_B)[1:] / rows_K
        # One step of Newton's method; the first place is looked at, which sets the scale.
        shift += float((liked_B - wanted_B).sum() / (wanted_B * (1 - wanted_B)).sum())
        theta_K = np.minimum(theta_K / theta_K[0], 1 / max(float(wanted_B.max()), 1e-12))
        if np.abs(theta_K - before).max() < _TOLERANCE:
            break
    return theta_K


def write_weights(
    data: Data, bias: PositionBias, path: str | os.PathLike[str], *, label: str, position: str
) -> int:
    """Write rows with a column ``weight`` that makes up for their position, as Parquet.

    Candidates that were not shown (a null position) get weight 0. A column ``weight`` that is there
    is multiplied.

    Args:
        data: The log.
        bias: How likely each place is looked at.
        path: The file.
        label: Column of labels.
        position: Column of places.

    Returns:
        The number of rows.

    Raises:
        DataError: If a column is absent, a place is beyond those that are known, or the file is
            one of the log's.
    """
    rows = 0
    check_output(os.fspath(path), data)
    with open_source(data) as source, atomic_file(Path(path)) as temporary:
        writer: Any = None
        for table in _with_weights(source, bias, label, position):
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            rows += table.num_rows
        if writer is None:
            raise DataError("got no rows to weigh; give a log of rankings")
        writer.close()
    return rows


def _with_weights(
    source: Source, bias: PositionBias, label: str, position: str
) -> Iterator[pa.Table]:
    for table in column_stream(source):
        table = table.replace_schema_metadata(None)
        for name in (label, position):
            if name not in table.column_names:
                raise DataError(f"the log: no column {name!r}; {nearest(name, table.column_names)}")
        label_B = np.nan_to_num(read_numbers(table[label], f"label {label!r}"))
        weight_B = bias.weights(_places(table[position]), label_B)
        if WEIGHT in table.column_names:
            place = table.column_names.index(WEIGHT)
            given_B = read_numbers(table[WEIGHT], f"column {WEIGHT!r}")
            if not (given_B >= 0).all():
                raise DataError(
                    f"column {WEIGHT!r}: got a value below 0 or null, expected a weight of 0 or "
                    "more; correct it, or rename the column"
                )
            weight_B = weight_B * given_B
            yield table.set_column(place, WEIGHT, pa.array(weight_B))
        else:
            yield table.append_column(WEIGHT, pa.array(weight_B))
