"""Trainer, bundle and command line give a row the same score, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import widedeep as wd
from tests.ads import write_ads
from widedeep.cli.run_training import make_trainer
from widedeep.config import load_config

SCORE_A_BUNDLE = """
import sys
sys.modules["torch"] = None  # importing it raises
import numpy as np
import widedeep as wd
np.save(sys.argv[3], wd.Bundle.load(sys.argv[1]).score(sys.argv[2]))
"""


def run(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def trainer_scores(config: Path, run_folder: Path, data: Path) -> NDArray[np.float64]:
    """Scores of the newest checkpoint, by the trainer."""
    schema = wd.Schema.load(run_folder / "schema.safetensors")
    trainer = make_trainer(schema, load_config(config), progress=False)
    newest = max((run_folder / "checkpoints").glob("step-*"))
    trainer.load_parameters(newest)
    found = trainer.predict(data)
    assert isinstance(found, np.ndarray)
    return found


def assert_all_agree(folder: Path, config: str, data: str) -> None:
    words = ("--set", "train.early_stopping=false")  # the bundle is of the newest checkpoint
    run("-m", "widedeep", "train", folder / config, "--out", folder / "run", *words)
    trainer = trainer_scores(folder / config, folder / "run", folder / data)
    bundle, parquet = folder / "run" / "bundle", folder / data
    run("-c", SCORE_A_BUNDLE, bundle, parquet, folder / "bundle.npy")
    run("-m", "widedeep", "score", bundle, parquet, "-o", folder / "table.parquet")
    lines = folder / "rows.jsonl"
    lines.write_text(json_lines(pq.read_table(parquet)))
    run("-m", "widedeep", "score", bundle, lines, "-o", folder / "lines.parquet", "--keep", "none")
    allowed = 1e-6 * np.maximum(1.0, np.abs(trainer))
    for name, scores in {
        "bundle": np.load(folder / "bundle.npy"),
        "table": pq.read_table(folder / "table.parquet")["score"].to_numpy(),
        "lines": pq.read_table(folder / "lines.parquet")["score"].to_numpy(),
    }.items():
        assert scores.shape == trainer.shape
        assert (np.abs(scores - trainer) <= allowed).all(), name
    assert np.ptp(trainer) > 0.1


def json_lines(table: pa.Table) -> str:
    return "".join(json.dumps(row) + "\n" for row in table.to_pylist())


def test_a_small_click_log(tmp_path: Path) -> None:
    write_ads(tmp_path)
    assert_all_agree(tmp_path, "ads.toml", "test.parquet")


@pytest.mark.slow
def test_every_test_row_of_adult(adult: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").symlink_to(adult / f"{name}.parquet")
    run("-m", "widedeep", "init", tmp_path / "train.parquet", "--label", "income",
        "-o", tmp_path / "census.toml")  # fmt: skip
    text = (tmp_path / "census.toml").read_text().replace("# crossed = [[", "crossed = [[")
    (tmp_path / "census.toml").write_text(text.replace("epochs = 10", "epochs = 3"))
    assert_all_agree(tmp_path, "census.toml", "test.parquet")
