"""Bundles evaluated, and metrics that fail, over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.ranks.threads import run_threads
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.errors import DataError, RanksError
from widedeep.evaluation import bundle_metrics
from widedeep.evaluation.bundle_metrics import evaluate_bundle
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first
from widedeep.training.evaluation import Evaluator, Metrics, _Scored
from widedeep.training.exchange import Exchange


def rows(n: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    jobs, noise = random.integers(0, 9, n).tolist(), random.random(n).tolist()
    return [{"job": f"job {j}", "y": int(j > 9 * u)} for j, u in zip(jobs, noise, strict=True)]


def make_model() -> wd.WideDeep:
    spec = wd.FeatureSpec(label="y", features=wd.categorical("job"))
    return wd.WideDeep(wd.fit_schema(spec, rows(400)), hidden_units=[4])


@pytest.mark.parametrize("n", [5, 130, 400])
def test_a_bundle_has_the_metrics_of_one_process(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_metrics, "_CHUNK_ROWS", 64)
    trainer = wd.Trainer(make_model(), batch_size=8, progress=False)
    bundle = trainer.export(tmp_path / "bundle")
    alone = evaluate_bundle(bundle, rows(n))
    for size in (2, 3):
        together = run_threads(size, lambda ranks: evaluate_bundle(bundle, rows(n), ranks=ranks))
        assert repr(together) == repr([alone] * size)  # with NaN where nothing is predicted


def test_a_row_that_cannot_be_scored_ends_all_ranks(tmp_path: Path) -> None:
    trainer = wd.Trainer(make_model(), batch_size=8, progress=False)
    bundle = trainer.export(tmp_path / "bundle")
    wrong = [*rows(3), {"job": "cook", "y": 7}]
    errors = run_threads(2, lambda ranks: evaluate_bundle(bundle, wrong, ranks=ranks))
    assert [type(error) for error in errors] == [DataError, DataError]
    assert "rank 0 of 2" in str(errors[1]) and "label" in str(errors[1])


def test_scoring_that_fails_is_raised_at_once_and_not_shared() -> None:
    # The ranks that are to be told are those whose exchange failed: nobody would hear it.
    spec = wd.FeatureSpec(label="y", features=wd.categorical("job"))
    transform = Transform(wd.fit_schema(spec, rows(9)))

    def broken() -> Iterator[tuple[Batch, Any]]:
        yield transform(pa.Table.from_pylist(rows(9))), np.zeros((9, 1), np.float32)
        raise RanksError("rank 1 ended")

    def metrics_of(scored: _Scored) -> Metrics:
        for _ in scored:
            pass
        raise AssertionError("there is no end")

    scored = _Scored(broken())
    with pytest.raises(RanksError, match="rank 1 ended"):
        scored.to_the_end(lambda: metrics_of(scored))


def test_metrics_that_fail_on_the_first_rank_are_told_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a metric of one's own")

    monkeypatch.setattr("widedeep.training.evaluation.labelled_rows", fail)

    def evaluate(ranks: Ranks) -> None:
        model = make_model()
        model.set_shard(ranks.rank, ranks.size)
        evaluator = Evaluator(model, exchange=Exchange(model, ranks))
        with evaluator.open(rows(400), "data to evaluate") as source:
            evaluator.evaluate(source)

    first, second = run_threads(2, evaluate, lanes=2)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, RanksError) and "ZeroDivisionError: a metric of" in str(second)


def test_ranks_that_see_other_values_are_refused() -> None:
    def evaluate(ranks: Ranks) -> None:
        model = make_model()
        model.set_shard(ranks.rank, ranks.size)
        evaluator = Evaluator(model, exchange=Exchange(model, ranks))
        mine = [{**row, "job": "cook"} if ranks.rank else row for row in rows(40)]
        evaluator.open(mine, "training data").close()

    errors = run_threads(2, evaluate, lanes=2)
    assert all("give all ranks the same data" in str(error) for error in errors)


def test_the_kind_of_an_error_reaches_the_other_ranks() -> None:
    class OwnError(DataError):
        pass

    def fail() -> None:
        raise OwnError("no such row")

    errors = run_threads(2, lambda ranks: on_first(ranks, fail))
    assert [type(error) for error in errors] == [OwnError, DataError]
