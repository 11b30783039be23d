"""Loggers hold what the history does, as their own libraries read it back."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.callbacks.jobs import ROWS, make_trainer
from widedeep.callbacks import CSVLog, TensorBoard
from widedeep.callbacks.loggers import parameters


def test_the_csv_is_the_history_of_a_resumed_run(tmp_path: Path) -> None:
    for epochs in (2, 3):
        trainer = make_trainer(tmp_path / "checkpoints", log=["csv"])
        trainer.fit(ROWS, epochs=epochs, valid=ROWS, resume=True, early_stopping=False)
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert [float(row["valid/auc"]) for row in rows] == trainer.history.column("valid/auc")


def test_a_column_that_comes_later_gets_its_place(tmp_path: Path) -> None:
    trainer = make_trainer(callbacks=[CSVLog(tmp_path / "deep" / "log.csv")])  # type: ignore[arg-type]
    trainer.fit(ROWS)
    trainer.fit(ROWS, valid=ROWS)
    with open(tmp_path / "deep" / "log.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["valid/auc"] == ""
    assert float(second["valid/auc"]) == trainer.history[-1]["valid/auc"]


def board_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_shows_the_history_once_over_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = [{"kind": "tensorboard", "dir": "board", "every": 3}]
    for epochs in (2, 3):
        trainer = make_trainer(tmp_path / "checkpoints", log=log)
        trainer.fit(ROWS, epochs=epochs, valid=ROWS, resume=True, early_stopping=False)
    trainer.export(tmp_path / "bundle")
    board = board_scalars(tmp_path / "board")
    steps = [4, 8, 12]
    wanted = trainer.history.column("valid/auc")
    assert board["valid/auc"] == [(s, pytest.approx(v)) for s, v in zip(steps, wanted, strict=True)]
    assert [step for step, _ in board["step/loss"]] == [3, 6, 9, 12]
    assert board["bundle/auc"][0][1] == pytest.approx(trainer.valid_metrics["auc"])


def test_a_second_fit_goes_on_behind_the_first(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = make_trainer(callbacks=[TensorBoard(str(tmp_path))])
    for _ in range(2):
        trainer.fit(ROWS)
    assert [step for step, _ in board_scalars(tmp_path)["train/loss"]] == [4, 8]


def test_parameters_are_those_of_model_and_training() -> None:
    values = parameters(make_trainer(log=["csv"]).config_tables())
    assert values["train.batch_size"] == 16
    assert values["model.hidden_units"] == "[8]"
    assert values["train.wide.optimizer"] == "ftrl"
    assert not any("log" in name for name in values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of SQLAlchemy and pydantic
def test_mlflow_holds_the_run_and_serves_its_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    import pandas as pd

    log = [{"kind": "mlflow", "experiment": "jobs", "tracking_uri": store, "every": 2}]
    trainer = make_trainer(tmp_path / "run" / "checkpoints", log=log)
    trainer.fit(ROWS, epochs=2, valid=ROWS)
    bundle = trainer.export(tmp_path / "bundle")
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("jobs")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["train.batch_size"] == "16"
    assert run.data.tags["widedeep.schema"] == trainer.model.schema.fingerprint
    curve = client.get_metric_history(run.info.run_id, "valid/auc")
    assert [(m.step, m.value) for m in curve] == [
        (row["step"], row["valid/auc"]) for row in trainer.history
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    (model,) = client.search_logged_models([experiment.experiment_id])
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    rows = [*ROWS, {"job": None, "age": None, "tags": None}]
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame(rows)), bundle.score(rows))
    whole = [{"job": "a", "age": 3, "tags": ["x"]}]  # integers for a column of floats
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame(whole)), bundle.score(whole))
    # Without torch, as a server of models loads it.
    program = (
        "import sys; sys.modules['torch'] = None; import mlflow, pandas; "
        f"print(mlflow.pyfunc.load_model({model.model_uri!r}).predict("
        "pandas.DataFrame({'job': ['a']}))[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == bundle.score({"job": "a"})[0]


def test_a_log_that_goes_away_costs_figures_and_a_line(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "log.csv"

    def cut(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            file.unlink()
            file.mkdir()

    callbacks = [wd.callbacks.LambdaCallback(on_step=cut), CSVLog(str(file))]
    trainer = make_trainer(callbacks=callbacks)
    trainer.fit(ROWS, epochs=3)
    assert trainer.position.step == 12
    assert capsys.readouterr().err.count("figures are lost, training goes on") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger = wd.callbacks.WandB("jobs", mode="offline", dir=str(tmp_path), every=2)
    trainer = make_trainer(callbacks=[logger])
    trainer.fit(ROWS, valid=ROWS)
    run = logger._run
    assert run.config["train.batch_size"] == 16
    trainer.export(tmp_path / "bundle")
    assert run.summary["bundle/auc"] == trainer.valid_metrics["auc"]
    logger.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
