"""Sums kept of a request's sides: near the reference in float64, the scorer's bits in float32."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from widedeep import _native
from widedeep.kernels import reference_ranker
from widedeep.kernels.ranker import to_bfloat16
from widedeep.kernels.score import ACTIVATIONS

SIDES = ("query", "item", "pair")
SIZES, WIDTHS = [5, 9], [6, 17]


class Case:
    """A model of two slots a side, a query, items and candidates."""

    def __init__(self, seed: int, n: int, n_classes: int, hidden: tuple[int, ...], act: str):
        rng = np.random.default_rng(seed)

        def draw(*size: int) -> Any:
            return rng.normal(scale=0.5 * size[-1] ** -0.5, size=size).astype(np.float32)

        self.rng, self.n_classes = rng, n_classes
        self.wide = [[draw(size, n_classes) for size in SIZES] for _ in SIDES]
        self.tables = [[draw(*shape) for shape in zip(SIZES, WIDTHS, strict=True)] for _ in SIDES]
        units = [3 + 3 * sum(WIDTHS), *hidden]
        self.layers = [(draw(b, a), draw(b), act) for a, b in itertools.pairwise(units)]
        self.layers.append((draw(n_classes, units[-1]), None, "none"))
        self.query = self.cells(1)
        self.items = self.cells(7)
        self.pairs = self.cells(n)
        self.dense = [draw(1, 3), draw(7, 3)]
        self.positions = rng.integers(7, size=n)

    def cells(self, rows: int) -> tuple[Any, Any]:
        lengths = self.rng.choice([0, 1, 1, 3], size=2 * rows)
        ids = self.rng.integers(0, np.repeat(np.tile(SIZES, rows), lengths))
        return ids, np.concatenate([[0], np.cumsum(lengths)])

    def build(self, scorer: Any) -> Any:
        scorer.add_dense("query", 0, 2)
        for side, (wide, tables) in enumerate(zip(self.wide, self.tables, strict=True)):
            for slot in range(2):
                scorer.add_wide(SIDES[side], slot, wide[slot], "mean")
                scorer.add_embedding(SIDES[side], slot, tables[slot], ["sum", "sqrtn"][slot])
            if SIDES[side] == "item":
                scorer.add_dense("item", 2, 1)
        for layer in self.layers:
            scorer.add_layer(*layer)
        return scorer

    def logits(self, scorer: Any, *, threads: int = 1, half: bool = False) -> Any:
        query = scorer.sums("query", *self.query, None, self.dense[0], threads=1)
        wide, hidden = scorer.sums("item", *self.items, None, self.dense[1], threads=threads)
        kept = (None, to_bfloat16(hidden.astype(np.float32))) if half else (hidden, None)
        return scorer.rank(*query, wide, *kept, self.positions, *self.pairs, threads=threads)


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 40),
    n_classes=st.sampled_from([1, 3, 16, 17]),
    hidden=st.sampled_from([(), (1,), (16,), (33, 5), (70, 64, 18)]),
    activation=st.sampled_from(ACTIVATIONS),
    half=st.booleans(),
)
def test_logits_are_those_of_float64(
    seed: int, n: int, n_classes: int, hidden: tuple[int, ...], activation: str, half: bool
) -> None:
    case = Case(seed, n, n_classes, hidden, activation)
    sizes = (2, 2, 2), 3, n_classes
    expected = case.logits(case.build(reference_ranker.RankScorer(*sizes, np.float64)), half=half)
    found = case.logits(case.build(_native.RankScorer(*sizes)), threads=2, half=half)
    # A sum near a tie may round to the other bfloat16.
    tolerance = 2e-2 if half else 2e-6
    for want, got in zip(expected, found, strict=True):
        assert got.shape == (n, n_classes)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_bfloat16_is_the_nearest() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    back = (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    assert np.abs(back - values).max() <= np.abs(values).max() * 2**-8
    exact = np.array([0.0, -0.0, 1.5, np.inf, -np.inf, 1 + 2**-8], np.float32)
    kept = (to_bfloat16(exact).astype(np.uint32) << 16).view(np.float32)
    assert kept.tolist() == [0.0, -0.0, 1.5, np.inf, -np.inf, 1.0]  # a tie goes to the even one
    assert np.isnan(np.uint32(int(to_bfloat16(np.float32([np.nan]))[0]) << 16).view(np.float32))
