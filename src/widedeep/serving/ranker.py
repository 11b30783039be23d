"""Ranker: a user, a context and candidate items in; the items, best first, with scores out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep import traces
from widedeep.bundle import Bundle, BundleHead, Explanation
from widedeep.bundle.formula import Formula
from widedeep.data.transform import misspelt_keys
from widedeep.errors import (
    ConfigError,
    DataError,
    FeatureError,
    RequestError,
    nearest,
)
from widedeep.features.spec import item_columns
from widedeep.options import check_range, check_types
from widedeep.serving.catalogue import Catalogue, SharedRows
from widedeep.serving.exploration import LOG_COLUMNS, Exploration, UncertainScorer, Uncertainty
from widedeep.serving.formula_scores import FormulaScores, inline_numbers
from widedeep.serving.scorers import FactorizedScorer, RowScorer, new_scorer

__all__ = ["Ranker", "RankerOptions", "Ranking"]

Candidates: TypeAlias = Sequence[Any] | Mapping[str, Sequence[Any]] | NDArray[Any] | pa.Table
"""Ids, or the items themselves as columns."""

MAX_VALUES = 4_000_000
"""Default limit of ids and numbers per request, over all its rows or candidates."""

# Work of one explained term, as a number of values.
_VALUES_PER_TERM = 96


@dataclass(frozen=True, kw_only=True)
class RankerOptions:
    """How a ranker scores candidates."""

    item_id: Annotated[str | None, "the catalogue's column of item ids"] = None
    unknown_items: Annotated[
        Literal["score", "refuse"], "what to do with ids that are not in the catalogue"
    ] = "score"
    precision: Annotated[
        Literal["float32", "bfloat16"],
        "of the items' sums and of the products in hidden layers; bfloat16 takes half the memory "
        "and is faster, with scores slightly off",
    ] = "float32"
    threads: Annotated[int, "threads that one long request may use"] = 1
    rank_by: Annotated[
        str | None,
        "formula over heads and numbers of the items, such as 'click * buy * price', to rank by",
    ] = None
    exploration: Annotated[
        Exploration | None, "what is shown beside the best by score; None: nothing"
    ] = None
    max_values: Annotated[
        int, "ids and numbers of a request, over all its rows or candidates; more are refused"
    ] = MAX_VALUES

    def __post_init__(self) -> None:
        check_types(self, "the ranker")
        if self.rank_by is not None:
            Formula(self.rank_by)
        check_range("the ranker", "threads", self.threads, self.threads >= 1, "at least 1")
        check_range("the ranker", "max_values", self.max_values, self.max_values >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranking:
    """Candidates, best first; those of equal scores in the order of the request.

    Args:
        items: Item ids; for items given inline without ids, their positions.
        scores: What :meth:`widedeep.Bundle.score` gives for the rows: calibrated probabilities, or
            the values of a regression; or the value of the formula that was ranked by, NaN for an
            item that has none (a division by zero, a null): it ranks last.
        positions: Positions among the request's candidates.
        unknown: Whether the id was not in the catalogue, so that the model knew nothing of the
            item but its id.
        explanations: On request, why each item got its score.
        catalogue_version: Version of the catalogue that was used.
        absent: For each column the request should have brought and did not, how many values were
            taken for null: one for a column of the user or context, one per item for an item's.
        misspelt: Keys of the request that mean nothing and look like an absent column, with it.
        rank_by: The formula that was ranked by; None: one head's score.
        terms: By name in the formula, its values in the order of ``items``.
        policy: Name of the policy that explored; None: best score first, without a draw.
        propensities: The probability that each item gets its position under the policy, in the
            order of ``items``, 0 < p <= 1; None without a policy.
    """

    items: list[Any]
    scores: NDArray[np.float64]
    positions: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    explanations: tuple[Explanation, ...] | None = None
    catalogue_version: str | None = None
    absent: dict[str, int]
    misspelt: dict[str, str] = field(default_factory=dict)
    rank_by: str | None = None
    terms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    policy: str | None = None
    propensities: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def undefined(self) -> NDArray[np.int64]:
        """Places in the ranking of the items for which the formula has no value."""
        return np.flatnonzero(np.isnan(self.scores))


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """What the scores of a ranking are."""

    head: str | None  # Name of the head; None for a formula
    kind: str  # Kind of the head, or ``"formula"``
    label: str | None  # Label column, where the schema names it
    classes: tuple[str, ...]  # Class names; a score is the probability of the second
    rank_by: str | None = None  # The formula

    def __str__(self) -> str:
        if self.rank_by is not None:
            return f"the value of {self.rank_by!r}"
        if self.kind == "ranking":
            return f"a relevance by {self.label!r}, whose order within a request counts alone"
        if self.kind == "regression":
            return f"the value of {self.label!r}"
        event = repr(self.classes[1]) if len(self.classes) == 2 else "1"
        return f"the probability that {self.label!r} is {event}"


@dataclass(frozen=True, slots=True)
class PreparedCatalogue:
    """A catalogue with what the scorer computed of its items; replaced as one."""

    catalogue: Catalogue
    items: Any  # Prepared items of the scorer
    columns: frozenset[str]  # Columns that the model reads of an item
    numbers: Mapping[str, NDArray[np.float64]]  # (items,) by column that the formula reads


@dataclass(frozen=True, slots=True)
class _CandidateGroup:
    """Candidates whose prepared items lie together."""

    items: Any  # Prepared items of the scorer
    rows: NDArray[np.int64]  # (G,) row among the items
    positions: NDArray[np.int64] | None  # (G,) position among the candidates; None: all, in order


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A request's candidates, resolved to items."""

    ids: list[Any]
    groups: list[_CandidateGroup]
    unknown: NDArray[np.bool_]  # (B,) whether the catalogue lacks the id
    columns: frozenset[str]  # Columns that came with the items
    absent: dict[str, int]  # Number of items that lack a column, where any does
    values_at: Callable[[int], dict[str, Any]]  # Values of the item at a position, by column
    # Values (B,) of a column that the formula reads
    numbers: Callable[[str], NDArray[np.float64]]


