"""Gain on held rows of what a wide part could learn: of a column's cells, and of each pair's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

# Hessian units: the weight of a cell has a prior standard deviation of about .3.
_SHRINKAGE = 10.0
_BASE_SHRINKAGE = 1.0
_BASE_PASSES = 4
# Cells beyond this many share by a hash: most hold one row then, and one row teaches nothing.
_MOST_CELLS = 1 << 18
_LARGEST_LOGIT = 30.0


@dataclass(frozen=True)
class Cells:
    """The cell that each row falls into."""

    codes_B: Codes  # 0 <= code < ``size``; 0 holds nulls
    size: int  # Number of cells


@dataclass(frozen=True)
class Gain:
    """What cells add to the fit of rows that they were not learned from."""

    # Log likelihood (or half the squared error, in variances of the label) of all rows
    total: float
    z: float  # The mean gain of a row in standard errors


@dataclass(frozen=True)
class Targets:
    """A label as numbers."""

    values_BC: Floats  # One column for a binary label or a number, one for each class otherwise
    loss: Literal["log", "squared"]  # Squared error for numbers, else log loss


def value_cells(column: pa.ChunkedArray) -> Cells:
    """Return a cell for each value of a column, in the order of their first rows."""
    encoded = column.combine_chunks().dictionary_encode()
    codes_B = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return Cells(codes_B, len(encoded.dictionary) + 1)


def bin_cells(values_B: Floats, bins: int) -> Cells:
    """Return a cell for each value while they are few, else quantile bins."""
    seen = values_B[~np.isnan(values_B)]
    cuts = np.unique(seen)
    if len(cuts) > bins:
        cuts = np.unique(np.quantile(seen, np.arange(bins) / bins, method="higher"))
    codes_B = np.searchsorted(cuts, values_B, side="right").astype(np.int64)
    codes_B[np.isnan(values_B)] = 0
    return Cells(codes_B, len(cuts) + 1)


def pair_cells(one: Cells, other: Cells) -> Cells:
    """Return a cell for each pair of cells; very many share some by a hash."""
    size = one.size * other.size
    codes_B = one.codes_B * other.size + other.codes_B
    if size <= _MOST_CELLS:
        return Cells(codes_B, size)
    # Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
    mixed = (codes_B.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - 18)
    return Cells(mixed.astype(np.int64), _MOST_CELLS)


class HeldOutGains:
    """Measures gains by one Newton step for each cell, learned on one half, held to the other."""

    def __init__(self, targets: Targets, seed: int = 0) -> None:
        n, classes = targets.values_BC.shape
        order = np.random.Generator(np.random.Philox(seed)).permutation(n)
        self._half_B: Codes = (order % 2).astype(np.int64)
        self._targets = targets
        # (2, B, C): row b as seen by the model that learned from half 0, and from half 1
        self._scores_HBC = np.zeros((2, n, classes))
        for half in (0, 1):
            mean_C = targets.values_BC[self._half_B == half].mean(axis=0)
            if targets.loss == "log":
                mean_C = mean_C.clip(1e-6, 1 - 1e-6)
                mean_C = np.log(mean_C / (1 - mean_C))
            self._scores_HBC[half] = mean_C
        self._update()

    def _update(self) -> None:
        """Derive gradients and second derivatives of the rows learned from, and those held out."""
        rows = np.arange(len(self._half_B))
        self._learned_BC = self._derivatives(self._scores_HBC[self._half_B, rows])
        self._held_BC = self._derivatives(self._scores_HBC[1 - self._half_B, rows])

    def _derivatives(self, scores_BC: Floats) -> tuple[Floats, Floats]:
        if self._targets.loss == "squared":
            return scores_BC - self._targets.values_BC, np.ones_like(scores_BC)
        p_BC = 1 / (1 + np.exp(-scores_BC.clip(-_LARGEST_LOGIT, _LARGEST_LOGIT)))
        return p_BC - self._targets.values_BC, p_BC * (1 - p_BC)

    @property
    def loss(self) -> float:
        """Log loss of the held rows, or half their squared error, summed."""
        rows = np.arange(len(self._half_B))
        scores_BC = self._scores_HBC[1 - self._half_B, rows]
        values_BC = self._targets.values_BC
        if self._targets.loss == "squared":
            return float(0.5 * ((scores_BC - values_BC) ** 2).sum())
        return float((np.logaddexp(0, scores_BC) - values_BC * scores_BC).sum())

    def _steps(
        self, cells: Cells, shrinkage: float = _SHRINKAGE, weights_HNC: Floats | float = 0.0
    ) -> Floats:
        """Return the step of each cell, (2, cells, C), learned on each half."""
        codes_B = cells.codes_B + self._half_B * cells.size
        gradients_BC, seconds_BC = self._learned_BC
        steps = np.empty((2, cells.size, gradients_BC.shape[1]))
        curves = np.empty_like(steps)
        for c in range(gradients_BC.shape[1]):
            sums = np.bincount(codes_B, gradients_BC[:, c], 2 * cells.size)
            seconds = np.bincount(codes_B, seconds_BC[:, c], 2 * cells.size)
            steps[:, :, c] = (-sums).reshape(2, -1)
            curves[:, :, c] = seconds.reshape(2, -1)
        stepped: Floats = (steps - shrinkage * weights_HNC) / (curves + shrinkage)
        return stepped

    def row_gains(self, cells: Cells) -> Floats:
        """Return the gain of each row from steps that the other half taught, (B,)."""
        steps_BC = self._steps(cells)[1 - self._half_B, cells.codes_B]
        gradients_BC, seconds_BC = self._held_BC
        gains_BC = -steps_BC * (gradients_BC + 0.5 * seconds_BC * steps_BC)
        gains_B: Floats = gains_BC.sum(axis=1)
        return gains_B

    def gain(self, cells: Cells) -> Gain:
        """Return the gain of cells, beside what was learned before."""
        return as_gain(self.row_gains(cells))

    def scores(self, cells: Cells) -> Floats:
        """Return what the cells alone say of each row held out, (B, C)."""
        scores_BC: Floats = self._steps(cells)[1 - self._half_B, cells.codes_B]
        return scores_BC

    def learn(self, columns: Iterable[Cells]) -> None:
        """Learn columns, so that later gains are beside them."""
        for cells in columns:
            self._scores_HBC += self._steps(cells)[:, cells.codes_B]
            self._update()

    def learn_all(self, columns: Sequence[Cells]) -> None:
        """Learn columns together: pass by pass, each beside the others."""
        weights: list[Floats | float] = [0.0 for _ in columns]
        for _ in range(_BASE_PASSES):
            for number, cells in enumerate(columns):
                steps = self._steps(cells, _BASE_SHRINKAGE, weights[number])
                weights[number] = weights[number] + steps
                self._scores_HBC += steps[:, cells.codes_B]
                self._update()


def as_gain(gains_B: Floats) -> Gain:
    """Sum the gains of rows."""
    spread = float(np.sqrt((gains_B**2).sum()))
    total = float(gains_B.sum())
    return Gain(total, total / spread if spread else 0.0)
