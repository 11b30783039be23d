"""Errors of the estimators are ValueErrors as well: scikit-learn's tools catch these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from widedeep.errors import ConfigError, DataError, FeatureError, SchemaError

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_KINDS: dict[type[Exception], Any] = {}
_OF_VALUES = (FeatureError, DataError, SchemaError, ConfigError)


def value_errors(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let the errors that a method raises of data and settings be ValueErrors.

    Example:
        >>> @value_errors
        ... def fit() -> None:
        ...     raise DataError("got no rows")
        >>> try:
        ...     fit()
        ... except ValueError as error:
        ...     print(isinstance(error, DataError), error)
        True got no rows
    """

    @functools.wraps(method)
    def call(*given: _Given.args, **options: _Given.kwargs) -> _Result:
        try:
            return method(*given, **options)
        except _OF_VALUES as error:
            if not isinstance(error, ValueError | ImportError):
                error.__class__ = _with_value_error(type(error))
            raise

    return call


def _with_value_error(kind: type[Exception]) -> Any:
    if kind not in _KINDS:
        _KINDS[kind] = type(kind.__name__, (kind, ValueError), {"__module__": kind.__module__})
    return _KINDS[kind]
