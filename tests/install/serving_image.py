"""The serving image: the wheel and the extras that deploy/serve.Dockerfile names, no torch."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.install.commands import WIDEDEEP, process, python, run_lanes, widedeep

TRAINS = ("train", "export", "check")
# Rooms that work without torch, as docs/architecture.md lists them, and the verbs on them.
WITHOUT_TORCH = (
    *("errors", "files", "options", "features", "config", "schema", "page", "data", "join"),
    *("bundle", "metrics", "serving", "evaluation", "gate", "publish", "report", "cli"),
)
TRAINING = "cli.run_training"  # what the verbs of TRAINS import when they run
USER = {"age": 39, "education": "Bachelors"}
JOBS = ["Sales", "Tech-support", "Craft-repair"]

SCORES = """
import pyarrow.parquet as pq
import widedeep as wd
rows = pq.read_table("test.parquet").slice(0, 50)
bundle = wd.Bundle.load("runs/people/bundle")
scores = bundle.score(rows)
kept = pq.read_table("scores.parquet").slice(0, 50)["score"].to_numpy()
assert scores.tolist() == kept.tolist(), "not the scores that the plain install gave"
print(bundle.explain(rows.slice(0, 1).to_pylist()[0]))
ranker = wd.Ranker("items/1", item_id="occupation")
print(ranker.rank({"age": 39}, candidates={"occupation": ["Sales", "Tech-support"]}))
"""


def environment() -> None:
    """What is there, and what is not."""
    import widedeep as package

    assert Path(package.__file__).is_relative_to(sys.prefix), package.__file__
    for name in ("torch", "grpc", "duckdb", "sklearn", "pandas", "faiss"):
        assert find_spec(name) is None, f"{name} is installed: the image does without"


def modules() -> None:
    """Modules below the model import; all others name torch, or their extra."""
    import widedeep as package

    for module in pkgutil.walk_packages(package.__path__, "widedeep.", onerror=lambda _: None):
        short = module.name.removeprefix("widedeep.")
        room = short.partition(".")[0]
        if short == "__main__" or short.startswith("serving.grpc"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            assert (error.name or "").partition(".")[0] in ("torch", "triton"), (short, error)
            assert room not in WITHOUT_TORCH or short == TRAINING, (short, error)
    python("import widedeep; widedeep.Trainer", code=1, says="pip install 'widedeep[train]'")


def verbs() -> None:
    """Scores, inspection, evaluation, reports, the gate and publishing, on another's run."""
    python(SCORES, says="probability")
    widedeep("score runs/people/bundle test.parquet -o image.parquet")
    to_csv = "import pyarrow.csv as c, pyarrow.parquet as p; c.write_csv(p.read_table('{}'), '{}')"
    python(to_csv.format("test.parquet", "test.csv"))
    widedeep("score runs/people test.csv -o image.jsonl --keep none")
    lines = Path("image.jsonl").read_text().splitlines()
    compare = "import pyarrow.parquet as p; print(p.read_table('{}')['score'].to_pylist())"
    kept, again = (python(compare.format(f)) for f in ("scores.parquet", "image.parquet"))
    assert kept == again == f"{[json.loads(line)['score'] for line in lines]}\n"
    widedeep("inspect runs/people", says="Strongest positive wide weights")
    widedeep("evaluate runs/people", says="auc")
    widedeep("report runs/people")
    widedeep("report items/1 --data test.parquet --against runs/people/bundle -o image.html")
    widedeep("validate items/2 --data test.parquet --against items/1 --set gate.slices=[]")
    widedeep("init test.csv --label income -o image.toml")
    widedeep("prepare people.toml --out runs/image")
    for verb in TRAINS:
        words = "runs/people -o again" if verb == "export" else "people.toml"
        widedeep(f"{verb} {words}", code=2, says="pip install 'widedeep[train]'")
    widedeep("serve items --grpc :0 --http :0", code=2, says="pip install 'widedeep[grpc]'")


class Server:
    """A server, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, body: object = None) -> Any:
        """Return the answer: JSON where it is JSON, else text."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, data, headers), timeout=30
        ) as answer:
            text = answer.read().decode()
            is_json = "json" in answer.headers["Content-Type"]
            return json.loads(text) if is_json else text

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds; a server that does not answer yet is waited for."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if holds():
                    return
            time.sleep(0.05)
        raise AssertionError(f"after a minute still not: {what}")

    def version(self) -> str:
        """Return the version that ranks."""
        answer = self.ask("/v1/rank", {"user": USER, "candidates": JOBS})
        return str(answer["model_version"])


