"""The verb `export --format onnx`: a run's model as one file, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import onnxruntime
import pyarrow.parquet as pq

import widedeep as wd
from tests.command_line import Run
from widedeep.bundle import onnx_inputs


def test_a_run_as_onnx_scores_as_its_bundle(run: Run, ads_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "models" / "ads.onnx"
    done = run("export", ads_run / "run", "--format", "onnx", "-o", file, "--json")
    assert done.code == 0, done.err
    bundle = wd.Bundle.load(ads_run / "run" / "bundle")
    inputs = json.loads(done.out)["inputs"]
    assert inputs["tags/ids"] == "ids", "a list has no form in ONNX"
    assert set(inputs) >= set(bundle.input_columns) - {"tags"}
    rows = pq.read_table(ads_run / "test.parquet").to_pylist()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], onnx_inputs(bundle, rows))
    np.testing.assert_allclose(scores, bundle.score(rows), atol=1e-5)
    again = run("export", ads_run / "run", "--format", "onnx", "-o", file)
    assert again.code == 2 and "already exists" in again.err
    forced = run("export", ads_run / "run", "--format", "onnx", "-o", file, "--force")
    assert forced.code == 0
    assert "within 1e-05 of the bundle's" in forced.out and "next: widedeep score" in forced.out


def test_onnx_goes_to_a_url(run: Run, ads_run: Path) -> None:
    url = "memory://onnx-test/models/ads.onnx"
    verb = ("export", ads_run / "run", "--format", "onnx", "-o", url)
    done = run(*verb)
    assert done.code == 0 and f"{url}: " in done.out, done.err
    content = fsspec.filesystem("memory").cat_file("/onnx-test/models/ads.onnx")
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    again = run(*verb)
    assert again.code != 0 and "already exists; choose another, or replace it" in again.err
    assert run(*verb, "--force").code == 0


def test_what_onnx_export_refuses(run: Run, ads_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "ads.onnx"
    items = run("export", ads_run / "run", "--format", "onnx", "-o", out, "--items", "x.parquet")
    assert items.code == 2 and "got --items with --format onnx" in items.err
    (checkpoint, *_) = (ads_run / "run" / "checkpoints").glob("step-*")
    unfinished = run("export", checkpoint, "--format", "onnx", "-o", out)
    assert unfinished.code == 2 and "got checkpoints without a bundle" in unfinished.err
    assert not out.exists()
