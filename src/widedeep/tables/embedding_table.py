"""EmbeddingTable: the only one that knows which row belongs to which feature's id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.errors import CheckpointError, DataError, SchemaError, nearest
from widedeep.features.embedding import EmbeddingOptions
from widedeep.kernels import torch_device
from widedeep.kernels.torch_ops import (
    TensorBatch,
    TensorGroups,
    TensorSlots,
    as_array,
    max_pool,
    to_device,
)
from widedeep.optim import Optimizer
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.rows import deal_rows, fetch_rows
from widedeep.tables.id_errors import named_features, outside
from widedeep.tables.row_rules import RowRule, limit_norms, with_penalty
from widedeep.tables.storage import (
    BatchArrays,
    DeviceBatches,
    DeviceSlots,
    Groups,
    IdLists,
    LaneOrder,
    RecordLayout,
    RowLookup,
    RowStorage,
    SlotLike,
    csr_batch,
    sequence_rows,
)

TableVectors = tuple[NDArray[np.int64], Tensor]  # (M,) ids and the (M, D) rows they start with
_NO_RULE = RowRule()
_COMBINERS = ("sum", "mean", "sqrtn", "max")  # by their number in the kernels
_HALVES = (torch.bfloat16, np.dtype(np.uint16))  # of a model's tensors, of a checkpoint's
_CHUNK_ROWS = 1 << 18  # rows filled or counted at a time, so that temporaries stay small


class EmbeddingTable:
    """One physical table of R rows and D columns that holds several logical tables.

    Over several ranks, ``shard`` says which of them this is: the table then keeps the rows that are
    its own, and ``sizes`` stay those of the whole.
    """

    def __init__(
        self,
        tables: Mapping[str, int],
        features: Mapping[str, str],
        *,
        dim: int,
        seed: int = 0,
        std: float = 0.0,
        options: Mapping[str, EmbeddingOptions] = MappingProxyType({}),
        vectors: Mapping[str, TableVectors] = MappingProxyType({}),
        device: str | torch.device = "cpu",
        batches: DeviceBatches | None = None,
        shard: tuple[int, int] = (0, 1),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for feature, name in features.items():
            if name not in tables:
                raise SchemaError(
                    f"feature {feature!r}: got table {name!r}; {nearest(name, tables)}"
                )
        if dim < 1 or min(tables.values(), default=1) < 1:
            raise SchemaError(
                f"got dim={dim} and table sizes {dict(tables)}, expected all of them to be >= 1"
            )
        self.sizes = dict(tables)
        self.features = dict(features)
        self.dim = dim
        self.seed = seed
        self.std = std
        self.options = dict(options)
        self.rules: dict[str, RowRule] = {}
        self._vectors = dict(vectors)  # Until rows are filled
        self.device = torch.device(device)
        self.dtype = dtype  # Type of the weights: float32, or bfloat16 on the CPU
        self._on_device = self.device.type != "cpu"
        self._batches = batches or DeviceBatches(self.device)
        self._optimizer: Optimizer | None = None
        self._storage: RowStorage | None = None
        self._nonzero: int | Tensor = 0
        self._slots: dict[tuple[int, int, str | None], tuple[Any, Any, kernels.Slots]] = {}
        self.shard = shard  # (rank, number of ranks)
        self.lookup: RowLookup | None = None  # Read instead of the own rows
        self._number_rows()

    def _number_rows(self) -> None:
        sizes = np.array(list(self.sizes.values()), np.int64)
        self._sizes, self.bases = sizes, np.cumsum(sizes) - sizes
        rank, world = self.shard
        self.layouts = {name: Layout(name, size, world) for name, size in self.sizes.items()}
        own = np.array([layout.rows_of(rank) for layout in self.layouts.values()], np.int64)
        self.own_bases = np.cumsum(own) - own  # (T,) first of this rank's rows, by logical table
        self._own_sizes = own
        for array in (self._sizes, self.bases, self.own_bases, own):
            array.flags.writeable = False
        number = {name: i for i, name in enumerate(self.sizes)}
        self._table_of = {feature: number[name] for feature, name in self.features.items()}
        self._slots.clear()
        self._device_slots: DeviceSlots | None = None
        self._shared: tuple[NDArray[np.int64], list[int] | None] | None = None
        self._list_slots: kernels.Slots | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the native slots, which are made again."""
        return {**self.__dict__, "_slots": {}, "_list_slots": None}

    def set_shard(self, rank: int, world: int) -> None:
        """Keep the rows of one rank alone; the present ones keep their bits."""
        if self.shard == (rank, world):
            return
        assert self.shard[1] == 1, "a table that is divided cannot be divided again"
        old, old_bases = self._storage, self.bases
        self.shard, self._storage = (rank, world), None
        self._number_rows()
        if old is None:
            return
        storage = RowStorage(int(self._own_sizes.sum()), old.layout, self.device)
        for (name, rows), base in zip(self._parts(), old_bases.tolist(), strict=True):
            ids = torch.from_numpy(self.layouts[name].ids_of(rank)).to(self.device)
            for slot in storage.names:
                storage.part(slot)[rows] = old.part(slot)[base + ids]
        self._storage = storage
        self.recount_nonzero()

    # ---- rows --------------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """R, rows of all logical tables together, on all ranks."""
        return sum(self.sizes.values())

    @property
    def weight(self) -> Tensor:
        """The own weights, (R, D): a view, whose rows may lie further apart than D."""
        return self._filled().part("weight")

    @property
    def state(self) -> dict[str, Tensor]:
        """The attached optimizer's state by name, (R, D) each: views."""
        storage = self._filled()
        return {name: storage.part(name) for name in storage.names[1:]}

    @property
    def nonzero(self) -> int:
        """Weights that are not zero: kept up to date where ``std`` is 0, else counted now."""
        if self.std != 0.0:
            return self._count_nonzero()
        return int(self._nonzero)

    def rows(self, feature: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the physical rows of a feature's ids."""
        if feature not in self._table_of:
            raise SchemaError(f"got feature {feature!r}; {nearest(feature, self._table_of)}")
        number = self._table_of[feature]
        size = int(self._sizes[number])
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            bad = int(ids[(ids < 0) | (ids >= size)][0])
            raise DataError(outside(feature, bad, size))
        rows: NDArray[np.int64] = ids + self.bases[number]
        return rows

    @property
    def is_filled(self) -> bool:
        """Whether the rows are in memory; they are made when they are first asked for."""
        return self._storage is not None

    def _filled(self) -> RowStorage:
        if self._storage is None:
            self._storage = self._new_storage(self.sizes, None)
            self._vectors.clear()
            if self.options:
                self.recount_nonzero()
        return self._storage

    def record_layout(self, optimizer: Optimizer | None) -> RecordLayout:
        """Return what each row holds with an optimizer's state."""
        states = () if optimizer is None else optimizer.state_names
        widths = () if optimizer is None else (optimizer.state_width(n, self.dim) for n in states)
        return RecordLayout(self.dim, ("weight", *states), (self.dim, *widths), self.dtype)

    def _new_storage(self, sizes: Mapping[str, int], old: RowStorage | None) -> RowStorage:
        """Make the rows of all logical tables: those there were as they are, the rest initial."""
        record = self.record_layout(self._optimizer)
        rank, world = self.shard
        own = [Layout(name, size, world).rows_of(rank) for name, size in sizes.items()]
        storage = RowStorage(sum(own), record, self.device)
        names = record.names
        copied = ("weight",) if old is None or old.layout != record else names
        to = 0
        old_sizes = self._own_sizes.tolist()
        for t, (name, size, base) in enumerate(
            zip(sizes, own, self.own_bases.tolist(), strict=True)
        ):
            old_size = 0 if old is None else old_sizes[t]
            if old is not None:
                for slot in copied:
                    present = old.part(slot)[base : base + old_size]
                    storage.part(slot)[to : to + old_size] = present
            self._init_rows(storage.part("weight")[to + old_size : to + size], name, old_size)
            kept_state = old_size if len(copied) == len(names) else 0
            self._start_state(storage, to + kept_state, to + size)
            to += size
        storage.collapse()
        return storage

    def _init_rows(self, weight: Tensor, table: str, first: int) -> None:
        """Fill this rank's rows ``first``, ... of a logical table; they hold zeros."""
        options = self.options.get(table, EmbeddingOptions())
        std, distribution = options.initial_rows(self.std, self.dim)
        threads = torch.get_num_threads()
        rank, world = self.shard
        for begin in range(0, len(weight), _CHUNK_ROWS) if std else ():
            rows = weight[begin : begin + _CHUNK_ROWS]
            is_copy = self._on_device or self.dtype != torch.float32
            out = np.empty((len(rows), self.dim), np.float32) if is_copy else rows.numpy()
            start = first + begin
            ids = None
            if world > 1:
                ids = self.layouts[table].ids_of(rank, start, start + len(rows))
            kernels.init_rows(
                out, self.seed, table, start, std, threads, distribution=distribution, ids_n=ids
            )
            if is_copy:
                rows.copy_(torch.from_numpy(out))
        if table in self._vectors:
            ids_M, vectors_MD = self._vectors[table]
            layout = self.layouts[table]
            own_M = np.flatnonzero(layout.owner_of(ids_M) == rank)
            places = torch.from_numpy(layout.place_of(ids_M[own_M]) - first)
            weight[places.to(self.device)] = vectors_MD[own_M].to(self.device, self.dtype)

    def _start_state(self, storage: RowStorage, first: int, stop: int) -> None:
        if self._optimizer is None or not self._optimizer.state_names:
            return
        for begin in range(first, stop, _CHUNK_ROWS):
            rows = slice(begin, min(begin + _CHUNK_ROWS, stop))
            state = {name: storage.part(name)[rows] for name in self._optimizer.state_names}
            self._optimizer.start_state(storage.part("weight")[rows].float(), state)

    def _count_nonzero(self) -> int:
        weight = self.weight
        starts = range(0, len(weight), _CHUNK_ROWS)
        return sum(
            int(torch.count_nonzero(weight[begin : begin + _CHUNK_ROWS])) for begin in starts
        )

    def recount_nonzero(self) -> None:
        """Count the non-zero weights, after they were written to from outside."""
        if self.std == 0.0:
            self._nonzero = self._count_nonzero()

    # ---- batches -----------------------------------------------------------------------------

    def gather(
        self,
        batch: BatchArrays,
        slots: Sequence[SlotLike],
        columns: Mapping[str, slice],
        out_BX: Tensor,
        *,
        threads: int = 1,
    ) -> None:
        """Write the pooled embeddings of this table's features into their columns."""
        own = self.own_slots(slots, columns, None)
        with named_features(slots):
            if self._on_device:
                sparse, arguments = self._device_call(batch, own)
                sparse.gather_pool(self.weight, *arguments, out_BX)
                for i in self._slots_of(slots, "max"):
                    values_ND, example_N = self.rows_of_slot(batch, slots, i)
                    pooled_BD, _ = max_pool(values_ND, example_N, len(out_BX))
                    out_BX[:, columns[slots[i].name]] = pooled_BD
                return
            weight, csr, own = self._rows_of_batch(batch, own)
            kernels.gather_pool(as_array(weight), csr, own, out_BX.numpy(), threads)

    def add_wide(
        self,
        batch: BatchArrays,
        slots: Sequence[SlotLike],
        combiner: str,
        logits_BC: Tensor,
        *,
        threads: int = 1,
    ) -> None:
        """Add the combined weights of this table's features to the logits, slot after slot."""
        own = self.own_slots(slots, None, combiner)
        with named_features(slots):
            if self._on_device:
                sparse, arguments = self._device_call(batch, own)
                sparse.wide_forward(self.weight, *arguments, logits_BC)
                return
            weight, csr, own = self._rows_of_batch(batch, own)
            kernels.wide_forward(weight.numpy(), csr, own, logits_BC.numpy(), threads)

    def _rows_of_batch(
        self, batch: BatchArrays, own: kernels.Slots
    ) -> tuple[Tensor, kernels.CsrBatch, kernels.Slots]:
        """Return the rows that a batch reads, its ids among them, and where its tables lie."""
        lookup = self._lookup_of(batch)
        if lookup is None:
            return self.weight, csr_batch(batch, own.n_features), own
        starts_T = lookup.starts_T
        slots = kernels.Slots(
            n_features=own.n_features,
            features=own.features,
            tables=own.tables,
            table_bases=starts_T[:-1].tolist(),
            table_sizes=np.diff(starts_T).tolist(),
            combiners=[_COMBINERS[i] for i in own.combiners],
            columns=own.columns,
        )
        csr = kernels.CsrBatch(lookup.ids_N, batch.offsets_BF, batch.values_N, own.n_features)
        return lookup.rows_UD, csr, slots

    def _lookup_of(self, batch: BatchArrays) -> RowLookup | None:
        if self.lookup is None:
            assert self.shard[1] == 1, "rows of other ranks are read inside Exchange.rows_for"
            return None
        assert self.lookup.batch is batch, "the rows of another batch were looked up"
        return self.lookup

    def _device_call(
        self, batch: BatchArrays, own: kernels.Slots
    ) -> tuple[ModuleType, tuple[TensorBatch, TensorSlots]]:
        return torch_device.kernels_on(self.device), self._on_its_device.tensors(
            batch, own, check=True
        )

    def group(self, batch: BatchArrays, slots: Sequence[SlotLike], *, threads: int = 1) -> Groups:
        """Find the distinct rows that a batch touches, and where each occurs."""
        own = self.own_slots(slots, None, "sum")
        with named_features(slots):
            if self._on_device:
                return self._on_its_device.group(batch, own)
            groups = kernels.group_ids(csr_batch(batch, len(slots)), own, threads)
        return Groups(torch.from_numpy(groups.rows_U), groups)

    def regroup(self, other: EmbeddingTable, groups: Groups, *, own: bool = False) -> Groups | None:
        """Return this table's groups from those of a table that holds the same features too.

        With ``own`` they are groups of :meth:`group_lists`, of rows that this rank keeps.
        """
        # Kept from step to step; a table that grows gets other bases.
        if self._shared is None or self._shared[0] is not other.bases:
            self._shared = (other.bases, self.tables_in(other))
        tables = self._shared[1]
        if tables is None:
            return None
        # Of each table's rows, from there to here
        shifts_T = self.bases - other.bases[tables]
        if own:
            shifts_T = self.own_bases - other.own_bases[tables]
        if isinstance(groups.occurrences, TensorGroups):
            return self._on_its_device.regroup(groups.occurrences, tables, shifts_T)
        selected = groups.occurrences.select(tables, shifts_T.tolist())
        return Groups(torch.from_numpy(selected.rows_U), selected)

    def group_lists(self, lists: IdLists, *, threads: int = 1) -> Groups:
        """Find the distinct rows of this rank that several askers name by their places."""
        csr = csr_batch(lists, len(self.sizes))
        groups = kernels.group_ids(csr, self._slots_of_lists, threads)
        return Groups(torch.from_numpy(groups.rows_U), groups)

    def sum_lists(
        self,
        lists: IdLists,
        groups: Groups,
        grads_MD: NDArray[np.float32],
        rows_N: NDArray[np.int64],
        order: LaneOrder,
        *,
        threads: int = 1,
    ) -> Tensor:
        """Sum what askers sent for each row; ``order`` has the first lane of each list."""
        assert isinstance(groups.occurrences, kernels.Groups)
        n_tables, width = len(self.sizes), grads_MD.shape[1]
        askers = (len(lists.offsets_BF) - 1) // n_tables
        sums_UD = kernels.segment_sum(
            np.zeros((askers, width), np.float32), groups.occurrences, csr_batch(lists, n_tables),
            self._slots_of_lists, width, threads, grads_MD, rows_N,
            order.lane_B, order.lanes, order.bf16,
        )  # fmt: skip
        return torch.from_numpy(sums_UD)

    @property
    def _slots_of_lists(self) -> kernels.Slots:
        if self._list_slots is None:
            numbers = list(range(len(self.sizes)))
            self._list_slots = kernels.Slots(
                n_features=len(numbers),
                features=numbers,
                tables=numbers,
                table_bases=self.own_bases.tolist(),
                table_sizes=self._own_sizes.tolist(),
                combiners=["sum"] * len(numbers),
            )
        return self._list_slots

    def tables_in(self, other: EmbeddingTable) -> list[int] | None:
        """Number this table's logical tables as ``other`` does, if they are the same there."""
        own, others = _features_by_table(self.features), _features_by_table(other.features)
        if any(others.get(name) != own.get(name) for name in self.sizes):
            return None
        number = {name: i for i, name in enumerate(other.sizes)}
        return [number[name] for name in self.sizes]

    def sum_deep(
        self,
        batch: BatchArrays,
        groups: Groups,
        slots: Sequence[SlotLike],
        columns: Mapping[str, slice],
        grad_BX: Tensor,
        sequence_grads: Mapping[str, Tensor] | None = None,
        *,
        threads: int = 1,
        order: LaneOrder | None = None,
    ) -> Tensor:
        """Sum the gradients of each touched row over its occurrences, in ascending order."""
        own = self.own_slots(slots, columns, None)
        by_row = self._slots_of(slots, None, "max")  # whose rows have gradients of their own
        if not by_row:
            return self._segment_sum(batch, groups, own, grad_BX, threads, order)
        by_name = sequence_grads or {}
        unpooled_MD = torch.cat(
            [
                by_name[slots[i].name].detach()
                if slots[i].combiner is None
                else self._max_gradients(batch, slots, i, grad_BX[:, columns[slots[i].name]])
                for i in by_row
            ]
        )
        rows_N = sequence_rows(batch, len(slots), by_row)
        return self._segment_sum(batch, groups, own, grad_BX, threads, order, unpooled_MD, rows_N)

    def _slots_of(self, slots: Sequence[SlotLike], *combiners: str | None) -> list[int]:
        """Return this table's slots with one of these combiners."""
        return [
            i
            for i, slot in enumerate(slots)
            if slot.combiner in combiners and slot.name in self._table_of
        ]

    def rows_of_slot(
        self, batch: BatchArrays, slots: Sequence[SlotLike], index: int
    ) -> tuple[Tensor, Tensor]:
        """Return the rows of one slot's ids, (N, D), and the example of each."""
        lookup, name = self._lookup_of(batch), slots[index].name
        starts_B = batch.offsets_BF[index : -1 : len(slots)]
        lengths_B = batch.offsets_BF[index + 1 :: len(slots)] - starts_B
        example_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
        first_B = np.cumsum(lengths_B) - lengths_B
        occurrences_N = np.arange(len(example_N)) + (starts_B - first_B)[example_N]
        if lookup is None:
            weight, rows_N = self.weight, self.rows(name, batch.ids_N[occurrences_N])
        else:
            weight = lookup.rows_UD
            rows_N = lookup.ids_N[occurrences_N] + lookup.starts_T[self._table_of[name]]
        rows = to_device(rows_N, self.device)
        return weight[rows].float(), to_device(example_N, self.device)

    def _max_gradients(
        self, batch: BatchArrays, slots: Sequence[SlotLike], index: int, grad_BD: Tensor
    ) -> Tensor:
        """Return the gradient of each of a slot's rows: all of it goes to the first maximum."""
        values_ND, example_N = self.rows_of_slot(batch, slots, index)
        _, first_BD = max_pool(values_ND, example_N, len(grad_BD))
        # One row more takes what no row of an empty list is given.
        grad_ND = grad_BD.new_zeros(len(values_ND) + 1, grad_BD.shape[1])
        return grad_ND.scatter(0, first_BD, grad_BD)[:-1]

    def sum_wide(
        self,
        batch: BatchArrays,
        groups: Groups,
        slots: Sequence[SlotLike],
        combiner: str,
        grad_BC: Tensor,
        *,
        threads: int = 1,
        order: LaneOrder | None = None,
    ) -> Tensor:
        """Sum the logits' gradients of each touched row over its occurrences."""
        own = self.own_slots(slots, None, combiner)
        return self._segment_sum(batch, groups, own, grad_BC, threads, order)

    def _segment_sum(
        self,
        batch: BatchArrays,
        groups: Groups,
        own: kernels.Slots,
        grad_BX: Tensor,
        threads: int,
        order: LaneOrder | None = None,
        unpooled_MD: Tensor | None = None,
        rows_N: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Sum by occurrence; ``rows_N`` are rows of ``unpooled_MD`` (-1: a pooled id's)."""
        if isinstance(groups.occurrences, TensorGroups):
            ids, on_device = self._on_its_device.tensors(batch, own, check=False)
            where = None if rows_N is None else to_device(rows_N, self.device)
            return torch_device.segment_sum(
                grad_BX, groups.occurrences, ids, on_device, self.dim, unpooled_MD, where
            )
        sums_UD = kernels.segment_sum(
            grad_BX.numpy(), groups.occurrences, csr_batch(batch, own.n_features), own, self.dim,
            threads, None if unpooled_MD is None else unpooled_MD.numpy(), rows_N,
            *(() if order is None else (order.lane_B, order.lanes, order.bf16)),
        )  # fmt: skip
        return torch.from_numpy(sums_UD)

    def own_slots(
        self,
        slots: Sequence[SlotLike],
        columns: Mapping[str, slice] | None,
        combiner: str | None,
    ) -> kernels.Slots:
        """Return this table's slots; they are kept for the next call with the same arguments."""
        key = (id(slots), id(columns), combiner)
        entry = self._slots.get(key)
        if entry is not None and entry[0] is slots and entry[1] is columns:
            return entry[2]
        features = [
            i
            for i, slot in enumerate(slots)
            if slot.name in self._table_of and (combiner or slot.combiner)
        ]
        own = kernels.Slots(
            n_features=len(slots),
            features=features,
            tables=[self._table_of[slots[i].name] for i in features],
            table_bases=self.bases.tolist(),
            table_sizes=self._sizes.tolist(),
            combiners=[
                slots[i].wide_combiner(combiner) if combiner else slots[i].combiner or "sum"
                for i in features
            ],
            columns=[0 if columns is None else columns[slots[i].name].start for i in features],
        )
        if len(self._slots) >= 8:
            self._slots.clear()
        self._slots[key] = (slots, columns, own)
        return own

    @property
    def _on_its_device(self) -> DeviceSlots:
        if self._device_slots is None:
            self._device_slots = DeviceSlots(self._batches, self.bases, self.n_rows)
        return self._device_slots

    # ---- updates -----------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Give every row the initial state of an optimizer, beside its weights."""
        self._optimizer = optimizer
        storage = self._storage
        if storage is None:
            return
        if storage.layout != self.record_layout(optimizer):
            self._storage = self._new_storage(self.sizes, storage)
            return
        for name in optimizer.state_names:
            storage.part(name).zero_()
        self._start_state(storage, 0, storage.n_rows)

    def attach_if_other(self, optimizer: Optimizer) -> None:
        """Attach an optimizer whose state is not beside the weights yet."""
        if self._optimizer is None or self._optimizer.state_names != optimizer.state_names:
            self.attach(optimizer)

    def count_change(self, change: int | Tensor) -> None:
        """Take the change of the non-zero count that an update of this table's rows tells."""
        self._nonzero = self._nonzero + change

    def apply(
        self,
        groups: Groups,
        grads_UD: Tensor,
        optimizer: Optimizer,
        *,
        lr: float | None = None,
        grad_scale: float = 1.0,
        step: int = 1,
        threads: int = 1,
        rates_U: Tensor | None = None,
        products_U: Tensor | None = None,
    ) -> None:
        """Move each touched row once; the others keep their bits."""
        self.attach_if_other(optimizer)
        weight, is_half = self.weight, self.dtype == torch.bfloat16
        count_here = self.std == 0.0 and (is_half or not optimizer.counts_nonzero)
        before = torch.count_nonzero(weight[groups.rows]) if count_here else 0
        numbers: dict[str, Any] = {"step": step, "threads": threads}
        change: int | Tensor = 0
        for rule, span in self._runs(groups) if self.rules else [(_NO_RULE, slice(None))]:
            rows_U, grads = groups.rows[span], grads_UD[span]
            if rule.frozen:
                if products_U is not None:
                    products_U[span] = 0.0
                continue
            if rule.l2 is not None:
                grads = with_penalty(grads, weight, rows_U, groups.counts[span], rule.l2)
            table_lr, numbers["grad_scale"] = rule.scaled(optimizer, lr, grad_scale)
            change = change + rule.of(optimizer).update_rows(
                weight, self.state, rows_U, grads,
                lr=table_lr,
                rates_U=None if rates_U is None else rates_U[span],
                products_U=None if products_U is None else products_U[span],
                rounding=self._rounding(groups, span, step) if is_half else None,
                **numbers,
            )  # fmt: skip
            if rule.max_norm is not None:
                limit_norms(weight, rows_U, rule.max_norm)
        if count_here:
            change = torch.count_nonzero(weight[groups.rows]) - before
        self.count_change(change)

    def _rounding(self, groups: Groups, span: slice, step: int) -> kernels.Rounding:
        """Return how some rows of a batch are rounded: by their numbers on all ranks together."""
        rows = groups.rows.numpy()
        if self.shard[1] > 1:
            rows, starts_T = rows.copy(), groups.table_starts[0].tolist()
            for t, layout in enumerate(self.layouts.values()):
                own = slice(starts_T[t], starts_T[t + 1])
                places = rows[own] - self.own_bases[t]
                rows[own] = self.bases[t] + layout.ids_at(self.shard[0], places)
        return kernels.Rounding(self.seed, step, rows[span])

    def _runs(self, groups: Groups) -> Iterator[tuple[RowRule, slice]]:
        """Yield the spans of a batch's rows that have one rule; empty ones are left out."""
        starts_T = groups.table_starts[0].tolist()
        rules = [self.rules.get(name, _NO_RULE) for name in self.sizes]
        begin = 0
        for t, rule in enumerate(rules):
            if t + 1 == len(rules) or rules[t + 1] != rule:
                if starts_T[t + 1] > starts_T[begin]:
                    yield rule, slice(starts_T[begin], starts_T[t + 1])
                begin = t + 1

    def grow(self, table: str, size: int) -> None:
        """Make room for more ids of a logical table; the present rows keep their bits."""
        if table not in self.sizes:
            raise SchemaError(f"got table {table!r}; {nearest(table, self.sizes)}")
        if size < (present := self.sizes[table]):
            message = f"table {table!r}: got size {size}, expected at least its present {present}"
            raise SchemaError(message)
        sizes = {**self.sizes, table: size}
        if self._storage is not None:
            self._storage = self._new_storage(sizes, self._storage)
        self.sizes = sizes
        self._number_rows()

    def renumber(
        self, old_ids: Mapping[str, NDArray[np.int64]], ranks: Ranks | None = None
    ) -> None:
        """Give logical tables new ids; optimizer state moves with the rows, from rank to rank too.

        ``old_ids`` holds the old id of each new one, by table: -1 for a row that starts anew.
        """
        if all(np.array_equal(ids, np.arange(self.sizes[t])) for t, ids in old_ids.items()):
            return
        ranks = ranks or Ranks()
        assert self.shard == (ranks.rank, ranks.size), (
            "rows of other ranks are renumbered with them"
        )
        old, spans, layouts = self._storage, dict(self._parts()), self.layouts
        self.sizes = {name: len(old_ids[name]) for name in self.sizes}
        self._number_rows()
        if old is None:
            return
        storage = self._new_storage(self.sizes, None)
        for name, rows in self._parts():
            old_of_own = old_ids[name][self.layouts[name].ids_of(ranks.rank)]
            new = np.flatnonzero(old_of_own >= 0)
            longest = max(self.layouts[name].rows_of(rank) for rank in range(ranks.size))
            for begin in range(0, longest, _CHUNK_ROWS):  # on all ranks as often
                chunk = new[begin : begin + _CHUNK_ROWS]
                target = torch.from_numpy(chunk).to(self.device)
                for slot in storage.names:
                    present, ids = old.part(slot)[spans[name]], old_of_own[chunk]
                    if ranks.size > 1:
                        fetched = fetch_rows(ranks, layouts[name], as_array(present), ids)
                        as_array(storage.part(slot)[rows])[chunk] = fetched
                        continue
                    storage.part(slot)[rows][target] = present[
                        torch.from_numpy(ids).to(self.device)
                    ]
        self._storage = storage
        self.recount_nonzero()

    # ---- named tensors -----------------------------------------------------------------------

    def named_weights(self) -> dict[str, Tensor]:
        """Return each logical table's weights, those of this rank, (rows, D): views."""
        return {name: self.weight[rows] for name, rows in self._parts()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take some logical tables' weights; the optimizer's state starts anew from them."""
        for name, weight in self.named_weights().items():
            if name in weights:
                weight.copy_(weights[name])
        if self._optimizer is not None:
            self.attach(self._optimizer)
        self.recount_nonzero()

    def named_state(self) -> dict[str, Tensor]:
        """Return ``<table>.weight`` and ``<table>.<state>`` of each logical table: views.

        They hold the rows of this rank, in the order of ``layouts[table].ids_of(rank)``.
        """
        storage = self._filled()
        return {
            f"{name}.{slot}": storage.part(slot)[rows]
            for name, rows in self._parts()
            for slot in storage.names
        }

    def load_named_state(self, tensors: Mapping[str, Any], ranks: Ranks | None = None) -> None:
        """Take whole tables by the names of :meth:`named_state`; all ranks take their rows."""
        own = self.named_state()
        for name in [*own, *tensors]:
            if name not in tensors or name not in own:
                what = "missing" if name in own else "unknown to this table and its optimizer"
                raise CheckpointError(f"tensor {name!r} is {what}; use its model and optimizer")
            shape = (self.sizes[name.rpartition(".")[0]], own[name].shape[1])
            if tuple(tensors[name].shape) != shape:
                raise CheckpointError(
                    f"tensor {name!r}: got shape {tuple(tensors[name].shape)}, expected {shape}; "
                    "use the schema, and the optimizer, that the checkpoint was made with"
                )
            if (tensors[name].dtype in _HALVES) != (own[name].dtype == torch.bfloat16):
                raise CheckpointError(
                    f"tensor {name!r}: got {tensors[name].dtype}, expected {own[name].dtype}; give "
                    "the table_dtype of the checkpoint's run, or start warm from it"
                )
        for name, tensor in own.items():
            source = tensors[name]
            if self.shard[1] > 1:
                assert ranks is not None
                layout = self.layouts[name.rpartition(".")[0]]
                deal_rows(ranks, layout, source, as_array(tensor))
            elif isinstance(source, Tensor):
                tensor.copy_(source)
            elif self._on_device:
                tensor.copy_(torch.from_numpy(np.array(source, np.float32)))
            else:
                as_array(tensor)[...] = source
        self.recount_nonzero()

    def _parts(self) -> Iterator[tuple[str, slice]]:
        own = zip(self.sizes, self.own_bases.tolist(), self._own_sizes.tolist(), strict=True)
        for name, base, size in own:
            yield name, slice(base, base + size)


def _features_by_table(features: Mapping[str, str]) -> dict[str, list[str]]:
    by_table: dict[str, list[str]] = {}
    for feature, table in features.items():
        by_table.setdefault(table, []).append(feature)
    return {table: sorted(names) for table, names in by_table.items()}
