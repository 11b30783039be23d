"""Files that several steps read: read once, and kept in temporary files until the last is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from widedeep.data.arrow_types import logical_type
from widedeep.data.fragments import Input, InputFormat, Spool
from widedeep.features.learned import ColumnKind, ColumnTypes
from widedeep.remote import InputPath, file_size, modified

_MOST_KEPT = 8
# A file that was written so short a time ago may be written again without a change of its time.
_SETTLED_NS = 2_000_000_000

_Versions = list[tuple[str, int, int | str]]


@dataclass(frozen=True)
class _KeptFiles:
    """Files of one format as they were opened."""

    versions: _Versions
    columns: frozenset[str] | None  # None: all
    kinds: ColumnTypes
    inputs: list[Input]
    spool: Spool

    def serves(
        self,
        versions: _Versions,
        columns: Sequence[str] | None,
        kinds: ColumnTypes,
    ) -> bool:
        """Tell whether opening these columns again would give the same values."""
        if versions != self.versions or kinds.null_values != self.kinds.null_values:
            return False
        if self.columns is not None and (columns is None or not self.columns.issuperset(columns)):
            return False
        schemas = [opened.schema for opened in self.inputs]
        names = schemas[0].names if columns is None else columns
        return all(
            kinds.get(name, "") == self.kinds.get(name, "")
            or all(_is_kind(kinds.get(name, ""), schema.field(name).type) for schema in schemas)
            for name in names
        )


def _is_kind(kind: ColumnKind, read_as: object) -> bool:
    return not isinstance(kind, str) and bool(logical_type(kind) == read_as)


_reusable: ContextVar[list[_KeptFiles] | None] = ContextVar("reusable", default=None)


@contextmanager
def reuse_inputs() -> Iterator[None]:
    """Let the steps within read each file once: what one has read serves the next.

    Formats other than Parquet are read as a whole into temporary files (``TMPDIR``) whenever they
    are opened, and a fit of the schema and training open them one after the other. Within this
    block the temporary files of up to eight inputs stay until it ends, unless a file changes. The
    verbs that open files several times, such as ``train``, do so by themselves.

    Example:
        >>> import pyarrow.csv
        >>> import pyarrow.parquet
        >>> import widedeep as wd
        >>> pyarrow.csv.write_csv(pyarrow.parquet.read_table("train.parquet"), "train.csv")
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education"))
        >>> with wd.reuse_inputs():
        ...     schema = wd.fit_schema(spec, "train.csv")
        ...     trainer = wd.Trainer(wd.WideDeep(schema), progress=False).fit("train.csv")
    """
    if _reusable.get() is not None:
        yield
        return
    reusable: list[_KeptFiles] = []
    token = _reusable.set(reusable)
    try:
        yield
    finally:
        _reusable.reset(token)
        for files in reusable:
            files.spool.close()


def open_files(
    file_format: InputFormat,
    paths: Sequence[InputPath],
    columns: Sequence[str] | None,
    spool: Spool,
    kinds: ColumnTypes,
) -> list[Input]:
    """Open files of one format, or return them as they were opened within ``reuse_inputs``."""
    reusable = None if spool.parent is not None else _reusable.get()
    versions = [] if reusable is None or len(reusable) == _MOST_KEPT else _versions(paths)
    if reusable is None or not versions:
        return file_format.open(paths, columns, spool, kinds)
    for files in reusable:
        if files.serves(versions, columns, kinds):
            return files.inputs
    own = Spool()
    names = None if columns is None else frozenset(columns)
    try:
        inputs = file_format.open(paths, columns, own, kinds)
    except BaseException:
        own.close()
        raise
    reusable.append(_KeptFiles(versions, names, ColumnTypes.of(kinds), inputs, own))
    return inputs


def _versions(paths: Sequence[InputPath]) -> _Versions:
    """Return what changes when files are written again; nothing if that would not show."""
    try:
        versions = [(str(path), file_size(path), modified(path)) for path in paths]
    except OSError:
        return []
    settled = time.time_ns() - _SETTLED_NS
    shows = all(time < settled if isinstance(time, int) else time for *_, time in versions)
    return versions if shows else []
