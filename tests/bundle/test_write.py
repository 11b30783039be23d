"""A bundle is there whole or not at all, and what was there before stays until then."""

from __future__ import annotations

import datetime
import decimal
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.bundle import models
from widedeep.bundle import (
    Bundle,
    BundleHead,
    BundleModel,
    Calibration,
    DeepColumn,
    Platt,
    write_bundle,
)
from widedeep.errors import BundleError, WideDeepError
from widedeep.files import map_tensors

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = models.schema()
MODEL = models.model(SCHEMA)
WEIGHTS = models.random_weights(SCHEMA, MODEL)


def write(
    path: Path,
    *,
    model: BundleModel = MODEL,
    weights: models.Weights = WEIGHTS,
    warmup_rows: list[dict[str, Any]] | None = None,
    calibration: Calibration | dict[str, Calibration] | None = None,
    overwrite: bool = False,
) -> Bundle:
    return write_bundle(
        path,
        schema=SCHEMA,
        weights=weights,
        model=model,
        metrics={"auc": np.float32(0.5)},
        warmup_rows=models.rows(3) if warmup_rows is None else warmup_rows,
        config={"train": {"epochs": 3, "rates": (0.1, None)}},
        calibration=calibration,
        overwrite=overwrite,
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    bundle = write(tmp_path / "deeper" / "b")
    assert bundle.schema == SCHEMA
    assert bundle.model == MODEL
    assert bundle.config == {"train": {"epochs": 3, "rates": [0.1, None]}}
    assert bundle.metrics == {"auc": 0.5}
    assert bundle.warmup.rows == models.rows(3)
    assert np.array_equal(bundle.warmup.scores[""], bundle.score(models.rows(3)))
    assert os.listdir(tmp_path / "deeper") == ["b"]


def test_a_number_that_json_cannot_hold_is_null(written: Bundle) -> None:
    assert written.metrics == {"auc": 0.75, "pr_auc": None}


def test_rows_are_stored_as_the_transform_reads_them(tmp_path: Path) -> None:
    row = {
        "age": decimal.Decimal("30.5"),
        "price": np.float32(2),
        "user": b"anna",
        "tags": np.array(["x", "y"]),
        "app": pa.scalar("maps"),
        "seen": ("mail",),
        "when": datetime.datetime(1970, 1, 1, 0, 0, 1),
        "nothing": pd.NA,
    }
    bundle = write(tmp_path / "b", warmup_rows=[row])
    plain = {"age": 30.5, "price": 2.0, "user": "anna", "tags": ["x", "y"], "app": "maps"}
    moment = "1970-01-01T00:00:01.000000Z"
    assert bundle.warmup.rows == [plain | {"seen": ["mail"], "when": moment, "nothing": None}]
    assert np.array_equal(bundle.score([row]), bundle.score(bundle.warmup.rows))


def test_weights_are_mapped_and_cannot_be_changed(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    table = bundle.weights["table/apps"]
    assert not table.flags.owndata and not table.flags.writeable
    assert table.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0
    assert str(tmp_path / "b" / "weights.safetensors") in Path("/proc/self/maps").read_text()


def test_a_bundle_in_the_way_stays(tmp_path: Path) -> None:
    write(tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match=r"already exists; .*overwrite=True"):
        write(tmp_path / "b", weights=models.random_weights(SCHEMA, MODEL, seed=1))
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before


def test_overwriting_replaces_it_under_a_loaded_bundle(tmp_path: Path) -> None:
    old = write(tmp_path / "b")
    scores = old.score(models.rows(50))
    new = write(
        tmp_path / "b", weights=models.random_weights(SCHEMA, MODEL, seed=1), overwrite=True
    )
    assert np.array_equal(old.score(models.rows(50)), scores)
    assert not np.array_equal(new.score(models.rows(50)), scores)
    assert np.array_equal(
        Bundle.load(tmp_path / "b").score(models.rows(50)), new.score(models.rows(50))
    )
    assert os.listdir(tmp_path) == ["b"]


def test_only_bundles_are_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(BundleError, match=r"no bundle \(it has no manifest.json\)"):
        write(precious, overwrite=True)
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(BundleError, match="a file or a link"):
        write(tmp_path / "link", overwrite=True)
    assert (precious / "thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", overwrite=True).schema == SCHEMA


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
from tests.bundle import test_write as t
from widedeep.errors import BundleError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    t.write(Path(sys.argv[1]), overwrite=True)
except BundleError as error:
    print(error)
else:
    print("written")
"""


@pytest.mark.parametrize("limit", [0, 100, 5_000, 10_000])
@pytest.mark.parametrize("there_before", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, limit: int, there_before: bool) -> None:
    place = tmp_path / "b"
    if there_before:
        write(place)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", DISK_FULL, str(place), str(limit)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    stays = "the bundle that was there is unchanged" if there_before else "nothing was left there"
    assert f"{place}: the bundle could not be written" in done.stdout
    assert "File too large" in done.stdout and stays in done.stdout
    assert os.listdir(tmp_path) == (["b"] if there_before else [])
    if there_before:
        assert np.array_equal(Bundle.load(place).score(models.rows(3)), write_scores())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


def write_scores() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "b").score(models.rows(3))


def without(name: str) -> models.Weights:
    return {key: array for key, array in WEIGHTS.items() if key != name}


def broken_row(name: str, value: float) -> models.Weights:
    array = WEIGHTS[name].copy()
    array[3] = value
    return {**WEIGHTS, name: array}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without("bias"), r"tensor 'bias' is missing"),
        (without("wide/user/app"), r"tensor 'wide/user/app' is missing"),
        (without("head/weight"), r"tensor 'head/weight' is missing"),
        ({**WEIGHTS, "mlp/9/bias": WEIGHTS["bias"]}, r"'mlp/9/bias', which the model has no use"),
        (
            {**WEIGHTS, "table/tags": WEIGHTS["table/tags"][1:]},
            r"tensor 'table/tags': got float32 of shape \(5, 5\), expected .* \(6, 5\)",
        ),
        (
            {**WEIGHTS, "bias": WEIGHTS["bias"].astype(np.float64)},
            r"tensor 'bias': got float64 of shape \(1,\), expected float32",
        ),
        (broken_row("table/apps", np.nan), r"tensor 'table/apps' \(row 3\): got NaN or infinity"),
        (broken_row("mlp/0/bias", np.inf), r"tensor 'mlp/0/bias' \(row 3\): got NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, weights: models.Weights, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "b", weights=weights)
    assert os.listdir(tmp_path) == []


def column(name: str, source: Any, start: int, stop: int) -> DeepColumn:
    return DeepColumn(name=name, source=source, start=start, stop=stop)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: replace(MODEL, wide=("nobody",)), "'nobody' is not in the wide part"),
        (lambda: replace(MODEL, deep=(column("x", "table", 0, 2),)), "'x' is not in the deep part"),
        (lambda: replace(MODEL, deep=(column("x", "dense", 0, 2),)), "'x' has no 2 dense columns"),
        (lambda: replace(MODEL, deep=(column("x", "table", 1, 2),)), "columns 1 to 2, .* from 0"),
        (lambda: replace(MODEL, activation="snake"), "got activation='snake'"),
        (lambda: replace(MODEL, wide_combiner="max"), "got wide_combiner = 'max'"),
        (lambda: replace(MODEL, heads=()), "without a head"),
        (lambda: BundleHead(name="", kind="binary", start=0, stop=2), "expected 1"),
        (lambda: BundleHead(name="", kind="multiclass", start=0, stop=1), "expected 2 or more"),
        (lambda: BundleHead(name="", kind="poisson", start=0, stop=1), "got kind = 'poisson'"),
    ],
)
def test_models_that_do_not_fit_are_named(
    tmp_path: Path, model: Callable[[], BundleModel], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "b", model=model())


def test_without_an_output_layer_the_deep_part_is_left_out(tmp_path: Path) -> None:
    model = replace(MODEL, hidden_units=())
    bundle = write(tmp_path / "b", model=model, weights=without_tower())
    assert bundle.model.deep == ()
    assert not any(
        name.startswith("table/") for name in map_tensors(bundle.path / "weights.safetensors")
    )


def without_tower() -> models.Weights:
    return {k: v for k, v in WEIGHTS.items() if not k.startswith(("mlp/", "head/"))}


def test_warmup_rows_must_be_storable_and_score(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"warmup_rows\[1\]\['user'\]: got .* no UTF-8 text"):
        write(tmp_path / "b", warmup_rows=[{}, {"user": b"\xff"}])
    with pytest.raises(BundleError, match=r"warmup_rows\[0\]\['age'\]: got .*complex"):
        write(tmp_path / "b", warmup_rows=[{"age": 1j}])
    with pytest.raises(WideDeepError):
        write(tmp_path / "b", warmup_rows=[{"age": "old"}])
    regression = replace(MODEL, heads=(replace(MODEL.heads[0], kind="regression"),))
    huge = {**WEIGHTS, "wide/tags": np.full_like(WEIGHTS["wide/tags"], 3e38)}
    with pytest.raises(BundleError, match=r"warmup_rows\[0\]: scores inf.*finite number"):
        write(tmp_path / "b", model=regression, weights=huge, warmup_rows=[{"tags": ["x", "y"]}])
    assert os.listdir(tmp_path) == []


def test_a_calibration_is_for_a_binary_head(tmp_path: Path) -> None:
    platt = Platt(slope=1.0, intercept=0.0)
    with pytest.raises(
        BundleError, match=r"a calibration for 'nobody', expected a binary head: \[''\]"
    ):
        write(tmp_path / "b", calibration={"nobody": platt})
    many = models.model(SCHEMA, heads=models.THREE_HEADS)
    weights = models.random_weights(SCHEMA, many)
    with pytest.raises(BundleError, match="name the binary heads it is for"):
        write(tmp_path / "b", model=many, weights=weights, calibration=platt)
    bundle = write(tmp_path / "b", model=many, weights=weights, calibration={"click": platt})
    assert bundle.calibration == {"click": platt}


def test_loading_replays_the_warmup_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write(tmp_path / "b", calibration=Platt(slope=1.0, intercept=0.0))
    monkeypatch.setattr(Platt, "probabilities", lambda self, logits: np.ones(len(logits)))
    with pytest.raises(BundleError, match=r"warmup\.json: warm-up row \d scores 1\.0, it scored"):
        Bundle.load(bundle.path)
    Bundle.load(bundle.path, verify=False)
