"""Data behind URLs on several ranks: listed once, each rank's own row groups, the same bits."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.ads import TOML, ads_table
from tests.object_store import (  # noqa: F401
    FaultyServer,
    bucket,
    faulty_server,
    s3_endpoint,
)
from tests.ranks.threads import run_threads
from widedeep.data import sources
from widedeep.data.batch import Batch
from widedeep.data.fragments import Source
from widedeep.data.paths import rows_to_json
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import RowShare, open_on_ranks, open_source, split_rows
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.ranks.ranks import Ranks
from widedeep.schema import Schema

ROWS, GROUP, LANES = 6000, 250, 6
COLUMNS = ["age", "job", "click"]


@functools.cache
def schema() -> Schema:
    spec = wd.FeatureSpec(label="click", features=[*wd.numeric("age"), *wd.categorical("job")])
    return wd.fit_schema(spec, ads_table(ROWS, 0))


def write_days(folder: Path, n_days: int = 3) -> None:
    """Write folders ``day=N`` of a file each, of row groups of 250 rows."""
    for day in range(n_days):
        (folder / f"day={day}").mkdir(parents=True)
        rows = ads_table(ROWS // n_days, day)
        pq.write_table(rows, folder / f"day={day}" / "a.parquet", row_group_size=GROUP)


def served_rows(server: FaultyServer) -> str:
    """Put rows in several groups behind a URL, and return it."""
    sink = pa.BufferOutputStream()
    pq.write_table(ads_table(ROWS, 0), sink, row_group_size=GROUP)
    server.files["/rows.parquet"] = sink.getvalue().to_pybytes()
    return f"{server.url}/rows.parquet"


def opened(data: Any, ranks: Ranks, columns: list[str] = COLUMNS) -> Source:
    return open_on_ranks(
        data, ranks, "training data", columns=columns, column_types={}, empty="no rows"
    )


def own_batches(data: Any, ranks: Ranks) -> list[Batch]:
    """Return the batches of a shuffled epoch that a rank reads."""
    with opened(data, ranks) as source:
        plan = EpochPlan(source, batch_size=300, seed=1, epoch=2, lanes=ranks.lanes)
        encode = functools.partial(Transform(schema()), targets=True)
        with BatchReader(source, encode, plan, lanes=ranks.lanes_of()) as reader:
            return list(reader)


def test_ranks_read_from_a_bucket_what_they_read_from_files(
    bucket: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_days(tmp_path)
    fsspec.filesystem("s3").put(f"{tmp_path}/", f"{bucket}/train/", recursive=True)
    data = (f"{bucket}/train/day=*/*.parquet", f"{tmp_path}/day=*/*.parquet")
    far, here = (run_threads(2, functools.partial(own_batches, one), LANES) for one in data)
    for theirs, own in zip(far, here, strict=True):
        assert len(theirs) == len(own) == ROWS // 300
        for one, other in zip(theirs, own, strict=True):
            np.testing.assert_array_equal(one.ids_N, other.ids_N)
            np.testing.assert_array_equal(one.dense_BK, other.dense_BK)
            np.testing.assert_array_equal(one.labels_BL, other.labels_BL)


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_rank_lists_the_files_of_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: bool
) -> None:
    write_days(tmp_path)
    listings = []

    def list_and_add(data: Any) -> Any:
        listings.append(rows_to_json(data))
        extra = ads_table(10, 9)
        (tmp_path / "day=9").mkdir()
        pq.write_table(extra, tmp_path / "day=9" / "late.parquet")
        return listings[-1]

    monkeypatch.setattr(sources, "rows_to_json", list_and_add)
    data: Any = f"{tmp_path}/day=*/*.parquet"
    if shared:
        data = split_rows(data, 0.25)[0]
    columns = [*COLUMNS, "day"]
    every = run_threads(3, lambda ranks: opened(data, ranks, columns))
    assert len(listings) == 1
    assert len({source.num_rows for source in every}) == 1
    with open_source(data, columns=columns) as later:
        assert later.num_rows > every[0].num_rows
    assert isinstance(data, RowShare) == shared
    for source in every:
        source.close()


def test_a_rank_fetches_the_row_groups_of_its_lanes(
    faulty_server: FaultyServer,  # noqa: F811
) -> None:
    url = served_rows(faulty_server)

    def fetched(ranks: Ranks) -> int:
        """Return how many ranges of row groups a rank asks for."""
        with open_source(url, columns=COLUMNS) as source:
            faulty_server.requests.clear()
            plan = EpochPlan(source, batch_size=300, seed=1, epoch=2, lanes=LANES)
            encode = functools.partial(Transform(schema()), targets=True)
            with BatchReader(source, encode, plan, lanes=ranks.lanes_of()) as reader:
                assert sum(map(len, reader)) == ROWS // ranks.size
        return len(faulty_server.requests)

    alone = fetched(Ranks(lanes=LANES))
    assert alone == ROWS // GROUP
    assert [fetched(Ranks(rank, 6, LANES)) for rank in range(6)] == [alone // 6] * 6


def test_an_object_that_changes_meanwhile_is_told_of(
    faulty_server: FaultyServer,  # noqa: F811
) -> None:
    url = served_rows(faulty_server)

    def second_half(ranks: Ranks) -> None:
        with opened(url, ranks) as source:
            source.read(source.fragments[ranks.rank], COLUMNS)
            ranks.barrier()
            faulty_server.tags = {"ETag": '"2"'}
            source.read(source.fragments[8 + ranks.rank], COLUMNS)

    for error in run_threads(2, second_half):
        assert isinstance(error, DataError)
        assert f"{url}: changed while being read; leave input files alone" in str(error)


def test_a_rank_that_may_not_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_days(tmp_path)

    def without_credentials(ranks: Ranks) -> Source:
        if ranks.rank == 1:
            monkeypatch.setattr(sources, "rows_from_json", refused)
        return opened(f"{tmp_path}/day=*/*.parquet", ranks)

    def refused(told: Any) -> Any:
        monkeypatch.undo()
        raise DataError("s3://x: access is refused (no credentials); give credentials: AWS_PROFILE")

    errors = sorted(map(str, run_threads(2, without_credentials)), key=len)
    assert errors[0].startswith("s3://x: access is refused")
    assert errors[1].startswith("rank ") and errors[1].endswith(errors[0])


@pytest.mark.slow
def test_a_run_over_ranks_from_a_bucket_into_it(
    bucket: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Data, checkpoints and bundle behind URLs: the bundle of one process on local files."""
    write_days(tmp_path / "train")
    fs = fsspec.filesystem("s3")
    fs.put(f"{tmp_path}/train/", f"{bucket}/train/", recursive=True)
    head, _, features = TOML.partition('test = "test.parquet"\n')
    configs = {}
    for name, root in (("here", str(tmp_path)), ("far", bucket)):
        data = head.replace('"train.parquet"', f'"{root}/train/day=*/*.parquet"')
        configs[name] = tmp_path / f"{name}.toml"
        configs[name].write_text(f"{data}{features}\n[distributed]\nlanes = 6\n")

    def train(config: Path, *words: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "widedeep", "train", str(config), "--json"]
        options = ["--set", "train.batch_size=96", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": f"{tmp_path}/cache"}
        done = subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    alone = train(configs["here"], "--out", "alone")
    url = f"{bucket}/run"
    train(configs["far"], "--out", url, "--ranks", 2, "--set", "train.epochs=1")
    both = train(configs["far"], "--out", url, "--ranks", 3, "--resume")
    assert both["metrics"] == alone["metrics"] and both["ranks"] == 3
    weights = fs.cat(f"{url}/bundle/weights.safetensors")
    assert weights == (tmp_path / "alone/bundle/weights.safetensors").read_bytes()
