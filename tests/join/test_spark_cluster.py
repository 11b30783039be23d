"""A join on a standalone Spark cluster of two workers on loopback, started as users start it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.join.small_log import actions, impressions
from tests.ports import free_port
from widedeep.join import JoinResult, open_dataset, run_join

SPARK = importlib.util.find_spec("pyspark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        SPARK is None or (shutil.which("java") is None and "JAVA_HOME" not in os.environ),
        reason="needs pip install 'widedeep[spark]' and Java 17",
    ),
]
SUBMIT = """\
import sys

from widedeep.cli.main import main

sys.exit(main())
"""
JOIN = """
[join]
output = "{output}"
seed = 0
partition_rows = 150
spark_options = {{ "spark.sql.shuffle.partitions" = "3", "spark.executor.memory" = "512m" }}

[impressions]
path = "{impressions}"
position = "position"

[actions]
path = "actions.parquet"
kind = "kind"
value = "price"

[[labels]]
name = "click"
kinds = ["click"]
window = "10m"

[[labels]]
name = "spend"
kinds = ["buy"]
window = "5m"
value = true

[[history]]
name = "last_items"
feature = "last"
k = 3

[[history]]
name = "item_rate"
feature = "rate"
by = "item"
prior = 0.1
strength = 5.0
"""


def spark_home() -> Path:
    assert SPARK is not None
    return Path(str(SPARK.origin)).parent


@dataclasses.dataclass
class Cluster:
    """A master and two workers."""

    url: str
    ui: int

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ui}/json/", timeout=10) as answer:
            state: dict[str, Any] = json.load(answer)
            return state

    def applications(self) -> list[str]:
        state = self.state()
        return [app["name"] for app in (*state["activeapps"], *state["completedapps"])]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port, ui = free_port(), free_port()
    folder = tmp_path_factory.mktemp("spark")
    running = Cluster(f"spark://127.0.0.1:{port}", ui)
    command = str(spark_home() / "bin" / "spark-class")
    host = ["--host", "127.0.0.1"]
    deploy = "org.apache.spark.deploy"
    commands = [
        [f"{deploy}.master.Master", *host, "--port", str(port), "--webui-port", str(ui)],
        *[
            [
                *(f"{deploy}.worker.Worker", *host, "--webui-port", "0", "-c", "1", "-m", "1g"),
                *("-d", str(folder / f"worker-{number}"), running.url),
            ]
            for number in range(2)
        ],
    ]
    environment = {**os.environ, "SPARK_DAEMON_MEMORY": "256m", "SPARK_LOCAL_IP": "127.0.0.1"}
    started = []
    try:
        for number, words in enumerate(commands):
            with open(folder / f"{number}.log", "wb") as log:
                started.append(
                    subprocess.Popen([command, *words], env=environment, stdout=log, stderr=log)
                )
        deadline = time.monotonic() + 300
        while True:
            try:
                if sum(w["state"] == "ALIVE" for w in running.state()["workers"]) == 2:
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline, (folder / "0.log").read_text()
            time.sleep(0.5)
        yield running
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def write_logs(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(impressions(300)), folder / "impressions.parquet")
    pq.write_table(pa.Table.from_pylist(actions(2_000)), folder / "actions.parquet")


def duckdb(folder: Path) -> JoinResult:
    (folder / "duckdb.toml").write_text(
        JOIN.format(output="duckdb", impressions="impressions.parquet")
    )
    return run_join(wd.join.load_join_config(folder / "duckdb.toml"))


def assert_same(one: JoinResult, other: JoinResult) -> None:
    """Rows, their order, what the report counts, and the schema that is fitted."""
    for split in ("train", "valid", "test"):
        expected, table = (
            pa.concat_tables([pq.read_table(path) for path in result.paths(split)])
            for result in (one, other)
        )
        assert table.equals(expected.cast(table.schema)), split
    assert one.manifest["counts"] == other.manifest["counts"]
    spec = wd.FeatureSpec(
        label="click",
        features=[
            *wd.categorical("user_id", "item_id", "device", "last_items"),
            *wd.numeric("item_rate", "position", "shown_before"),
        ],
    )
    wd.fit_schema(spec, one.output / "train").save(one.output / "schema.safetensors")
    counted = wd.fit_schema(spec, counts=other.output / "counts")
    counted.save(other.output / "schema.safetensors")
    schemas = [(result.output / "schema.safetensors").read_bytes() for result in (one, other)]
    assert schemas[0] == schemas[1]


def run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]


def test_the_verb_joins_on_a_cluster(tmp_path: Path, cluster: Cluster) -> None:
    write_logs(tmp_path)
    url = (tmp_path / "impressions.parquet").as_uri()
    (tmp_path / "join.toml").write_text(JOIN.format(output="examples", impressions=url))
    before = len(cluster.applications())
    verb = [sys.executable, "-m", "widedeep", "join", "join.toml", "--engine", "spark"]
    run(tmp_path, *verb, "--spark-master", cluster.url)
    assert cluster.applications()[before:] == ["widedeep join"]
    examples = open_dataset(tmp_path / "examples")
    assert examples.manifest["inputs"][1]["path"].startswith("file:/")
    assert_same(duckdb(tmp_path), examples)


def test_spark_submit_says_where_it_joins(tmp_path: Path, cluster: Cluster) -> None:
    write_logs(tmp_path)
    text = JOIN.format(output="examples", impressions="impressions.parquet")
    (tmp_path / "join.toml").write_text(text)
    (tmp_path / "submit_join.py").write_text(SUBMIT)
    before = len(cluster.applications())
    submit = [str(spark_home() / "bin" / "spark-submit"), "--master", cluster.url]
    run(tmp_path, *submit, "submit_join.py", "join", "join.toml", "--engine", "spark")
    assert cluster.applications()[before:] == ["widedeep join"]
    assert_same(duckdb(tmp_path), open_dataset(tmp_path / "examples"))
