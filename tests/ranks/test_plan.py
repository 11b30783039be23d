"""The planner against plans on paper for 100 GB, 1 TB and 500 billion examples, and its verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.ads import write_ads
from widedeep.cli.main import main
from widedeep.cli.plan import distinct_rows
from widedeep.ranks.plan import Cluster, Plan, Workload, make_plan, payload, step_cpu
from widedeep.schema import Schema

# Two models of 26 categories and 3 crosses on the Criteo log, at 32,768 rows a machine and step.
WIDE_ROWS, DEEP_ROWS = 4.695, 3.80
B = {"dense_parameters": 1_522_689, "deep_floats": 32 * DEEP_ROWS}
S = {"dense_parameters": 143_105, "deep_floats": 16 * DEEP_ROWS}
ROW_BYTES = {"B": 272, "S": 144}  # an embedding with its accumulator, and the wide weight's record


def paper(model: str, machines: int, table_bytes: float, gbit: float = 25, **more: Any) -> Plan:
    """Return a plan of bf16 exchanges on machines of 16 cores and 64 GB."""
    sizes = B if model == "B" else S
    work = Workload(
        examples=more.pop("examples", 10**10),
        batch_size=32_768 * machines,
        table_rows=int(table_bytes / ROW_BYTES[model]),
        table_bytes=int(table_bytes),
        vocabulary_bytes=more.pop("vocabulary_bytes", 0),
        ids=55,
        wide_rows=WIDE_ROWS,
        wire="bf16",
        **sizes,  # type: ignore[arg-type]
    )
    return make_plan(work, Cluster(machines=machines, memory_bytes=64e9, network_gbit=gbit), **more)


@pytest.mark.parametrize(
    ("model", "machines", "table_bytes", "gigabytes", "millions_per_s"),
    [("B", 4, 100e9, 25, 1.2), ("S", 4, 100e9, 25, 7.6), ("B", 32, 1e12, 31, 9.6),
     ("S", 32, 1e12, 31, 53)],
)  # fmt: skip
def test_plans_on_paper(
    model: str, machines: int, table_bytes: float, gigabytes: float, millions_per_s: float
) -> None:
    plan = paper(model, machines, table_bytes)
    assert plan.fits and plan.least_machines is not None and plan.least_machines <= machines
    assert plan.tables / 1e9 == pytest.approx(gigabytes, abs=0.5)
    assert plan.processes / 1e9 == pytest.approx(4, abs=0.1)
    assert plan.overlapped_per_s / 1e6 == pytest.approx(millions_per_s, rel=0.03)
    assert plan.examples_per_s < plan.overlapped_per_s < machines * plan.alone_per_s


def test_500_billion_examples_take_hours_on_64_machines() -> None:
    deep, shallow = (paper(m, 64, 1e12, examples=5 * 10**11) for m in ("B", "S"))
    assert 5e11 / deep.overlapped_per_s / 3600 == pytest.approx(7, abs=0.4)
    assert 1.5 <= 5e11 / shallow.overlapped_per_s / 3600 <= 1.8
    assert not deep.notes


def test_vocabularies_of_100_gb_fit_once_a_machine_and_1_tb_not() -> None:
    values = 368_000_000
    assert paper("B", 4, 100e9, vocabulary_bytes=65 * values).fits is True
    large = paper("B", 32, 1e12, vocabulary_bytes=65 * 10 * values)
    assert (large.fits, large.least_machines) == (False, None)


def test_a_machine_too_few_says_how_many_would_do() -> None:
    plan = paper("B", 1, 100e9)
    assert not plan.fits and plan.least_machines == 2
    assert paper("B", 2, 100e9).fits
    assert plan.payload == {"ids": 0, "rows": 0, "gradients": 0, "dense": 0}
    assert plan.examples_per_s == plan.alone_per_s


def test_payload_is_that_of_two_processes_at_8192_rows() -> None:
    for sizes, deep, expected in ((S, 16, 784 + 140), (B, 32, 1487 + 1487)):
        work = Workload(
            examples=10**9, batch_size=16_384, table_rows=1, table_bytes=1, vocabulary_bytes=0,
            dense_parameters=sizes["dense_parameters"], ids=55, wide_rows=6.71,
            deep_floats=5.5 * deep,
        )  # fmt: skip
        assert sum(payload(work, 2).values()) * 2 == pytest.approx(expected, rel=0.01)
        assert step_cpu(work) == pytest.approx(44 if deep == 32 else 6.2, rel=0.01)


def test_distinct_rows_are_those_of_drawn_batches() -> None:
    rng = np.random.default_rng(0)
    values = pa.array(rng.zipf(1.3, 20_000) % 3000)
    spec = wd.FeatureSpec(features=[*wd.categorical("v"), *wd.categorical("h", hash_buckets=500)])
    schema = wd.fit_schema(spec, pa.table({"v": values, "h": values.cast(pa.string())}))
    drawn = [len(np.unique(rng.choice(values, 1000))) for _ in range(30)]
    known, hashed = schema.slots
    assert distinct_rows(schema, known, 1000) == pytest.approx(np.mean(drawn) + 1, rel=0.02)
    assert distinct_rows(schema, hashed, 1e9) == 502


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_ads(tmp_path) / "ads.toml")
    words = ["plan", config, "--out", str(tmp_path / "run"), "--machines", "4"]
    assert main(words) == 2
    assert "run: widedeep prepare" in capsys.readouterr().err
    assert main(["prepare", config, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main([*words, "--memory", "64GB", "--network", "25Gbit", "--examples", "1e9"]) == 0
    text = capsys.readouterr().out
    assert "rate        " in text and "next: widedeep train" in text
    assert "distributed.lanes = 1, expected at least 8" in text
    assert main([*words, "--set", "train.batch_size=1000000", "--examples", "1000"]) == 0
    text = capsys.readouterr().out
    assert "batch       1,000 examples, 250 a machine: 1 step a pass" in text
    assert "a pass has 1 step of 250 examples a machine, expected at least 500 of 2,048" in text
    assert "raise train.batch_size" not in text
    assert main([*words, "--json", "--memory", "3GB"]) == 1
    document = json.loads(capsys.readouterr().out)
    model = wd.WideDeep(Schema.load(tmp_path / "run" / "schema.safetensors"))
    assert document["workload"]["table_rows"] == sum(t.n_rows for t in model.tables.values())
    assert (document["fits"], document["least_machines"]) == (False, None)
    assert document["constants"]["byte_us"]["value"] == 5e-4
    for wrong in (["--memory", "64"], ["--network", "25GB"], ["--machines", "0"]):
        assert main([*words, *wrong]) == 2
