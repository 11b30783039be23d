"""Native code behind thin typed functions over contiguous NumPy arrays.

Every function checks its arrays, releases the interpreter's lock and takes a number of threads; its
result does not depend on it.

Shapes: B examples, F feature slots, N ids, S slots that take part, T logical tables, R physical
rows, U distinct rows, D embedding width, C logits, X columns of the deep network's input.
"""

from widedeep.kernels.checks import IdOutOfRangeError
from widedeep.kernels.counting import CountTable
from widedeep.kernels.sparse import (
    COMBINERS,
    Groups,
    gather_pool,
    group_ids,
    segment_sum_deep,
    segment_sum_wide,
    wide_forward,
)
from widedeep.kernels.take import take_dense, take_rows
from widedeep.kernels.threads import spin_wait
from widedeep.kernels.tower import (
    TowerArrays,
    TowerGradients,
    has_bf16_products,
    logistic_loss,
    tower_backward,
    tower_forward,
)
from widedeep.kernels.updates import adagrad_rows, adam_rows, ftrl_rows, init_rows, sgd_rows

__all__ = [
    "COMBINERS",
    "CountTable",
    "Groups",
    "IdOutOfRangeError",
    "TowerArrays",
    "TowerGradients",
    "adagrad_rows",
    "adam_rows",
    "ftrl_rows",
    "gather_pool",
    "group_ids",
    "has_bf16_products",
    "init_rows",
    "logistic_loss",
    "segment_sum_deep",
    "segment_sum_wide",
    "sgd_rows",
    "spin_wait",
    "take_dense",
    "take_rows",
    "tower_backward",
    "tower_forward",
    "wide_forward",
]
