"""Metrics of the order within each group (a user, a request): GAUC, NDCG, MAP, hit rate, MRR."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from widedeep.metrics.accumulate import CompensatedSum, changes, tie_runs
from widedeep.metrics.registry import add_metric, ratio
from widedeep.metrics.rows import Rows

RELEVANT_FROM = 0.5

_SUMMED = ("rows", "relevant", "positive", "negative")
_RUN = np.dtype([("group", np.int64), ("key", np.float64), *((n, np.float64) for n in _SUMMED)])
# Expected ranks within a long run of ties are worked out in pieces of this many ranks.
_CHUNK_RANKS = 65_536

Floats = NDArray[np.float64]


def rank_groups(blocks: Iterable[Rows], cuts: tuple[int, ...]) -> GroupRanking:
    """Return the sums over groups of rows that are sorted by (group, key)."""
    ranking = GroupRanking(cuts)
    for runs in tie_runs(blocks, _as_runs, ("group", "key")):
        ranking.add(runs)
    ranking.close()
    return ranking


def _as_runs(rows: Rows) -> Rows:
    runs: Rows = np.empty(len(rows), dtype=_RUN)
    runs["group"] = rows["group"]
    runs["key"] = rows["key"]
    runs["rows"] = 1.0
    runs["relevant"] = rows["label"] >= RELEVANT_FROM
    runs["positive"] = rows["weight"] * rows["label"]
    runs["negative"] = rows["weight"] * (1.0 - rows["label"])
    return runs


class GroupRanking:
    """Sums over groups. The last group of a block stays open: the next block may go on with it."""

    def __init__(self, cuts: tuple[int, ...]) -> None:
        self._cuts = cuts
        ranks = np.arange(1, max(cuts, default=1) + 1)
        # (k + 1,) sums of 1/log2(rank + 1) and of 1/rank over the first ranks
        self._discounts = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(ranks + 1.0))])
        self._harmonics = np.concatenate([[0.0], np.cumsum(1.0 / ranks)])
        self._open_group = 0
        self._open: Floats | None = None
        self._sums = CompensatedSum(7 + 3 * len(cuts))

    def add(self, runs: Rows) -> None:
        """Add runs of ties, sorted by (group, key)."""
        groups = runs["group"]
        starts = changes(groups)  # (G,) first run of each group
        continues = self._open is not None and groups[0] == self._open_group
        if self._open is not None and not continues:
            self._close(self._open[:, None])
        earlier = self._open if continues and self._open is not None else None
        terms = self._terms(runs, starts, earlier)  # (T, R) one column per run of ties
        per_group = np.add.reduceat(terms, starts, axis=1)  # (T, G) one column per group
        if earlier is not None:
            per_group[:, 0] += earlier
        self._close(per_group[:, :-1])
        self._open, self._open_group = per_group[:, -1].copy(), int(groups[-1])

    def _terms(self, runs: Rows, starts: NDArray[np.intp], earlier: Floats | None) -> Floats:
        """Return what each run of ties adds to its group, one column per run: (T, R)."""
        rows, relevant, positive, negative = (runs[name].copy() for name in _SUMMED)
        carried = np.zeros(len(_SUMMED)) if earlier is None else earlier
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
        for index, k in enumerate(self._cuts):
            terms += [
                self._gain(above, rows, relevant, k),
                self._precision(above, rows, relevant, relevant_above, k),
                hits[index],
            ]
        return np.stack(terms)

    def _gain(self, above: Floats, rows: Floats, relevant: Floats, k: int) -> Floats:
        """Expected DCG@k: every rank of a run has the same chance of a relevant row."""
        start, stop = _rank_span(above, rows, k)
        expected: Floats = relevant / rows * (self._discounts[stop] - self._discounts[start])
        return expected

    def _precision(
        self, above: Floats, rows: Floats, relevant: Floats, relevant_above: Floats, k: int
    ) -> Floats:
        """Expected sum of the precisions at the relevant rows among the first k."""
        start, stop = _rank_span(above, rows, k)
        slope = np.where(rows > 1, (relevant - 1.0) / np.maximum(rows - 1.0, 1.0), 0.0)
        level = relevant_above + 1.0 - (start + 1.0) * slope
        harmonic = self._harmonics[stop] - self._harmonics[start]
        expected: Floats = relevant / rows * (level * harmonic + slope * (stop - start))
        return expected

    def _close(self, groups: Floats) -> None:
        """Add finished groups, one per column, to the sums."""
        if not groups.shape[1]:
            return
        rows, relevant, positive, negative, wins, reciprocal = groups[:6]
        impressions = positive + negative
        both = (positive > 0) & (negative > 0)
        pairs = np.where(both, positive * negative, 1.0)
        some = relevant > 0
        weight = np.where(some, impressions / rows, 0.0)
        sums = [
            float(groups.shape[1]),
            float(np.sum(~both)),
            float(np.sum(~some)),
            float(np.sum(impressions * both)),
            float(np.sum(impressions * both * wins / pairs)),
            float(np.sum(weight)),
            float(np.sum(weight * reciprocal)),
        ]
        for index, k in enumerate(self._cuts):
            gain, precision, hit = groups[6 + 3 * index : 9 + 3 * index]
            best = np.where(some, np.minimum(relevant, k), 1.0).astype(np.int64)
            sums += [
                float(np.sum(weight * gain / self._discounts[best])),
                float(np.sum(weight * precision / best)),
                float(np.sum(weight * hit)),
            ]
        self._sums.add(np.array(sums))

    def close(self) -> None:
        """Add the last group: no more rows follow."""
        if self._open is not None:
            self._close(self._open[:, None])
            self._open = None

    def count(self, index: int) -> float:
        """Number of groups (0), of those of one class (1), of those without a positive (2)."""
        return float(self._sums.values()[index])

    @property
    def gauc(self) -> float:
        """Mean AUC over the groups with both classes, weighted by impressions."""
        sums = self._sums.values().tolist()
        none_mixed = "no group has both a positive and a negative row of positive weight"
        return ratio(min(sums[4], sums[3]), sums[3], none_mixed)

    def mean(self, index: int) -> float:
        """Mean of a sum over the groups with a relevant row."""
        sums = self._sums.values().tolist()
        none_relevant = "no group of positive weight has a row with a label of 0.5 or more"
        return ratio(min(sums[index], sums[5]), sums[5], none_relevant)

    def mean_at(self, offset: int, k: int) -> float:
        """Mean at a cut-off: NDCG (0), average precision (1), hit rate (2)."""
        return self.mean(7 + 3 * self._cuts.index(k) + offset)


def _at(offset: int) -> Callable[[GroupRanking, int], float]:
    return lambda ranking, k: ranking.mean_at(offset, k)


# name, value, order in tables, better values, title
_by_group = partial(add_metric, kinds=["binary", "ranking"], groups=True, input="ranking")

_by_group("gauc", lambda ranking: ranking.gauc, 1, "higher", "AUC within groups", headline=3)
_by_group("mrr", lambda ranking: ranking.mean(6), 24, "higher", "mean reciprocal rank", detail=True)
_by_group("groups", lambda ranking: ranking.count(0), 93, None, detail=True)
_by_group("groups_one_class", lambda ranking: ranking.count(1), None, None)
_by_group("groups_without_positive", lambda ranking: ranking.count(2), None, None)
_by_group("ndcg@{k}", _at(0), 22, "higher", "NDCG", detail=True)
_by_group("map@{k}", _at(1), 23, "higher", "mean average precision", detail=True)
_by_group("hit_rate@{k}", _at(2), 25, "higher", "hit rate", detail=True)


def _rank_span(above: Floats, rows: Floats, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the one past the last rank of each run, both cut at k."""
    start = np.minimum(above, k).astype(np.int64)
    stop = np.minimum(above + rows, k).astype(np.int64)
    return start, stop


