"""The rows of a league set as other libraries read them: numbers, codes of words, labels.

A list of words stands as its first word and its length: what a table of columns can hold. Codes are
those of the training rows' values, 0 for missing and unseen ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PARTS = ("train", "valid", "test")


class Rows(NamedTuple):
    """One part of a set."""

    numbers: np.ndarray[Any, np.dtype[np.float32]]  # (B, K), NaN where missing
    codes: np.ndarray[Any, np.dtype[np.int64]]  # (B, F)
    labels: np.ndarray[Any, np.dtype[np.float32]]  # (B,)


class Task(NamedTuple):
    """A set, and how it is to be learned."""

    train: Rows
    valid: Rows
    test: Rows
    sizes: list[int]  # Codes of each column of words, 0 included
    seed: int
    deadline: float  # Of training, in processor seconds: time.process_time()
    folder: Path
    model: str


def read_task() -> Task:
    """Read what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0)
    asked = parser.parse_args()
    tables = {part: pq.read_table(asked.folder / f"{part}.parquet") for part in PARTS}
    label = json.loads((asked.folder / "set.json").read_text(encoding="utf-8"))["label"]
    numbers: dict[str, list[Any]] = {part: [] for part in PARTS}
    codes: dict[str, list[Any]] = {part: [] for part in PARTS}
    sizes = []
    for name in tables["train"].column_names:
        if name == label:
            continue
        columns = {part: plain(table[name]) for part, table in tables.items()}
        if pa.types.is_list(columns["train"].type):
            for part, column in columns.items():
                numbers[part].append(as_floats(pc.list_value_length(column)))
            columns = {part: firsts(column) for part, column in columns.items()}
        if pa.types.is_string(columns["train"].type):
            known = pc.unique(columns["train"].drop_null())
            sizes.append(len(known) + 1)
            for part, column in columns.items():
                found = pc.fill_null(pc.add(pc.index_in(column, known), 1), 0)
                codes[part].append(found.to_numpy(zero_copy_only=False))
        else:
            for part, column in columns.items():
                numbers[part].append(as_floats(column))

    def rows(part: str) -> Rows:
        count = tables[part].num_rows
        return Rows(
            np.stack(numbers[part], 1) if numbers[part] else np.zeros((count, 0), np.float32),
            np.stack(codes[part], 1).astype(np.int64) if sizes else np.zeros((count, 0), np.int64),
            tables[part][label].to_numpy().astype(np.float32),
        )

    return Task(
        *(rows(part) for part in PARTS),
        sizes=sizes, seed=asked.seed, deadline=time.process_time() + asked.seconds,
        folder=asked.folder, model=asked.model,
    )  # fmt: skip


def plain(column: pa.ChunkedArray) -> pa.Array:
    """Return a column with words, and lists of words, of one type."""
    array = column.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        inner = kind.value_type
        words = pa.types.is_string(inner) or pa.types.is_large_string(inner)
        return array.cast(pa.list_(pa.string() if words else inner))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    return array


def firsts(column: pa.Array) -> pa.Array:
    """Return each list's first element; null for an empty one."""
    return pa.array([row[0] if row else None for row in column.to_pylist()], column.type.value_type)


def as_floats(column: pa.Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers, NaN where missing."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32)


def scaled(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of each part as networks like them: standardised, 0 where missing."""
    with np.errstate(all="ignore"):
        mean, spread = np.nanmean(task.train.numbers, 0), np.nanstd(task.train.numbers, 0)
    spread = np.where(spread > 0, spread, 1)
    parts = (task.train, task.valid, task.test)
    train, valid, test = (
        np.nan_to_num((rows.numbers - mean) / spread).clip(-8, 8).astype(np.float32)
        for rows in parts
    )
    return train, valid, test


def write_answer(task: Task, probabilities: Any, *, note: str = "") -> None:
    """Write the probabilities of the test rows, and what a reader should know."""
    np.save(task.folder / "answer.npy", np.asarray(probabilities, np.float64))
    (task.folder / "answer.json").write_text(json.dumps({"note": note}), encoding="utf-8")
