"""Towers of one's own, computed by ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.bundle import models
from widedeep.bundle import Bundle, write_bundle
from widedeep.errors import BundleError

SCHEMA = models.schema(extra=("price",))
MODEL = models.model(SCHEMA, hidden_units=())
ROWS = models.rows(50)
WIDTH = MODEL.width


def graph(
    width: int = WIDTH, *, n_logits: int = 1, first: str = "concat_BX", output: str = "logits_BC"
) -> tuple[bytes, NDArray[np.float32]]:
    """relu(concat) W + price, and its W."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(width, n_logits)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", [first], ["positive"]),
        helper.make_node("MatMul", ["positive", "weight"], ["product"]),
        helper.make_node("Add", ["product", "extra/price"], [output]),
    ]
    made = helper.make_graph(
        nodes,
        "towers",
        [
            helper.make_tensor_value_info(first, TensorProto.FLOAT, ["B", width]),
            helper.make_tensor_value_info("extra/price", TensorProto.FLOAT, ["B", 1]),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", n_logits])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(made, opset_imports=opset, ir_version=8)
    return model.SerializeToString(), weight


def write(path: Path, **changes: Any) -> Bundle:
    weights = models.random_weights(SCHEMA, MODEL, tower=False)
    options = {"engine": "onnx", "onnx": graph()[0], "warmup_rows": ROWS[:3], **changes}
    return write_bundle(
        path / "b",
        schema=SCHEMA,
        weights=weights,
        model=MODEL,
        metrics={},
        config={},
        **options,
    )


def test_the_graph_computes_the_deep_part(tmp_path: Path) -> None:
    bundle = write(tmp_path)
    assert bundle.manifest.engine == "onnx" and "graph.onnx" in bundle.manifest.files
    batch = bundle._encode_rows(ROWS)
    wide, deep = bundle._forward.parts(batch)
    arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
    concat = bundle._forward.scorer.concat(*arrays, threads=1)
    price = batch.dense_BK[:, SCHEMA.dense_layout["price"]]
    np.testing.assert_allclose(deep, np.maximum(concat, 0) @ graph()[1] + price, atol=1e-5)
    expected = (wide + deep) + bundle.weights["bias"]
    assert np.array_equal(bundle.logits(batch), expected)
    assert "towers of its own" in repr(bundle)


def test_columns_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    # Item features stand between query features here; the graph must get them where they stood.
    bundle = write(tmp_path)
    batch = bundle._encode_rows(ROWS[:1])
    arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
    concat = bundle._forward.scorer.concat(*arrays, threads=1)
    names = [slot.name for slot in SCHEMA.slots]
    for column in MODEL.deep:
        if column.source == "table":
            cell = names.index(column.name)
            ids = batch.ids_N[slice(*batch.offsets_BF[cell : cell + 2])]
            table = bundle.weights[f"table/{SCHEMA.slots[cell].table}"]
            scale = len(ids) ** (0.5 if column.combiner == "sqrtn" else 1) if len(ids) else 1
            pooled = table[ids].sum(axis=0) / scale
            np.testing.assert_allclose(concat[0, column.start : column.stop], pooled, rtol=1e-5)


def test_it_loads_and_scores_within_tolerance_on_any_threads(tmp_path: Path) -> None:
    expected = write(tmp_path).score(ROWS)
    loaded = Bundle.load(tmp_path / "b")
    for threads in (1, 2):
        np.testing.assert_allclose(loaded.score(ROWS, threads=threads), expected, atol=1e-6)


def test_without_onnx_runtime_it_says_what_to_install(tmp_path: Path) -> None:
    bundle = write(tmp_path)
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import widedeep as wd\n"
        "try:\n    wd.Bundle.load(sys.argv[1])\n"
        "except wd.WideDeepError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle.path)],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("BundleError")
    assert "pip install 'widedeep[onnx]'" in done.stdout


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (graph(WIDTH + 1), r"got the input 'concat_BX' of shape \['B', 22\], expected"),
        (graph(first="images"), r"got the input 'images'"),
        (graph(output="y"), r"got the output 'y'"),
        (graph(n_logits=2), r"expected 'logits_BC' of shape \(B, 1\)"),
        ((b"no graph", None), "ONNX Runtime cannot read the towers"),
    ],
)
def test_a_graph_of_another_shape_is_refused(
    tmp_path: Path, made: tuple[bytes, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path, onnx=made[0])
    assert list(tmp_path.iterdir()) == []


def test_engine_and_graph_go_together(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="engine='onnx' without a graph"):
        write(tmp_path, onnx=None)
    with pytest.raises(BundleError, match="engine='native' with a graph"):
        write(tmp_path, engine="native")
