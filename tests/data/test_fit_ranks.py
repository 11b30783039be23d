"""fit_schema over several processes gives the file that one process writes, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.ranks.processes import run_ranks
from widedeep.cli.main import main
from widedeep.data.counting import ValueCounter
from widedeep.errors import ConfigError, FeatureError
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.schema import Schema

ROWS = 30_000
SPEC = wd.FeatureSpec(
    label={"spend": "spend", "like": "like"},
    weight="w",
    features=[
        *wd.categorical("city", min_count=2, max_size=900),
        *wd.categorical("user"),
        *wd.categorical("tags", maxlen=2),
        *wd.numeric("age", transform="standard"),
        *wd.numeric("pay", transform="log1p"),
        *wd.numeric("score", transform="quantile"),
        wd.bucketized("size_8", source="size", quantiles=8),
        wd.crossed("city", "tags", min_count=2, max_size=500),
    ],
)

RUN = """
[data]
train = "[abc].parquet"
label = "like"
[features]
categorical = ["city"]
numeric = ["age"]
"""


def rows(seed: int) -> pa.Table:
    """Rows whose values differ from one end of the table to the other."""
    rng = np.random.default_rng(seed)
    city = rng.zipf(1.3, ROWS) % 5000 + np.arange(ROWS) // 10_000 * 37
    missing = rng.random(ROWS) < 0.1
    n_tags = rng.integers(0, 4, ROWS)
    tags = pa.ListArray.from_arrays(
        np.cumsum([0, *n_tags]).astype(np.int32),
        pa.array([f"t{i}" for i in rng.integers(0, 40, n_tags.sum())]),
    )
    wide = rng.standard_normal(ROWS) * 10.0 ** rng.integers(-12, 12, ROWS)
    return pa.table(
        {
            "city": pa.array([f"city {i}" for i in city], mask=missing),
            "user": rng.integers(-(2**62), 2**62, ROWS) % 20_001,
            "tags": tags,
            "age": pa.array(wide, mask=missing),
            "pay": rng.exponential(50, ROWS),
            "score": rng.standard_normal(ROWS),
            "size": rng.integers(0, 100, ROWS),
            "spend": pa.array(rng.exponential(3, ROWS), mask=rng.random(ROWS) < 0.2),
            "like": rng.integers(0, 2, ROWS),
            "w": rng.random(ROWS),
        }
    )


def counted(ranks: Ranks, limit: int) -> list[Any]:
    """Count this rank's words of three, and return what all ranks count together."""
    with ValueCounter("bytes", memory_limit_bytes=limit) as counter:
        for start in range(ranks.rank * 1000, 6000, ranks.size * 1000):
            counter.add(pa.array([f"w{i * i % 2503}" for i in range(start, start + 1000)]))
        counter.exchange(ranks)
        (values, counts), (tail, tail_counts) = counter.split(2, 50, 40)
        return [
            *(values.to_pylist(), counts.tolist(), tail.to_pylist(), tail_counts.tolist()),
            *(counter.total, counter.distinct),
        ]


