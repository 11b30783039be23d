"""The kernels in C++ (native/): contiguous arrays in and out, the GIL released."""

from collections.abc import Callable, Sequence
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

def add_wakefulness(change: int, /) -> None:
    """Let threads without work look for more before they sleep (1), or no longer (-1)."""

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
    l2: float,
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
    decay: float,
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
    rates: _Floats | None,
    products: _Floats | None,
    threads: int,
    /,
) -> int: ...
def logistic_loss(logits: _Floats, labels: _Floats, losses: _Floats, grads: _Floats, /) -> None: ...
def has_bf16_products() -> bool: ...
def tower_forward(
    bf16: bool,
    input: _Floats,
    weights: list[_Floats],
    biases: list[_Floats],
    outputs: list[_Floats],
    threads: int,
    /,
) -> None: ...
def tower_backward(
    bf16: bool,
    input: _Floats,
    weights: list[_Floats],
    outputs: list[_Floats],
    grad_logits: _Floats,
    grads: list[_Floats],
    grad_input: _Floats,
    weight_grads: list[_Floats],
    bias_grads: list[_Floats],
    threads: int,
    /,
) -> TowerGradients: ...

class TowerGradients:
    """What tower_backward left to other threads; its arrays must be kept until wait returns."""
    def wait(self) -> None: ...

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

class TransformPlan:
    """What a schema says about turning columns into ids; each method returns a place in it."""

    max_values: int
    def check_values(self, total: int) -> None: ...
    def __init__(self) -> None: ...
    def add_text_vocabulary(self, offsets: _Ints, bytes: _Bytes) -> int: ...
    def add_integer_vocabulary(self, values: _Ints) -> int: ...
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
        wants_keys: bool,
    ) -> int: ...
    def set_storage(self, column: str, kind: str, scale: int, unit: int) -> None: ...
    def add_bucketized(
        self, name: str, column: str, boundaries: NDArray[np.float64], wants_keys: bool
    ) -> int: ...
    def add_learned_cross(
        self, name: str, parts: list[int], combinations: _Ints, max_combinations: int
    ) -> int: ...
    def add_hashed_cross(
        self, name: str, parts: list[int], buckets: int, max_combinations: int
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
    def add_label(self, column: str, classes: list[str] | None) -> None: ...
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
    def encode_rows(
        self,
        rows: list[dict[str, object]],
        plain: Callable[[object], object],
        origin: str,
        first_row: int,
        threads: int,
    ) -> tuple[Encoded, list[int]]: ...

def make_program(
    plan: TransformPlan,
    slots: Sequence[tuple[str, int]],
    *,
    dense: bool,
    targets: bool,
    fixed: bool,
) -> TransformProgram: ...

# The count table; trusted arguments: use it through widedeep.kernels.CountTable.
class CountTable:
    MAX_KEY_BYTES: int
    def __init__(self, limit_bytes: int) -> None: ...
    def add(self, data: _Bytes, offsets: _Ints, counts: _Ints | None, first: int) -> int: ...
    def partition(
        self, shift: int, bits: int, order: NDArray[np.uint32], starts: _Ints
    ) -> None: ...
    def key_bytes(self, order: NDArray[np.uint32]) -> int: ...
    def take(
        self, order: NDArray[np.uint32], data: _Bytes, offsets: _Ints, counts: _Ints
    ) -> None: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

# The forward pass; widedeep.kernels.score documents it.
class Scorer:
    def __init__(self, n_slots: int, n_dense: int, n_classes: int) -> None: ...
    def add_wide(self, slot: int, weights: _Floats, combiner: str, *, item: bool) -> None: ...
    def add_embedding(self, slot: int, table: _Floats, combiner: str) -> None: ...
    def add_dense(self, column: int, width: int) -> None: ...
    def start_item_inputs(self) -> None: ...
    def add_layer(self, weight: _Floats, bias: _Floats | None, activation: str) -> None: ...
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

class RankScorer:
    def __init__(self, n_slots: tuple[int, int, int], n_dense: int, n_classes: int) -> None: ...
    def add_wide(self, side: str, slot: int, weights: _Floats, combiner: str) -> None: ...
    def add_embedding(self, side: str, slot: int, table: _Floats, combiner: str) -> None: ...
    def add_dense(self, side: str, column: int, width: int) -> None: ...
    def add_layer(
        self, weight: _Floats, bias: _Floats | None, activation: str, *, bfloat16: bool = False
    ) -> None: ...
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

# The native server; see widedeep.serving.http.native_server.
def sigmoid(logits_B: NDArray[np.float64]) -> NDArray[np.float64]: ...

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

class RankRoute:
    """A version that answers plain requests."""

    def __init__(
        self,
        sides: TransformSides,
        scorer: RankScorer,
        items: PartialSums,
        bias_C: _Floats,
        ids: ItemIds,
        options: dict[str, object],
    ) -> None: ...
    @property
    def in_use(self) -> bool: ...
    def figures(self) -> tuple[int, int, float, list[int]]: ...

_Record: TypeAlias = tuple[
    RankRoute | None,
    str,
    str,
    bytes,
    int,
    float,
    int,
    bool,
    NDArray[np.int64],
    NDArray[np.float64],
]
"""(route, path, request id, body, microseconds, seconds, status, sampled, order, scores)"""

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
    ) -> None: ...
    def pop_handoffs(self) -> list[tuple[int, bytes]]: ...
    def return_connection(self, socket: int) -> None: ...
    def accept_handoff(self, socket: int) -> None: ...
    def closed_elsewhere(self) -> None: ...
    def take_records(self) -> list[_Record]: ...
    def answers(self) -> dict[int, tuple[int, float, list[int]]]: ...
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
