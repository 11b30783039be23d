"""Ranking by a formula over the scores of several heads and numbers of the items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.formula import Formula, FormulaProgram
from widedeep.data.column_values import without_decimals
from widedeep.errors import ConfigError, DataError, RequestError, nearest
from widedeep.serving.catalogue import Catalogue

Numbers = NDArray[np.float64]


class FormulaScores:
    """Ranks by a formula: its names are heads, and columns of numbers of the items.

    Args:
        formula: The formula. The head of a model with one label goes by the label's name.
        bundle: The model.

    Raises:
        ConfigError: If it names no head of the model, or a class that the head has not.
    """

    def __init__(self, formula: Formula, bundle: Bundle) -> None:
        self.formula, self._bundle = formula, bundle
        labels = bundle.schema.spec.labels
        self._heads = {head.name or labels.get("", ""): head for head in bundle.model.heads}
        self.columns = tuple(name for name in formula.names if name not in self._heads)
        if len(self.columns) == len(formula.names):
            raise ConfigError(
                f"rank_by: got {formula.text!r}, which names no head of the model; "
                f"{nearest(formula.names[0], self._heads)}"
            )
        for name in formula.names:
            self._check_class(name)

    def _check_class(self, name: str) -> None:
        head, label = self._heads.get(name), self.formula.classes.get(name)
        classes = () if head is None else head.classes
        if label is not None and label not in classes:
            raise ConfigError(
                f"rank_by: got {name}[{label!r}], expected a class of a head by class; "
                f"{nearest(label, classes)}"
            )
        if head is not None and head.by_class and label is None:
            raise ConfigError(
                f"rank_by: got {name!r}, which gives a probability a class; name one, such as "
                f"{name}[{(classes or ('0',))[0]!r}]"
            )

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise unless each of the formula's columns is one of the catalogue's."""
        for name in self.columns:
            if name not in names:
                raise DataError(
                    f"rank_by: got {name!r} in {self.formula.text!r}, which is no head of the "
                    f"model and no column of the catalogue; {nearest(name, [*self._heads, *names])}"
                )

    def catalogue_numbers(self, catalogue: Catalogue) -> dict[str, Numbers]:
        """Return the formula's columns of all items; NaN for a null."""
        self.check_columns(catalogue.table.column_names)
        return {name: _as_numbers(catalogue.table[name], name) for name in self.columns}

    def program(self, heads: Sequence[str]) -> FormulaProgram | None:
        """Return :meth:`Formula.program`, where the steps know these heads by their place."""
        indices = {name: index for index, name in enumerate(heads)}
        return self.formula.program(
            {name: indices.get(head.name) for name, head in self._heads.items()}
        )

    def scores(
        self, logits_BC: NDArray[np.float32], column: Callable[[str], Numbers]
    ) -> tuple[Numbers, dict[str, Numbers]]:
        """Return the formula's value of each candidate, NaN where it has none, and its terms.

        Args:
            logits_BC: Logits of all heads.
            column: Function from a column's name to the candidates' values (B,).
        """
        terms: dict[str, Numbers] = {}

        def value_of(name: str, label: str | None) -> Numbers:
            term = name if label is None else f"{name}[{label!r}]"
            if term not in terms:
                terms[term] = self._values(name, label, logits_BC, column)
            return terms[term]

        return self.formula.values(value_of), terms

    def _values(
        self,
        name: str,
        label: str | None,
        logits_BC: NDArray[np.float32],
        column: Callable[[str], Numbers],
    ) -> Numbers:
        head = self._heads.get(name)
        if head is None:
            return column(name)
        values = head.scores(logits_BC, self._bundle.calibration.get(head.name))
        return values if label is None else values[:, head.classes.index(label)]


def inline_numbers(columns: Mapping[str, list[object]], name: str) -> Numbers:
    """Return a column that came with the items; NaN for a null."""
    if name not in columns:
        raise RequestError(
            "candidates", f"got no column {name!r}, which the ranking's formula reads; give it"
        )
    try:
        return _as_numbers(pa.chunked_array([pa.array(columns[name])]), name)
    except (pa.ArrowException, DataError, OverflowError) as error:
        got = next((v for v in columns[name] if isinstance(v, bool | str | list | dict)), None)
        raise RequestError(
            f"candidates.{name}", f"got {got!r}, expected a number an item; {error}"
        ) from error


def _as_numbers(column: pa.ChunkedArray, name: str) -> Numbers:
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"rank_by: column {name!r} is {kind}, expected numbers; convert it, or name another"
        )
    values = without_decimals(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64)
