"""What `init` proposes for each kind of column, and the file it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from widedeep.cli.init import write_config
from widedeep.cli.runs import training_data
from widedeep.config import load_config
from widedeep.data.sources import open_source
from widedeep.errors import ConfigError

ROWS = 400
NUMBERS = [i * 0.37 for i in range(ROWS)]
IDS = [i % 150 for i in range(ROWS)]


def table(**more: Any) -> pa.Table:
    return pa.table({"click": [i % 2 for i in range(ROWS)], **more})


@pytest.fixture
def ads(tmp_path: Path) -> Path:
    rows = table(
        age=[i % 60 for i in range(ROWS)],
        job=["cook", "clerk", "pilot", None] * (ROWS // 4),
        place=["x", "y", "z", "z"] * (ROWS // 4),
        user_id=IDS,
        position=[1 + i % 10 for i in range(ROWS)],
        row_id=list(range(ROWS)),
        vector=[[0.5, i / 7] for i in range(ROWS)],
    )
    pq.write_table(rows, tmp_path / "train.parquet")
    pq.write_table(rows.slice(0, 50), tmp_path / "test.parquet")
    return tmp_path


def test_the_file_says_what_was_proposed_and_why(ads: Path) -> None:
    write_config(str(ads / "train.parquet"), ads / "ads.toml")
    text = (ads / "ads.toml").read_text()
    config = load_config(ads / "ads.toml")
    assert config.data.train == str(ads / "train.parquet")
    assert config.data.test == str(ads / "test.parquet")
    assert config.data.valid_fraction == 0.1
    assert config.spec.label == "click"
    numeric, categorical = ["age", "vector"], ["job", "place", "user_id", "position"]
    kinds = {name: type(f).__name__ for name, f in config.spec.by_name.items()}
    assert kinds == {
        **dict.fromkeys(numeric, "Numeric"),
        "age_bin": "Bucketized",
        **dict.fromkeys(categorical, "Categorical"),
    }
    assert config.spec.by_name["user_id"].min_count == 2
    assert config.spec.by_name["vector"].size == 2
    for said in (
        'label = "click"  # 0: 50%, 1: 50%',
        '"job",       # 3 values, 25% missing: clerk, cook, pilot',
        '# group = "user_id"',
        "training_only = { position = 1 }",
        "#   row_id: has a value of its own in nearly every row",
        "user_id",  # 150 values: 0, 1, 2 (id-like: values seen once share one id)",
    ):
        assert said in text


def test_what_is_commented_out_can_be_used_as_it_stands(ads: Path) -> None:
    write_config(str(ads / "train.parquet"), ads / "ads.toml")
    text = (ads / "ads.toml").read_text()
    (ads / "ads.toml").write_text(text.replace("# group =", "group ="))
    spec = load_config(ads / "ads.toml").spec
    assert (spec.group, spec.training_only) == ("user_id", {"position": 1})


def test_paths_are_seen_from_the_folder_of_the_file(
    ads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ads / "runs").mkdir()
    monkeypatch.chdir(ads)
    write_config("train.parquet", "runs/ads.toml")
    assert 'train = "../train.parquet"' in (ads / "runs" / "ads.toml").read_text()
    place = load_config(ads / "runs" / "ads.toml").data.train
    assert isinstance(place, str)
    assert Path(place).resolve() == ads / "train.parquet"


def test_a_file_is_not_replaced_unasked(ads: Path) -> None:
    (ads / "ads.toml").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"already exists; choose another file .-o., or .* --force"
    ):
        write_config(str(ads / "train.parquet"), ads / "ads.toml")
    assert (ads / "ads.toml").read_text() == "mine"
    write_config(str(ads / "train.parquet"), ads / "ads.toml", overwrite=True)
    assert "[features]" in (ads / "ads.toml").read_text()


@pytest.mark.parametrize(
    ("more", "split"),
    [
        ({}, (None, None)),
        ({"request_id": [f"r{i // 4}" for i in range(ROWS)]}, ("request_id", None)),
        (
            {
                "request_id": [f"r{i // 4}" for i in range(ROWS)],
                "event_time": [1_700_000_000 + i // 4 for i in range(ROWS)],
            },
            (None, "event_time"),
        ),
    ],
)
def test_the_validation_rows_are_the_last_or_whole_requests(
    tmp_path: Path, more: dict[str, Any], split: tuple[str | None, str | None]
) -> None:
    pq.write_table(table(age=NUMBERS, **more), tmp_path / "t.parquet")
    write_config(str(tmp_path / "t.parquet"), tmp_path / "run.toml")
    config = load_config(tmp_path / "run.toml")
    assert (config.data.valid_by, config.data.valid_latest) == split
    _, valid = training_data(config)
    with open_source(valid) as source:
        rows = pa.concat_tables(source.read(fragment) for fragment in source.fragments)
    assert 0 < rows.num_rows < ROWS
    if split[1] is not None:
        assert rows["event_time"].to_pylist() == more["event_time"][-40:]


def test_a_number_label_is_a_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pa.table({"x": rng.normal(size=100), "price": rng.normal(50, 9, 100)})
    pq.write_table(rows, tmp_path / "sales.parquet")
    write_config(str(tmp_path / "sales.parquet"), tmp_path / "run.toml", label="price")
    config = load_config(tmp_path / "run.toml")
    assert (config.model.head, config.train.epochs) == ("regression", "auto")


def test_names_that_need_quotes(tmp_path: Path) -> None:
    rows = pa.table({'a "b"': IDS, "c d_id": IDS, "click": [0, 1] * (ROWS // 2)})
    pq.write_table(rows, tmp_path / "t.parquet")
    write_config(str(tmp_path / "t.parquet"), tmp_path / "run.toml")
    spec = load_config(tmp_path / "run.toml").spec
    assert set(spec.by_name) == {'a "b"', 'a "b"_bin', "c d_id"}


@pytest.mark.parametrize("letter", ["\n", "\r", "\x7f", "\u2028", "#", '"', "é"])
def test_names_that_comments_cannot_hold(letter: str, tmp_path: Path) -> None:
    names = [f"{letter}{kind}" for kind in ("time", "number", "word")]
    columns = (pa.array(range(90), pa.timestamp("s")), np.arange(90) % 7 / 3, ["a", "b", "c"] * 30)
    data = pa.table({**dict(zip(names, columns, strict=True)), "click": [0, 1, 1] * 30})
    pq.write_table(data, tmp_path / "t.parquet")
    write_config(str(tmp_path / "t.parquet"), tmp_path / "run.toml")
    assert {*names[1:]} <= {*load_config(tmp_path / "run.toml").spec.by_name}


def test_csv_is_sampled_from_its_beginning(tmp_path: Path) -> None:
    lines = ["age,job,click", *(f"{20 + i % 40},{'ab'[i % 2]},{i % 2}" for i in range(ROWS))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    write_config(str(tmp_path / "t.csv"), tmp_path / "run.toml")
    assert "Guessed from 400 rows" in (tmp_path / "run.toml").read_text()


# ---- sorted files -------------------------------------------------------------------------------


def proposal_of(folder: Path, columns: dict[str, Any], name: str, suffix: str = "parquet") -> Any:
    table = pa.table(columns)
    path = str(folder / f"sorted.{suffix}")
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        pa.csv.write_csv(table, path)
    inferred = write_config(path, folder / "run.toml", label="y", overwrite=True)
    return next(column for column in inferred.columns if column.name == name)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("place", [0, 59_999, 119_999])
def test_a_column_is_constant_only_if_all_rows_say_so(
    tmp_path: Path, place: int, suffix: str
) -> None:
    n = 120_000
    country = ["US"] * n
    country[place] = "DE"
    columns = {
        "c": country,
        "s": ["one"] * n,
        "x": [i % 7 for i in range(n)],
        "y": [0, 1] * (n // 2),
    }
    assert proposal_of(tmp_path, columns, "c", suffix).role == "categorical"
    same = proposal_of(tmp_path, columns, "s", suffix)
    assert (same.role, same.reason) == ("left out", "is always one")


def test_a_value_behind_many_nulls_is_seen(tmp_path: Path) -> None:
    n = 120_000
    late = pa.array([None] * (n - 1) + ["promo"], pa.string())
    found = proposal_of(tmp_path, {"late": late, "x": range(n), "y": [0, 1] * (n // 2)}, "late")
    assert found.role == "categorical"


def test_values_that_repeat_far_apart_do_not_name_rows(tmp_path: Path) -> None:
    n = 120_000
    user = [f"u{i % 60_000}" for i in range(n)]  # each twice, never twice in a run of rows
    columns = {"user": user, "row": [f"r{i}" for i in range(n)], "y": [0, 1] * (n // 2)}
    columns["x"] = [i % 7 for i in range(n)]
    assert proposal_of(tmp_path, columns, "user").role == "categorical"
    assert "names rows" in proposal_of(tmp_path, columns, "row").reason


def test_vectors_of_one_length_in_the_sample_alone(tmp_path: Path) -> None:
    n = 120_000
    vectors = [[1.0, 2.0]] * (n - 2) + [[1.0]] + [[3.0, 4.0]]
    columns = {"v": pa.array(vectors), "x": [i % 7 for i in range(n)], "y": [0, 1] * (n // 2)}
    assert "different lengths" in proposal_of(tmp_path, columns, "v").reason


def test_the_label_is_read_whole(tmp_path: Path) -> None:
    n = 120_000
    columns = {"x": [i % 7 for i in range(n)], "y": [0.0, 1.0] * (n // 2 - 1) + [0.0, 250.0]}
    assert proposal_of(tmp_path, columns, "y").profile.maximum == 250.0
    assert 'head = "regression"' in (tmp_path / "run.toml").read_text()


def test_a_column_without_a_name_is_left_out_and_listed(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(",x,y\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(99)))
    found = write_config(str(tmp_path / "e.csv"), tmp_path / "run.toml", label="y")
    assert (found.columns[0].name, found.columns[0].role) == ("", "left out")
    assert "#   (no name): has no name" in (tmp_path / "run.toml").read_text()
