"""Bad input through the public doors: it becomes what the documentation says, or a clear error.

Every message says what was got, where, what is allowed and what to do; a failure loses nothing.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import widedeep as wd
from widedeep.data.fragments import InputRecord
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, CheckpointError, DataError, FeatureError, WideDeepError

ROWS = 96
SPEC = wd.FeatureSpec(
    label="y",
    weight="w",
    features=[
        wd.numeric("age"),
        wd.categorical("job", "tags", "user"),
        wd.crossed("job", "user"),
    ],
)


def clicks(rows: int = ROWS) -> pa.Table:
    """Clicks with a number, a text, a list of texts and an identifier."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age": rng.normal(40, 10, rows),
            "job": [["cook", "clerk", ""][i % 3] for i in range(rows)],
            "tags": [["x", "y", "z"][: i % 4] for i in range(rows)],
            "user": [2**53 + i % 5 for i in range(rows)],
            "w": np.ones(rows),
            "y": np.arange(rows) % 2,
        }
    )


TABLE = clicks()
SCHEMA = wd.fit_schema(SPEC, TABLE)


def trainer(**options: Any) -> wd.Trainer:
    model = wd.WideDeep(SCHEMA, hidden_units=[4], embedding_dim=2)
    settings: dict[str, Any] = {"batch_size": 32, "threads": 1, "progress": False}
    return wd.Trainer(model, **{**settings, **options})


TRAINED = trainer()
TRAINED.fit(TABLE, epochs=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> wd.Bundle:
    return TRAINED.export(tmp_path_factory.mktemp("bad") / "bundle")


def having(column: str, values: Any, rows: int = ROWS) -> pa.Table:
    """The table with one column of the value given, or of the values."""
    filled = values if isinstance(values, pa.Array) else pa.array([values] * rows)
    return TABLE.set_column(TABLE.column_names.index(column), column, filled)


def doors(bundle: wd.Bundle, *, targets: bool) -> dict[str, Callable[[Any], Any]]:
    """Everything that reads a table; with ``targets`` what reads labels too, and only that."""
    learning: dict[str, Callable[[Any], Any]] = {
        "fit": lambda data: trainer().fit(data),
        "evaluate": TRAINED.evaluate,
    }
    return learning if targets else {**learning, "predict": TRAINED.predict, "score": bundle.score}


# ---- values that are no error: they have a meaning ----


def test_the_unseen_the_null_and_the_empty_have_their_ids(bundle: wd.Bundle) -> None:
    rows = [
        {"age": 40.0, "job": "cook", "tags": ["x"], "user": 2**53},
        {"age": 40.0, "job": "pilot", "tags": ["x"], "user": 2**53},
        {"age": 40.0, "job": None, "tags": ["x"], "user": 2**53},
        {"age": 40.0, "job": "", "tags": ["x"], "user": 2**53},
    ]
    ids = Transform(SCHEMA).rows(rows)
    at = [slot.name for slot in SCHEMA.slots].index("job")
    n_slots = len(SCHEMA.slots)
    found = [int(ids.ids_N[ids.offsets_BF[row * n_slots + at]]) for row in range(4)]
    assert found[1:3] == [0, 1]
    assert min(found[0], found[3]) >= 2 and found[0] != found[3]
    np.testing.assert_allclose(bundle.score(rows), TRAINED.predict(rows), rtol=0, atol=1e-6)
    assert len(set(np.asarray(bundle.score(rows)).tolist())) == 4


def test_an_empty_list_gives_nothing_and_a_null_in_a_list_is_dropped(bundle: wd.Bundle) -> None:
    row = {"age": 40.0, "job": "cook", "user": 2**53}
    empty, null, dropped, plain = (
        bundle.explain({**row, "tags": tags}) for tags in ([], None, ["x", None, "y"], ["x", "y"])
    )
    names = [[term.value for term in found.wide if term.feature == "tags"]
             for found in (empty, null, dropped, plain)]  # fmt: skip
    assert names[0] == []
    assert len(names[1]) == 1 and names[1][0] not in ("x", "y")
    assert names[2] == names[3] == ["x", "y"]
    assert dropped.logits == plain.logits


def test_nan_in_a_number_is_a_missing_value(bundle: wd.Bundle) -> None:
    rows = [{"age": age, "job": "cook", "tags": [], "user": 1} for age in (math.nan, None, 40.0)]
    scores = np.asarray(bundle.score(rows))
    assert scores[0] == scores[1]
    assert np.isfinite(scores).all()
    table = having("age", math.nan)
    assert np.isfinite(np.asarray(TRAINED.predict(table))).all()
    assert math.isfinite(trainer().fit(table)[-1]["loss"])


@pytest.mark.parametrize("big", [2**24, 2**53, 2**62])
def test_neighbouring_large_integers_are_told_apart(big: int) -> None:
    users = pa.array([big + i % 2 for i in range(ROWS)])
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("user")])
    table = pa.table({"user": users, "y": TABLE["y"]})
    model = wd.WideDeep(wd.fit_schema(spec, table), hidden_units=())
    learned = wd.Trainer(model, batch_size=16, threads=1, progress=False, wide=wd.FTRL(lr=1.0))
    learned.fit(table, epochs=5)
    assert learned.evaluate(table)["auc"] == 1.0
    low, high = np.asarray(learned.predict([{"user": big}, {"user": big + 1}])).tolist()
    assert low < 0.5 < high


