"""What `infer_spec` takes each column for, and what it says about it."""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import widedeep as wd
from widedeep.data.infer import InferredSpec
from widedeep.data.roles import InferredColumn
from widedeep.errors import ConfigError, DataError
from widedeep.features.numeric import Numeric

ROWS = 400
NUMBERS = [i % 100 * 0.37 for i in range(ROWS)]
IDS = [i % 150 for i in range(ROWS)]
REQUESTS = [f"r{i // 4}" for i in range(ROWS)]
MICROSECONDS = [1_700_000_000_000_000 + i for i in range(ROWS)]

DAYS = [datetime.date(2020, 1, 1 + i % 20) for i in range(ROWS)]


def table(**more: Any) -> pa.Table:
    return pa.table({"click": [i % 2 for i in range(ROWS)], **more})


def column_of(inferred: InferredSpec, name: str) -> InferredColumn:
    return next(column for column in inferred.columns if column.name == name)


def one(values: Any, name: str = "x", **more: Any) -> InferredColumn:
    """What a column is taken for, beside a plain feature that is always kept."""
    return column_of(wd.infer_spec(table(**{name: values, "age": NUMBERS, **more})), name)


@pytest.mark.parametrize(
    ("name", "values", "role", "reason"),
    [
        ("price", NUMBERS[::-1], "numeric", ""),
        ("stars", [i % 5 for i in range(ROWS)], "numeric", ""),
        ("job", ["cook", "clerk", "cook", "pilot"] * (ROWS // 4), "categorical", ""),
        ("job", ["cook", "?", "a", "a"] * (ROWS // 4), "categorical", "'?' is a value, not null"),
        ("flag", [True, True, False, False] * (ROWS // 4), "categorical", ""),
        ("user_id", IDS, "categorical", "id-like"),
        ("userId", IDS, "categorical", "id-like"),
        ("item", IDS, "categorical", "named like a key"),
        ("store_code", IDS, "categorical", "named like a key"),
        ("items", IDS, "numeric", ""),
        ("item_id", [f"i{i}" for i in IDS], "categorical", "id-like"),
        ("row_id", list(range(ROWS)), "left out", "names rows"),
        ("name", [f"name {i}" for i in range(ROWS)], "left out", "names rows"),
        ("__index_level_0__", IDS, "left out", "index of a pandas frame"),
        ("CustomerID", [float(i) for i in IDS], "left out", "write it as integers"),
        ("country", ["de"] * ROWS, "left out", "is always de"),
        ("empty", pa.nulls(ROWS, pa.string()), "left out", "has no value"),
        (
            "born",
            [datetime.date(2020, 1, 1 + i % 20) for i in range(ROWS)],
            "left out",
            "is a time",
        ),
        ("signup_time", MICROSECONDS, "left out", "is a time"),
        ("event_time", MICROSECONDS, "time", "is a time"),
        ("blob", [{"a": i} for i in range(ROWS)], "left out", "which no feature reads"),
        ("picture", [b"\xff%d" % (i % 9) for i in range(ROWS)], "left out", "which no feature"),
        ("word", [b"%d" % (i % 9) for i in range(ROWS)], "categorical", ""),
        ("hash", pa.array([2**63 + i % 9 for i in range(ROWS)], pa.uint64()), "left out", "2**63"),
        (
            "hashes",
            pa.array([[1, 2**63 + i % 9] for i in range(ROWS)], pa.list_(pa.uint64())),
            "left out",
            "cast it to text",
        ),
        ("tags", [["a", "b"][: i % 3] for i in range(ROWS)], "categorical", "multi-valued"),
        ("vector", [[0.5, i / 7] for i in range(ROWS)], "numeric", "a vector"),
        ("ragged", [[i / 7] * (1 + i % 2) for i in range(ROWS)], "left out", "different lengths"),
        ("weight", NUMBERS[::-1], "numeric", "weight = ... under [data]"),
        ("sample_weight", NUMBERS, "weight", "weight of each example"),
        ("request_id", REQUESTS, "group", "names the requests"),
        ("position", [1 + i % 4 for i in range(ROWS)], "categorical", "fixed to the first place"),
        ("rank", [1 + i % 4 for i in range(ROWS)], "numeric", ""),
        ("half", np.array(NUMBERS, np.float16), "numeric", ""),
        ("digest", [2**60 + i for i in IDS], "categorical", "as hashes are"),
        ("policy", ["a", "b", "b", "a"] * (ROWS // 4), "categorical", ""),
    ],
)
def test_a_column_is_taken_for(name: str, values: Any, role: str, reason: str) -> None:
    column = one(values, name)
    assert column.role == role
    assert reason in column.reason
    assert bool(column.reason) == bool(reason)


@pytest.mark.parametrize(
    ("name", "values", "role"),
    [
        ("rank", [1 + i % 4 for i in range(ROWS)], "categorical"),
        ("policy", ["a", "b", "b", "a"] * (ROWS // 4), "left out"),
        ("session_id", [f"s{i // 8}" for i in range(ROWS)], "left out"),
    ],
)
def test_names_that_mean_more_where_requests_are_named(name: str, values: Any, role: str) -> None:
    assert one(values, name, request_id=REQUESTS).role == role


def test_options_that_go_with_it() -> None:
    assert one(IDS, "user_id").options == {"min_count": 2}
    assert one([[0.5, i / 7] for i in range(ROWS)]).options == {"size": 2}
    assert one(["a", "b", "b", "a"] * (ROWS // 4)).options == {}


def test_a_long_tail_is_read_by_its_logarithm() -> None:
    paid = [2.0 ** (i % 20) for i in range(3 * ROWS)]
    inferred = wd.infer_spec(
        pa.table({"click": [0, 1] * (3 * ROWS // 2), "paid": paid, "age": NUMBERS * 3})
    )
    transforms = [f.transform for f in inferred.spec.features if isinstance(f, Numeric)]
    assert transforms == ["log1p", "standard"]
    assert column_of(inferred, "paid").reason == "a long tail, read by its logarithm"
    few = wd.infer_spec(table(paid=paid[:ROWS]))
    assert column_of(few, "paid").options == {}


def test_the_declaration() -> None:
    rows = table(
        age=NUMBERS, user_id=IDS, request_id=REQUESTS, position=[1 + i % 4 for i in range(ROWS)]
    )
    spec = wd.infer_spec(rows).spec
    assert (spec.label, spec.group, dict(spec.training_only)) == (
        *("click", "request_id"),
        {"position": 1},
    )
    assert spec.deep_names == ("age", "age_bin", "user_id", "position")
    assert spec.wide_names == ("age_bin", "user_id", "position")


@pytest.mark.parametrize(("rows", "bins"), [(1_024, 16), (10_000, 33), (1_000_000, 255)])
def test_bins_are_as_many_as_rows_can_teach(rows: int, bins: int) -> None:
    rng = np.random.default_rng(0)
    data = {
        "a": rng.normal(size=rows),
        "few": rng.integers(0, 200, rows),
        "y": rng.integers(0, 2, rows),
    }
    spec = wd.infer_spec(data, label="y", crosses=0, rows=2_000).spec
    assert [spec.by_name[f"{name}_bin"].bins for name in ("a", "few")] == [bins, 255]


@pytest.mark.parametrize(("numbers", "binned"), [(1, True), (3, True), (4, False)])
@pytest.mark.parametrize("bins", [None, True, False])
def test_ranges_of_many_smooth_numbers_need_rows(
    numbers: int, binned: bool, bins: bool | None
) -> None:
    rng = np.random.default_rng(0)
    data = {f"x{i}": rng.normal(size=4_096) for i in range(numbers)}  # 21 bins each
    data |= {"age": rng.integers(0, 50, 4_096), "y": rng.integers(0, 2, 4_096)}
    spec = wd.infer_spec(data, label="y", crosses=0, bins=bins).spec
    expected = binned if bins is None else bins
    assert ("x0_bin" in spec.by_name) == expected == ("x0_bin" in spec.wide_names)
    assert ("age_bin" in spec.by_name) == (bins is not False)
    assert {spec.by_name[name].transform for name in ("x0", "age")} == {"standard"}


def test_values_of_many_numbers_need_two_rows_each() -> None:
    rng = np.random.default_rng(0)
    data = {f"x{i}": rng.integers(0, 20, 199) for i in range(5)} | {"y": [0, 1] * 99 + [0]}
    assert wd.infer_spec(data, label="y", crosses=0).spec.wide_names == ()
    del data["x0"]
    assert len(wd.infer_spec(data, label="y", crosses=0).spec.wide_names) == 4


def test_a_bin_takes_no_name_that_a_column_has() -> None:
    spec = wd.infer_spec(table(age=NUMBERS, age_bin=NUMBERS[::-1])).spec
    assert list(spec.by_name) == ["age", "age_bin", "age_bin_", "age_bin_bin"]


@pytest.mark.parametrize("name", ["label", "Target", "clicked", "y"])
def test_the_label_is_told_by_its_name(name: str) -> None:
    rows = pa.table({"a": [0, 1] * 50, name: NUMBERS[:100], "b": [1, 0, 0, 1] * 25})
    assert wd.infer_spec(rows).spec.label == name


def test_the_label_is_the_last_column_if_that_has_two_values() -> None:
    rows = pa.table({"a": [0, 1, 1, 0] * 25, "income": ["<=50K", ">50K"] * 50})
    assert wd.infer_spec(rows).spec.label == "income"


def test_without_a_label_nothing_is_measured_and_that_is_said() -> None:
    inferred = wd.infer_spec(pa.table({"a": [0, 1] * 50, "income": NUMBERS[:100]}))
    assert inferred.spec.label is None
    assert "no column looks like the label" in inferred.warnings[0]


def test_a_label_that_is_no_column() -> None:
    with pytest.raises(DataError, match=r"no column; did you mean 'click'"):
        wd.infer_spec(table(x=NUMBERS), label="clikc")


def test_a_file_without_names_or_labels() -> None:
    with pytest.raises(DataError, match=r"which is no column; .*the file has no line of names"):
        wd.infer_spec(pa.table({"0.5": NUMBERS, "1": NUMBERS}), label="y")
    with pytest.raises(DataError, match="label 'y': holds no value; give rows with a label"):
        wd.infer_spec(pa.table({"x": NUMBERS, "y": pa.nulls(ROWS)}), label="y")
    with pytest.raises(ConfigError, match="the table has no column but the label 'y'"):
        wd.infer_spec(pa.table({"y": [i % 2 for i in range(ROWS)]}), label="y")
    prices = [f"{i},50" for i in range(ROWS)]
    with pytest.raises(ConfigError, match=r"x: is text that looks like numbers, such as"):
        wd.infer_spec(pa.table({"x": prices, "y": [i % 2 for i in range(ROWS)]}), label="y")


def test_nothing_to_learn_from() -> None:
    with pytest.raises(ConfigError, match=r"no column that can be a feature .country: is always d"):
        wd.infer_spec(table(country=["de"] * ROWS))


@pytest.mark.parametrize(
    ("label", "head", "warning"),
    [
        ([i % 2 for i in range(ROWS)], "binary", ""),
        ([i / ROWS for i in range(ROWS)], "binary", ""),
        (["no", "yes"] * (ROWS // 2), "binary", ""),
        (["a", "b", "c", "d"] * (ROWS // 4), "multiclass", ""),
        ([i * 1.5 for i in range(ROWS)], "regression", ""),
        ([1 + i % 2 for i in range(ROWS)], "regression", 'label_vocabulary = ["1", "2"]'),
        ([i % 3 for i in range(ROWS)], "regression", "make it text"),
    ],
)
def test_the_head_is_what_the_label_asks_for(label: Any, head: str, warning: str) -> None:
    inferred = wd.infer_spec(pa.table({"x": NUMBERS, "label": label}))
    assert inferred.head == head
    said = [text for text in inferred.warnings if text.startswith("label:")]
    assert (warning in said[0]) if warning else not said


@pytest.mark.parametrize(
    ("label", "head"),
    [
        (["a", "b"] * (ROWS // 2), "regression"),
        ([[1], [2]] * (ROWS // 2), None),
        ([datetime.date(2020, 1, 1)] * ROWS, None),
    ],
)
def test_a_label_of_another_type(label: Any, head: Any) -> None:
    with pytest.raises(DataError, match=r"label 'label': got a column of .*, expected numbers"):
        wd.infer_spec(pa.table({"x": NUMBERS, "label": label}), head=head)


@pytest.mark.parametrize("label", [[1] * ROWS, [None] * (ROWS - 1) + [1]])
def test_a_label_that_says_nothing(label: Any) -> None:
    inferred = wd.infer_spec(pa.table({"x": NUMBERS, "label": label}))
    assert [text.split(":")[0] for text in inferred.warnings] == ["label"]


def test_infinity_is_noted_and_rows_without_a_finite_label_are_not_measured() -> None:
    label = [math.inf if i == 7 else i % 2 for i in range(ROWS)]
    inferred = wd.infer_spec({"x": [math.inf, *NUMBERS[1:]], "y": label}, label="y")
    assert [text.split(":")[0] for text in inferred.warnings] == ["x", "y", "y"]


@pytest.mark.parametrize("write", ["{:.0f}.00", "{:+.1f}", " {:.1f}", "{:.0f}e-1"])
def test_numbers_that_a_csv_writes_in_another_way_are_numbers(tmp_path: Path, write: str) -> None:
    # Text to every reader, since 1 and 1.00 are two texts; each price would be a category.
    path = tmp_path / "prices.csv"
    rows = (f"{write.format(i % 40)},{int(i % 3 == 0)}\n" for i in range(ROWS))
    path.write_text("price,click\n" + "".join(rows))
    inferred = wd.infer_spec(path)
    assert [c.role for c in inferred.columns] == ["numeric", "label"]
    assert not inferred.warnings
    assert wd.fit_schema(inferred.spec, path).columns["price"].kind == "float"


def test_codes_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    rows = (f"{i % 40:05d},{int(i % 3 == 0)}\n" for i in range(ROWS))
    path.write_text("zip,click\n" + "".join(rows))
    inferred = wd.infer_spec(path)
    assert inferred.columns[0].role == "categorical"
    assert not inferred.warnings


@pytest.mark.parametrize("word", ["NA", "-", "inf", "unknown"])
def test_a_word_that_makes_text_of_numbers_is_told(tmp_path: Path, word: str) -> None:
    path = tmp_path / "rows.csv"
    cells = [word if i == 7 else f"{i / 7}" for i in range(ROWS)]
    rows = (f"{cell},{i % 4},{int(i % 3 == 0)}\n" for i, cell in enumerate(cells))
    path.write_text("x,k,click\n" + "".join(rows))
    inferred = wd.infer_spec(path)
    (warning,) = inferred.warnings
    if word in ("NA", "-"):
        assert f"x: 1 of {ROWS} rows hold a word of null_values and are missing" in warning
        assert inferred.spec.null_values == (word,)
        (warning,) = wd.infer_spec(path, null_values=()).warnings
    assert (
        f"x: {ROWS - 1} of {ROWS} values are numbers, but '{word}' makes all of them text"
        in warning
    )


def test_text_of_numbers_in_a_table_is_told_to_be_cast() -> None:
    prices = [f"{i % 40}.00" for i in range(ROWS)]
    (warning,) = wd.infer_spec(
        pa.table({"price": prices, "click": [int(i % 3 == 0) for i in range(ROWS)]})
    ).warnings
    assert "each value is a number, such as '0.00'; cast it" in warning


@pytest.mark.parametrize(("mark", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_csv_of_other_separators_is_refused(tmp_path: Path, mark: str, word: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"x{mark}click\n" if i == 0 else f"{i}{mark}1\n" for i in range(9)))
    with pytest.raises(DataError, match=f"got one column.*separated by {word}; write commas"):
        wd.infer_spec(path)


@pytest.mark.parametrize(
    ("names", "noted"),
    [("4.2,c,0", True), ("7,a,1", True), ("0,1,2", False), ("1,2,3", False), ("x,c,y", False)],
)
def test_a_file_without_a_line_of_names_is_told(tmp_path: Path, names: str, noted: bool) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f"{i / 7},{'abcd'[i % 4]},{int(i % 3 == 0)}\n" for i in range(ROWS))
    path.write_text(f"{names}\n{rows}")
    warnings = wd.infer_spec(path, label=names[-1]).warnings
    assert [text for text in warnings if "the file has no line of names" in text] == [*warnings]
    assert bool(warnings) == noted


def test_a_pandas_frame_of_an_odd_index() -> None:
    frame = pd.DataFrame({"x": NUMBERS, "click": [0, 1] * (ROWS // 2)}, index=IDS)
    assert list(wd.infer_spec(frame).spec.by_name) == ["x", "x_bin"]


# ---- what is measured ---------------------------------------------------------------------------


def test_integers_whose_order_says_nothing_are_keys() -> None:
    rng = np.random.default_rng(0)
    key = rng.integers(0, 400, 8000)
    taste = rng.normal(0, 2, 400)[key]
    count = rng.poisson(400, 8000)
    y = rng.random(8000) < 1 / (1 + np.exp(-taste - (count - 400) / 20))
    inferred = wd.infer_spec({"a": key, "b": count, "y": y.astype(int)}, crosses=0)
    assert column_of(inferred, "a").role == "categorical"
    assert "one by one" in column_of(inferred, "a").reason
    assert column_of(inferred, "b").role == "numeric"


def test_a_copy_is_left_out_and_a_relative_stays() -> None:
    words = ["cook", "clerk", "pilot", None] * (ROWS // 4)
    codes = [None if word is None else f"{len(word)}" for word in words]
    inferred = wd.infer_spec(
        table(job=words, job_code=[word and word[:2] for word in words], n=codes)
    )
    assert column_of(inferred, "job_code").reason == "says the same as job in each row"
    assert column_of(inferred, "n").role == "categorical"  # clerk and pilot are of one length


@pytest.mark.parametrize("label", [[0, 1] * 1000, [i * 0.5 for i in range(2000)]])
def test_a_column_that_tells_the_label_alone_is_noted(label: list[float]) -> None:
    noise = np.random.default_rng(0).normal(size=2000)
    inferred = wd.infer_spec({"x": noise, "told": [3.5 * v for v in label], "label": label})
    assert [text.split(":")[0] for text in inferred.warnings] == ["told"]
    assert "told" in inferred.spec.by_name


def test_it_is_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    rows = {f"x{i}": rng.integers(0, 4, 6000) for i in range(4)}
    rows["y"] = ((rows["x0"] + rows["x1"]) % 2).astype(int)
    one, other = wd.infer_spec(rows), wd.infer_spec(rows)
    assert one == other
    assert [cross.columns for cross in one.crosses] == [("x0", "x1")]


# ---- crosses ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clicks() -> pa.Table:
    """A log with three planted crosses and a planted product, among columns that only add."""
    path = Path(__file__).parents[2] / "benchmarks" / "criteo_like.py"
    module = importlib.util.module_from_spec(
        found := importlib.util.spec_from_file_location("criteo_like", path)  # type: ignore[arg-type]
    )
    found.loader.exec_module(module)  # type: ignore[union-attr]
    rows: pa.Table = module.generate(60_000, 2_000, 7)
    planted = ["C1", "C14", "C5", "C8", "C2", "C19", "C4", "C16"]
    return rows.select(["label", "I1", "I6", *planted, "C6", "C17"])


def test_planted_crosses_are_suggested_and_no_other(clicks: pa.Table) -> None:
    inferred = wd.infer_spec(clicks)
    crosses = {cross.columns for cross in inferred.crosses}
    assert crosses == {("C1", "C14"), ("C5", "C8"), ("C2", "C19"), ("C4", "C16")}
    assert all(inferred.spec.by_name[f"{a}_x_{b}"].min_count == 2 for a, b in crosses)
    gains = [cross.gain for cross in inferred.crosses]
    assert gains == sorted(gains, reverse=True)


def test_a_history_is_crossed_with_what_it_is_compared_to() -> None:
    """Whether the item is of a kind that was taken before, which neither column says alone."""
    rng = np.random.default_rng(0)
    rows = 6_000
    kinds, taken = rng.integers(0, 10, rows), rng.integers(0, 10, (rows, 4))
    lengths = rng.integers(0, 5, rows)
    before = [row[:n] for row, n in zip(taken, lengths, strict=True)]
    matches = np.array([(past == kind).sum() for past, kind in zip(before, kinds, strict=True)])
    columns = {
        "kind": [f"k{kind}" for kind in kinds],
        "city": [f"c{city}" for city in rng.integers(0, 10, rows)],
        "before": [[f"k{kind}" for kind in past] for past in before],
        "others": [[f"c{city}" for city in row] for row in taken],
    }
    chance = 1 / (1 + np.exp(1.0 - 2.0 * matches))
    table = pa.table({**columns, "label": (rng.random(rows) < chance).astype(np.int8)})
    inferred = wd.infer_spec(table)
    assert [cross.columns for cross in inferred.crosses] == [("kind", "before")]
    assert inferred.spec.by_name["kind_x_before"].part_names == ("kind", "before")
    noise = pa.array(rng.permutation(table["label"].to_numpy()))
    assert not wd.infer_spec(table.set_column(4, "label", noise)).crosses


def test_a_label_of_noise_gets_no_cross(clicks: pa.Table) -> None:
    noise = np.random.default_rng(0).permutation(clicks["label"].to_numpy())
    assert not wd.infer_spec(clicks.set_column(0, "label", pa.array(noise))).crosses


def additive() -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Columns whose effects only add up, and the sum."""
    rng = np.random.default_rng(0)
    rows: dict[str, Any] = {
        "a": rng.choice([*"uvwxyz"], 8000, p=[0.7, 0.2, 0.04, 0.03, 0.02, 0.01]),
        "b": rng.integers(0, 9, 8000),
        "c": np.where(rng.random(8000) < 0.9, 0.0, rng.lognormal(8, 1, 8000).round()),
    }
    taste = dict(zip("uvwxyz", rng.normal(0, 1, 6), strict=True))
    return rows, np.vectorize(taste.get)(rows["a"]) + np.cos(rows["b"]) + 3.0 * (rows["c"] > 3000)


def labels_of(kind: str, score: NDArray[np.float64]) -> NDArray[Any]:
    rng = np.random.default_rng(1)
    if kind == "regression":
        return score * 40 + rng.normal(0, 40, len(score))
    if kind == "multiclass":
        noisy = score + rng.logistic(size=len(score))
        return np.array(["low", "middle", "high"])[np.searchsorted([-0.5, 1.0], noisy)]
    return np.where(rng.random(len(score)) < 1 / (1 + np.exp(-score)), "yes", "no")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_effects_that_add_up_get_no_cross_and_others_do(kind: str) -> None:
    rows, score = additive()
    inferred = wd.infer_spec({**rows, "label": labels_of(kind, score)})
    assert (inferred.head, inferred.crosses) == (kind, ())
    together = 1.5 * ((rows["a"] == "u") ^ (rows["b"] > 4))
    inferred = wd.infer_spec({**rows, "label": labels_of(kind, score + together)})
    assert [cross.columns for cross in inferred.crosses] == [("a", "b")]
    assert list(inferred.spec.by_name)[-2:] == ["a", "a_x_b_32"]


# ---- text ---------------------------------------------------------------------------------------


def test_its_toml_is_its_declaration_and_its_repr_a_table() -> None:
    rng = np.random.default_rng(0)
    rows: dict[str, Any] = {
        "a": rng.integers(0, 4, 6000),
        "b": rng.choice(["x", "y"], 6000),
        "when": [datetime.date(2020, 1, 1)] * 6000,
    }
    rows["y"] = ((rows["a"] % 2 == 0) ^ (rows["b"] == "x")).astype(int)
    inferred = wd.infer_spec(rows)
    assert wd.FeatureSpec.from_toml(inferred.to_toml()) == inferred.spec
    assert 'crossed = [\n    { parts = ["a_32", "b"], min_count = 2 },' in inferred.to_toml()
    lines = repr(inferred).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b", "when", "y", "a"]
    assert lines[-1].startswith("a x b  cross")
    assert inferred.reasons["a x b"].startswith("gains 0.")


# ---- what a join wrote --------------------------------------------------------------------------


def test_the_manifest_of_a_join_says_what_a_column_is(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = table(
        list=REQUESTS,
        when=MICROSECONDS,
        place=[1 + i % 4 for i in range(ROWS)],
        bought=[0, 0, 0, 1] * (ROWS // 4),
        w=[1.0, 2.0] * (ROWS // 2),
        age=NUMBERS,
    )
    pq.write_table(rows, tmp_path / "train" / "part.parquet")
    roles = {
        "list": "request",
        "when": "event time",
        "place": "position",
        "bought": "label",
        "w": "weight",
        "age": "context",
        "click": "label",
    }
    columns = [{"name": name, "role": role} for name, role in roles.items()]
    manifest = {"kind": "widedeep examples", "columns": columns}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    inferred = wd.infer_spec(tmp_path / "train", label="click")
    assert {c.name: c.role for c in inferred.columns} == {
        "click": "label",
        "list": "group",
        "when": "time",
        "place": "categorical",
        "bought": "left out",
        "w": "weight",
        "age": "numeric",
    }
    assert (inferred.spec.weight, inferred.time) == ("w", "when")


def test_spans_of_the_calendar_are_left_out_and_said() -> None:
    spans = pa.array([pa.MonthDayNano([month % 12, 1, 0]) for month in range(50)])
    numbers = np.arange(50.0)
    table = pa.table({"age": numbers, "span": spans, "click": (numbers > 20).astype(int)})
    (span,) = (c for c in wd.infer_spec(table, label="click").columns if c.name == "span")
    assert (span.role, span.reason) == (
        "left out",
        "is of type month_day_nano_interval, which no feature reads",
    )


def test_intervals_of_pandas_are_left_out_and_said() -> None:
    frame = pd.DataFrame({"age": [n % 7 for n in range(40)], "y": [0, 1] * 20})
    for values in (pd.cut(frame["age"], 3), pd.interval_range(0, 40)):
        inferred = wd.infer_spec(frame.assign(cut=values), label="y")
        (cut,) = [column for column in inferred.columns if column.name == "cut"]
        assert (cut.role, "which no feature reads" in cut.reason) == ("left out", True)


def test_what_differs_within_a_request_is_the_items(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = table(
        list=REQUESTS,
        item_id=[f"i{i * 7 % 31}" for i in range(ROWS)],
        app=[f"i{i * 7 % 31}" for i in range(ROWS)],
        tags=[["a", "b"][: 1 + i % 2] for i in range(ROWS)],
        device=[f"d{int(name[1:]) % 3}" for name in REQUESTS],
        mood=[[f"m{int(name[1:]) % 5}"] for name in REQUESTS],
        position=[1 + i % 4 for i in range(ROWS)],
        score=NUMBERS,
    )
    pq.write_table(rows, tmp_path / "train" / "part.parquet")
    roles = {"list": "request", "item_id": "item", "click": "label"}
    columns = [{"name": n, "role": roles.get(n, "context")} for n in rows.column_names]
    manifest = {"kind": "widedeep examples", "columns": columns}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    inferred = wd.infer_spec(tmp_path / "train")
    assert inferred.spec.item == ("app", "tags")
    assert inferred.reasons["item_id"] == "says the same as app in each row"
    assert "who ranked the list" in inferred.reasons["score"]
    assert 'item = [\n    "app", "tags",\n]' in inferred.to_toml()
    assert wd.FeatureSpec.from_toml(inferred.to_toml()) == inferred.spec
    # A count of a user and an item together is neither's, and no part can be told from it.
    columns[-1]["role"] = "history"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert wd.infer_spec(tmp_path / "train").spec.item == ()
