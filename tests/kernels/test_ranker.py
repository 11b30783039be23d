"""Sums kept of a request's sides: near the reference in float64, the scorer's bits in float32."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import ranker as reference_ranker
from widedeep import _native
from widedeep.kernels.score import ACTIVATIONS, from_bfloat16, to_bfloat16

ROOT = Path(__file__).resolve().parents[2]
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

    def build(self, scorer: Any, *, half: bool = False) -> Any:
        scorer.add_dense("query", 0, 2)
        for side, (wide, tables) in enumerate(zip(self.wide, self.tables, strict=True)):
            for slot in range(2):
                scorer.add_wide(SIDES[side], slot, wide[slot], "mean")
                scorer.add_embedding(SIDES[side], slot, tables[slot], ["sum", "sqrtn"][slot])
            if SIDES[side] == "item":
                scorer.add_dense("item", 2, 1)
        for layer in self.layers[:-1]:
            scorer.add_layer(*layer, bfloat16=half)
        scorer.add_layer(*self.layers[-1])
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
    reference = case.build(reference_ranker.RankScorer(*sizes, np.float64), half=half)
    expected = case.logits(reference, half=half)
    found = case.logits(case.build(_native.RankScorer(*sizes), half=half), threads=2, half=half)
    # A sum near a tie may round to the other bfloat16.
    tolerance = 2e-2 if half else 2e-6
    for want, got in zip(expected, found, strict=True):
        assert got.shape == (n, n_classes)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def half_layer(weight: Any, inputs: Any) -> Any:
    """One layer in bfloat16 over inputs that come as items' sums, as they are."""
    scorer = _native.RankScorer((0, 0, 0), inputs.shape[1], len(weight))
    scorer.add_dense("item", 0, inputs.shape[1])
    scorer.add_layer(np.eye(inputs.shape[1], dtype=np.float32), None, "relu")
    scorer.add_layer(weight, None, "none", bfloat16=True)
    zero = np.zeros((1, len(weight)), np.float32), np.zeros((1, inputs.shape[1]), np.float32)
    items = np.zeros((len(inputs), len(weight)), np.float32), inputs
    cells = np.zeros(0, np.int64), np.zeros(1, np.int64)
    _, deep = scorer.rank(*zero, *items, None, np.arange(len(inputs)), *cells, threads=1)
    return deep


def half_layer_in_order(weight: Any, inputs: Any) -> Any:
    """Products of rounded numbers are exact in float64; each addition rounds to float32."""
    rounded = [from_bfloat16(to_bfloat16(x)).astype(float) for x in (np.maximum(inputs, 0), weight)]
    sums = np.zeros((len(inputs), len(weight)), np.float32)
    for inputs_B, weights_U in zip(rounded[0].T, rounded[1].T, strict=True):
        sums = (sums + inputs_B[:, None] * weights_U).astype(np.float32)
    return sums


def random_half_layer(seed: int, n: int, n_inputs: int, units: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, n_inputs)).astype(np.float32)
    inputs[:, rng.random(n_inputs) < 0.4] = -1  # zero once rectified
    return rng.normal(size=(units, n_inputs)).astype(np.float32), inputs


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 20),
    n_inputs=st.integers(1, 70),
    units=st.integers(1, 140),
)
def test_bfloat16_products_are_summed_in_order(
    seed: int, n: int, n_inputs: int, units: int
) -> None:
    weight, inputs = random_half_layer(seed, n, n_inputs, units)
    together = half_layer(weight, inputs)
    assert np.array_equal(together, half_layer_in_order(weight, inputs))
    alone = np.concatenate([half_layer(weight, row[None]) for row in inputs])
    assert alone.tobytes() == together.tobytes()


def test_bfloat16_products_with_an_infinite_weight() -> None:
    weight, inputs = random_half_layer(3, 7, 41, 70)
    inputs[:, 5] = -1
    weight[9, 5] = np.inf
    deep = half_layer(weight, inputs)
    assert np.isnan(deep[:, 9]).all()
    assert np.isfinite(np.delete(deep, 9, axis=1)).all()


SCRIPT = """
import sys, numpy as np
from tests.kernels.test_ranker import half_layer, half_layer_in_order, random_half_layer
layer = random_half_layer(5, 25, 67, 100)
found = half_layer(*layer)
assert np.array_equal(found, half_layer_in_order(*layer))
np.save(sys.argv[1], found)
"""


def test_bfloat16_products_have_the_same_bits_on_each_instruction_set(tmp_path: Path) -> None:
    names = ["baseline", "avx2", "avx512"]
    found = []
    for isa in names[: names.index(_native.isa()) + 1]:
        environment = {**os.environ, "WIDEDEEP_ISA": isa, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        place = tmp_path / f"{isa}.npy"
        subprocess.run([sys.executable, "-c", SCRIPT, place], env=environment, check=True)
        found.append(np.load(place))
    assert all(np.array_equal(each, found[0]) for each in found)


def test_bfloat16_is_the_nearest() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    back = from_bfloat16(to_bfloat16(values))
    assert np.abs(back - values).max() <= np.abs(values).max() * 2**-8
    exact = np.array([0.0, -0.0, 1.5, np.inf, -np.inf, 1 + 2**-8], np.float32)
    kept = from_bfloat16(to_bfloat16(exact))
    assert kept.tolist() == [0.0, -0.0, 1.5, np.inf, -np.inf, 1.0]  # a tie goes to the even one
    assert np.isnan(np.uint32(int(to_bfloat16(np.float32([np.nan]))[0]) << 16).view(np.float32))