@contextlib.contextmanager
def serving(*words: str) -> Iterator[Server]:
    """Serve as the unit file and the image do, and end with SIGTERM and code 0."""
    command = [WIDEDEEP, "serve", *words, "--http", "127.0.0.1:0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line, f"the server ended: {server.communicate()[1]}"
            yield Server(json.loads(line)["http"])
            server.send_signal(signal.SIGTERM)
            _, err = server.communicate(timeout=60)
            assert server.returncode == 0, err
            assert "Traceback" not in err, err
        finally:
            server.kill()


def server() -> None:
    """The server of the unit file: every protocol, a new version, a rollback, the log."""
    shutil.copytree("items/1", "served/1")
    options = "--items items.parquet --item-id occupation --workers 2 --drain-delay 0.1 --drain 20"
    with serving("served", *options.split(), "--poll", "0.2", "--log", "log") as http:
        http.wait("ready", lambda: http.ask("/health/ready") is not None)
        assert http.ask("/health/live") is not None
        protocols(http)
        # Publishing, as docs/deployment.md does it.
        shutil.copytree("items/2", "served/.2")
        Path("served/.2").rename("served/2")
        http.wait("version 2 serves", lambda: http.version() == "2")
        process([WIDEDEEP, "rollback", "served"], code=0, says="version 1 is requested")
        http.wait("version 1 serves again", lambda: http.version() == "1")
        metrics = http.ask("/metrics")
        assert "widedeep_requests_total" in metrics and "widedeep_log_rows" in metrics
    python(
        "import pyarrow.dataset as d; t = d.dataset('log', format='parquet').to_table(); "
        "assert {'request_id', 'user_id', 'item_id', 'position', 'score'} <= set(t.column_names); "
        "assert set(t['user_id'].to_pylist()) == {7}, t['user_id']"
    )


def protocols(http: Server) -> None:
    """Ask in each way that docs/serving.md lists for HTTP."""
    asked = {"user": {**USER, "user_id": 7}, "candidates": JOBS}
    plain = http.ask("/v1/rank", asked)
    assert sorted(plain["items"]) == sorted(JOBS) and plain["model_version"] == "1"
    explained = http.ask("/v1/rank", {**asked, "explain": True, "k": 2})
    assert explained["scores"] == plain["scores"][:2] and len(explained["explanations"]) == 2
    brought = http.ask("/v1/models/served:rank", {"user": USER, "items": {"occupation": JOBS}})
    assert brought["scores"] == plain["scores"]
    recommended = http.ask("/v1/recommend", {"user": USER, "n": 10, "k": 3})
    assert len(recommended["items"]) == 3
    rows = [{**USER, "occupation": job} for job in plain["items"]]
    predicted = http.ask("/v1/models/served:predict", {"instances": rows})
    assert predicted["predictions"] == plain["scores"], predicted
    inputs = [
        {"name": "age", "datatype": "INT64", "shape": [1], "data": [39]},
        {"name": "education", "datatype": "BYTES", "shape": [1], "data": ["Bachelors"]},
        {"name": "occupation", "datatype": "BYTES", "shape": [1], "data": [plain["items"][0]]},
    ]
    inferred = http.ask("/v2/models/served/infer", {"inputs": inputs})
    assert inferred["outputs"][0]["data"] == plain["scores"][:1]
    assert http.ask("/v2/health/ready") is not None
    assert http.ask("/v1/status") and http.ask("/openapi.json")["openapi"]
    assert "<html" in http.ask("/").lower()
    try:
        http.ask("/v1/rank", {"user": USER, "candidates": "Sales"})
    except urllib.error.HTTPError as error:
        assert error.code == 400 and b"pointer" in error.read()
    else:
        raise AssertionError("a request that is wrong was answered")


def bench() -> None:
    """The benchmark of a server."""
    widedeep("bench serve items --seconds 1 --connections 1", says="requests/s")


def main() -> None:
    """Run every part in the folder that the plain install has left."""
    os.chdir(sys.argv[1])
    run_lanes("serving image", [environment])
    run_lanes("serving image", [modules, server, bench], [verbs])


if __name__ == "__main__":
    main()
