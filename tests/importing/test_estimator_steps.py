"""Estimators carried over from TensorFlow: the same logits and further steps, slot by slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracles.models import MODEL_NAMES, unpack_model
from widedeep.importing import ImportedModel, from_estimator
from widedeep.importing.weights import _Filler
from widedeep.training.trainer import Trainer

STEPS = (1, 3, 20)
# A table with a largest norm is cut back when it is read in TensorFlow, when it is written here.
APART = {"max_norm"}


def rows_of(answers: dict[str, Any], batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch of the vectors as rows of ours."""
    label, rows = answers["model"]["label"], []
    for i, labels in enumerate(batch["labels"]):
        row = {name: list(f["rows"][i]) for name, f in batch["features"].items()}
        if "multi_hot" in label:
            row["label"] = [str(k) for k, on in enumerate(labels) if on]
        elif len(labels) == 1:
            row["label"] = labels[0]
        else:
            row |= {f"label_{k}": value for k, value in enumerate(labels)}
        rows.append(row)
    return rows


def fitting(rows: list[dict[str, Any]], imported: ImportedModel) -> list[dict[str, Any]]:
    """Rows whose columns of single values hold them, not lists of one."""
    columns = imported.trainer.model.schema.columns
    for row in rows:
        for name, value in row.items():
            if name in columns and not columns[name].nested and isinstance(value, list):
                row[name] = value[0] if value else None
    return rows


def carry_over(name: str, folder: Path) -> tuple[dict[str, Any], ImportedModel]:
    answers = unpack_model(name, folder)
    options = answers["model"]["options"]
    imported = from_estimator(
        folder / "saved_model",
        checkpoint=folder / "checkpoint",
        weight="weight" if "weight_column" in options else None,
        lists=[
            name
            for name, feature in answers["batches"][0]["features"].items()
            if not feature.get("dense")
        ],
        train={
            "batch_size": 6,
            "shuffle": False,
            **({"loss_reduction": "sum"} if "loss_reduction" in options else {}),
            **further_options(answers["model"]),
        },
    )
    return answers, imported


def further_options(case: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint does not hold of an optimizer."""
    if case.get("version") == 1:
        return {
            part: {"lr": case["optimizers"][own]["learning_rate"]}
            for part, own in (("wide", "linear"), ("deep", "dnn"), ("dense", "dnn"))
            if own in case["optimizers"]
        }
    if case.get("optimizers", {}).get("dnn", {}).get("nesterov"):
        return {"deep": {"nesterov": True}, "dense": {"nesterov": True}}
    return {}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_and_further_steps_are_those_of_tensorflow(name: str, tmp_path: Path) -> None:
    answers, imported = carry_over(name, tmp_path)
    check_logits(answers, imported)
    trainer, losses = imported.trainer, []
    rows = [fitting(rows_of(answers, batch), imported) for batch in answers["batches"]]

    class Compare:
        def on_step(self, metrics: dict[str, Any]) -> None:
            losses.append(metrics["loss"])
            if len(losses) in STEPS and name not in APART:
                compare(answers["states"][str(len(losses))], imported, trainer)

    trainer.callbacks.append(Compare())
    trainer.fit([row for batch in rows for row in batch], epochs=5)
    expected = np.array(answers["losses"]) / np.tile(loss_scales(answers, imported), 5)
    if answers["model"].get("head", {}).get("name", "").startswith("Poisson"):
        expected -= np.tile(poisson_constants(answers), 5)
    assert len(losses) == 20
    limit = 1e-5 if name not in APART else 0.2
    assert np.abs(losses - expected).max() <= limit * max(1.0, np.abs(expected).max())


def check_logits(answers: dict[str, Any], imported: ImportedModel) -> None:
    predictions = answers["predictions"]
    expected = np.array(predictions.get("logits", predictions.get("predictions")))
    rows = fitting(rows_of(answers, answers["rows"]), imported)
    logits = imported.trainer.logits(rows)
    assert imported.checked == len(rows)
    assert np.abs(logits - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())


def loss_scales(answers: dict[str, Any], imported: ImportedModel) -> list[float]:
    """What TensorFlow's loss of each batch is of ours, which is a mean by the rows' weights."""
    if imported.config.train.loss_reduction == "mean":
        return [1.0] * 4
    weights = [batch["features"].get("weight", {}).get("rows") for batch in answers["batches"]]
    return [6.0 if rows is None else float(np.sum(rows)) for rows in weights]


def poisson_constants(answers: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What TensorFlow's loss has over half the deviance: terms of the labels, by batch."""
    labels = np.array([batch["labels"] for batch in answers["batches"]])[:, :, 0]
    return np.where(labels > 1, 0.5 * np.log(2 * np.pi * np.maximum(labels, 1)), labels).mean(
        axis=1
    )


def compare(state: dict[str, Any], imported: ImportedModel, trainer: Trainer) -> None:
    """Hold every variable and slot against TensorFlow's after as many steps."""
    own = trainer.state.checkpoint().tensors
    compared = 0
    for move in _Filler(imported.source, trainer)._moves():
        slots = imported.source.optimizers.slots.get(move.variable, {})
        pairs = [(move.tensor, move.variable, 1.0, False)]
        pairs += [
            (move.state.format(ours), slot.tensor, slot.factor, True)
            for ours, slot in slots.items()
        ]
        for tensor, variable, factor, is_state in pairs:
            expected = np.array(own[tensor])
            values = np.array(state[variable], np.float32) * factor
            move.write(expected, values, is_state)
            limit = 1e-5 * max(1.0, float(np.abs(expected).max()))
            assert np.abs(own[tensor] - expected).max() <= limit, (tensor, trainer.position.step)
            compared += 1
    assert compared > len(imported.tensors)
