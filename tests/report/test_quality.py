"""The figures of a report are those that scikit-learn, or a loop by hand, finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as oracle

import widedeep as wd
from tests.report.models import EVIL, rows_of, train
from tests.report.pages import read_page
from widedeep.errors import DataError, SchemaError
from widedeep.evaluation.bundle_metrics import evaluate_bundle
from widedeep.gate.config import GateConfig
from widedeep.report.quality import gain_curve, measure_quality

TEST = rows_of(2000, seed=9)


def numbers(name: str, table: pa.Table = TEST) -> np.ndarray:
    return table[name].to_numpy(zero_copy_only=False)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[wd.Bundle, wd.Bundle]:
    folder = tmp_path_factory.mktemp("models")
    poor = train(folder / "old", hidden=[], l1=40.0, epochs=1)[1]
    return train(folder / "new", epochs=4)[1], poor


def test_metrics_of_both_models(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    found = measure_quality(*both, TEST, GateConfig()).heads[""]
    for who, bundle in zip(("model", "against"), both, strict=True):
        scores, labels = bundle.score(TEST), numbers("click")
        metrics = found["metrics"][who]
        assert metrics["auc"] == pytest.approx(oracle.roc_auc_score(labels, scores))
        assert metrics["log_loss"] == pytest.approx(oracle.log_loss(labels, scores))
        assert metrics["calibration"] == pytest.approx(scores.sum() / labels.sum())
        assert metrics == evaluate_bundle(bundle, TEST)
    change = found["changes"]["auc"]
    gap = found["metrics"]["against"]["auc"] - found["metrics"]["model"]["auc"]
    assert change["worse"] == pytest.approx(gap)
    assert change["low"] < gap < change["high"] < 0  # the poor one is worse, for sure


def test_auc_by_slice(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    measured = measure_quality(*both, TEST, GateConfig(slices=("city", "shop")))
    scores = [bundle.score(TEST) for bundle in both]
    assert len(measured.slices) == 5 + 12
    for one in measured.slices:
        value = None if one["value"] == "missing" else one["value"]
        rows = np.array([entry == value for entry in TEST[one["column"]].to_pylist()])
        assert one["rows"] == rows.sum()
        for who, found in zip(("model", "against"), scores, strict=True):
            expected = oracle.roc_auc_score(numbers("click")[rows], found[rows])
            assert one[who]["auc"] == pytest.approx(expected), one


def test_weights_count_everywhere(tmp_path: Path) -> None:
    _, bundle = train(tmp_path / "b", weight="w")
    measured = measure_quality(bundle, None, TEST, GateConfig(slices=("city",)))
    scores, labels, weights = bundle.score(TEST), numbers("click"), numbers("w")
    expected = oracle.roc_auc_score(labels, scores, sample_weight=weights)
    assert measured.heads[""]["metrics"]["model"]["auc"] == pytest.approx(expected)
    rome = np.array([city == "rome" for city in TEST["city"].to_pylist()])
    (found,) = (one for one in measured.slices if one["value"] == "rome")
    expected = oracle.roc_auc_score(labels[rome], scores[rome], sample_weight=weights[rome])
    assert found["model"]["auc"] == pytest.approx(expected)


def tenths(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
    order = np.argsort(scores, kind="stable")
    size = len(order) // 10
    parts = [order[at * size : (at + 1) * size] for at in range(10)]
    return [(float(scores[rows].mean()), float(labels[rows].mean())) for rows in parts]


def test_calibration_of_tenths(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    measured = measure_quality(*both, TEST, GateConfig())
    for who, bundle in zip(("model", "against"), both, strict=True):
        points = measured.heads[""]["curve"][who]
        expected = tenths(bundle.score(TEST), numbers("click"))
        assert np.array(points)[:, :2] == pytest.approx(np.array(expected))
        assert [point[2] for point in points] == [200.0] * 10


def test_gain(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    gain = measure_quality(*both, TEST, GateConfig()).heads[""]["gain"]
    labels = numbers("click")
    order = np.argsort(-both[0].score(TEST), kind="stable")
    for share, found in gain["model"]:
        expected = labels[order][: round(share * 2000)].sum() / labels.sum()
        assert found == pytest.approx(expected, abs=2e-3)  # few scores are alike
    for share, found in gain_curve(labels, np.zeros(2000), np.ones(2000)):
        assert found == pytest.approx(share)  # all are: any order is as good
    # The area under the curve and the AUC tell the same (both of many points).
    rate = labels.mean()
    area = np.trapezoid([y for _, y in gain["model"]], [x for x, _ in gain["model"]])
    auc = oracle.roc_auc_score(labels, both[0].score(TEST))
    assert area == pytest.approx(rate / 2 + (1 - rate) * auc, abs=2e-3)
    assert gain_curve(np.zeros(3), np.zeros(3), np.ones(3)) == []


def test_classes(tmp_path: Path) -> None:
    _, bundle = train(tmp_path / "b", label="kind")
    measured = measure_quality(bundle, None, TEST, GateConfig(slices=("city",)))
    head = measured.heads[""]
    scores = bundle.score(TEST)
    names = list(bundle.model.heads[0].classes)
    labels = np.array([names.index(kind) for kind in TEST["kind"].to_pylist()])
    called = scores.argmax(axis=1)
    precision, recall, _, seen = oracle.precision_recall_fscore_support(labels, called)
    assert [one["name"] for one in head["classes"]] == names
    for at, one in enumerate(head["classes"]):
        assert one["observed"] == pytest.approx(seen[at] / 2000)
        assert one["predicted"] == pytest.approx(scores[:, at].mean())
        assert one["precision"] == pytest.approx(precision[at])
        assert one["recall"] == pytest.approx(recall[at])
    expected = tenths(scores.max(axis=1), (called == labels).astype(float))
    assert np.array(head["curve"]["model"])[:, :2] == pytest.approx(np.array(expected))
    rome = np.array([city == "rome" for city in TEST["city"].to_pylist()])
    (one,) = (entry for entry in measured.slices if entry["value"] == "rome")
    expected_loss = oracle.log_loss(labels[rome], scores[rome], labels=range(3))
    assert one["model"]["log_loss"] == pytest.approx(expected_loss)


def test_regression(tmp_path: Path) -> None:
    _, bundle = train(tmp_path / "b", label="price", head="regression", epochs=4)
    measured = measure_quality(bundle, None, TEST, GateConfig(slices=("city",)))
    head, scores, prices = measured.heads[""], bundle.score(TEST), numbers("price")
    rmse = head["metrics"]["model"]["rmse"]
    assert rmse == pytest.approx(oracle.root_mean_squared_error(prices, scores))
    assert np.array(head["curve"]["model"])[:, :2] == pytest.approx(
        np.array(tenths(scores, prices)), rel=1e-6
    )
    rome = np.array([city == "rome" for city in TEST["city"].to_pylist()])
    (one,) = (entry for entry in measured.slices if entry["value"] == "rome")
    expected = oracle.root_mean_squared_error(prices[rome], scores[rome])
    assert one["metric"] == "rmse"
    assert one["model"]["rmse"] == pytest.approx(expected)


def test_several_heads(tmp_path: Path) -> None:
    _, bundle = train(tmp_path / "b", label=["click", "buy"])
    measured = measure_quality(bundle, None, TEST, GateConfig(slices=("city",)))
    scores: Any = bundle.score(TEST)
    assert list(measured.heads) == ["click", "buy"]
    for head, found in measured.heads.items():
        expected = oracle.roc_auc_score(numbers(head), scores[head])
        assert found["metrics"]["model"]["auc"] == pytest.approx(expected)
    assert {one["head"] for one in measured.slices} == {"click", "buy"}


def test_groups_are_resampled_whole(tmp_path: Path) -> None:
    _, bundle = train(tmp_path / "b", group="user")
    measured = measure_quality(bundle, None, TEST, GateConfig())
    assert measured.data["unit"] == "user"
    assert measured.heads[""]["metrics"]["model"] == evaluate_bundle(bundle, TEST)
    assert measured.heads[""]["metrics"]["model"]["gauc"] > 0.6


def test_one_class(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    rows = TEST.filter(pa.array(numbers("click") == 0))
    report = wd.make_report(both[0], rows, against=both[1])
    metrics = report.heads[""]["metrics"]["model"]
    assert metrics["auc"] != metrics["auc"]
    assert metrics["log_loss"] == pytest.approx(-np.log1p(-both[0].score(rows)).mean())
    page = read_page(report.to_html())
    assert page.table("metric", "this model")[0][1] == "undefined"  # an AUC
    assert "nan" not in page.text.lower()


def test_rows_that_do_not_fit(both: tuple[wd.Bundle, wd.Bundle], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'click'"):
        wd.make_report(both[0], TEST.drop_columns(["click"]))
    with pytest.raises(DataError, match=r"got no rows"):
        wd.make_report(both[0], TEST.slice(0, 0))
    with pytest.raises(DataError, match=r"column"):
        wd.make_report(both[0], TEST, config=GateConfig(slices=("nowhere",)))
    with pytest.raises(SchemaError, match=r"cannot be compared"):
        wd.make_report(both[0], TEST, against=train(tmp_path / "b", label="buy")[1])


def test_input_that_can_be_read_once(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    whole = wd.make_report(both[0], TEST, against=both[1]).to_json()
    reader = pa.RecordBatchReader.from_batches(TEST.schema, TEST.to_batches(max_chunksize=300))
    once = wd.make_report(both[0], reader, against=both[1]).to_json()
    for part in ("heads", "slices", "inputs"):
        assert once[part] == whole[part]


def test_values_are_escaped(both: tuple[wd.Bundle, wd.Bundle]) -> None:
    html = wd.make_report(both[0], TEST, against=both[1]).to_html()
    page = read_page(html)
    assert EVIL in page.text  # shown as it is, and no tag of its own
    assert "<script" not in html
