"""fit_schema keeps to the memory it is given, whatever the number of rows and values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.schema import Schema

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA binds on Linux alone")

# The limit is set before anything is imported, so it holds the interpreter and the libraries too.
FRAGMENT_ROWS = 1 << 16
KEYS = wd.FeatureSpec(
    features=[*wd.categorical("a", "b", "n", min_count=2), wd.crossed("a", "n", min_count=2)]
)
SCRIPT = """
import resource, sys
path, process_limit, memory_limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (process_limit, process_limit))
import widedeep as wd
spec = wd.FeatureSpec.from_toml(sys.stdin.read())
schema = wd.fit_schema(spec, path, memory_limit=memory_limit, threads=2)
schema.save(path + ".schema")
"""


def fit_in_process(
    spec: wd.FeatureSpec, path: Path, *, process_mib: int, memory_mib: int
) -> subprocess.CompletedProcess[str]:
    limits = [str(process_mib * MEBIBYTE), str(memory_mib * MEBIBYTE)]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), *limits],
        input=spec.to_toml(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def write_keys(path: Path, rows: int) -> None:
    """Long texts and integers that come once or, one in a thousand, twice."""
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int64())])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, rows, FRAGMENT_ROWS):
            numbers = np.arange(start, min(start + FRAGMENT_ROWS, rows), dtype=np.int64)
            numbers[numbers % 1000 == 999] -= 1
            texts = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 250, "k")
            writer.write_table(pa.table({"a": texts, "b": pc.utf8_upper(texts), "n": numbers}))


def test_counts_that_exceed_the_limit_go_to_disk(tmp_path: Path) -> None:
    path = tmp_path / "keys.parquet"
    write_keys(path, rows=600_000)
    done = fit_in_process(KEYS, path, process_mib=560, memory_mib=32)
    assert done.returncode == 0, done.stderr
    schema = Schema.load(f"{path}.schema")
    assert schema.rows == 600_000
    assert [schema.vocabularies[key].counts.tolist() for key in ("a", "n", "a_x_n")] == [
        [2] * 600,
        [2] * 600,
        [599_400 - 600, *[2] * 600],
    ]
    assert schema.vocabularies["a"].dropped == 600_000 - 2 * 600
    assert schema.describe_id("n", 2) == "998"
    # The process's limit is what binds: without one on the counts, they do not fit.
    unlimited = fit_in_process(KEYS, path, process_mib=560, memory_mib=4096)
    assert unlimited.returncode == 1 and "MemoryError" in unlimited.stderr


@pytest.mark.slow
def test_a_long_log_is_fitted_in_bounded_memory(tmp_path: Path) -> None:
    path, rows = tmp_path / "log.parquet", 3_000_000
    script = ROOT / "benchmarks" / "criteo_like.py"
    subprocess.run([sys.executable, script, "--rows", str(rows), "--out", path], check=True)
    spec = wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*(f"I{i}" for i in range(1, 14))),
            *wd.categorical(*(f"C{i}" for i in range(1, 27)), min_count=3),
            wd.crossed("C5", "C8", min_count=3),
            wd.crossed("C1", "C14", min_count=3),
            wd.crossed("C19", "C2", min_count=3),
        ],
    )
    done = fit_in_process(spec, path, process_mib=600, memory_mib=64)
    assert done.returncode == 0, done.stderr
    assert Schema.load(f"{path}.schema").rows == rows
