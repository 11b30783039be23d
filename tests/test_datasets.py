"""The data sets of the package: their rows, their licence, and what their features learn."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import Run
from widedeep.datasets import Dataset, load_app_store, load_census
from widedeep.errors import ConfigError


def fit(data: Dataset, seed: int = 0) -> dict[str, float]:
    model = wd.WideDeep(wd.fit_schema(data.spec, data.train), hidden_units=[8], seed=seed)
    trainer = wd.Trainer(model, batch_size=512, threads=1, progress=False)
    trainer.fit(data.train)
    return trainer.evaluate(data.test)


def test_the_census_is_ucis_with_its_licence() -> None:
    census = load_census()
    assert (census.train.num_rows, census.valid.num_rows, census.test.num_rows) == (
        *(26_049, 6_512),
        16_281,
    )
    people = pa.concat_tables([census.train, census.valid])
    # UCI's adult.names: 24.08 % and 23.62 % of the two parts earn over 50,000 dollars.
    assert sum(people["income"].to_pylist()) == 7_841
    assert sum(census.test["income"].to_pylist()) == 3_846
    assert "CC BY 4.0" in census.about and "10.24432/C5XW20" in census.about
    assert len(census.train.column_names) == 15


@pytest.mark.slow
def test_the_features_of_the_census_rank_well() -> None:
    assert fit(load_census())["auc"] > 0.915


def test_parts_are_written_and_replace_what_is_there(tmp_path: Path) -> None:
    census = load_census()
    kept = tmp_path / "kept.parquet"
    pq.write_table(census.test.slice(0, 3), kept)
    folder = tmp_path / "census"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(kept)
    census.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("test.parquet", "train.parquet", "valid.parquet")
    ]
    assert pq.read_table(folder / "valid.parquet").equals(census.valid)
    assert pq.read_metadata(kept).num_rows == 3  # a link is replaced, not what it leads to


def test_the_app_store_is_a_function_of_its_arguments() -> None:
    options = {"days": 2, "users": 400, "requests_per_day": 300}
    first, again = load_app_store(**options), load_app_store(**options)
    other = load_app_store(seed=1, **options)
    assert first.train.equals(again.train) and not first.train.equals(other.train)
    assert sum(p.num_rows for p in (first.train, first.valid, first.test)) == 5_910
    assert set(first.train["label"].to_pylist()) == {0, 1}
    last = max(first.train["event_time"].to_pylist())
    assert last <= min(first.test["event_time"].to_pylist())
    for days in (1, True, 2.5):
        with pytest.raises(ConfigError, match=r"days=.*expected an integer of at least 2"):
            load_app_store(days=days)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_app_store_features_learn_who_installs_what() -> None:
    assert fit(load_app_store())["auc"] > 0.65


def test_the_first_result_takes_three_commands(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text, error = run("init", "--dataset", "census")
    assert code == 0, error
    assert "wrote run.toml" in text and "census/train.parquet" in Path("run.toml").read_text()
    config = wd.load_config("run.toml")
    assert (config.data.valid, config.data.test) == (
        *("census/valid.parquet",),
        "census/test.parquet",
    )
    code, text, error = run("init", "--dataset", "census", "census/train.parquet")
    assert code == 2 and "either DATA or --dataset" in error
    code, text, error = run("init")
    assert code == 2 and "either DATA or --dataset" in error
    code, text, error = run("init", "--dataset", "sensus")
    assert code == 2 and "census" in error
