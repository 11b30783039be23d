"""Columns whose graph says more than our features do: defaults of rows, numbers cut off."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.importing.write_bundle import field, write_bundle
from tests.oracles.models import unpack_model
from widedeep.errors import CheckpointError, FeatureError
from widedeep.importing import from_estimator
from widedeep.importing.columns import ColumnReader, IdColumn, ParsedFeature
from widedeep.importing.optimizers import _applied
from widedeep.importing.saved_model import Graph
from widedeep.importing.weights import _rows_writer, _write
from widedeep.training.config import DataConfig, RunConfig

FLOAT, INT32, TEXT, INT64 = 1, 3, 7, 9


def column(kind: Any, dtype: int, lacking: Any, **options: Any) -> IdColumn:
    source = ParsedFeature(key="age", dtype=dtype, size=1, default=(lacking,))
    return IdColumn(kind=kind, source=source, **options)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (column("bucketized", FLOAT, 2.0, boundaries=(0.5, 2.0)), 2),
        (column("bucketized", FLOAT, 0.0, boundaries=(0.5, 2.0)), 0),
        (column("vocabulary", TEXT, "b", values=("a", "b")), 1),
        (column("vocabulary", TEXT, "z", values=("a", "b")), None),
        (column("vocabulary", TEXT, "z", values=("a", "b"), default=0), 0),
        (column("vocabulary", TEXT, "", values=("a", "")), None),
        (column("identity", INT64, 3), 3),
        (column("identity", INT64, 9, buckets=6, default=2), 2),
        (column("identity", INT64, -1, buckets=6, default=2), None),
        (column("hashed", TEXT, "", buckets=5), None),
    ],
)
def test_the_id_of_a_row_that_lacks_the_column(ids: IdColumn, expected: int | None) -> None:
    assert ids.missing == expected


@pytest.mark.parametrize(
    "ids",
    [
        column("hashed", TEXT, "b", buckets=5),
        column("vocabulary", TEXT, "z", values=("a", "b"), buckets=2),
    ],
)
def test_a_default_that_is_hashed_is_refused(ids: IdColumn) -> None:
    with pytest.raises(FeatureError, match=r"column 'age': a row without it has the default"):
        _ = ids.missing


def test_a_missing_value_has_the_weights_of_its_default() -> None:
    table, source = np.zeros((6, 2), np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
    runs = [(slice(0, 3), 3), (slice(3, 4), 2)]  # a bucket of unseen values comes first here
    _rows_writer(runs, None, 1)(table, source, False)
    assert table.tolist() == [[0, 0], [2, 3], [6, 7], [0, 1], [2, 3], [4, 5]]
    _rows_writer(runs, None, None)(table, source, False)
    assert not table[:2].any()


def test_a_mean_loss_of_several_labels_is_over_them_too(tmp_path: Path) -> None:
    unpack_model("dnn_regressor", tmp_path)
    losses = []
    for reduction in ("mean", "sum"):
        imported = from_estimator(
            tmp_path / "saved_model",
            weight="weight",
            lists=["code"],
            train={"loss_reduction": reduction},
        )
        head = imported.config.model.head
        losses.append(head if isinstance(head, str) else head["loss_weight"])
    assert losses == [0.5, "regression"]


def node(name: str, kind: str, inputs: list[str], **attributes: bytes) -> bytes:
    """A node of a graph's wire format; attributes are values as they stand there."""
    pairs = [
        field(5, field(1, key.encode()) + field(2, value)) for key, value in attributes.items()
    ]
    fields = [field(1, name.encode()), field(2, kind.encode())]
    return field(1, b"".join([*fields, *(field(3, i.encode()) for i in inputs), *pairs]))


@pytest.mark.parametrize(("dtype", "exact"), [(INT64, True), (FLOAT, False)])
def test_a_number_whose_digits_are_cut_off_is_refused(dtype: int, exact: bool) -> None:
    shape = field(7, field(2, field(1, 1)) + field(2, field(1, 1)))
    graph = node("x", "Placeholder", [], dtype=field(6, dtype), shape=shape)
    graph += node("whole", "Cast", ["x"], SrcT=field(6, dtype), DstT=field(6, INT32))
    graph += node("number", "Cast", ["whole"], SrcT=field(6, INT32), DstT=field(6, FLOAT))
    model: Any = SimpleNamespace(graph=Graph(memoryview(graph), "graph"), names={})
    reader = ColumnReader(model, {"age": "x:0"})
    if exact:
        assert reader.dense("number:0", "age").is_plain  # type: ignore[union-attr]
    else:
        with pytest.raises(FeatureError, match="'age': its normalizer_fn cuts off"):
            reader.dense("number:0", "age")


