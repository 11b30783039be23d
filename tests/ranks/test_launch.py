"""Launching: no verb is done twice in silence, and ``--ranks`` starts what torchrun would."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from widedeep.cli.main import main, make_parser
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


def sleeping_ranks(monkeypatch: pytest.MonkeyPatch, refused: int = 2) -> list[Any]:
    """Let ranks do nothing for a minute, and the system refuse one of them."""
    started: list[Any] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        if len(started) == refused:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(["sleep", "60"], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def test_ranks_that_started_end_where_another_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    started = sleeping_ranks(monkeypatch, refused=1)
    with pytest.raises(OSError, match="Resource temporarily"):
        launch(2, ["train", "run.toml"])
    assert started[0].wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_launcher_ends_its_ranks(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup lets a run of the tests ignore SIGHUP
    started = sleeping_ranks(monkeypatch)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    assert launch(2, ["train", "run.toml"]) == 128 + number
    assert signal.signal(number, before) is signal.SIG_DFL
    assert [process.returncode for process in started] == [-number, -number]


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


def test_the_example_for_kubernetes_is_a_command_and_a_run_that_are_taken(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "many_machines.md"
    block = page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    settings, job = yaml.safe_load_all(block)
    path = tmp_path / "run.toml"
    path.write_text(settings["data"]["run.toml"])
    config, trainer = load_config(path), job["spec"]["trainer"]
    assert config.distributed.lanes >= trainer["numNodes"]
    launcher, words = trainer["command"][:3], trainer["command"][3:]
    assert launcher == ["torchrun", "-m", "widedeep"]
    arguments = make_parser(words).parse_args(words)
    assert (arguments.config, arguments.resume) == ("/config/run.toml", True)
