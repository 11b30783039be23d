"""Checkpoints of several ranks: each writes its own rows, any number reads them."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ranks.threads import run_threads
from tests.training.test_checkpoint import make
from widedeep.errors import CheckpointError, DataError
from widedeep.ranks import shared
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import shared_failures
from widedeep.training import checkpoint as checkpoint_module
from widedeep.training.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    read_checkpoint,
    write_checkpoint,
)

SIZE = 5000
NAME = "deep/8/city.weight"


def whole() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((SIZE, 2), np.float32)


def part(ranks: Ranks, step: int = 3) -> Checkpoint:
    ids = Layout("city", SIZE, ranks.size).ids_of(ranks.rank)
    tensors = {NAME: whole()[ids] + np.float32(step - 3), "module/bias": np.arange(3.0)}
    return Checkpoint(
        step=step,
        state=make().state,
        tensors=tensors,
        schema=make().schema,
        ranks=ranks,
        tables={NAME: ("city", SIZE)},
    )


def write(path: Path, world: int) -> list[Any]:
    return run_threads(world, lambda ranks: write_checkpoint(path, part(ranks)))


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_reads_what_others_wrote(tmp_path: Path, world: int) -> None:
    assert write(tmp_path / "c", world) == [None] * world
    names = sorted(os.listdir(tmp_path / "c"))
    parts = [f"tensors-{i + 1:05}-of-{world:05}.safetensors" for i in range(world)]
    assert names == ["schema.safetensors", "state.json", *parts]
    assert json.loads((tmp_path / "c/state.json").read_text())["format"] == 2
    for readers in (1, 2, 5):
        for read in run_threads(readers, lambda r: read_checkpoint(tmp_path / "c", ranks=r)):
            assert np.array_equal(np.asarray(read.tensors[NAME]), whole())
            assert read.tensors["module/bias"].tolist() == [0, 1, 2]
            assert (read.step, read.schema) == (3, make().schema)
    assert os.listdir(tmp_path) == ["c"]


def test_a_lone_process_writes_the_old_format(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", part(Ranks()))
    assert json.loads((tmp_path / "c/state.json").read_text())["format"] == 1
    assert np.array_equal(read_checkpoint(tmp_path / "c").tensors[NAME], whole())


@pytest.mark.parametrize("readers", [1, 2, 5])
@pytest.mark.parametrize("number", [1, 3])
def test_a_flipped_byte_in_any_file_is_told_to_all(
    tmp_path: Path, number: int, readers: int
) -> None:
    write(tmp_path / "c", 3)
    file = tmp_path / f"c/tensors-{number:05}-of-00003.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    errors = run_threads(readers, lambda r: read_checkpoint(tmp_path / "c", ranks=r))
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert all(f"{file.name}: its checksum is wrong" in str(error) for error in errors)
    file.unlink()
    errors = run_threads(readers, lambda r: read_checkpoint(tmp_path / "c", ranks=r))
    assert all(f"{file.name} is not there" in str(error) for error in errors)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_a_full_disk_on_one_rank_leaves_the_checkpoint_before(
    tmp_path: Path, full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "c", 3)
    write_tensors = checkpoint_module.write_tensors

    def fill(path: Path, tensors: Any) -> None:
        if path.name.startswith(f"tensors-{full + 1:05}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint_module, "write_tensors", fill)
    errors = run_threads(3, lambda ranks: write_checkpoint(tmp_path / "c", part(ranks, step=4)))
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert all("cannot write the checkpoint" in str(error) for error in errors)
    assert all("No space left on device" in str(error) for error in errors)
    assert f"rank {full} of 3" in str(errors[(full + 1) % 3])
    assert os.listdir(tmp_path) == ["c"]
    assert np.array_equal(np.asarray(read_checkpoint(tmp_path / "c").tensors[NAME]), whole())


def test_the_first_rank_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    def save(ranks: Ranks) -> list[Path]:
        directory = CheckpointDirectory(tmp_path, keep_last=2)
        return [directory.save(part(ranks, step=n), best=n == 1) for n in (1, 2, 3, 4)]

    assert run_threads(3, save)[2][3] == tmp_path / "step-0000000004"
    directory = CheckpointDirectory(tmp_path)
    assert directory.steps() == [1, 3, 4]
    assert directory.best() == tmp_path / "step-0000000001"


def test_all_wait_for_the_slowest_and_hear_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_PULSE_SECONDS", 0.02)

    through = threading.Event()

    def work(ranks: Ranks) -> None:
        with shared_failures(ranks):
            if ranks.rank == 1:
                time.sleep(0.2)
                through.set()
        with shared_failures(ranks):
            if ranks.rank == 2:
                raise DataError(f"column 'a' ({through.is_set()})")

    errors = run_threads(3, work)
    assert all(isinstance(error, DataError) for error in errors)
    assert str(errors[2]) == "column 'a' (True)"
    assert str(errors[0]).startswith("rank 2 of 3 (") and "column 'a'" in str(errors[0])
