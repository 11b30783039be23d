"""What the ranks exchange in a step: ids to the owners of rows, the rows back, then gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.errors import ConfigError
from widedeep.kernels.torch_ops import as_array
from widedeep.models.wide_deep import WideDeep
from widedeep.ranks.config import Wire
from widedeep.ranks.ranks import Ranks
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.tables.storage import Groups, IdLists, LaneOrder, RowLookup

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
_Format = Literal["fp32", "bf16", "scaled"]
_NARROW_ROWS = (1 << 31) - (1 << 12)  # of a table on each rank, whose places int32 holds
COUNTS = "/counts"  # after a table's name: the occurrences of its rows


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """A table whose rows are asked for by the ids of another, or by its own."""

    name: str
    table: EmbeddingTable
    numbers: Ints  # Its logical tables' numbers in the table whose ids are sent, ascending
    dim: int
    weights: _Format  # How its weights travel
    sums: _Format  # How the sums of its gradients do


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Rows of one table in a message."""

    format: _Format
    dim: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        if self.format == "fp32":
            return 4 * self.dim
        return 2 * self.dim + (1 if self.format == "scaled" else 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Section:
    """The tables that one list of ids asks for: an id travels once for all of them."""

    key: EmbeddingTable
    members: list[_Member]

    @property
    def n_tables(self) -> int:
        """T, the logical tables of the ids."""
        return len(self.key.sizes)


@dataclass(frozen=True, slots=True, eq=False)
class _Route:
    """The rows of one table between the rank that asks for them and the ranks that own them.

    Asked rows are numbered batch after batch, within one as its groups are.
    """

    read_order: Ints  # The asked rows, by owner
    read_starts: Ints  # (ranks + 1,) into it
    own_rows: Ints  # This rank's rows that others ask for, by asker
    own_starts: Ints  # (ranks + 1,) into it


@dataclass(slots=True, eq=False)
class _Request:
    """What a rank asks for in one section, and what all ranks ask of it."""

    groups: list[Groups]  # By batch of this rank
    counts_LT: Ints  # Distinct ids of each batch and logical table
    table_n: Ints  # Logical table of each id that this rank asks for
    owner_n: NDArray[np.int16]
    place_n: Ints
    order_n: Ints  # The ids by owner, otherwise in their order
    owner_starts: Ints  # (ranks + 1,) into it
    lists: IdLists | None = None  # Places that are asked of this rank, by batch of all ranks
    list_starts: Ints | None = None  # (ranks + 1,) first place of each rank


@dataclass(frozen=True, slots=True, eq=False)
class LookedUp:
    """The rows of some batches, on their way."""

    batches: Sequence[Batch]
    rows: int  # Examples on all ranks
    requests: list[_Request]
    routes: dict[str, _Route]
    lookups: list[dict[str, RowLookup]]  # By batch and table; empty: rows are read in place


class Exchange:
    """Brings rows to the ranks that read them, and gradients to the ranks that own the rows."""

    def __init__(
        self, model: WideDeep, ranks: Ranks, *, wire: Wire = "fp32", threads: int = 1
    ) -> None:
        if model.device.type != "cpu":
            raise ConfigError(
                f"[distributed]: got lanes = {ranks.lanes} with a model on {model.device}, "
                "expected one on the CPU; leave lanes out, or train with device='cpu'"
            )
        self.model, self.ranks, self.threads = model, ranks, threads
        kernels.keep_freed_memory()  # for the next step's buffers
        self._in_place = ranks.size == 1 and wire == "fp32"
        self._sections = _sections(model, wire)
        self._members = {m.name: m for section in self._sections for m in section.members}

    def ask(
        self, batches: Sequence[Batch], lists: Sequence[int], *, exact: bool = False
    ) -> LookedUp:
        """Send the distinct ids of each batch to their owners, and fetch the rows.

        Args:
            batches: This rank's: one for each of its :meth:`Ranks.spans_of`, if anything is to be
                sent back.
            lists: How many batches each rank has.
            exact: Fetch the rows as they are, whatever the wire's numbers; nothing can be sent
                back.
        """
        requests = [self._request(section, batches) for section in self._sections]
        rows = self._send_ids(requests, batches, lists)
        if self._in_place or (exact and self.ranks.size == 1):
            return LookedUp(batches, rows, requests, {}, [])
        routes = {
            member.name: self._route(section, member, request)
            for section, request in zip(self._sections, requests, strict=True)
            for member in section.members
        }
        values = self._fetch(routes, exact=exact)
        lookups = [self._lookups(requests, values, i, batch) for i, batch in enumerate(batches)]
        return LookedUp(batches, rows, requests, routes, lookups)

    def _lookups(
        self, requests: Sequence[_Request], values: Mapping[str, Tensor], index: int, batch: Batch
    ) -> dict[str, RowLookup]:
        lookups = {}
        for section, request in zip(self._sections, requests, strict=True):
            occurrences = request.groups[index].occurrences
            assert isinstance(occurrences, kernels.Groups)
            ids_N = occurrences.numbers()
            for member in section.members:
                counts_LT = request.counts_LT[:, member.numbers]
                first = int(counts_LT[:index].sum())
                starts_T = np.concatenate([[0], np.cumsum(counts_LT[index])])
                rows_UD = values[member.name][first : first + int(starts_T[-1])]
                lookups[member.name] = RowLookup(batch, rows_UD, starts_T, ids_N)
        return lookups

    @contextmanager
    def rows_for(self, batch: Batch) -> Iterator[Batch]:
        """Let the model read the rows of a batch, wherever they are; every rank calls it.

        They travel as they are: a bundle scores by them, and so would one process.

        Args:
            batch: This rank's examples; the number of another rank's may differ.
        """
        looked_up = self.ask([batch], [1] * self.ranks.size, exact=True)
        with self.reading(looked_up, 0):
            yield batch

    @contextmanager
    def reading(
        self, looked_up: LookedUp, index: int, part: Batch | None = None, first: int = 0
    ) -> Iterator[None]:
        """Let the model's tables read the rows of a batch that was asked for.

        Args:
            looked_up: What :meth:`ask` returned.
            index: Number of the batch.
            part: Some of its examples, which alone are read.
            first: Number of the first id of ``part`` among the batch's.
        """
        if not looked_up.lookups:
            yield
            return
        try:
            for name, lookup in looked_up.lookups[index].items():
                if part is not None:
                    ids_N = lookup.ids_N[first : first + len(part.ids_N)]
                    lookup = replace(lookup, batch=part, ids_N=ids_N)
                self._members[name].table.lookup = lookup
            yield
        finally:
            for member in self._members.values():
                member.table.lookup = None

    def groups(self, looked_up: LookedUp, index: int) -> dict[str, Groups]:
        """Return the groups of a batch, by table."""
        groups: dict[str, Groups] = {}
        for section, request in zip(self._sections, looked_up.requests, strict=True):
            for member in section.members:
                groups[member.name] = _groups_of(member, section, request.groups[index])
        return groups

    def send(
        self, looked_up: LookedUp, sums: Mapping[str, Sequence[Tensor]]
    ) -> dict[str, tuple[Groups, Tensor]]:
        """Bring each batch's sums to the owners of the rows; return theirs, added over all lanes.

        Args:
            looked_up: What :meth:`ask` returned.
            sums: By table, the (U, D) sums of each of this rank's batches. Those of a table's name
                and :data:`COUNTS`, (U, 1), are how often rows occur.
        """
        if self.ranks.size == 1:
            groups = self.groups(looked_up, 0)
            return {name: (groups[name], sums[name][0]) for name in groups if name in sums}
        values = {name: torch.cat(list(lists)).numpy() for name, lists in sorted(sums.items())}
        values = self._send_values(looked_up, values)
        return {
            name: row_sums
            for section, request in zip(self._sections, looked_up.requests, strict=True)
            for name, row_sums in self._add(section, request, values)
        }

    def order_of(self, name: str, lane_B: NDArray[np.int32]) -> LaneOrder:
        """Return how the sums of a table's gradients are added.

        Args:
            name: Name of the table.
            lane_B: Lane of each example, or of each list of sums the first one.
        """
        return LaneOrder(lane_B, self.ranks.lanes, self._members[name].sums == "bf16")

    def _send_values(self, looked_up: LookedUp, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Send a number of each row that was asked for to its owner; names are sorted."""
        parcels: dict[str, _Parcel] = {}
        outgoing: list[tuple[Floats, Ints, Ints]] = []
        starts: list[Ints] = []
        for name, matrix in values.items():
            member = self._members[name.removesuffix(COUNTS)]
            is_count = name.endswith(COUNTS)
            parcels[name] = _Parcel("fp32", 1) if is_count else _Parcel(member.sums, member.dim)
            route = looked_up.routes[member.name]
            outgoing.append((matrix, route.read_order, route.read_starts))
            starts.append(route.own_starts)
        return self._all_to_all(parcels, outgoing, starts)

    def _add(
        self, section: _Section, request: _Request, received: Mapping[str, Floats]
    ) -> Iterator[tuple[str, tuple[Groups, Tensor]]]:
        """Add up what was sent for each row."""
        members = [m for m in section.members if m.name in received]
        if not members:
            return
        key, lists, threads = section.key, request.lists, self.threads
        assert lists is not None
        key_groups = key.group_lists(lists, threads=threads)
        table_m = _tables(lists, section.n_tables)
        spans = itertools.chain(*(self.ranks.spans_of(rank) for rank in range(self.ranks.size)))
        lane_B = np.array([span.start for span in spans], np.int32)
        for member in members:
            groups = _groups_of(member, section, key_groups, own=True)
            has_N = _has(member, section)[table_m]
            rows_N = np.where(has_N, np.cumsum(has_N) - 1, -1)
            order = self.order_of(member.name, lane_B)
            if member.name + COUNTS in received:
                counts, exact = received[member.name + COUNTS], replace(order, bf16=False)
                sums_U1 = key.sum_lists(lists, groups, counts, rows_N, exact, threads=threads)
                groups = replace(groups, lane_counts=sums_U1[:, 0])
            grads = received[member.name]
            sums_UD = key.sum_lists(lists, groups, grads, rows_N, order, threads=threads)
            yield member.name, (groups, sums_UD)

    # ---- ids -------------------------------------------------------------------------------------

    def _request(self, section: _Section, batches: Sequence[Batch]) -> _Request:
        key, slots, size = section.key, self.model.schema.slots, self.ranks.size
        groups = [key.group(batch, slots, threads=self.threads) for batch in batches]
        counts_LT = np.stack([np.diff(g.table_starts[0]) for g in groups])
        cell_tables = np.tile(np.arange(section.n_tables), len(batches))
        table_n = np.repeat(cell_tables, counts_LT.reshape(-1))
        ids_n = np.concatenate([g.rows.numpy() for g in groups]) - key.bases[table_n]
        if size == 1:
            owner_n, order_n = np.zeros(len(ids_n), np.int16), np.arange(len(ids_n))
            starts = np.array([0, len(ids_n)])
            return _Request(groups, counts_LT, table_n, owner_n, ids_n, order_n, starts)
        owner_n, place_n = np.empty(len(ids_n), np.int16), np.empty_like(ids_n)
        layouts = list(key.layouts.values())
        stop = 0
        for table, count in zip(cell_tables.tolist(), counts_LT.reshape(-1).tolist(), strict=True):
            start, stop = stop, stop + count
            owner_n[start:stop] = layouts[table].owner_of(ids_n[start:stop])
            place_n[start:stop] = layouts[table].place_of(ids_n[start:stop])
        order_n = np.argsort(owner_n, kind="stable")  # a radix sort, of 16 bits
        starts = np.concatenate([[0], np.cumsum(np.bincount(owner_n, minlength=size))])
        return _Request(groups, counts_LT, table_n, owner_n, place_n, order_n, starts)

    def _send_ids(
        self, requests: Sequence[_Request], batches: Sequence[Batch], lists: Sequence[int]
    ) -> int:
        """Tell the owners which places are asked of them; return the examples on all ranks."""
        size = self.ranks.size
        examples = np.array([[len(batch)] for batch in batches])
        counts = [_counts(request, size) for request in requests]
        header = [np.concatenate([*(c[r] for c in counts), examples], axis=1) for r in range(size)]
        headers = self.ranks.all_to_all(header, lengths=lists)
        sent: list[list[NDArray[Any]]] = [[] for _ in range(size)]
        place_type = self._place_type()
        for request in requests:
            places = request.place_n[request.order_n].astype(place_type)
            for r, pieces in enumerate(sent):
                pieces.append(places[request.owner_starts[r] : request.owner_starts[r + 1]])
        received = self.ranks.all_to_all(
            [np.concatenate(pieces) for pieces in sent],
            lengths=[int(h[:, :-1].sum()) for h in headers],
        )
        column, firsts = 0, [0] * size
        for section, request in zip(self._sections, requests, strict=True):
            columns = slice(column, column := column + section.n_tables)
            parts = []
            for r, h in enumerate(headers):
                first, firsts[r] = firsts[r], firsts[r] + int(h[:, columns].sum())
                parts.append(received[r][first : firsts[r]])
            counts_LT = np.concatenate([h[:, columns] for h in headers])
            offsets = np.concatenate([[0], np.cumsum(counts_LT)])
            request.lists = IdLists(np.concatenate(parts).astype(np.int64), offsets)
            request.list_starts = np.cumsum([0, *(len(places) for places in parts)])
        return int(sum(h[:, -1].sum() for h in headers))

    def _place_type(self) -> type[np.int32 | np.int64]:
        """Return the type that holds the place of every row of a rank."""
        sizes = [n for section in self._sections for n in section.key.sizes.values()]
        largest = max(sizes, default=0) // self.ranks.size
        return np.int32 if largest < _NARROW_ROWS else np.int64

    def _route(self, section: _Section, member: _Member, request: _Request) -> _Route:
        assert request.lists is not None and request.list_starts is not None
        has_T, table_m = _has(member, section), _tables(request.lists, section.n_tables)
        base_T = np.zeros(section.n_tables, np.int64)
        base_T[member.numbers] = member.table.own_bases
        rows_m = request.lists.ids_N + base_T[table_m]
        order, starts, own_starts = request.order_n, request.owner_starts, request.list_starts
        if not has_T.all():
            has_n = has_T[request.table_n]
            by_owner = has_n[order]
            starts = np.concatenate([[0], np.cumsum(by_owner)])[starts]
            order = (np.cumsum(has_n) - 1)[order[by_owner]]
            has_m = has_T[table_m]
            rows_m = rows_m[has_m]
            own_starts = np.concatenate([[0], np.cumsum(has_m)])[own_starts]
        return _Route(order, starts, rows_m, own_starts)

    # ---- rows ------------------------------------------------------------------------------------

    def _fetch(self, routes: Mapping[str, _Route], *, exact: bool) -> dict[str, Tensor]:
        """Answer what other ranks ask, and take the rows that this rank asked for, by table."""
        members, parcels = self._members, {}
        for name, member in members.items():
            # What is bfloat16 already loses nothing on the way.
            is_half = member.table.dtype == torch.bfloat16
            rounded: _Format = "fp32" if exact else member.weights
            parcels[name] = _Parcel("bf16" if is_half else rounded, member.dim)
        outgoing = [
            (as_array(member.table.weight), routes[name].own_rows, routes[name].own_starts)
            for name, member in members.items()
        ]
        starts = [routes[name].read_starts for name in members]
        orders = [routes[name].read_order for name in members]
        rows = self._all_to_all(parcels, outgoing, starts, orders)
        return {name: torch.from_numpy(values) for name, values in rows.items()}

    def _all_to_all(
        self,
        parcels: Mapping[str, _Parcel],
        outgoing: Sequence[tuple[NDArray[Any], Ints, Ints]],
        starts: Sequence[Ints],
        orders: Sequence[Ints] | None = None,
    ) -> dict[str, Floats]:
        """Send rows to each rank, all tables in one buffer; return those received, by name.

        Args:
            parcels: What travels, by name.
            outgoing: For each: a matrix, the rows of it that are sent, and the first of them for
                each rank.
            starts: For each: the first row that comes from each rank, and their number.
            orders: For each: where the received rows go; None: one after the other.
        """
        sizes = [parcel.row_bytes for parcel in parcels.values()]
        sent = []
        for r in range(self.ranks.size):
            spans = [first[r : r + 2].tolist() for _, _, first in outgoing]
            ends = np.cumsum([0, *((b - a) * n for (a, b), n in zip(spans, sizes, strict=True))])
            buffer = np.empty(int(ends[-1]), np.uint8)
            for i, parcel in enumerate(parcels.values()):
                matrix, rows, _ = outgoing[i]
                kernels.pack_rows(
                    matrix, rows[slice(*spans[i])], buffer[ends[i] : ends[i + 1]],
                    parcel.format, self.threads,
                )  # fmt: skip
            sent.append(buffer)
        lengths = [
            sum(int(s[r + 1] - s[r]) * n for s, n in zip(starts, sizes, strict=True))
            for r in range(self.ranks.size)
        ]
        received = self.ranks.all_to_all(sent, lengths=lengths)
        values = {
            name: np.empty((int(s[-1]), parcel.dim), np.float32)
            for s, (name, parcel) in zip(starts, parcels.items(), strict=True)
        }
        for r, buffer in enumerate(received):
            first = 0
            for i, (name, parcel) in enumerate(parcels.items()):
                a, b = starts[i][r : r + 2].tolist()
                order = np.arange(a, b) if orders is None else orders[i][a:b]
                stop = first + (b - a) * parcel.row_bytes
                kernels.unpack_rows(
                    buffer[first:stop], order, values[name], parcel.format, self.threads
                )
                first = stop
        return values


def _sections(model: WideDeep, wire: Wire) -> list[_Section]:
    """Gather the tables that may share one list of ids."""
    sections: list[_Section] = []
    for name, table in model.tables.items():
        # A weight of the wide part is all there is of its row. Those of the deep part are more than
        # their gradients, which are new in each step: a rounding of them is there in the next one.
        is_half = wire == "bf16" and name != "wide"
        formats: tuple[_Format, _Format] = ("scaled", "bf16") if is_half else ("fp32", "fp32")
        for section in sections:
            numbers = table.tables_in(section.key)
            if numbers is not None and numbers == sorted(numbers):
                break
        else:
            numbers, section = list(range(len(table.sizes))), _Section(table, [])
            sections.append(section)
        section.members.append(_Member(name, table, np.array(numbers), table.dim, *formats))
    return sections


def _groups_of(member: _Member, section: _Section, groups: Groups, *, own: bool = False) -> Groups:
    if member.table is section.key:
        return groups
    regrouped = member.table.regroup(section.key, groups, own=own)
    assert regrouped is not None
    return regrouped


def _has(member: _Member, section: _Section) -> NDArray[np.bool_]:
    """Tell which of a section's logical tables a member has, (T,)."""
    has_T = np.zeros(section.n_tables, bool)
    has_T[member.numbers] = True
    return has_T


def _tables(lists: IdLists, n_tables: int) -> Ints:
    """Return the logical table of each id."""
    counts = np.diff(lists.offsets_BF)
    tables: Ints = np.repeat(np.arange(len(counts)) % n_tables, counts)
    return tables


def _counts(request: _Request, size: int) -> Ints:
    """Count the ids for each rank, by lane and logical table, (ranks, lanes, T)."""
    lanes, n_tables = request.counts_LT.shape
    cell_n = np.repeat(np.arange(lanes * n_tables), request.counts_LT.reshape(-1))
    cell_n += request.owner_n.astype(np.int64) * (lanes * n_tables)
    counts = np.bincount(cell_n, minlength=size * lanes * n_tables)
    return counts.reshape(size, lanes, n_tables)
