import pytest

from widedeep.errors import ConfigError
from widedeep.training.early_stopping import EarlyStopping, as_stopping


@pytest.mark.parametrize(
    ("monitor", "values", "best", "stopped"),
    [
        ("log_loss", [0.5, 0.4, 0.41, 0.42], 0.4, True),
        ("auc", [0.7, 0.8, 0.79, 0.81], 0.81, False),
        ("calibration", [1.2, 0.95, 1.1, 1.06], 0.95, True),
        ("click/auc", [0.9, 0.8, 0.7, 0.6], 0.9, True),
        ("auc", [float("nan"), float("nan")], None, True),
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


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'log_loss'"):
        EarlyStopping("logloss").update({"log_loss": 0.5, "auc": 0.5}, 1)
    with pytest.raises(ConfigError, match="give validation data"):
        as_stopping(3, has_valid=False)
    with pytest.raises(ConfigError, match="patience=0"):
        EarlyStopping(patience=0)
