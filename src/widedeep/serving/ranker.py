"""Ranker: a user, a context and candidate items in; the items, best first, with scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle, Explanation
from widedeep.errors import DataError, FeatureError, RequestError, nearest
from widedeep.features.sides import item_columns
from widedeep.serving.candidates import (
    Candidates,
    InlineItems,
    candidate_ids,
    check_id,
    check_names,
    chosen_head,
    inline_items,
)
from widedeep.serving.catalogue import Catalogue

__all__ = ["Ranker", "Ranking"]


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
    """

    items: list[Any]
    scores: NDArray[np.float64]
    positions: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    explanations: tuple[Explanation, ...] | None = None
    catalogue_version: str | None = None
    absent: dict[str, int]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A catalogue and what was made of it; replaced as one."""

    catalogue: Catalogue | None
    rows: list[dict[str, Any]]


class Ranker:
    """Ranks candidates with a bundle. Any number of threads may use one.

    Args:
        bundle: The model, or the directory that holds it.
        items: The catalogue: a :class:`Catalogue`, or what :meth:`Catalogue.read` reads. Without
            one, requests bring their items inline.
        item_id: The column of item ids. Needed with ``items`` unless it is a :class:`Catalogue`.
        unknown_items: What to do with an id that is not in the catalogue: ``"score"`` it by its id
            alone, the other columns null, or ``"refuse"`` the request.
        catalogue_precision: How the item's part of the first layer is kept: ``"float32"`` gives
            the very scores of the bundle, ``"bfloat16"`` half the memory.
        threads: Threads that one request may use; its scores do not depend on it.

    Attributes:
        bundle: The model.

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
        catalogue_precision: Literal["float32", "bfloat16"] = "float32",
        threads: int = 1,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.unknown_items = unknown_items
        self.catalogue_precision = catalogue_precision
        self.threads = threads
        spec = self.bundle.schema.spec
        self._read = frozenset(self.bundle.schema.columns) & frozenset(self._columns())
        self._item_columns = item_columns(spec) & self._read
        self._heads = {head.name: head.kind for head in self.bundle.model.heads}
        self._item_id = items.id_column if isinstance(items, Catalogue) else item_id
        self._loaded = _Loaded(None, [])
        if items is not None:
            self.replace_catalogue(items)

    def _columns(self) -> list[str]:
        return self.bundle._encoder.columns(targets=False)

    @property
    def catalogue(self) -> Catalogue | None:
        """The catalogue in use."""
        return self._loaded.catalogue

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
        chosen = items.table.select([name for name in names if name in self._own_columns(names)])
        self._loaded = _Loaded(items, chosen.to_pylist())
        self._item_id = items.id_column

    def _own_columns(self, given: Sequence[str]) -> frozenset[str]:
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
            user: Values of the user's columns; further keys are ignored.
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
        loaded = self._loaded
        query = self._query(user, context or {})
        items, rows, unknown, given = self._item_rows(candidates, loaded)
        check_names("user", query, given, "the item's", "candidates or the catalogue")
        absent = {name: 1 for name in self._read - given - query.keys()}
        for name in given & self._read:
            count = sum(name not in row for row in rows)
            if count and not unknown.any():
                absent[name] = count
        whole = [{**query, **row} for row in rows]
        scores = self._scores(whole, by_head)
        order = np.argsort(-scores, kind="stable")[: len(scores) if k is None else k]
        return Ranking(
            items=[items[at] for at in order.tolist()],
            scores=scores[order],
            positions=order.astype(np.int64),
            unknown=unknown[order],
            explanations=tuple(self.bundle.explain(whole[at]) for at in order) if explain else None,
            catalogue_version=None if loaded.catalogue is None else loaded.catalogue.version,
            absent=absent,
        )

    def _query(self, user: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
        for where, given in (("user", user), ("context", context)):
            if not isinstance(given, Mapping):
                raise RequestError(
                    where, f"got {given!r} ({type(given).__name__}), expected an object of values"
                )
            check_names(where, given, self._item_columns, "the item's", "candidates")
        check_names("context", context, frozenset(user), "given in user too", "one of them")
        return {**user, **context}

    def _item_rows(
        self, candidates: Candidates, loaded: _Loaded
    ) -> tuple[list[Any], list[dict[str, Any]], NDArray[np.bool_], frozenset[str]]:
        if isinstance(candidates, Mapping | pa.Table):
            inline = inline_items(candidates, self._item_id)
            return self._inline(inline)
        ids = candidate_ids(candidates)
        if loaded.catalogue is None:
            if self._item_id is None and ids:
                raise RequestError(
                    "candidates",
                    "got ids, but this ranker has no catalogue; give the items as columns",
                )
            for at, id_ in enumerate(ids):
                check_id(at, id_)
            return self._inline(InlineItems(ids, {str(self._item_id): ids} if ids else {}))
        found = loaded.catalogue.positions(ids)
        unknown = found < 0
        rows = []
        for at, (id_, row) in enumerate(zip(ids, found.tolist(), strict=True)):
            if row >= 0:
                rows.append(loaded.rows[row])
                continue
            check_id(at, id_)
            if self.unknown_items == "refuse":
                raise RequestError(
                    f"candidates[{at}]",
                    f"got the id {id_!r}, which is not in the catalogue "
                    f"{loaded.catalogue.version!r}; remove it, or add the item",
                )
            rows.append({str(self._item_id): id_})
        own = self._own_columns(loaded.catalogue.table.column_names)
        return ids, rows, unknown, own

    def _inline(
        self, inline: InlineItems
    ) -> tuple[list[Any], list[dict[str, Any]], NDArray[np.bool_], frozenset[str]]:
        if self._item_columns:
            of_query = self._read - self._item_columns
            check_names("candidates", inline.columns, of_query, "the query's", "user or context")
        own = self._own_columns(list(inline.columns))
        names = [name for name in inline.columns if name in own]
        values = zip(*(inline.columns[name] for name in names), strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in values] if names else []
        rows = rows or [{} for _ in range(len(inline))]
        return inline.ids, rows, np.zeros(len(inline), bool), own

    def _scores(self, rows: list[dict[str, Any]], head: str) -> NDArray[np.float64]:
        if not rows:
            return np.zeros(0)
        try:
            scores = self.bundle.score(rows, threads=self.threads)
        except FeatureError as error:
            raise RequestError("candidates", str(error)) from error
        found: NDArray[np.float64] = scores[head] if isinstance(scores, dict) else scores
        return found
