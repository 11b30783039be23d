"""What the ranks exchange in a step: ids to the owners of rows, the rows back, then gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.errors import ConfigError
from widedeep.models.wide_deep import WideDeep
from widedeep.ranks.config import Wire
from widedeep.ranks.ranks import Ranks
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.tables.storage import Groups, IdLists, RowLookup

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """A table whose rows are asked for by the ids of another, or by its own."""

    name: str
    table: EmbeddingTable
    numbers: Ints  # Its logical tables' numbers in the table whose ids are sent, ascending
    wire: Wire

    @property
    def width(self) -> int:
        """Bytes of a row on the wire."""
        return self.table.dim * (2 if self.wire == "bf16" else 4)


@dataclass(frozen=True, slots=True, eq=False)
class _Section:
    """The tables that one list of ids asks for: an id travels once for all of them."""

    key: EmbeddingTable
    members: list[_Member]


@dataclass(frozen=True, slots=True, eq=False)
class _Route:
    """The rows of one table between the rank that asks for them and the ranks that own them.

    Asked rows are numbered lane after lane, within a lane as its groups are.
    """

    read_order: Ints  # The asked rows, by owner
    read_starts: Ints  # (ranks + 1,) into it
    own_rows: Ints  # This rank's rows that others ask for, by asker
    own_starts: Ints  # (ranks + 1,) into it


@dataclass(slots=True, eq=False)
class _Request:
    """What a rank asks for in one section, and what all ranks ask of it."""

    groups: list[Groups]  # By lane of this rank
    table_n: Ints  # Logical table of each id that this rank asks for
    owner_n: Ints
    place_n: Ints
    lists: IdLists | None = None  # Places that are asked of this rank, by lane of all ranks
    list_starts: Ints | None = None  # (ranks + 1,) first place of each rank


@dataclass(frozen=True, slots=True, eq=False)
class LaneRows:
    """The rows of some lanes' batches, on their way."""

    batches: Sequence[Batch]
    rows: int  # Examples on all ranks
    requests: list[_Request]
    routes: dict[str, _Route]
    looked_up: dict[str, Tensor]  # Rows by table, asked rows in order; empty: read in place


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
        self._in_place = ranks.size == 1 and wire == "fp32"
        self._sections = _sections(model, wire)

    def ask(self, batches: Sequence[Batch], lanes: Sequence[int]) -> LaneRows:
        """Send the distinct ids of each lane's batch to their owners, and fetch the rows.

        Args:
            batches: One for each lane of this rank.
            lanes: Number of lanes of each rank.
        """
        requests = [self._request(section, batches) for section in self._sections]
        rows = self._send_ids(requests, batches, lanes)
        routes = {
            member.name: self._route(section, member, request)
            for section, request in zip(self._sections, requests, strict=True)
            for member in section.members
        }
        looked_up = {} if self._in_place else self._fetch(routes)
        return LaneRows(batches, rows, requests, routes, looked_up)

    @contextmanager
    def rows_for(self, batch: Batch) -> Iterator[Batch]:
        """Let the model read the rows of a batch, wherever they are; every rank calls it.

        Args:
            batch: This rank's examples; the number of another rank's may differ.
        """
        lane_rows = self.ask([batch], [1] * self.ranks.size)
        with self.lane(lane_rows, 0):
            yield batch

    @contextmanager
    def lane(self, lane_rows: LaneRows, lane: int) -> Iterator[None]:
        """Let the model's tables read the rows that a lane's batch asked for."""
        if not lane_rows.looked_up:
            yield
            return
        batch = lane_rows.batches[lane]
        try:
            for section, request in zip(self._sections, lane_rows.requests, strict=True):
                ids_N = _numbers(request.groups[lane], len(batch.ids_N))
                for member in section.members:
                    counts_LT = np.stack([np.diff(g.table_starts[0]) for g in request.groups])
                    counts_LT = counts_LT[:, member.numbers]
                    first = int(counts_LT[:lane].sum())
                    starts_T = np.concatenate([[0], np.cumsum(counts_LT[lane])])
                    rows_UD = lane_rows.looked_up[member.name][first : first + int(starts_T[-1])]
                    member.table.lookup = RowLookup(batch, rows_UD, starts_T, ids_N)
            yield
        finally:
            for section in self._sections:
                for member in section.members:
                    member.table.lookup = None

    def groups(self, lane_rows: LaneRows, lane: int) -> dict[str, Groups]:
        """Return the groups of a lane's batch, by table."""
        groups: dict[str, Groups] = {}
        for section, request in zip(self._sections, lane_rows.requests, strict=True):
            for member in section.members:
                groups[member.name] = _groups_of(member, section, request.groups[lane])
        return groups

    def send(
        self, lane_rows: LaneRows, sums: dict[str, list[Tensor]]
    ) -> dict[str, tuple[Groups, Tensor]]:
        """Bring each lane's sums to the owners of the rows; return theirs, added lane after lane.

        Args:
            lane_rows: What :meth:`ask` returned.
            sums: By table, the (U, D) sums of each of this rank's lanes.
        """
        members = {m.name: m for s in self._sections for m in s.members if m.name in sums}
        sent: list[list[NDArray[np.uint8]]] = [[] for _ in range(self.ranks.size)]
        for name, member in members.items():
            route = lane_rows.routes[name]
            grads = np.concatenate([lane.numpy() for lane in sums[name]])
            _append(sent, grads, route.read_order, route.read_starts, member.wire)
        received = self._all_to_all(
            sent, [lane_rows.routes[n].own_starts for n in members], members
        )
        return {
            name: (groups, grads_UD)
            for section, request in zip(self._sections, lane_rows.requests, strict=True)
            for name, groups, grads_UD in self._add(section, request, received)
        }

    def _add(
        self, section: _Section, request: _Request, received: dict[str, Floats]
    ) -> Iterator[tuple[str, Groups, Tensor]]:
        """Add up what was sent for each row; the lanes of a row come one after the other."""
        members = [m for m in section.members if m.name in received]
        if not members:
            return
        key, lists = section.key, request.lists
        assert lists is not None
        key_groups = key.group_lists(lists, threads=self.threads)
        for member in members:
            groups = _groups_of(member, section, key_groups, own=True)
            has_N = _has(member, len(key.sizes))[_tables(lists, len(key.sizes))]
            rows_N = np.where(has_N, np.cumsum(has_N) - 1, -1)
            grads = received[member.name]
            sums_UD = key.sum_lists(lists, groups, grads, rows_N, threads=self.threads)
            yield member.name, groups, sums_UD

    # ---- ids -------------------------------------------------------------------------------------

    def _request(self, section: _Section, batches: Sequence[Batch]) -> _Request:
        key, slots = section.key, self.model.schema.slots
        groups = [key.group(batch, slots, threads=self.threads) for batch in batches]
        starts = [g.table_starts[0] for g in groups]
        tables = np.arange(len(key.sizes))
        table_n = np.concatenate([np.repeat(tables, np.diff(s)) for s in starts])
        ids_n = np.concatenate([g.rows.numpy() for g in groups]) - key.bases[table_n]
        owner_n, place_n = np.zeros(len(ids_n), np.int64), ids_n
        if self.ranks.size > 1:
            place_n = np.empty_like(ids_n)
            first = 0
            for lane in starts:
                for layout, a, b in zip(key.layouts.values(), lane[:-1], lane[1:], strict=True):
                    span = slice(first + int(a), first + int(b))
                    owner_n[span] = layout.owner_of(ids_n[span])
                    place_n[span] = layout.place_of(ids_n[span])
                first += int(lane[-1])
        return _Request(groups, table_n, owner_n, place_n)

    def _send_ids(
        self, requests: list[_Request], batches: Sequence[Batch], lanes: Sequence[int]
    ) -> int:
        """Tell the owners which places are asked of them; return the examples on all ranks."""
        size, own = self.ranks.size, len(batches)
        widths = [len(s.key.sizes) for s in self._sections]
        examples = np.array([len(batch) for batch in batches], np.int64)[:, None]
        counts = [
            _counts(request, size, own, width)
            for request, width in zip(requests, widths, strict=True)
        ]
        header = [np.concatenate([*(c[r] for c in counts), examples], axis=1) for r in range(size)]
        headers = self.ranks.all_to_all(header, lengths=lanes)
        table = np.concatenate(headers)  # (lanes, tables of all sections + 1)
        orders = [np.argsort(request.owner_n, kind="stable") for request in requests]
        sent = []
        for r in range(size):
            pieces = []
            for request, order in zip(requests, orders, strict=True):
                ends = np.searchsorted(request.owner_n[order], [r, r + 1])
                pieces.append(request.place_n[order[ends[0] : ends[1]]].astype(np.int32))
            sent.append(np.concatenate(pieces) if pieces else np.empty(0, np.int32))
        lengths = [int(h[:, :-1].sum()) for h in headers]
        received = self.ranks.all_to_all(sent, lengths=lengths)
        column = 0
        positions = [0] * size
        for request, width in zip(requests, widths, strict=True):
            parts = []
            for r in range(size):
                n = int(headers[r][:, column : column + width].sum())
                parts.append(received[r][positions[r] : positions[r] + n])
                positions[r] += n
            offsets = np.concatenate([[0], np.cumsum(table[:, column : column + width])])
            request.lists = IdLists(np.concatenate(parts).astype(np.int64), offsets)
            request.list_starts = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
            column += width
        return int(table[:, -1].sum())

    def _route(self, section: _Section, member: _Member, request: _Request) -> _Route:
        assert request.lists is not None and request.list_starts is not None
        size, n_tables = self.ranks.size, len(section.key.sizes)
        has_T = _has(member, n_tables)
        owners = request.owner_n[has_T[request.table_n]]
        order = np.argsort(owners, kind="stable")
        table_m = _tables(request.lists, n_tables)
        has_m = has_T[table_m]
        base_T = np.zeros(n_tables, np.int64)
        base_T[member.numbers] = member.table.own_bases
        before_m = np.concatenate([[0], np.cumsum(has_m)])
        return _Route(
            read_order=order,
            read_starts=np.searchsorted(owners[order], np.arange(size + 1)),
            own_rows=(request.lists.ids_N + base_T[table_m])[has_m],
            own_starts=before_m[request.list_starts],
        )

    # ---- rows ------------------------------------------------------------------------------------

    def _fetch(self, routes: dict[str, _Route]) -> dict[str, Tensor]:
        """Answer what others ask of this rank, and take what it asked for, by table."""
        members = {m.name: m for section in self._sections for m in section.members}
        sent: list[list[NDArray[np.uint8]]] = [[] for _ in range(self.ranks.size)]
        for name, member in members.items():
            route, weight = routes[name], member.table.weight.numpy()
            _append(sent, weight, route.own_rows, route.own_starts, member.wire)
        received = self._all_to_all(sent, [routes[n].read_starts for n in members], members)
        rows = {}
        for name, values in received.items():
            ordered = np.empty_like(values)
            ordered[routes[name].read_order] = values
            rows[name] = torch.from_numpy(ordered)
        return rows

    def _all_to_all(
        self, sent: list[list[NDArray[np.uint8]]], starts: list[Ints], members: dict[str, _Member]
    ) -> dict[str, Floats]:
        """Send bytes to each rank; return the numbers received, by table, rank after rank.

        Args:
            sent: For each rank, the rows of each table.
            starts: For each table, the first row that comes from each rank, and their number.
            members: The tables.
        """
        size = self.ranks.size
        counts = np.array([np.diff(s) for s in starts], np.int64).reshape(len(starts), size)
        widths = np.array([m.width for m in members.values()], np.int64)
        lengths = (counts * widths[:, None]).sum(axis=0).tolist()
        parts = [np.concatenate(p) if p else np.empty(0, np.uint8) for p in sent]
        received = self.ranks.all_to_all(parts, lengths=lengths)
        blocks: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in members}
        for r, buffer in enumerate(received):
            first = 0
            for t, member in enumerate(members.values()):
                stop = first + int(counts[t, r]) * member.width
                blocks[member.name].append(buffer[first:stop])
                first = stop
        return {
            name: _unpacked(np.concatenate(blocks[name]), member)
            for name, member in members.items()
        }


