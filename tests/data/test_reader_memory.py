"""Reading and counting hold a bounded number of rows, measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

PEAK = """
import threading, time

def anonymous_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

class Peak(threading.Thread):
    def __enter__(self):
        self.kib, self.running = 0, True
        self.start()
        return self

    def run(self):
        while self.running:
            self.kib = max(self.kib, anonymous_kib())
            time.sleep(0.002)

    def __exit__(self, *_):
        self.running = False
        self.join()
"""

READ = """
import sys
import numpy as np
from widedeep.data.batch import Batch
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source

def encode(table):
    dense = np.repeat(np.asarray(table["x"], np.float32)[:, None], 64, axis=1)
    return Batch(ids_N=np.zeros(0, np.int64), offsets_BF=np.zeros(1, np.int64), dense_BK=dense)

with Peak() as peak, open_source(sys.argv[1]) as source:
    plan = EpochPlan(source, batch_size=512, seed=0, epoch=0, pool_rows=20_000)
    total = sum(float(batch.dense_BK.sum()) for batch in BatchReader(source, encode, plan))
print(peak.kib, total)
"""

COUNT = """
import sys
import numpy as np
from widedeep.data.counting import ValueCounter

limit, n = int(sys.argv[1]), 600_000
with ValueCounter("int64") as first:  # loads what Arrow loads on first use
    first.add(np.arange(10))
    first.result(max_size=3)
before = anonymous_kib()
with Peak() as peak, ValueCounter("int64", memory_limit_bytes=limit) as counter:
    for start in range(0, 2 * n, 50_000):
        counter.add(np.arange(start, start + 50_000) * 7 % n)
    values, counts = counter.result(max_size=1000)
assert counter.distinct == n and values.tolist() == list(range(1000)) and set(counts) == {2}
print(peak.kib - before, 0)
"""


def run_in_process(script: str, argument: object) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", PEAK + script, str(argument)],
        check=True,
        capture_output=True,
        text=True,
    )
    mebibytes, total = done.stdout.split()
    return int(mebibytes) / 1024, float(total)


def test_reading_eight_times_the_rows_takes_the_same_memory(tmp_path: Path) -> None:
    peaks = []
    for n_groups in (10, 80):
        path = tmp_path / f"{n_groups}.parquet"
        group = pa.table({"x": np.ones(10_000, np.float32)})
        with pq.ParquetWriter(path, group.schema) as writer:
            for _ in range(n_groups):
                writer.write_table(group)
        peak, total = run_in_process(READ, path)
        assert total == n_groups * 10_000 * 64
        peaks.append(peak)
    # A pool is 5 MiB. All rows encoded would be 24 MiB and 195 MiB.
    assert abs(peaks[1] - peaks[0]) < 15


@pytest.mark.slow
def test_counting_stays_near_its_limit() -> None:
    grown_bounded, _ = run_in_process(COUNT, 2 << 20)
    grown_free, _ = run_in_process(COUNT, 1 << 30)
    # 600,000 integers take 32 bytes each and 16 in the hash table at most.
    assert grown_bounded < 14
    assert grown_free > 25