def test_extra_and_reordered_columns_change_nothing(bundle: wd.Bundle) -> None:
    other = TABLE.select(TABLE.column_names[::-1]).append_column("more", pa.array([{}] * ROWS))
    plain, changed = trainer(), trainer()
    assert plain.fit(TABLE)[-1]["loss"] == changed.fit(other)[-1]["loss"]
    for scored in (TRAINED.predict, bundle.score):
        assert np.array_equal(scored(other), scored(TABLE))


def test_one_class_is_noted_trains_and_has_no_auc() -> None:
    table = having("y", 1)
    schema = wd.fit_schema(SPEC, table)
    assert any("label 'y': 1 in every row" in note for note in schema.notes)
    single = trainer()
    assert math.isfinite(single.fit(table)[-1]["loss"])
    metrics = single.evaluate(table)
    assert math.isnan(metrics["auc"]) and math.isfinite(metrics["log_loss"])


# ---- values and tables that are errors ----


BAD_VALUES: list[Any] = [
    ("age", "n/a", FeatureError,
     r"feature 'age' \(row 9 of .*\): got 'n/a' \(str\), expected a number or null; \S+"),
    ("age", math.inf, FeatureError,
     r"feature 'age' \(row 9 of .*\): got inf \(float\), expected a finite number or null; \S+"),
    ("age", -math.inf, FeatureError,
     r"feature 'age' \(row 9 of .*\): got -inf \(float\), expected a finite number or null; \S+"),
    ("job", 1.5, FeatureError,
     r"feature 'job' \(row 9 of .*\): got 1.5 \(\w+\), expected text.*; \S+"),
    ("user", "abc", FeatureError,
     r"feature 'user' \(row 9 of .*\): got 'abc' \(str\), expected a whole number.*; convert"),
    ("user", 2.0**53, FeatureError,  # or 2**53 + 1
     r"feature 'user' \(row 9 of .*\): got 9007199254740992.0 \(float\), .* below 2\*\*53.*; \S+"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "kind", "message"), BAD_VALUES)
def test_a_value_of_another_kind_is_told_by_every_door(
    bundle: wd.Bundle, tmp_path: Path, column: str, value: Any, kind: type[Exception], message: str
) -> None:
    good = TABLE[column].to_pylist()[:9]
    values = [*good, *[value] * (ROWS - 9)]
    if not isinstance(good[0], type(value)):
        values = [None] * 9 + values[9:]
    path = tmp_path / "part-7.parquet"
    pq.write_table(having(column, pa.array(values)), path)
    for name, door in doors(bundle, targets=False).items():
        with pytest.raises(kind) as caught:
            door(path)
        assert re.match(message, str(caught.value)), (name, str(caught.value))
        assert "part-7.parquet" in str(caught.value), name
    row = {"age": 1.0, "job": "cook", "tags": [], "user": 1, column: value}
    with pytest.raises(kind) as caught:
        bundle.score([{"age": 1.0}, row])
    assert re.match(message.replace("row 9 of .*", "row 1"), str(caught.value))


