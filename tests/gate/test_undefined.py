"""What is not defined does not pass: every figure of a verdict, the data, the gate's errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.gate.market import market, train, with_column
from widedeep.bundle import Bundle, write_bundle
from widedeep.data.drift import DriftCounts, psi, score_psi
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.compare import score_both
from widedeep.gate import GateConfig, load_gate_config, validate
from widedeep.gate.checks import drift_reasons, dry_run_reasons
from widedeep.gate.quality import Quality, judge_quality
from widedeep.gate.verdict import undefined_figures
from widedeep.gate.verdict_page import verdict_page

CONFIG = GateConfig(
    unit="user", slices=("country",), bootstrap=200,
    max_latency_ms=10_000.0, max_load_s=600.0, max_memory_mb=100_000.0,
)  # fmt: skip
ROWS = 4000
UNDEFINED = (math.nan, math.inf, -math.inf, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("made")
    return {
        name: train(market(4000, 1), folder / name, seed=seed)
        for seed, name in enumerate(("serving", "candidate"))
    }


@pytest.fixture(scope="module")
def passed(made: dict[str, Bundle]) -> dict[str, Any]:
    verdict = validate(made["candidate"].path, made["serving"].path, market(ROWS, 2), config=CONFIG)
    value = verdict.to_json()
    assert undefined_figures(value) == []
    return value


def figures(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers with a fraction: what was measured."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from figures(item, (*path, key))
        elif isinstance(item, float):
            yield (*path, key)


def test_every_figure_of_a_verdict(passed: dict[str, Any]) -> None:
    walked = 0
    for part in ("quality", "slices", "drift", "dry_run"):
        for path in figures(passed[part]):
            name = path[-1]
            beside = name in ("limit", "p", "label_mean", "positives", "latency_p99_ms")
            if beside or "curve" in path or (part == "slices" and name == "normalized_loss"):
                continue  # shown beside the figures, and derived from them
            for undefined in UNDEFINED:
                if undefined is None and name in ("psi", "new_values"):
                    continue  # training kept no counts
                verdict = copy.deepcopy(passed)
                entry = verdict[part]
                for key in path[:-1]:
                    entry = entry[key]
                entry[name] = undefined
                told = undefined_figures(verdict)
                assert told and "not defined" in told[0], (part, path, undefined)
                walked += 1
    assert walked > 400


def test_every_measure_that_is_missing(passed: dict[str, Any]) -> None:
    for who in ("candidate", "serving", "changes"):
        for measure in ("log_loss", "auc", "calibration"):
            verdict = copy.deepcopy(passed)
            if (who, measure) == ("candidate", "auc"):
                continue  # what a kind of head has no measure of is not asked for
            verdict["quality"]["score"][who].pop(measure, None)
            if (who, measure) != ("candidate", "calibration"):
                assert undefined_figures(verdict), (who, measure)
    for part in ("quality", "dry_run"):
        assert undefined_figures({**passed, part: {}}), part
    assert undefined_figures({**passed, "drift": {"features": [], "scores": {}}})


def test_an_infinite_limit_leaves_a_measure_out(passed: dict[str, Any]) -> None:
    verdict = copy.deepcopy(passed)
    verdict["quality"]["score"]["candidate"]["auc"] = math.nan
    assert len(undefined_figures(verdict)) == 1
    verdict["config"]["max_auc_drop"] = math.inf
    assert undefined_figures(verdict) == []


def test_limits_that_may_be_infinite() -> None:
    assert load_gate_config(overrides=["gate.max_gauc_drop=inf"]).max_gauc_drop == math.inf
    for wrong in (
        "max_gauc_drop=nan",
        "max_gauc_drop=-inf",
        "confidence=inf",
        "max_new_values=inf",
    ):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            load_gate_config(overrides=[f"gate.{wrong}"])


def judged(bundle: Bundle, against: Bundle | None, data: pa.Table, **limits: Any) -> Quality:
    options = {"slices": (), "bootstrap": 200, **limits}
    config = GateConfig(**options)
    scored = score_both(bundle, against, data, slices=config.slices, unit=config.unit)
    with np.errstate(all="ignore"):
        return judge_quality(scored, GateConfig(**options))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("who", ["candidate", "serving"])
def test_scores_that_are_no_numbers(
    made: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, who: str, value: float
) -> None:
    """One row in a thousand; a server would answer it."""
    bad, score = made[who], Bundle.scores_of

    def spoiled(self: Bundle, logits: Any) -> Any:
        scores = np.array(score(self, logits))
        if self is bad:
            scores[::1000] = value
        return scores

    monkeypatch.setattr(Bundle, "scores_of", spoiled)
    found = judged(made["candidate"], made["serving"], market(ROWS, 2), slices=("country",))
    name = "the candidate" if who == "candidate" else "the serving model"
    assert found.reasons == [
        f"4 of 4,000 scores of {name} are NaN or infinite; a model cannot be judged by them"
    ]
    assert not any(entry["failed"] for entry in found.slices)
    if who == "candidate":
        assert judged(made["candidate"], None, market(ROWS, 2)).reasons == found.reasons


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    spec = wd.FeatureSpec(label="click", weight="w", features=wd.categorical("country", "item"))
    table = market(4000, 1).append_column("w", pa.array(np.ones(4000)))
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[4]), progress=False)
    trainer.fit(table)
    return trainer.export(tmp_path_factory.mktemp("weighed") / "bundle")


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (np.zeros(ROWS), "0 rows of weight above 0 (of 4,000), expected at least 1,000"),
        (np.arange(ROWS) < 900, "900 rows of weight above 0 (of 4,000), expected at least 1,000"),
    ],
)
def test_rows_without_weight_are_no_data(weighed: Bundle, weights: np.ndarray, told: str) -> None:
    table = market(ROWS, 2).append_column("w", pa.array(weights.astype(np.float64)))
    assert told in judged(weighed, None, table).reasons[0]


def test_positives_without_weight_are_no_positives(weighed: Bundle) -> None:
    table = market(ROWS, 2)
    light = (table["click"].to_numpy() == 0).astype(np.float64)
    found = judged(weighed, None, table.append_column("w", pa.array(light)))
    assert found.reasons[0].startswith("every label of the data is 0")


def test_rows_of_one_user(made: dict[str, Bundle]) -> None:
    table = with_column(market(ROWS, 2), "user", np.zeros(ROWS, np.int64))
    found = judged(made["candidate"], made["serving"], table, unit="user")
    assert found.reasons == ["too little data to judge by: rows of 1 units, expected at least 30"]


def test_groups_without_both_classes(tmp_path: Path) -> None:
    """AUC within groups is asked for by the schema; in groups of one row it is not defined."""
    table = market(2000, 1).append_column("query", pa.array(np.arange(2000)))
    spec = wd.FeatureSpec(label="click", group="query", features=wd.categorical("country", "item"))
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[4]), progress=False)
    trainer.fit(table)
    bundle = trainer.export(tmp_path / "bundle").path
    limits: dict[str, Any] = {"slices": (), "max_latency_ms": 1e4, "max_psi": 1e4}
    verdict = validate(bundle, None, table, config=GateConfig(**limits))
    assert not verdict.passed
    assert "quality of score: gauc of the candidate is not defined" in verdict.reasons[0]
    limits["max_gauc_drop"] = math.inf
    assert validate(bundle, None, table, config=GateConfig(**limits)).passed


def test_labels_that_no_head_can_have(made: dict[str, Bundle]) -> None:
    labels = market(ROWS, 2)["click"].to_numpy().astype(np.int64)
    for wrong in (2, -1):
        labels[17] = wrong
        with pytest.raises(DataError, match=rf"label 'click': got {wrong}, expected 0 to 1"):
            judged(made["candidate"], None, with_column(market(ROWS, 2), "click", labels))


def other_head(kind: str, table: pa.Table, path: Path, *, turned: bool) -> Bundle:
    """A model of ``price`` in classes, or of ``price`` itself; or of the price turned around."""
    price = table["price"].to_numpy()
    price = 2 * price.mean() - price if turned else price
    label = np.array(["low", "mid", "high"])[np.digitize(price, [3.0, 8.0])]
    data = table.append_column("y", pa.array(price if kind == "regression" else label))
    spec = wd.FeatureSpec(label="y", features=[*wd.numeric("price"), *wd.categorical("country")])
    head = "regression" if kind == "regression" else None
    model = wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[8], head=head)
    trainer = wd.Trainer(model, progress=False, deep=wd.Adagrad(lr=0.1), threads=1)
    trainer.fit(data, epochs=4)
    return trainer.export(path)


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_the_level_of_a_constant(tmp_path: Path, kind: str) -> None:
    """A model of wrong labels is no better than a constant, whatever its head."""
    table = market(4000, 3)
    price = market(4000, 4)["price"].to_numpy()
    label = np.array(["low", "mid", "high"])[np.digitize(price, [3.0, 8.0])]
    recent = market(4000, 4).append_column("y", pa.array(price if kind == "regression" else label))
    bad = other_head(kind, table, tmp_path / "bad", turned=True)
    reasons = judged(bad, None, recent).reasons
    level = "the mean label" if kind == "regression" else "the fraction of each class"
    loss = "squared error" if kind == "regression" else "log loss"
    assert any(loss in r and f"of a constant, {level}" in r for r in reasons), reasons
    good = judged(other_head(kind, table, tmp_path / "good", turned=False), None, recent)
    (entry,) = good.heads.values()
    assert entry["candidate"]["normalized_loss"] < 0.9
    assert not any("constant" in reason for reason in good.reasons)
    # The level itself, by hand.
    shares = np.unique(label, return_counts=True)[1] / 4000
    level_by_hand = price.var() if kind == "regression" else -(shares * np.log(shares)).sum()
    (entry,) = judged(bad, None, recent).heads.values()
    measure = loss.replace(" ", "_")
    found = entry["candidate"][measure] / entry["candidate"]["normalized_loss"]
    assert found == pytest.approx(level_by_hand, rel=1e-5)


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_one_class_or_one_value_alone(tmp_path: Path, kind: str) -> None:
    bundle = other_head(kind, market(3000, 3), tmp_path / "bundle", turned=False)
    value: Any = 5.0 if kind == "regression" else "mid"
    recent = market(3000, 4).append_column("y", pa.array([value] * 3000))
    told = "5: a model" if kind == "regression" else "'mid': a model"
    assert judged(bundle, None, recent).reasons[0].startswith(f"every label of the data is {told}")
    if kind == "multiclass":
        few = pa.array(["low"] * 20 + ["mid"] * 2980)
        reasons = judged(bundle, None, market(3000, 4).append_column("y", few)).reasons
        assert (
            "20 rows of another class than the most frequent one, expected at least 50"
            in reasons[0]
        )


def test_a_regressions_loss_is_a_squared_error_everywhere(tmp_path: Path) -> None:
    table = market(3000, 3)
    good, bad = (
        other_head("regression", table, tmp_path / name, turned=name == "bad")
        for name in ("good", "bad")
    )
    recent = market(4000, 4)
    recent = recent.append_column("y", recent["price"])
    verdict = validate(bad.path, good.path, recent, config=CONFIG)
    value = verdict.to_json()
    assert undefined_figures(value) == []
    assert any("squared error" in reason for reason in verdict.reasons)
    assert any("squared_error" in entry["candidate"] for entry in verdict.slices)
    page = verdict_page(verdict.to_json())
    assert page.count('<th class="n">squared error</th>') == 1
    for text in (str(value["quality"]), str(value["slices"]), str(verdict.reasons), page):
        assert "log loss" not in text and "log_loss" not in text
    (entry,) = value["quality"].values()
    del entry["candidate"]["squared_error"]
    assert undefined_figures(value)


def test_counts_are_judged_by_their_deviance(tmp_path: Path) -> None:
    def counts(seed: int, *, turned: bool = False) -> pa.Table:
        table = market(3000, seed)
        rate = np.minimum(table["price"].to_numpy(), 20.0) / 4
        rate = 2 * rate.mean() - np.minimum(rate, 2 * rate.mean()) if turned else rate
        drawn = np.random.default_rng(seed).poisson(rate).astype(np.float64)
        return table.append_column("y", pa.array(drawn))

    spec = wd.FeatureSpec(label="y", features=[*wd.numeric("price"), *wd.categorical("country")])
    bundles = []
    for turned in (False, True):
        table = counts(3, turned=turned)
        model = wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[8], head="poisson")
        trainer = wd.Trainer(model, progress=False, deep=wd.Adagrad(lr=0.1), threads=1)
        trainer.fit(table, epochs=4)
        bundles.append(trainer.export(tmp_path / str(turned)))
        if not turned:
            expected = trainer.evaluate(counts(4))["poisson_deviance"]
    good, bad = bundles
    verdict = validate(bad.path, good.path, counts(4), config=CONFIG)
    (entry,) = verdict.to_json()["quality"].values()
    assert entry["serving"]["poisson_deviance"] == pytest.approx(expected, rel=1e-6)
    labels = counts(4)["y"].to_numpy()
    y = np.where(labels > 0, labels, 1.0)
    level = 2 * np.mean(labels * np.log(y / labels.mean()) - labels + labels.mean())
    ratio = entry["serving"]["poisson_deviance"] / entry["serving"]["normalized_loss"]
    assert ratio == pytest.approx(level, rel=1e-9)
    assert "squared_error" not in str(verdict.to_json()["quality"])
    assert any(
        "Poisson deviance" in reason and "above the serving" in reason for reason in verdict.reasons
    )
    assert any("poisson_deviance" in one["candidate"] for one in verdict.slices)
    assert verdict_page(verdict.to_json()).count("Poisson deviance") >= 2
    same = validate(good.path, good.path, counts(4), config=CONFIG)
    assert not [reason for reason in same.reasons if "deviance" in reason]


def test_a_regression_of_both_signs(tmp_path: Path) -> None:
    """Predicted / observed means nothing there: it is said, and the rest decides."""
    table = market(3000, 3)
    away = table.append_column("y", pa.array(np.log(table["price"].to_numpy()) - 1.5))
    spec = wd.FeatureSpec(label="y", features=wd.numeric("price"))
    model = wd.WideDeep(wd.fit_schema(spec, away), hidden_units=[8], head="regression")
    trainer = wd.Trainer(model, progress=False, deep=wd.Adagrad(lr=0.1))
    trainer.fit(away, epochs=4)
    found = judged(trainer.export(tmp_path / "bundle"), None, away)
    assert found.reasons == []
    assert any("labels below 0" in note for note in found.notes)
    (entry,) = found.heads.values()
    assert "calibration" not in entry["candidate"]


@pytest.mark.parametrize(
    "step", ["validation.score_both", "checks.judge_quality", "checks.score_psi"]
)
def test_the_gates_own_error_is_no_pass(
    made: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise IndexError("index 7 is out of bounds")

    monkeypatch.setattr(f"widedeep.gate.{step}", broken)
    monkeypatch.setattr("widedeep.gate.validation.dry_run", lambda path: {"error": None, "rows": 0})
    verdict = validate(made["candidate"].path, made["serving"].path, market(ROWS, 2), config=CONFIG)
    assert not verdict.passed
    assert (
        "the gate could not judge (IndexError('index 7 is out of bounds'))" in verdict.reasons[-1]
    )


def test_a_bundle_without_rows_to_replay(made: dict[str, Bundle], tmp_path: Path) -> None:
    whole = made["candidate"]
    bare = write_bundle(
        tmp_path / "bare", schema=whole.schema, weights=whole.weights, model=whole.model,
        metrics={}, warmup_rows=[], config={},
    )  # fmt: skip
    verdict = validate(bare.path, None, market(ROWS, 2), config=CONFIG)
    assert "its scores and its latency cannot be judged" in verdict.reasons[0]
    relaxed = GateConfig(unit="user", slices=(), max_latency_ms=math.inf, bootstrap=200)
    assert validate(bare.path, None, market(ROWS, 2), config=relaxed).passed
    tight = GateConfig(unit="user", slices=(), max_latency_ms=math.inf, max_load_s=1e-9)
    slow = validate(bare.path, None, market(ROWS, 2), config=tight)
    assert any("loading takes" in reason for reason in slow.reasons)


@pytest.mark.parametrize("key", ["worst", "latency_ms", "memory_mb", "load_s"])
def test_a_dry_run_that_measured_nothing(key: str) -> None:
    found = {
        "error": None, "rows": 5, "finite": True, "worst": 0.0, "latency_ms": 1.0,
        "memory_mb": 1.0, "load_s": 1.0, key: math.nan,
    }  # fmt: skip
    limits = GateConfig(max_memory_mb=100.0, max_load_s=10.0)
    assert len(dry_run_reasons(found, limits)[0]) == 1


def test_stability_of_nothing() -> None:
    assert math.isnan(psi(np.zeros(3), np.ones(3)))
    assert math.isnan(psi(np.ones(3), np.zeros(3)))
    assert not score_psi(np.empty(0), np.ones(3)) <= 1.0


def test_a_feature_that_cannot_be_compared_says_so(made: dict[str, Bundle]) -> None:
    schema = made["candidate"].schema
    counts = DriftCounts(schema)
    table = market(150, 2)
    counts.add(table, Transform(schema)(table, targets=False))
    reasons, notes = drift_reasons(counts.features(), GateConfig())
    assert reasons == []
    told = {note for note in notes if "was not compared: 150 values, fewer than 200" in note}
    assert len(told) == 4  # price and three categories
