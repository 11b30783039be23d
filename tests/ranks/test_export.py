"""Bundles that several ranks write together: the bytes of one process's."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ranks.test_state import learn, make_state
from tests.ranks.test_step import LANES, make_rows
from tests.ranks.threads import run_threads
from widedeep.bundle import Bundle
from widedeep.errors import BundleError
from widedeep.files import TensorFiles
from widedeep.kernels.packed_rows import TableKind
from widedeep.ranks.ranks import Ranks
from widedeep.training.evaluation import Evaluator
from widedeep.training.export import export_bundle

ROWS = make_rows(40, 77)


def export(
    ranks: Ranks,
    path: Path,
    part_bytes: int | None = None,
    *,
    diverged: bool = False,
    tables: TableKind = "fp32",
) -> Bundle:
    state = make_state(ranks)
    learn(state, 0, 3)
    if diverged and ranks.rank == 1:
        state.model.tables["wide"].named_weights()["job_x_city"][7] = np.nan
    # As in a run: the first rank alone has read the rows that are kept.
    state.warmup.rows = [dict(row) for row in ROWS[:4]] if ranks.is_first else []
    return export_bundle(
        state,
        Evaluator(state.model, exchange=state.step.exchange),
        path,
        metrics={"auc": 0.5},
        warmup=True,
        calibration=None,
        calibrate_on=None,
        negative_rate=0.5,
        posterior=ROWS,
        items=None,
        overwrite=False,
        part_bytes=part_bytes,
        tables=tables,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Ranks(lanes=LANES), tmp_path_factory.mktemp("alone") / "bundle").path


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_write_the_bytes_of_one_process(tmp_path: Path, alone: Path, size: int) -> None:
    path = tmp_path / "bundle"
    bundles = run_threads(size, lambda ranks: export(ranks, path), lanes=LANES)
    assert sorted(os.listdir(path)) == sorted(os.listdir(alone))
    for file in alone.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes(), file.name
    assert os.listdir(tmp_path) == ["bundle"]
    assert np.array_equal(bundles[-1].score(ROWS), Bundle.load(alone).score(ROWS))


def test_ranks_round_tables_as_one_process(tmp_path: Path) -> None:
    alone = export(Ranks(lanes=LANES), tmp_path / "alone", tables="int4").path
    path = tmp_path / "bundle"
    run_threads(2, lambda ranks: export(ranks, path, tables="int4"), lanes=LANES)
    for file in alone.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes(), file.name
    assert sorted(os.listdir(tmp_path)) == ["alone", "bundle"]


def test_a_table_that_diverged_on_one_rank_is_told_to_all(tmp_path: Path) -> None:
    errors = run_threads(
        3, lambda ranks: export(ranks, tmp_path / "bundle", diverged=True), lanes=LANES
    )
    assert all(isinstance(error, BundleError) for error in errors)
    assert all("'wide/job_x_city' (row " in str(error) for error in errors)
    assert str(errors[0]).startswith("rank 1 of 3")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("full", [0, 2])
def test_a_full_disk_on_one_rank_leaves_nothing(
    tmp_path: Path, full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TensorFiles.write

    def fill(files: TensorFiles, name: str, rows: NDArray[Any], first: int = 0) -> None:
        if name == "wide/job_x_city" and (first == 0) == (full == 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(files, name, rows, first)

    monkeypatch.setattr(TensorFiles, "write", fill)
    errors = run_threads(3, lambda ranks: export(ranks, tmp_path / "bundle"), lanes=LANES)
    assert all(isinstance(error, BundleError) for error in errors)
    assert all("No space left on device" in str(error) for error in errors)
    assert os.listdir(tmp_path) == []
