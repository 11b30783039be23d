from typing import Any

import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.errors import ConfigError, DataError
from widedeep.metrics.registry import loss_metric
from widedeep.training.early_stopping import (
    EarlyStopping,
    as_stopping,
    overfitting,
)


@pytest.mark.parametrize(
    ("monitor", "values", "best", "stopped"),
    [
        ("log_loss", [0.5, 0.4, 0.41, 0.42], 0.4, True),
        ("auc", [0.7, 0.8, 0.79, 0.81], 0.81, False),
        ("calibration", [1.2, 0.95, 1.1, 1.06], 0.95, True),
        ("click/auc", [0.9, 0.8, 0.7, 0.6], 0.9, True),
        ("auc", [0.7, float("nan"), float("inf")], 0.7, True),
        ("log_loss", [0.7, float("-inf"), 0.6], 0.6, False),
        ("mean_bias", [-0.5, 0.1, -0.2, 0.3], 0.1, True),
    ],
)
def test_knows_better_from_worse(
    monitor: str, values: list[float], best: float | None, stopped: bool
) -> None:
    stopping = EarlyStopping(monitor, patience=2)
    for step, value in enumerate(values):
        stopping.update({monitor: value}, step)
    assert stopping.best == best
    assert stopping.should_stop is stopped


def test_min_delta_wants_more_than_noise() -> None:
    stopping = EarlyStopping(patience=1, min_delta=0.01)
    assert stopping.update({"log_loss": 0.5}, 1)
    assert not stopping.update({"log_loss": 0.495}, 2)


def test_state_survives() -> None:
    stopping = EarlyStopping()
    stopping.update({"log_loss": 0.5}, 7)
    stopping.update({"log_loss": 0.6}, 8)
    again = EarlyStopping()
    again.load(stopping.dump())
    assert (again.best, again.best_step, again.without) == (0.5, 7, 1)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [5, 10, 15, 20]),
        ({"eval_every": 8}, [8, 10, 16, 20]),
        ({"epochs": 2}, [10, 20]),
        ({"early_stopping": False}, [10, 20]),
    ],
)
def test_passes_chosen_for_it_are_evaluated_halfway_too(
    options: dict[str, Any], steps: list[int]
) -> None:
    rows = pa.table({"job": [f"j{i % 2}" for i in range(160)], "click": [0, 1] * 80})
    spec = wd.FeatureSpec(label="click", features=[*wd.categorical("job")])
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
    trainer = wd.Trainer(model, batch_size=16, threads=1, progress=False)
    history = trainer.fit(rows, valid=rows, **{"epochs": "auto", "steps": 20, **options})
    assert [row["step"] for row in history.rows if "valid/log_loss" in row] == steps


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'log_loss'"):
        EarlyStopping("logloss").update({"log_loss": 0.5, "auc": 0.5}, 1)
    with pytest.raises(ConfigError, match="give validation data"):
        as_stopping(3, has_valid=False)
    with pytest.raises(ConfigError, match="patience=0"):
        EarlyStopping(patience=0)
    with pytest.raises(ConfigError, match="got early_stopping='yes', expected 'auto', False"):
        as_stopping("yes", has_valid=True)  # type: ignore[arg-type]


def test_choices() -> None:
    own = EarlyStopping("auc", patience=7)
    assert as_stopping(own, has_valid=True) is own
    for choice, patience in ((True, 2), ("auto", 2), (1, 1), (5, 5)):
        stopping = as_stopping(choice, has_valid=True)  # type: ignore[arg-type]
        assert stopping is not None and stopping.patience == patience
    assert as_stopping(False, has_valid=True) is None
    assert as_stopping(None, has_valid=True) is None
    assert as_stopping("auto", has_valid=False) is None
    with pytest.raises(ConfigError, match="give validation data"):
        as_stopping(True, has_valid=False)