def fit_all(folder: str) -> dict[str, Any]:
    """Fit on files, an older schema and damaged rows; save what each rank gets."""
    ranks = ranks_of(DistributedConfig(lanes=8, timeout="60s"))
    data = f"{folder}/*.parquet"
    first = wd.fit_schema(SPEC, data, sample_rows=5000, threads=2, ranks=ranks)
    older = Schema.load(f"{folder}/older.safetensors")
    grown = wd.fit_schema(SPEC, data, threads=1, grow=older, ranks=ranks)
    first.save(f"{folder}/first-{ranks.rank}.safetensors")
    grown.save(f"{folder}/grown-{ranks.rank}.safetensors")
    answers: dict[str, Any] = {"counts": [counted(ranks, limit) for limit in (1 << 20, 700)]}
    with pytest.raises(FeatureError) as wrong:
        wd.fit_schema(SPEC, f"{folder}/*.p*", threads=2, ranks=ranks)
    with pytest.raises(ConfigError) as unequal:
        wd.fit_schema(SPEC, rows(ranks.rank).slice(ranks.rank), ranks=ranks)
    answers["errors"] = str(wrong.value), str(unequal.value)
    answers["exit"] = main(["prepare", f"{folder}/run.toml", "--out", f"{folder}/together"])
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    table = rows(1)
    for name, start, stop in (("a", 0, 16_000), ("b", 16_000, 16_500), ("c", 16_500, ROWS)):
        part = table.slice(start, stop - start)
        pq.write_table(part, folder / f"{name}.parquet", row_group_size=3000)
    wd.fit_schema(SPEC, rows(2).slice(0, 8000)).save(folder / "older.safetensors")
    damaged = table.slice(0, 300).to_pylist()
    damaged[299]["pay"] = float("inf")
    pq.write_table(pa.Table.from_pylist(damaged, table.schema), folder / "z.pq")
    (folder / "run.toml").write_text(RUN)
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(5, marks=pytest.mark.slow)])
def answers(folder: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(request.param, fit_all, str(folder))


@pytest.mark.parametrize("name", ["first", "grown"])
def test_every_rank_gets_the_schema_of_one_process(
    folder: Path, answers: list[dict[str, Any]], name: str
) -> None:
    older = Schema.load(folder / "older.safetensors") if name == "grown" else None
    options: dict[str, Any] = {"sample_rows": 5000} if older is None else {"grow": older}
    alone = wd.fit_schema(SPEC, f"{folder}/*.parquet", **options)
    alone.save(folder / "alone.safetensors")
    for rank in range(len(answers)):
        assert (folder / f"{name}-{rank}.safetensors").read_bytes() == (
            folder / "alone.safetensors"
        ).read_bytes()
    assert len(alone.vocabularies["city"]) > 400
    assert len(alone.vocabularies["user"]) > 10_000
    assert len(alone.label_quantiles["spend"]) == 200


def test_counts_are_those_of_one_process_on_disk_too(answers: list[dict[str, Any]]) -> None:
    expected = counted(Ranks(), 1 << 20)
    for answer in answers:
        assert answer["counts"] == [expected, expected]


def test_an_error_of_one_rank_is_raised_on_all(answers: list[dict[str, Any]]) -> None:
    own, *others = sorted((answer["errors"][0] for answer in answers), key=len)
    assert "row 299 of" in own
    assert all(re.fullmatch(rf"rank \d of \d \(.*\): {re.escape(own)}", one) for one in others)
    (differ,) = {answer["errors"][1] for answer in answers}
    assert re.fullmatch(
        r"rank 1 \(.*\): got data of 29,999 rows in 1 parts \(digest .*\), but of 30,000 rows in "
        r"1 parts \(digest .*\) on rank 0 \(.*\); give all ranks the same data: .*",
        differ,
    )


def test_prepare_writes_what_one_process_writes(
    folder: Path, answers: list[dict[str, Any]]
) -> None:
    assert main(["prepare", str(folder / "run.toml"), "--out", str(folder / "alone")]) == 0
    for name in ("schema.safetensors", "inputs.json"):
        together = (folder / "together" / name).read_bytes()
        assert together == (folder / "alone" / name).read_bytes()
    assert [answer["exit"] for answer in answers] == [0] * len(answers)


@pytest.mark.slow
def test_the_verb_launches_its_own_processes(folder: Path) -> None:
    words = ["prepare", str(folder / "run.toml"), "--out"]
    assert main([*words, str(folder / "lone")]) == 0
    assert main([*words, str(folder / "launched"), "--ranks", "2"]) == 0
    launched = (folder / "launched" / "schema.safetensors").read_bytes()
    assert launched == (folder / "lone" / "schema.safetensors").read_bytes()
