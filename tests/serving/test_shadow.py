"""A shadow compares scores that mean the same, and counts what it cannot compare."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.serving.versions import eventually
from widedeep.bundle import Bundle
from widedeep.errors import WideDeepError
from widedeep.serving.exploration import Exploration
from widedeep.serving.loading import load_ranker
from widedeep.serving.ranker import Ranker, RankerOptions
from widedeep.serving.shadow import AnsweredRequest, ShadowReport, ShadowScoring

ROWS = [
    {
        "user": "ab"[at % 2],
        "item": "xyz"[at % 3],
        "y": ["no", "yes"][at % 5 % 2],
        "z": at % 2 * 1.0,
    }
    for at in range(90)
]
ITEMS = {"item": ["x", "y", "z"]}


def made(path: Path, *, label: Any = "y", head: Any = None, order: Any = None) -> Bundle:
    rows = [{**row, "n": int(row["y"] == "yes")} for row in ROWS]
    spec = wd.FeatureSpec(
        label=label, features=wd.categorical("user", "item"), item=["item"], label_vocabulary=order
    )
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[2], head=head)
    trainer = wd.Trainer(model, progress=False)
    trainer.fit(rows)
    return trainer.export(path)


def compared(
    shadow: Ranker, answering: Ranker, head: str | None = None, id_: str | None = None
) -> ShadowReport:
    scoring = ShadowScoring("2", shadow)
    try:
        user = {"user": "a"}
        answer = answering.rank(user, candidates=ITEMS, head=head, request_id=id_)
        scoring.offer(AnsweredRequest(user, None, ITEMS, head, answer, answering, id_))
        eventually(lambda: scoring.report().requests + scoring.report().failed == 1)
        return scoring.report()
    finally:
        scoring.close()


def test_scores_that_mean_the_same_are_compared(tmp_path: Path) -> None:
    one, two = made(tmp_path / "1"), made(tmp_path / "2")
    report = compared(Ranker(two), Ranker(one))
    assert (report.requests, report.failed, report.scores) == (1, 0, 3)
    assert report.largest < 1e-6


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"order": ["yes", "no"]},
            "the probability that 'y' is 'no', the answer's was the .*'yes'",
        ),
        ({"label": "n"}, "the probability that 'n' is 1, the answer's was the .*'y' is 'yes'"),
        ({"label": "z", "head": "regression"}, "the value of 'z', the answer's was"),
    ],
)
def test_scores_that_mean_something_else_are_not(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    report = compared(Ranker(made(tmp_path / "2", **options)), Ranker(made(tmp_path / "1")))
    assert (report.requests, report.failed, report.scores) == (0, 1, 0)
    assert report.error is not None
    assert re.search(told, report.error), report.error


def test_a_shadow_explores_as_the_answer_did(tmp_path: Path) -> None:
    made(tmp_path / "1")
    ranker = Ranker(tmp_path / "1", exploration=Exploration(epsilon=0.9))
    best = ranker.rank({"user": "a"}, candidates=ITEMS).items[0]
    for number in range(4):
        request_id = f"request {number}"
        assert compared(ranker, ranker, id_=request_id).same_first == 1.0
    orders = [
        ranker.rank({"user": "a"}, candidates=ITEMS, request_id=f"request {n}").items
        for n in range(4)
    ]
    assert any(order[0] != best for order in orders)


def test_heads_are_found_by_name(tmp_path: Path) -> None:
    """The first head of one is the second of the other."""
    one = made(tmp_path / "1", label={"buy": "n", "worth": "z"}, head={"worth": "regression"})
    two = made(tmp_path / "2", label={"worth": "z", "buy": "n"}, head={"worth": "regression"})
    report = compared(Ranker(two), Ranker(one))
    assert (report.requests, report.failed) == (1, 0)
    wanted = [Ranker(b).rank({"user": "a"}, candidates=ITEMS, head="buy") for b in (two, one)]
    scores = [np.empty(3) for _ in wanted]
    for array, ranking in zip(scores, wanted, strict=True):
        array[ranking.positions] = ranking.scores
    assert report.largest == pytest.approx(np.abs(scores[0] - scores[1]).max())
    only = made(tmp_path / "3", label={"worth": "z"}, head="regression")
    assert compared(Ranker(only), Ranker(one), "buy").failed == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    one, two = Ranker(made(tmp_path / "1")), Ranker(made(tmp_path / "2"))
    rank = two.rank

    def spoiled(*arguments: Any, **options: Any) -> Any:
        ranking = rank(*arguments, **options)
        return dataclasses.replace(ranking, scores=np.full(3, value))

    monkeypatch.setattr(two, "rank", spoiled)
    report = compared(two, one)
    assert (report.requests, report.failed) == (0, 1)
    assert "3 of 3 differences of scores are NaN or infinite" in (report.error or "")
    assert np.isfinite([report.mean, report.mean_absolute, report.largest]).all()


def test_a_version_of_the_other_positive_class_is_not_loaded(tmp_path: Path) -> None:
    serving = Ranker(made(tmp_path / "1"))
    made(tmp_path / "2", order=["yes", "no"])
    with pytest.raises(WideDeepError, match=r"score \(binary of yes no\).* \(binary of no yes\)"):
        load_ranker(tmp_path / "2", RankerOptions(), serving=serving)
