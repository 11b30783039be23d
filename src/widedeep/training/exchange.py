"""What the ranks exchange in a step: ids to the owners of rows, the rows back, then gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
    """What a rank asks for in one section, and what all ranks ask of it.

    Ids lie in runs: of each batch, and in it of each logical table.
    """

    groups: list[Groups]  # By batch of this rank
    counts_LT: Ints  # Distinct ids of each batch and logical table
    counts_WR: Ints  # Those of each owner, (ranks, runs)
    order_n: Ints  # The ids by owner, otherwise in their order
    place_n: Ints  # Their rows at the owner, in that order
    lists: IdLists | None = None  # Places that are asked of this rank, by batch of all ranks
    list_counts_WR: list[Ints] = field(default_factory=list)  # By asker: of each of its runs

    @property
    def owner_starts(self) -> Ints:
        """(ranks + 1,) into the ids by owner."""
        return _starts(self.counts_WR.sum(axis=1))


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
        self._dealt = [_dealt(section.key) for section in self._sections if ranks.size > 1]
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
        requests = [self._request(i, batches) for i in range(len(self._sections))]
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
        values = {
            name: (torch.cat(list(lists)) if len(lists) > 1 else lists[0]).numpy()
            for name, lists in sorted(sums.items())
        }
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
        counts_R = np.diff(lists.offsets_BF)
        spans = itertools.chain(*(self.ranks.spans_of(rank) for rank in range(self.ranks.size)))
        lane_B = np.array([span.start for span in spans], np.int32)
        for member in members:
            groups = _groups_of(member, section, key_groups, own=True)
            rows_N = np.arange(len(lists.ids_N))  # where the sums of each id lie
            taken_R = _taken(member, section, counts_R)
            if not taken_R.all():
                rows_N -= np.repeat(
                    np.where(taken_R, _left_out(counts_R, taken_R), len(rows_N)), counts_R
                )
            order = self.order_of(member.name, lane_B)
            if member.name + COUNTS in received:
                counts, exact = received[member.name + COUNTS], replace(order, bf16=False)
                sums_U1 = key.sum_lists(lists, groups, counts, rows_N, exact, threads=threads)
                groups = replace(groups, lane_counts=sums_U1[:, 0])
            grads = received[member.name]
            sums_UD = key.sum_lists(lists, groups, grads, rows_N, order, threads=threads)
            yield member.name, (groups, sums_UD)

    # ---- ids -------------------------------------------------------------------------------------

    def _request(self, number: int, batches: Sequence[Batch]) -> _Request:
        section, slots = self._sections[number], self.model.schema.slots
        key, size = section.key, self.ranks.size
        groups = [key.group(batch, slots, threads=self.threads) for batch in batches]
        counts_LT = np.stack([np.diff(g.table_starts[0]) for g in groups])
        counts_R = counts_LT.reshape(-1)
        every = np.concatenate([g.rows.numpy() for g in groups])
        bases_R = np.tile(key.bases, len(batches))
        ids_n = kernels.take_runs(every, counts_R, -bases_R, np.ones(len(counts_R), bool))
        if size == 1:
            return _Request(groups, counts_LT, counts_R[None], np.arange(len(ids_n)), ids_n)
        routed = kernels.route_rows(ids_n, _starts(counts_R), *self._dealt[number])
        return _Request(groups, counts_LT, *routed)

    def _send_ids(
        self, requests: Sequence[_Request], batches: Sequence[Batch], lists: Sequence[int]
    ) -> int:
        """Tell the owners which places are asked of them; return the examples on all ranks."""
        size, own = self.ranks.size, self.ranks.rank
        examples = np.array([[len(batch)] for batch in batches])
        header = [
            np.concatenate(
                [*(q.counts_WR[r].reshape(q.counts_LT.shape) for q in requests), examples], axis=1
            )
            for r in range(size)
        ]
        headers = self.ranks.all_to_all(header, lengths=lists)
        sent: list[list[NDArray[Any]]] = [[] for _ in range(size)]
        place_type = self._place_type()
        for request in requests:
            starts = request.owner_starts
            for r, pieces in enumerate(sent):
                places = request.place_n[starts[r] : starts[r + 1]]
                pieces.append(places if r == own else places.astype(place_type))
        sent_bytes = [np.concatenate(pieces) for pieces in sent]
        received = self.ranks.all_to_all(
            [places.view(np.uint8) for places in sent_bytes],
            lengths=[int(h[:, :-1].sum()) * place_type().itemsize for h in headers],
        )
        typed = [p.view(np.int64 if r == own else place_type) for r, p in enumerate(received)]
        column, firsts = 0, [0] * size
        for section, request in zip(self._sections, requests, strict=True):
            columns = slice(column, column := column + section.n_tables)
            parts = []
            for r, h in enumerate(headers):
                first, firsts[r] = firsts[r], firsts[r] + int(h[:, columns].sum())
                parts.append(typed[r][first : firsts[r]])
            request.list_counts_WR = [h[:, columns].reshape(-1) for h in headers]
            ids_N = np.concatenate(parts, dtype=np.int64)
            request.lists = IdLists(ids_N, _starts(np.concatenate(request.list_counts_WR)))
        return int(sum(h[:, -1].sum() for h in headers))

    def _place_type(self) -> type[np.int32 | np.int64]:
        """Return the type that holds the place of every row of a rank."""
        sizes = [n for section in self._sections for n in section.key.sizes.values()]
        largest = max(sizes, default=0) // self.ranks.size
        return np.int32 if largest < _NARROW_ROWS else np.int64

    def _route(self, section: _Section, member: _Member, request: _Request) -> _Route:
        assert request.lists is not None
        counts_R = request.counts_LT.reshape(-1)
        taken_R = _taken(member, section, counts_R)
        order = request.order_n
        if not taken_R.all():
            shifts_R = -_left_out(counts_R, taken_R)
            world = self.ranks.size
            order = kernels.take_runs(
                order, request.counts_WR.reshape(-1), np.tile(shifts_R, world),
                np.tile(taken_R, world),
            )  # fmt: skip
        base_T = np.zeros(section.n_tables, np.int64)
        base_T[member.numbers] = member.table.own_bases
        asked_R = np.diff(request.lists.offsets_BF)
        rows = kernels.take_runs(
            request.lists.ids_N, asked_R, np.tile(base_T, len(asked_R) // section.n_tables),
            _taken(member, section, asked_R),
        )  # fmt: skip
        return _Route(
            order,
            _starts(request.counts_WR[:, taken_R].sum(axis=1)),
            rows,
            _starts([int(n[_taken(member, section, n)].sum()) for n in request.list_counts_WR]),
        )

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
        own, threads = self.ranks.rank, self.threads
        values = {
            name: np.empty((int(s[-1]), parcel.dim), np.float32)
            for s, (name, parcel) in zip(starts, parcels.items(), strict=True)
        }

        def target(rank: int, index: int, name: str) -> tuple[NDArray[np.float32], Ints | None]:
            """Return where the rows from a rank go, and their order there."""
            span = slice(*starts[index][rank : rank + 2].tolist())
            if orders is None:
                return values[name][span], None
            return values[name], orders[index][span]

        sent, received = (
            [
                sum(int(f[r + 1] - f[r]) * n for f, n in zip(firsts, sizes, strict=True))
                for r in range(self.ranks.size)
            ]
            for firsts in ([first for _, _, first in outgoing], starts)
        )
        buffer, stop = self.ranks.outgoing(sum(sent) - sent[own]), 0
        for r in range(self.ranks.size):
            for i, (name, parcel) in enumerate(parcels.items()):
                matrix, rows, first = outgoing[i]
                rows = rows[first[r] : first[r + 1]]
                if r == own:  # from here to here
                    out, order = target(r, i, name)
                    kernels.move_rows(matrix, rows, out, order, parcel.format, threads)
                else:
                    start, stop = stop, stop + len(rows) * parcel.row_bytes
                    kernels.pack_rows(matrix, rows, buffer[start:stop], parcel.format, threads)
        if self.ranks.size == 1:
            return values
        for r, incoming in enumerate(self.ranks.trade(buffer, sent, received)):
            stop = 0
            for i, (name, parcel) in enumerate(parcels.items()):
                if r == own:
                    continue
                n_rows = int(starts[i][r + 1] - starts[i][r])
                start, stop = stop, stop + n_rows * parcel.row_bytes
                out, order = target(r, i, name)
                kernels.unpack_rows(incoming[start:stop], order, out, parcel.format, threads)
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


def _taken(member: _Member, section: _Section, counts_R: Ints) -> NDArray[np.bool_]:
    """Tell which runs of ids are of logical tables that a member has, (R,)."""
    has_T = np.zeros(section.n_tables, bool)
    has_T[member.numbers] = True
    return np.tile(has_T, len(counts_R) // section.n_tables)


def _left_out(counts_R: Ints, taken_R: NDArray[np.bool_]) -> Ints:
    """Return how many ids of runs that are not taken lie before each run, (R,)."""
    return _starts(np.where(taken_R, 0, counts_R))[:-1]


def _starts(counts: Sequence[int] | Ints) -> Ints:
    """Return where each of some parts begins, and the end."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _dealt(key: EmbeddingTable) -> tuple[NDArray[np.int16], NDArray[np.int16], Ints]:
    """Return how the ids of a table's logical tables are dealt out, as the kernel takes it."""
    owner, place, rows = zip(*(layout.dealt for layout in key.layouts.values()), strict=True)
    return np.stack(owner).astype(np.int16), np.stack(place).astype(np.int16), np.stack(rows)