@pytest.mark.parametrize(
    ("column", "value", "kind", "message"),
    [
        ("y", math.nan, FeatureError, r"label 'y' \(row 9 of the Table\): got nan.*; \S+"),
        ("y", None, FeatureError, r"label 'y' \(row 9 of the Table\): got null, expected .*; \S+"),
        ("y", math.inf, FeatureError, r"label 'y' \(row 9 of the Table\): got inf.*; \S+"),
        ("w", -1.0, DataError,
         r"weight 'w' \(row 9 of the Table\): got -1.0.*, expected a number from 0 to 1e15"),
        ("w", math.nan, DataError, r"weight 'w' \(row 9 of the Table\): got nan.*; correct it"),
    ],
)  # fmt: skip
def test_bad_labels_and_weights_stop_learning_but_not_scoring(
    bundle: wd.Bundle, column: str, value: Any, kind: type[Exception], message: str
) -> None:
    good = [None if v is None else float(v) for v in TABLE[column].to_pylist()[:9]]
    table = having(column, pa.array([*good, *[value] * (ROWS - 9)], from_pandas=False))
    learning = {**doors(bundle, targets=True), "fit_schema": lambda d: wd.fit_schema(SPEC, d)}
    for name, door in learning.items():
        with pytest.raises(kind) as caught:
            door(table)
        assert re.match(message, str(caught.value)), (name, str(caught.value))
    assert np.array_equal(TRAINED.predict(table), TRAINED.predict(TABLE))
    assert np.array_equal(bundle.score(table), bundle.score(TABLE))


def test_a_label_outside_the_heads_range() -> None:
    with pytest.raises(DataError, match=r"got 7, expected 0 to 1 for a binary head; write "):
        trainer().fit(having("y", 7))
    with pytest.raises(DataError, match=r"got 7.0, expected a number in \[0, 1\]"):
        TRAINED.evaluate(having("y", 7))


def test_a_label_outside_the_vocabulary() -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
    words = pa.array([["no", "yes"][i % 2] for i in range(ROWS)])
    table = pa.table({"job": TABLE["job"], "y": words})
    schema = wd.fit_schema(spec, table)
    learned = wd.Trainer(
        wd.WideDeep(schema, hidden_units=()), batch_size=32, threads=1, progress=False
    )
    learned.fit(table)
    bad = table.set_column(1, "y", pa.array([*words.to_pylist()[:-1], "maybe"]))
    for door in (learned.fit, learned.evaluate):
        fresh = learned if door == learned.evaluate else wd.Trainer(
            wd.WideDeep(schema, hidden_units=()), batch_size=32, threads=1, progress=False
        )  # fmt: skip
        with pytest.raises(FeatureError) as caught:
            fresh.fit(bad) if door == learned.fit else door(bad)
        assert re.match(
            rf"label 'y' \(row {ROWS - 1} of the Table\): got 'maybe'.*expected.*'no', 'yes'",
            str(caught.value),
        )


def test_a_missing_column_names_the_nearest(bundle: wd.Bundle) -> None:
    table = TABLE.rename_columns(["age", "jobb", "tags", "user", "w", "y"])
    for door in doors(bundle, targets=False).values():
        with pytest.raises(DataError, match=r"the Table: no column 'job'; did you mean 'jobb'\?"):
            door(table)
    with pytest.raises(DataError, match="no column 'job'; did you mean 'jobb'"):
        wd.fit_schema(SPEC, table)
    with pytest.raises(DataError, match=r"row 0: got no key 'job', expected it since strict=True"):
        bundle.score([{"age": 1.0, "tags": [], "user": 1}], strict=True)


def test_two_columns_of_one_name(bundle: wd.Bundle) -> None:
    table = TABLE.append_column("job", TABLE["job"])
    for door in (*doors(bundle, targets=False).values(), lambda d: wd.fit_schema(SPEC, d)):
        with pytest.raises(DataError, match=r"the Table: two columns are named 'job'; .* rename"):
            door(table)


def test_a_frame_of_no_rows(bundle: wd.Bundle) -> None:
    empty = TABLE.slice(0, 0)
    wanted = {
        "fit": "training data without rows",
        "evaluate": "data to evaluate without rows",
        "predict": "data to score without rows",
        "score": "a table without rows",
    }
    for name, door in doors(bundle, targets=False).items():
        with pytest.raises(DataError, match=rf"got {wanted[name]}.*; give at least one"):
            door(empty)
    with pytest.raises(DataError, match="got no rows, expected at least one; check the path"):
        wd.fit_schema(SPEC, empty)


