"""The kernels in C++ (native/): contiguous arrays in and out, the GIL released."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Ints: TypeAlias = NDArray[np.int64]
_Ints32: TypeAlias = NDArray[np.int32]
_Shorts: TypeAlias = NDArray[np.int16]
_Flags: TypeAlias = NDArray[np.bool_]
_Bytes: TypeAlias = NDArray[np.uint8]
_Floats: TypeAlias = NDArray[np.float32]
_Halves: TypeAlias = NDArray[np.uint16]  # bits of bfloat16
_Doubles: TypeAlias = NDArray[np.float64]

def isa() -> Literal["baseline", "avx2", "avx512"]:
    """Name the instruction set of the dispatched kernels.

    It is the processor's best, or the one that the environment variable ``WIDEDEEP_ISA`` names.
    """

def add_wakefulness(change: int, /) -> None:
    """Let threads without work look for more before they sleep (1), or no longer (-1)."""

# ---- the sparse kernels --------------------------------------------------------------------------

class CsrBatch:
    """The ids of a batch, example-major: cell ``b * F + f`` holds feature f's ids of example b.

    Raises ValueError unless there are fewer than 2**31 int64 ids, ``offsets_BF`` int64 of length
    B * F + 1, and as many float32 ``values_N`` as ids (None: each weighs 1). The kernels check the
    values of the offsets where they read them.
    """

    def __init__(
        self, ids_N: _Ints, offsets_BF: _Ints, values_N: _Floats | None, n_features: int
    ) -> None: ...
    @property
    def ids_N(self) -> _Ints: ...
    @property
    def offsets_BF(self) -> _Ints: ...
    @property
    def values_N(self) -> _Floats | None: ...
    @property
    def n_features(self) -> int: ...

class Slots:
    """The feature slots that take part in a physical table of logical tables, ascending.

    Raises ValueError unless ``features`` ascend within [0, n_features), each has a number of a
    logical table, a combiner ("sum", "mean", "sqrtn", "max") and a first column (default 0) in the
    buffer that embeddings are written to, and each table a first row and a number of rows.
    """

    def __init__(
        self,
        *,
        n_features: int,
        features: Sequence[int],
        tables: Sequence[int],
        table_bases: Sequence[int],
        table_sizes: Sequence[int],
        combiners: Sequence[str],
        columns: Sequence[int] = (),
    ) -> None: ...
    @property
    def n_features(self) -> int: ...
    @property
    def features(self) -> list[int]: ...
    @property
    def tables(self) -> list[int]: ...
    @property
    def bases(self) -> list[int]:
        """First physical row of each slot's table."""
    @property
    def sizes(self) -> list[int]:
        """Rows of each slot's table."""
    @property
    def columns(self) -> list[int]: ...
    @property
    def combiners(self) -> list[int]:
        """Combiner of each slot: 0 sum, 1 mean, 2 sqrtn, 3 max."""
    @property
    def table_bases(self) -> list[int]: ...
    @property
    def table_sizes(self) -> list[int]: ...

class Groups:
    """The U distinct rows that a batch touches, and where each of them occurs.

    Rows are ordered by logical table, within a table by their first occurrence in the batch. Row
    ``u`` occurs at ``order[starts_U[u] : starts_U[u + 1]]``, ascending, in the same ``cells``.
    """

    def __len__(self) -> int: ...
    @property
    def rows_U(self) -> _Ints:
        """Physical row of each."""
    @property
    def table_starts(self) -> _Ints:
        """(T + 1,) first entry of each logical table in ``rows_U``, and their number."""
    @property
    def starts_U(self) -> _Ints32:
        """(U + 1,) into ``order`` and ``cells``; not from 0 in a selection from other groups."""
    @property
    def order(self) -> _Ints32:
        """Occurrences by row: indices into the batch's ids."""
    @property
    def cells(self) -> _Ints32:
        """Cell ``b * F + f`` of each entry of ``order``."""
    @property
    def is_single(self) -> bool:
        """Whether every cell of the batch holds exactly one id."""
    def numbers(self) -> _Ints:
        """Return each id's row as a number within its logical table's, (N,); 0 of no table's."""
    def select(self, tables: Sequence[int], shifts: Sequence[int]) -> Groups:
        """Return the groups of some logical tables, in this order, their rows shifted.

        So ids are grouped once for two physical tables that share logical tables. Neighbours share
        their occurrences; others are copied together.
        """

# Functions that read ids raise ValueError where offsets do not ascend, and IdOutOfRangeError, a
# ValueError with slot, example and id, where an id lies outside its table; outputs are then partly
# written. Matrices are float32; their rows may lie further apart than their width.
def group_ids(batch: CsrBatch, slots: Slots, threads: int = 1) -> Groups:
    """Find the distinct rows of a batch and the occurrences of each."""

def gather_pool(
    weights_RD: _Floats | _Halves,
    batch: CsrBatch,
    slots: Slots,
    out_BX: _Floats,
    threads: int = 1,
) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``.

    A bag is summed in the order of its ids, each row times its value, then multiplied by the
    combiner's factor: 1 for sum, 1 / sum of values for mean, 1 / root of the sum of their squares
    for sqrtn. An empty bag (or one whose divisor is 0) gives zeros. Other columns stay.
    """

def wide_forward(
    weights_RC: _Floats, batch: CsrBatch, slots: Slots, logits_BC: _Floats, threads: int = 1
) -> None:
    """Add every slot's combined weights to the logits, one slot after the other."""

def segment_sum(
    grad_BX: _Floats,
    groups: Groups,
    batch: CsrBatch,
    slots: Slots,
    width: int,
    threads: int = 1,
    sequence_grads_MD: _Floats | None = None,
    sequence_rows_N: _Ints | None = None,
    lane_B: _Ints32 | None = None,
    lanes: int = 0,
    bf16: bool = False,
) -> _Floats:
    """Sum the gradient of every touched row over its occurrences, (U, width): the transposes.

    An occurrence in slot s of example b adds (combiner's factor * value) *
    ``grad_BX[b, columns[s] : columns[s] + width]``. Sums are float32 in ascending order of
    occurrence, so threads and instruction sets give the same bits. Occurrences n with
    ``sequence_rows_N[n]`` >= 0 were taken unpooled: they add that row of ``sequence_grads_MD``.

    ``lane_B``, each example's lane of ``lanes`` ones, ascending: sums are by lane. Those of lanes
    [a, b) are the sum of the first half's, rounded up, and of the second one's, and with ``bf16``
    rounded to it; a lane without occurrences adds nothing.
    """