class Ranker:
    """Ranks candidates with a bundle. Any number of threads may use one.

    Args:
        bundle: The model, or its directory.
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
        rank_by: A formula over heads and numbers of the items to rank by, such as
            ``"click * buy * price"`` (:class:`widedeep.bundle.formula.Formula`); None: the
            bundle's, or one head's score.
        exploration: What is shown beside the best by score, to requests with an id; None: nothing.
        shared_rows: Where several processes keep one copy of the catalogue's part of the sums.
        options: ``item_id``, ``unknown_items``, ``precision``, ``threads``, ``rank_by`` and
            ``exploration`` as one value, instead of these keywords.

    Attributes:
        bundle: The model.
        options: How candidates are scored.
        scorer: Computes the candidates' logits.
        formula: The formula that is ranked by where a request names no head; None: a head's score.

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
        rank_by: str | None = None,
        exploration: Exploration | None = None,
        shared_rows: SharedRows | None = None,
        options: RankerOptions | None = None,
    ) -> None:
        keywords = RankerOptions(
            item_id=item_id,
            unknown_items=unknown_items,
            precision=precision,
            threads=threads,
            rank_by=rank_by,
            exploration=exploration,
        )
        if options is not None and keywords != RankerOptions():
            raise ConfigError("Ranker: got options and further keywords; set them in options=")
        self.options = options = keywords if options is None else options
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self._shared_rows = shared_rows
        self._columns = frozenset(self.bundle.encoder.columns(targets=False))
        if options.exploration is not None and self._columns & set(LOG_COLUMNS):
            name = min(self._columns & set(LOG_COLUMNS))
            raise ConfigError(
                f"exploration: the model reads a column {name!r}, which the log of a ranker that "
                f"explores writes itself, as {' and '.join(LOG_COLUMNS)}; rename the column"
            )
        self._item_columns = item_columns(self.bundle.schema.spec) & self._columns
        self._heads = {head.name: head for head in self.bundle.model.heads}
        rank_by = options.rank_by or self.bundle.model.rank_by
        self.formula = None if rank_by is None else FormulaScores(Formula(rank_by), self.bundle)
        scorer = new_scorer(self.bundle, precision=options.precision, threads=options.threads)
        self._is_factorized = isinstance(scorer, FactorizedScorer)
        self.scorer: Any = self._exploring_scorer(scorer)
        self.item_id = items.id_column if isinstance(items, Catalogue) else options.item_id
        self.prepared: PreparedCatalogue | None = None
        if items is not None:
            self.replace_catalogue(items)

    def _exploring_scorer(self, scorer: FactorizedScorer | RowScorer) -> Any:
        exploration = self.options.exploration
        if exploration is None or not exploration.needs_posterior:
            return scorer
        if self.formula is not None:
            raise ConfigError(
                f"exploration: got policy={exploration.policy!r} with a formula to rank by "
                f"({self.rank_by!r}), whose uncertainty is not known; explore by 'epsilon'"
            )
        return UncertainScorer(scorer, self.bundle, threads=self.options.threads)

    @property
    def unknown_items(self) -> Literal["score", "refuse"]:
        """What is done with an id that is not in the catalogue."""
        return self.options.unknown_items

    @property
    def rank_by(self) -> str | None:
        """The formula that is ranked by where a request names no head."""
        return None if self.formula is None else self.formula.formula.text

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """Precision of the items' sums and of the products in hidden layers."""
        return self.options.precision

    @property
    def threads(self) -> int:
        """Threads that one request may use."""
        return self.options.threads

    @property
    def engine(self) -> Literal["factored", "row by row"]:
        """How candidates are scored.

        ``"factored"``: the user's part of the first layer once per request, the item's once per
        catalogue. ``"row by row"``: each candidate through the whole model, for bundles with towers
        of their own (an exported graph) and for models that name no features of the item.
        """
        return "factored" if self._is_factorized else "row by row"

    @property
    def catalogue(self) -> Catalogue | None:
        """The catalogue in use."""
        prepared = self.prepared
        return None if prepared is None else prepared.catalogue

    def replace_catalogue(self, items: Any) -> None:
        """Prepare another catalogue beside the old one, then replace the old one in one step.

        Requests that have begun end with the old one. If this raises, the old one stays.

        Args:
            items: As for the class.

        Raises:
            DataError: If it lacks a column of the model's items, or the bundle keeps vectors of
                items, and none of these is among them.
            FeatureError: If a value does not fit its feature.
        """
        if not isinstance(items, Catalogue):
            if self.item_id is None:
                raise DataError(
                    "got items without item_id; name the column of their ids: item_id=..."
                )
            words = self.bundle.schema.spec.null_values
            items = Catalogue.read(items, id_column=self.item_id, null_values=words)
        names = items.table.column_names
        for column in sorted(self._item_columns - set(names)):
            raise DataError(
                f"the catalogue: got no column {column!r}, which the model reads of an item; "
                f"{nearest(column, names)}"
            )
        if self.bundle.items is not None:
            self.bundle.items.rows_of(items.ids, items.id_column)  # refuses another's catalogue
        numbers = {} if self.formula is None else self.formula.catalogue_numbers(items)
        columns = self._columns_of_item(names)
        self.prepared = PreparedCatalogue(items, self._prepare(items), columns, numbers)

    def _prepare(self, items: Catalogue) -> Any:
        if not isinstance(self.scorer, FactorizedScorer) or self._shared_rows is None:
            return self.scorer.items(items.table)
        # Everything that the sums are computed from.
        checksums = [file.sha256 for file in self.bundle.manifest.files.values()]
        key = [*checksums, items.version, self.options.precision]
        return self.scorer.items(items.table, partial(self._shared_rows.arrays, key))

    def _columns_of_item(self, names: Iterable[str]) -> frozenset[str]:
        """Return the item's columns; if no feature is declared the item's, those that came."""
        return self._item_columns or self._columns & frozenset(names)

    def rank(
        self,
        user: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        candidates: Candidates = (),
        *,
        k: int | None = None,
        explain: bool = False,
        head: str | None = None,
        request_id: str | None = None,
    ) -> Ranking:
        """Rank candidates for a user in a context.

        Args:
            user: Values of the user's columns; further keys are ignored, and named where they look
                like one that is absent.
            context: Values of further columns of the query: time, place, device.
            candidates: Ids of items, or the items themselves as columns. An id may come twice.
            k: Return the best k only.
            explain: Say of each item returned why it got its score.
            head: Rank by this head; default: by the formula, or else the first head that gives one
                number an item.
            request_id: Id of the request, by which a ranker that explores draws; without one the
                best come first and nothing is drawn.

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
        by_formula = self.formula if head is None else None
        by_head = None if by_formula is not None else choose_head(self._heads, head)
        if k is not None and (not isinstance(k, int) or k < 0):
            raise RequestError("k", f"got {k!r}, expected a whole number of at least 0, or none")
        with traces.span("features"):
            row = self._query_row(user, context)
            prepared = self.prepared
            resolved = self._resolve(candidates, prepared, row)
            query = self._query(row, user)
        with traces.span("score"):
            logits_BC = self._over_groups(self.scorer.logits, query, resolved)
            scores, terms = self._scores(logits_BC, resolved, by_head)
        exploration, propensities = self._exploration(by_head, request_id), None
        if exploration is None or request_id is None:
            order = np.argsort(-scores, kind="stable")[:k]  # (k,) positions, best first, NaN last
        elif exploration.needs_posterior:
            logits_B = logits_BC[:, self.scorer.column].astype(np.float64)
            parts = self._over_groups(self.scorer.deviations, query, resolved)
            uncertainty = Uncertainty(parts[:, 0], parts[:, 1:])
            numbers = _item_numbers(resolved.ids)
            order, propensities = exploration.draw(logits_B, k, request_id, uncertainty, numbers)
        else:
            numbers = _item_numbers(resolved.ids)
            order, propensities = exploration.draw(scores, k, request_id, item_B=numbers)
        positions = order.tolist()
        absent = {name: 1 for name in query.absent if name not in resolved.columns}
        absent |= resolved.absent
        return Ranking(
            items=[resolved.ids[position] for position in positions],
            scores=scores[order],
            positions=order,
            unknown=resolved.unknown[order],
            explanations=self._explanations(row, resolved, positions) if explain else None,
            catalogue_version=None if prepared is None else prepared.catalogue.version,
            absent=absent,
            misspelt=self._misspelt(row, candidates, absent) if absent else {},
            rank_by=None if by_formula is None else by_formula.formula.text,
            terms={name: values[order] for name, values in terms.items()},
            policy=None if exploration is None else exploration.policy,
            propensities=propensities,
        )

    def score_meaning(self, head: str | None = None) -> ScoreMeaning:
        """Return what the scores of a ranking are, to be held against another model's.

        Args:
            head: As :meth:`rank` takes it.

        Raises:
            RequestError: If there is no such head, or it gives no number to rank by.
        """
        schema = self.bundle.schema
        if self.formula is not None and head is None:
            return ScoreMeaning(None, "formula", None, (), self.formula.formula.text)
        entry = choose_head(self._heads, head)
        classes = tuple(schema.classes.get(entry.name, ()) or entry.classes)
        return ScoreMeaning(entry.name, entry.kind, schema.spec.labels.get(entry.name), classes)

    def _query_row(
        self, user: Mapping[str, Any], context: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        for where, values in (("user", user), ("context", context or {})):
            if not isinstance(values, Mapping):
                raise RequestError(
                    where, f"got {values!r} ({type(values).__name__}), expected an object of values"
                )
            _check_side(where, values, self._item_columns, "the item's", "candidates")
        if not context:
            return dict(user)
        _check_side("context", context, user.keys(), "given in user too", "one of them")
        return {**user, **context}

    def _query(self, row: dict[str, Any], user: Mapping[str, Any]) -> Any:
        try:
            return self.scorer.query(row)
        except FeatureError as error:
            for name in (name for name in row if name in self._columns):
                where = f"{'user' if name in user else 'context'}.{name}"
                try:
                    self.scorer.query({name: row[name]})
                except FeatureError as alone:  # a list may lack its parallel one there
                    if str(alone) == str(error):
                        raise RequestError(where, _without_row(error)) from error
            raise RequestError("user", _without_row(error)) from error

    def _resolve(
        self, candidates: Candidates, prepared: PreparedCatalogue | None, row: dict[str, Any]
    ) -> _Resolved:
        if isinstance(candidates, Mapping | pa.Table):
            resolved = self._resolve_inline(*inline_items(candidates, self.item_id))
        else:
            ids = _candidate_ids(candidates)
            if prepared is None:
                resolved = self._resolve_without_catalogue(ids)
            else:
                resolved = self._resolve_ids(ids, prepared)
        if not self._item_columns:
            _check_side("user", row, resolved.columns, "given with the items", "one of them")
        return resolved

    def _resolve_without_catalogue(self, ids: list[Any]) -> _Resolved:
        if self.item_id is None and ids:
            raise RequestError(
                "candidates",
                "got ids, but this ranker has no catalogue; give the items as columns",
            )
        for position, id_ in enumerate(ids):
            _check_id(position, id_)
        return self._resolve_inline(ids, {str(self.item_id): ids} if ids else {})

    def _resolve_inline(self, ids: list[Any], columns: dict[str, list[Any]]) -> _Resolved:
        if self._item_columns:
            of_query = self._columns - self._item_columns
            _check_side("candidates", columns, of_query, "the query's", "user or context")
        of_item = self._columns_of_item(columns)
        rows = _as_rows({name: columns[name] for name in columns if name in of_item}, len(ids))
        try:
            items = self.scorer.item_rows(rows)
        except FeatureError as error:
            index = _first_failure(rows, self.scorer.item_rows)
            for name, value in rows[index].items():
                where = f"candidates.{name}[{index}]"
                _raise_at(where, self.scorer.item_rows, [{name: value}])
            raise RequestError("candidates", _without_row(error)) from error
        group = _CandidateGroup(items, np.arange(len(rows)), None)
        unknown = np.zeros(len(rows), bool)
        numbers = partial(inline_numbers, columns)
        return _Resolved(ids, [group], unknown, of_item, items.absent, rows.__getitem__, numbers)

    def _resolve_ids(self, ids: list[Any], prepared: PreparedCatalogue) -> _Resolved:
        catalogue = prepared.catalogue
        rows, all_known = catalogue.index.find(ids)  # (B,) row in the catalogue, -1 if unknown
        if not all_known:
            rows, all_known = catalogue.find(ids)  # also ids of another type: '7' for 7
        unknown = np.zeros(len(rows), bool) if all_known else rows < 0
        groups = [_CandidateGroup(prepared.items, rows, None)]
        if not all_known:
            # The positions of both groups are those of all candidates, each ascending.
            (known_at,), (unknown_at,) = np.nonzero(~unknown), np.nonzero(unknown)
            unknown_items = self._unknown_items(ids, unknown_at.tolist(), catalogue)
            groups = [
                _CandidateGroup(prepared.items, rows[known_at], known_at),
                _CandidateGroup(unknown_items, np.arange(len(unknown_at)), unknown_at),
            ]

        def values_at(position: int) -> dict[str, Any]:
            if rows[position] < 0:
                return {str(self.item_id): ids[position]}
            columns = [name for name in catalogue.table.column_names if name in prepared.columns]
            item = catalogue.table.select(columns).slice(rows[position], 1)
            values: dict[str, Any] = item.to_pylist()[0]
            return values

        def numbers(name: str) -> NDArray[np.float64]:
            known = prepared.numbers[name]
            return np.where(unknown, np.nan, known[np.maximum(rows, 0)] if len(known) else np.nan)

        return _Resolved(ids, groups, unknown, prepared.columns, {}, values_at, numbers)

    def _unknown_items(self, ids: list[Any], positions: list[int], catalogue: Catalogue) -> Any:
        """Prepare items of which only the id is known."""
        for position in positions:
            _check_id(position, ids[position])
            if self.options.unknown_items == "refuse":
                raise RequestError(
                    f"candidates[{position}]",
                    f"got the id {ids[position]!r}, which is not in the catalogue "
                    f"{catalogue.version!r}; remove it, or add the item",
                )
        rows = [{str(self.item_id): ids[position]} for position in positions]
        try:
            return self.scorer.item_rows(rows)
        except FeatureError as error:
            index = _first_failure(rows, self.scorer.item_rows)
            _raise_at(f"candidates[{positions[index]}]", self.scorer.item_rows, [rows[index]])
            raise RequestError("candidates", _without_row(error)) from error

    def _exploration(self, head: BundleHead | None, request_id: str | None) -> Exploration | None:
        """Return how a request explores; None if it does not."""
        exploration = self.options.exploration
        if exploration is None or request_id is None:
            return None
        # The posterior is of the head that is ranked by where a request names none.
        is_other = head is not None and head is not choose_head(self._heads, None)
        return None if exploration.needs_posterior and is_other else exploration

    def _over_groups(
        self, compute: Callable[..., NDArray[Any]], query: Any, resolved: _Resolved
    ) -> NDArray[Any]:
        """Return what a scorer computes of candidates, (B, C), in the order of the request."""
        groups = resolved.groups
        results = [compute(query, group.items, group.rows) for group in groups]
        if len(groups) == 1:
            return results[0]
        result_BC = np.empty((len(resolved.ids), results[0].shape[1]), results[0].dtype)
        for group, result_GC in zip(groups, results, strict=True):
            result_BC[group.positions] = result_GC
        return result_BC

    def _scores(
        self, logits_BC: NDArray[np.float32], resolved: _Resolved, head: BundleHead | None
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Return the scores by a head, or by the formula with the values of its names."""
        if not resolved.ids:
            return np.zeros(0), {}
        if head is not None:
            return head.scores(logits_BC, self.bundle.calibration.get(head.name)), {}
        assert self.formula is not None
        return self.formula.scores(logits_BC, resolved.numbers)

    def _explanations(
        self, row: dict[str, Any], resolved: _Resolved, positions: list[int]
    ) -> tuple[Explanation, ...]:
        explanations, n_values = [], 0
        for position in positions:
            explanations.append(self.bundle.explain({**row, **resolved.values_at(position)}))
            n_values += _VALUES_PER_TERM * len(explanations[-1].wide)
            self.bundle.encoder.check_values(n_values)
        return tuple(explanations)

    def _misspelt(
        self, row: dict[str, Any], candidates: Candidates, absent: dict[str, int]
    ) -> dict[str, str]:
        names = list(row)
        if isinstance(candidates, pa.Table):
            names += candidates.column_names
        elif isinstance(candidates, Mapping):
            names += map(str, candidates)
        expected = self._columns if self.item_id is None else self._columns | {self.item_id}
        return misspelt_keys(names, absent, expected)


