"""Every step says the next one: the chain runs as it is printed."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.ads import write_ads
from tests.command_line import Ran, Run
from widedeep.config import load_config

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="one step is a curl command")
TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
WHOLE = ["check", "train", "evaluate", "export", "validate", "publish", "serve", "report"]


def next_words(text: str) -> list[str]:
    """The words of the line that says what comes next, as a shell reads them."""
    lines = [line for line in text.splitlines() if line.startswith("next: ")]
    assert len(lines) == 1, text
    return shlex.split(lines[0].removeprefix("next: "), comments=True)


def walk(run: Run, *words: object) -> tuple[list[str], dict[str, Ran]]:
    """Run a command and what each says is next, to the end; return what the verbs said."""
    command, said = [str(word) for word in words], {}
    while True:
        verb = command[0]
        assert verb not in said
        said[verb] = served(*command) if verb == "serve" else run(*command)
        assert said[verb].code == 0, said[verb]
        if verb == "report":
            return list(said), said
        program, *command = next_words(said[verb].out)
        assert program == "widedeep"


def served(*words: str) -> Ran:
    """Serve on a free port, send the request that is printed, and end: what is said then."""
    command = [sys.executable, "-m", "widedeep", *words, "--http", ":0", "--log-requests", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if line.startswith("next: "))
            request = next_words(line)
            answer = subprocess.run(request, capture_output=True, text=True, timeout=60)
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        code = process.wait(30)
    assert answer.returncode == 0, answer
    ranking = json.loads(answer.stdout)
    assert len(ranking["items"]) == len(ranking["scores"]) == 2, ranking
    assert "absent" not in ranking, "a row of the training data brings every column"
    return Ran(code, rest, answer.stdout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "a shop"  # a space is quoted in what is printed
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def test_from_the_logs_of_the_store(run: Run, folder: Path) -> None:
    store = ("--days", 2, "--users", 400, "--apps", 90, "--requests", 1300, "--policy", "oracle")
    verbs, said = walk(run, "simulate", "my store", *store)
    assert verbs == ["simulate", "join", "init", *WHOLE]
    config = load_config("run.toml")
    assert config.spec.group == "request_id"
    assert "app_rating" in config.spec.item
    columns = {"request_id", "event_time", "policy", "arm", "item_id"}
    assert not columns & set(config.spec.columns())
    # The newest rows are of an evening: that is told, and stops no model.
    assert "feature 'hour' has moved since training" in said["validate"].out
    assert "it may serve" in said["validate"].out


@pytest.mark.slow
def test_the_tutorial_shows_what_is_printed(run: Run, folder: Path, adult: Path) -> None:
    for name in ("train", "valid", "test"):
        pq.write_table(pq.read_table(adult / f"{name}.parquet").slice(0, 4000), f"{name}.parquet")
    text = TUTORIAL.read_text(encoding="utf-8")
    block = text.split("## The same from the command line")[1].split("```sh\n")[1].split("```")[0]
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    verbs, said = walk(run, *commands[0])
    assert verbs == ["init", *WHOLE]
    for command, verb in zip(commands[1:], verbs, strict=False):
        assert next_words(said[verb].out)[1:] == command
    assert f"the test data of runs/people ({folder / 'test.parquet'})" in said["evaluate"].out
    assert "note: judged on the test data of" in said["validate"].out
    assert "4,000" in said["report"].out


def test_from_a_table_alone(run: Run, folder: Path, adult: Path) -> None:
    pq.write_table(pq.read_table(adult / "train.parquet").slice(0, 12_000), "people.parquet")
    verbs, said = walk(run, "init", "people.parquet", "--label", "income")
    assert verbs == ["init", *WHOLE]
    told = "note: measured on the validation data of runs/run ("
    assert told in said["evaluate"].out
    assert "people.parquet (0.1 of the rows)), which names no test data" in said["evaluate"].out
    assert said["evaluate"].out.split()[:2] == ["metric", "valid"]
    assert "note: judged on the validation data of runs/run" in said["validate"].out
    # Once more, where all of it is there already: every step names what is free.
    changes = ("--set", "model.seed=1", "--set", "train.epochs=1")
    words = next_words(run("check", "run.toml", *changes).out)
    assert words == ["widedeep", "train", "run.toml", *changes, "--out", "runs/run-2"]
    words = next_words(run(*words[1:]).out)
    assert words == ["widedeep", "evaluate", "runs/run-2"]
    words = next_words(run(*words[1:]).out)
    assert words == ["widedeep", "export", "runs/run-2", "-o", "bundles/run-2"]
    words = next_words(run(*words[1:]).out)
    judge = ["widedeep", "validate", "bundles/run-2", "--against", "models"]
    assert words == [*judge, "--data", "runs/run-2"]


def test_a_no_of_the_gate_says_where_to_look(run: Run, folder: Path, ads_run: Path) -> None:
    ran = run("validate", ads_run / "run", "-o", "no.json")
    assert ran.code == 1
    assert "too little data to judge by" in ran.out
    assert next_words(ran.out) == ["widedeep", "report", str(ads_run / "run")]


def test_evaluate_on_the_rows_of_a_run(run: Run, folder: Path, ads_run: Path) -> None:
    own = run("evaluate", ads_run / "run", "--json")
    document = json.loads(own.out)
    assert document["note"].startswith("the test data of")
    bundle = ads_run / "run" / "bundle"
    other = json.loads(run("evaluate", bundle, ads_run / "run", "--json").out)
    assert other["metrics"] == document["metrics"]
    alone = folder / "alone"
    shutil.copytree(bundle, alone)
    code, _, err = run("evaluate", alone)
    assert (code, "got no labelled data, and no run's folder" in err) == (2, True)


def test_overrides_go_with_the_next_step(run: Run, folder: Path) -> None:
    write_ads(folder)
    ran = run("check", "ads.toml", "--set", "train.epochs=1")
    words = next_words(ran.out)
    assert words == ["widedeep", "train", "ads.toml", "--set", "train.epochs=1"]
    assert run(*words[1:]).code == 0
    assert load_config("runs/ads/config.toml").train.epochs == 1


def test_every_help_ends_with_the_next_step(run: Run) -> None:
    for verb in ["simulate", "join", "init", "prepare", *WHOLE[:-1]]:
        last = run(verb, "--help").out.rstrip().splitlines()[-1]
        assert last.startswith("next: "), verb
