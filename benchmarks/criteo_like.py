"""A Criteo-shaped click log with a known answer, for timing and for judging quality.

13 numeric fields (log-normal, some missing) and 26 categorical fields with the cardinalities of
Kaggle's Criteo log (capped), drawn from a Zipf law. The label is Bernoulli(sigmoid(logit)), where
the logit holds what a wide model memorises (planted weights on three crosses of two fields), what
a deep model generalises (products of latent factors), and a numeric part. The true probability is
written beside the label, so the best possible AUC and log loss of any split are known.

    python benchmarks/criteo_like.py --rows 1000000 --out criteo_like_1m.parquet

Rows are made and written a million at a time, so memory stays flat. `--salt` plants another truth
(other weights, the same shape): tune on salt 0, judge on salts that were never looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CARDINALITIES = [
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
]
MISSING_SHARES = (0.0, 0.05, 0.2, 0.2, 0.02, 0.2, 0.05, 0.0, 0.05, 0.45, 0.04, 0.75, 0.2)
ZIPF_EXPONENT = 1.05
BASE_LOGIT = -1.9
MEMORISED = [(4, 7), (0, 13), (18, 1)]
FIRST_ORDER = [(2, 0.45), (9, 0.35), (15, 0.35), (23, 0.3), (25, 0.3), (6, 0.3)]
GENERALISED = [(2, 9), (3, 15), (11, 25), (20, 23)]
LATENT_FACTORS = 3

ROWS_AT_ONCE = 1_000_000
ROW_GROUP_ROWS = 131_072

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def mixed(keys: Ints | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread integers over 64 bits (the finaliser of SplitMix64)."""
    bits = keys.astype(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def gauss(keys: NDArray[Any]) -> Floats:
    """Return a fixed standard normal for each integer key."""
    other = mixed(keys ^ np.uint64(0x9E3779B97F4A7C15))
    u1 = (mixed(keys) >> np.uint64(11)).astype(np.float64) / 2**53 + 1e-12
    u2 = (other >> np.uint64(11)).astype(np.float64) / 2**53
    return np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)


def draw_codes(rng: np.random.Generator, rows: int, cap: int) -> list[Ints]:
    """Draw every categorical field by the inverse of a truncated power law's distribution."""
    codes = []
    power = 1 - ZIPF_EXPONENT
    for cardinality in CARDINALITIES:
        n = min(cardinality, cap)
        ranks = ((n**power - 1) * rng.random(rows) + 1) ** (1 / power)
        codes.append(np.minimum(ranks.astype(np.int64) - 1, n - 1).clip(0))
    return codes


def true_logits(codes: Sequence[Ints], numbers: Sequence[NDArray[np.float32]], salt: int) -> Floats:
    """Return the planted logit of every row."""
    salt = salt * 10**15
    logits = np.full(len(codes[0]), BASE_LOGIT)
    for k, (i, j) in enumerate(MEMORISED):
        pairs = mixed(codes[i] * 1_000_003 + codes[j] + (k + 1) * 7_777_777_777 + salt)
        logits += 0.55 * gauss(pairs)
    for i, weight in FIRST_ORDER:
        logits += weight * gauss(mixed(codes[i] + (i + 1) * 1_000_000_007 + salt))
    for i, j in GENERALISED:
        product: Any = 0
        for factor in range(LATENT_FACTORS):
            one, other = (
                gauss(mixed(codes[f] % 5000 + (f + 1) * 10**9 + factor * 10**12 + salt))
                for f in (i, j)
            )
            product = product + one * other
        logits += 0.3 * product
    logged = [np.log1p(numbers[field]) for field in (0, 5, 3)]
    logits += 0.35 * logged[0] - 0.25 * logged[1] + 0.3 * np.sin(logged[2])
    return logits


def generate(rows: int, cap: int, seed: int | list[int], salt: int = 0) -> pa.Table:
    """Return a table of `rows` examples.

    Args:
        rows: How many.
        cap: The largest cardinality of a field.
        seed: Of the rows.
        salt: Of the planted truth.
    """
    rng = np.random.default_rng(seed)
    codes = draw_codes(rng, rows, cap)
    numbers = [rng.lognormal(0.5 + 0.15 * j, 1.2, rows).astype(np.float32) for j in range(13)]
    probabilities = 1 / (1 + np.exp(-true_logits(codes, numbers, salt)))
    columns: dict[str, Any] = {
        "label": (rng.random(rows) < probabilities).astype(np.int8),
        "true_p": probabilities.astype(np.float32),
    }
    for j, (values, share) in enumerate(zip(numbers, MISSING_SHARES, strict=True)):
        columns[f"I{j + 1}"] = pa.array(values, mask=rng.random(rows) < share)
    for j, field in enumerate(codes):
        hashes = (mixed(field + (j + 1) * 10**10) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        distinct, places = np.unique(hashes, return_inverse=True)
        words = pa.array([f"{value:08x}" for value in distinct])
        columns[f"C{j + 1}"] = words.take(pa.array(places))
        columns[f"c{j + 1}_id"] = field.astype(np.int32)
    return pa.table(columns)


def write(path: str, rows: int, *, cap: int = 1_000_000, seed: int = 7, salt: int = 0) -> float:
    """Write `rows` examples to a Parquet file and return their click rate."""
    writer, clicks = None, 0.0
    for chunk, start in enumerate(range(0, rows, ROWS_AT_ONCE)):
        chunk_seed = seed if chunk == 0 else [seed, chunk]
        table = generate(min(ROWS_AT_ONCE, rows - start), cap, chunk_seed, salt)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        clicks += float(np.sum(table["label"].to_numpy()))
    if writer is not None:
        writer.close()
    return clicks / max(rows, 1)


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cap", type=int, default=1_000_000, help="largest cardinality of a field")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--salt", type=int, default=0, help="another planted truth for each salt")
    parser.add_argument("--out", required=True)
    asked = parser.parse_args()
    rate = write(asked.out, asked.rows, cap=asked.cap, seed=asked.seed, salt=asked.salt)
    print(asked.rows, "rows, click rate", rate)


if __name__ == "__main__":
    main()
