"""Metrics of the order within each group (a user, a request): GAUC, NDCG, MAP, hit rate, MRR."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from widedeep.metrics.rows import Rows
from widedeep.metrics.sums import CompensatedSum, Numbers
from widedeep.metrics.ties import changes, tie_runs

LARGEST_K = 1_000_000
GROUP_COUNTS = ("groups", "groups_one_class", "groups_without_positive")
RELEVANT_FROM = 0.5

_SUMMED = ("rows", "relevant", "positive", "negative")
_RUN = np.dtype([("group", np.int64), ("key", np.float64), *((n, np.float64) for n in _SUMMED)])
# Expected ranks within a long run of ties are worked out in pieces of this many places.
_PIECE = 65_536

Floats = NDArray[np.float64]


def ranking_numbers(blocks: Iterable[Rows], cuts: tuple[int, ...]) -> Numbers:
    """Compute the grouped metrics in one pass over rows sorted by (group, key)."""
    ranking = _Ranking(cuts)
    for runs in tie_runs(blocks, _as_runs, ("group", "key")):
        ranking.add(runs)
    return ranking.numbers()


def _as_runs(rows: Rows) -> Rows:
    runs: Rows = np.empty(len(rows), dtype=_RUN)
    runs["group"] = rows["group"]
    runs["key"] = rows["key"]
    runs["rows"] = 1.0
    runs["relevant"] = rows["label"] >= RELEVANT_FROM
    runs["positive"] = rows["weight"] * rows["label"]
    runs["negative"] = rows["weight"] * (1.0 - rows["label"])
    return runs


class _Ranking:
    """Sums over groups. The last group of a block stays open: the next block may go on with it."""

    def __init__(self, cuts: tuple[int, ...]) -> None:
        self._cuts = cuts
        places = np.arange(1, max(cuts, default=1) + 1)
        self._discounts = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(places + 1.0))])
        self._harmonics = np.concatenate([[0.0], np.cumsum(1.0 / places)])
        self._open_group = 0
        self._open: Floats | None = None
        self._sums = CompensatedSum(7 + 3 * len(cuts))

    def add(self, runs: Rows) -> None:
        groups = runs["group"]
        starts = changes(groups)
        goes_on = self._open is not None and groups[0] == self._open_group
        if self._open is not None and not goes_on:
            self._close(self._open[:, None])
        known = self._open if goes_on and self._open is not None else None
        terms = self._terms(runs, starts, known)
        per_group = np.add.reduceat(terms, starts, axis=1)
        if known is not None:
            per_group[:, 0] += known
        self._close(per_group[:, :-1])
        self._open, self._open_group = per_group[:, -1].copy(), int(groups[-1])

    def _terms(self, runs: Rows, starts: NDArray[np.intp], known: Floats | None) -> Floats:
        """Return what each run of ties adds to its group, one column a run."""
        rows, relevant, positive, negative = (runs[name].copy() for name in _SUMMED)
        carried = np.zeros(len(_SUMMED)) if known is None else known
        above = sum_above(rows, starts, carried[0])
        relevant_above = sum_above(relevant, starts, carried[1])
        positive_above = sum_above(positive, starts, carried[2])
        wins = negative * (positive_above + 0.5 * positive)
        first = np.flatnonzero((relevant_above == 0) & (relevant > 0))
        reciprocal = np.zeros(len(rows))
        hits = np.zeros((len(self._cuts), len(rows)))
        reciprocal[first], hits[:, first] = expected_first(
            above[first], rows[first], relevant[first], self._cuts
        )
        terms = [rows, relevant, positive, negative, wins, reciprocal]
        for place, k in enumerate(self._cuts):
            terms += [
                self._gain(above, rows, relevant, k),
                self._precision(above, rows, relevant, relevant_above, k),
                hits[place],
            ]
        return np.stack(terms)

    def _gain(self, above: Floats, rows: Floats, relevant: Floats, k: int) -> Floats:
        """Expected DCG@k: every place of a run has the same chance of a relevant row."""
        start, stop = _places(above, rows, k)
        expected: Floats = relevant / rows * (self._discounts[stop] - self._discounts[start])
        return expected

    def _precision(
        self, above: Floats, rows: Floats, relevant: Floats, relevant_above: Floats, k: int
    ) -> Floats:
        """Expected sum of the precisions at the relevant rows among the first k."""
        start, stop = _places(above, rows, k)
        slope = np.where(rows > 1, (relevant - 1.0) / np.maximum(rows - 1.0, 1.0), 0.0)
        level = relevant_above + 1.0 - (start + 1.0) * slope
        harmonic = self._harmonics[stop] - self._harmonics[start]
        expected: Floats = relevant / rows * (level * harmonic + slope * (stop - start))
        return expected

    def _close(self, done: Floats) -> None:
        """Add finished groups, one a column, to the sums."""
        if not done.shape[1]:
            return
        rows, relevant, positive, negative, wins, reciprocal = done[:6]
        impressions = positive + negative
        both = (positive > 0) & (negative > 0)
        pairs = np.where(both, positive * negative, 1.0)
        some = relevant > 0
        weight = np.where(some, impressions / rows, 0.0)
        sums = [
            float(done.shape[1]),
            float(np.sum(~both)),
            float(np.sum(~some)),
            float(np.sum(impressions * both)),
            float(np.sum(impressions * both * wins / pairs)),
            float(np.sum(weight)),
            float(np.sum(weight * reciprocal)),
        ]
        for place, k in enumerate(self._cuts):
            gain, precision, hit = done[6 + 3 * place : 9 + 3 * place]
            best = np.where(some, np.minimum(relevant, k), 1.0).astype(np.int64)
            sums += [
                float(np.sum(weight * gain / self._discounts[best])),
                float(np.sum(weight * precision / best)),
                float(np.sum(weight * hit)),
            ]
        self._sums.add(np.array(sums))

    def numbers(self) -> Numbers:
        """Close the last group and return the means over groups."""
        if self._open is not None:
            self._close(self._open[:, None])
            self._open = None
        numbers = Numbers()
        sums = self._sums.values().tolist()
        for name, count in zip(GROUP_COUNTS, sums, strict=False):
            numbers.put(name, count)
        none_mixed = "no group has both a positive and a negative row of positive weight"
        numbers.ratio("gauc", min(sums[4], sums[3]), sums[3], none_mixed)
        none_relevant = "no group of positive weight has a row with a label of 0.5 or more"
        numbers.ratio("mrr", min(sums[6], sums[5]), sums[5], none_relevant)
        for place, k in enumerate(self._cuts):
            for offset, name in enumerate(("ndcg", "map", "hit_rate")):
                total = sums[7 + 3 * place + offset]
                numbers.ratio(f"{name}@{k}", min(total, sums[5]), sums[5], none_relevant)
        return numbers


def _places(above: Floats, rows: Floats, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the one past the last place of each run, both cut at k."""
    start = np.minimum(above, k).astype(np.int64)
    stop = np.minimum(above + rows, k).astype(np.int64)
    return start, stop


