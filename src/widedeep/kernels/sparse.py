"""Sparse half of a training step: the rows that a batch touches, pooled, summed and copied."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widedeep._native import fill_rows as _init_rows

RowDistribution = Literal["normal", "uniform", "truncated_normal"]
# Standard deviation of the sum of four independent integers, uniform on 0 .. 2**16 - 1.
_SUM_STD = math.sqrt((2.0**32 - 1.0) / 3.0)
# And of odd integers, uniform on 1 - 2**24 .. 2**24 - 1.
_UNIFORM_STD = math.sqrt((2.0**48 - 1.0) / 3.0)


class IdOutOfRangeError(ValueError):
    """An id lies outside its table.

    Args:
        slot: Feature slot that holds the id.
        example: Example of the batch that holds it.
        id: The id.
        size: Rows of the slot's table: 0 <= id < size is allowed.
    """

    def __init__(self, slot: int, example: int, id: int, size: int) -> None:
        super().__init__(
            f"ids_N: slot {slot} of example {example} holds id {id}, outside [0, {size}); "
            "encode the batch with the schema that the tables were made for"
        )
        self.slot = slot
        self.example = example
        self.id = id
        self.size = size


def init_rows(
    out_nD: NDArray[np.float32],
    seed: int,
    table_name: str,
    first_row: int,
    std: float,
    threads: int = 1,
    *,
    distribution: RowDistribution = "normal",
    ids_n: NDArray[np.int64] | None = None,
) -> None:
    """Fill rows with their initial values, a function of (seed, table, row, column) alone.

    A row has the same bits whenever and wherever it is made: at the start, when a table grows, on
    any shard. A value is the centred sum of four 16-bit numbers from a mixed counter, times one
    float32: nearly normal, with the given deviation and never beyond 3.47 of them. A uniform one is
    an odd 25-bit integer from the same counter, times one float32. A truncated normal one is the
    quantile of 53 bits of it (Acklam 2003), times one float32.

    Args:
        out_nD: float32 matrix of rows ``first_row``, ``first_row + 1``, ...; filled in place.
        seed: The run's seed.
        table_name: The logical table's name.
        first_row: Id of the first row within its logical table.
        std: Standard deviation, >= 0; 0 gives zeros.
        threads: Threads to use; the result does not depend on it.
        distribution: ``"uniform"`` lies within √3 standard deviations of 0; ``"truncated_normal"``
            within 2 of those that ``std`` gives before the cut (TensorFlow's
            ``truncated_normal_initializer``), so that its own is 0.88 of it.
        ids_n: Ids of the rows, where they are not ``first_row`` and those after it.

    Raises:
        ValueError: If the matrix has another type or ``std`` is negative or not finite.

    Example:
        >>> import numpy as np
        >>> rows = np.empty((3, 4), np.float32)
        >>> init_rows(rows, 7, "genre", 0, 0.1)
        >>> later = np.empty((1, 4), np.float32)
        >>> init_rows(later, 7, "genre", 2, 0.1)
        >>> bool((later[0] == rows[2]).all())
        True
    """
    if not 0.0 <= std < math.inf:
        raise ValueError(f"std: got {std}, expected a finite number >= 0")
    digest = hashlib.blake2b(f"{seed}:{table_name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    scale = std / {"normal": _SUM_STD, "uniform": _UNIFORM_STD}.get(distribution, 1.0)
    _init_rows(out_nD, key, first_row, scale, threads, distribution, ids_n)