@pytest.mark.parametrize(
    ("names", "loss"),
    [
        (["auc", "log_loss"], "log_loss"),
        (["mse", "rmse", "mae"], "rmse"),
        (["click/log_loss", "spent/rmse", "loss"], "loss"),
    ],
)
def test_the_loss_of_the_model_is_the_default_monitor(names: list[str], loss: str) -> None:
    assert loss_metric(names) == loss
    stopping = EarlyStopping()
    stopping.check_monitor(names)
    assert stopping.monitor == loss


@pytest.mark.parametrize(
    ("valid", "train", "warns"),
    [
        ([0.5, 0.4, 0.41, 0.42], [0.5, 0.4, 0.3, 0.2], True),
        ([0.5, 0.4, 0.41], [0.5, 0.4, 0.3], False),  # once may be noise
        ([0.5, 0.4, 0.42, 0.41], [0.5, 0.4, 0.5, 0.5], False),  # training got worse, too
        ([0.5, 0.4, 0.3, 0.2], [0.5, 0.4, 0.3, 0.2], False),
        ([float("nan")] * 4, [0.5, 0.4, 0.3, 0.2], False),
    ],
)
def test_learning_by_heart_is_told(valid: list[float], train: list[float], warns: bool) -> None:
    history = [
        {"step": i, "loss": loss, "valid/log_loss": value}
        for i, (value, loss) in enumerate(zip(valid, train, strict=True))
    ]
    history.insert(2, {"step": 9, "loss": 0.0})  # an epoch that was not evaluated
    warning = overfitting(history, "log_loss")
    assert (warning is not None) is warns
    if warning:
        assert "rose from 0.4000 (step 1) to 0.4200 (step 3)" in warning


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_undefined_metric_is_never_the_best(value: float) -> None:
    stopping = EarlyStopping("auc")
    with pytest.raises(DataError, match=r"auc on the validation data is .*: only one class; mon"):
        stopping.update({"auc": value}, 1, {"auc": "only one class"})
    assert stopping.best is None
    stopping.update({"auc": 0.6}, 2)
    assert not stopping.update({"auc": value}, 3)
    assert (
        stopping.undefined
        == f"auc on the validation data is {value:g}: the model's scores are no numbers"
    )
    assert (stopping.best, stopping.best_step, stopping.without) == (0.6, 2, 1)
    assert not stopping.update({"auc": 0.5}, 4)
    assert stopping.undefined is None


def test_a_count_is_no_measure_of_quality() -> None:
    for name in ("rows", "label_mean", "click/rows"):
        with pytest.raises(ConfigError, match=r"is no measure of quality; known: 'auc'"):
            EarlyStopping(name).check_monitor(["auc", name])


def rows(count: int, labels: tuple[int, ...] = (0, 1)) -> list[dict[str, object]]:
    return [{"job": "ab"[i % 2], "y": labels[i % len(labels)]} for i in range(count)]


def make_trainer(wide: wd.FTRL | None = None) -> wd.Trainer:
    spec = wd.FeatureSpec(label="y", features=wd.categorical("job"), deep=[])
    model = wd.WideDeep(wd.fit_schema(spec, rows(64)))
    return wd.Trainer(model, wide=wide, batch_size=8, progress=False)


def test_validation_data_of_one_class_stops_the_training_with_the_reason() -> None:
    trainer = make_trainer()
    with pytest.raises(DataError, match=r"auc on the validation data is nan: only one class"):
        trainer.fit(rows(64), valid=rows(16, (1,)), early_stopping=EarlyStopping("auc"))


def test_an_unknown_monitor_is_refused_before_the_first_step() -> None:
    trainer = make_trainer()
    with pytest.raises(ConfigError, match="got monitor='aucc', which was not evaluated; did you"):
        trainer.fit(rows(64), valid=rows(16), early_stopping=EarlyStopping("aucc"))
    with pytest.raises(ConfigError, match="got monitor='gauc'"):
        trainer.fit(rows(64), valid=rows(16), early_stopping=EarlyStopping("gauc"))
    assert trainer.position.step == 0
