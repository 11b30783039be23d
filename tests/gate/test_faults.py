"""The gate where its data, the candidate or the model in service is not what it should be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command_line import Run
from tests.gate.market import market, train, with_column
from widedeep.errors import BundleError, DataError, SchemaError
from widedeep.gate import GateConfig, validate
from widedeep.publish import publish

CONFIG = GateConfig(unit="user", slices=("country",), max_latency_ms=10_000.0)
ROWS = 3000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {
        name: train(market(4000, 1), folder / name, seed=seed).path
        for seed, name in enumerate(("serving", "candidate"))
    }


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("alone", [True, False])
def test_one_class(made: dict[str, Path], label: int, alone: bool) -> None:
    recent = with_column(market(ROWS, 2), "click", np.full(ROWS, label, np.int8))
    verdict = validate(made["candidate"], None if alone else made["serving"], recent, config=CONFIG)
    assert not verdict.passed
    assert verdict.reasons[0] == (
        f"every label of the data is {label}: a model cannot be judged by rows of one class; give "
        "data with both"
    )
    assert not any(entry["failed"] for entry in verdict.slices)


def test_too_little_of_one_class(made: dict[str, Path]) -> None:
    labels = np.zeros(ROWS, np.int8)
    labels[:7] = 1
    recent = with_column(market(ROWS, 2), "click", labels)
    verdict = validate(made["candidate"], made["serving"], recent, config=CONFIG)
    assert "7 positive and 2,993 negative rows, expected at least 50 of each" in verdict.reasons[0]


def test_without_data(made: dict[str, Path], tmp_path: Path, run: Run) -> None:
    empty = market(ROWS, 2).slice(0, 0)
    with pytest.raises(DataError, match="got no rows to judge by"):
        validate(made["candidate"], made["serving"], empty, config=CONFIG)
    pq.write_table(empty, tmp_path / "empty.parquet")
    for data, told in (("empty.parquet", "no rows to judge by"), ("none.parquet", "no such file")):
        code, _, err = run("validate", made["candidate"], "--data", tmp_path / data)
        assert (code, told in err, "Traceback" in err) == (2, True, False)
    few = validate(made["candidate"], None, market(999, 2), config=CONFIG)
    assert few.reasons[0].startswith(
        "too little data to judge by: 999 rows, expected at least 1,000"
    )
    with pytest.raises(DataError, match="no column 'user'"):
        validate(made["candidate"], None, market(ROWS, 2).drop_columns("user"), config=CONFIG)


@pytest.mark.parametrize("how", ["the folder", "a file", "a byte"])
def test_the_model_in_service_is_gone(
    made: dict[str, Path], tmp_path: Path, run: Run, how: str
) -> None:
    models = tmp_path / "models"
    publish(made["serving"], models, force=True, reason="the first")
    weights = models / "1/weights.safetensors"
    if how == "the folder":
        shutil.rmtree(models / "1")
    elif how == "a file":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    pq.write_table(market(ROWS, 2), tmp_path / "recent.parquet")
    words = ("validate", made["candidate"], "--data", tmp_path / "recent.parquet")
    code, out, err = run(*words, "--against", models, "--set", "gate.max_latency_ms=10000")
    assert (code, out, "Traceback" in err) == (2, "", False)
    told = "without a serving version" if how == "the folder" else "weights.safetensors"
    assert told in err
    if how != "the folder":
        with pytest.raises(BundleError, match=r"weights\.safetensors"):
            validate(made["candidate"], models / "1", market(ROWS, 2), config=CONFIG)


@pytest.mark.parametrize("how", ["a file", "a byte", "its manifest"])
def test_a_damaged_candidate(made: dict[str, Path], tmp_path: Path, how: str) -> None:
    place = tmp_path / "candidate"
    shutil.copytree(made["candidate"], place)
    weights = place / "weights.safetensors"
    if how == "a byte":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    else:
        (weights if how == "a file" else place / "manifest.json").unlink()
    verdict = validate(place, made["serving"], market(ROWS, 2), config=CONFIG)
    assert not verdict.passed
    told = "manifest.json" if how == "its manifest" else "weights.safetensors"
    assert verdict.reasons[0].startswith("dry run: ")
    assert told in verdict.reasons[0]
    with pytest.raises(BundleError, match="not a directory"):
        validate(tmp_path / "none", made["serving"], market(ROWS, 2), config=CONFIG)


def test_a_model_of_another_label(made: dict[str, Path], tmp_path: Path) -> None:
    import widedeep as wd

    spec = wd.FeatureSpec(label="device", features=wd.categorical("country"))
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, market(500, 1))), progress=False)
    trainer.export(tmp_path / "other", warmup=False)
    with pytest.raises(SchemaError, match="they cannot be compared"):
        validate(tmp_path / "other", made["serving"], market(ROWS, 2), config=CONFIG)


def test_the_model_in_service_behind_a_url(made: dict[str, Path], tmp_path: Path, run: Run) -> None:
    models = f"memory://{tmp_path.name}/models"
    pq.write_table(market(ROWS, 2), tmp_path / "recent.parquet")
    words = ("validate", made["candidate"], "--data", tmp_path / "recent.parquet")
    words += ("--out", tmp_path / "verdict.json", "--set", "gate.max_latency_ms=10000")
    code, _, err = run(*words, "--against", models)
    assert (code, "nothing was published there yet" in err) == (2, True)
    assert run("inspect", models).out.startswith("no version is published here")
    publish(made["serving"], models, force=True, reason="the first")
    code, out, _ = run(*words, "--against", models)
    assert code in (0, 1)
    assert "in service" in out
    code, _, err = run("rollback", models)
    assert (code, "no version before '1' to go back to" in err) == (1, True)