def take_rows(
    batch: CsrBatch, rows_B: _Ints, threads: int = 1
) -> tuple[_Ints, _Ints, _Floats | None]:
    """Return ids, offsets and values of the examples at some positions; repeats are allowed."""

# ---- updates: rows_U are distinct rows (None: every row); g = grad_scale * grads_UD --------------

class Rounding:
    """How an update rounds the weights of a table in bfloat16: up or down at random, unbiased.

    The bits are a function of a run's seed, the number of the update, the row's number (``ids_U``,
    by touched row; None: the row), the width and the column.
    """

    def __init__(self, seed: int, step: int, ids_U: _Ints | None = None) -> None: ...

def round_rows(rows_nD: _Floats, half_nD: _Halves, rounding: Rounding, threads: int = 1) -> None:
    """Round rows to bfloat16 as an update does."""

def sgd_rows(
    weights: _Floats | _Halves,
    rows_U: _Ints | None,
    grads_UD: _Floats,
    *,
    lr: float,
    grad_scale: float = 1.0,
    threads: int = 1,
    rounding: Rounding | None = None,
) -> None:
    """Move each row once: w -= lr * g."""

def momentum_rows(
    weights: _Floats | _Halves,
    velocity: _Floats,
    rows_U: _Ints | None,
    grads_UD: _Floats,
    *,
    lr: float,
    momentum: float,
    nesterov: bool = False,
    grad_scale: float = 1.0,
    threads: int = 1,
    rounding: Rounding | None = None,
) -> None:
    """Apply momentum: v = momentum * v + g; w -= lr * v, or lr * (g + momentum * v)."""

def rmsprop_rows(
    weights: _Floats | _Halves,
    square: _Floats,
    mean: _Floats | None,
    velocity: _Floats | None,
    rows_U: _Ints | None,
    grads_UD: _Floats,
    *,
    lr: float,
    decay: float,
    momentum: float,
    eps: float,
    eps_in_root: bool,
    grad_scale: float = 1.0,
    threads: int = 1,
    rounding: Rounding | None = None,
) -> None:
    """Apply RMSProp; with ``mean`` centered, with ``velocity`` with momentum.

    With ``eps_in_root`` the velocity adds up steps, ``lr`` included.
    """

def adagrad_rows(
    weights: _Floats | _Halves,
    accumulator: _Floats,
    rows_U: _Ints | None,
    grads_UD: _Floats,
    *,
    lr: float,
    eps: float,
    l2: float = 0.0,
    grad_scale: float = 1.0,
    threads: int = 1,
    rounding: Rounding | None = None,
) -> None:
    """Move each row once: g += l2 * w; acc += g**2; w -= lr * g / (sqrt(acc) + eps).

    An accumulator of width 1 takes the mean of the row's g**2.
    """

def adam_rows(
    weights: _Floats | _Halves,
    mean: _Floats,
    square: _Floats,
    rows_U: _Ints | None,
    grads_UD: _Floats,
    *,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    grad_scale: float = 1.0,
    threads: int = 1,
    rounding: Rounding | None = None,
) -> None:
    """Move each row once: w = decay * w - rate * m / (sqrt(v) + eps), after both moments."""

def ftrl_rows(
    weights: _Floats | _Halves,
    z: _Floats,
    n: _Floats,
    rows_U: _Ints | None,
    grads_UD: _Floats,
    *,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 0.0,
    lr_power: float = -0.5,
    shrinkage: float = 0.0,
    grad_scale: float = 1.0,
    rates_U: _Floats | None = None,
    products_U: _Floats | None = None,
    threads: int = 1,
    rounding: Rounding | None = None,
) -> int:
    """Move each row once by FTRL-Proximal; return the change of the number of non-zero weights.

    With p = -lr_power: sigma = ((n + g**2)**p - n**p) / lr; z += g + shrinkage * w - sigma * w;
    n += g**2; w = 0 where abs(z) <= l1, else -(z - sign(z) l1) / ((beta + n**p) / lr + l2).
    ``rates_U`` are factors of each row's lr; ``products_U`` is filled with sums of g * w (before).
    """

def fill_rows(
    out_nD: _Floats,
    key: int,
    first_row: int,
    scale: float,
    threads: int,
    distribution: str,
    ids_n: _Ints | None = None,
) -> None: ...

# ---- tables in fewer bytes -----------------------------------------------------------------------

def packed_row_bytes(kind: str, width: int) -> int:
    """Return the bytes of a row of ``width`` numbers in ``"bf16"``, ``"int8"`` or ``"int4"``."""

def pack_table(matrix_RD: _Floats, kind: str, bytes: _Bytes, threads: int = 1) -> int:
    """Write the rows of a matrix of finite numbers into a vector of bytes.

    Returns the first row with a number too large for the kind, or -1.
    """

class PackedRows:
    """Rows that :func:`pack_table` wrote, read where they are, in a mapped file for one."""

    def __init__(self, bytes_RB: _Bytes, kind: str, width: int) -> None: ...
    def unpack(self, ids_N: _Ints, out_ND: _Floats, threads: int = 1) -> None:
        """Write the numbers of some rows."""

# ---- rows between ranks --------------------------------------------------------------------------

def pack_rows(
    matrix_RD: _Floats | _Halves,
    rows_n: _Ints | None,
    bytes: _Bytes,
    format: str = "fp32",
    threads: int = 1,
) -> None:
    """Write rows of a matrix into bytes: as float32, rounded to the nearest bfloat16, or scaled.

    Without ``rows_n`` all of them are written, in order.

    ``format="scaled"`` writes a byte, the exponent of the row's largest number, and 16 bits a
    number: its multiple of 2^-14 of that power, so that it errs by 2^-15 of the largest at most.
    """

def unpack_rows(
    bytes: _Bytes, rows_n: _Ints | None, matrix_RD: _Floats, format: str = "fp32", threads: int = 1
) -> None:
    """Write what :func:`pack_rows` wrote into rows of a matrix, each named once."""

