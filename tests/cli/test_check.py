"""`check` finds what would make training fail, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.ads import ads_table, write_ads
from tests.command_line import Run
from widedeep.cli.check import CheckReport, check_run
from widedeep.cli.main import main
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
        ("train.deep.lrr=1", "[train] deep: optimizer 'adagrad': got the unknown key 'lrr'"),
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
    (problem,) = report.problems
    assert "got patience = 2 under [train] without validation data" in problem


def test_a_split_that_leaves_nothing_to_train_on(ads: Path) -> None:
    (problem,) = check(ads, "data.valid_fraction=0.99999").problems
    assert "valid_fraction leaves no row to train on" in problem


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


def test_columns_that_nobody_reads_may_differ(ads: Path) -> None:
    (ads / "days").mkdir()
    table = pq.read_table(ads / "train.parquet")
    for day, note in enumerate((["x"] * 300, [1] * 300)):
        part = table.slice(300 * day, 300).append_column("note", [note])
        pq.write_table(part, ads / f"days/{day}.parquet")
    report = check(ads, f"data.train={ads / 'days'}")
    assert report.problems == []


def test_notes_are_no_problems(ads: Path) -> None:
    replace(ads, "train.parquet", "job", pa.array(["cook"] * 600))
    replace(ads, "train.parquet", "price", pa.array([None] * 400 + [1.0, 2.0] * 100))
    report = check(ads, "features.categorical=['job','ad','tags','row_id']")
    assert report.problems == []
    notes = "\n".join(report.notes)
    assert "column 'job' is constant in the sample: always cook" in notes
    assert "column 'price' is 67% missing" in notes
    assert "column 'row_id' has 600 values in 600 rows: it identifies rows" in notes
    assert "100% of the values of 'row_id' are not in the training sample" in notes


def test_items_that_a_bundle_could_not_keep(ads: Path) -> None:
    pq.write_table(pa.table({"add": ["ad 1"]}), ads / "items.parquet")
    items = ('features.item=["ad"]', f"data.items={ads / 'items.parquet'}")
    without, column = check(ads, *items).problems
    assert "items: vectors of items need two towers" in without
    assert "items: has no column 'ad', which belongs to the item; did you mean 'add'" in column
    towers = 'model.deep=[{ name = "two_tower", item = "ad" }]'
    pq.write_table(pa.table({"ad": ["ad 1"]}), ads / "items.parquet")
    assert check(ads, *items, towers).problems == []
    (missing,) = check(ads, items[0], "data.items=nowhere.parquet", towers).problems
    assert "[data] items: " in missing


def test_testing_on_the_training_data_is_noted(ads: Path) -> None:
    assert "test is the training data" in check(ads, f"data.test='{ads}/train.parquet'").notes[0]


# ---- what training refuses, check refuses -------------------------------------------------------


def with_column(folder: Path, name: str, column: str, values: list[object]) -> None:
    table = pq.read_table(folder / name)
    pq.write_table(table.append_column(column, pa.array(values)), folder / name)


def labels(folder: Path, values: list[object], name: str = "train.parquet") -> None:
    count = pq.read_metadata(folder / name).num_rows
    replace(folder, name, "click", pa.array((values * count)[:count]))


def last_row(folder: Path, value: object) -> None:
    labels(folder, [0.0, 1.0])
    values = pq.read_table(folder / "train.parquet")["click"].to_pylist()
    replace(folder, "train.parquet", "click", pa.array([*values[:-1], value], pa.float64()))


def weights(folder: Path, values: list[object]) -> None:
    for name in ("train.parquet", "test.parquet"):
        count = pq.read_metadata(folder / name).num_rows
        with_column(folder, name, "w", (values * count)[:count])


BROKEN: list[tuple[Callable[[Path], object], list[str], str]] = [
    (lambda ads: labels(ads, [-1.1, 0.5, 2.0]), [], "expected 0 to 1 for a binary head"),
    (lambda ads: last_row(ads, 1.5), [], "train.parquet): got 1.5, expected 0 to 1"),
    (lambda ads: last_row(ads, float("inf")), [], "train.parquet): got inf"),
    (lambda ads: last_row(ads, None), [], "label 'click' is null in 0.17% of the rows"),
    (lambda ads: labels(ads, ["a", "b", "c"]), ["model.head=binary"], "head='binary' for 3"),
    (lambda ads: labels(ads, ["a", "b"]), ["model.head=regression"], "head='regression' for a lab"),
    (lambda ads: labels(ads, [0, 1, 2]), ["model.head=multiclass"], "its classes are not known"),
    (lambda ads: labels(ads, ["a", "b"]), [], "label 'click'"),  # the test data has numbers
    (lambda ads: labels(ads, [1]), [], "label 'click' is always 1"),
    (lambda ads: labels(ads, [3], "test.parquet"), [], "[data] test: label 'click' (row 0 of "),
    (lambda ads: labels(ads, [f"u{i}" for i in range(600)]), ["model.head=multiclass",
     "data.test='train.parquet'"], "kept for validation"),
    (lambda ads: labels(ads, [{"a": 1}]), [], "column 'click' is struct<a: int64>"),
    (lambda ads: labels(ads, [{"a": 1}], "test.parquet"), [], "got a column of struct<a: int64>"),
    (lambda ads: weights(ads, [1.0, -2.0]), ["data.weight=w"], "weight 'w': got -2"),
    (lambda ads: weights(ads, [1.0, None]), ["data.weight=w"], "weight 'w': got null in row 1"),
    (lambda ads: weights(ads, [float("nan")]), ["data.weight=w"], "weight 'w': got nan"),
    (lambda ads: weights(ads, [0.0]), ["data.weight=w"], "weight 'w': got 0 in every row"),
    (lambda ads: weights(ads, ["x"]), ["data.weight=w"], "weight 'w'"),
    (lambda ads: None, ["train.monitor=aucc", "train.patience=1"], "did you mean 'auc'"),
    (lambda ads: None, ["train.monitor=gauc", "train.patience=1"], "got monitor='gauc'"),
    (lambda ads: None, ["train.monitor=rows", "train.patience=1"], "is no measure of quality"),
    (lambda ads: None, ["train.patience=1", "data.valid_fraction=0.0"], "validation data"),
    (lambda ads: None, ["train.device=cudda"], "got device='cudda'"),
    (lambda ads: None, ["train.device=meta"], "got device='meta'"),
    (lambda ads: None, ["model.hidden_units=[2000000000, 2000000000]"], "the model would take"),
    (lambda ads: None, ["train.wide.lr=nan"], "lr=nan"),
    (lambda ads: None, ["train.dense={ optimizer = 'adam', betas = [1, 2] }"], "betas"),
    (lambda ads: None, ["data.weight=click"], "got weight='click', which is the label"),
    (lambda ads: None, ["data.train='train.parquet'", "data.valid='none.parquet'"], "none.parquet"),
    (lambda ads: None, ["follow.publish='models'"], "but not when"),
    (lambda ads: None, ["follow.export_rows=0"], "export_rows=0"),
    (lambda ads: None, ["gate.max_auc_drop=-1"], "max_auc_drop=-1"),
    (lambda ads: None, ["gate.max_auc_dorp=1"], "did you mean 'max_auc_drop'"),
    (lambda ads: (ads / "runs").write_text("a file"), [], "is a file"),
    (lambda ads: labels(ads, [1], "test.parquet"),
     ["data.valid='test.parquet'", "train.patience=1", "train.monitor=auc"], "monitor = 'auc' is"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "sets", "said"), BROKEN, ids=[said for *_, said in BROKEN])
def test_check_refuses_what_train_refuses(
    run: Run, ads: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, sets: list[str], said: str
) -> None:
    monkeypatch.chdir(ads)
    spoil(ads)
    words = [word for text in sets for word in ("--set", text)]
    code, out, err = run("check", "ads.toml", *words)
    problems = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert code == 1, out
    assert any(said in line for line in problems), problems
    assert "Traceback" not in err
    told = run("train", "ads.toml", "--set", "train.epochs=1", *words)
    if said != "label 'click' is always 1":  # that training notes alone
        assert told.code == 2, told


def test_the_whole_label_is_read_whatever_the_sample_is(ads: Path) -> None:
    last_row(ads, 7.0)
    problems = check_run(ads / "ads.toml", rows=20).problems
    assert len(problems) == 1
    assert f"(row 599 of {ads}/train.parquet): got 7" in problems[0]


def test_a_row_is_named_by_its_file_and_a_note_is_told_once(
    ads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels(ads, [0.0] * 407 + [2.0] + [0.0, 1.0] * 96)
    table = pq.read_table(ads / "train.parquet")
    pq.write_table(table.slice(0, 400), ads / "part-0.parquet")
    pq.write_table(table.slice(400), ads / "part-1.parquet")
    files = f"data.train=['{ads}/part-0.parquet', '{ads}/part-1.parquet']"
    problems = check(ads, files).problems
    assert any(f"(row 7 of {ads}/part-1.parquet): got 2" in text for text in problems)
    labels(ads, [0.0, 1.0])
    replace(ads, "train.parquet", "price", pa.array([None, float("nan"), 1.0] * 200))
    main(["check", str(ads / "ads.toml")])
    assert capsys.readouterr().out.count("NaN counted as missing") == 1


def test_a_share_of_no_rows_and_one_of_a_single_class(ads: Path) -> None:
    table = pq.read_table(ads / "train.parquet")
    pq.write_table(table.slice(0, 3), ads / "few.parquet")
    few = (f"data.train='{ads}/few.parquet'", "data.valid_fraction=0.01")
    assert any("no row lies in the validation share" in text for text in check(ads, *few).problems)
    labels(ads, [0.0] * 599 + [1.0])
    notes = check(ads, "data.valid_fraction=0.1").notes
    assert any("[data] valid: auc will be undefined" in note for note in notes)


def test_a_finished_run_is_a_note(ads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ads)
    (ads / "runs" / "ads").mkdir(parents=True)
    (ads / "runs" / "ads" / "metrics.json").write_text("{}")
    report = check(ads)
    assert report.problems == []
    assert any("holds a finished run; --resume" in note for note in report.notes)


def test_null_labels_among_several_and_lists_of_labels_are_no_problem(
    run: Run, tmp_path: Path
) -> None:
    rows = [
        {
            "job": "ab"[n % 2],
            "click": n % 2,
            "price": float(n) if n % 2 else None,
            "tags": [["x"], ["x", "y"], [], None][n % 4],
        }
        for n in range(80)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    toml = tmp_path / "run.toml"
    text = '[data]\ntrain = "train.parquet"\nlabel = LABEL\n[features]\ncategorical = ["job"]\n'
    heads = '[model]\nheads.price = "regression"\n'
    for label, more in (('["click", "price"]', heads), ('["click", "tags"]', "")):
        toml.write_text(text.replace("LABEL", label) + more)
        checked = run("check", toml)
        assert checked.code == 0, checked.out
        assert run("train", toml, "--out", tmp_path / label.strip("[]")).code == 0
    toml.write_text(text.replace("LABEL", '"price"'))
    checked = run("check", toml)
    assert checked.code == 1 and "label 'price' is null in 50.00% of the rows" in checked.out