def test_what_is_no_table_at_all(bundle: wd.Bundle) -> None:
    for door in doors(bundle, targets=False).values():
        with pytest.raises(DataError, match=r"got NoneType; expected a path or glob of files"):
            door(None)
        with pytest.raises(DataError, match="got an empty list; expected a path or glob"):
            door([])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_parquet_file(bundle: wd.Bundle, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.parquet"
    pq.write_table(TABLE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    for door in (*doors(bundle, targets=False).values(), lambda d: wd.fit_schema(SPEC, d)):
        with pytest.raises(DataError, match=r"cut\.parquet: .*; .*(write it again|another)"):
            door(path)


def test_weights_that_are_all_zero_teach_nothing() -> None:
    nothing = having("w", 0.0)
    assert any("0 in every row" in note for note in wd.fit_schema(SPEC, nothing).notes)
    for options in ({}, {"steps": 1}):
        with pytest.raises(DataError, match=r"weight 'w': got 0 in every row .*nothing is learned"):
            trainer().fit(nothing, **options)
    for data in ({"data": nothing}, {"data": TABLE, "valid": nothing}):
        learned = trainer()
        with pytest.raises(DataError, match="weight 'w': got 0 in every row"):
            learned.fit(**data)
    with pytest.raises(DataError, match=r"weight 'w': got 0 in every row .*no metric is defined"):
        TRAINED.evaluate(nothing)
    # A batch without weight among others is no error, and changes nothing by itself.
    half = trainer(shuffle=False)
    half.fit(having("w", pa.array([0.0] * 32 + [1.0] * (ROWS - 32))), eval_every=1, valid=TABLE)
    losses = half.history.column("loss")
    assert math.isnan(losses[0]) and all(math.isfinite(loss) for loss in losses[1:])


# ---- wrong arguments ----


def torch_adam() -> Any:
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wd.WideDeep(SPEC), r"got FeatureSpec as the schema, expected what wd\.fit_schema"),
        (lambda: wd.WideDeep(SCHEMA, hidden_units=100), r"got hidden_units=100, .* such as \[100"),
        (lambda: wd.WideDeep(SCHEMA, hidden_units="100"), r"got hidden_units='100', expected a li"),
        (
            lambda: wd.WideDeep(SCHEMA, embedding_dim="autos"),
            r"embedding_dim = 'autos', .*'auto'",
        ),
        (lambda: wd.WideDeep(SCHEMA, activation="rleu"), r"'rleu'; did you mean 'relu'\?"),
        (lambda: wd.WideDeep(SCHEMA, dropout="0.1"), r"got dropout = '0\.1', expected a num"),
        (lambda: wd.Trainer(SCHEMA), r"got Schema as the model, expected wd\.WideDeep\(schema\)"),
        (lambda: wd.WideDeep(SCHEMA, batch_norm="tf"), r"got batch_norm = 'tf', expected true or"),
        (lambda: trainer(wide="ftlr"), r"wide: got optimizer='ftlr'; did you mean 'ftrl'\?"),
        (lambda: trainer(wide=3), r"got wide=.* \(int\), expected an optimizer of"),
        (lambda: trainer(deep=wd.Adagrad), r"got deep=<class .*, expected an optimizer of"),
        (
            lambda: trainer(dense=torch_adam()),
            r"got dense=an object \(Adam\).*or lambda parameters",
        ),
        (lambda: trainer(schedule="cos"), r"schedule: got name='cos'; did you mean 'cosine'\?"),
        (lambda: trainer(loss_reduction="avg"), r"got loss_reduction = 'avg', .*'mean' or 'sum'"),
        (lambda: trainer(batch_size="8"), r"got batch_size = '8', expected an integer"),
        (lambda: trainer(checkpoint_every=0), r"got checkpoint_every=0, expected an integer of at"),
        (
            lambda: trainer().fit(TABLE, epochs=0),
            r"got epochs=0, expected an integer of at least 1",
        ),
        (lambda: trainer().fit(TABLE, epochs=1.5), r"got epochs=1\.5, expected an integer of"),
        (lambda: trainer().fit(TABLE, steps=0), r"got steps=0, expected an integer of at least 1"),
        (lambda: trainer().fit(TABLE, eval_every=0), r"got eval_every=0, expected an integer"),
        (
            lambda: wd.bucketized("b", source="age", boundaries="18"),  # type: ignore[arg-type]
            r"feature 'b': got boundaries='18', expected a list of strictly increasing",
        ),
        (
            lambda: wd.fit_schema(SPEC, np.zeros((3, 2))),
            r"data: got ndarray, whose columns have no names; expected a path or glob",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(WideDeepError, match=message):
        call()


def test_a_regression_needs_numbers() -> None:
    rows = [{"age": i, "y": "abc"[i % 3]} for i in range(9)]
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=wd.numeric("age")), rows)
    with pytest.raises(WideDeepError, match=r"'y': got head='regression' for a label of 3 classes"):
        wd.WideDeep(schema, head="regression")


