"""Numeric features: a number, or a vector of fixed length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from widedeep.errors import nearest, show_value
from widedeep.features.kind import (
    MAX_COLUMNS,
    check,
    check_at_least,
    check_feature_names,
    check_name_and_source,
    finite_number,
    is_word,
)

NumericTransform = Literal["quantile", "standard", "minmax", "log1p", "none"]


NUMERIC_TRANSFORMS = ("quantile", "standard", "minmax", "log1p", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Numeric:
    """A number, or a vector of fixed length. Use :func:`numeric` to make one.

    Args:
        name: The feature's name.
        source: The column it is read from.
        transform: ``"quantile"`` (the cumulative distribution, after Cheng et al. 2016, section
            4.1), ``"standard"``, ``"minmax"``, ``"log1p"`` (sign(x) log(1 + |x|), then
            standardised) or ``"none"``.
        quantiles: Number of boundaries learned for ``"quantile"``, at least 2.
        missing: What a null becomes: ``"mean"`` (of the transformed training values), a number
            (read as a raw value), or ``"indicator"`` (the mean, and a second dense column that is 1
            for a null).
        size: Length of the vector, 1 for a plain number.
    """

    name: str
    source: str
    transform: NumericTransform = "quantile"
    quantiles: int = 256
    missing: Literal["mean", "indicator"] | float = "mean"
    size: int = 1

    def __post_init__(self) -> None:
        check_name_and_source(self.name, self.source)
        check(
            is_word(self.transform, NUMERIC_TRANSFORMS),
            self.name,
            f"got transform={show_value(self.transform)}, "
            f"{nearest(str(self.transform), NUMERIC_TRANSFORMS)}",
        )
        check_at_least(self.name, "quantiles", self.quantiles, 2, MAX_COLUMNS)
        check_at_least(self.name, "size", self.size, 1, MAX_COLUMNS)
        if isinstance(self.missing, str):
            check(
                self.missing in ("mean", "indicator"),
                self.name,
                f"got missing={show_value(self.missing)}, expected 'mean', 'indicator' or a number",
            )
        else:
            number = None if isinstance(self.missing, bool) else finite_number(self.missing)
            check(
                number is not None,
                self.name,
                f"got missing={show_value(self.missing)}, expected 'mean', 'indicator' or a "
                "finite number",
            )
            object.__setattr__(self, "missing", number)

    @property
    def width(self) -> int:
        """Number of dense columns the feature fills."""
        return self.size * (2 if self.missing == "indicator" else 1)


def numeric(
    *names: str,
    source: str | None = None,
    transform: NumericTransform = "quantile",
    quantiles: int = 256,
    missing: Literal["mean", "indicator"] | float = "mean",
    size: int = 1,
) -> list[Numeric]:
    """Declare numeric features, one for each name.

    Args:
        *names: Names of the features, which are also their columns.
        source: The column, if it has another name (one feature only).
        transform: See :class:`Numeric`.
        quantiles: See :class:`Numeric`.
        missing: See :class:`Numeric`.
        size: Length of the vector, 1 for a plain number.

    Returns:
        A list, to be unpacked into ``features=[...]`` or given as it is.

    Raises:
        FeatureError: If an option is outside its range.

    Example:
        >>> [feature.name for feature in numeric("age", "hours_per_week")]
        ['age', 'hours_per_week']
    """
    check_feature_names(names, source)
    return [
        Numeric(
            name=name,
            source=name if source is None else source,
            transform=transform,
            quantiles=quantiles,
            missing=missing,
            size=size,
        )
        for name in names
    ]