def _sections(model: WideDeep, wire: Wire) -> list[_Section]:
    """Gather the tables that may share one list of ids."""
    sections: list[_Section] = []
    for name, table in model.tables.items():
        own_wire: Wire = "fp32" if name == "wide" else wire
        for section in sections:
            numbers = table.tables_in(section.key)
            if numbers is not None and numbers == sorted(numbers):
                section.members.append(_Member(name, table, np.array(numbers), own_wire))
                break
        else:
            numbers = list(range(len(table.sizes)))
            sections.append(_Section(table, [_Member(name, table, np.array(numbers), own_wire)]))
    return sections


def _groups_of(member: _Member, section: _Section, groups: Groups, *, own: bool = False) -> Groups:
    if member.table is section.key:
        return groups
    regrouped = member.table.regroup(section.key, groups, own=own)
    assert regrouped is not None
    return regrouped


def _has(member: _Member, n_tables: int) -> NDArray[np.bool_]:
    has_T = np.zeros(n_tables, bool)
    has_T[member.numbers] = True
    return has_T


def _tables(lists: IdLists, n_tables: int) -> Ints:
    """Return the logical table of each id."""
    counts = np.diff(lists.offsets_BF)
    tables: Ints = np.repeat(np.arange(len(counts)) % n_tables, counts)
    return tables


