"""The verb `export --tables`: a run, or a bundle, with tables in fewer bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

import widedeep as wd
from tests.command_line import Run
from widedeep.bundle import onnx_inputs


def test_a_run_and_its_bundle_in_fewer_bytes(run: Run, ads_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    done = run("export", ads_run / "run", "--tables", "int8", "-o", out, "--json")
    assert done.code == 0, done.err
    rounding = json.loads(done.out)["rounding"]
    assert rounding["tables"] == "int8" and 0 < rounding["mean"] <= rounding["worst"] < 0.01
    bundle = wd.Bundle.load(out)
    file = tmp_path / "small.onnx"
    assert run("export", out, "--format", "onnx", "-o", file).code == 0
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rows = bundle.warmup.rows
    (scores,) = session.run(["scores"], onnx_inputs(bundle, rows))
    np.testing.assert_allclose(scores, bundle.score(rows), atol=1e-5)
    shown = run("inspect", out)
    assert "tables in int8: of 8 rows, scores changed by" in shown.out

    small = run("export", ads_run / "run" / "bundle", "--tables", "int4", "-o", tmp_path / "int4")
    assert small.code == 0 and "tables in int4" in small.out and "next: widedeep val" in small.out
    verb = ("validate", tmp_path / "int4", "--data", ads_run / "test.parquet")
    stopped = run(*verb, "--set", "gate.max_rounding=0")
    assert stopped.code == 1 and "rounding: tables in int4" in stopped.out
    assert "(max_rounding); export it in int8" in stopped.out


def test_what_export_in_fewer_bytes_refuses(run: Run, ads_run: Path, tmp_path: Path) -> None:
    bundle, out = ads_run / "run" / "bundle", tmp_path / "b"
    plain = run("export", bundle, "-o", out)
    assert plain.code == 2 and "got a bundle, which is exported already; add --tables" in plain.err
    rows = run("export", bundle, "--tables", "int8", "-o", out, "--posterior", "x.parquet")
    assert rows.code == 2 and "got --posterior for a bundle, whose own is kept" in rows.err
    both = run("export", bundle, "--tables", "int8", "--format", "onnx", "-o", out)
    assert both.code == 2 and "got --tables with --format onnx" in both.err
    other = run("export", bundle, "--tables", "int2", "-o", out)
    assert other.code == 2 and "int2" in other.err
    assert not out.exists()
