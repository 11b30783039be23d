import json
import os
from pathlib import Path

import numpy as np
import pytest

from widedeep.errors import CheckpointError
from widedeep.features import FeatureSpec, numeric
from widedeep.schema import ColumnType, NumericFit, Schema
from widedeep.training.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    read_checkpoint,
    write_checkpoint,
)


def make(step: int = 3) -> Checkpoint:
    zero = np.zeros(1)
    fit = NumericFit(
        boundaries=(),
        shift=zero,
        scale=zero + 1,
        fill=np.zeros(1, np.float32),
        minimum=zero,
        maximum=zero,
        mean=zero,
    )
    schema = Schema(
        spec=FeatureSpec(label="y", features=numeric("x", transform="none")),
        columns={"x": ColumnType(kind="float"), "y": ColumnType(kind="int")},
        vocabularies={},
        boundaries={},
        numerics={"x": fit},
    )
    tensors = {"wide/x.weight": np.arange(6, dtype=np.float32).reshape(3, 2)}
    return Checkpoint(step=step, state={"position": {"step": step}}, tensors=tensors, schema=schema)


def test_round_trip(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", make())
    read = read_checkpoint(tmp_path / "c")
    assert read.step == 3
    assert read.state == {"position": {"step": 3}}
    assert read.schema == make().schema
    np.testing.assert_array_equal(read.tensors["wide/x.weight"], make().tensors["wide/x.weight"])


@pytest.mark.parametrize("name", ["tensors.safetensors", "schema.safetensors"])
def test_a_flipped_byte_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "c", make())
    raw = bytearray((tmp_path / "c" / name).read_bytes())
    raw[-1] ^= 1
    (tmp_path / "c" / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{name}: its checksum is wrong"):
        read_checkpoint(tmp_path / "c")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got no checkpoint"):
        read_checkpoint(tmp_path / "nothing")
    write_checkpoint(tmp_path / "c", make())
    (tmp_path / "c" / "tensors.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors is not there"):
        read_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path / "c")


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", make())
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    (tmp_path / "c" / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="got checkpoint format 99, expected 1"):
        read_checkpoint(tmp_path / "c")


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path / "run", keep_last=2)
    for step in range(1, 6):
        directory.save(make(step), best=step == 2)
    assert directory.steps() == [2, 4, 5]
    assert directory.latest() == directory.path_of(5)
    assert directory.best() == directory.path_of(2)


def test_leftovers_of_a_killed_writer_are_not_checkpoints(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path / "run")
    directory.save(make(1))
    leftover = tmp_path / "run" / ".step-0000000002.abc.tmp"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    assert directory.latest() == directory.path_of(1)
    directory.save(make(3))
    assert not leftover.exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = CheckpointDirectory(tmp_path / "run")
    directory.save(make(1))

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        directory.save(make(2))
    monkeypatch.undo()
    assert directory.steps() == [1]
    assert read_checkpoint(directory.path_of(1)).step == 1
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["step-0000000001"]


def test_a_best_mark_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = CheckpointDirectory(tmp_path / "run")
    directory.save(make(1), best=True)

    def full(path: object, text: str) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("widedeep.training.checkpoint.write_text_whole", full)
    with pytest.raises(CheckpointError, match=r"best\.json: .*No space left.* step 2 is there"):
        directory.save(make(2), best=True)
    assert directory.best() == directory.path_of(1)
    assert directory.steps() == [1, 2]