def sum_above(values: Floats, starts: NDArray[np.intp], carried: float) -> Floats:
    """Return for each value the sum of those before it in its segment."""
    lengths = np.diff(np.append(starts, len(values)))
    index = np.arange(len(values)) - np.repeat(starts, lengths)  # (R,) position in the segment
    # Doubling: after the step s, total holds the sum of the last 2 s values of the segment.
    total = values.copy()
    step = 1
    while step < lengths.max(initial=0):
        total[step:] += np.where(index[step:] >= step, total[:-step], 0.0)
        step *= 2
    above = np.zeros(len(values))
    above[1:] = np.where(index[1:] > 0, total[:-1], 0.0)
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
    # ranks.
    for size in np.unique(rows[rows > 1]):
        tied = np.flatnonzero(rows == size)
        reciprocal[tied], hits[:, tied] = _first_in_ties(
            above[tied], int(size), relevant[tied], cuts
        )
    return reciprocal, hits


def _first_in_ties(
    above: Floats, size: int, relevant: Floats, cuts: tuple[int, ...]
) -> tuple[Floats, Floats]:
    reciprocal = np.zeros(len(above))
    hits = np.zeros((len(cuts), len(above)))
    none_yet = np.ones(len(above))
    for begin in range(0, size, _CHUNK_RANKS):
        # (runs, ranks): chance that the first relevant row of a run stands at each of its ranks
        offset = np.arange(begin, min(begin + _CHUNK_RANKS, size), dtype=np.float64)
        chance = np.minimum(relevant[:, None] / (size - offset), 1.0)
        survive = np.cumprod(1.0 - chance, axis=1)
        before = np.concatenate([np.ones((len(above), 1)), survive[:, :-1]], axis=1)
        first = none_yet[:, None] * before * chance
        rank = above[:, None] + offset + 1.0
        reciprocal += np.sum(first / rank, axis=1)
        for row, k in enumerate(cuts):
            hits[row] += np.sum(first * (rank <= k), axis=1)
        none_yet = none_yet * survive[:, -1]
        if not none_yet.any():
            break
    return reciprocal, hits
