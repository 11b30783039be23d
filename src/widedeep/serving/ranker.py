"""Ranker: a user, a context and candidate items in; the items, best first, with scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle, Explanation
from widedeep.data.transform import misspelt_keys
from widedeep.errors import (
    BundleError,
    ConfigError,
    DataError,
    FeatureError,
    RequestError,
    nearest,
)
from widedeep.features.spec import item_columns
from widedeep.serving.candidates import (
    Candidates,
    InlineItems,
    candidate_ids,
    check_id,
    check_names,
    chosen_head,
    inline_items,
    plain_message,
)
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.scorers import FactoredForward, RowByRow, can_factor
from widedeep.serving.shared_rows import SharedRows

__all__ = ["Ranker", "Ranking"]

# What a term of an explanation costs, in ids.
_VALUES_A_TERM = 96


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranking:
    """Candidates, best first; those of equal scores in the order of the request.

    Args:
        items: Their ids; for items given inline without ids, their positions.
        scores: What :meth:`widedeep.Bundle.score` gives for the rows: calibrated probabilities, or
            the values of a regression.
        positions: Their places among the request's candidates.
        unknown: Whether the id was not in the catalogue, so that the model knew nothing of the
            item but its id.
        explanations: On request, why each item got its score.
        catalogue_version: Of the catalogue that was used.
        absent: For each column the request should have brought and did not, how many values were
            taken for null: one for a column of the user or context, one an item for an item's.
        misspelt: Keys of the request that mean nothing and look like an absent column, with it.
    """

    items: list[Any]
    scores: NDArray[np.float64]
    positions: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    explanations: tuple[Explanation, ...] | None = None
    catalogue_version: str | None = None
    absent: dict[str, int]
    misspelt: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)


Engine: TypeAlias = FactoredForward | RowByRow


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """What the scores of a ranking are."""

    head: str  # Whose they are
    kind: str  # Of the head
    label: str | None  # The label's column, where the schema names it
    classes: tuple[str, ...]  # Names of its classes; a score is the probability of the second

    def __str__(self) -> str:
        if self.kind == "regression":
            return f"the value of {self.label!r}"
        of = repr(self.classes[1]) if len(self.classes) == 2 else "1"
        return f"the probability that {self.label!r} is {of}"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A catalogue and what was made of it; replaced as one."""

    catalogue: Catalogue
    items: Any
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Group:
    """Candidates whose items lie together."""

    items: Any
    rows: NDArray[np.int64]
    places: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class _Found:
    """A request's candidates. ``columns`` came with the items, ``values`` gives one's by place."""

    ids: list[Any]
    groups: list[_Group]
    unknown: NDArray[np.bool_]
    columns: frozenset[str]
    absent: dict[str, int]
    values: Callable[[int], dict[str, Any]]


