"""`check` finds what would make training fail, before it starts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.ads import ads_table, write_ads
from widedeep.commands.check import CheckReport, check_run
from widedeep.errors import ConfigError


@pytest.fixture
def ads(tmp_path: Path) -> Path:
    return write_ads(tmp_path)


def check(folder: Path, *overrides: str) -> CheckReport:
    return check_run(folder / "ads.toml", overrides)


def replace(folder: Path, name: str, column: str, values: pa.Array | None) -> None:
    table = pq.read_table(folder / name)
    place = table.column_names.index(column)
    table = table.remove_column(place)
    if values is not None:
        table = table.add_column(place, column, values)
    pq.write_table(table, folder / name)


def test_a_good_configuration(ads: Path) -> None:
    report = check(ads)
    assert report.problems == []
    assert [(found.role, found.rows, found.sampled) for found in report.inputs] == [
        ("train", 600, 600),
        ("test", 200, 200),
    ]
    assert report.schema is not None
    assert report.schema.rows == 600
    clicks = pc.mean(ads_table(600, 1)["click"]).as_py()
    assert report.labels == {"click": f"0 {1 - clicks:.1%}, 1 {clicks:.1%}"}


def test_the_sample_is_as_small_as_asked(ads: Path) -> None:
    report = check_run(ads / "ads.toml", rows=90)
    assert [found.sampled for found in report.inputs] == [90, 90]
    assert report.schema is not None
    assert report.schema.rows == 90


def test_a_missing_configuration_is_an_error_and_no_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; 'widedeep init DATA' writes one"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.epoch=3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("train.wide.optimizer='ftlr'", "[train] wide: got optimizer='ftlr'; did you mean 'ftrl'?"),
        ("train.deep.lrr=1", "[train] deep: optimizer 'adagrad': unknown key 'lrr'"),
        ("train.wide.lr=-1.0", "lr"),
        ("data.train='nowhere.parquet'", "nowhere.parquet: no such file"),
        ("data.label='clikc'", "no column 'clikc', which is the label; did you mean 'click'?"),
        ("data.weight='w'", "has no column 'w', which is the weight"),
        ("features.numeric=['age','jop']", "no column 'jop', which a feature reads; did you mean"),
        ("features.numeric=['age','tags']", "tags"),
        ("model.head='multiclass'", "its classes are not known"),
    ],
)
def test_what_training_would_stumble_over(ads: Path, override: str, problem: str) -> None:
    problems = check(ads, override).problems
    assert any(problem in found for found in problems), problems


def test_every_problem_is_told_at_once(ads: Path) -> None:
    replace(ads, "test.parquet", "job", None)
    report = check(ads, "train.wide.lrr=1", "data.label='clikc'")
    assert len(report.problems) == 4  # the optimizer, the label twice, the test column


def test_patience_needs_validation_data(ads: Path) -> None:
    report = check(ads, "train.patience=2", "data.valid_fraction=0.0")
    assert "[train] patience = 2 needs validation data" in report.problems[0]


def test_a_label_of_one_class(ads: Path) -> None:
    replace(ads, "train.parquet", "click", pa.array([0] * 600))
    assert "label 'click' is always 0, expected at least two values" in check(ads).problems[0]


def test_a_label_that_is_null(ads: Path) -> None:
    clicks = [None, *([0, 1] * 299), 1]
    replace(ads, "train.parquet", "click", pa.array(clicks))
    assert "label 'click' is null in 0.17% of the rows" in check(ads).problems[0]


def test_a_negative_weight(ads: Path) -> None:
    for name, rows in (("train.parquet", 600), ("test.parquet", 200)):
        weight = pa.array([-1.0] + [1.0] * (rows - 1))
        pq.write_table(pq.read_table(ads / name).append_column("w", weight), ads / name)
    assert any("weight 'w': got -1" in found for found in check(ads, "data.weight='w'").problems)


def test_a_column_of_another_type_in_the_test_data(ads: Path) -> None:
    replace(ads, "test.parquet", "age", pa.array(["old"] * 200))
    assert any("[data] test: " in found and "age" in found for found in check(ads).problems)


def test_notes_are_no_problems(ads: Path) -> None:
    replace(ads, "train.parquet", "job", pa.array(["cook"] * 600))
    replace(ads, "train.parquet", "price", pa.array([None] * 400 + [1.0, 2.0] * 100))
    report = check(ads, "features.categorical=['job','ad','tags','row_id']")
    assert report.problems == []
    notes = "\n".join(report.notes)
    assert "column 'job' is constant in the sample: always cook" in notes
    assert "column 'price' is 67% missing" in notes
    assert "column 'row_id' has 600 values in 600 rows: it names rows" in notes
    assert "100% of the values of 'row_id' are not in the training sample" in notes


def test_testing_on_the_training_data_is_noted(ads: Path) -> None:
    assert "test is the training data" in check(ads, f"data.test='{ads}/train.parquet'").notes[0]