def move_rows(
    from_RD: _Floats | _Halves,
    from_n: _Ints,
    to_RD: _Floats,
    to_n: _Ints | None,
    format: str = "fp32",
    threads: int = 1,
) -> None:
    """Do what :func:`pack_rows` and :func:`unpack_rows` would, one after the other."""

def route_rows(
    ids_n: _Ints, starts_R: _Ints, owner: _Shorts, place: _Shorts, rows_TW: _Ints
) -> tuple[_Ints, _Ints, _Ints]:
    """Sort ids by the rank that owns their rows, otherwise in their order.

    Ids lie in R runs, the r-th of logical table r % T; ``owner`` and ``place`` (T, 4096) and
    ``rows_TW`` tell how the ids of a block are dealt out (:class:`widedeep.ranks.layout.Layout`).

    Returns:
        The counts by rank and run (W, R), the numbers of the ids by owner, and their rows there.
    """

def take_runs(values_n: _Ints, counts_R: _Ints, shifts_R: _Ints, taken_R: _Flags) -> _Ints:
    """Return some of the runs of numbers that follow each other, each shifted by its number."""

# ---- losses and the tower ------------------------------------------------------------------------

def logistic_loss(
    logits_B: _Floats, labels_B: _Floats, losses_B: _Floats, grads_B: _Floats
) -> None:
    """Fill the cross-entropies max(z, 0) - z y + log(1 + exp(-abs(z))) and sigmoid(z) - y."""

def float_sum(numbers_B: _Floats) -> float:
    """Return the float32 sum in a fixed order, that of torch's sums on one thread."""

def fill_rates(log_rates: _Doubles, starts_T: _Ints, rates_U: _Floats) -> None:
    """Fill the factor of each row, exp of its feature's logarithm; rows lie feature by feature."""

def learn_rates(
    log_rates: _Doubles,
    evidence: _Doubles,
    starts_T: _Ints,
    products_U: _Floats,
    *,
    step: float,
    lowest: float,
    highest: float,
) -> None:
    """Move each touched feature's logarithm by Adagrad along the sum of its rows' products."""

def sum_rates(products_U: _Floats, starts_T: _Ints) -> _Doubles:
    """Return each feature's sums of products, and of their squares, on four grids each, (8, T).

    Of :func:`learn_rates` over several ranks: the grids are 2^36 apart, the coarsest first, and on
    each of them sums are exact, in whatever order they are added.
    """

def pair_products(fields: _Floats, out_BD: _Floats, threads: int = 1) -> None:
    """Fill the sums over all pairs of fields of their elementwise products.

    ``fields`` (B, F * D) holds F vectors of D numbers in a row.
    """

def pair_products_grad(
    fields: _Floats, grad_BD: _Floats, fields_grad: _Floats, threads: int = 1
) -> None:
    """Fill the gradient of the fields from that of :func:`pair_products`."""

def attend_pairs(
    fields_BX: _Floats,
    weight_AD: _Floats,
    bias_A: _Floats,
    score_A: _Floats,
    out_BD: _Floats,
    attention_BP: _Floats,
    threads: int,
) -> None:
    """Pool the products of all pairs of fields by ``softmax(score . relu(weight p + bias))``.

    Fields have the width D of ``weight_AD``, at most 256; pairs are in the order of
    ``itertools.combinations``. Fills the pooled products and the weights of the pairs.
    """

def attend_pairs_grad(
    fields_BX: _Floats,
    weight_AD: _Floats,
    bias_A: _Floats,
    score_A: _Floats,
    attention_BP: _Floats,
    grad_out_BD: _Floats,
    grad_fields_BX: _Floats,
    grad_weight_AD: _Floats,
    grad_bias_A: _Floats,
    grad_score_A: _Floats,
    threads: int,
) -> None:
    """Fill the gradients of :func:`attend_pairs`; ``attention_BP`` is what it filled."""

def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 128 MB, 1 GB of them, for the next step."""

def gru(
    mask: NDArray[np.uint8],
    steps: int,
    inputs: _Floats,
    state_weight: _Floats,
    weights: _Floats | None,
    states: _Floats,
    saved: _Floats,
    threads: int,
) -> None:
    """Fill the states of a gated recurrent unit after each of N events.

    ``mask`` is B times ``steps`` of 0 and 1, whose ones are the events, history after history;
    ``inputs`` 3 H numbers an event (update, reset, candidate); ``state_weight`` (3 H, H);
    ``weights`` a factor of each event's update; ``saved`` 4 H numbers an event, for the gradient.
    """

def gru_grad(
    mask: NDArray[np.uint8],
    steps: int,
    inputs: _Floats,
    state_weight: _Floats,
    weights: _Floats | None,
    states: _Floats,
    saved: _Floats,
    grad_states: _Floats,
    grad_inputs: _Floats,
    grad_products: _Floats,
    grad_weights: _Floats | None,
    threads: int,
) -> None:
    """Fill the gradients of :func:`gru`, those by its products of states and weight among them."""

def field_attention(
    projected: _Floats,
    fields: int,
    heads: int,
    units: int,
    scale: float,
    out: _Floats,
    threads: int,
) -> None:
    """Fill ``relu(softmax(scale q k) v + residual)``, of ``projected`` (B, F, 4, heads, units)."""

def field_attention_grad(
    projected: _Floats,
    fields: int,
    heads: int,
    units: int,
    scale: float,
    out: _Floats,
    grad_out: _Floats,
    grad_projected: _Floats,
    threads: int,
) -> None:
    """Fill the gradient of :func:`field_attention`."""

def field_convolution(
    maps: _Floats,
    rows: int,
    weight: _Floats,
    bias: _Floats,
    dim: int,
    width: int,
    k: int,
    out: _Floats,
    positions: NDArray[np.uint8],
    threads: int,
) -> None:
    """Fill the k largest values of ``tanh(convolution)`` over fields, (B, filters, k, dim).

    ``maps`` is (B, maps, F, dim), ``weight`` (filters, maps, width).
    """

def field_convolution_grad(
    maps: _Floats,
    rows: int,
    weight: _Floats,
    bias: _Floats,
    dim: int,
    width: int,
    k: int,
    out: _Floats,
    positions: NDArray[np.uint8],
    grad_out: _Floats,
    grad_maps: _Floats,
    grad_weight: _Floats,
    grad_bias: _Floats,
    threads: int,
) -> None:
    """Fill the gradients of :func:`field_convolution`; two arrays are what it filled."""

def bilinear_products(
    left: _Floats,
    fields: _Floats,
    gates: _Floats,
    numbers: _Floats,
    out: _Floats,
    threads: int,
) -> None:
    """Fill ``a_i a_j l_ij v_j`` and ``l_ij v_j`` of all pairs i < j of fields, and the numbers."""

def bilinear_products_grad(
    left: _Floats,
    fields: _Floats,
    gates: _Floats,
    numbers: _Floats,
    grad_out: _Floats,
    grad_left: _Floats,
    grad_fields: _Floats,
    grad_gates: _Floats,
    threads: int,
) -> None:
    """Fill the gradients of :func:`bilinear_products`, but for the numbers'."""

