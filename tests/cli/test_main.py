"""The command line as a user meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import VERBS, Run, write_join
from widedeep.cli.main import make_parser
from widedeep.cli.output import number, shown_path
from widedeep.report.format import figure


def process(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "widedeep", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# ---- the command itself -------------------------------------------------------------------------


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"widedeep {wd.__version__}\n", "")


def test_help_names_every_verb_and_no_other(run: Run) -> None:
    code, out, _ = run("--help")
    listed = out.split("VERB\n")[1].split("\n\n")[0]
    found = [line.split()[0] for line in listed.splitlines() if line.startswith("    ")
             and not line.startswith("     ")]  # fmt: skip
    assert (code, found) == (0, VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_that_parses(run: Run, verb: str, ads: Path) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "--json" in out
    example = out.split("example:\n")[1]
    commands = [
        line.partition("#")[0] for line in example.splitlines() if f"widedeep {verb}" in line
    ]
    assert commands
    for command in commands:
        words = shlex.split(command[command.index("widedeep") :])[1:]
        if verb in ("simulate", "bench"):  # which need no files, and would run
            make_parser(VERBS).parse_args(words)
            continue
        # Their files are not there: that is told, and not that they are misunderstood.
        assert "see 'widedeep" not in run(*words).err, command


def test_without_a_verb_there_is_help(run: Run) -> None:
    assert run() == run("--help")
    assert run().code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["traim"], "got VERB 'traim'; did you mean 'train'? (see 'widedeep --help')"),
        (["serv"], "got VERB 'serv'; did you mean 'serve'?"),
        (["train"], "the following arguments are required: RUN.toml (see 'widedeep train --help')"),
        (
            ["train", "a.toml", "--resum"],
            "got the unknown option '--resum'; did you mean '--resume'",
        ),
        (["train", "a.toml", "b.toml"], "unexpected argument 'b.toml'"),
        (["train", "a.toml", "--resume", "--force"], "--force: not allowed with argument --resume"),
        (["train", "a.toml", "--out", ""], "got an empty argument, expected a value"),
        (["train", "a.toml", "--out="], "got '--out=' without a value"),
        (
            ["inspect", "x", "--top", "many"],
            "argument --top: got 'many', expected an integer of at",
        ),
        (
            ["check", "x", "--rows", "0"],
            "argument --rows: got '0', expected an integer of at least",
        ),
    ],
)
def test_misuse_is_one_line(run: Run, words: list[str], message: str) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("widedeep: error: ")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "no.toml"], "no.toml: no such file; 'widedeep init DATA' writes one"),
        (["check", "no.toml"], "no.toml: no such file"),
        (["join", "no.toml"], "no.toml: no such file; check the path"),
        (["join", "join.toml", "--set", "join.output=''"], "got output = '', expected a folder"),
        (["join", "join.toml", "--set", "actions.path=''"], "got neither 'path' nor 'table'"),
        (["join", "ads.toml"], "ads.toml: got the unknown section [data]"),
        (["prepare", "ads.toml", "--set", "data.train='no.parquet'"], "no.parquet: no such file"),
        (["train", "ads.toml", "--set", "train.epoch=3"], "did you mean 'epochs'?"),
        (["train", "ads.toml", "--set", "epochs"], "expected SECTION.KEY=VALUE"),
        (["init", "no.parquet"], "no.parquet: no such file"),
        (["init", "train.parquet", "-o", "ads.toml"], "ads.toml: already exists"),
        (["evaluate", "nothing", "test.parquet"], "nothing: got no directory, expected a bundle"),
        (
            ["evaluate", "nothing"],
            "nothing: no such bundle or run; check the path",
        ),
        (["score", "nothing", "test.parquet"], "nothing: got no directory, expected a bundle"),
        (["score", "nothing", "test.parquet", "--json"], "--json without -o FILE"),
        (["export", "nothing", "-o", "b"], "nothing: got no checkpoint"),
        (["inspect", "nothing"], "nothing: got no directory, expected a bundle"),
        (["inspect", "train.parquet"], "train.parquet"),
    ],
)
def test_a_user_error_is_one_clear_line(
    run: Run, ads: Path, words: list[str], message: str
) -> None:
    write_join(ads)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("widedeep: error: ")
    assert message in err
    assert "Traceback" not in err


def test_counts_of_other_rows_are_refused(run: Run, ads: Path) -> None:
    verb = ["prepare", "ads.toml", "--counts", "counts"]
    split = run(*verb)
    assert split.code == 2 and "counts: counts all rows of its dataset's train folder" in split.err
    config = (ads / "ads.toml").read_text()
    config = re.sub("valid_fraction = .*", "valid = 'test.parquet'", config)
    (ads / "ads.toml").write_text(config)
    absent = run(*verb)
    assert absent.code == 2 and "counts: no counts.json; expected the folder" in absent.err
    (ads / "counts").mkdir()
    pq.write_metadata(pq.read_schema("train.parquet"), "counts/schema.parquet")
    content = {"columns": [], "uncounted": [], "sample_rows": 5, "rows": 5}
    content |= {"kind": "widedeep counts", "format": 1}
    (ads / "counts" / "counts.json").write_text(json.dumps(content))
    other = run(*verb)
    assert other.code == 2 and "counts: counts 5 rows, and [data] train has " in other.err
    (ads / "counts" / "counts.json").write_text(json.dumps({**content, "format": 2}))
    newer = run(*verb)
    assert newer.code == 2 and "got 'widedeep counts' of format 2, expected" in newer.err


def test_debug_shows_where_it_came_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEDEEP_DEBUG", "1")
    code, _, err = run("train", "no.toml")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("widedeep: error: no.toml")


# ---- the whole way ------------------------------------------------------------------------------


def test_the_whole_way(run: Run, ads: Path) -> None:
    code, out, err = run("init", "train.parquet", "--label", "click", "-o", "first.toml")
    assert (code, err) == (0, "")
    assert "row_id left out has a value of its own" in " ".join(out.split())
    assert out.endswith("wrote first.toml; read it through\nnext: widedeep check first.toml\n")

    code, out, err = run("check", "first.toml")
    assert (code, err) == (0, "")
    assert out.endswith("no problems found\nnext: widedeep train first.toml\n")

    code, out, _ = run("prepare", "first.toml")
    assert code == 0
    assert out.startswith("Schema of 6 features, fitted on ")

    code, out, err = run("train", "first.toml", "--set", "train.epochs=2")
    assert code == 0
    assert "schema: runs/first/schema.safetensors (as prepared)" in err
    assert "bundle: runs/first/bundle" in out

    code, out, err = run("evaluate", "runs/first", "test.parquet")
    assert (code, err) == (0, "")
    assert out.split()[:2] == ["metric", "test.parquet"]

    code, out, err = run("score", "runs/first", "test.parquet", "-o", "s.parquet")
    assert (code, out) == (0, "")
    assert "scored 200 rows" in err
    assert pq.read_metadata("s.parquet").num_rows == 200

    code, out, err = run("inspect", "runs/first", "--top", "3")
    assert (code, err) == (0, "")
    assert "Strongest positive wide weights" in out


def test_encoded_rows_are_kept_taken_and_made_again(run: Run, ads: Path) -> None:
    code, _, err = run("prepare", "ads.toml", "--encode")
    assert (code, err) == (0, "wrote the encoded rows runs/ads/encoded (0 MiB)\n")
    document = json.loads(run("prepare", "ads.toml", "--encode", "--json").out)
    files = list((ads / "runs/ads/encoded").glob("*.bin"))
    assert document["encoded"] == {
        "path": "runs/ads/encoded",
        "bytes": sum(file.stat().st_size for file in files),
        "new": False,
    }
    assert len(files) == 3  # one a row group

    code, _, err = run("train", "ads.toml")
    assert code == 0
    assert "encoded rows: runs/ads/encoded (as they were; 0 MiB)" in err
    # Another share of the rows is trained on.
    code, _, err = run("train", "ads.toml", "--set", "data.valid_fraction=0.4", "--force")
    assert code == 0
    assert "encoded rows: runs/ads/encoded (written, " in err
    assert run("train", "ads.toml", "--out", "plain").code == 0
    assert run("train", "ads.toml", "--force").code == 0
    one, two = (wd.Bundle.load(ads / f"{place}/bundle") for place in ("plain", "runs/ads"))
    assert {n: a.tobytes() for n, a in one.weights.items()} == {
        n: a.tobytes() for n, a in two.weights.items()
    }
    assert one.warmup.rows == two.warmup.rows


def test_a_run_starts_from_another(run: Run, ads: Path) -> None:
    words = ("train", "ads.toml", "--set", "train.epochs=1")
    cold = json.loads(run(*words, "--json", "--out", "cold").out)
    # The source may be the very run that is replaced.
    code, _, err = run(*words, "--warm-start", "cold", "--out", "cold", "--force")
    assert code == 0
    assert "warm start from cold/checkpoints/step-" in err
    kept = json.loads((ads / "cold/warm_start.json").read_text())
    assert {entry["state"] for entry in kept["moved"]} == {"carried"}
    (warm,) = json.loads((ads / "cold/history.json").read_text())
    assert warm["loss"] < cold["history"][0]["loss"]

    code, out, _ = run(
        *words, "--warm-start", "cold/bundle", "--carry", "wide/*", "--json", "--out", "part"
    )
    moved = json.loads(out)["warm_start"]["moved"]
    assert code == 0
    assert {e["name"].partition("/")[0] for e in moved if e["state"] != "fresh"} == {"wide"}

    assert run(*words, "--carry", "wide/*", "--out", "x").code == 2
    code, _, err = run(*words, "--warm-start", "cold", "--carry", "wid/*", "--out", "x", "--force")
    assert (code, "got the pattern 'wid/*'" in err and "did you mean 'wide/" in err) == (2, True)
    code, _, err = run(*words, "--warm-start", "nowhere", "--out", "x")
    assert (code, "Traceback" in err) == (2, False)
    assert "nowhere" in err


def test_a_run_follows_a_folder(run: Run, ads: Path) -> None:
    table = pq.read_table(ads / "test.parquet")
    words = ("--follow", "new", "--idle", "0.2", "--poll", "0.05")
    code, _, err = run("train", "ads.toml", *words)
    assert (code, (ads / "runs").exists()) == (2, False)  # before anything is learned
    assert "new: no such folder, expected the folder that new files come to" in err
    (ads / "new").mkdir()
    for i in range(3):
        pq.write_table(table.slice(60 * i, 60), ads / f"new/{i}.parquet")
    code, out, err = run("train", "ads.toml", *words, "--export-rows", "100")
    assert code == 0
    assert "learned 3 shards; bundle: runs/ads/bundle" in out
    assert err.count("exported runs/ads/bundle") == 2
    rows = json.loads((ads / "runs/ads/history.json").read_text())
    assert [row["shard"] for row in rows] == ["0.parquet", "1.parquet", "2.parquet"]

    pq.write_table(table.slice(180), ads / "new/3.parquet")
    code, out, _ = run("train", "ads.toml", *words, "--resume", "--json")
    assert code == 0
    assert [row["shard"] for row in json.loads(out)["shards"]][3:] == ["3.parquet"]


def test_json_is_one_document(run: Run, ads: Path, ads_run: Path) -> None:
    model = ads_run / "run"
    calls: dict[str, list[object]] = {
        "init": ["train.parquet", "-o", "x.toml"],
        "check": ["ads.toml"],
        "join": [write_join(ads)],
        "prepare": ["ads.toml"],
        "train": ["ads.toml"],
        "evaluate": [model],
        "export": [model, "-o", "b"],
        "score": [model, "test.parquet", "-o", "s.jsonl"],
        "inspect": [model],
    }
    found = {verb: run(verb, *words, "--json") for verb, words in calls.items()}
    assert {verb: ran.code for verb, ran in found.items()} == dict.fromkeys(calls, 0)
    documents = {verb: json.loads(ran.out) for verb, ran in found.items()}
    assert {c["column"]: c["role"] for c in documents["init"]["columns"]}["click"] == "label"
    assert documents["check"]["ok"] is True
    assert documents["check"]["inputs"]["train"]["columns"]["age"]["type"] == "int64"
    assert documents["join"]["splits"]["train"]["labels"]["click"] > 0
    assert documents["prepare"]["features"]["age_bucket"] == 6
    assert documents["train"]["metrics"]["test"]["rows"] == 200
    assert len(documents["train"]["history"]) == 2
    assert documents["evaluate"]["metrics"] == pytest.approx(
        documents["train"]["metrics"]["test"], abs=1e-6
    )
    assert documents["export"]["checkpoint"].startswith(str(model / "checkpoints"))
    assert documents["score"]["rows"] == 200
    assert {table["name"] for table in documents["inspect"]["tables"]} > {"job", "job_x_ad"}


def test_tables_fit_into_80_columns(
    run: Run, ads: Path, ads_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for words in (
        ["init", "train.parquet", "-o", "x.toml"],
        ["check", "ads.toml"],
        ["evaluate", ads_run / "run"],
        ["inspect", ads_run / "run"],
        ["inspect", ads_run / "run" / "schema.safetensors"],
    ):
        out = run(*words).out
        wide = [line for line in out.splitlines() if len(line) > 80]
        # Lines that are no table say what they have to.
        assert all(line.startswith(("Bundle at", "metrics:", "Schema of", "train:", "wrote",
                                    "note:", "next:"))
                   for line in wide), wide  # fmt: skip
        assert "\x1b" not in out
        assert not any(line.endswith(" ") for line in out.splitlines())


# ---- check --------------------------------------------------------------------------------------


def test_a_check_that_finds_problems_ends_with_1(run: Run, ads: Path) -> None:
    words = ["check", "ads.toml", "--set", "data.label='clikc'"]
    code, out, err = run(*words)
    assert (code, err) == (1, "")
    assert "problem: [data] train: has no column 'clikc', which is the label; did you mean" in out
    assert out.endswith("2 problems; training would fail\n")
    code, out, _ = run(*words, "--json")
    document = json.loads(out)
    assert (code, document["ok"], len(document["problems"])) == (1, False, 2)


# ---- train --------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten_unasked(run: Run, ads: Path) -> None:
    assert run("train", "ads.toml").code == 0
    written = (ads / "runs/ads/metrics.json").stat().st_mtime_ns
    code, _, err = run("train", "ads.toml")
    assert code == 2
    assert "runs/ads: holds a finished run; --resume trains it on" in err
    assert run("prepare", "ads.toml").code == 2
    assert (ads / "runs/ads/metrics.json").stat().st_mtime_ns == written
    assert run("train", "ads.toml", "--force").code == 0
    assert (ads / "runs/ads/metrics.json").stat().st_mtime_ns > written
    assert run("train", "ads.toml", "--out", "elsewhere").code == 0
    code, out, _ = run("train", "ads.toml", "--resume", "--set", "train.epochs=3", "--json")
    assert (code, len(json.loads(out)["history"])) == (0, 3)


def test_a_run_goes_on_that_recorded_defaults_as_values(run: Run, ads: Path) -> None:
    words = ("train", "ads.toml", "--set", "train.schedule=auto")
    assert run(*words).code == 0
    record = ads / "runs/ads/config.toml"
    text = record.read_text()
    older = text.replace('schedule = "auto"', 'schedule = "wsd"')
    older = older.replace("[model]\n", "[model]\nembedding_std = 0.02\n")
    assert older.count("wsd") == older.count("0.02") == 1
    record.write_text(older)
    assert run(*words, "--resume", "--set", "train.epochs=3").code == 0
    record.write_text(older.replace('schedule = "wsd"', 'schedule = "linear"'))
    code, _, err = run(*words, "--resume", "--set", "train.epochs=4")
    assert (code, "had train.schedule = 'linear'" in err) == (2, True)


def start_training(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "widedeep", "train", "ads.toml", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG = ("--set", "train.epochs=16", "--set", "train.batch_size=8")


def test_ctrl_c_saves_and_says_how_to_go_on(run: Run, ads: Path) -> None:
    with start_training(ads, *LONG) as training:
        assert training.stderr is not None
        while "epoch 2" not in (line := training.stderr.readline()):
            assert line, "it ended before its second epoch"
        time.sleep(0.013)  # somewhere within an epoch
        training.send_signal(signal.SIGINT)
        out, err = training.communicate(timeout=60)
    assert (training.returncode, out) == (130, "")
    assert "Traceback" not in err
    command = err.splitlines()[-1].partition("go on with: ")[2]
    assert shlex.split(command) == ["widedeep", "train", "ads.toml", "--resume", *LONG]
    code, _, err = run("train", "ads.toml", *LONG)
    assert code == 2
    assert "--resume goes on" in err
    assert run(*shlex.split(command)[1:]).code == 0
    assert run("train", "ads.toml", *LONG, "--out", "whole").code == 0
    parts, whole = (wd.Bundle.load(f"{place}/bundle").weights for place in ("runs/ads", "whole"))
    assert all((np.array(whole[name]) == np.array(parts[name])).all() for name in whole)


def test_ctrl_c_before_the_first_step(run: Run, ads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("widedeep.cli.prepare.fit_schema", interrupted)
    code, out, err = run("train", "ads.toml")
    assert (code, out) == (130, "")
    assert err == "widedeep: interrupted before the first step; nothing to resume\n"


# ---- evaluate, score, inspect -------------------------------------------------------------------


def test_a_run_is_evaluated_on_its_own_test_data(run: Run, ads_run: Path) -> None:
    code, out, _ = run("evaluate", ads_run / "run", "--json")
    written = json.loads((ads_run / "run" / "metrics.json").read_text())
    document = json.loads(out)
    assert code == 0
    assert document["data"] == str(ads_run / "test.parquet")
    assert document["metrics"]["auc"] == pytest.approx(written["test"]["auc"], abs=1e-6)


def test_rows_that_a_model_has_learned_or_that_judge_it_are_told(run: Run, ads: Path) -> None:
    assert run("train", "ads.toml", "--set", "train.epochs=1").code == 0
    said = "training data of runs/ads, which the model has learned"
    for words in (("evaluate", "runs/ads"), ("report", "runs/ads", "--data")):
        assert f"note: measured on {said}" in run(*words, "tr*.parquet").out, words
        assert "note: measured" not in run(*words, "test.parquet").out
    (ads / "new").mkdir()
    (ads / "new/1.parquet").symlink_to(ads / "test.parquet")
    ran = run("train", "ads.toml", "--resume", "--follow", "new", "--idle", "0.1", "--poll", "0.05")
    assert "note: 1.parquet is the run's test data too" in ran.err


def test_a_label_out_of_range_is_named_with_its_shard(run: Run, ads: Path) -> None:
    assert run("train", "ads.toml", "--set", "train.epochs=1").code == 0
    table = pq.read_table(ads / "test.parquet")
    place = table.column_names.index("click")
    (ads / "new").mkdir()
    pq.write_table(table.set_column(place, "click", [[7] * len(table)]), ads / "new/1.parquet")
    code, _, err = run("evaluate", "runs/ads", "new/1.parquet")
    assert (code, "label 'click': labels (row 0" in err) == (2, True)
    code, _, err = run("train", "ads.toml", "--resume", "--follow", "new", "--idle", "0.1")
    assert (code, "1.parquet: label 'click': labels (row 0" in err) == (2, True)


def test_score_from_standard_input(
    run: Run, ads_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"age": 30, "job": "nurse", "new": [1]}
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(row).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, err = run("score", ads_run / "run", "-")
    assert code == 0
    score = wd.Bundle.load(ads_run / "run" / "bundle").score([row])[0]
    assert json.loads(out) == {**row, "score": score}
    assert "scored 1 row" in err
    assert "keys that rows lack, read as null: price (1), ad (1), tags (1)" in err


def test_a_misspelt_key_is_told(run: Run, ads_run: Path, tmp_path: Path) -> None:
    rows = [{"age": 30, "jobb": "nurse", "price": 1.0, "ad": "ad 1", "tags": [], "when": 7}] * 3
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, err = run("score", ads_run / "run", lines, "-o", tmp_path / "s.jsonl")
    assert "the key 'jobb' is unknown; did you mean 'job'?" in err
    assert "when" not in err
    document = json.loads(run("score", ads_run / "run", lines, "-o", lines.with_name("t.jsonl"),
                              "--json").out)  # fmt: skip
    assert document["misspelt"] == {"jobb": "job"}
    assert document["absent"] == {"job": 3}
    bundle = wd.Bundle.load(ads_run / "run" / "bundle")
    bundle.score([{**rows[0], "job": "nurse"}])
    assert bundle.misspelt == {}
    bundle.score(rows)
    assert bundle.misspelt == {"jobb": "job"}


def test_a_closed_pipe_is_quiet(ads_run: Path) -> None:
    command = f"{sys.executable} -m widedeep score {ads_run / 'run'} {ads_run / 'big.jsonl'}"
    row = json.dumps({"age": 30, "job": "nurse"}) + "\n"
    (ads_run / "big.jsonl").write_text(row * 50_000)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads(done.stdout)["job"] == "nurse"


def test_one_row_explained(run: Run, ads_run: Path) -> None:
    row = json.dumps({"age": 33, "job": "nurse", "ad": "ad 3"})
    code, out, _ = run("inspect", ads_run / "run", "--row", row)
    assert code == 0
    assert "deep part" in out
    figures = {line.rsplit(None, 1)[0]: float(line.rsplit(None, 1)[1]) for line in out.splitlines()}
    logit, probability = figures.pop("logit"), figures.pop("probability")
    assert sum(figures.values()) == pytest.approx(logit, abs=1e-3)
    assert probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    code, out, _ = run("inspect", ads_run / "run", "--row", row, "--json")
    (entry,) = json.loads(out)["logits"]
    total = entry["wide_logit"] + entry["deep_logit"] + entry["bias"]
    assert total == pytest.approx(entry["logit"], abs=1e-6)
    code, _, err = run("inspect", ads_run / "run", "--row", '{"age": 33, "jobs": "nurse"}')
    assert code == 0
    assert "note: keys that the row lacks, read as null: " in err
    assert "the key 'jobs' is unknown; did you mean 'job'?" in err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{age: 3}", "which is no JSON"),
        ("[3]", "expected one JSON object"),
        ("[" * 100_000, "which is no JSON"),
        ('{"job": "\\ud83d"}', "half of a surrogate pair"),
        ('{"age": "x"}', "'x'"),
    ],
)
def test_a_row_that_cannot_be_explained(run: Run, ads_run: Path, row: str, message: str) -> None:
    code, _, err = run("inspect", ads_run / "run", "--row", row)
    assert code == 2
    assert message in err


def test_a_schema_is_shown_with_its_values(run: Run, ads_run: Path) -> None:
    code, out, _ = run("inspect", ads_run / "run" / "schema.safetensors", "--top", "2")
    assert code == 0
    assert "job: the most frequent of 4 values" in out
    code, _, err = run("inspect", ads_run / "run" / "schema.safetensors", "--row", "{}")
    assert (code, "a schema scores no row" in err) == (2, True)


@pytest.mark.parametrize("words", [["--version"], ["score", "--help"], ["score", "RUN", "test"]])
def test_scoring_and_help_do_without_torch(ads_run: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    names = {"RUN": str(ads_run / "run"), "test": str(ads_run / "test.parquet")}
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = process(
        *(names.get(word, word) for word in words), env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(run: Run, ads: Path) -> None:
    (ads / "runs").write_text("a file where the folder of runs would be")
    code, _, err = run("train", "ads.toml")
    assert code == 2
    assert err.splitlines()[-1].startswith("widedeep: error: ")
    assert "Traceback" not in err
    assert "runs" in err


def test_the_weights_of_one_class_among_several(run: Run, ads: Path) -> None:
    rows = pq.read_table("train.parquet", columns=["job", "ad", "click"])
    pq.write_table(rows, "jobs.parquet")
    assert run("init", "jobs.parquet", "--label", "job", "-o", "jobs.toml").code == 0
    assert run("train", "jobs.toml", "--set", "train.epochs=1").code == 0
    out = run("inspect", "runs/jobs", "--logit", "2").out
    assert "Strongest positive wide weights of class nurse" in out
    code, _, err = run("inspect", "runs/jobs", "--logit", "4")
    assert (code, "got logit 4, expected 0 to 3" in err) == (2, True)


# ---- whatever happens: one line, and an exit code that says what kind ---------------------------


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("widedeep.cli.check.check_run", fail)


def test_what_nobody_foresaw_is_told_as_a_bug(
    run: Run, ads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(ads))
    monkeypatch.setattr("tempfile.tempdir", None)
    raising(monkeypatch, RuntimeError("two\nlines"))
    code, out, err = run("check", "ads.toml")
    assert (code, out, err.count("\n")) == (70, "", 1)
    assert err.startswith("widedeep: bug: RuntimeError: two lines; this is a fault of widedeep")
    (log,) = ads.glob("widedeep-bug-*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()
    monkeypatch.setenv("WIDEDEEP_DEBUG", "1")
    code, _, err = run("check", "ads.toml")
    assert (code, "Traceback" in err) == (70, True)
    assert len([*ads.glob("widedeep-bug-*.log")]) == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "widedeep: interrupted"),
        (OSError(28, "No space left on device", "x"), 2, "x: No space left on device; check the"),
        (ModuleNotFoundError("No module named 'duckdb'", name="duckdb"), 2, "widedeep[join]"),
        (ModuleNotFoundError("No module named 'grpc.aio'", name="grpc.aio"), 2, "widedeep[grpc]"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "widedeep[train]"),
        (ModuleNotFoundError("No module named 'frob'", name="frob"), 70, "widedeep: bug"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"), 70, "bug"),
        (RecursionError(), 70, "bug: RecursionError"),
    ],
)
def test_errors_and_their_codes(
    run: Run, ads: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    raising(monkeypatch, error)
    got, out, err = run("check", "ads.toml")
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert said in err


@pytest.mark.parametrize("verb", VERBS)
def test_half_an_emoji_in_an_argument(run: Run, verb: str) -> None:
    for word in ("\ud83d", "menu\udce9.csv", "--set=train.monitor=\ud83d"):
        code, out, err = run(verb, word)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "which is no text in UTF-8" in err


def option_types() -> list[tuple[str, Any]]:
    def walk(parser: Any, name: str) -> Iterator[tuple[str, Any]]:
        for action in parser._actions:
            for verb, inner in (action.choices or {}).items() if action.nargs == "A..." else ():
                yield from walk(inner, f"{name} {verb}".strip())
            if action.type is not None:
                yield f"{name} {action.option_strings or action.dest}", action.type

    return [*walk(make_parser(VERBS), "")]


NUMBERS = [
    *("", "x", "nan", "-nan", "inf", "-inf", "1e400", "1e308", "-1", "0", "0.5", "1", "9" * 30),
    *("-" + "9" * 30, "9" * 5000, "1_000", "١", "\x00", "0x10", " 1 ", "1e5", "true"),
]


def test_every_option_that_is_a_number_takes_or_refuses_every_text() -> None:
    types = option_types()
    assert len(types) > 40
    for name, kind in types:
        for text in NUMBERS:
            try:
                value = kind(text)
            except argparse.ArgumentTypeError as error:
                assert len(str(error)) < 200, name
            else:
                assert 0 <= value < 2**63 or value <= 1e308, (name, text)
                assert value == value, (name, text)


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        ("> /dev/full", 2, "No space left on device"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("< /dev/null | true", 141, ""),
    ],
)
def test_an_output_that_takes_nothing(ads_run: Path, redirect: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m widedeep score {ads_run / 'run'} {ads_run / 'test.parquet'}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {redirect}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == code, done.stderr


def test_text_that_the_terminal_lacks_is_printed_all_the_same(run: Run, ads_run: Path) -> None:
    row = json.dumps({"age": 33, "job": "größe", "ad": "日本"})
    for encoding in ("ascii", "latin-1"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        words = ("inspect", ads_run / "run", "--row", row, "--json")
        done = process(*words, env=environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(run(*words).out)


@pytest.mark.parametrize(
    "more",
    [
        ["--set", "train.wide.lr=0.05", "--set", 'features.options."job".min_count=2'],
        ["--out", "my runs/the first"],
        ["--out=-dashes", "--set", "train.seed=3"],
        ["--warm-start", "old run", "--carry", "wide/*", "--project"],
        ["--follow", "the shards", "--poll", "0.25", "--idle", "0.123456789"],
    ],
)
def test_the_command_that_goes_on_works(
    run: Run, ads: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    (ads / "the shards").mkdir()
    (ads / "my ads.toml").write_text((ads / "ads.toml").read_text())
    assert run("train", "ads.toml", "--set", "train.epochs=1", "--out", "old run").code == 0
    from widedeep.training.run import TrainingRun

    step = TrainingRun._step

    def interrupt_at_3(self: TrainingRun, batch: Any, plan: Any) -> int:
        steps = step(self, batch, plan)
        if self.state.position.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return steps

    monkeypatch.setattr("widedeep.training.run.BLOCK_ROWS", 1)  # one step at a time
    monkeypatch.setattr(TrainingRun, "_step", interrupt_at_3)
    code, _, err = run("train", "my ads.toml", *more)
    assert code == 130
    (command,) = (line for line in err.splitlines() if "go on with: " in line)
    monkeypatch.setattr(TrainingRun, "_step", step)
    words = shlex.split(command.split("go on with: ")[1])
    assert words[:2] == ["widedeep", "train"]
    code, out, err = run(*words[1:])
    assert (code, "bundle: " in out) == (0, True), err
    for word in more:
        assert word in words or word.startswith("--out="), words


def test_a_path_below_the_working_folder_is_shown_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "runs/ads", f"{tmp_path}/runs/ads/", f"{tmp_path}/./runs/ads"):
        assert shown_path(path) == "runs/ads"


def test_figures_that_are_no_finite_numbers() -> None:
    infinite = float("inf")
    assert [number(one) for one in (infinite, -infinite, infinite - infinite, None, 1e6)] == [
        *("inf", "-inf", "undefined", "", "1,000,000")
    ]
    assert [figure(one) for one in (infinite, None, 1e5)] == ["inf", "", "100,000"]
