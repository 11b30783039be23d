"""The external sort: order, stability, bounded memory, and what happens when the disk is full."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widedeep.errors import DataError
from widedeep.metrics.accumulate import SortedRows
from widedeep.metrics.rows import GROUPED_ROW


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.sampled_from([-1.5, 0.0, 2.0])), max_size=120),
    st.integers(1, 40),
    st.integers(1, 50),
    st.lists(st.integers(1, 30), max_size=5),
)
def test_rows_come_back_in_stable_order_in_blocks_of_one_size(
    pairs: list[tuple[int, float]], bound: int, block: int, cuts: list[int]
) -> None:
    rows = np.zeros(len(pairs), dtype=GROUPED_ROW)
    rows["group"] = [group for group, _ in pairs]
    rows["key"] = [key for _, key in pairs]
    rows["label"] = np.arange(len(pairs))
    spill = SortedRows(GROUPED_ROW, ("group", "key"), bound)
    start = 0
    for cut in cuts:
        spill.append(rows[start : start + cut])
        start += cut
    spill.append(rows[start:])
    assert spill.spilled_runs == len(rows) // bound
    expected = rows[np.lexsort((rows["key"], rows["group"]))]
    for _ in range(2):
        blocks = list(spill.blocks(block))
        assert all(len(piece) == block for piece in blocks[:-1])
        got = np.concatenate([*blocks, rows[:0]])
        assert got.tolist() == expected.tolist()


def test_sorted_input_and_one_key_alone_merge_too() -> None:
    rows = np.zeros(5000, dtype=GROUPED_ROW)
    rows["label"] = np.arange(5000)
    for keys in (np.arange(5000), -np.arange(5000), np.zeros(5000)):
        rows["key"] = keys
        spill = SortedRows(GROUPED_ROW, ("key",), 64)
        spill.append(rows)
        got = np.concatenate(list(spill.blocks(1000)))
        assert np.array_equal(got["label"], np.argsort(keys, kind="stable"))


def test_nothing_is_left_in_the_directory(tmp_path: Path) -> None:
    spill = SortedRows(GROUPED_ROW, ("key",), 10, tmp_path)
    spill.append(np.zeros(95, dtype=GROUPED_ROW))
    assert spill.spilled_runs == 9
    del spill
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_the_directory(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the system refuses the write just so."""
    script = f"""
        import resource, signal
        import numpy as np
        from widedeep.errors import DataError
        from widedeep.metrics import BinaryMetrics
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        place = {str(tmp_path)!r}
        metrics = BinaryMetrics(names=["auc"], max_rows_in_memory=500, spill_directory=place)
        try:
            for _ in range(10):
                metrics.update(np.arange(300.0), np.zeros(300))
        except DataError as error:
            print(error)
    """
    shown = run_python(script)
    assert f"spill_directory {str(tmp_path)!r}: File too large after" in shown
    assert "choose another spill_directory" in shown


@pytest.mark.slow
def test_memory_stays_flat_from_one_to_four_million_rows(tmp_path: Path) -> None:
    """Peak anonymous memory of an evaluation in runs of 200,000 rows, in a process of its own."""
    script = f"""
        import sys
        import numpy as np
        from widedeep.metrics import BinaryMetrics
        place = {str(tmp_path)!r}
        metrics = BinaryMetrics(groups=True, max_rows_in_memory=200_000, spill_directory=place)
        for part in range(int(sys.argv[1])):
            random = np.random.default_rng(part)
            logits = random.normal(size=50_000).astype(np.float32)
            labels = random.random(50_000) < 1 / (1 + np.exp(-logits))
            metrics.update(logits, labels, None, random.integers(0, 100_000, 50_000))
        got = metrics.compute()
        assert abs(got["auc"] - 0.7395) < 0.003, got
        assert got["rows"] == int(sys.argv[1]) * 50_000
        lines = open("/proc/self/status").read().splitlines()
        print([int(line.split()[1]) for line in lines if line.startswith("VmHWM")][0])
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    small, large = (int(run_python(script, parts)) for parts in ("20", "80"))
    assert large < small * 1.1 + 4096, (small, large)


def test_a_truncated_temporary_file_is_an_error() -> None:
    spill = SortedRows(GROUPED_ROW, ("key",), 10)
    spill.append(np.zeros(40, dtype=GROUPED_ROW))
    assert spill._file is not None
    spill._file.truncate(100)
    with pytest.raises(DataError, match="bytes early"):
        list(spill.blocks())


def run_python(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
