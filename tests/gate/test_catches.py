"""The table of what the gate must catch, and of what it must let pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.gate.market import CONFIG, market, rewritten, train, with_column
from widedeep.bundle import Bundle
from widedeep.gate import Verdict, validate

ROWS = 150_000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recent() -> pa.Table:
    return market(ROWS, 2)


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    return market(ROWS, 1)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, examples: pa.Table) -> Bundle:
    return train(examples, tmp_path_factory.mktemp("serving") / "bundle")


@pytest.fixture
def judged(serving: Bundle, recent: pa.Table, tmp_path: Path) -> object:
    def judge(candidate: Bundle) -> Verdict:
        return validate(candidate.path, serving.path, recent, config=CONFIG)

    return judge


def because(verdict: Verdict, words: str) -> bool:
    assert not verdict.passed
    assert any(words in reason for reason in verdict.reasons), verdict.reasons
    return True


def test_shuffled_labels(judged, examples: pa.Table, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(examples["click"].to_numpy())
    verdict = judged(train(with_column(examples, "click", labels), tmp_path / "b"))
    assert because(verdict, "AUC")
    assert because(verdict, "log loss")


def test_a_feature_dropped_to_null(judged, examples: pa.Table, tmp_path: Path) -> None:
    nulls = pa.nulls(len(examples), pa.float64())
    verdict = judged(train(with_column(examples, "price", nulls), tmp_path / "b"))
    assert because(verdict, "'price' is missing in 0.0% of the rows, 100.0% in training")
    assert because(verdict, "log loss")


def test_quantiles_from_other_units(judged, examples: pa.Table, tmp_path: Path) -> None:
    cents = examples["price"].to_numpy() * 100
    verdict = judged(train(with_column(examples, "price", cents), tmp_path / "b"))
    assert because(verdict, "of the values of feature 'price' are new to the model")
    assert because(verdict, "log loss")


@pytest.mark.parametrize("shift", [1.03, 0.97])
def test_a_calibration_shift_of_three_percent(
    judged, serving: Bundle, recent: pa.Table, tmp_path: Path, shift: float
) -> None:
    scores = np.asarray(serving.score(recent))
    low, high = -1.0, 1.0
    logits = np.log(scores / (1 - scores))
    for _ in range(60):
        middle = (low + high) / 2
        mean = (1 / (1 + np.exp(-logits - middle))).mean()
        low, high = (middle, high) if mean < shift * scores.mean() else (low, middle)

    def move(weights: dict[str, np.ndarray]) -> None:
        weights["bias"] += np.float32(low)

    verdict = judged(rewritten(serving, tmp_path / "b", move))
    change = verdict.quality["score"]["candidate"]["calibration"]
    before = verdict.quality["score"]["serving"]["calibration"]
    assert change / before == pytest.approx(shift, abs=1e-3)
    assert because(verdict, "times the observed labels")


def test_a_stale_model(judged, tmp_path: Path) -> None:
    assert because(judged(train(market(ROWS, 3, day=0.5), tmp_path / "b")), "log loss")


@pytest.mark.parametrize(
    ("table", "reason"),
    [("table/item", "times the observed labels"), ("wide/country_x_item", "log loss")],
)
def test_a_corrupted_table(
    judged, serving: Bundle, tmp_path: Path, table: str, reason: str
) -> None:
    """Its checksums are right: the rows of another model, or of no model, were written."""

    def garble(weights: dict[str, np.ndarray]) -> None:
        rng = np.random.default_rng(0)
        weights[table][:] = rng.normal(0, 1, weights[table].shape)

    assert because(judged(rewritten(serving, tmp_path / "b", garble)), reason)


def test_one_slice_ruined(judged, examples: pa.Table, tmp_path: Path) -> None:
    labels = examples["click"].to_numpy().copy()
    ruined = np.flatnonzero(examples["country"].to_numpy(zero_copy_only=False) == "jp")
    labels[ruined] = np.random.default_rng(0).permutation(labels[ruined])
    verdict = judged(train(with_column(examples, "click", labels), tmp_path / "b"))
    assert because(verdict, "slice country = jp")
    failed = {entry["value"] for entry in verdict.slices if entry["failed"]}
    assert failed == {"jp"}


def test_of_ten_retrains_at_most_one_is_stopped(judged, examples: pa.Table, tmp_path: Path) -> None:
    verdicts = [judged(train(examples, tmp_path / f"b{seed}", seed=seed)) for seed in range(1, 11)]
    stopped = [verdict.reasons for verdict in verdicts if not verdict.passed]
    assert len(stopped) <= 1, stopped
