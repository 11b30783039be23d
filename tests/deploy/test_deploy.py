"""The files of deploy/: expressions parse, their metrics are in a scrape, commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pyarrow.parquet as pq
import pytest
import yaml

from tests.serving.http.calls import Local
from tests.serving.versions import publish
from widedeep.cli.main import make_parser
from widedeep.serving.config import Settings
from widedeep.serving.http.app import endpoints
from widedeep.serving.registry import Registry

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "widedeep.json").read_text(encoding="utf-8"))
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each PromQL expression and where it stands; Grafana's variables get values."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


EXPRESSIONS = [
    (where, text.replace("$__rate_interval", "5m").replace("$model", ".*"))
    for where, text in expressions()
]


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_expression_parses(where: str, text: str) -> None:
    promql_parser.parse(text)


def test_every_metric_is_in_a_scrape(tmp_path: Path) -> None:
    publish(tmp_path / "apps", "1", seed=1)
    with Registry(tmp_path / "apps") as registry:
        assert registry.wait_ready(60)
        scrape = Local({"apps": registry}).get("/metrics").body.decode()
    families = re.findall(r"^# TYPE (\w+) (\w+)$", scrape, re.MULTILINE)
    names = {name for name, _ in families}
    names |= {f"{name}_{part}" for name, kind in families if kind == "histogram"
              for part in ("bucket", "sum", "count")}  # fmt: skip
    asked = {name for _, text in EXPRESSIONS for name in re.findall(r"widedeep_\w+", text)}
    assert asked - names == set()
    # And the dashboard shows all there is, but for what another of its panels says as well.
    shown = {n.removesuffix("_bucket") for n in asked}
    untold = {n for n in names if n.startswith("widedeep_") and n not in shown}
    untold -= {f"{n}_{part}" for n in shown for part in ("bucket", "sum", "count")}
    assert untold <= {"widedeep_thread_heartbeat_timestamp_seconds"}, untold


def test_alerts_say_what_is_wrong_and_how_bad() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = set(re.findall(r"by \(([^)]*)\)", rule["expr"]))
        assert all(any(label in each for each in kept) for label in used), rule["alert"]


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_manifests(path: Path) -> None:
    served = {endpoint.path for endpoint in endpoints(Settings())}
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert all({"apiVersion", "kind", "metadata"} <= document.keys() for document in documents)
    text = json.dumps(documents)
    probes = re.findall(r'"httpGet": \{"path": "([^"]+)", "port": (\d+)', text)
    assert {probe for probe, _ in probes} <= served
    assert {port for _, port in probes} <= {"8080"}
    for arguments in re.findall(r'"args": (\[.*?\])', text):
        words = [word.replace("{{.Name}}", "ads") for word in json.loads(arguments)]
        parses(["serve", *words])


def parses(words: list[str]) -> None:
    """Fail unless the command line knows every option."""
    parser = make_parser(words[:1])
    _, unknown = parser.parse_known_args(words)
    assert not unknown, (words, unknown)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the command lines that begin with widedeep; what a variable holds becomes a word."""
    text = text.replace("\\\n", " ").replace("${last%/bundle}", "SOME")
    text = re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", text)
    text = re.sub(r"\$\([^)]*\)|\{\{[^}]*\}\}|\$\w+", "SOME", text)
    for line in re.findall(r"^(?:ExecStart=/opt/\S+/)?widedeep ([a-z].*)$", text, re.MULTILINE):
        yield shlex.split(line)


@pytest.mark.parametrize("name", ["retrain.sh", "systemd/widedeep.service"])
def test_commands_parse(name: str) -> None:
    found = list(commands((DEPLOY / name).read_text(encoding="utf-8")))
    assert found
    for words in found:
        parses(words)


def test_the_dag_is_python_and_its_steps_are_those_of_the_script() -> None:
    text = (DEPLOY / "airflow" / "widedeep_retrain.py").read_text(encoding="utf-8")
    compile(text, "dag", "exec")
    constants = re.findall(r"^(?:HOME|RUN|LAST) = .*$|^STEPS = \{(?:\n    .*)*\n\}$", text, re.M)
    names: dict[str, Any] = {}
    exec("\n".join(constants), names)
    steps = list(commands("\n".join(names["STEPS"].values())))
    for words in steps:
        parses(words)
    script = (DEPLOY / "retrain.sh").read_text(encoding="utf-8")
    verbs = [words[0] for words in commands(script)]
    assert [*names["STEPS"]] == [words[0] for words in steps] == verbs


def test_the_documentation_shows_the_files() -> None:
    shown = (DEPLOY.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    assert {name for name in files if f"deploy/{name}" not in shown} == set()


@pytest.mark.slow
def test_two_nights_of_retraining(tmp_path: Path) -> None:
    def run(*words: object, code: int = 0) -> str:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [*map(str, words)], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    run("widedeep", "simulate", "store", "--days", "4", "--users", "500", "--requests", "2500")
    home = tmp_path / "store"
    (home / "ads.toml").write_text((home / "app_store.toml").read_text().replace("store/", ""))
    join = (home / "join.toml").read_text().replace("store/", "")
    (home / "join.toml").write_text(join)
    run("bash", DEPLOY / "retrain.sh", home)
    (first,) = (home / "runs").iterdir()
    assert (first / "report.html").exists()
    assert pq.read_table(home / "examples" / "test").num_rows > 100
    first.rename(home / "runs" / "2026-01-01")  # yesterday's
    run("bash", DEPLOY / "retrain.sh", home)
    assert {path.name for path in (home / "models").iterdir() if path.is_dir()} >= {"1", "2"}
