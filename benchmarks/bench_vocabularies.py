"""Memory and rate of large vocabularies: what a process keeps to itself, and what it maps.

Writes a schema with a vocabulary of texts (16 bytes each) or of integers, once with its index and
once as earlier versions wrote it. A process of its own loads each; the page cache holds the file
once for all of them. Bytes a value are those private to a process (`Private_Dirty` of Linux). Rates
are medians over turns, in one process, of look-ups that follow a Zipf law and of uniform ones.

    python benchmarks/bench_vocabularies.py [--values 5000000] [--repeats 15] [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from results_file import machine, write_section

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.schema import ColumnType, Schema, Vocabulary

CHUNK_ROWS = 262_144
KINDS = ("string", "int")
FILES = ("plain", "indexed")


def values_of(kind: str, n: int) -> pa.Array:
    """Return `n` different values: 16 hexadecimal digits, or integers spread over 64 bits."""
    numbers = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    if kind == "int":
        return pa.array(numbers.view(np.int64))
    return pa.array([f"{number:016x}" for number in numbers.tolist()])


def write_schema(path: Path, kind: str, n: int, *, index: bool) -> None:
    """Write a schema of one feature."""
    from widedeep import schema as schema_room

    values = values_of(kind, n)
    learned = np.asarray(values) if kind == "int" else values.cast(pa.large_binary())
    vocabulary = Vocabulary(values=learned, counts=np.ones(n, np.int64))
    schema = Schema(
        spec=wd.FeatureSpec(features=wd.categorical("value")),
        columns={"value": ColumnType(kind=kind)},  # type: ignore[arg-type]
        vocabularies={"value": vocabulary},
        boundaries={},
        numerics={},
    )
    schema_room.INDEXED_VALUES = 1 if index else n + 1
    schema.save(path)


def private_bytes() -> int:
    """Return the bytes of memory that only this process has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines[1:])
    return 1024 * int(fields["Private_Dirty"].split()[0])


def load(path: str) -> None:
    """Load a schema in this process, and print what it took."""
    pa.default_memory_pool().release_unused()
    before, start = private_bytes(), time.perf_counter()
    transform = Transform(Schema.load(path))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bytes": private_bytes() - before}))
    del transform


def rates(paths: dict[str, Path], kind: str, n: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return the seconds of a look-up by law and file, measured in turns."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(np.arange(1, n + 1) ** -1.05)  # of the first values of all look-ups
    picks = {
        "zipf": np.searchsorted(shares, rng.random(CHUNK_ROWS) * shares[-1]),
        "uniform": rng.integers(0, n, CHUNK_ROWS),
    }
    values = values_of(kind, n)
    tables = {law: pa.table({"value": values.take(pa.array(p))}) for law, p in picks.items()}
    transforms = {name: Transform(Schema.load(path)) for name, path in paths.items()}
    result = {}
    for law, table in tables.items():
        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(repeats):
            for name, transform in transforms.items():
                start = time.process_time()
                transform(table, targets=False)
                seconds[name].append(time.process_time() - start)
        result[law] = {name: median(times) / CHUNK_ROWS for name, times in seconds.items()}
    return result


def main() -> None:
    """Print a line for each kind of values and file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n = arguments.values
    if arguments.load:
        load(arguments.load)
        return
    lines = [
        "## Large vocabularies\n",
        f"`benchmarks/bench_vocabularies.py` on {machine()}: {n:,} values; million look-ups a "
        "second of processor time, in turns in one process, and how many times the plain file's.\n",
        "| values | file | MB | load s | private bytes a value | Zipf | uniform |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            paths = {name: Path(folder) / f"{kind}-{name}.safetensors" for name in FILES}
            for name, path in paths.items():
                write_schema(path, kind, n, index=name == "indexed")
            by_law = rates(paths, kind, n, arguments.repeats)
            for name, path in paths.items():
                command = [sys.executable, __file__, "--load", str(path)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                loaded = json.loads(answer.stdout)
                cells = [
                    f"{1e-6 / of[name]:.1f} ({of['plain'] / of[name]:.2f})"
                    for of in by_law.values()
                ]
                lines.append(
                    f"| {kind} | {name} | {path.stat().st_size / 1e6:.0f} | "
                    f"{loaded['seconds']:.2f} | {loaded['bytes'] / n:.1f} | {' | '.join(cells)} |"
                )
            for path in paths.values():
                path.unlink()
    print("\n".join(lines))
    if arguments.write:
        write_section("data:vocabularies", "\n".join(lines))


if __name__ == "__main__":
    main()
