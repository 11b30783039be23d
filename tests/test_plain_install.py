"""After a plain install, without any extra, a verb works or names the extra that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ads import write_ads
from tests.command_line import VERBS, write_join

PACKAGES = {
    "duckdb": "join",
    "sqlglot": "spark",
    "pyspark": "spark",
    "starlette": "serve",
    "uvicorn": "serve",
    "uvloop": "serve",
    "httptools": "serve",
    "msgspec": "serve",
    "prometheus_client": "serve",
    "sklearn": "sklearn",
    "faiss": "retrieval",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "grpc": "grpc",
    "google": "grpc",
    "fsspec": "publish",
}
OTHERS = ["pandas", "polars", "scipy", "IPython", "fastapi"]

SCRIPT = """
import contextlib, io, json, sys

hidden, commands = json.load(sys.stdin)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from widedeep.cli import main

for words in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue()[-300:], err.getvalue()]), flush=True)
"""


def plain(folder: Path, hidden: list[str], commands: list[list[str]]) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([hidden, commands]),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(commands), done.stderr
    return [tuple(json.loads(line)) for line in lines]


WORKS = [
    "init train.parquet --label click -o first.toml",
    "check first.toml",
    "prepare ads.toml",
    "train ads.toml --set train.epochs=1 --out run",
    "evaluate run test.parquet",
    "score run test.parquet -o scores.jsonl",
    "inspect run",
    "report run",
    "export run -o b1",
    "validate b1 --data test.parquet --set gate.min_rows=10 --set gate.min_positives=2",
    "publish b1 models --force --reason first",
    "inspect models",
    "simulate store --days 1 --users 50 --apps 90 --requests 20",
]
NEEDS = {
    "join join.toml": "widedeep[join]",
    "serve b1 --http 127.0.0.1:0": "widedeep[serve]",
    "bench table1 --seeds 2 --days 1 --requests 20": "widedeep[join]",
}


def test_every_verb_works_or_names_its_extra(tmp_path: Path) -> None:
    write_ads(tmp_path)
    write_join(tmp_path)
    helps = [[verb, "--help"] for verb in VERBS]
    commands = [*helps, *(line.split() for line in [*WORKS, *NEEDS])]
    results = plain(tmp_path, [*PACKAGES, *OTHERS], commands)
    for words, (code, out, err) in zip(commands, results, strict=True):
        needed = NEEDS.get(" ".join(words))
        assert code == (0 if needed is None else 2), (words, out, err)
        assert needed is None or f"pip install '{needed}'" in err.splitlines()[-1], (words, err)
        assert "Traceback" not in err
    code, out, _ = plain(tmp_path, ["duckdb"], [["check", "join.toml"]])[0]
    assert (code, "pip install 'widedeep[join]'" in out) == (1, True)


@pytest.mark.parametrize("absent", ["duckdb", "sqlglot", "sklearn", ",".join([*PACKAGES, *OTHERS])])
def test_names_are_listed_whichever_package_is_absent(absent: str) -> None:
    code = """
import inspect, pydoc, sys
hidden = sys.argv[1].split(",")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import widedeep
from widedeep import *
assert dict(inspect.getmembers(widedeep))["Trainer"] is Trainer
assert "WideDeepClassifier" in pydoc.render_doc(widedeep)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, absent], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_estimator_without_scikit_learn_says_what_to_install() -> None:
    code = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
import widedeep as wd
for kind in (wd.WideDeepClassifier, wd.WideDeepRegressor):
    try:
        kind(epochs=1)
    except wd.WideDeepError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("pip install 'widedeep[sklearn]'") == 2, done.stderr
