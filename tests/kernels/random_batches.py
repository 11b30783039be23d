"""Random batches with empty cells, long bags, duplicate ids and shared tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from widedeep.kernels import CsrBatch, Slots


@dataclass
class RandomBatch:
    """The arrays that the kernels take, and a table that fits them."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32] | None
    n_features: int
    slots: NDArray[np.int32]
    tables: NDArray[np.int32]
    bases: NDArray[np.int64]
    sizes: NDArray[np.int64]
    combiners: NDArray[np.int8]

    @property
    def n_examples(self) -> int:
        return (len(self.offsets) - 1) // self.n_features

    @property
    def n_rows(self) -> int:
        return int((self.bases + self.sizes).max())

    @property
    def csr(self) -> CsrBatch:
        return CsrBatch(self.ids, self.offsets, self.values, self.n_features)

    def slots_at(self, columns: NDArray[Any] | None = None) -> Slots:
        """The slots, their embeddings in these columns."""
        return Slots(
            n_features=self.n_features,
            features=self.slots.tolist(),
            tables=self.tables.tolist(),
            table_bases=self.bases.tolist(),
            table_sizes=self.sizes.tolist(),
            combiners=[("sum", "mean", "sqrtn")[code] for code in self.combiners],
            columns=[] if columns is None else columns.tolist(),
        )


def make_batch(
    seed: int,
    *,
    n_examples: int,
    n_features: int,
    longest: int,
    with_values: bool,
    largest_table: int = 40,
) -> RandomBatch:
    """Make a batch; ``longest`` 0 gives exactly one id a cell."""
    rng = np.random.default_rng(seed)
    n_tables = int(rng.integers(1, n_features + 1))
    sizes = rng.integers(2, largest_table + 1, n_tables)
    gaps = rng.integers(0, 3, n_tables)  # rows between tables that no feature owns
    bases = np.cumsum(sizes + gaps) - sizes
    taken = np.sort(rng.permutation(n_features)[: int(rng.integers(1, n_features + 1))])
    table_of_feature = rng.integers(0, n_tables, n_features)
    cells = n_examples * n_features
    lengths = rng.integers(0, longest + 1, cells) if longest else np.ones(cells, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    feature_of_id = np.repeat(np.arange(cells) % n_features, lengths)
    limit = sizes[table_of_feature][feature_of_id]
    ids = np.minimum(rng.geometric(0.2, len(limit)) - 1, limit - 1).astype(np.int64)
    values = rng.normal(size=len(ids)).astype(np.float32)
    values[rng.random(len(ids)) < 0.1] = 0
    return RandomBatch(
        ids=ids,
        offsets=offsets,
        values=values if with_values else None,
        n_features=n_features,
        slots=taken.astype(np.int32),
        tables=table_of_feature[taken].astype(np.int32),
        bases=bases.astype(np.int64),
        sizes=sizes.astype(np.int64),
        combiners=rng.integers(0, 3, len(taken)).astype(np.int8),
    )


def batches() -> st.SearchStrategy[RandomBatch]:
    """Draw batches of every shape."""
    return st.builds(
        make_batch,
        st.integers(0, 2**32 - 1),
        n_examples=st.integers(0, 40),
        n_features=st.integers(1, 6),
        longest=st.integers(0, 5),
        with_values=st.booleans(),
        largest_table=st.sampled_from([2, 40, 5_000]),
    )
