"""The example on Online Retail, run on a generated log of the same shape."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "online_retail" / "run.py"


def write_lines(path: Path, lines: int = 6_000) -> None:
    """Customers who keep to their own shelf; some returns, unknown customers and free items."""
    draw = np.random.default_rng(0)
    start = datetime.datetime(2010, 12, 1, 8, 0)
    customer = draw.integers(0, 60, lines)
    shelf = 12 * (customer % 10)
    item = shelf + (12 * draw.random(lines) ** 2).astype(int)
    minutes = np.sort(draw.integers(0, 370 * 24 * 60, lines))
    rows = pa.table(
        {
            "Description": pa.array([None if i % 97 == 0 else f" ITEM {n} " for i, n in
                                     enumerate(item)]),
            "Quantity": pa.array(np.where(draw.random(lines) < 0.03, -1, 6).astype(np.int32)),
            "InvoiceDate": pa.array(
                [start + datetime.timedelta(minutes=int(m)) for m in minutes], pa.timestamp("ns")
            ),
            "UnitPrice": np.where(draw.random(lines) < 0.01, 0.0, 1.0 + item % 7),
            "CustomerID": pa.array(
                np.where(draw.random(lines) < 0.2, np.nan, 12_000.0 + customer), from_pandas=True
            ),
            "Country": np.where(customer % 9 == 0, "France", "United Kingdom"),
        }
    )  # fmt: skip
    pq.write_table(rows, path)


def run_example(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "ONLINE_RETAIL"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**inherited, **environment},
    )


def test_without_the_file_it_says_how_to_get_it(tmp_path: Path) -> None:
    for words in ([], [tmp_path / "no.parquet"]):
        done = run_example(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "https://archive.ics.uci.edu/dataset/352/online+retail" in done.stderr
        assert "ONLINE_RETAIL=" in done.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retail")
    write_lines(folder / "lines.parquet")
    done = run_example(
        "--out", folder / "out", "--epochs", "2", "--threads", "1",
        ONLINE_RETAIL=str(folder / "lines.parquet"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a request must bring: last_items" in done.stdout
    return folder / "out"


def test_it_learns_whose_shelf_is_whose(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["auc"] > 0.85
    assert metrics["gauc"] > 0.85
    assert 0.8 < metrics["calibrated calibration"] < 1.25
    assert metrics["calibrated log_loss"] < 0.4


def test_its_examples_are_what_the_task_says(out: Path) -> None:
    manifest = json.loads((out / "examples" / "manifest.json").read_text())
    rows = {name: split["rows"] for name, split in manifest["splits"].items()}
    total = sum(rows.values())
    assert rows["valid"] / total == pytest.approx(0.1, abs=0.01)
    assert rows["test"] / total == pytest.approx(0.1, abs=0.01)
    for name in rows:
        split = manifest["splits"][name]
        negatives = split["rows"] - split["labels"]["label"]
        assert 3.8 < negatives / split["labels"]["label"] <= 4
    assert manifest["splits"]["train"]["last_us"] < manifest["splits"]["valid"]["first_us"]
    table = pq.read_table(out / "examples" / "train").to_pylist()
    assert not any(row["item"] != row["item"].strip() for row in table)
    # The first line of all has no history of any kind.
    first = min(table, key=lambda row: row["time"])
    assert (first["last_items"], first["pair_times"], first["price"]) == ([], 0, None)


def test_the_bundle_scores_a_request(out: Path) -> None:
    bundle = wd.Bundle.load(out / "bundle")
    table = pq.read_table(out / "examples" / "test").to_pylist()[:5]
    names = set(bundle.schema.spec.columns())
    rows = [{key: value for key, value in row.items() if key in names} for row in table]
    assert set(bundle.history) < names
    assert bundle.score(rows, strict=True).tolist() == bundle.score(table).tolist()
