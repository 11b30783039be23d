"""What went wrong, told to the person who can put it right.

Every message says what was got, where, what is allowed and what to do.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

_LONGEST_NAME = 100

__all__ = [
    "BundleError",
    "CheckpointError",
    "ColumnError",
    "ConfigError",
    "DataError",
    "FeatureError",
    "LimitError",
    "MissingPackageError",
    "RanksError",
    "RequestError",
    "RowError",
    "SchemaError",
    "WideDeepError",
    "data_errors_of",
    "extra_imports",
    "install_hint",
    "missing_package",
    "nearest",
    "show_value",
]

_EXTRA_OF = {
    "deltalake": "delta",
    "confluent_kafka": "kafka",
    "duckdb": "join",
    "faiss": "retrieval",
    "fastavro": "avro",
    "fsspec": "publish",
    "google": "grpc",
    "grpc": "grpc",
    "httptools": "serve",
    "mlflow": "mlflow",
    "msgspec": "serve",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "optuna": "tune",
    "prometheus_client": "serve",
    "pyiceberg": "iceberg",
    "pyspark": "spark",
    "sklearn": "sklearn",
    "sqlglot": "spark",
    "starlette": "serve",
    "tensorboard": "tensorboard",
    "uvicorn": "serve",
    "uvloop": "serve",
    "wandb": "wandb",
}
"""The extra that brings each package which a plain install lacks."""


class WideDeepError(Exception):
    """The base of every error this library raises on purpose.

    Args:
        message: What was got, where, what is allowed, what to do.

    Example:
        >>> import widedeep as wd
        >>> try:
        ...     wd.bucketized("age_bucket", source="age", boundaries=[30, 20])
        ... except wd.WideDeepError as error:
        ...     print(type(error).__name__)
        FeatureError
    """


class FeatureError(WideDeepError):
    """A feature is declared wrongly, or a value does not fit its declaration.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class DataError(WideDeepError):
    """A table, file or column cannot be used as it is.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class ColumnError(DataError):
    """Data lack a column.

    Args:
        origin: The file or table.
        column: The column's name.
        hint: What may have been meant.
    """

    def __init__(self, origin: str, column: str, hint: str) -> None:
        super().__init__(f"{origin}: no column {column!r}; {hint}")
        self.column, self.hint = column, hint


class RowError(DataError):
    """A row of a batch cannot be learned.

    Args:
        subject: What the problem is of, such as ``"label 'clicks'"``.
        row: Place of the row in its batch.
        problem: What was got, what is allowed, what to do.
        where: Where the row is, if that is known.
    """

    def __init__(self, subject: str, row: int, problem: str, where: str | None = None) -> None:
        super().__init__(f"{subject} ({where or f'example {row} of a batch'}): {problem}")
        self.subject, self.row, self.problem = subject, row, problem

    def at(self, where: str) -> RowError:
        """Return the error with the place of its row."""
        return RowError(self.subject, self.row, self.problem, where)


class LimitError(DataError):
    """A row or a request costs more than it may: combinations of a cross, values of a request.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class SchemaError(WideDeepError):
    """A schema does not fit the data, the model or another schema.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class ConfigError(WideDeepError):
    """A run's configuration has an unknown key or a value outside its range.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class CheckpointError(WideDeepError):
    """A checkpoint cannot be written, read or continued.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class RanksError(WideDeepError):
    """Another process of a run over several did not answer: it ended, or took too long.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class BundleError(WideDeepError):
    """A bundle is damaged, incomplete or of another format version.

    Args:
        message: What was got, where, what is allowed, what to do.
    """


class MissingPackageError(ImportError, ConfigError):  # the first takes the name of the package
    """A package that is not part of a plain install is needed and not installed.

    Example:
        >>> error = ModuleNotFoundError("No module named 'starlette'", name="starlette")
        >>> with extra_imports():
        ...     raise error
        Traceback (most recent call last):
            ...
        widedeep.errors.MissingPackageError: starlette is not installed; run: pip install
        'widedeep[serve]'
    """


class RequestError(WideDeepError):
    """A request for a ranking has a field that cannot be used.

    Args:
        where: The field: ``"candidates[3]"``, ``"context.hour"``.
        message: What was got there, what is allowed, what to do.

    Attributes:
        where: As given.

    Example:
        >>> error = RequestError("k", "got -1, expected at least 0")
        >>> error.where, str(error)
        ('k', 'k: got -1, expected at least 0')
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str]]:
        """Pickle both arguments; the base class would keep the joined text alone."""
        return RequestError, (self.where, str(self).removeprefix(f"{self.where}: "))


def nearest(got: str, allowed: Iterable[str]) -> str:
    """Return a hint with the allowed name closest to ``got``, or the list of allowed names.

    Args:
        got: The name that is not known.
        allowed: The names that are.

    Returns:
        ``"did you mean 'age'?"`` where one is close, else ``"known: 'age', 'job'"``.

    Example:
        >>> nearest("agee", ["age", "job"])
        "did you mean 'age'?"
    """
    names = sorted(set(allowed))
    is_a_name = len(got) <= _LONGEST_NAME  # comparing takes time and memory by its length
    close = difflib.get_close_matches(got, names, n=1, cutoff=0.6) if is_a_name else []
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(repr(name) for name in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"known: {shown}{more}" if names else "none is known"


def install_hint(package: str, extra: str) -> str:
    """Return what to do where a package of an extra is not installed."""
    return f"{package} is not installed; run: pip install 'widedeep[{extra}]'"


def missing_package(error: ImportError) -> str | None:
    """Return what to install for an import that failed, or None if the package is not ours."""
    package = (error.name or "").partition(".")[0]
    if package == "torch":
        hint = install_hint("torch", "train")
        return f"{hint}; scoring, serving, judging and reporting do without"
    return install_hint(package, _EXTRA_OF[package]) if package in _EXTRA_OF else None


@contextlib.contextmanager
def data_errors_of(subject: str) -> Iterator[None]:
    """Let errors about data say what they are of, such as a label or a file, unless they do."""
    try:
        yield
    except DataError as error:
        if subject in str(error):
            raise
        raise DataError(f"{subject}: {error}") from error


@contextlib.contextmanager
def extra_imports() -> Iterator[None]:
    """Let imports that fail name the extra that brings the package.

    Raises:
        MissingPackageError: If a package of an extra, or torch, is not installed.

    Example:
        >>> with extra_imports():
        ...     import numpy
    """
    try:
        yield
    except ImportError as error:
        hint = missing_package(error)
        if hint is None or isinstance(error, MissingPackageError):
            raise
        raise MissingPackageError(hint, name=error.name, path=error.path) from error


def show_value(value: object) -> str:
    """Return a value as an error shows it: at most 80 characters, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "numbers"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
