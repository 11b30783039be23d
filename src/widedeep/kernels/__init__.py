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

from widedeep._native import CountTable as CountTable
from widedeep._native import CsrBatch as CsrBatch
from widedeep._native import CsvRows as CsvRows
from widedeep._native import ExampleLayout as ExampleLayout
from widedeep._native import Groups as Groups
from widedeep._native import Rounding as Rounding
from widedeep._native import RowUpdate as RowUpdate
from widedeep._native import Slots as Slots
from widedeep._native import StepProgram as StepProgram
from widedeep._native import StepTable as StepTable
from widedeep._native import Tower as Tower
from widedeep._native import TowerGradients as TowerGradients
from widedeep._native import TowerLayer as TowerLayer
from widedeep._native import TowerNorm as TowerNorm
from widedeep._native import adagrad_rows as adagrad_rows
from widedeep._native import adam_rows as adam_rows
from widedeep._native import attend_pairs as attend_pairs
from widedeep._native import attend_pairs_grad as attend_pairs_grad
from widedeep._native import aware_products as aware_products
from widedeep._native import aware_products_grad as aware_products_grad
from widedeep._native import bilinear_products as bilinear_products
from widedeep._native import bilinear_products_grad as bilinear_products_grad
from widedeep._native import csv_end as csv_end
from widedeep._native import dice as dice
from widedeep._native import dice_grad as dice_grad
from widedeep._native import entry_counts as entry_counts
from widedeep._native import exp_norm as exp_norm
from widedeep._native import exp_norm_grad as exp_norm_grad
from widedeep._native import field_attention as field_attention
from widedeep._native import field_attention_grad as field_attention_grad
from widedeep._native import field_convolution as field_convolution
from widedeep._native import field_convolution_grad as field_convolution_grad
from widedeep._native import fill_rates as fill_rates
from widedeep._native import float_sum as float_sum
from widedeep._native import ftrl_rows as ftrl_rows
from widedeep._native import gather_pool as gather_pool
from widedeep._native import group_ids as group_ids
from widedeep._native import gru as gru
from widedeep._native import gru_grad as gru_grad
from widedeep._native import has_bf16_products as has_bf16_products
from widedeep._native import isa as isa
from widedeep._native import keep_freed_memory as keep_freed_memory
from widedeep._native import learn_rates as learn_rates
from widedeep._native import logistic_loss as logistic_loss
from widedeep._native import momentum_rows as momentum_rows
from widedeep._native import move_rows as move_rows
from widedeep._native import pack_examples as pack_examples
from widedeep._native import pack_rows as pack_rows
from widedeep._native import pair_products as pair_products
from widedeep._native import pair_products_grad as pair_products_grad
from widedeep._native import read_numbers as read_numbers
from widedeep._native import read_times as read_times
from widedeep._native import rmsprop_rows as rmsprop_rows
from widedeep._native import round_rows as round_rows
from widedeep._native import route_rows as route_rows
from widedeep._native import segment_sum as segment_sum
from widedeep._native import sgd_rows as sgd_rows
from widedeep._native import sorted_numbers as sorted_numbers
from widedeep._native import sorted_words as sorted_words
from widedeep._native import sum_numbers as sum_numbers
from widedeep._native import sum_rates as sum_rates
from widedeep._native import take_rows as take_rows
from widedeep._native import take_runs as take_runs
from widedeep._native import unpack_examples as unpack_examples
from widedeep._native import unpack_rows as unpack_rows
from widedeep._native import wide_forward as wide_forward
from widedeep.kernels.sparse import IdOutOfRangeError as IdOutOfRangeError
from widedeep.kernels.sparse import init_rows as init_rows
from widedeep.kernels.threads import spin_wait as spin_wait
