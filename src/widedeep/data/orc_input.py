"""ORC files as inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from widedeep.data.fragments import Input, InputFormat, Spool, check_columns, file_by_file
from widedeep.data.parquet_input import spooled_input
from widedeep.errors import DataError
from widedeep.remote import InputPath, readable


def _orc_input(path: InputPath, columns: Sequence[str] | None, spool: Spool) -> Input:
    from pyarrow import orc

    try:
        file = orc.ORCFile(readable(path))
        if columns is not None:
            check_columns(columns, file.schema.names, str(path))
        names = file.schema.names if columns is None else list(columns)
        schema = pa.schema([file.schema.field(name) for name in names])

        def stripes() -> Iterator[pa.RecordBatch]:
            for number in range(file.nstripes):
                yield file.read_stripe(number, columns=names).select(names)

        reader = pa.RecordBatchReader.from_batches(schema, stripes())
        return spooled_input(reader, str(path), spool, path=path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a complete ORC file ({error}); it is truncated or of another format: "
            "write it again, or name the right file"
        ) from error


ORC = InputFormat(suffixes=(".orc",), open=file_by_file(_orc_input))