def test_numbers_of_numpy_are_numbers() -> None:
    model = wd.WideDeep(SCHEMA, hidden_units=np.array([4]), embedding_dim=np.int64(2))
    assert type(model.config.hidden_units[0]) is int and type(model.config.embedding_dim) is int


# ---- nothing is lost ----


def test_a_failed_fit_can_be_repeated_on_good_data() -> None:
    learned = trainer(shuffle=False)
    with pytest.raises(FeatureError, match="got inf"):
        learned.fit(having("age", math.inf))
    learned.fit(TABLE)
    want = trainer(shuffle=False)
    want.fit(TABLE)
    assert np.array_equal(learned.predict(TABLE), want.predict(TABLE))


DISK_FULL = """
import resource, signal, sys
import widedeep as wd
from tests.integration import test_bad_input as t
from widedeep.cli.runs import RunDirectory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
try:
    if sys.argv[1] == "bundle":
        t.TRAINED.export(sys.argv[2], overwrite=True)
    elif sys.argv[1] == "schema":
        t.SCHEMA.save(sys.argv[2])
    elif sys.argv[1] == "prepared":
        RunDirectory(sys.argv[2]).save_schema(t.SCHEMA, t.INPUTS)
    else:
        t.trainer(checkpoints=sys.argv[2]).fit(t.TABLE)
except wd.WideDeepError as error:
    print(type(error).__name__, error)
"""


INPUTS = [InputRecord(name="a", path="a", rows=1, bytes=-1, checksum="")]


@pytest.mark.parametrize("what", ["bundle", "checkpoint", "schema", "prepared"])
def test_a_full_disk_keeps_what_was_there(what: str, tmp_path: Path) -> None:
    place = tmp_path / what
    if what == "bundle":
        TRAINED.export(place)
    elif what == "schema":
        SCHEMA.save(place)
    elif what == "checkpoint":
        trainer(checkpoints=place).fit(TABLE)
    before = contents(tmp_path)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, what, str(place)],
        env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "File too large" in done.stdout and str(place) in done.stdout, done.stdout + done.stderr
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_flipped_byte_in_any_file_of_a_bundle(bundle: wd.Bundle, tmp_path: Path) -> None:
    for name in sorted(contents(bundle.path)):
        copy = Path(shutil.copytree(bundle.path, tmp_path / name.replace("/", "-")))
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 0x10
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(BundleError) as caught:
            wd.Bundle.load(copy)
        assert name in str(caught.value)
        assert re.search(r"copy|export|write", str(caught.value)), str(caught.value)


def test_the_schema_of_another_model(bundle: wd.Bundle, tmp_path: Path) -> None:
    other = wd.fit_schema(SPEC, having("job", "nurse"))
    assert other.fingerprint != SCHEMA.fingerprint
    trainer(checkpoints=tmp_path / "run").fit(TABLE)
    resumed = wd.Trainer(
        wd.WideDeep(other, hidden_units=[4], embedding_dim=2),
        checkpoints=tmp_path / "run", batch_size=32, threads=1, progress=False,
    )  # fmt: skip
    with pytest.raises(
        CheckpointError, match=r"got a checkpoint of another schema; make the model"
    ):
        resumed.fit(TABLE, resume=True)
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    other.save(copy / "schema.safetensors")
    with pytest.raises(BundleError, match=r"schema\.safetensors"):
        wd.Bundle.load(copy)
    with pytest.raises(WideDeepError, match=r"schema\.safetensors"):
        wd.Bundle.load(copy, verify=False)