def _first_failure(rows: list[dict[str, Any]], encode: Callable[[Any], object]) -> int:
    """Return the index of the first row that does not encode, by bisection; there is one."""
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


def _raise_at(where: str, encode: Callable[[Any], object], value: object) -> None:
    """Encode a value; raise its error as one of the request's field ``where``."""
    try:
        encode(value)
    except FeatureError as error:
        raise RequestError(where, _without_row(error)) from error


def _without_row(error: Exception) -> str:
    """Return an encoder's message without its row: the request's field says it."""
    return re.sub(r" \(row \d+\)", "", str(error))


def inline_items(
    candidates: Mapping[str, Any] | pa.Table, id_column: str | None
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return the ids (positions where there is no id column) and the columns of inline items."""
    if isinstance(candidates, pa.Table):
        columns = {name: candidates[name].to_pylist() for name in candidates.column_names}
    else:
        columns = {name: _column_values(name, column) for name, column in candidates.items()}
    length = len(next(iter(columns.values()))) if columns else 0
    for name, values in columns.items():
        if len(values) != length:
            raise RequestError(
                f"candidates.{name}",
                f"got {len(values)} values, but {length} in {next(iter(columns))!r}; "
                "give one value an item in every column",
            )
    ids = columns.get(id_column) if id_column is not None else None
    for row, id_ in enumerate(ids or ()):
        if isinstance(id_, float) and abs(id_) >= 2**53:
            raise RequestError(
                f"candidates.{id_column}[{row}]",
                f"got {id_} (float), an id that may have been rounded; give integers or text",
            )
    return list(range(length)) if ids is None else ids, columns


def _column_values(name: object, column: object) -> list[Any]:
    if not isinstance(name, str):
        raise RequestError("candidates", f"got the column name {name!r}; expected text")
    if isinstance(column, list):
        return column
    if isinstance(column, np.ndarray) and column.ndim:
        return list(column.tolist())
    if isinstance(column, Sequence) and not isinstance(column, str | bytes):
        return list(column)
    raise RequestError(
        f"candidates.{name}",
        f"got {column!r} ({type(column).__name__}), expected a list with one value an item",
    )


def _as_rows(columns: Mapping[str, list[Any]], n_rows: int) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(n_rows)]
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _item_numbers(ids: list[Any]) -> NDArray[np.int64]:
    """Return a number for each id, (B,), the same where an id comes again."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(repr(id_), len(known)) for id_ in ids], np.int64)


def _candidate_ids(candidates: object) -> list[Any]:
    if isinstance(candidates, np.ndarray) and candidates.ndim == 1:
        return list(candidates.tolist())
    if not isinstance(candidates, Sequence) or isinstance(candidates, str | bytes):
        raise RequestError(
            "candidates",
            f"got {candidates!r} ({type(candidates).__name__}); expected a list of ids, or the "
            "items as columns: a dict of lists or an Arrow table",
        )
    return list(candidates)


def _check_side(
    where: str, values: Mapping[str, Any], other_side: Set[str], owner: str, remedy: str
) -> None:
    """Raise if a column's value is given on the wrong side of a request."""
    for name in (name for name in values if name in other_side):  # the request's order
        raise RequestError(
            f"{where}.{name}", f"got a value, but this column is {owner}; give it in {remedy}"
        )


def _check_id(position: int, id_: object) -> None:
    if not isinstance(id_, str | int) or isinstance(id_, bool):
        raise RequestError(
            f"candidates[{position}]",
            f"got {id_!r} ({type(id_).__name__}), expected an id: text or an integer",
        )


def choose_head(heads: Mapping[str, BundleHead], name: str | None) -> BundleHead:
    """Return the head to rank by: the named one, or the first that gives one number per item."""
    usable = [head for head in heads.values() if not head.by_class]
    if name is None and usable:
        return usable[0]
    if name is not None and name not in heads:
        advice = nearest(name, heads) if any(heads) else "the model has one alone: leave it out"
        raise RequestError("head", f"got {name!r}, which is no head; {advice}")
    if name is None or heads[name] not in usable:
        raise RequestError(
            "head",
            f"got {name!r}, which gives a probability a class; expected one that gives a number an "
            f"item to rank by: {[head.name for head in usable]}",
        )
    return heads[name]
