"""The sets of the league table: real ones, and generated ones whose truth is planted.

Each is three tables of one label, in an order in which training, validation and test follow each
other; what a model may read is every other column.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sweep_defaults import data_file

import widedeep as wd

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path += [str(EXAMPLES / "census"), str(EXAMPLES / "online_retail")]
VALID, TEST = 0.15, 0.25  # of the rows of a generated set


@dataclass(frozen=True, kw_only=True)
class League:
    """A set: its rows, its label, and its features where a spec declares them."""

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    label: str
    spec: wd.FeatureSpec | None = None


def adult(rows: int, folder: Path) -> League:
    """UCI Adult; the last fifth of its training rows to validate on."""
    from run import DATA, train_and_valid

    train, valid = train_and_valid()
    test = pq.read_table(DATA / "test.parquet")
    return League(train=train.slice(0, rows), valid=valid, test=test, label="income")


def shop(rows: int, folder: Path) -> League:
    """UCI Online Retail: what a customer takes next, after the examples' own join."""
    from retail import make_examples, retail_spec

    # The join takes longer than most models: it is made once for each version of its declaration.
    version = zlib.crc32((EXAMPLES / "online_retail" / "retail.py").read_bytes())
    examples = folder / f"shop_{version:08x}"
    if not examples.exists():
        make_examples(Path(os.environ["ONLINE_RETAIL"]), examples)
    spec = retail_spec()
    assert spec.label is not None
    columns = [*spec.columns(), spec.label]
    train, valid, test = (
        pq.read_table(examples / part, columns=columns) for part in ("train", "valid", "test")
    )
    return League(
        train=train.slice(max(0, train.num_rows - rows)), valid=valid.slice(0, rows // 3),
        test=test, label=spec.label, spec=spec,
    )  # fmt: skip


def clicks(salt: int) -> Callable[[int, Path], League]:
    """A log like Criteo's, with three crosses planted, of one of three truths."""

    def make(rows: int, folder: Path) -> League:
        table = pq.read_table(data_file(salt))
        table = table.select([n for n in table.column_names if n[0] in "IC" or n == "label"])
        test = table.slice(table.num_rows - 100_000)
        return League(
            train=table.slice(0, rows), valid=table.slice(rows, rows // 4), test=test,
            label="label",
        )  # fmt: skip

    return make


def one_way(rows: int, folder: Path) -> League:
    """Each column says its part by itself: five categories of 50 values, three numbers."""
    rng = np.random.default_rng(11)
    columns, logit = _columns(rng, rows, categories=5, values=50)
    for values, code in columns:
        logit += rng.normal(0, 0.6, values)[code]
    numbers = rng.normal(size=(rows, 3))
    logit += np.sin(2 * numbers[:, 0]) + 0.4 * numbers[:, 1] ** 2 - np.abs(numbers[:, 2])
    return _league(rng, columns, logit, {f"x{i}": numbers[:, i] for i in range(3)})


def crosses(rows: int, folder: Path) -> League:
    """Three pairs of columns decide, and none of their columns by itself; two more are noise."""
    rng = np.random.default_rng(12)
    columns, logit = _columns(rng, rows, categories=8, values=20)
    for one, other in ((0, 1), (2, 3), (4, 5)):
        logit += rng.normal(0, 1.2, (20, 20))[columns[one][1], columns[other][1]]
    return _league(rng, columns, logit - 0.5, {"x0": rng.normal(size=rows)})


def sequences(rows: int, folder: Path) -> League:
    """Whether the candidate's kind is among the kinds of what was taken lately, newest first."""
    rng = np.random.default_rng(13)
    kinds = 20
    item = rng.integers(0, 200, rows)
    lengths = rng.integers(0, 12, rows)
    taken = rng.integers(0, 200, (rows, 12))
    shown = np.arange(12) < lengths[:, None]
    match = (taken % kinds == (item % kinds)[:, None]) & shown
    weight = np.array([0.8**step for step in range(12)])
    logit = rng.normal(0, 0.4, 200)[item] - 1.0 + 3.0 * (match * weight).sum(1)
    table = {
        "item": [f"i{i}" for i in item],
        "kind": [f"k{i % kinds}" for i in item],
        "taken": [[f"i{i}" for i in row[:n]] for row, n in zip(taken, lengths, strict=True)],
        "taken_kinds": [
            [f"k{i % kinds}" for i in row[:n]] for row, n in zip(taken, lengths, strict=True)
        ],
    }
    return _split(rng, pa.table(table), logit)


def drift(rows: int, folder: Path) -> League:
    """The effect of half the columns turns into another one as time goes by."""
    rng = np.random.default_rng(14)
    columns, logit = _columns(rng, rows, categories=6, values=40)
    moment = np.linspace(0, 1, rows)
    for index, (values, code) in enumerate(columns):
        before, after = rng.normal(0, 0.7, (2, values))
        turn = moment if index % 2 else np.zeros(rows)
        logit += (1 - turn) * before[code] + turn * after[code]
    return _league(rng, columns, logit, {"x0": rng.normal(size=rows)})


def hastie(rows: int, folder: Path) -> League:
    """scikit-learn's `make_hastie_10_2`: whether ten numbers lie far from 0; no noise."""
    from sklearn.datasets import make_hastie_10_2

    numbers, label = make_hastie_10_2(min(rows, 12_000), random_state=15)
    table = pa.table({f"x{i}": column for i, column in enumerate(numbers.T)})
    return _parts(table, label > 0)


def digits(rows: int, folder: Path) -> League:
    """scikit-learn's 1,797 handwritten digits of 64 greys: above 4 or not."""
    from sklearn.datasets import load_digits

    numbers, label = load_digits(return_X_y=True)
    order = np.random.default_rng(16).permutation(len(label))[:rows]
    table = pa.table({f"x{i}": column for i, column in enumerate(numbers[order].T)})
    return _parts(table, label[order] > 4)


SETS: Mapping[str, Callable[[int, Path], League]] = {
    "adult": adult,
    "shop": shop,
    "clicks 0": clicks(0),
    "clicks 1": clicks(1),
    "clicks 2": clicks(2),
    "one-way": one_way,
    "crosses": crosses,
    "sequences": sequences,
    "drift": drift,
    "hastie": hastie,
    "digits": digits,
}

_Codes = list[tuple[int, np.ndarray]]


def _columns(
    rng: np.random.Generator, rows: int, *, categories: int, values: int
) -> tuple[_Codes, np.ndarray]:
    """Columns of codes, frequent ones first, and a logit of 0."""
    weights = 1 / np.arange(1, values + 1) ** 0.7
    chances = weights / weights.sum()
    codes = [(values, rng.choice(values, rows, p=chances)) for _ in range(categories)]
    return codes, np.zeros(rows)


def _league(
    rng: np.random.Generator, columns: _Codes, logit: np.ndarray, numbers: dict[str, np.ndarray]
) -> League:
    words = {f"c{i}": [f"v{code}" for code in codes] for i, (_, codes) in enumerate(columns)}
    return _split(rng, pa.table({**words, **numbers}), logit)


def _split(rng: np.random.Generator, table: pa.Table, logit: np.ndarray) -> League:
    return _parts(table, rng.random(len(logit)) < 1 / (1 + np.exp(-logit)))


def _parts(table: pa.Table, label: np.ndarray) -> League:
    """Training, validation and test rows, in this order."""
    table = table.append_column("y", pa.array(label.astype(np.int8)))
    test = round(TEST * table.num_rows)
    valid = round(VALID * table.num_rows)
    train = table.num_rows - test - valid
    return League(
        train=table.slice(0, train), valid=table.slice(train, valid),
        test=table.slice(train + valid), label="y",
    )  # fmt: skip
