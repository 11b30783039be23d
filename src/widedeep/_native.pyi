"""The kernels in C++ (native/): contiguous arrays in and out, the GIL released."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Ints: TypeAlias = NDArray[np.int64]
_Ints32: TypeAlias = NDArray[np.int32]
_Codes: TypeAlias = NDArray[np.int8]
_Bytes: TypeAlias = NDArray[np.uint8]
_Floats: TypeAlias = NDArray[np.float32]

def isa() -> Literal["baseline", "avx2", "avx512"]:
    """Name the instruction set of the dispatched kernels.

    It is the processor's best, or the one that the environment variable ``WIDEDEEP_ISA`` names.
    """

# The sparse kernels. Arguments are positional and trusted: call them through widedeep.kernels.
# Those that read ids return the first faulty cell, or -1 (group_ids: or -2, one id a cell).
def group_ids(
    ids: _Ints,
    offsets: _Ints,
    n_features: int,
    slots: _Ints32,
    tables: _Ints32,
    bases: _Ints,
    sizes: _Ints,
    rows: _Ints,
    table_starts: _Ints,
    starts: _Ints32,
    order: _Ints32,
    cells: _Ints32,
    threads: int,
    /,
) -> int: ...
def gather_pool(
    weights: _Floats,
    ids: _Ints,
    offsets: _Ints,
    values: _Floats | None,
    n_features: int,
    slots: _Ints32,
    bases: _Ints,
    sizes: _Ints,
    combiners: _Codes,
    out: _Floats,
    columns: _Ints,
    threads: int,
    /,
) -> int: ...
def wide_forward(
    weights: _Floats,
    ids: _Ints,
    offsets: _Ints,
    values: _Floats | None,
    n_features: int,
    slots: _Ints32,
    bases: _Ints,
    sizes: _Ints,
    combiners: _Codes,
    logits: _Floats,
    threads: int,
    /,
) -> int: ...
def cell_scales(
    ids: _Ints,
    offsets: _Ints,
    values: _Floats | None,
    n_features: int,
    slots: _Ints32,
    combiners: _Codes,
    scale: _Floats,
    threads: int,
    /,
) -> int: ...
def segment_sum(
    grad: _Floats,
    starts: _Ints32,
    order: _Ints32,
    cells: _Ints32,
    n_features: int,
    column_of_feature: _Ints,
    scale_of_cell: _Floats | None,
    values: _Floats | None,
    sequence_place: _Ints | None,
    sequence_grad: _Floats,
    out: _Floats,
    threads: int,
    /,
) -> None: ...
def sgd_rows(
    weights: _Floats,
    rows: _Ints | None,
    grads: _Floats,
    lr: float,
    grad_scale: float,
    threads: int,
    /,
) -> None: ...
def adagrad_rows(
    weights: _Floats,
    accumulator: _Floats,
    rows: _Ints | None,
    grads: _Floats,
    lr: float,
    eps: float,
    grad_scale: float,
    threads: int,
    /,
) -> None: ...
def adam_rows(
    weights: _Floats,
    mean: _Floats,
    square: _Floats,
    rows: _Ints | None,
    grads: _Floats,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
    grad_scale: float,
    threads: int,
    /,
) -> None: ...
def ftrl_rows(
    weights: _Floats,
    z: _Floats,
    n: _Floats,
    rows: _Ints | None,
    grads: _Floats,
    lr: float,
    l1: float,
    l2: float,
    beta: float,
    lr_power: float,
    shrinkage: float,
    grad_scale: float,
    threads: int,
    /,
) -> int: ...
def init_rows(out: _Floats, key: int, first_row: int, scale: float, threads: int, /) -> None: ...
def take_offsets(
    ids: _Ints, offsets: _Ints, n_features: int, rows: _Ints, out_offsets: _Ints, /
) -> int: ...
def take_ids(
    ids: _Ints,
    offsets: _Ints,
    values: _Floats | None,
    n_features: int,
    rows: _Ints,
    out_offsets: _Ints,
    out_ids: _Ints,
    out_values: _Floats | None,
    threads: int,
    /,
) -> None: ...
def take_dense(
    array: _Bytes, rows: _Ints, row_bytes: int, out: _Bytes, threads: int, /
) -> None: ...
