"""Native code behind thin typed functions over contiguous NumPy arrays.

Every function checks its arrays, lets go of the interpreter's lock and takes a number of threads;
its result does not depend on it. ``WIDEDEEP_KERNELS=reference`` runs the plain NumPy reference
(`widedeep.kernels.reference`) in place of the C++.

Shapes: B examples, F feature slots, N ids, S slots that take part, T logical tables, R physical
rows, U distinct rows, D embedding width, C logits, X columns of the deep network's input.
"""

from widedeep.kernels.checks import IdOutOfRangeError
from widedeep.kernels.copying import take_dense, take_rows
from widedeep.kernels.counting import CountTable
from widedeep.kernels.groups import Groups, group_ids
from widedeep.kernels.losses import logistic_loss
from widedeep.kernels.pooling import (
    COMBINERS,
    gather_pool,
    segment_sum_deep,
    segment_sum_wide,
    wide_forward,
)
from widedeep.kernels.threads import awake
from widedeep.kernels.tower import (
    TowerArrays,
    TowerGradients,
    has_bf16_products,
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
    "awake",
    "ftrl_rows",
    "gather_pool",
    "group_ids",
    "has_bf16_products",
    "init_rows",
    "logistic_loss",
    "segment_sum_deep",
    "segment_sum_wide",
    "sgd_rows",
    "take_dense",
    "take_rows",
    "tower_backward",
    "tower_forward",
    "wide_forward",
]
