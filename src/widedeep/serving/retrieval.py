"""Retrieval: a few hundred candidates out of all items, for the ranker to put in order.

Candidates come from two sources: what is popular, and what lies near the query among the items'
vectors: those of two towers (:class:`widedeep.models.TwoTower`), or else embeddings of ids. Rules
hold for both: filters on columns, ids left out, at most so many of a category.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.data.column_values import logical_kind, storage_of, without_decimals
from widedeep.errors import DataError, RequestError, nearest, show_value
from widedeep.schema import ColumnType
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.impression_rows import typed_array
from widedeep.serving.ranker import Ranker

__all__ = ["EmbeddingIndex", "Found", "Retriever"]

EXHAUSTIVE_ITEMS = 200_000
"""Beyond, not every item is compared: the index is split into cells, and a few are searched."""

_CELLS_SEARCHED = 32
_TRAINING_POINTS = 40  # per cell; the least that faiss recommends
_ITEMS_PER_BLOCK = 4096
_NEAR_WHERE_LIMITED = 4  # times as many near items, where some go for their category

Source = Literal["two towers", "vector", "like", "popularity"]


class EmbeddingIndex:
    """Finds the vectors with the largest inner product with a query.

    With faiss-cpu (the extra ``retrieval``) up to 200,000 vectors are kept in half precision, and
    all are compared; more are split into cells with 8 bits a number, of which 32 are searched.
    Without it NumPy compares all, in float32.

    Args:
        vectors_ND: One row per item; normalise them for the cosine.
        engine: ``"faiss"``, ``"numpy"``, or ``"auto"``: faiss where it is installed.

    Raises:
        DataError: If it is no matrix of finite numbers, or faiss is asked for and not installed.

    Example:
        >>> index = EmbeddingIndex(np.eye(3, dtype=np.float32), engine="numpy")
        >>> index.search(np.array([0.1, 0.9, 0.3]), 2).tolist()
        [1, 2]
    """

    def __init__(
        self, vectors_ND: NDArray[Any], *, engine: Literal["auto", "faiss", "numpy"] = "auto"
    ) -> None:
        vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)
        if vectors_ND.ndim != 2 or not np.isfinite(vectors_ND).all():
            raise DataError(
                f"got item vectors of shape {vectors_ND.shape}; expected finite numbers, a row an "
                "item"
            )
        self._count, self.width = vectors_ND.shape
        self._faiss = None if engine == "numpy" else _faiss(required=engine == "faiss")
        self._vectors_ND = vectors_ND
        if self._faiss is not None:
            self._index = self._build(vectors_ND)
            self._vectors_ND = vectors_ND[:0]

    @property
    def engine(self) -> str:
        """What searches: ``"numpy"``, ``"faiss SQfp16"`` or ``"faiss IVF,SQ8"``."""
        if self._faiss is None:
            return "numpy"
        return "faiss SQfp16" if self._count <= EXHAUSTIVE_ITEMS else "faiss IVF,SQ8"

    def _build(self, vectors_ND: NDArray[np.float32]) -> Any:
        faiss: Any = self._faiss
        inner = faiss.METRIC_INNER_PRODUCT
        training_ND = vectors_ND
        if self._count <= EXHAUSTIVE_ITEMS:
            index = faiss.IndexScalarQuantizer(self.width, faiss.ScalarQuantizer.QT_fp16, inner)
        else:
            cells = int(np.sqrt(self._count))
            index = faiss.index_factory(self.width, f"IVF{cells},SQ8", inner)
            index.nprobe = _CELLS_SEARCHED
            # A sample is enough to find the cells: more points take longer and improve nothing.
            sample = np.random.default_rng(0).choice(
                self._count, min(self._count, _TRAINING_POINTS * cells), replace=False
            )
            training_ND = vectors_ND[np.sort(sample)]
        index.train(training_ND)
        index.add(vectors_ND)
        return index

    def search(
        self, query_D: NDArray[Any], k: int, allowed_N: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Return the positions of the k best, best first; fewer if fewer are allowed or found.

        Args:
            query_D: The query's vector.
            k: Number of items.
            allowed_N: Whether each item may be returned; None allows all.

        Raises:
            RequestError: If the query's vector has another width, or is not finite.
        """
        query_D = np.ascontiguousarray(query_D, np.float32)
        if query_D.shape != (self.width,) or not np.isfinite(query_D).all():
            raise RequestError(
                "vector", f"got shape {query_D.shape}, expected {self.width} finite numbers"
            )
        k = min(k, self._count)
        if k <= 0:
            return np.empty(0, np.int64)
        if self._faiss is None:
            return self._search_all(query_D, k, allowed_N)
        options = self._faiss.SearchParametersIVF if self._count > EXHAUSTIVE_ITEMS else None
        parameters: dict[str, Any] = {}
        if allowed_N is not None:
            bits = np.packbits(allowed_N, bitorder="little")
            selector = self._faiss.IDSelectorBitmap(bits)
            if options is None:
                parameters = {"params": self._faiss.SearchParameters(sel=selector)}
            else:
                parameters = {"params": options(sel=selector, nprobe=_CELLS_SEARCHED)}
        _, rows_1K = self._index.search(query_D[None], k, **parameters)
        rows: NDArray[np.int64] = rows_1K[0][rows_1K[0] >= 0]  # -1: fewer than k were found
        return rows

    def _search_all(
        self, query_D: NDArray[np.float32], k: int, allowed_N: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        products_N = self._vectors_ND @ query_D
        rows = np.arange(self._count) if allowed_N is None else allowed_N.nonzero()[0]
        products_N = products_N[rows]
        k = min(k, len(rows))
        if not k:
            return np.empty(0, np.int64)
        best = np.argpartition(-products_N, k - 1)[:k]  # (k,) indices into rows, in any order
        best = best[np.argsort(-products_N[best], kind="stable")]
        best_rows: NDArray[np.int64] = rows[best]
        return best_rows


def _faiss(*, required: bool) -> Any:
    try:
        import faiss
    except ImportError as error:
        if required:
            raise DataError(
                "faiss is not installed: pip install 'widedeep[retrieval]', or engine='numpy'"
            ) from error
        return None
    return faiss


def item_vectors(bundle: Bundle, column: str, ids: Sequence[Any]) -> NDArray[np.float32] | None:
    """Return the deep part's embeddings of items, normalised; None if the model embeds no such id.

    Args:
        bundle: The model.
        column: Column of the item ids.
        ids: Item ids; those that training had not seen share a vector.

    Shape:
        (N, D), one row per item, each of length 1 or 0.
    """
    schema = bundle.schema
    features = [
        (index, slot)
        for index, slot in enumerate(schema.slots)
        if slot.is_value
        and slot.deep
        and schema.spec.by_name[slot.name].main_column == column
        and f"table/{slot.table}" in bundle.weights
    ]
    if not features or not len(ids):
        return None
    index, slot = features[0]
    table = bundle.weights[f"table/{slot.table}"]
    vectors_ND = np.empty((len(ids), table.shape[1]), np.float32)
    for start in range(0, len(ids), _ITEMS_PER_BLOCK):
        rows = [{column: id_} for id_ in ids[start : start + _ITEMS_PER_BLOCK]]
        batch = bundle.encode(rows)
        firsts = batch.offsets_BF[index : -1 : len(schema.slots)]  # (B,) index of the row's id
        vectors_ND[start : start + len(rows)] = table[batch.ids_N[firsts]]
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    vectors_ND /= np.maximum(lengths, 1e-12)
    return vectors_ND


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates, and where they come from.

    Args:
        ids: Ids, those near the query first.
        near: How many of them are near the query; the rest are the popular ones.
        by: What the query was: ``"two towers"``, ``"vector"``, ``"like"``, or ``"popularity"``
            where there was none.
        unknown: How many ids in ``like`` and ``exclude`` the catalogue does not hold.
    """

    ids: list[Any]
    near: int
    by: Source
    unknown: int = 0


def _two_tower_vectors(
    bundle: Bundle, items: pa.Table, id_column: str, ids: Sequence[Any]
) -> NDArray[np.float32]:
    """Return the vectors of items: those that the bundle keeps, computed ones of the others."""
    kept = bundle.items
    if kept is None:
        return bundle.item_vectors(items)
    row_N = kept.rows_of(ids, id_column)
    vectors_ND = np.array(kept.vectors_ND[row_N])
    others = np.flatnonzero(row_N < 0)
    if len(others):
        vectors_ND[others] = bundle.item_vectors(items.take(others))
    return vectors_ND


class Retriever:
    """Candidates from a table of items.

    Args:
        items: One row per item, or a catalogue of them.
        id_column: Column of the item ids.
        popularity: A numeric column, larger is more popular; None: the order of the rows.
        category: The column that ``most_of_each`` limits.
        vectors_ND: One row per item, for items near a query; None: popularity alone.
        bundle: A model with two towers, for its vectors of these items and of queries. Items that
            it was exported with have the vectors that it keeps; those of others are computed. A
            model without gives its normalised embeddings of the ids.
        engine: As for :class:`EmbeddingIndex`.

    Raises:
        DataError: If a column is missing or of another kind, or the bundle keeps vectors of items,
            and none of these is among them.

    Example:
        >>> items = pa.table({"app": ["maps", "mail", "chess"], "kind": ["tool", "tool", "game"]})
        >>> apps = Retriever(items, id_column="app", category="kind")
        >>> apps.retrieve(2), apps.retrieve(2, most_of_each=1)
        (['maps', 'mail'], ['maps', 'chess'])
        >>> apps.retrieve(2, where={"kind": "tool"}, exclude=["maps"])
        ['mail']
    """

    def __init__(
        self,
        items: pa.Table | Catalogue,
        *,
        id_column: str,
        popularity: str | None = None,
        category: str | None = None,
        vectors_ND: NDArray[np.float32] | None = None,
        bundle: Bundle | None = None,
        engine: Literal["auto", "faiss", "numpy"] = "auto",
    ) -> None:
        is_catalogue = isinstance(items, Catalogue)
        catalogue = items if is_catalogue else Catalogue(items, id_column=id_column, version="")
        self._catalogue, self._ids = catalogue, catalogue.ids
        self._items = items = catalogue.table
        self._bundle = bundle if bundle is not None and bundle.has_vectors else None
        if bundle is not None and vectors_ND is None:
            vectors_ND = (
                item_vectors(bundle, id_column, self._ids)
                if self._bundle is None
                else _two_tower_vectors(self._bundle, items, id_column, self._ids)
            )
        if vectors_ND is not None and len(vectors_ND) != len(self._ids):
            raise DataError(
                f"got {len(vectors_ND)} vectors of {len(self._ids)} items; give one each"
            )
        self._vectors_ND = vectors_ND
        self._index = None if vectors_ND is None else EmbeddingIndex(vectors_ND, engine=engine)
        self._by_popularity = _popular_first(items, popularity)  # (N,) rows
        self._categories: NDArray[np.int64] | None = None  # (N,) codes, -1 for null
        if category is not None:
            encoded = _column(items, category).combine_chunks().dictionary_encode()
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            self._categories = codes.astype(np.int64)

    def retrieve(
        self,
        n: int,
        *,
        where: Mapping[str, Any] | None = None,
        exclude: Sequence[Any] = (),
        most_of_each: int | None = None,
        like: Sequence[Any] = (),
        vector: Sequence[float] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Return ids of candidates: those near the query first, then the popular ones.

        Args:
            n: Largest number of candidates. All come from the vectors if ``query`` is given to a
                bundle with two towers, half of them if ``like`` or ``vector`` is; the popular ones
                fill up.
            where: For each column a value, a list of values, or ``{"min": ..., "max": ...}``.
            exclude: Ids to leave out, such as items that are installed already.
            most_of_each: Largest number of candidates per category.
            like: Ids of items, such as the user's last; the query is the mean of their vectors.
            vector: The query's vector.
            query: Values of user and context by column, for the vector of a bundle's two towers;
                ``like`` and ``vector`` come before it.

        Raises:
            RequestError: If a column or a value cannot be used.
            FeatureError: If a value of ``query`` does not fit its feature.
        """
        return self.find(
            n,
            where=where,
            exclude=exclude,
            most_of_each=most_of_each,
            like=like,
            vector=vector,
            query=query,
        ).ids

    def find(
        self,
        n: int,
        *,
        where: Mapping[str, Any] | None = None,
        exclude: Sequence[Any] = (),
        most_of_each: int | None = None,
        like: Sequence[Any] = (),
        vector: Sequence[float] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Found:
        """Return what :meth:`retrieve` does, with where it comes from; arguments are the same."""
        if n < 0:
            raise RequestError("n", f"got {n}, expected at least 0")
        allowed_N = self._allowed(where or {}, exclude)
        by, query_D = self._query(like, vector, query)
        near = np.empty(0, np.int64)
        if query_D is not None and self._index is not None:
            k = n if by == "two towers" else n - n // 2
            if most_of_each is not None:
                k *= _NEAR_WHERE_LIMITED
            near = self._index.search(query_D, k, allowed_N)
        popular = self._by_popularity
        if allowed_N is not None:
            popular = popular[allowed_N[popular]]
        is_near = np.zeros(len(self._ids), bool)
        is_near[near] = True
        rows = np.concatenate([near, popular[~is_near[popular]]])
        if most_of_each is not None:
            rows = self._limit_categories(rows, most_of_each)
        rows = rows[:n]
        ids, given = [self._ids[row] for row in rows], [*like, *exclude]
        unknown = len(given) - len(self._rows_of(given))
        return Found(ids, int(is_near[rows].sum()), by, unknown)

    def _allowed(
        self, where: Mapping[str, Any], exclude: Sequence[Any]
    ) -> NDArray[np.bool_] | None:
        if not where and not exclude:
            return None
        allowed_N = np.ones(len(self._ids), bool)
        for column, condition in where.items():
            allowed_N &= self._matches(column, condition)
        allowed_N[self._rows_of(exclude)] = False
        return allowed_N

    def _rows_of(self, ids: Sequence[Any]) -> NDArray[np.int64]:
        """Return the rows of those ids that are in the catalogue: 7 and "7" are one id."""
        rows = self._catalogue.positions(ids)
        return rows[rows >= 0]

    def _matches(self, column: str, condition: Any) -> NDArray[np.bool_]:
        if column not in self._items.column_names:
            raise RequestError(
                f"where.{column}",
                f"got no such column; {nearest(column, self._items.column_names)}",
            )
        values = self._items.column(column)
        if pa.types.is_dictionary(values.type):  # text, as a catalogue's file is read
            values = values.cast(values.type.value_type)
        try:
            mask = _fitting(values, condition)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"where.{column}",
                f"got {show_value(condition)} for a column of {values.type}: {error}",
            ) from error
        mask_N: NDArray[np.bool_] = pc.fill_null(mask, False).to_numpy()
        return mask_N

    def _query(
        self,
        like: Sequence[Any],
        vector: Sequence[float] | None,
        query: Mapping[str, Any] | None,
    ) -> tuple[Source, NDArray[np.float32] | None]:
        """Return what the query is, and its vector; None for popularity alone."""
        if vector is not None:
            if self._index is None:
                raise RequestError("vector", "got a vector, but the items have none; leave it out")
            return "vector", _numbers(vector)
        rows = self._rows_of(like)
        if len(rows) and self._vectors_ND is not None:
            return "like", self._vectors_ND[rows].mean(axis=0)
        if self._bundle is not None and any(value is not None for value in (query or {}).values()):
            return "two towers", self._bundle.query_vector(query or {})
        return "popularity", None

    def _limit_categories(self, rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
        """Keep the first few of each category; the order stays."""
        if self._categories is None:
            raise RequestError(
                "most_of_each", "got a limit, but no column of categories; name one when it starts"
            )
        codes = self._categories[rows]
        order = np.argsort(codes, kind="stable")  # rows of one category together, in their order
        ordered = codes[order]
        starts = np.searchsorted(ordered, ordered)  # index of the category's first row
        keep = np.zeros(len(rows), bool)
        keep[order] = np.arange(len(rows)) - starts < limit
        return rows[keep]


def _fitting(values: pa.ChunkedArray, condition: Any) -> pa.ChunkedArray:
    """Return which values are among those that a rule lists, or between its bounds."""
    kind = logical_kind(values.type)
    if kind is None:
        raise ValueError("rules are for text, numbers, booleans and times")
    column = ColumnType(kind=kind, storage=None if kind == "string" else storage_of(values.type))
    wide = values.type if values.type == pa.uint64() else column.arrow()
    values = (without_decimals(values) if kind == "float" else values).cast(wide)
    if not isinstance(condition, Mapping):
        listed = condition if isinstance(condition, list) else [condition]
        return pc.is_in(values, value_set=_as_stored(listed, column, wide))
    if not condition or not set(condition) <= {"min", "max"} or kind == "bool":
        raise ValueError(
            "expected min, max or both" if kind != "bool" else "expected true or false"
        )
    mask = pa.scalar(True)
    for name, compare, whole in (
        ("min", pc.greater_equal, math.ceil),
        ("max", pc.less_equal, math.floor),
    ):
        if name in condition:
            bound = condition[name]
            is_between = kind == "int" and not column.is_time and isinstance(bound, float)
            bounds = _as_stored([whole(bound) if is_between else bound], column, wide)
            mask = pc.and_(mask, compare(values, bounds[0]))
    return mask


def _as_stored(values: list[Any], column: ColumnType, wide: pa.DataType) -> pa.Array:
    """Return values of a request as the column stores them: 0.7 is a float32 column's own 0.7."""
    if column.is_time:
        return typed_array(values, column)
    if column.kind == "int" and any(isinstance(v, float) and not v.is_integer() for v in values):
        raise ValueError("expected whole numbers")
    numbers = pa.array(values, wide)
    if column.kind != "float":
        return numbers
    return pa.array(column.round(numbers.to_numpy(zero_copy_only=False)), from_pandas=True)


def _numbers(vector: Sequence[float]) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # a too large number becomes infinite, and is refused
            return np.asarray(vector, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("vector", f"got {vector!r}, expected numbers") from error


def _column(items: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in items.column_names:
        raise DataError(f"the items: got no column {name!r}; {nearest(name, items.column_names)}")
    return items.column(name)


def _popular_first(items: pa.Table, column: str | None) -> NDArray[np.int64]:
    if column is None:
        return np.arange(items.num_rows)
    values = _column(items, column)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"the items' column {column!r} is {values.type}; expected numbers")
    numbers = np.nan_to_num(
        pc.fill_null(values.cast(pa.float64()), -np.inf).to_numpy(), nan=-np.inf
    )
    order: NDArray[np.int64] = np.argsort(-numbers, kind="stable")
    return order


class Retrievers:
    """One retriever per ranker and catalogue, made on first use."""

    def __init__(self, popularity: str | None = None, category: str | None = None) -> None:
        self._popularity, self._category = popularity, category
        self._cache: weakref.WeakKeyDictionary[Ranker, tuple[Catalogue, Retriever]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def of(self, ranker: Ranker) -> Retriever:
        """Return the retriever of a ranker's catalogue and embeddings."""
        catalogue = ranker.catalogue
        if catalogue is None:
            raise RequestError("n", "got no catalogue to find candidates in; serve with --items")
        with self._lock:
            entry = self._cache.get(ranker)
            if entry is None or entry[0] is not catalogue:
                entry = catalogue, self._retriever(ranker, catalogue)
                self._cache[ranker] = entry
        return entry[1]

    def _retriever(self, ranker: Ranker, catalogue: Catalogue) -> Retriever:
        return Retriever(
            catalogue,
            id_column=catalogue.id_column,
            popularity=self._popularity,
            category=self._category,
            bundle=ranker.bundle,
        )