def exp_norm(
    values: _Floats,
    weight: _Floats,
    bias: _Floats,
    dim: int,
    mean: _Floats,
    variance: _Floats,
    epsilon: float,
    out: _Floats,
    threads: int,
) -> None:
    """Fill the batch norm of ``exp(values)``, which takes the place of ``values`` (B, dim, J).

    The moments, over examples and dimensions, go into ``mean`` and ``variance``; ``out`` is (B, J,
    dim).
    """

def exp_norm_grad(
    values: _Floats,
    weight: _Floats,
    bias: _Floats,
    dim: int,
    mean: _Floats,
    variance: _Floats,
    epsilon: float,
    grad_out: _Floats,
    grad_sums: _Floats,
    grad_weight: _Floats,
    grad_bias: _Floats,
    threads: int,
) -> None:
    """Fill the gradients of :func:`exp_norm`, whose arrays are as it left them."""

def dice(
    sums: _Floats,
    alpha: _Floats,
    mean: _Floats,
    variance: _Floats,
    epsilon: float,
    out: _Floats,
    threads: int,
) -> None:
    """Fill Dice of ``sums`` (B, H), whose moments over the rows go into ``mean``, ``variance``."""

def dice_grad(
    sums: _Floats,
    alpha: _Floats,
    mean: _Floats,
    variance: _Floats,
    epsilon: float,
    grad_out: _Floats,
    grad_sums: _Floats,
    grad_alpha: _Floats,
    threads: int,
) -> None:
    """Fill the gradients of :func:`dice`, which filled ``mean`` and ``variance``."""

def aware_products(input: _Floats, fields: int, dim: int, out: _Floats, threads: int) -> None:
    """Fill copies, the pairs' scalar products and further numbers of field-aware embeddings.

    A row of ``input`` holds (F, F, dim): what a field copies, and what it multiplies with each
    other field; then the further numbers.
    """

def aware_products_grad(
    input: _Floats, fields: int, dim: int, grad_out: _Floats, grad_input: _Floats, threads: int
) -> None:
    """Fill the gradient of :func:`aware_products`."""

def has_bf16_products() -> bool:
    """Tell whether towers can be computed in bfloat16 here (AVX512_BF16, and it is in use)."""

class TowerNorm:
    """Batch norm of a layer's outputs; ``inverse`` (width) and ``normed`` (B, width) are room."""

    def __init__(
        self,
        *,
        weight: _Floats,
        bias: _Floats,
        weight_grad: _Floats,
        bias_grad: _Floats,
        running_mean: _Floats,
        running_var: _Floats,
        inverse: _Floats,
        normed: _Floats,
        momentum: float = 0.1,
        eps: float = 1e-5,
        biased: bool = False,
    ) -> None: ...

class TowerLayer:
    """A dense layer, then its activation, dropout and norm, over one batch.

    ``activation`` is ``"linear"``, ``"relu"``, ``"gelu"``, ``"tanh"``, ``"elu"``, ``"leaky_relu"``
    or ``"silu"``. ``grad`` holds the gradient of the outputs, then of the sums; ``slope`` is room
    for the derivatives of outputs (before the norm) by sums: needed with dropout, a norm or an
    activation other than these two: linear, relu.
    """

    def __init__(
        self,
        *,
        weight: _Floats,
        output: _Floats,
        grad: _Floats,
        weight_grad: _Floats,
        bias: _Floats | None = None,
        bias_grad: _Floats | None = None,
        slope: _Floats | None = None,
        activation: str = "linear",
        dropout: float = 0.0,
        norm: TowerNorm | None = None,
    ) -> None: ...

class Tower:
    """A tower of dense layers in training: its arrays over one batch, checked once.

    ``bf16`` rounds the factors of products; sums stay float32.
    """

    def __init__(
        self,
        *,
        input_BX: _Floats,
        layers: Sequence[TowerLayer],
        grad_input_BX: _Floats,
        bf16: bool = False,
    ) -> None: ...
    def forward(self, threads: int = 1, key: int = 0) -> None:
        """Fill the outputs of every layer, and move the norms' running figures.

        Args:
            threads: Results do not depend on it.
            key: What is dropped is a function of it, the layer, the row and the unit.
        """
    def backward(self, threads: int = 1) -> TowerGradients:
        """Fill the gradient of the input, and begin with those of the weights and biases.

        The last layer's ``grad`` holds the gradient of its outputs. Nothing below the tower needs
        the weights' gradients: other threads sum them over the batch while the caller goes on, for
        instance with the rows of the embeddings.
        """
    def backward_rows(self, threads: int = 1) -> None:
        """Fill the gradient of the input alone."""
    def gradients(self, first: int, last: int, threads: int = 1) -> TowerGradients:
        """Begin with the weights' and biases' gradients over rows ``first`` to ``last`` alone.

        They are what a batch of these rows would give; :meth:`backward_rows` came before.
        """

class TowerGradients:
    """The weights' and biases' gradients of a tower, which other threads are computing."""

    def wait(self) -> None:
        """Help with what is left; return when all gradients are complete."""

# ---- runs of training steps: widedeep.training.step_program makes them of a model ----------------

