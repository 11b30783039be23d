"""Hash vectors from TensorFlow: Fingerprint64, its fold over a cross, hash bucket ids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

__all__ = ["DEFAULT_HASH_KEY", "hashing_vectors", "sparse_tensor"]

tf: Any = import_module("tensorflow")

DEFAULT_HASH_KEY = 0xDECAFCAFFE

# Each length stands beside a change of algorithm in Fingerprint64 (4, 8, 16, 32, 64 bytes) or
# well inside a branch; above 64 the loop of 64-byte blocks is entered.
LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100)
LONG_LENGTHS = (127, 128, 129, 191, 192, 193, 200)
TEXTS = (
    *("a", "ab", "abc", "Bachelors", "Exec-managerial", "-1", "0", "42", "9223372036854775807"),
    *("naïve", "Zürich", "東京都", "👩‍🚀", "e\u0301", "\u00e9", "with\x00nul", " ", "\t", "ß" * 40),
)
BUCKETS = (1, 2, 1000, 100_000, 2**31 - 1, 2**31, 2**40 + 7)

Part = list[list[str]] | list[list[int]]

WORDS: Part = [["Bachelors"], ["HS-grad"], ["naïve"], ["東京都"], [" "], ["a" * 70]]
JOBS: Part = [["Sales"], ["Exec-managerial"], [""], ["0"], ["👩‍🚀"], ["b"]]
NUMBERS: Part = [[0], [1], [-1], [2**31], [2**63 - 1], [-(2**63)]]
SMALL: Part = [[3], [0], [10], [-7], [123456789], [2**53 + 1]]
BAGS: Part = [["x", "y", "z"], ["x"], [], ["y", "y"], ["", "w"], ["q", "r"]]
INTEGER_BAGS: Part = [[5, -5], [7], [8, 9], [], [1, 2, 3], [4, 4]]

CROSSES: dict[str, list[Part]] = {
    "two strings": [WORDS, JOBS],
    "two strings, other order": [JOBS, WORDS],
    "two integers": [NUMBERS, SMALL],
    "string and integer": [WORDS, NUMBERS],
    "integer and string": [NUMBERS, WORDS],
    "decimal text is not the integer": [[["3"], ["0"], ["-7"]], [["x"], ["x"], ["x"]]],
    "the integer is not decimal text": [[[3], [0], [-7]], [["x"], ["x"], ["x"]]],
    "three strings": [WORDS, JOBS, WORDS],
    "three mixed": [WORDS, NUMBERS, JOBS],
    "three integers": [NUMBERS, SMALL, NUMBERS],
    "bag and string": [BAGS, WORDS],
    "bag and integer bag": [BAGS, INTEGER_BAGS],
    "bag, integer bag and string": [BAGS, INTEGER_BAGS, JOBS],
    "one part": [WORDS],
}


def sparse_tensor(rows: Sequence[Sequence[str | float]], dtype: Any) -> Any:
    """A (rows, longest row) SparseTensor; an empty row has no entry at all."""
    indices = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
    values = [value for row in rows for value in row]
    shape = (len(rows), max(1, *(len(row) for row in rows)))
    indices_array = np.array(indices, dtype=np.int64).reshape(-1, 2)
    return tf.SparseTensor(indices_array, tf.constant(values, dtype, shape=[len(values)]), shape)


def _rows_of(sparse: Any) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(int(sparse.dense_shape[0]))]
    for (row, _), value in zip(sparse.indices.numpy(), sparse.values.numpy(), strict=True):
        rows[row].append(int(value))
    return rows


def _fingerprints(inputs: list[bytes]) -> list[int]:
    digest = tf.fingerprint(tf.constant(inputs), method="farmhash64").numpy()
    return [int.from_bytes(bytes(row), "little") for row in digest]


def _inputs() -> list[bytes]:
    rng = np.random.default_rng(20160624)
    inputs = [text.encode() for text in TEXTS]
    for length in LENGTHS:
        inputs.append((b"abcdefghijklmnopqrstuvwxyz0123456789" * 3)[:length])
        inputs += [rng.bytes(length) for _ in range(3 if length else 0)]
    for length in LONG_LENGTHS:
        inputs += [rng.bytes(length) for _ in range(2)]
    return sorted(set(inputs), key=lambda text: (len(text), text))


def _fingerprint_entries() -> list[dict[str, str]]:
    inputs = _inputs()
    fingerprints = _fingerprints(inputs)
    for buckets in BUCKETS:  # The two ways into TensorFlow's hash must say the same.
        ids = tf.strings.to_hash_bucket_fast(inputs, buckets).numpy()
        if [value % buckets for value in fingerprints] != ids.tolist():
            raise AssertionError(f"tf.fingerprint and to_hash_bucket_fast differ at {buckets}")
    return [
        {"input_hex": text.hex(), "fingerprint64": str(value)}
        for text, value in zip(inputs, fingerprints, strict=True)
    ]


def _part_type(part: Part) -> str:
    return "int64" if all(isinstance(value, int) for row in part for value in row) else "string"


def _cross(parts: list[Part], num_buckets: int, hash_key: int) -> list[list[int]]:
    """The op below ``crossed_column``: FingerprintCat64 folded over the parts, from the key."""
    tensors = [sparse_tensor(part, _part_type(part)) for part in parts]
    indices, values, shape = tf.raw_ops.SparseCross(
        indices=[tensor.indices for tensor in tensors],
        values=[tensor.values for tensor in tensors],
        shapes=[tensor.dense_shape for tensor in tensors],
        dense_inputs=[],
        hashed_output=True,
        num_buckets=num_buckets,
        hash_key=hash_key,
        out_type=tf.int64,
        internal_type=tf.int64,
    )
    return _rows_of(tf.SparseTensor(indices, values, shape))


def _cross_entry(name: str, parts: list[Part], hash_key: int) -> dict[str, Any]:
    # Without buckets TensorFlow gives the 64-bit hash modulo the largest int64.
    hashes = _cross(parts, 0, hash_key)
    return {
        "name": name,
        "hash_key": hash_key,
        "part_types": [_part_type(part) for part in parts],
        "parts": parts,
        "hash_modulo_max_int64": [[str(value) for value in row] for row in hashes],
        "bucket_ids": {
            str(buckets): _cross(parts, buckets, hash_key)
            for buckets in (1000, 100_000, 2**31 - 1, 2**31)
        },
    }


def _hash_bucket_entries() -> list[dict[str, Any]]:
    integers = [0, 1, -1, 2, 9, 10, 99, 100, -100, 12345678, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)]
    entries = []
    for buckets in (2, 10, 1000, 100_000, 2**31 - 1):
        for dtype, values in (("string", list(TEXTS)), ("int64", integers)):
            column = tf.feature_column.categorical_column_with_hash_bucket(
                "x", buckets, dtype=tf.as_dtype(dtype)
            )
            rows = [[value] for value in values]
            cache = tf.__internal__.feature_column.FeatureTransformationCache(
                {"x": sparse_tensor(rows, dtype)}
            )
            ids = column.get_sparse_tensors(cache, None).id_tensor
            flat = [row[0] for row in _rows_of(ids)]
            entries.append({"dtype": dtype, "buckets": buckets, "values": values, "ids": flat})
    return entries


def hashing_vectors() -> dict[str, Any]:
    """Everything that goes into ``tensorflow_hashing.json``."""
    crosses = [_cross_entry(name, parts, DEFAULT_HASH_KEY) for name, parts in CROSSES.items()]
    crosses.append(_cross_entry("two strings, another key", [WORDS, JOBS], 12345))
    return {
        "fingerprint64": _fingerprint_entries(),
        "fingerprint_cat64": crosses,
        "hash_bucket": _hash_bucket_entries(),
    }
