"""Random models and batches for the forward pass."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Case", "build", "random_case"]

Floats = NDArray[np.float32]
AnyScorer = TypeVar("AnyScorer")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model as a scorer is given it, and rows to score."""

    n_rows: int
    n_dense: int
    n_classes: int
    wide: list[tuple[int, Floats, bool]]
    embeddings: list[tuple[int, Floats, str]]
    n_query: int
    layers: list[tuple[Floats, Floats | None, str]]
    combiner: str
    batch: tuple[NDArray[np.int64], NDArray[np.int64], Floats | None, Floats]

    @property
    def n_slots(self) -> int:
        return len(self.wide)

    @property
    def split(self) -> int:
        """Inputs of the first partial sum: the dense numbers and the query's embeddings."""
        return self.n_dense + sum(t.shape[1] for _, t, _ in self.embeddings[: self.n_query])

    def rows(self, begin: int, end: int) -> tuple[Any, Any, Any, Any]:
        """The arrays of rows ``begin`` to ``end``."""
        ids, offsets, values, dense = self.batch
        cells = offsets[begin * self.n_slots : end * self.n_slots + 1]
        part = slice(int(cells[0]), int(cells[-1]))
        weights = None if values is None else values[part]
        return ids[part], cells - cells[0], weights, dense[begin:end]


def random_case(
    seed: int,
    *,
    n_rows: int,
    n_classes: int = 1,
    hidden: tuple[int, ...] = (20,),
    activation: str = "relu",
    combiner: str = "mean",
    weighted: bool = False,
) -> Case:
    """A model of four slots and two numbers; the last two slots are the item's."""
    rng = np.random.default_rng(seed)

    def draw(*size: int) -> Floats:
        return rng.normal(scale=0.5 * size[-1] ** -0.5, size=size).astype(np.float32)

    sizes, widths = [5, 9, 3, 7], [6, 16, 3, 17]
    n_slots, n_dense = len(sizes), 2
    units = [n_dense + sum(widths), *hidden]
    layers: list[tuple[Floats, Floats | None, str]] = [
        (draw(b, a), draw(b), activation) for a, b in itertools.pairwise(units)
    ]
    lengths = rng.choice([0, 1, 1, 2, 5], size=n_rows * n_slots)
    ids = rng.integers(0, np.repeat(np.tile(sizes, n_rows), lengths))
    values = rng.uniform(0.1, 1, size=len(ids)).astype(np.float32) if weighted else None
    dense = rng.normal(size=(n_rows, n_dense)).astype(np.float32)
    return Case(
        n_rows=n_rows,
        n_dense=n_dense,
        n_classes=n_classes,
        wide=[(slot, draw(sizes[slot], n_classes), slot >= 2) for slot in range(n_slots)],
        embeddings=[
            (slot, draw(size, width), ["mean", "sum", "sqrtn", "mean"][slot])
            for slot, (size, width) in enumerate(zip(sizes, widths, strict=True))
        ],
        n_query=2,
        layers=[*layers, (draw(n_classes, units[-1]), None, "none")],
        combiner=combiner,
        batch=(ids, np.concatenate([[0], np.cumsum(lengths)]), values, dense),
    )


def build(scorer: AnyScorer, case: Case) -> AnyScorer:
    """Give an empty scorer the model of a case."""
    into: Any = scorer
    for slot, weights, item in case.wide:
        into.add_wide(slot, weights, case.combiner, item=item)
    into.add_dense(0, case.n_dense)
    for number, (slot, table, combiner) in enumerate(case.embeddings):
        if number == case.n_query:
            into.start_item_inputs()
        into.add_embedding(slot, table, combiner)
    for layer in case.layers:
        into.add_layer(*layer)
    return scorer
