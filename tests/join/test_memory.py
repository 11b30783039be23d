"""A report on four times the examples needs no more memory: measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resets /proc/self/clear_refs")

REPORT = """
import json, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from widedeep.join.report import measure

def kib(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

def write(folder, rows):
    draw = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    shards = []
    for number in range(rows // 500_000):
        file = f"train/{number}.parquet"
        ids = np.arange(500_000) + 500_000 * number
        lists = pa.ListArray.from_arrays(np.arange(0, 1_000_001, 2, dtype=np.int32),
                                         draw.integers(0, 50_000, 1_000_000))
        table = pa.table({"request": ids // 5, "time": ids, "position": ids % 5, "list": lists,
                          "label": draw.integers(0, 2, 500_000), "weight": np.ones(500_000)})
        pq.write_table(table, folder / file, row_group_size=65_536)
        shards.append({"file": file})
    roles = {"time": "event time", "position": "position", "label": "label"}
    train = {"rows": rows, "labels": {}, "first_us": 0, "last_us": rows - 1, "shards": shards}
    none = {"rows": 0, "labels": {}, "first_us": None, "last_us": None, "shards": []}
    columns = [{"name": n, "role": roles.get(n, "context")} for n in table.column_names]
    return {"columns": columns, "splits": {"train": train, "valid": none, "test": none},
            "counts": {}}

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
small = write(folder / "first", 500_000)
measure(folder / "first", small)  # loads what Arrow loads on first use
manifest = write(folder / "all", rows)
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
measures = measure(folder / "all", manifest, spill_dir=folder)
assert measures.columns["time"]["train"]["different"] == rows
print(kib("VmHWM") - before)
"""


def grown(folder: Path, rows: int) -> float:
    """Return the MB that the report on so many rows adds to a process."""
    command = [sys.executable, "-c", REPORT, str(folder), str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def test_the_report_reads_batch_by_batch(tmp_path: Path) -> None:
    few, many = grown(tmp_path / "few", 500_000), grown(tmp_path / "many", 2_000_000)
    # Whole columns of two million rows would be 250 MB more than of half a million; how far the
    # reader runs ahead is its threads' luck.
    assert many < few + 130