class RowUpdate:
    """How rows move: the optimizer of a kernel, its state beside the weights, its numbers."""

    def __init__(
        self,
        kernel: str,
        weights: _Floats,
        state: Sequence[_Floats],
        *,
        lr: float,
        eps: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 0.0,
        lr_power: float = 0.0,
        shrinkage: float = 0.0,
        beta1: float = 0.0,
        beta2: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None: ...

class StepTable:
    """A table in a step; without an update its rows stay.

    ``wide_tables`` are the wide table's numbers of its logical tables, where all are there, and
    ``shifts`` how many rows further they lie here.
    """

    def __init__(
        self,
        slots: Slots,
        weights: _Floats,
        update: RowUpdate | None,
        wide_tables: Sequence[int] = (),
        shifts: Sequence[int] = (),
    ) -> None: ...

class StepProgram:
    """Training steps of a model, over arrays that are checked once.

    Of one log loss, or of losses that a function fills in: it is called with the first example of a
    batch and the one behind the last, and returns whether they can be learned.
    """

    def __init__(
        self,
        *,
        n_features: int,
        wide: StepTable | None,
        tables: Sequence[StepTable],
        tower: Tower | None,
        input_BX: _Floats | None,
        first_dense: int,
        dense_columns: Sequence[int],
        bias: _Floats,
        bias_grad: _Floats,
        dense: Sequence[tuple[RowUpdate, _Floats, float]],
        log_rates: _Doubles | None,
        evidence: _Doubles | None,
        rate_step: float,
        lowest_rate: float,
        highest_rate: float,
        row_scale: float,
        mean_loss: bool,
    ) -> None: ...
    def run(
        self,
        batch: CsrBatch | None,
        *,
        dense_BK: _Floats,
        labels_B: _Floats | None,
        losses: Callable[[int, int], bool] | None,
        weight_B: _Floats | None,
        batch_rows: int,
        step: int,
        factors_S3: _Doubles,
        keys_S: NDArray[np.uint64] | None,
        frozen_rates: bool,
        logits_BC: _Floats,
        losses_B: _Floats,
        grads_BC: _Floats,
        totals_S: _Floats,
        weights_S: _Floats,
        most_seconds: float,
        threads: int,
    ) -> tuple[int, int]:
        """Learn batches of ``batch_rows`` examples, one after the other.

        Fills the results of each example and step. Returns the steps done, and the change of the
        wide part's non-zero count. It stops before a batch with an id, label, loss or gradient out
        of range, of which nothing moves, and after ``most_seconds``.
        """

# The transform. Call it through widedeep.data.transform.
Encoded: TypeAlias = tuple[
    _Ints,  # ids
    _Ints,  # offsets
    _Floats,  # dense (rows, K)
    _Floats | None,  # a weight an id
    _Floats,  # labels (rows, L)
    _Floats | None,  # example weights
    _Ints | None,  # groups
]

def fingerprint64(text: bytes) -> int: ...
def crc32c(data: _Bytes, before: int = 0) -> int:
    """Return the CRC-32C of bytes, or of those behind others whose checksum is ``before``."""

def is_misspelt(key: bytes, column: bytes) -> bool: ...

class TransformPlan:
    """What a schema says about turning columns into ids; each method returns a place in it."""

    max_values: int
    def check_values(self, total: int) -> None: ...
    def __init__(self) -> None: ...
    def add_text_vocabulary(
        self, offsets: _Ints, bytes: _Bytes, index: NDArray[np.uint64] | None = None
    ) -> int:
        """Add a vocabulary; with what ``text_index`` gave for it, none is built in memory."""
    def add_integer_vocabulary(
        self,
        values: _Ints,
        index: NDArray[np.uint64] | None = None,
        direct: NDArray[np.int32] | None = None,
    ) -> int:
        """Add a vocabulary; with what ``integer_index`` gave, slots (n, 2) or positions (n,)."""
    def add_categorical(
        self,
        name: str,
        column: str,
        *,
        way: str,
        vocabulary: int,
        buckets: int,
        oov_buckets: int,
        drop_unseen: bool,
        empty_as_null: bool,
        key_is_place: bool,
        weights: str | None,
        parallel: str | None = None,
        maxlen: int | None = None,
        keep_first: bool = False,
        keeps_nulls: bool = False,
        wants_keys: bool,
        remainders: int = 0,
        default_id: int | None = None,
        default_key: int = 0,
    ) -> int: ...
    def truncated(self, part: int) -> int:
        """Return how many lists of a part were cut to ``maxlen`` so far."""
    def set_storage(self, column: str, kind: str, scale: int, unit: int) -> None: ...
    def add_bucketized(
        self,
        name: str,
        column: str,
        boundaries: NDArray[np.float64],
        wants_keys: bool,
        size: int,
    ) -> int: ...
    def add_piecewise(self, name: str, column: str, cuts: NDArray[np.float64]) -> int: ...
    def add_learned_cross(
        self, name: str, parts: list[int], combinations: _Ints, max_combinations: int
    ) -> int: ...
    def add_hashed_cross(
        self, name: str, parts: list[int], buckets: int, max_combinations: int, hash_key: int
    ) -> int: ...
    def add_number(
        self,
        name: str,
        column: str,
        *,
        transform: str,
        indicator: bool,
        boundaries: list[NDArray[np.float64]],
        shift: NDArray[np.float64],
        scale: NDArray[np.float64],
        fill: _Floats,
    ) -> int: ...
    def add_counts(self, name: str, source: str, index: int, width: int) -> int: ...
    def add_number_sequence(
        self,
        name: str,
        column: str,
        *,
        transform: str,
        boundaries: list[NDArray[np.float64]],
        shift: float,
        scale: float,
        parallel: str | None,
        maxlen: int | None,
        keep_first: bool,
    ) -> int: ...
    def add_label(
        self,
        column: str,
        classes: list[str] | None,
        nullable: bool = False,
        several: bool = False,
        is_weight: bool = False,
    ) -> None: ...
    def set_weight(self, column: str) -> None: ...
    def set_group(self, column: str) -> None: ...
    def fix_part(self, index: int, value: object, plain: Callable[[object], object]) -> None: ...
    def fix_number(self, index: int, value: object, plain: Callable[[object], object]) -> None: ...

class TransformProgram:
    """A choice of what a plan computes, and from which columns."""

    @property
    def columns(self) -> list[str]: ...
    def encode(
        self, batches: Sequence[tuple[object, object]], origin: str, first_row: int, threads: int
    ) -> Encoded: ...
    def encode_packed(
        self,
        batches: Sequence[tuple[object, object]],
        widths: Sequence[int],
        origin: str,
        first_row: int,
        threads: int,
    ) -> tuple[ExampleLayout, _Bytes, _Ints] | None:
        """Return rows as :func:`pack_examples` does; None where an id needs more than its width."""
    def encode_rows(
        self,
        rows: list[dict[str, object]],
        plain: Callable[[object], object],
        origin: str,
        first_row: int,
        threads: int,
    ) -> tuple[Encoded, list[int]]: ...

def text_index(offsets: _Ints, bytes: _Bytes) -> NDArray[np.uint64]:
    """Return the hash table of a vocabulary of texts, slots (n, 2)."""

def integer_index(values: _Ints) -> NDArray[np.uint64] | NDArray[np.int32]:
    """Return the hash table of integers, slots (n, 2), or positions (n,) by value."""

def make_program(
    plan: TransformPlan,
    slots: Sequence[tuple[str, int]],
    *,
    dense: bool,
    targets: bool,
    fixed: bool,
) -> TransformProgram: ...
def read_numbers(array: tuple[object, object]) -> NDArray[np.float64]:
    """Return the numbers of an Arrow array that is not nested (its capsules), NaN for nulls."""

def entry_counts(array: tuple[object, object], counts: _Ints | None = None) -> _Ints:
    """Return how often each entry of an Arrow dictionary occurs; an index counts ``counts[i]``."""

def read_times(array: tuple[object, object], unit: int) -> tuple[NDArray[np.int64], int]:
    """Return microseconds since 1970 of times as text, and the first value that is none, or -1.

    They are rounded down to a unit of so many nanoseconds, which whole numbers count.
    """

def sum_numbers(
    values: NDArray[np.float64],
) -> tuple[int, float, float, list[tuple[int, int, int]]]:
    """Return count, minimum, maximum and exact sum of the numbers that are no NaN.

    The sum is that of ``2**exponent * (2**26 * high + low)`` over its (exponent, high, low).
    """

def sorted_numbers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the numbers that are no NaN in ascending order; zeros as +0."""

def sorted_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return words in ascending order."""

class ExampleLayout:
    """What the bytes of packed examples are: widths of ids by slot, and what stands behind them."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        n_dense: int,
        n_labels: int,
        has_values: bool,
        has_weight: bool,
        has_group: bool,
    ) -> None: ...
    @property
    def n_labels(self) -> int: ...

def pack_examples(
    layout: ExampleLayout,
    ids: _Ints,
    offsets: _Ints,
    values: _Floats | None,
    dense: _Floats,
    labels: _Floats | None,
    weight: _Floats | None,
    group: _Ints | None,
) -> tuple[_Bytes, _Ints]:
    """Return the bytes of a batch's examples, and where each begins and the last one ends."""

def unpack_examples(
    layout: ExampleLayout, spans: _Ints
) -> tuple[_Ints, _Ints, _Floats, _Floats | None, _Floats | None, _Floats | None, _Ints | None]:
    """Return ids, offsets, dense, values, labels, weight and group of examples at addresses.

    ``spans`` (B, 2) says where each begins and ends; the caller keeps that memory alive.
    """

class CsvRows:
    """Rows of CSV text as columns: numbers parsed, everything else as texts by dictionary.

    Column i is field ``fields[i]`` of records of ``width`` fields. Text that breaks the grammar, or
    is not UTF-8, is refused without a reason. Fields that are one of ``null_values`` are missing,
    in quotes or without. Beyond ``full_bytes`` of a column's texts no more
    rows are read.
    """

    def __init__(
        self,
        width: int,
        fields: Sequence[int],
        are_numbers: Sequence[bool],
        full_bytes: int,
        null_values: Sequence[str],
    ) -> None: ...
    def add(self, text: bytes, start: int, most_rows: int) -> int:
        """Read records from ``start`` on until there are ``most_rows`` (65,536 at most).

        Returns where the next record starts, or -1 less the start of one that is refused.
        """
    @property
    def n_rows(self) -> int: ...
    @property
    def is_full(self) -> bool: ...
    def take(self) -> list[tuple[NDArray[Any] | None, ...]]:
        """Return the columns of all rows, and keep none.

        Each is validity bits (None: all valid) with either float64 numbers, None if one is written
        as no plain number, or uint16 codes with the dictionary's int32 offsets and bytes.
        """

def csv_end(text: bytes) -> tuple[int, int]:
    """Return where the last whole record of a text ends, and the line feeds before that."""

class CountTable:
    """Counts of byte strings, compared byte by byte, in a bounded amount of memory.

    ``limit_bytes`` bounds keys, counts and the hash table. A full table refuses further keys; an
    empty one takes at least one.
    """

    def __init__(self, limit_bytes: int) -> None: ...
    def add(self, data: _Bytes, offsets: _Ints, counts: _Ints | None = None, first: int = 0) -> int:
        """Count keys ``data[offsets[i] : offsets[i + 1]]`` from ``first`` until the table is full.

        A key counts ``counts[i]`` times (None: once; 0: passed over). Returns the first key that is
        not in, or the number of keys.
        """
    def partitions(self, shift: int, bits: int) -> tuple[NDArray[np.uint32], _Ints]:
        """Group the keys by ``bits`` bits of their hashes, those below the top ``shift``.

        Returns a reference to each key, valid until the table changes, and where each partition
        starts in these.
        """
    def take(self, order: NDArray[np.uint32]) -> tuple[_Bytes, _Ints, _Ints]:
        """Return bytes, offsets and counts of the keys at these references."""
    def ranked(
        self, min_count: int, max_size: int | None, tail_size: int, tail_bytes: int | None = None
    ) -> tuple[_Bytes, _Ints, _Ints]:
        """Return bytes, offsets and counts of keys, the largest count first, then by their bytes.

        They are ``max_size`` of those counted at least ``min_count`` times, and behind them the
        next ``tail_size`` keys, as far as their bytes come to ``tail_bytes`` (None: any number).
        """
    def clear(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes in use, without what is reserved ahead (at most 1 MiB)."""

# The forward pass; widedeep.kernels.score documents it.
class Scorer:
    """Turns ids, offsets and dense numbers into the wide and the deep part of the logits.

    It is built from a model's arrays, then run. Sums run in a fixed order in float32, so a row's
    logits depend neither on the rows beside it nor on ``threads``. Wide part: a slot's ids in
    order, then its combiner; the query's slots one after the other, the item's likewise, then both
    sums. First layer: the query's inputs in order, the item's likewise, the two sums, then the
    bias. Later layers: the inputs in order, then the bias. Tables are read where they are, in a
    mapped file for one; layers are copied.
    """

    def __init__(self, n_slots: int, n_dense: int, n_classes: int) -> None: ...
    def add_wide(self, slot: int, weights: _Floats, combiner: str, *, item: bool) -> None: ...
    def add_embedding(self, slot: int, table: _Floats | PackedRows, combiner: str) -> None: ...
    def add_sequence(self, slot: int, table: _Floats | PackedRows, places: int) -> None: ...
    def add_dense(self, column: int, width: int) -> None: ...
    def start_item_inputs(self) -> None: ...
    def add_layer(self, weight: _Floats, bias: _Floats | None, activation: str) -> None: ...
    def set_program(self, program: ScoreProgram) -> None: ...
    def forward(
        self,
        ids_N: _Ints,
        offsets_BF: _Ints,
        values_N: _Floats | None,
        dense_BK: _Floats,
        *,
        threads: int,
    ) -> tuple[_Floats, _Floats | None]: ...
    def concat(
        self,
        ids_N: _Ints,
        offsets_BF: _Ints,
        values_N: _Floats | None,
        dense_BK: _Floats,
        *,
        threads: int,
    ) -> _Floats: ...

class SideParts:
    """Parts of some rows that crosses with the other side read."""

    @property
    def n_rows(self) -> int: ...

class EncodedSide:
    """One side's rows, ready to be summed and crossed."""

    @property
    def parts(self) -> SideParts: ...
    @property
    def arrays(self) -> tuple[_Ints, _Ints, _Floats | None, _Floats]:
        """ids_N, offsets_BF, values_N, dense_BK."""

class TransformSides:
    """What a plan computes of the query, of the items, and of both."""

    def __init__(
        self,
        plan: TransformPlan,
        *,
        query: list[tuple[str, int]],
        item: list[tuple[str, int]],
        query_numbers: list[int],
        item_numbers: list[int],
        crosses: list[int],
        item_parts: list[int],
    ) -> None: ...
    @property
    def query_columns(self) -> list[str]: ...
    @property
    def item_columns(self) -> list[str]: ...
    def encode_rows(
        self,
        items: bool,
        rows: list[dict[str, object]],
        plain: Callable[[object], object],
        origin: str,
    ) -> tuple[EncodedSide, list[int]]: ...
    def encode_items(
        self, batches: Sequence[tuple[object, object]], origin: str
    ) -> EncodedSide: ...
    def cross(
        self, query: SideParts, items: SideParts, positions: _Ints
    ) -> tuple[_Ints, _Ints]: ...

class PartialSums:
    """What the query's one row, or the rows of items, bring to requests."""

    def __init__(
        self,
        parts: SideParts,
        wide: _Floats,
        hidden: _Floats | None,
        hidden_bfloat16: NDArray[np.uint16] | None = None,
    ) -> None: ...
    @property
    def parts(self) -> SideParts: ...
    @property
    def wide(self) -> _Floats: ...
    @property
    def hidden(self) -> _Floats | None: ...
    @property
    def hidden_bfloat16(self) -> NDArray[np.uint16] | None: ...

class ItemIds:
    """The places of a catalogue's ids, all of them text or all integers of 64 bits."""

    def __init__(self, ids: list[object]) -> None: ...
    def find(self, ids: list[object]) -> tuple[_Ints, bool]:
        """Return the place of each id, -1 for what is not there, and whether all are there."""

class ScoreProgram:
    """Towers as operations over values of fixed size a row; see widedeep.bundle.program.

    Values are numbered: the inputs of the three stages, then whatever is added.
    """

    def __init__(self, input_sizes: Sequence[int]) -> None: ...
    def add_constant(self, values: _Floats) -> int: ...
    def add_map(
        self,
        stage: int,
        function: str,
        dims: Sequence[int],
        inputs: Sequence[tuple[int, int, Sequence[int]]],
        first: float = 0.0,
        second: float = 0.0,
    ) -> int: ...
    def add_reduce(
        self, stage: int, function: str, dims: Sequence[int], input: tuple[int, int, Sequence[int]]
    ) -> int: ...
    def add_top(
        self, stage: int, count: int, dims: Sequence[int], input: tuple[int, int, Sequence[int]]
    ) -> int: ...
    def add_matmul(
        self,
        stage: int,
        dims: Sequence[int],
        left: tuple[int, int, Sequence[int]],
        right: tuple[int, int, Sequence[int]],
    ) -> int: ...
    def add_linear(
        self, stage: int, input: int, weight: _Floats, bias: _Floats | None, activation: str
    ) -> int: ...
    def add_gather(self, stage: int, segments: Sequence[tuple[int, int, int]]) -> int: ...
    def finish(self, output: int) -> None: ...

class RankScorer:
    """Computes logits of candidates from sums kept of the query and of the items.

    Sums run in the order of :class:`Scorer`: the item's go on over the pair's, then the query's are
    added, so the logits are the scorer's, bit for bit. Each side has slots of its own, numbered
    from 0, and its batches hold these alone.
    """

    def __init__(self, n_slots: tuple[int, int, int], n_dense: int, n_classes: int) -> None: ...
    def add_wide(self, side: str, slot: int, weights: _Floats, combiner: str) -> None: ...
    def add_embedding(
        self, side: str, slot: int, table: _Floats | PackedRows, combiner: str
    ) -> None: ...
    def add_sequence(
        self, side: str, slot: int, table: _Floats | PackedRows, places: int
    ) -> None: ...
    def add_dense(self, side: str, column: int, width: int) -> None: ...
    def add_layer(
        self, weight: _Floats, bias: _Floats | None, activation: str, *, bfloat16: bool = False
    ) -> None: ...
    def set_program(self, program: ScoreProgram) -> None: ...
    def sums(
        self,
        side: str,
        ids_N: _Ints,
        offsets_BF: _Ints,
        values_N: _Floats | None,
        dense_BK: _Floats,
        *,
        threads: int,
    ) -> tuple[_Floats, _Floats]: ...
    def sums_of(self, side: str, rows: EncodedSide, *, threads: int) -> PartialSums: ...
    def rank(
        self,
        query_wide: _Floats,
        query_hidden: _Floats,
        item_wide: _Floats,
        item_hidden: _Floats | None,
        item_hidden_bfloat16: NDArray[np.uint16] | None,
        positions_B: _Ints,
        ids_N: _Ints,
        offsets_BF: _Ints,
        *,
        threads: int,
    ) -> tuple[_Floats, _Floats | None]: ...
    def logits(
        self,
        sides: TransformSides,
        query: PartialSums,
        items: PartialSums,
        positions_B: _Ints,
        bias_C: _Floats,
        *,
        threads: int,
    ) -> _Floats: ...

# Functions between logits and scores; see widedeep.kernels.score.
def score_function(name: str, x_N: NDArray[np.float64]) -> NDArray[np.float64]: ...
def power(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.float64]: ...
def lognormal_mean(logits_B3: NDArray[np.float64]) -> NDArray[np.float64]: ...

# The native server; see widedeep.serving.http.native_server.

class QueueSlots:
    """Counts requests that wait or are computed; refuses beyond a limit, or a time (limit -1)."""

    def __init__(self, limit: int, max_wait_s: float = 1.0) -> None: ...
    def enter(self) -> bool: ...
    def leave(self) -> None: ...
    @property
    def allowed(self) -> int: ...
    @property
    def inside(self) -> int: ...
    @property
    def refused(self) -> int: ...

class TokenBucket:
    """``rate`` requests per second, with bursts of one second's worth."""

    def __init__(self, rate: float) -> None: ...
    @property
    def rate(self) -> float: ...
    def take(self) -> float:
        """Take a token; return 0, or the seconds until the next one."""

class ApiKey:
    """The key of one caller: its name for logs, and the SHA-256 of the key."""

    def __init__(
        self, name: str, *, digest: bytes, admin: bool = False, bucket: TokenBucket | None = None
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def admin(self) -> bool: ...
    @property
    def bucket(self) -> TokenBucket | None: ...

class ApiKeys:
    """The keys of a server's callers; its threads compare offered ones with all of them."""

    def replace(self, keys: Sequence[ApiKey]) -> None: ...
    def all(self) -> list[ApiKey]: ...
    def find(self, offered: bytes) -> ApiKey | None: ...

class RankRoute:
    """A version that answers plain requests."""

    def __init__(
        self,
        sides: TransformSides,
        scorer: RankScorer,
        items: PartialSums | None,
        bias_C: _Floats,
        ids: ItemIds | None,
        numbers: NDArray[np.float64],
        options: dict[str, object],
    ) -> None: ...
    @property
    def in_use(self) -> bool: ...
    @property
    def infers(self) -> bool: ...
    def figures(self) -> tuple[int, int, float, list[int], int, int]: ...
    def inferred(self) -> tuple[int, int, float]: ...

_Record: TypeAlias = tuple[
    RankRoute | None,
    str,
    str,
    str,
    bytes,
    int,
    float,
    int,
    bool,
    bool,
    int,
    bool,
    int,
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.float32],
]
"""(route, path, request id, caller, body, microseconds, seconds, status, sampled, unlogged, rows,
whether for scores of rows, length of the JSON, order, scores, places of unknown items, logits of
all candidates where they were ranked by a formula)"""

class LogShape:
    """What is logged of a route's requests."""

    def __init__(
        self,
        user_column: str,
        query: Sequence[tuple[str, str | None, bool]],
        item: Sequence[tuple[str, str | None, bool]],
        items: tuple[object, object],
        header_of_integers: bytes,
        header_of_texts: bytes,
    ) -> None: ...

class ImpressionQueue:
    """Answered requests that wait to be written."""

    def __init__(self, sample: float, hash_key: bytes, most_bytes: int, waits: bool) -> None: ...
    def take(self) -> list[tuple[bytes, bytes, int, int]]:
        """Return (header, chunk, requests, rows) of each stream."""

    def counts(self) -> tuple[int, int, int, int, int]:
        """Return requests offered, left out, without a user and dropped, and rows dropped."""

    def close(self) -> None: ...

class ImpressionFile:
    """Chunks of answered requests as the column chunks of a Parquet file."""

    def __init__(
        self, columns: Sequence[tuple[str, str, str, bool, bool, bytes]], arrow_schema: str
    ) -> None: ...
    def add(self, chunk: bytes) -> bool: ...
    @property
    def rows(self) -> int: ...
    @property
    def is_full(self) -> bool: ...
    def column_chunk(self, column: int, offset: int) -> bytes: ...
    def end_group(self) -> None: ...
    def footer(self) -> bytes: ...

class NativeServer:
    """The connections of a server (Linux)."""

    def __init__(
        self, listening: int, handoff_event: int, slots: QueueSlots, options: dict[str, object]
    ) -> None: ...
    def set_routes(
        self,
        path: str,
        stable: RankRoute | None,
        canary: RankRoute | None,
        share: float,
        records_all: bool,
        is_logged: bool,
    ) -> None: ...
    def pop_handoffs(self) -> list[tuple[int, bytes]]: ...
    def return_connection(self, socket: int) -> None: ...
    def accept_handoff(self, socket: int) -> None: ...
    def closed_elsewhere(self) -> None: ...
    def take_records(self) -> list[_Record]: ...
    def answers(self) -> dict[tuple[bool, int], tuple[int, float, list[int]]]: ...
    @property
    def dropped(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def is_accepting(self) -> bool: ...
    @property
    def connections_before_drain(self) -> int: ...
    def endings(self) -> dict[str, int]: ...
    def announce_end(self) -> None: ...
    def stop_accepting(self) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...
