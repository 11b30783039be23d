"""Files are read once by the steps within one block, and again as soon as they change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.cli.main import main
from widedeep.data import csv_input
from widedeep.data.sources import open_source

SPEC = wd.FeatureSpec(label="y", features=[*wd.numeric("n"), *wd.categorical("c", "k")])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the CSV files that were read, in turn."""
    names: list[str] = []
    spooled = csv_input._spooled

    def counted(path: Path, *others: Any) -> Any:
        names.append(path.name)
        return spooled(path, *others)

    monkeypatch.setattr(csv_input, "_spooled", counted)
    return names


def write(folder: Path, rows: int = 40, name: str = "t.csv") -> Path:
    lines = [f"{i % 2},{i / 8},{'ab'[i % 2]},{i % 3}\n" for i in range(rows)]
    path = folder / name
    path.write_text("y,n,c,k\n" + "".join(lines))
    os.utime(path, (1e9, 1e9))
    return path


def fit_and_train(path: Path) -> Any:
    model = wd.WideDeep(wd.fit_schema(SPEC, path), hidden_units=[4], seed=1)
    trainer = wd.Trainer(model, batch_size=8, progress=False, seed=1)
    trainer.fit(path)
    return trainer.predict(path).tolist()


def test_a_schema_and_training_read_a_file_once(tmp_path: Path, opened: list[str]) -> None:
    path = write(tmp_path)
    expected = fit_and_train(path)
    assert opened == ["t.csv"] * 3
    opened.clear()
    with wd.reuse_inputs():
        assert fit_and_train(path) == expected
        assert opened == ["t.csv"]
        with (
            wd.reuse_inputs(),
            open_source(path, columns=["c"], column_types={"c": "category"}) as source,
        ):
            assert source.num_rows == 40
    assert opened == ["t.csv"]


def test_what_is_read_otherwise_is_read_again(tmp_path: Path, opened: list[str]) -> None:
    path = write(tmp_path)
    with wd.reuse_inputs():
        for kinds in ({}, {"k": pa.int64()}, {"k": pa.string()}, {"k": pa.float64()}):
            with open_source(path, columns=["k"], column_types=kinds) as source:
                assert source.arrow_schema.field("k").type == kinds.get("k", pa.int64())
        assert len(opened) == 3  # as int64 it was read before
        open_source(path).close()
        assert len(opened) == 4
        open_source([path, write(tmp_path, name="u.csv")]).close()
        assert len(opened) == 6


def test_a_file_that_changed_is_read_again(tmp_path: Path, opened: list[str]) -> None:
    path = write(tmp_path)
    with wd.reuse_inputs():
        for rows in (40, 30):
            with open_source(write(tmp_path, rows)) as source:
                assert source.num_rows == rows
        path.touch()  # just now: its time might not show another change
        open_source(path).close()
        open_source(path).close()
    assert len(opened) == 4


def test_temporary_files_go_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write(tmp_path)
    with wd.reuse_inputs():
        open_source(path).close()
        assert len(list(tmp_path.rglob("*.arrows"))) == 1
    assert not list(tmp_path.rglob("*.arrows"))


def test_the_verbs_read_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    write(tmp_path, 400, "train.csv")
    write(tmp_path, 80, "valid.csv")
    (tmp_path / "run.toml").write_text(
        '[data]\ntrain = "train.csv"\nvalid = "valid.csv"\nlabel = "y"\n'
        '[features]\nnumeric = ["n"]\ncategorical = ["c"]\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "run.toml"]) == 0
    assert opened == ["train.csv"]
    opened.clear()
    assert main(["train", "run.toml"]) == 0
    assert sorted(opened) == ["train.csv", "valid.csv"]