def sum_above(values: Floats, starts: NDArray[np.intp], carried: float) -> Floats:
    """Return for each value the sum of those before it in its segment."""
    lengths = np.diff(np.append(starts, len(values)))
    place = np.arange(len(values)) - np.repeat(starts, lengths)
    total = values.copy()
    step = 1
    while step < lengths.max(initial=0):
        total[step:] += np.where(place[step:] >= step, total[:-step], 0.0)
        step *= 2
    above = np.zeros(len(values))
    above[1:] = np.where(place[1:] > 0, total[:-1], 0.0)
    above[: lengths[0]] += carried
    return above


def expected_first(
    above: Floats, rows: Floats, relevant: Floats, cuts: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Return the expected 1/rank of the first relevant row, and its chance to be within k."""
    reciprocal = relevant / (above + 1.0)
    hits = np.stack([(above < k).astype(np.float64) for k in cuts] or [np.zeros(0)])
    hits = hits.reshape(len(cuts), len(rows))
    # Runs of one row are already right; the rest is done size by size, as a table of runs by
    # places.
    for size in np.unique(rows[rows > 1]):
        chosen = np.flatnonzero(rows == size)
        reciprocal[chosen], hits[:, chosen] = _first_in_ties(
            above[chosen], int(size), relevant[chosen], cuts
        )
    return reciprocal, hits


def _first_in_ties(
    above: Floats, size: int, relevant: Floats, cuts: tuple[int, ...]
) -> tuple[Floats, Floats]:
    reciprocal = np.zeros(len(above))
    hits = np.zeros((len(cuts), len(above)))
    none_yet = np.ones(len(above))
    for begin in range(0, size, _PIECE):
        place = np.arange(begin, min(begin + _PIECE, size), dtype=np.float64)
        chance = np.minimum(relevant[:, None] / (size - place), 1.0)
        survive = np.cumprod(1.0 - chance, axis=1)
        before = np.concatenate([np.ones((len(above), 1)), survive[:, :-1]], axis=1)
        first = none_yet[:, None] * before * chance
        rank = above[:, None] + place + 1.0
        reciprocal += np.sum(first / rank, axis=1)
        for row, k in enumerate(cuts):
            hits[row] += np.sum(first * (rank <= k), axis=1)
        none_yet = none_yet * survive[:, -1]
        if not none_yet.any():
            break
    return reciprocal, hits