def words(name: str, *values: str) -> bytes:
    """A constant of text."""
    raw = field(1, TEXT) + field(2, field(2, field(1, len(values))))
    raw += b"".join(field(8, value.encode()) for value in values)
    return node(name, "Const", [], value=field(8, raw))


def real(name: str, number: float) -> bytes:
    """A constant number."""
    return node(
        name, "Const", [], value=field(8, field(1, FLOAT) + field(4, np.float32(number).tobytes()))
    )


def training_graph(step: bytes) -> Graph:
    """A variable that is restored as "w", and a step of its optimizer."""
    graph = node("w", "VarHandleOp", []) + words("keys", "w") + words("slices", "")
    graph += node("restore", "RestoreV2", ["keys", "keys", "slices"])
    graph += node("assign", "AssignVariableOp", ["w", "restore"])
    return Graph(memoryview(graph + real("rate", 0.5) + step), "graph")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ResourceApplyAdam", set()),
        ("ResourceApplyKerasMomentum", {"nesterov"}),
        ("ResourceApplyRMSProp", set()),
    ],
)
def test_only_momentum_of_a_training_graph_has_nesterovs(kind: str, expected: set[str]) -> None:
    step = node("step", kind, ["w", *["rate"] * 9], use_nesterov=field(5, 0))
    options = _applied(training_graph(step))
    assert set(options) == {"w"}
    assert {"nesterov"} & set(options["w"]) == expected


@pytest.mark.parametrize(("beta", "l2"), [(0.0, 0.02), (0.1, 0.12)])
def test_the_l2_of_ftrl_is_what_its_graph_computes(beta: float, l2: float) -> None:
    step = real("l2", 0.02) + real("beta", beta) + real("two", 2.0)
    step += real("tiny", 1e-36) + node("least", "Maximum", ["rate", "tiny"])
    step += node("twice", "Mul", ["two", "least"]) + node("more", "RealDiv", ["beta", "twice"])
    step += node("sum", "AddV2", ["l2", "more"])
    step += node("step", "ResourceApplyFtrl", ["w", "n", "z", "g", "rate", "l2", "sum", "rate"])
    assert _applied(training_graph(step))["w"] == {"lr": 0.5, "l1": 0.02, "l2": l2, "lr_power": 0.5}


def test_a_bias_of_another_length_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"of shape \[1\], expected \[2\]"):
        _write(np.zeros(2, np.float32), np.zeros(1, np.float32), False)


def test_a_bare_checkpoint_of_odd_names_needs_the_types_of_crossed_columns(tmp_path: Path) -> None:
    tensors = {
        "global_step": np.int64(3),
        "linear/linear_model/bias_weights": np.zeros(1, np.float32),
        "linear/linear_model/site_ad_X_two_words/weights": np.ones((5, 1), np.float32),
        "training/SGD/decay": np.float32(0),
        "training/SGD/learning_rate": np.float32(0.1),
    }
    cross = wd.crossed("site/ad", "two words", name="pair", hash_buckets=5)
    config = RunConfig(spec=wd.FeatureSpec(label="y", features=[cross], wide=["pair"], deep=[]))
    prefix = write_bundle(tmp_path / "model.ckpt-3", tensors)
    with pytest.raises(CheckpointError, match="'site/ad', and nothing says whether it holds text"):
        from_estimator(prefix, spec=config)
    rows = pa.table({"site/ad": ["a"], "two words": ["b"], "y": [1.0]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    config = dataclasses.replace(config, data=DataConfig(train=str(tmp_path / "rows.parquet")))
    imported = from_estimator(prefix, spec=config)
    assert imported.trainer.logits([{"site/ad": "a", "two words": "b"}]).tolist() == [[1.0]]
    wide = imported.trainer.config.wide
    assert (wide["optimizer"], wide["lr"], wide["momentum"]) == ("sgd", 0.1, 0.0)
