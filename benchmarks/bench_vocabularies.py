"""Memory and rate of large vocabularies: what a process keeps to itself, and what it maps.

Writes a schema with a vocabulary of texts (16 bytes each) or of integers, once with its index and
once as earlier versions wrote it. Several processes load each and look values up; the page cache
holds the file once for all of them. Bytes a value are those private to a process (`Private_Dirty`
of Linux), rates the median over repeats, of look-ups that follow a Zipf law and of uniform ones.

    python benchmarks/bench_vocabularies.py [--values 5000000] [--repeats 7]
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

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.schema import ColumnType, Schema, Vocabulary

CHUNK_ROWS = 262_144
KINDS = ("string", "int")


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


def measure(path: str, kind: str, n: int, repeats: int) -> dict[str, float]:
    """Load a schema and look values up, in this process."""
    rng = np.random.default_rng(0)
    picks = {
        "zipf": np.minimum(rng.zipf(1.05, CHUNK_ROWS) - 1, n - 1),
        "uniform": rng.integers(0, n, CHUNK_ROWS),
    }
    values = values_of(kind, n)
    tables = {name: pa.table({"value": values.take(pa.array(p))}) for name, p in picks.items()}
    del values
    pa.default_memory_pool().release_unused()
    before, start = private_bytes(), time.perf_counter()
    transform = Transform(Schema.load(path))
    result = {"load_s": time.perf_counter() - start}
    result["bytes"] = (private_bytes() - before) / n
    for name, table in tables.items():
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            transform(table, targets=False)
            seconds.append(time.process_time() - start)
        result[name] = CHUNK_ROWS / median(seconds) / 1e6
    return result


def main() -> None:
    """Print a line for each kind of values and file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        path, kind = arguments.measure
        print(json.dumps(measure(path, kind, arguments.values, arguments.repeats)))
        return
    print(
        "values  file     MB a file  load s  private bytes a value  M look-ups/CPU s zipf, uniform"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for index in (False, True):
                path = Path(folder) / f"{kind}-{index}.safetensors"
                write_schema(path, kind, arguments.values, index=index)
                options = ["--values", str(arguments.values), "--repeats", str(arguments.repeats)]
                command = [sys.executable, __file__, *options, "--measure", str(path), kind]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(answer.stdout)
                size, name = path.stat().st_size / 1e6, "indexed" if index else "plain"
                print(
                    f"{kind:7} {name:8} {size:8.0f} {row['load_s']:8.2f} {row['bytes']:12.1f} "
                    f"{row['zipf']:20.2f} {row['uniform']:8.2f}"
                )
                path.unlink()


if __name__ == "__main__":
    main()
