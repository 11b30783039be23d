"""Native kernels: free functions over a few typed structs of contiguous arrays.

A signature stands in the stub (``_native.pyi``) and in C++, and nowhere else. Every function checks
its arrays, releases the interpreter's lock and takes a number of threads, on which its result does
not depend.

Shapes: B examples, F feature slots, N ids, S slots that take part, T logical tables, R physical
rows, U distinct rows, D embedding width, C logits, X columns of the deep network's input.

Example:
    >>> import numpy as np
    >>> batch = CsrBatch(np.array([5, 3, 5]), np.array([0, 1, 3]), None, 1)
    >>> slots = Slots(n_features=1, features=[0], tables=[0], table_bases=[100], table_sizes=[10],
    ...               combiners=["sum"])
    >>> groups = group_ids(batch, slots)
    >>> groups.rows_U.tolist(), groups.starts_U.tolist(), groups.order.tolist()
    ([105, 103], [0, 2, 3], [0, 2, 1])
    >>> grad_BD = np.array([[1, 2], [10, 20]], np.float32)
    >>> segment_sum(grad_BD, groups, batch, slots, 2)
    array([[11., 22.],
           [10., 20.]], dtype=float32)
"""

from widedeep._native import *  # noqa: F403
from widedeep.kernels.sparse import IdOutOfRangeError as IdOutOfRangeError
from widedeep.kernels.sparse import init_rows as init_rows
from widedeep.kernels.threads import spin_wait as spin_wait
