"""Hashes of ids by integer arithmetic that every SQL engine computes alike.

An id becomes a number below the prime p = 2^31 - 1. A number x is mixed by x -> x^5 mod p, which is
a permutation because 5 does not divide p - 1; no product leaves 63 bits.
"""

from __future__ import annotations

PRIME = 2**31 - 1
_FACTOR = 1_103_515_245


def text_or_integer(column: str, is_text: bool) -> str:
    """Return SQL for an id as an integer: itself, or 60 bits of the MD5 of its text."""
    return f"WD_MD5_60({column})" if is_text else column


def _fifth_power(x: str) -> str:
    square = f"(({x}) * ({x}) % {PRIME})"
    return f"(({square} * {square} % {PRIME}) * ({x}) % {PRIME})"


def _steps(names: list[str], salt: int) -> list[tuple[str, str]]:
    steps: list[tuple[str, str]] = []
    # A small literal would be 32 bits wide, and so would its products.
    previous = f"CAST({(salt * 2_654_435_761 + 12_345) % PRIME} AS BIGINT)"
    for name in names:
        for half, part in enumerate((f"{name} & {PRIME}", f"({name} >> 31) & {PRIME}")):
            total = f"({previous} * {_FACTOR} + (({part}) % {PRIME}) + 1) % {PRIME}"
            steps.append((f"{name}_s{half}", total))
            steps.append((f"{name}_m{half}", _fifth_power(f"{name}_s{half}")))
            previous = f"{name}_m{half}"
    return steps


def mixed(table: str, integers: list[str], salt: int, name: str) -> str:
    """Return SQL that selects everything of ``table`` and the hash of ``integers`` as ``name``."""
    ids = [f"wd_i{salt}_{number}" for number in range(len(integers))]
    parts = ", ".join(
        f"CAST({sql} AS BIGINT) AS {key}" for key, sql in zip(ids, integers, strict=True)
    )
    source = f"SELECT *, {parts} FROM {table}"
    steps = _steps(ids, salt)
    for index, (step, sql) in enumerate(steps):
        alias = name if index == len(steps) - 1 else step
        source = f"SELECT *, {sql} AS {alias} FROM ({source}) AS wd_t"
    return source
