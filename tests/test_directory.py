"""Directories that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from widedeep import files as directory
from widedeep.files import atomic_directory, write_text_whole


def test_a_failing_block_leaves_what_was_there(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as made:
        (made / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "d") as made:
        (made / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_directory_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr(directory, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "d") as made:
            (made / text).write_text(text)
    assert os.listdir(tmp_path / "d") == ["new"]
    assert os.listdir(tmp_path) == ["d"]


def test_two_directories_change_places_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert directory._exchange(tmp_path / "one", tmp_path / "other")
    assert os.listdir(tmp_path / "one") == ["other"]
    assert os.listdir(tmp_path / "other") == ["one"]


def test_a_rename_that_fails_halfway_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_directory(tmp_path / "d") as made:
        (made / "a").write_text("old")
    rename = os.rename

    def refuse_the_new(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(5, "no")
        rename(source, target)

    monkeypatch.setattr(directory, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", refuse_the_new)
    with pytest.raises(OSError, match="no"), atomic_directory(tmp_path / "d") as made:
        (made / "a").write_text("new")
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["d"]


def test_text_that_cannot_be_written_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run.json"
    write_text_whole(place, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text_whole(place, "after")
    assert place.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
