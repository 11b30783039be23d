"""Rows in, rows with scores out: every way in and out, in order, and bad rows named."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.cli import score as score_module
from widedeep.cli.score import ScoreReport, score_rows
from widedeep.errors import DataError, FeatureError


@pytest.fixture
def bundle(ads_run: Path) -> wd.Bundle:
    return wd.Bundle.load(ads_run / "run" / "bundle")


@pytest.fixture
def rows(ads_run: Path) -> pa.Table:
    return pq.read_table(ads_run / "test.parquet")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("keep", ["all", "none"])
@pytest.mark.parametrize("out", ["s.parquet", "s.jsonl"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "feather"])
def test_every_way_in_and_out(
    bundle: wd.Bundle, rows: pa.Table, tmp_path: Path, kind: str, out: str, keep: Any
) -> None:
    source = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(rows, source, row_group_size=64)
    elif kind == "jsonl":
        write_lines(source, rows.to_pylist())
    else:
        with pa.OSFile(str(source), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
    report = score_rows(bundle, str(source), str(tmp_path / out), keep=keep)
    expected = bundle.score(rows)
    assert report == ScoreReport(rows=200, unseen=report.unseen)
    found = pq.read_table(tmp_path / out).to_pylist() if "parquet" in out else lines(tmp_path / out)
    assert [row.pop("score") for row in found] == expected.tolist()
    assert found == (rows.to_pylist() if keep == "all" else [{}] * 200)


def test_csv(bundle: wd.Bundle, rows: pa.Table, tmp_path: Path) -> None:
    flat = rows.drop_columns(["tags"]).append_column("tags", pa.nulls(200, pa.string()))
    pacsv.write_csv(flat, tmp_path / "in.csv")
    with pytest.raises(DataError, match=r"column 'tags' is one of lists, which CSV cannot hold"):
        score_rows(bundle, str(tmp_path / "in.csv"), str(tmp_path / "out.parquet"))
    assert sorted(place.name for place in tmp_path.iterdir()) == ["in.csv"]


def test_chosen_columns_and_name(bundle: wd.Bundle, ads_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    data = str(ads_run / "test.parquet")
    score_rows(bundle, data, str(out), keep=["row_id", "ad"], name="p_click")
    found = pq.read_table(out)
    assert found.column_names == ["row_id", "ad", "p_click"]
    assert found["row_id"].to_pylist() == list(range(2000, 2200))
    assert found["p_click"].type == pa.float64()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_scores_do_not_depend_on_the_chunks(
    bundle: wd.Bundle, rows: pa.Table, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_CHUNK_ROWS", chunk)
    source = write_lines(tmp_path / "in.jsonl", rows.to_pylist())
    score_rows(bundle, str(source), str(tmp_path / "a.parquet"), keep="none")
    pq.write_table(rows, tmp_path / "in.parquet")
    score_rows(bundle, str(tmp_path / "in.parquet"), str(tmp_path / "b.parquet"), keep="none")
    expected = bundle.score(rows).tolist()
    assert pq.read_table(tmp_path / "a.parquet")["score"].to_pylist() == expected
    assert pq.read_table(tmp_path / "b.parquet")["score"].to_pylist() == expected


def test_what_the_model_does_not_know_is_counted(bundle: wd.Bundle, tmp_path: Path) -> None:
    given = [{"age": 30, "job": "astronaut"}, {"job": "cook", "ad": "ad 1", "tags": ["t1", "new"]}]
    source = write_lines(tmp_path / "in.jsonl", given)
    report = score_rows(bundle, str(source), str(tmp_path / "out.jsonl"))
    assert report.absent == {"age": 1, "price": 2, "ad": 1, "tags": 1}
    assert report.unseen == {"job": 1, "tags": 1}
    scores = [row["score"] for row in lines(tmp_path / "out.jsonl")]
    assert scores == bundle.score(given).tolist()
    with pytest.raises(DataError, match=r"price|ad"):
        score_rows(bundle, str(source), str(tmp_path / "out.jsonl"), strict=True)


def test_standard_input_and_output(
    bundle: wd.Bundle, rows: pa.Table, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given = rows.slice(0, 3).to_pylist()
    text = "\n".join(json.dumps(row) for row in given) + "\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    score_rows(bundle, "-", "-", keep=["row_id"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row_id"] for row in found] == [2000, 2001, 2002]
    assert [row["score"] for row in found] == bundle.score(given).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"age": 3}\n{"age": \n', r"in.jsonl, line 2: got text that is no JSON"),
        ('{"age": 3}\n\n[1]\n', r"in.jsonl, line 3: got list, expected one object a line"),
        ("", r"in.jsonl: got no rows to score"),
        ('{"age": 3, "score": 1}\n', r"holds a column 'score' already; give the score another na"),
    ],
)
def test_bad_lines(bundle: wd.Bundle, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        score_rows(bundle, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("chunk", [1, 16])
def test_a_value_that_does_not_fit(
    bundle: wd.Bundle, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_CHUNK_ROWS", chunk)
    (tmp_path / "in.jsonl").write_text('{"age": 3}\n{"age": "old"}\n')
    with pytest.raises(FeatureError, match=r"feature 'age' .row 1 of .*in.jsonl.*'old'"):
        score_rows(bundle, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))


def test_a_table_without_a_column(bundle: wd.Bundle, rows: pa.Table, tmp_path: Path) -> None:
    pq.write_table(rows.rename_columns(["jop" if n == "job" else n for n in rows.column_names]),
                   tmp_path / "in.parquet")  # fmt: skip
    for keep in ("all", "none"):
        with pytest.raises(DataError, match=r"no column 'job'; did you mean 'jop'"):
            score_rows(bundle, str(tmp_path / "in.parquet"), str(tmp_path / "s.parquet"), keep=keep)


def test_a_column_to_keep_that_is_not_there(bundle: wd.Bundle, ads_run: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'row_ix'; did you mean 'row_id'"):
        score_rows(bundle, str(ads_run / "test.parquet"), "-", keep=["row_ix"])


@pytest.mark.parametrize(
    ("out", "message"),
    [("s.csv", r"got the suffix '.csv', expected .parquet or .jsonl"), ("x/s.jsonl", "no folder")],
)
def test_outputs_that_cannot_be(
    bundle: wd.Bundle, ads_run: Path, tmp_path: Path, out: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score_rows(bundle, str(ads_run / "test.parquet"), str(tmp_path / out))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_an_input_is_not_written_over(
    bundle: wd.Bundle, rows: pa.Table, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(rows, path)
    else:
        write_lines(path, rows.to_pylist())
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is an input too, whose rows would be lost"):
        score_rows(bundle, str(path), str(tmp_path / "link" / name), keep="none")
    assert path.read_bytes() == before


def test_every_file_of_a_pattern_is_scored(
    bundle: wd.Bundle, rows: pa.Table, tmp_path: Path
) -> None:
    parts = [rows.slice(0, 3).to_pylist(), rows.slice(3, 4).to_pylist()]
    for number, part in enumerate(parts):
        write_lines(tmp_path / f"{number}.jsonl", part)
    report = score_rows(bundle, str(tmp_path / "?.jsonl"), str(tmp_path / "out.parquet"))
    assert report.rows == 7
    assert pq.read_table(tmp_path / "out.parquet")["score"].to_numpy() == pytest.approx(
        bundle.score(rows.slice(0, 7))
    )
    write_lines(tmp_path / "1.jsonl", [*parts[1], {"age": [[]]}])
    with pytest.raises(FeatureError, match=r"row 4 of .*1\.jsonl"):
        score_rows(bundle, str(tmp_path / "?.jsonl"), str(tmp_path / "more.parquet"))


def test_a_failure_leaves_an_older_file_as_it_was(bundle: wd.Bundle, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"age": 3}\nno\n')
    (tmp_path / "out.jsonl").write_text("older")
    with pytest.raises(DataError):
        score_rows(bundle, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 2


def test_values_that_json_has_no_word_for(
    bundle: wd.Bundle, rows: pa.Table, tmp_path: Path
) -> None:
    given = rows.slice(0, 2)
    days = pa.array([0, 1], pa.date32())
    given = given.append_column("day", days).append_column("x", pa.array([float("nan"), 1.0]))
    pq.write_table(given, tmp_path / "in.parquet")
    score_rows(bundle, str(tmp_path / "in.parquet"), str(tmp_path / "o.jsonl"), keep=["day", "x"])
    found = lines(tmp_path / "o.jsonl")
    assert [(row["day"], row["x"]) for row in found] == [("1970-01-01", None), ("1970-01-02", 1.0)]


def test_json_rows_of_several_shapes_as_parquet(
    bundle: wd.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_CHUNK_ROWS", 2)
    out = str(tmp_path / "out.parquet")
    first = [{"age": 3, "job": None}, {"age": 4}]
    write_lines(tmp_path / "in.jsonl", [*first, {"job": "cook"}, {"age": 5}])
    score_rows(bundle, str(tmp_path / "in.jsonl"), out)
    found = pq.read_table(out)
    assert found["job"].to_pylist() == [None, None, "cook", None]
    assert found["age"].to_pylist() == [3, 4, None, 5]
    write_lines(tmp_path / "in.jsonl", [*first, {"new": 1}])
    with pytest.raises(DataError, match=r"rows hold other columns or types.*new.*--keep"):
        score_rows(bundle, str(tmp_path / "in.jsonl"), out)
    write_lines(tmp_path / "in.jsonl", [{"other": 1}, {"other": "a"}])
    with pytest.raises(DataError, match=r"column 'other' holds values of several types"):
        score_rows(bundle, str(tmp_path / "in.jsonl"), out)


def test_several_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pa.table({"x": rng.normal(size=90), "kind": ["a", "b", "c"] * 30})
    spec = wd.FeatureSpec(label="kind", features=wd.numeric("x"))
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
    bundle = wd.Trainer(model, progress=False).export(tmp_path / "bundle")
    pq.write_table(rows, tmp_path / "in.parquet")
    score_rows(bundle, str(tmp_path / "in.parquet"), str(tmp_path / "s.parquet"), keep="none")
    found = np.array(pq.read_table(tmp_path / "s.parquet")["score"].to_pylist())
    assert (found == bundle.score(rows)).all()
    assert found.shape == (90, 3)
