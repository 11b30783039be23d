"""Data of any kind as one source of fragments, or a slice of it."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import conform, plain_table, unified_schema
from widedeep.data.formats import format_of, known_suffixes
from widedeep.data.fragments import (
    Input,
    InputFormat,
    RowBlock,
    Source,
    Spool,
    batches_reader,
    check_columns,
    selected_columns,
    start_reading,
    table_input,
)
from widedeep.data.lake_tables import (
    dataset_input,
    delta_input,
    find_table,
    iceberg_input,
    open_table,
)
from widedeep.data.parquet_input import spooled_input
from widedeep.data.partitions import partition_columns, with_partitions
from widedeep.data.paths import input_files, names_files, rows_from_json, rows_to_json
from widedeep.data.reuse import open_files
from widedeep.data.row_sample import split_mix
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.features.learned import ColumnKind, ColumnTypes
from widedeep.kernels.transform import fingerprint64
from widedeep.options import is_unicode
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first, shared_failures


@dataclass(frozen=True, kw_only=True)
class RowShare:
    """The rows of ``data`` whose place lies in [start, stop): opened as any other data."""

    data: Any  # A path, a table or whatever else :func:`widedeep.data.sources.open_source` takes
    start: float  # Lower end, 0 <= start < stop
    stop: float  # Upper end, at most 1
    seed: int = 0  # Another seed chooses other rows; not of ``latest``
    # A column whose values are not split, such as a request's; null is a value
    by: str | None = None
    # A column of times, numbers or text in the order of time; null is the oldest
    latest: str | None = None

    def __post_init__(self) -> None:
        if self.by is not None and self.latest is not None:
            raise ConfigError(
                f"got both by={self.by!r} and latest={self.latest!r}, expected one of them"
            )
        if not 0 <= self.start < self.stop <= 1:
            raise ConfigError(
                f"got a share from {self.start} to {self.stop}, expected 0 <= start < stop <= 1"
            )

    @property
    def column(self) -> str | None:
        """The column whose values decide; None: the rows' numbers do."""
        return self.latest if self.by is None else self.by

    @property
    def description(self) -> str:
        """Which rows these are, for the names of inputs."""
        if self.latest is not None:
            order = f"latest by {self.latest}"
        else:
            order = f"seed {self.seed}" + ("" if self.by is None else f", by {self.by}")
        return f" (share {self.start:g} to {self.stop:g} of its rows, {order})"

    def holds(self, position_B: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which positions lie in the share."""
        inside_B: NDArray[np.bool_] = (position_B >= self.start) & (position_B < self.stop)
        return inside_B


def split_rows(
    data: Any,
    valid_fraction: float,
    *,
    seed: int = 0,
    by: str | None = None,
    latest: str | None = None,
) -> tuple[RowShare, RowShare]:
    """Split a table's rows into those to train on and those to validate on."""
    if not 0 < valid_fraction < 1:
        raise ConfigError(f"got valid_fraction={valid_fraction}, expected 0 < share < 1")
    if isinstance(data, pa.RecordBatchReader) or hasattr(data, "__next__"):
        raise DataError(
            f"got {type(data).__name__}, which can be read only once, to split into training and "
            "validation rows; write it to a Parquet file, or read it into a table, first"
        )
    train = RowShare(data=data, start=valid_fraction, stop=1.0, seed=seed, by=by, latest=latest)
    return train, replace(train, start=0.0, stop=valid_fraction)


def row_hashes(first_row: int, num_rows: int, seed: int) -> NDArray[np.float64]:
    """Return a hash in [0, 1) of each row position: SplitMix64 (Steele et al. 2014)."""
    rows_B = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
    return (_mixed(rows_B, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(words: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    return split_mix(words + split_mix(np.array([seed], np.uint64) + np.uint64(1)) + np.uint64(1))


@dataclass(frozen=True, slots=True)
class _SelectedBlock:
    """The rows of a block that belong to a share."""

    block: RowBlock
    bits: NDArray[np.uint8]
    num_rows: int

    def start(self, columns: Sequence[str]) -> None:
        """Begin to fetch them."""
        start_reading(self.block, columns)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the rows that belong."""
        mask_B = np.unpackbits(self.bits, count=self.block.num_rows).astype(bool)
        return self.block.read(columns).filter(pa.array(mask_B))


def select_rows(inputs: Sequence[Input], row_share: RowShare) -> list[Input]:
    """Return inputs that hold only the rows of a share."""
    blocks = [block for item in inputs for block in item.blocks]
    if row_share.column is None:
        ends = np.cumsum([0, *(block.num_rows for block in blocks)]).tolist()
        positions = [
            row_hashes(first, block.num_rows, row_share.seed)
            for first, block in zip(ends, blocks, strict=False)
        ]
    else:
        positions = _column_positions(inputs, blocks, row_share, row_share.column)
    masks = [row_share.holds(position_B) for position_B in positions]
    selected = iter(
        [
            _SelectedBlock(block, np.packbits(mask_B), int(mask_B.sum()))
            for block, mask_B in zip(blocks, masks, strict=True)
        ]
    )
    return [
        _selected_input(item, row_share, [next(selected) for _ in item.blocks]) for item in inputs
    ]


def _selected_input(item: Input, row_share: RowShare, blocks: Sequence[_SelectedBlock]) -> Input:
    record = dict(item.record)
    record["name"] = f"{item.record['name']}{row_share.description}"
    path = item.record["path"]
    record["path"] = f"{path}{row_share.description}"
    record["rows"] = sum(block.num_rows for block in blocks)

    def row_name(row: int) -> str:
        before = 0
        for selected in blocks:
            if row < selected.num_rows:
                mask_B = np.unpackbits(selected.bits, count=selected.block.num_rows)
                whole = before + int(np.flatnonzero(mask_B)[row])
                return item.row_name(whole) if item.row_name else f"row {whole} of {path}"
            row, before = row - selected.num_rows, before + selected.block.num_rows
        raise IndexError(row)

    return replace(item, record=record, blocks=blocks, row_name=row_name)  # type: ignore[arg-type]


def _column_positions(
    inputs: Sequence[Input], blocks: Sequence[RowBlock], row_share: RowShare, column: str
) -> list[NDArray[np.float64]]:
    """Return the position of each row in [0, 1), block by block, from a column's values."""
    for item in inputs:
        if column not in item.schema.names:
            raise DataError(
                f"{item.record['path']}: no column {column!r} to split by; "
                f"{nearest(column, item.schema.names)}"
            )
    # Files may store one value in other widths; text for text, it is one.
    fields = [(item.record["path"], pa.schema([item.schema.field(column)])) for item in inputs]
    schema = unified_schema(fields) if fields else pa.schema([])
    tables = [conform(block.read([column]), schema) for block in blocks]
    values = [plain_table(table).column(0) for table in tables]
    if row_share.latest is None and any(pa.types.is_nested(field.type) for field in schema):
        raise DataError(
            f"column {column!r} is of type {schema.field(0).type}, which names no group of rows; "
            "name a column of text or integers to split by"
        )
    if row_share.latest is None:
        return [_value_positions(array, row_share.seed) for array in values]
    if not values:
        return []
    later_B = _fraction_after(
        pa.chunked_array([c for array in values for c in array.chunks]), column
    )
    ends = np.cumsum([len(array) for array in values])
    return np.split(later_B, ends[:-1])


def _value_positions(values: pa.ChunkedArray, seed: int) -> NDArray[np.float64]:
    """Return a hash in [0, 1) of each row's value; null has one too."""
    encoded = pc.dictionary_encode(values.combine_chunks(), null_encoding="encode")
    texts = ["" if v is None else str(v) for v in encoded.dictionary.to_pylist()]
    hashes = np.array([fingerprint64(text) for text in texts], np.uint64)
    mixed = _mixed(hashes, seed)
    positions: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    position_B: NDArray[np.float64] = positions[encoded.indices.to_numpy(zero_copy_only=False)]
    return position_B


def _fraction_after(values: pa.ChunkedArray, column: str) -> NDArray[np.float64]:
    """Return for each row which share of all rows comes after it, (B,); equal values share it."""
    try:
        rank_B = pc.rank(
            values.combine_chunks(), sort_keys="descending", tiebreaker="min"
        ).to_numpy()
    except pa.ArrowException as error:
        raise DataError(
            f"column {column!r} is of type {values.type}, which has no order; name a column of "
            "times, numbers or text"
        ) from error
    if len(rank_B) and (rank_B == rank_B[0]).all():
        raise DataError(f"column {column!r} has one value in all rows; name another to split by")
    after_B: NDArray[np.float64] = (rank_B - 1) / len(rank_B)
    return after_B


Data: TypeAlias = Any
"""A path, URL, glob or list of them; a table of Delta Lake or Iceberg; a data frame; Arrow data;
dicts of rows; a dict of columns."""

_DICTS = (
    65_536  # rows of a generator of dicts that become a table at once; the first state the types
)

_ALLOWED = (
    f"expected a path or glob of files ({known_suffixes()}), a list of them, a pandas or "
    "Polars frame, an Arrow table, dataset or record-batch reader, dicts of rows, or a dict of "
    "columns"
)


def open_source(
    data: Data,
    *,
    columns: Sequence[str] | None = None,
    column_types: Mapping[str, ColumnKind] | None = None,
    spool_folder: Path | None = None,
) -> Source:
    """Open rows wherever they are, so that they can be read in any order and more than once."""
    names = None if columns is None else list(dict.fromkeys(columns))
    spool = Spool(spool_folder)
    row_share = data if isinstance(data, RowShare) else None
    try:
        rows = data if row_share is None else row_share.data
        needed = names
        if names is not None and row_share is not None and row_share.column is not None:
            needed = [*dict.fromkeys([*names, row_share.column])]
        inputs = _inputs(rows, needed, ColumnTypes.of(column_types), spool)
        if row_share is not None:
            inputs = select_rows(inputs, row_share)
        files = [file.path for file in input_files(rows) or ()]
        return Source(inputs, columns=names, spool=spool, files=files)
    except BaseException:
        spool.close()
        raise


def open_on_ranks(
    data: Data,
    ranks: Ranks,
    role: str,
    *,
    columns: Sequence[str],
    column_types: Mapping[str, ColumnKind] | None,
    empty: str,
) -> Source:
    """Open the same rows on all ranks, each of which reads its part of them; collective.

    Args:
        data: As of :func:`open_source`.
        ranks: The first of them lists the files, or finds the newest version of a table, for all:
            each by itself could see what comes meanwhile.
        role: What the data is, in errors.
        columns: As of :func:`open_source`.
        column_types: As of :func:`open_source`.
        empty: The error where there is no row.

    Raises:
        ConfigError: If the files are others on some rank.
        DataError: If the data cannot be opened on some rank, or has no rows.
    """
    rows, listing = data.data if isinstance(data, RowShare) else data, None
    if ranks.size > 1 and names_files(rows):
        listing = on_first(ranks, partial(rows_to_json, rows), role)
    with shared_failures(ranks):
        if listing is not None:
            rows = rows_from_json(listing)
            data = replace(data, data=rows) if isinstance(data, RowShare) else rows
        source = open_source(data, columns=columns, column_types=column_types)
        if not source.num_rows:
            source.close()
            if isinstance(data, RowShare):
                empty = (
                    f"got {role} without rows: none lies in its share{data.description}; set "
                    "another valid_fraction, or name files for both"
                )
            raise DataError(empty)
        digest = source.fingerprint() if ranks.size > 1 else ""
    fact = f"of {source.num_rows:,} rows in {len(source.fragments):,} parts (digest {digest})"
    remedy = "; give all ranks the same data: each reads its part of it"
    ranks.check_alike({role: fact}, remedy)
    return source


def _inputs(data: Data, columns: list[str] | None, types: ColumnTypes, spool: Spool) -> list[Input]:
    table = find_table(data)
    if table is not None:
        return [open_table(table, columns, spool)]
    files = input_files(data)
    if files is None:
        return [_object_input(data, columns, spool)]
    partitions = partition_columns(files, types)
    stored = columns if columns is None else [name for name in columns if name not in partitions]
    indices_of: dict[InputFormat, list[int]] = {}
    for index, file in enumerate(files):
        indices_of.setdefault(format_of(file.path), []).append(index)
    inputs: dict[int, Input] = {}
    # Files that state their types come first: columns of the others take these.
    for file_format in sorted(indices_of, key=lambda file_format: not file_format.typed):
        indices = indices_of[file_format]
        paths = [files[index].path for index in indices]
        opened = open_files(file_format, paths, stored, spool, types)
        inputs |= zip(indices, opened, strict=True)
        for field in (field for one in opened for field in one.schema if file_format.typed):
            if isinstance(types.get(field.name, ""), str):
                types[field.name] = field.type
    return [
        with_partitions(inputs[index], file, partitions, columns)
        for index, file in enumerate(files)
    ]


def _object_input(data: Data, columns: list[str] | None, spool: Spool) -> Input:
    origin = f"the {type(data).__name__}"
    library = type(data).__module__.split(".")[0]
    if library == "pandas" and hasattr(data, "columns"):
        return table_input(pandas_table(data, columns, origin), origin, columns)
    planned = _planned_input(data, library, origin, columns, spool)
    if planned is not None:
        return planned
    if isinstance(data, Mapping):
        return table_input(_mapping_table(data, columns, origin), origin, columns)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return table_input(_sequence_table(data, origin), origin, columns)
    if isinstance(data, pa.Table | pa.RecordBatch) or library == "polars":
        return table_input(_arrow_table(data, origin), origin, columns)
    if hasattr(data, "__arrow_c_array__"):
        return table_input(_arrow_table(data, origin), origin, columns)
    if hasattr(data, "__arrow_c_stream__"):
        reader = _stream_reader(data, origin)
        return spooled_input(selected_columns(reader, columns, origin), origin, spool)
    if library == "numpy" or isinstance(data, bytes):
        raise DataError(f"data: got {origin[4:]}, whose columns have no names; {_ALLOWED}")
    if isinstance(data, Iterable):
        reader = batches_reader(_tables_of_dicts(data, origin), origin)
        return spooled_input(selected_columns(reader, columns, origin), origin, spool)
    raise DataError(f"data: got {origin[4:]}; {_ALLOWED}")


def _planned_input(
    data: Data, library: str, origin: str, columns: list[str] | None, spool: Spool
) -> Input | None:
    """Return an input of an object that says where rows are; None for one that holds them."""
    if library == "deltalake" and hasattr(data, "to_pyarrow_dataset"):
        return delta_input(data, columns, spool)
    if library == "pyiceberg" and hasattr(data, "current_snapshot"):
        return iceberg_input(data, columns, spool)
    if library == "pyarrow" and hasattr(data, "get_fragments"):
        return dataset_input(data, origin, columns, spool)
    if library == "polars" and hasattr(data, "collect_batches"):
        reader = batches_reader(_collected(data, columns, origin), origin)
        return spooled_input(reader, origin, spool)
    return None


def _collected(plan: Any, columns: list[str] | None, origin: str) -> Iterator[Any]:
    """Run a lazy frame of Polars for the columns that are needed, batch by batch."""
    names = plan.collect_schema().names()
    if columns is not None:
        check_columns(columns, names, origin)
        plan = plan.select(columns)
    yield from plan.collect_batches(maintain_order=True)


def _tables_of_dicts(items: Iterable[Any], origin: str) -> Iterator[Any]:
    """Yield what a generator yields, dicts as tables of thousands."""
    rows = iter(items)
    for first in rows:
        if not isinstance(first, Mapping):
            yield first
            continue
        chunk = [first, *itertools.islice(rows, _DICTS - 1)]
        for number, row in enumerate(chunk):
            if not isinstance(row, Mapping):
                raise DataError(f"{origin}: yielded a {type(row).__name__} after {number} dicts")
        yield _rows_table(chunk, origin)


def _stream_reader(data: Any, origin: str) -> pa.RecordBatchReader:
    try:
        return pa.RecordBatchReader.from_stream(data)
    except (pa.ArrowException, TypeError) as error:
        hint = "make it a table: to_frame(); " if hasattr(data, "to_frame") else ""
        raise DataError(f"data: {origin[4:]} is no table ({error}); {hint}{_ALLOWED}") from error


def _arrow_table(data: Any, origin: str) -> pa.Table:
    try:
        return data if isinstance(data, pa.Table) else pa.table(data)
    except (TypeError, ValueError) as error:
        raise DataError(f"data: {origin[4:]} is no table ({error}); {_ALLOWED}") from error


def pandas_table(frame: Any, columns: list[str] | None, origin: str) -> pa.Table:
    """Return columns of a pandas data frame as Arrow, without its index; sparse ones in full."""
    present = [str(name) for name in frame.columns]
    if len(set(present)) != len(present):
        doubled = next(name for name in present if present.count(name) > 1)
        raise DataError(f"{origin}: two columns are named {doubled!r}; rename or drop one of them")
    _names(present, origin)
    if columns is not None:
        check_columns(columns, present, origin)
    names = present if columns is None else columns
    # NaN in a data frame is how pandas writes a missing value.
    arrays = [
        _converted(
            _dense(frame.iloc[:, present.index(name)]),
            name,
            origin,
            partial(pa.array, from_pandas=True),
        )
        for name in names
    ]
    return pa.Table.from_arrays(arrays, names=names)


def _dense(series: Any) -> Any:
    return series.sparse.to_dense() if hasattr(series, "sparse") else series


def _converted(values: Any, name: str, origin: str, convert: Callable[[Any], Any]) -> Any:
    """Return values as an Arrow column."""
    try:
        array = convert(values)
    except UnicodeEncodeError:
        raise _no_text(values, name, origin) from None
    except OverflowError as error:
        raise DataError(
            f"{origin}: column {name!r} holds a whole number beyond 64 bits; write it as text"
        ) from error
    except (pa.ArrowException, ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{origin}: column {name!r} has no single type ({error}); "
            "convert its values to text or to numbers"
        ) from error
    if pa.types.is_timestamp(array.type):
        _check_zones(values, name, origin)
    return array


def _no_text(values: Any, name: str, origin: str) -> DataError:
    """Return the error about half of a surrogate pair, as some clients cut an emoji."""
    texts = ("".join(map(str, v)) if isinstance(v, list) else str(v) for v in values)
    row = next((row for row, text in enumerate(texts) if not is_unicode(text)), 0)
    return DataError(
        f"{origin}: column {name!r}, row {row}: got text with half of a surrogate pair, which is "
        "no Unicode text; correct it, or replace it where the text is made: "
        'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
    )


def _check_zones(values: Any, name: str, origin: str) -> None:
    """Refuse Python's times with and without a zone in one column, which Arrow mixes."""
    if isinstance(values, list):
        zones = {v.tzinfo is None for v in values if isinstance(v, datetime.datetime) and v == v}
        if len(zones) > 1:
            raise DataError(
                f"{origin}: column {name!r} mixes times with a zone and times without; give all of "
                "them a zone"
            )


def _mapping_table(mapping: Mapping[Any, Any], columns: list[str] | None, origin: str) -> pa.Table:
    keys = _names(mapping, origin)
    if columns is not None:
        check_columns(columns, list(keys), origin)
    arrays = {name: _converted(mapping[key], name, origin, _column) for name, key in keys.items()}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{origin}: columns have different numbers of rows ({lengths}); make them equal"
        )
    return pa.table(arrays)


def _names(keys: Iterable[Any], origin: str) -> dict[str, Any]:
    """Return the keys of columns by their names; keys other than text are named by their text."""
    names: dict[str, Any] = {}
    for key in keys:
        name = str(key)
        if names.setdefault(name, key) != key:
            raise DataError(
                f"{origin}: two columns are named {name!r} ({names[name]!r} and {key!r}); rename "
                "or drop one of them"
            )
        if not is_unicode(name):
            raise DataError(
                f"{origin}: the column {name!r} has a name with half of a surrogate pair, which is "
                "no Unicode text; rename it"
            )
    return names


def _column(values: Any) -> Any:
    if isinstance(values, str | bytes):
        raise TypeError("got text, expected a list of values, one a row")
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if hasattr(values, "__arrow_c_stream__") or isinstance(values, pa.Array | pa.ChunkedArray):
        return pa.chunked_array(values)
    if hasattr(values, "iloc"):
        return pa.array(values, from_pandas=True)
    return _plain_values(values)


def _plain_values(values: Any) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, UnicodeEncodeError) or not isinstance(values, list):
            raise
        # What pandas and NumPy write for a missing value: NA, NaT, or NaN among text.
        return pa.array([None if _is_missing(value) else value for value in values])


def _is_missing(value: Any) -> bool:
    kind = type(value).__name__
    return kind in ("NAType", "NaTType") or (
        isinstance(value, float | np.floating | np.datetime64) and bool(value != value)
    )


def _sequence_table(items: Sequence[Any], origin: str) -> pa.Table:
    if not items:
        raise DataError(f"data: got an empty {type(items).__name__}; {_ALLOWED}")
    if all(isinstance(item, Mapping) for item in items):
        return _rows_table(items)
    for number, item in enumerate(items):
        if not (hasattr(item, "__arrow_c_array__") or hasattr(item, "__arrow_c_stream__")):
            raise DataError(f"data[{number}]: got a {type(item).__name__}; {_ALLOWED}")
    return batches_reader(items, origin).read_all()


def _rows_table(rows: Sequence[Mapping[Any, Any]], origin: str = "the list of dicts") -> pa.Table:
    keys = _names(dict.fromkeys(key for row in rows for key in row), origin)
    arrays = [
        _converted([row.get(key) for row in rows], name, origin, _plain_values)
        for name, key in keys.items()
    ]
    return pa.Table.from_arrays(arrays, names=list(keys))
