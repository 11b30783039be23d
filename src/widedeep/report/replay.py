"""replay: a log's requests through two bundles: what each would rank otherwise, and why."""

from __future__ import annotations

import bisect
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.plain_json import plain
from widedeep.data.batch import Batch
from widedeep.data.fragments import Source, column_stream, row_chunks
from widedeep.data.sources import Data, open_source
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError, FeatureError, nearest
from widedeep.evaluation.compare import (
    difference_of_labels,
    difference_of_ranking,
    difference_of_words,
)
from widedeep.evaluation.logged_rankings import REQUEST, choose_order, order_columns
from widedeep.evaluation.slices import encode_column
from widedeep.features.spec import item_columns
from widedeep.files import write_text_whole
from widedeep.page import bar_list, column_chart, note, render, section, table, tiles
from widedeep.serving.catalogue import Catalogue

__all__ = ["Replay", "replay"]

Floats = NDArray[np.float64]
Row = dict[str, Any]

_CHUNK_ROWS = 16_384
_MOST_ITEMS = 20
_REASONS = 4
_BINS = 10
_ID = str | int | float | None
JSON_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True, repr=False)
class Replay:
    """How two bundles rank the same requests. Made by :func:`replay`.

    Args:
        a: Directory of the first bundle.
        b: Directory of the second.
        k: How many of a ranking are compared.
        requests: Requests of two candidates or more.
        candidates: Their candidates.
        overlap: Mean share of the first k that both rank among them.
        tau: Mean Kendall tau of the whole rankings: 1 the same order, -1 reversed.
        first_changed: Share of the requests with another item in the first place.
        overlaps: Requests by tenth of their overlap.
        items: ``item``, and how often it is among the first k by ``a`` and by ``b``; those that
            gain or lose most.
        columns: ``column``, and by how much it moved items in the explained requests (mean size).
        moves: The largest moves, one a request: ``request``, ``item``, ranks ``a`` and ``b``,
            scores, and ``why``: columns, with how much further up than the request's other
            candidates each brings the item in b than in a.
        notes: Remarks.
    """

    a: str
    b: str
    k: int
    requests: int
    candidates: int
    overlap: float
    tau: float
    first_changed: float
    overlaps: list[int]
    items: list[dict[str, Any]]
    columns: list[dict[str, Any]]
    moves: list[dict[str, Any]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        value = plain(asdict(self), "replay")
        assert isinstance(value, dict)
        return value

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a page; a name that ends in ``.json`` gets the figures.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        as_json = file.suffix == ".json"
        write_text_whole(
            file, json.dumps(self.to_json(), indent=1) + "\n" if as_json else _page(self)
        )
        return file


def replay(
    a: Bundle,
    b: Bundle,
    data: Data,
    *,
    k: int = 10,
    request: str | None = None,
    item: str | None = None,
    items: Catalogue | None = None,
    explained: int = 20,
    threads: int = 1,
) -> Replay:
    """Rank a log's requests with two bundles.

    Args:
        a: The first bundle, as a rule the one in service.
        b: The second.
        data: Rows of ranked items with the features they were scored by, as a server logs them
            (``widedeep serve --log``): a path, a glob, a table; or JSON lines (``.jsonl``) of
            requests as ``POST /v1/rank`` takes them.
        k: How many of a ranking are compared, at least 1.
        request: Column of requests; None: ``request_id``, else the bundle's group. JSON lines are
            a request each.
        item: Column that names an item; None: ``item_id``, else the first of the item's columns.
            Candidates by id are named by it.
        items: The catalogue, for JSON lines whose candidates are ids.
        explained: How many requests are explained: those whose first places change most.
        threads: Threads to score with; the result does not depend on it.

    Raises:
        ConfigError: If ``k`` is below 1.
        DataError: If the log lacks a column, or holds no request of two candidates.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(
        ...     label="income", features=wd.categorical("occupation", "education"),
        ...     item=["occupation"]
        ... )
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.fit("train.parquet")
        >>> bundle = trainer.export("replayed")
        >>> log = [{"request_id": r, "education": "Masters", "occupation": o}
        ...        for r in (1, 2) for o in ("Sales", "Tech-support")]
        >>> result = replay(bundle, bundle, log)
        >>> result.requests, result.overlap, result.tau
        (2, 1.0, 1.0)
    """
    if k < 1:
        raise ConfigError(f"got k={k}, expected at least 1: how many of a ranking are compared")
    files = [data] if isinstance(data, str | os.PathLike) else data
    log: _TableLog | _RowLog
    if isinstance(files, list | tuple) and files and all(map(_is_json_lines, files)):
        names = ["item_id", *sorted(item_columns(a.schema.spec))] if item is None else [item]
        requests = [one for file in files for one in _rows_of_lines(Path(file), items, names)]
        log = _RowLog(requests, threads)
    else:
        log = _TableLog(data, a, b, request, item, threads)
    scores = log.scores(a), log.scores(b)
    return _compare(log, (a, b), scores, k, explained)


# ---- the log ------------------------------------------------------------------------------------


class _TableLog:
    """A log as a table: one row per ranked item."""

    def __init__(
        self,
        data: Data,
        a: Bundle,
        b: Bundle,
        request: str | None,
        item: str | None,
        threads: int,
    ) -> None:
        self.data, self.threads = data, threads
        self._types = a.schema.input_types()
        self._types |= {**b.schema.input_types(), **self._types}
        with open_source(data, column_types=self._types) as source:
            names = source.arrow_schema.names
            if not source.num_rows:
                raise DataError("got no rows to replay; give a log of ranked requests")
        usual = [a.schema.spec.group, *sorted(item_columns(a.schema.spec))]
        self._request = _named("request", request, [REQUEST, *usual[:1]], names)
        self._item = _named("item", item, ["item_id", *usual[1:]], names)
        wanted = [*(n for each in (a, b) for n in (*each.input_columns, *order_columns(each)))]
        for name in wanted:
            if name not in names:
                raise DataError(
                    f"the log: no column {name!r}, which a bundle reads; {nearest(name, names)}"
                )
        self._columns = list(dict.fromkeys([*wanted, self._request, self._item]))
        keys = [table.select([self._request, self._item]) for table in self._tables()]
        whole = pa.concat_tables(keys, promote_options="permissive")
        for name, column in zip(whole.column_names, whole.columns, strict=True):
            if pa.types.is_nested(column.type):
                raise DataError(
                    f"the log: column {name!r} holds {column.type}, expected one value per row to "
                    "name a request or an item by; name another (request, item)"
                )
        self.request_B, names_of_requests = encode_column(whole[self._request])
        self.names: list[Any] = names_of_requests.to_pylist()
        self.items: list[Any] = whole[self._item].to_pylist()

    def _opened(self) -> Source:
        return open_source(self.data, columns=self._columns, column_types=self._types)

    def _tables(self) -> Iterator[pa.Table]:
        with self._opened() as source:
            yield from column_stream(source)

    def scores(self, bundle: Bundle) -> Floats:
        transform = Transform(bundle.schema, threads=self.threads)
        scores = []
        with self._opened() as source:
            for chunk, origin, first_row in row_chunks(source, _CHUNK_ROWS):
                batch = transform(chunk, targets=False, origin=origin, first_row=first_row)
                scores.append(_order(bundle, batch, chunk, self.threads))
        return np.concatenate(scores)

    def rows(self, requests: Sequence[int]) -> dict[int, list[Row]]:
        """Return the rows of some requests, by request."""
        wanted, seen = np.isin(self.request_B, requests), 0
        rows: dict[int, list[Row]] = {number: [] for number in requests}
        for part in self._tables():
            mask = wanted[seen : seen + part.num_rows]
            of_rows = self.request_B[seen : seen + part.num_rows][mask]
            for number, row in zip(of_rows, part.filter(pa.array(mask)).to_pylist(), strict=True):
                rows[int(number)].append(row)
            seen += part.num_rows
        return rows


class _RowLog:
    """A log as requests, each of which brings its candidates as rows."""

    def __init__(self, requests: list[tuple[Any, list[Any], list[Row]]], threads: int) -> None:
        self.threads = threads
        self.names = [name for name, _, _ in requests]
        self.items = [item for _, items, _ in requests for item in items]
        lengths = [len(rows) for _, _, rows in requests]
        self.request_B = np.repeat(np.arange(len(requests)), lengths)
        self._rows = [rows for _, _, rows in requests]

    def scores(self, bundle: Bundle) -> Floats:
        rows = [row for of_request in self._rows for row in of_request]
        return _order_of_rows(bundle, rows, self.threads)

    def rows(self, requests: Sequence[int]) -> dict[int, list[Row]]:
        """Return the rows of some requests, by request."""
        return {number: self._rows[number] for number in requests}


def _named(what: str, name: str | None, usual: Sequence[str | None], names: list[str]) -> str:
    if name is None:
        name = next((each for each in usual if each in names), None)
        if name is None:
            raise DataError(f"the log: cannot tell its column of the {what}; name it: {what}=...")
    if name not in names:
        raise DataError(f"the log: no column {name!r}; {nearest(name, names)}")
    return name


def _is_json_lines(file: Any) -> bool:
    return isinstance(file, str | os.PathLike) and os.fspath(file).endswith(JSON_SUFFIXES)


def _rows_of_lines(
    path: Path, items: Catalogue | None, names: Sequence[str]
) -> list[tuple[Any, list[Any], list[Row]]]:
    """Return each request's id, its items' ids, and a row per candidate."""
    requests = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: got text that is no UTF-8 ({error}); convert it") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            body = json.loads(line)
        except (RecursionError, ValueError) as error:
            raise DataError(f"{where}: got text that is no JSON ({error})") from error
        if not isinstance(body, dict):
            raise DataError(f"{where}: got {type(body).__name__}, expected an object: a request")
        query: Row = {}
        for part in ("user", "context"):
            if not isinstance(values := body.get(part) or {}, dict):
                raise DataError(f"{where}: {part}: got {values!r}, expected an object: its columns")
            query |= values
        ids, columns = _candidates(body, items, names, where)
        rows = [
            {**query, **{name: values[index] for name, values in columns.items()}}
            for index in range(len(ids))
        ]
        requests.append((body.get(REQUEST, number), ids, rows))
    if not any(ids for _, ids, _ in requests):
        raise DataError(f"{path}: got no requests with candidates to replay; give one a line")
    return requests


def _candidates(
    body: Row, items: Catalogue | None, names: Sequence[str], where: str
) -> tuple[list[Any], Mapping[str, list[Any]]]:
    inline = body.get("items")
    if isinstance(inline, dict) and inline:
        lengths = {len(values) if isinstance(values, list) else -1 for values in inline.values()}
        if len(lengths) != 1 or -1 in lengths:
            raise DataError(f"{where}: items: expected columns, each a list of as many values")
        named = next((inline[name] for name in names if name in inline), range(lengths.pop()))
        return [value if isinstance(value, _ID) else str(value) for value in named], inline
    ids = body.get("candidates")
    if not isinstance(ids, list):
        raise DataError(f"{where}: got neither candidates (a list of ids) nor items (columns)")
    if not all(isinstance(value, _ID) for value in ids):
        raise DataError(f"{where}: candidates: got a list or object, expected ids")
    if items is None:
        raise DataError(f"{where}: got candidates by id; give the catalogue they are in (items)")
    rows = items.positions(ids)
    found = items.table.take(pa.array(rows, mask=rows < 0))
    columns = {name: found[name].to_pylist() for name in found.column_names}
    columns[items.id_column] = ids
    return ids, columns


# ---- rankings -----------------------------------------------------------------------------------


def _order(bundle: Bundle, batch: Batch, rows: pa.Table, threads: int) -> Floats:
    scores = bundle.scores_by_head(bundle.logits(batch, threads=threads))
    return choose_order(bundle, scores, rows)


def _order_of_rows(bundle: Bundle, rows: Sequence[Row], threads: int = 1) -> Floats:
    """Return the score that each row would be ranked by."""
    scores, names = [], order_columns(bundle)
    for start, batch in zip(
        range(0, len(rows), _CHUNK_ROWS), bundle.batches(list(rows), threads=threads), strict=True
    ):
        chunk = rows[start : start + _CHUNK_ROWS]
        columns = pa.table({name: [row.get(name) for row in chunk] for name in names})
        scores.append(_order(bundle, batch, columns, threads))
    return np.concatenate(scores)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both rankings of one request."""

    request: int
    rows: NDArray[np.intp]  # Rows of the log
    orders: list[NDArray[np.intp]]  # Places among ``rows``, best first, by bundle
    ranks: list[NDArray[np.int64]]  # Rank of each row, from 1, by bundle

    @property
    def moves(self) -> Floats:
        """How far each row moved; high places count more, as in a ranking's discounted gain."""
        gains = [1 / np.log2(1 + rank) for rank in self.ranks]
        return np.abs(gains[1] - gains[0])

    def overlap(self, k: int) -> float:
        common = np.intersect1d(self.orders[0][:k], self.orders[1][:k])
        return len(common) / min(k, len(self.rows))


def _pairs(request_B: NDArray[np.int64], scores: Sequence[Floats]) -> Iterator[_Pair]:
    by_request = np.argsort(request_B, kind="stable")
    edges = np.flatnonzero(np.diff(request_B[by_request], prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges.tolist()):
        rows = by_request[start:stop]
        orders = [np.argsort(-each[rows], kind="stable") for each in scores]
        ranks = [np.argsort(order, kind="stable") + 1 for order in orders]
        yield _Pair(int(request_B[rows[0]]), rows, orders, ranks)


def _compare(
    log: _TableLog | _RowLog,
    bundles: tuple[Bundle, Bundle],
    scores: tuple[Floats, Floats],
    k: int,
    explained: int,
) -> Replay:
    pairs = list(_pairs(log.request_B, scores))
    single = sum(len(pair.rows) < 2 for pair in pairs)
    pairs = [pair for pair in pairs if len(pair.rows) > 1]
    if not pairs:
        raise DataError("no request of the log has two candidates or more; nothing to rank")
    counts: tuple[Counter[Any], Counter[Any]] = (Counter(), Counter())
    for pair in pairs:
        for counter, order in zip(counts, pair.orders, strict=True):
            counter.update(log.items[row] for row in pair.rows[order[:k]].tolist())
    overlaps = [pair.overlap(k) for pair in pairs]
    sizes = [float(pair.moves.max()) for pair in pairs]
    largest = sorted(range(len(pairs)), key=lambda index: -sizes[index])[:explained]
    moves, columns = _explained(
        log, bundles, scores, [pairs[index] for index in largest if sizes[index] > 0]
    )
    items = sorted({*counts[0], *counts[1]}, key=lambda i: -abs(counts[1][i] - counts[0][i]))
    difference = difference_of_labels(bundles[1], bundles[0])
    notes = [f"{difference}: each ranks by what it predicts"] if difference else []
    if words := difference_of_words(*bundles):
        notes.append(words)
    if not difference and (ranking := difference_of_ranking(bundles[1], bundles[0])):
        notes.append(f"{ranking}: two different rankings are compared")
    if single:
        notes.append(f"{single:,} requests of one candidate were left out")
    if twice := sum(len({log.items[row] for row in p.rows}) < len(p.rows) for p in pairs):
        notes.append(
            f"{twice:,} of {len(pairs):,} requests show an item more than once: their ids may be "
            "those of several requests (of other days, of other logs), or another column names "
            "the item"
        )
    return Replay(
        a=os.fspath(bundles[0].path),
        b=os.fspath(bundles[1].path),
        k=k,
        requests=len(pairs),
        candidates=sum(len(pair.rows) for pair in pairs),
        overlap=float(np.mean(overlaps)),
        tau=float(np.mean([_kendall(*pair.ranks) for pair in pairs])),
        first_changed=float(np.mean([p.orders[0][0] != p.orders[1][0] for p in pairs])),
        overlaps=np.histogram(overlaps, bins=_BINS, range=(0.0, 1.0))[0].tolist(),
        items=[
            {"item": name, "a": counts[0][name], "b": counts[1][name]}
            for name in items[:_MOST_ITEMS]
            if counts[0][name] != counts[1][name]
        ],
        columns=columns,
        moves=moves,
        notes=notes,
    )


def _kendall(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Return Kendall's tau of two rankings without ties."""
    before: list[int] = []  # Ranks in b of the rows that a ranks higher, ascending
    against = 0  # Pairs that b ranks the other way round
    for rank in b[np.argsort(a)].tolist():
        place = bisect.bisect(before, rank)
        against += len(before) - place
        before.insert(place, rank)
    return 1.0 - 4.0 * against / (len(a) * (len(a) - 1))


# ---- why ----------------------------------------------------------------------------------------


def _explained(
    log: _TableLog | _RowLog,
    bundles: tuple[Bundle, Bundle],
    scores: tuple[Floats, Floats],
    pairs: Sequence[_Pair],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return each request's largest move with its reasons, and how much columns moved items."""
    rows_of = log.rows([pair.request for pair in pairs]) if pairs else {}
    sizes: dict[str, list[float]] = {}
    moves = []
    for pair in pairs:
        at, rows = int(pair.moves.argmax()), rows_of[pair.request]
        worth = [_worth(bundle, rows) for bundle in bundles]
        nothing = np.zeros(len(rows))  # of a column that one bundle alone reads
        changes = {
            column: float(worth[1].get(column, nothing)[at] - worth[0].get(column, nothing)[at])
            for column in dict.fromkeys([*worth[0], *worth[1]])
        }
        for column, change in changes.items():
            sizes.setdefault(column, []).append(abs(change))
        strongest = sorted(changes, key=lambda column: -abs(changes[column]))[:_REASONS]
        moves.append(
            {
                "request": log.names[pair.request],
                "item": log.items[pair.rows[at]],
                "candidates": len(rows),
                "a": int(pair.ranks[0][at]),
                "b": int(pair.ranks[1][at]),
                "score_a": float(scores[0][pair.rows[at]]),
                "score_b": float(scores[1][pair.rows[at]]),
                "why": [
                    {"column": name, "value": rows[at].get(name), "change": changes[name]}
                    for name in strongest
                ],
            }
        )
    means = sorted(((float(np.mean(v)), column) for column, v in sizes.items()), reverse=True)
    return moves, [{"column": column, "size": size} for size, column in means]


def _worth(bundle: Bundle, rows: list[Row]) -> dict[str, Floats]:
    """Return by how much each column lifts each candidate above the request's mean.

    The score of a row less that of the row without the column (null), as log odds where it is a
    probability, less the same of the request's candidates on average: what only lifts all of them
    moves none.
    """
    whole = _strength(bundle, _order_of_rows(bundle, rows))
    worth = {}
    for column in bundle.input_columns:
        try:
            without = _order_of_rows(bundle, [{**row, column: None} for row in rows])
        except FeatureError:  # a column that cannot be null alone: one of parallel lists
            continue
        effect = whole - _strength(bundle, without)
        worth[column] = effect - effect.mean()
    return worth


def _strength(bundle: Bundle, scores: Floats) -> Floats:
    head = next((head for head in bundle.model.heads if not head.by_class), None)
    if bundle.model.rank_by is not None or head is None or head.kind != "binary":
        return scores
    p = np.clip(scores, 1e-15, 1 - 1e-15)
    return np.asarray(np.log(p) - np.log1p(-p))


# ---- the page -----------------------------------------------------------------------------------


def _page(result: Replay) -> str:
    k = result.k
    parts = [
        tiles(
            [
                (f"of the first {k} in common", f"{result.overlap:.1%}"),
                ("Kendall tau", f"{result.tau:.3f}"),
                ("another first item", f"{result.first_changed:.1%}"),
                ("requests", f"{result.requests:,}", f"{result.candidates:,} candidates"),
            ]
        ),
        *(note(text) for text in result.notes),
        section(
            "Overlap",
            column_chart(
                [
                    (f"{i / _BINS:.0%}", float(n), f"{i / _BINS:.0%} or more: {n:,} requests")
                    for i, n in enumerate(result.overlaps)
                ],
                ends=("nothing in common", "the same items"),
            ),
            note(f"Requests by the share of the first {k} that both bundles rank among them."),
        ),
        section("Items", _items_table(result)),
        section(
            "Columns",
            bar_list([(e["column"], e["size"], f"{e['size']:.3f}") for e in result.columns]),
            note(
                "By how much each column moved the items below, in the score (log odds of a "
                "probability) against the request's other candidates: what the row would lose "
                "without it in the second bundle, less the same in the first."
            ),
        )
        if result.columns
        else "",
        section("Largest moves", _moves_table(result)) if result.moves else "",
    ]
    subtitle = f"{result.a} against {result.b}, on the same requests"
    return render("page/page.html", title="Replay", subtitle=subtitle, parts=parts)


def _items_table(result: Replay) -> str:
    heads = ["item", f"first {result.k}: first bundle", "second bundle", "change"]
    rows = item_rows(result.items)
    return table(heads, rows, numbers=heads[1:]) if rows else note("The same items stand first.")


def item_rows(items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row per item: how often it is among the first by each bundle, and the change."""
    return [[str(e["item"]), f"{e['a']:,}", f"{e['b']:,}", f"{e['b'] - e['a']:+,}"] for e in items]


def _moves_table(result: Replay) -> str:
    heads = ["request", "item", "rank", "score", "why"]
    rows = [
        [
            str(move["request"]),
            str(move["item"]),
            f"{move['a']} to {move['b']} of {move['candidates']}",
            f"{move['score_a']:.4g} to {move['score_b']:.4g}",
            why_text(move["why"]),
        ]
        for move in result.moves
    ]
    return table(heads, rows)


def why_text(why: Sequence[Mapping[str, Any]]) -> str:
    """Return the reasons of a move as text: columns with their values, the strongest first."""
    texts = [
        f"{e['column']} = {_short(e['value'])} ({e['change']:+.2f})"
        for e in why
        if e["change"] is not None and math.isfinite(e["change"])
    ]
    return ", ".join(texts)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
