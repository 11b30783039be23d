"""Words that stand for a missing value in CSV: read so wherever a model's data is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.command_line import Run
from widedeep.data.reuse import reuse_inputs
from widedeep.data.sources import open_source
from widedeep.errors import DataError, FeatureError
from widedeep.features.learned import ColumnTypes


def read(path: Path, null_values: list[str], **types: Any) -> dict[str, list[Any]]:
    with open_source(path, column_types=ColumnTypes(types, null_values)) as source:
        return {
            name: [v for f in source.fragments for v in source.read(f)[name].to_pylist()]
            for name in source.arrow_schema.names
        }


def rows(n: int = 60) -> list[tuple[str, str, int]]:
    numbers = ["NA" if i % 10 == 3 else "?" if i % 10 == 7 else str(20 + i % 9) for i in range(n)]
    return [(number, "ab"[i % 2], (i // 2) % 2) for i, number in enumerate(numbers)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [f"{age},{job},{click}" for age, job, click in rows()]
    Path("words.csv").write_text("age,job,click\n" + "\n".join(lines) + "\n")
    Path("empty.csv").write_text(
        "age,job,click\n" + "\n".join(lines).replace("NA", "").replace("?", "") + "\n"
    )
    return tmp_path


@pytest.mark.parametrize("words", [["NA", "-1", ""], ["", "NA", "-1", "NA"]])
def test_a_word_is_missing_in_every_column_and_between_quotes(
    tmp_path: Path, words: list[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b,c\nNA,"NA",NA \n1,,""\n-1,-1,-1.0\n"NA",na,x\n')
    assert read(path, words, b="category") == {
        "a": [None, 1, None, None],
        "b": [None, None, None, "na"],
        "c": ["NA ", None, "-1.0", "x"],
    }
    assert read(path, [])["c"] == ["NA ", "", "-1.0", "x"]


def test_a_number_that_the_fast_reader_leaves_to_the_careful_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n+1\nNA\n 2\n")
    assert read(path, ["NA"], a=pa.float64()) == {"a": [1.0, None, 2.0]}
    path.write_text("a\n+1\nNA\n 2\n-\n")
    with pytest.raises(DataError, match=r"line 5.*got '-'.*null_values = \[\"-\"\]"):
        read(path, ["NA"], a=pa.float64())


def test_files_that_were_read_are_read_again_with_other_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widedeep.data.reuse._SETTLED_NS", 0)
    with reuse_inputs():
        assert read(Path("words.csv"), [])["age"][3] == "NA"
        assert read(Path("words.csv"), ["NA", "?"])["age"][3] is None
        assert read(Path("words.csv"), ["NA"])["age"][7] == "?"


def test_a_spec_and_its_schema_keep_the_words(folder: Path) -> None:
    spec = wd.FeatureSpec(
        label="click",
        features=[*wd.numeric("age"), *wd.categorical("job")],
        null_values=["NA", "?", "NA"],
    )
    assert spec.null_values == ("NA", "?")
    assert wd.FeatureSpec.from_toml(spec.to_toml()) == spec
    plain = spec.replace(null_values=())
    assert "null_values" not in plain.to_toml()
    schema, other = wd.fit_schema(spec, "words.csv"), wd.fit_schema(plain, "empty.csv")
    assert schema.missing == other.missing
    assert schema.fingerprint != other.fingerprint
    schema.save("schema")
    assert wd.Schema.load("schema").spec.null_values == ("NA", "?")
    with pytest.raises(DataError, match=r"line 5, column 'age'.*null_values = \[\"NA\"\]"):
        wd.fit_schema(plain, "words.csv")


@pytest.mark.parametrize("words", ["NA", [1], None, {"NA"}, ["\ud800"]])
def test_words_that_are_no_list_of_texts(words: Any) -> None:
    with pytest.raises(FeatureError, match=r"null_values, expected a list of texts"):
        wd.FeatureSpec(features=wd.numeric("age"), null_values=words)


def test_a_class_that_no_row_would_have() -> None:
    with pytest.raises(FeatureError, match=r"the class 'NA' of label_vocabulary"):
        wd.FeatureSpec(
            features=wd.numeric("age"), label_vocabulary=["yes", "NA"], null_values=["NA"]
        )


def test_init_check_train_and_score_read_the_words(folder: Path, run: Run) -> None:
    assert run("init", "words.csv", "--label", "click", "-o", "run.toml").code == 0
    assert 'null_values = ["?", "NA"]' in Path("run.toml").read_text()
    assert run("check", "run.toml").code == 0
    small = ("--set", "train.epochs=1", "--set", "model.hidden_units=[4]")
    assert run("train", "run.toml", "--out", "runs/words", *small).code == 0
    Path("plain.toml").write_text(
        Path("run.toml").read_text().replace("words.csv", "empty.csv").replace("null_values", "# ")
    )
    assert run("train", "plain.toml", "--out", "runs/empty", *small).code == 0
    for words in (["runs/words", "words.csv"], ["runs/words", "empty.csv"]):
        assert run("score", *words, "-o", f"{words[1]}.parquet").code == 0
    scores = [read(folder / f"{name}.csv.parquet", [])["score"] for name in ("words", "empty")]
    assert scores[0] == scores[1]
    bundles = [wd.Bundle.load(f"runs/{name}/bundle") for name in ("words", "empty")]
    for name, tensor in bundles[0].weights.items():
        np.testing.assert_array_equal(tensor, bundles[1].weights[name])
    log = [
        json.loads(run("evaluate", "runs/words", f"{name}.csv", "--json").out)["metrics"]
        for name in ("words", "empty")
    ]
    assert log[0] == log[1]


def test_init_says_what_the_words_do_to_other_columns(folder: Path) -> None:
    lines = [
        f"{age},{('NA', 'DE', 'FR')[i % 3]},{click}" for i, (age, _, click) in enumerate(rows())
    ]
    Path("t.csv").write_text("age,country,click\n" + "\n".join(lines) + "\n")
    inferred = wd.infer_spec("t.csv", label="click")
    assert set(inferred.spec.null_values) == {"NA", "?"}
    (warning,) = [text for text in inferred.warnings if text.startswith("country")]
    assert "20 of 60 rows hold a word of null_values and are missing, as in all columns" in warning
    assert wd.FeatureSpec.from_toml(inferred.to_toml()) == inferred.spec
    assert wd.infer_spec("t.csv", label="click", null_values=()).spec.null_values == ()


def test_a_catalogue_in_csv_is_read_as_the_model_was_trained(folder: Path) -> None:
    spec = wd.FeatureSpec(
        label="click",
        features=[*wd.numeric("age"), *wd.categorical("job")],
        item=["age", "job"],
        null_values=["NA", "?"],
    )
    schema = wd.fit_schema(spec, "words.csv")
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[4]), progress=False)
    trainer.fit("words.csv", epochs=1)
    trainer.export("bundle")
    for name, word in (("words", "NA"), ("empty", "")):
        Path(f"items_{name}.csv").write_text(f"id,age,job\n1,{word},a\n2,21,{word}\n")
    scores = [
        wd.Ranker("bundle", items=f"items_{name}.csv", item_id="id").rank({}, candidates=[1, 2])
        for name in ("words", "empty")
    ]
    assert scores[0].scores.tolist() == scores[1].scores.tolist()
    assert scores[0].items == scores[1].items
