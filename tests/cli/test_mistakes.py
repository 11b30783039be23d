"""Mistakes at the command line that would go on without a word."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.command_line import Run
from widedeep.files import held_folder


@pytest.mark.parametrize("out", [".", "taken"])
def test_a_folder_in_the_place_of_an_output_file(
    run: Run, ads_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    for verb in ("report", "validate"):
        code, _, err = run(verb, ads_run / "run", "-o", out)
        assert (code, "is a folder, expected the name of a file" in err) == (2, True), err


def test_a_logit_beside_a_row_that_is_explained(run: Run, ads_run: Path) -> None:
    code, _, err = run("inspect", ads_run / "run", "--row", "{}", "--logit", "1")
    assert (code, "--row and --logit" in err) == (2, True)


def test_going_on_from_another_model(run: Run, ads: Path) -> None:
    short = ("train", "ads.toml", "--set", "train.epochs=1")
    for out in ("first", "other"):
        assert run(*short, "--out", out).code == 0
    assert run(*short, "--out", "warm", "--warm-start", "first").code == 0
    words = ("train", "ads.toml", "--set", "train.epochs=2", "--resume", "--out")
    assert run(*words, "warm", "--warm-start", "first").code == 0
    code, _, err = run(*words, "warm", "--warm-start", "other")
    assert code == 2
    assert "this run began from" in err
    code, _, err = run(*words, "first", "--warm-start", "other")
    assert code == 2
    assert "this run began without one" in err


def test_a_rollback_passes_over_folders_that_are_no_bundles(
    run: Run, ads_run: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    for version in ("1", "2"):
        shutil.copytree(ads_run / "run" / "bundle", root / version)
    (root / "3").mkdir()  # half of a copy
    assert "version 1 is requested" in run("rollback", root).out
    code, _, err = run("rollback", ads_run / "run")
    assert code == 1
    assert "no version before 'bundle'" in err
    (tmp_path / "none").mkdir()
    code, _, err = run("rollback", tmp_path / "none")
    assert code == 1
    assert "holds no version that serves" in err


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_verb_that_is_ended_leaves_no_temporary_file(
    run: Run,
    ads_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    in_background: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, number)}
    signal.signal(number, signal.SIG_DFL)  # nohup lets a run of the tests ignore SIGHUP
    if in_background:  # of a script, where Ctrl-C is ignored
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    feather.write_feather(pq.read_table(ads_run / "test.parquet"), "rows.feather")

    def end(*_: Any) -> Any:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not taken")

    monkeypatch.setattr("widedeep.cli.score.column_stream", end)
    code, _, err = run("score", ads_run / "run", "rows.feather", "-o", "scores.parquet")
    after = signal.getsignal(number)
    for each, handler in before.items():
        signal.signal(each, handler)
    assert (code, err) == (130, "widedeep: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.feather"]
    assert after is signal.SIG_DFL


def test_two_processes_in_one_folder(run: Run, ads: Path) -> None:
    short = ("--set", "train.epochs=1")
    assert run("train", "ads.toml", "--out", "run", *short).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    Path("study").mkdir()
    with held_folder("run"), held_folder("study"):
        code, _, err = run("train", "ads.toml", "--out", "run", "--force", *short)
        assert (code, "run: another process writes into it" in err) == (2, True), err
        code, _, err = run("tune", "ads.toml", "--out", "study", "--trials", "1", *short)
        assert (code, "study: another process writes into it" in err) == (2, True), err
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before
    assert run("train", "ads.toml", "--out", "run", "--force", *short).code == 0


def test_a_variable_of_the_environment_that_resembles_ours(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDEDEEP_PORT", "tcp://10.0.0.1:80")  # as Kubernetes sets for a service
    assert "WIDEDEEP" not in run("inspect", "nowhere").err
    monkeypatch.setenv("WIDEDEEP_KERNEL", "reference")
    assert "did you mean WIDEDEEP_KERNELS?" in run("inspect", "nowhere").err


def test_columns_of_rankings_without_propensities(run: Run, ads_run: Path) -> None:
    words = ("evaluate", ads_run / "run")
    assert "have no effect" not in run(*words).out
    assert "--position and --request have no effect" in run(*words, "--position", "place").out