class Ranker:
    """Ranks candidates with a bundle. Any number of threads may use one.

    Args:
        bundle: The model, or the directory that holds it.
        items: The catalogue: a :class:`Catalogue`, or what :meth:`Catalogue.read` reads. Without
            one, requests bring their items inline.
        item_id: The column of item ids. Needed with ``items`` unless it is a :class:`Catalogue`.
        unknown_items: What to do with an id that is not in the catalogue: ``"score"`` it by its id
            alone, the other columns null, or ``"refuse"`` the request.
        precision: ``"float32"`` gives the very scores of the bundle. ``"bfloat16"`` keeps the
            item's part of the first layer in half the memory, and multiplies the hidden layers
            after it in bfloat16, adding up in float32: about twice as fast where the processor has
            the instruction (AVX-512 BF16), and the same scores, more slowly, where it has not.
        threads: Threads that one request may use; its scores do not depend on it.
        shared_rows: Where several processes keep one copy of the catalogue's part of the sums.

    Attributes:
        bundle: The model.
        unknown_items: As given.
        precision: As given.
        threads: As given.

    Raises:
        BundleError: If the bundle cannot be loaded.
        DataError: If the catalogue lacks a column of the model's items.
        FeatureError: If a value of the catalogue does not fit its feature.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(
        ...     label="income", features=wd.categorical("occupation", "education"),
        ...     item=["occupation"]
        ... )
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.fit("train.parquet")
        >>> _ = trainer.export("ranking_bundle")
        >>> items = {"occupation": ["Sales", "Tech"]}
        >>> ranker = wd.Ranker("ranking_bundle", items=items, item_id="occupation")
        >>> ranking = ranker.rank({"education": "Bachelors"}, candidates=["Sales", "Tech", "Chef"])
        >>> sorted(ranking.items), int(ranking.unknown.sum())
        (['Chef', 'Sales', 'Tech'], 1)
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        items: Any = None,
        item_id: str | None = None,
        unknown_items: Literal["score", "refuse"] = "score",
        precision: Literal["float32", "bfloat16"] = "float32",
        threads: int = 1,
        shared_rows: SharedRows | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        _check_choice("unknown_items", unknown_items, ("score", "refuse"))
        _check_choice("precision", precision, ("float32", "bfloat16"))
        self.unknown_items = unknown_items
        self.precision = precision
        self.threads = threads
        self._shared_rows = shared_rows
        self._read = frozenset(self.bundle.encoder.columns(targets=False))
        self._item_columns = item_columns(self.bundle.schema.spec) & self._read
        self._heads = {head.name: head.kind for head in self.bundle.model.heads}
        self._engine: Any = self._new_engine(precision, threads)
        self._item_id = items.id_column if isinstance(items, Catalogue) else item_id
        self._loaded: _Loaded | None = None
        if items is not None:
            self.replace_catalogue(items)

    def _new_engine(self, precision: Literal["float32", "bfloat16"], threads: int) -> Engine:
        if can_factor(self.bundle):
            return FactoredForward(self.bundle, precision=precision, threads=threads)
        if precision != "float32":
            raise BundleError(
                f"got precision={precision!r}, but this model's item part cannot be kept "
                "apart (it has towers of its own, or no features of the item); use 'float32'"
            )
        columns = self._item_columns or None
        return RowByRow(self.bundle, item_columns=columns, threads=threads)

    @property
    def engine(self) -> Literal["factored", "row by row"]:
        """How candidates are scored.

        ``"factored"``: the user's part of the first layer once a request, the item's once a
        catalogue. ``"row by row"``: each candidate through the whole model, for bundles with towers
        of their own (an exported graph) and for models that name no features of the item.
        """
        return "factored" if isinstance(self._engine, FactoredForward) else "row by row"

    @property
    def catalogue(self) -> Catalogue | None:
        """The catalogue in use."""
        loaded = self._loaded
        return None if loaded is None else loaded.catalogue

    def replace_catalogue(self, items: Any) -> None:
        """Take another catalogue: made ready beside the old one, then put in its place at once.

        Requests that have begun end with the old one. If this raises, the old one stays.

        Args:
            items: As for the class.

        Raises:
            DataError: If it lacks a column of the model's items.
            FeatureError: If a value does not fit its feature.
        """
        if not isinstance(items, Catalogue):
            if self._item_id is None:
                raise DataError(
                    "got items without item_id; name the column of their ids: item_id=..."
                )
            items = Catalogue.read(items, id_column=self._item_id)
        names = items.table.column_names
        for column in sorted(self._item_columns - set(names)):
            raise DataError(
                f"the catalogue: got no column {column!r}, which the model reads of an item; "
                f"{nearest(column, names)}"
            )
        own = self._own_columns(items.table.column_names)
        self._loaded = _Loaded(items, self._items_of(items), own)

    def _items_of(self, items: Catalogue) -> Any:
        if not isinstance(self._engine, FactoredForward) or self._shared_rows is None:
            return self._engine.items(items.table)
        # All that the rows are made of.
        files = [file.sha256 for file in self.bundle.manifest.files.values()]
        key = [*files, items.version, self.precision]
        return self._engine.items(items.table, partial(self._shared_rows.arrays, key))

    def _own_columns(self, given: Iterable[str]) -> frozenset[str]:
        """Without a declaration of the item's features, what comes with an item is the item's."""
        return self._item_columns or self._read & frozenset(given)

    def rank(
        self,
        user: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        candidates: Candidates = (),
        *,
        k: int | None = None,
        explain: bool = False,
        head: str | None = None,
    ) -> Ranking:
        """Rank candidates for a user in a context.

        Args:
            user: Values of the user's columns; further keys are ignored, and named where they look
                like one that is absent.
            context: Values of further columns of the query: time, place, device.
            candidates: Ids of items, or the items themselves as columns. An id may come twice.
            k: Return the best k only.
            explain: Say of each item returned why it got its score.
            head: Rank by this head; default: the first that gives one number an item.

        Raises:
            RequestError: If a field cannot be used, naming it; for an id that is not in the
                catalogue, if ``unknown_items`` is ``"refuse"``.

        Example:
            >>> import widedeep as wd
            >>> spec = wd.FeatureSpec(
            ...     label="income", features=wd.categorical("occupation", "education"),
            ...     item=["occupation"]
            ... )
            >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
            >>> _ = trainer.fit("train.parquet")
            >>> ranker = wd.Ranker(trainer.export("rank_bundle"))
            >>> ranking = ranker.rank(
            ...     {"education": "Bachelors"}, candidates={"occupation": ["Sales", "Tech"]}, k=1
            ... )
            >>> len(ranking), ranking.scores.shape
            (1, (1,))
        """
        by_head = chosen_head(self._heads, head)
        if k is not None and (not isinstance(k, int) or k < 0):
            raise RequestError("k", f"got {k!r}, expected a whole number of at least 0, or none")
        row = self._query_row(user, context)
        loaded = self._loaded
        found = self._found(candidates, loaded, row)
        query = self._query(row, user)
        scores = self._scores(query, found, by_head)
        order = np.argsort(-scores, kind="stable")[:k]
        places = order.tolist()
        absent = self._absent(query, found)
        return Ranking(
            items=[found.ids[at] for at in places],
            scores=scores[order],
            positions=order,
            unknown=found.unknown[order],
            explanations=self._explanations(row, found, places) if explain else None,
            catalogue_version=None if loaded is None else loaded.catalogue.version,
            absent=absent,
            misspelt=self._misspelt(row, candidates, absent) if absent else {},
        )

    def score_meaning(self, head: str | None = None) -> ScoreMeaning:
        """Return what the scores of a ranking are, to be held against another model's.

        Args:
            head: As :meth:`rank` takes it.

        Raises:
            RequestError: If there is no such head, or it gives no number to rank by.
        """
        name = chosen_head(self._heads, head)
        schema, entry = (
            self.bundle.schema,
            next(each for each in self.bundle.model.heads if each.name == name),
        )
        classes = tuple(schema.classes.get(name, ()) or entry.classes)
        return ScoreMeaning(name, entry.kind, schema.spec.labels.get(name), classes)

    def _query_row(
        self, user: Mapping[str, Any], context: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        for where, given in (("user", user), ("context", context or {})):
            if not isinstance(given, Mapping):
                raise RequestError(
                    where, f"got {given!r} ({type(given).__name__}), expected an object of values"
                )
            check_names(where, given, self._item_columns, "the item's", "candidates")
        if not context:
            return dict(user)
        check_names("context", context, user.keys(), "given in user too", "one of them")
        return {**user, **context}

    def _query(self, row: dict[str, Any], user: Mapping[str, Any]) -> Any:
        try:
            return self._engine.query(row)
        except FeatureError as error:
            for name in self._read & row.keys():
                where = "user" if name in user else "context"
                self._blame(f"{where}.{name}", self._engine.query, {name: row[name]})
            raise RequestError("user", plain_message(error)) from error

    def _found(self, candidates: Candidates, loaded: _Loaded | None, row: dict[str, Any]) -> _Found:
        if isinstance(candidates, Mapping | pa.Table):
            found = self._inline(inline_items(candidates, self._item_id))
        else:
            ids = candidate_ids(candidates)
            found = self._without_catalogue(ids) if loaded is None else self._by_id(ids, loaded)
        if not self._item_columns:
            check_names("user", row, found.columns, "given with the items", "one of them")
        return found

    def _without_catalogue(self, ids: list[Any]) -> _Found:
        if self._item_id is None and ids:
            raise RequestError(
                "candidates",
                "got ids, but this ranker has no catalogue; give the items as columns",
            )
        for at, id_ in enumerate(ids):
            check_id(at, id_)
        return self._inline(InlineItems(ids, {str(self._item_id): ids} if ids else {}))

    def _inline(self, inline: InlineItems) -> _Found:
        if self._item_columns:
            of_query = self._read - self._item_columns
            check_names("candidates", inline.columns, of_query, "the query's", "user or context")
        own = self._own_columns(inline.columns)
        rows = inline.rows([name for name in inline.columns if name in own])
        try:
            items = self._engine.item_rows(rows)
        except FeatureError as error:
            self._blame_item(rows)
            raise RequestError("candidates", plain_message(error)) from error
        group = _Group(items, np.arange(len(rows)), None)
        unknown = np.zeros(len(rows), bool)
        return _Found(inline.ids, [group], unknown, own, items.absent, rows.__getitem__)

    def _by_id(self, ids: list[Any], loaded: _Loaded) -> _Found:
        catalogue = loaded.catalogue
        rows, all_known = catalogue.find(ids)
        unknown = np.zeros(len(rows), bool) if all_known else rows < 0
        groups = [_Group(loaded.items, rows, None)]
        if not all_known:
            (known_places,), (places,) = np.nonzero(~unknown), np.nonzero(unknown)
            groups = [
                _Group(loaded.items, rows[known_places], known_places),
                _Group(
                    self._unknown(ids, places.tolist(), catalogue), np.arange(len(places)), places
                ),
            ]

        def values(at: int) -> dict[str, Any]:
            if rows[at] < 0:
                return self._row_of_unknown(ids[at])
            columns = [name for name in catalogue.table.column_names if name in loaded.columns]
            row: dict[str, Any] = catalogue.table.select(columns).slice(rows[at], 1).to_pylist()[0]
            return row

        return _Found(ids, groups, unknown, loaded.columns, {}, values)

    def _unknown(self, ids: list[Any], places: list[int], catalogue: Catalogue) -> Any:
        for at in places:
            check_id(at, ids[at])
            if self.unknown_items == "refuse":
                raise RequestError(
                    f"candidates[{at}]",
                    f"got the id {ids[at]!r}, which is not in the catalogue {catalogue.version!r}; "
                    "remove it, or add the item",
                )
        rows = [self._row_of_unknown(ids[at]) for at in places]
        try:
            return self._engine.item_rows(rows)
        except FeatureError as error:
            row = _first_failure(rows, self._engine.item_rows)
            self._blame(f"candidates[{places[row]}]", self._engine.item_rows, [rows[row]])
            raise RequestError("candidates", plain_message(error)) from error

    def _row_of_unknown(self, id_: object) -> dict[str, Any]:
        return {str(self._item_id): id_}

    def _blame_item(self, rows: list[dict[str, Any]]) -> None:
        at = _first_failure(rows, self._engine.item_rows)
        for name, value in rows[at].items():
            self._blame(f"candidates.{name}[{at}]", self._engine.item_rows, [{name: value}])

    def _blame(self, where: str, encode: Callable[[Any], object], value: object) -> None:
        try:
            encode(value)
        except FeatureError as error:
            raise RequestError(where, plain_message(error)) from error

    def _scores(self, query: Any, found: _Found, head: str) -> NDArray[np.float64]:
        if not found.ids:
            return np.zeros(0)
        parts = [self._engine.logits(query, group.items, group.rows) for group in found.groups]
        logits_BC = parts[0]
        if len(parts) > 1:
            logits_BC = np.empty((len(found.ids), parts[0].shape[1]), np.float32)
            for group, part in zip(found.groups, parts, strict=True):
                logits_BC[group.places] = part
        scores = self.bundle.scores_of(logits_BC)
        return scores[head] if isinstance(scores, dict) else scores

    def _explanations(
        self, row: dict[str, Any], found: _Found, places: list[int]
    ) -> tuple[Explanation, ...]:
        explanations, total = [], 0
        for at in places:
            explanations.append(self.bundle.explain({**row, **found.values(at)}))
            total += _VALUES_A_TERM * len(explanations[-1].wide)
            self.bundle.encoder.check_values(total)
        return tuple(explanations)

    def _misspelt(
        self, row: dict[str, Any], candidates: Candidates, absent: dict[str, int]
    ) -> dict[str, str]:
        names = list(row)
        if isinstance(candidates, pa.Table):
            names += candidates.column_names
        elif isinstance(candidates, Mapping):
            names += map(str, candidates)
        known = self._read if self._item_id is None else self._read | {self._item_id}
        return misspelt_keys(names, absent, known)

    def _absent(self, query: Any, found: _Found) -> dict[str, int]:
        absent = {name: 1 for name in query.absent if name not in found.columns}
        return {**absent, **found.absent} if found.absent else absent


def _first_failure(rows: list[dict[str, Any]], encode: Callable[[Any], object]) -> int:
    """Return the first of the rows that does not encode; one of them does not."""
    start, stop = 0, len(rows)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            encode(rows[start:middle])
        except FeatureError:
            stop = middle
        else:
            start = middle
    return start


def _check_choice(option: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise ConfigError(f"got {option}={got!r}; {nearest(str(got), allowed)}")
