"""Launching: no verb is done twice in silence, and ``--ranks`` starts what torchrun would."""

from __future__ import annotations

from pathlib import Path

import pytest

from widedeep.cli.main import main
from widedeep.cli.parser import without_option
from widedeep.config import load_config
from widedeep.errors import ConfigError
from widedeep.ranks.launch import launch, launched_rank, launched_size


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_the_launcher_says_which_rank_this_is(
    second_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (launched_rank(), launched_size()) == (1, 2)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE: got 'two', expected the number of ranks"):
        launched_size()


def test_a_verb_of_one_process_is_refused(
    second_of_two: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "run", "rows.parquet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("widedeep: rank 1: error: got 'widedeep score' on 2 ranks, each of")


def test_ranks_do_not_launch_ranks(second_of_two: None) -> None:
    with pytest.raises(ConfigError, match="got --ranks 2 in a process that torchrun launched"):
        launch(2, ["train", "run.toml"])


def test_the_words_of_a_rank_are_those_of_the_command() -> None:
    words = ["train", "--ranks", "2", "run.toml", "--set", "train.epochs=3", "--ranks=4"]
    assert without_option(words, "--ranks") == ["train", "run.toml", "--set", "train.epochs=3"]


def test_the_first_exit_code_is_that_of_the_launch(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(2, ["score", "run", "rows.parquet"]) == 2
    lines = sorted(capfd.readouterr().err.splitlines())
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == ["error", "rank 1"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [(["--set", "train.epochs=many"], "got epochs = 'many'"), ([], "got lanes = 1 with 2 ranks")],
)
def test_a_mistake_is_told_once_before_ranks_start(
    words: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("widedeep.cli.train.launch", lambda size, words: pytest.fail("launched"))
    path = tmp_path / "run.toml"
    path.write_text('[data]\ntrain = "x.csv"\nlabel = "y"\n[features]\nnumeric = ["x"]\n')
    assert main(["train", str(path), "--ranks", "2", *words]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("error:") == 1 and "rank 0" not in error


def test_the_section_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nlabel = "y"\n[features]\nnumeric = ["x"]\n')
    assert "distributed" not in load_config(path).to_table()
    config = load_config(path, ["distributed.lanes=6"])
    assert config.distributed.lanes == 6
    assert config.to_table()["distributed"]["lanes"] == 6
    with pytest.raises(ConfigError, match="unknown key 'lane'; did you mean 'lanes'"):
        load_config(path, ["distributed.lane=6"])
