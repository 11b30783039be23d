"""Arrow IPC files (Feather) as inputs."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from widedeep.data.fragments import Input, InputFormat, Spool, file_by_file, selected_columns
from widedeep.data.parquet_input import spooled_input
from widedeep.errors import DataError
from widedeep.remote import InputPath, RemoteFile


def _arrow_file_input(path: InputPath, columns: Sequence[str] | None, spool: Spool) -> Input:
    try:
        with _opened(path) as file:
            reader = _arrow_reader(file)
            return spooled_input(
                selected_columns(reader, columns, str(path)), str(path), spool, path=path
            )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a complete Arrow file ({error}); it is truncated or of another format: "
            "write it again, or name the right file"
        ) from error


def _opened(path: InputPath) -> pa.NativeFile:
    return (
        pa.PythonFile(path.open(), "r")
        if isinstance(path, RemoteFile)
        else pa.memory_map(str(path))
    )


def _arrow_reader(file: pa.NativeFile) -> pa.RecordBatchReader:
    is_file_format = file.read(6) == b"ARROW1"
    file.seek(0)
    if not is_file_format:
        return pa.ipc.open_stream(file)
    opened = pa.ipc.open_file(file)
    batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
    return pa.RecordBatchReader.from_batches(opened.schema, batches)


ARROW_FILE = InputFormat(
    suffixes=(".feather", ".arrow", ".ipc"), open=file_by_file(_arrow_file_input)
)