def _counts(request: _Request, size: int, lanes: int, width: int) -> Ints:
    """Count what is asked of each rank, by lane and logical table, (ranks, lanes, T)."""
    lane_n = np.repeat(np.arange(lanes), [len(g) for g in request.groups])
    cell_n = (request.owner_n * lanes + lane_n) * width + request.table_n
    return np.bincount(cell_n, minlength=size * lanes * width).reshape(size, lanes, width)


def _numbers(groups: Groups, n_ids: int) -> Ints:
    """Return, for each id of a batch, its row's number within the logical table's groups."""
    occurrences = groups.occurrences
    assert isinstance(occurrences, kernels.Groups)
    starts_U, starts_T = occurrences.starts_U, occurrences.table_starts
    number_U = np.arange(len(groups)) - np.repeat(starts_T[:-1], np.diff(starts_T))
    ids_N = np.zeros(n_ids, np.int64)
    ids_N[occurrences.order[starts_U[0] : starts_U[-1]]] = np.repeat(number_U, np.diff(starts_U))
    return ids_N


def _append(
    sent: list[list[NDArray[np.uint8]]], values: Floats, rows: Ints, starts: Ints, wire: Wire
) -> None:
    """Append rows of a table, or of sums, to what each rank is sent."""
    packed = _packed(values[rows], wire)
    for r, buffers in enumerate(sent):
        buffers.append(packed[starts[r] : starts[r + 1]].reshape(-1))


def _packed(values: Floats, wire: Wire) -> NDArray[np.uint8]:
    """Return rows as bytes, (n, bytes of a row)."""
    numbers: NDArray[Any] = values
    if wire == "bf16":
        numbers = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    width = values.shape[1] * numbers.itemsize
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(values), width)


def _unpacked(data: NDArray[np.uint8], member: _Member) -> Floats:
    if member.wire == "bf16":
        numbers = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).float().numpy()
        return numbers.reshape(-1, member.table.dim)
    return data.view(np.float32).reshape(-1, member.table.dim)
