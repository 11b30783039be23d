"""The file formats of inputs: one entry each."""

from __future__ import annotations

import re

from widedeep.data.arrow_input import ARROW_FILE
from widedeep.data.avro_input import AVRO
from widedeep.data.csv_input import CSV
from widedeep.data.fragments import InputFormat
from widedeep.data.json_input import JSON_LINES
from widedeep.data.orc_input import ORC
from widedeep.data.parquet_input import PARQUET
from widedeep.data.tfrecord_input import TFRECORD
from widedeep.errors import DataError
from widedeep.remote import InputPath

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # TensorFlow names files so: rows.tfrecord-00000-of-00010

FORMATS: tuple[InputFormat, ...] = (PARQUET, CSV, ARROW_FILE, JSON_LINES, ORC, AVRO, TFRECORD)


def find_format(path: InputPath) -> InputFormat | None:
    """Return the format that a file's name states, None for any other file."""
    name = _SHARD.sub("", path.name.lower())
    return next(
        (file_format for file_format in FORMATS if name.endswith(file_format.suffixes)), None
    )


def format_of(path: InputPath) -> InputFormat:
    """Return the format that a file's name states."""
    file_format = find_format(path)
    if file_format is None:
        raise DataError(
            f"{path}: unknown kind of file {path.suffix!r}; allowed: {known_suffixes()}; "
            "convert it to one of them"
        )
    return file_format


def known_suffixes() -> str:
    """Return the suffixes of all formats as text."""
    return ", ".join(suffix for file_format in FORMATS for suffix in file_format.suffixes)
