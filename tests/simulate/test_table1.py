"""The experiment: its arithmetic, and what each part of the model is good for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import widedeep as wd
from tests.command_line import Run
from widedeep.errors import ConfigError
from widedeep.simulate.config import StoreConfig
from widedeep.simulate.table1 import (
    NO_CROSS,
    Arm,
    Table1,
    Table1Config,
    _ratio_deviation,
    interval,
    lift,
    run_table1,
    table1_document,
    table1_text,
)


def arm(rate: float, best: float = 5000.0, requests: int = 10_000) -> Arm:
    installs = round(rate * requests)
    return Arm(
        auc=0.7,
        log_loss=0.05,
        requests=requests,
        installs=installs,
        deviation=math.sqrt(rate / requests),
        expected=rate * requests,
        best=best,
    )


def test_a_lift_is_the_ratio_of_installs_and_its_interval_that_of_the_counts() -> None:
    found = lift([arm(0.33), arm(0.33)], [arm(0.3), arm(0.3)])
    assert found.counted == pytest.approx(0.1)
    # Poisson counts of 6,600 and 6,000: relative errors of 1/sqrt(n), added in squares.
    assert found.counted_95 == pytest.approx(1.96 * 1.1 * math.sqrt(1 / 6600 + 1 / 6000))
    assert (found.true, found.true_95) == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))
    assert found.significant
    assert not lift([arm(0.3), arm(0.303)], [arm(0.3), arm(0.3)]).significant


def test_intervals_are_those_of_student() -> None:
    scipy = pytest.importorskip("scipy.stats")
    values = [0.1, 0.4, 0.35, 0.2, 0.3]
    low, high = scipy.t.interval(0.95, 4, np.mean(values), scipy.sem(values))
    assert interval(values) == pytest.approx((high - low) / 2, rel=1e-3)


def test_the_error_of_a_rate_is_that_of_drawing_users_anew() -> None:
    rng = np.random.default_rng(0)
    requests = rng.integers(1, 9, 2000).astype(float)
    installs = rng.poisson(requests * rng.gamma(1, 0.3, 2000)).astype(float)
    drawn = rng.integers(0, 2000, (400, 2000))
    rates = installs[drawn].sum(axis=1) / requests[drawn].sum(axis=1)
    assert _ratio_deviation(installs, requests) == pytest.approx(rates.std(), rel=0.12)


def test_the_table_names_each_model_and_says_what_is_significant() -> None:
    seeds = [
        {"wide": arm(0.3), "deep": arm(0.29), "wide & deep": arm(0.34), "popularity": arm(0.1)}
        for _ in range(3)
    ]
    table = Table1(config=Table1Config(), seeds=seeds)
    text = table1_text(table)
    assert "| wide & deep | 0.7000 ± 0.0000 | +13.3 ± " in text
    assert "wide & deep over deep: +17.2 ± " in text
    assert "(significant)" in text
    assert table1_document(table)["lifts"]["deep over wide"]["significant"] is False


def test_a_folder_in_use_and_a_single_store_are_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "seed1").mkdir()
    with pytest.raises(ConfigError, match="already exists"):
        run_table1(tmp_path)
    found = run("bench", "table1", "--seeds", "1")
    assert found.code == 2
    assert "seeds = 1, expected 2 to 10" in found.err
    found = run("bench", "table1", "--tower", "dinn")
    assert found.code == 2
    assert "got a tower of the name 'dinn'; did you mean 'din'?" in found.err


SMALL = StoreConfig(
    seed=3,
    users=2500,
    apps=120,
    requests_per_day=3000,
    candidates=30,
    new_users_per_day=0,
    new_apps_per_day=0,
)


def small(folder: Path, **strengths: float) -> Table1:
    config = Table1Config(
        store=replace(SMALL, **strengths),
        seeds=2,
        days=5,
        live_days=1,
        live_requests=2000,
        negatives=0.15,
        epochs=2,
        threads=1,
    )
    return run_table1(folder, config)


@pytest.mark.slow
def test_towers_stand_beside_the_paper_s_models(tmp_path: Path) -> None:
    store = replace(SMALL, users=500, requests_per_day=400)
    config = Table1Config(
        store=store, seeds=2, days=3, live_days=1, live_requests=400, epochs=1, threads=1,
        towers=("din", "dcn_v2"),
    )  # fmt: skip
    table = run_table1(tmp_path, config)
    text = table1_text(table)
    assert "| din | 0." in text and "| dcn_v2 | 0." in text and "wide & deep over din: " in text
    bundles = [wd.Bundle.load(tmp_path / "seed3" / name) for name in ("din", "dcn_v2")]
    combiners = [b.schema.spec.by_name["user_installed"].deep_combiner for b in bundles]
    assert combiners == [None, "mean"]


@pytest.mark.slow
def test_what_the_wide_part_is_ahead_by_is_gone_where_there_are_no_pairs(tmp_path: Path) -> None:
    pairs = small(tmp_path / "pairs", memorisation=2.0, generalisation=0.0)
    tastes = small(tmp_path / "tastes", memorisation=0.0, generalisation=2.0)
    ahead = pairs.lift("wide", "deep").true
    assert ahead > 0.05
    assert tastes.lift("wide", "deep").true < ahead / 2
    # Where there are pairs only, the deep part adds nothing to the wide one.
    assert abs(pairs.lift("wide & deep", "wide").true) < ahead / 2
    for table in (pairs, tastes):
        for name in ("wide", "deep", "wide & deep"):
            assert table.lift(name, "popularity").true > 0.1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_each_part_is_ahead_by_its_own_regularity_and_by_nothing_else(tmp_path: Path) -> None:
    def found(name: str, **strengths: float) -> Table1:
        config = Table1Config(seeds=3, live_requests=12_000, without_cross=True)
        store = replace(config.store, **strengths)  # type: ignore[arg-type]
        return run_table1(tmp_path / name, replace(config, store=store))

    both = found("both")
    pairs, tastes = found("pairs", generalisation=0.0), found("tastes", memorisation=0.0)
    for other in ("wide", "deep", NO_CROSS):
        ahead = both.lift("wide & deep", other)
        assert ahead.counted > ahead.counted_95, other
        assert ahead.true > 0.03, other
    # Without pairs: the wide part alone is behind the deep one, and the cross adds nothing.
    behind = tastes.lift("wide", "deep")
    assert behind.true < 0
    assert abs(tastes.lift("wide & deep", NO_CROSS).true) < 0.02
    # Without tastes: the deep part adds nothing.
    assert abs(pairs.lift("wide & deep", "wide").true) < 0.02
    assert pairs.lift("wide", "deep").true > 0.05
