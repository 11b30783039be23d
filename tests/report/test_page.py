"""The page shows the report's figures, whatever kind of model it is about."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest

import widedeep as wd
from tests.report.models import EVIL, rows_of, train
from tests.report.pages import read_page
from tests.serving.http.browser import CHROMIUM, Browser
from widedeep.gate import validate
from widedeep.gate.config import GateConfig
from widedeep.publish import publish
from widedeep.report import RunRecord
from widedeep.report.format import bytes_text, figure, percent

TEST = rows_of(2000, seed=9)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: the page is not looked at in a browser"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two published versions of a model, and the second one's run."""
    folder = tmp_path_factory.mktemp("published")
    train(folder / "first", rows=600)
    publish(folder / "first", folder / "models", force=True, reason="the <first> one")
    trainer, _ = train(folder / "second", epochs=4)
    config = GateConfig(max_psi=10.0, max_calibration_error=10.0, max_slice_auc_drop=1.0)
    validate(folder / "second", folder / "models" / "1", TEST, config=config).save(
        folder / "second.verdict.json"
    )
    publish(folder / "second", folder / "models", force=True, reason="so that it is there")
    (folder / "history.json").write_text(json.dumps(trainer.history.rows))
    return folder


@pytest.fixture(scope="module")
def html(published: Path) -> str:
    history = json.loads((published / "history.json").read_text())
    report = wd.make_report(
        published / "second",
        TEST,
        history=RunRecord(history=history, kept_step=history[1]["step"]),
        models=published / "models",
    )
    return report.save(published / "report.html").read_text()


def test_a_report_prints_its_metrics(published: Path) -> None:
    report = wd.make_report(published / "second", TEST)
    lines = repr(report).splitlines()
    metrics = report.heads[""]["metrics"]["model"]
    assert lines[0].startswith("Report of second (")
    assert f"binary, model: auc {metrics['auc']:.4f}, " in lines[1]
    assert f"log_loss {metrics['log_loss']:.4f}" in lines[1]
    assert any(line.startswith("judged on 2,000 rows; ") for line in lines)


def test_every_section(html: str) -> None:
    page = read_page(html)
    assert [link[1:] for link in page.links] == [
        *("gate", "quality", "slices", "importance", "training", "wide-part", "embeddings"),
        *("inputs", "size", "versions", "configuration"),
    ]
    assert len(html) < 150_000
    body = html.split("</style>")[1].replace(escape(EVIL).replace("_", "_<wbr>"), "")
    assert not re.search(r"https?:|<script|<link|<img|<iframe|@import", body)


def test_metrics_and_slices(published: Path, html: str) -> None:
    page, report = (
        read_page(html),
        wd.make_report(published / "second", TEST, against=published / "models" / "1"),
    )
    both = report.heads[""]["metrics"]
    rows = {row[0]: row[1:] for row in page.table("metric", "this model", "models/1")}
    assert rows["AUC"][:2] == [figure(both[who]["auc"]) for who in ("model", "against")]
    assert rows["log loss"][0] == figure(both["model"]["log_loss"])
    assert rows["AUC"][2].startswith(f"{both['model']['auc'] - both['against']['auc']:+.4f} ±")
    shown = {row[0]: row for row in page.table("value", "rows")}
    for one in report.slices:
        if one["column"] == "city":
            expected = [f"{one[who]['auc']:.4f}" for who in ("model", "against")]
            assert shown[one["value"]][1] == f"{one['rows']:,}"
            assert shown[one["value"]][-2:] == expected


def test_wide_weights_and_zeros(published: Path, html: str) -> None:
    page, bundle = read_page(html), wd.Bundle.load(published / "second")
    shown = [row for row in page.table("value", "", "weight", "seen")]
    weights = np.array(bundle.weights["wide/city_x_shop"])[:, 0]
    expected = sorted(weights[weights > 0], reverse=True)[:12]
    assert [float(row[2]) for row in shown] == pytest.approx(expected, abs=6e-4)
    assert any("city=oslo & shop=shop 3" in row[0] for row in shown)  # the one that is in the data
    zeros = {row[0]: row for row in page.table("feature", "", "zero", "weights")}
    for name in ("city_x_shop", "city", "shop"):
        known = np.array(bundle.weights[f"wide/{name}"])[2:]
        zero = int((known == 0).sum())
        assert zeros[name][2:] == [percent(zero / known.size), f"{zero:,} of {known.size:,}"]
    assert zeros["city_x_shop"][2] != percent(0)


def test_sizes(published: Path, html: str) -> None:
    page, bundle = read_page(html), wd.Bundle.load(published / "second")
    parts = {row[0]: row[2] for row in page.table("part", "", "parameters")}
    total = sum(int(size.replace(",", "")) for size in parts.values())
    assert total == sum(array.size for array in bundle.weights.values())
    files = {row[0]: row[2] for row in page.table("file", "", "size")}
    for file in (published / "second").iterdir():
        if file.name != "manifest.json":
            assert files[file.name] == bytes_text(file.stat().st_size)


def test_versions_and_gate(html: str) -> None:
    page = read_page(html)
    newest, oldest = page.table("version", "after", "published")
    assert newest[:2] == ["2", "1"]
    assert newest[-1] == "this model, serves"
    assert oldest[-2] == "forced: the <first> one"
    assert "against" in page.text
    assert "kept" in page.texts  # the step in the learning curves


def test_without_rows_it_tells_what_was_kept(published: Path) -> None:
    report = wd.make_report(published / "second", against=published / "models" / "1")
    page = read_page(report.to_html())
    kept = wd.Bundle.load(published / "second").metrics
    rows = {row[0]: row[1:] for row in page.table("metric", "this model")}
    assert rows["AUC"] == [figure(kept["auc"])]
    assert "No labelled rows were given" in page.text
    assert "Nor is there a comparison" in page.text
    assert "#slices" not in page.links


@pytest.mark.parametrize("label", ["click", "kind", "price", ["click", "buy"]])
@pytest.mark.parametrize("part", ["wide", "deep", "both"])
def test_every_kind_of_model(tmp_path: Path, label: object, part: str) -> None:
    spec: dict[str, object] = {"wide": []} if part == "deep" else {}
    trainer, bundle = train(
        tmp_path / "b",
        label=label,
        head="regression" if label == "price" else None,
        hidden=[] if part == "wide" else [4],
        rows=600,
        **spec,
    )
    page = read_page(wd.make_report(bundle, TEST, history=trainer.history).to_html())
    assert ("#wide-part" in page.links) == (part != "deep")
    assert ("#embeddings" in page.links) == (part != "wide")
    assert {"#quality", "#slices", "#training", "#inputs", "#size"} <= set(page.links)
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def test_no_slices_no_history_one_row(tmp_path: Path) -> None:
    _, bundle = train(tmp_path / "b", rows=300)
    report = wd.make_report(bundle, TEST.slice(0, 1), config=GateConfig(slices=()))
    page = read_page(report.to_html())
    assert "#slices" not in page.links
    assert "#training" not in page.links
    assert "judged on 1 row of" in page.text
    one = wd.make_report(bundle, TEST.slice(0, 40), history=[{"epoch": 1, "loss": 0.5}])
    assert ["loss", "0.5000"] in read_page(one.to_html()).table("the one evaluation")


def test_a_changed_bundle_is_not_the_one_that_was_judged(published: Path, tmp_path: Path) -> None:
    train(tmp_path / "other", rows=300)
    verdict = (published / "second.verdict.json").read_text()
    (tmp_path / "other.verdict.json").write_text(verdict)
    report = wd.make_report(tmp_path / "other")
    assert report.verdict is None
    assert "of another bundle" in " ".join(report.notes)
    (tmp_path / "other.verdict.json").write_text("{")
    assert "is left out" in " ".join(wd.make_report(tmp_path / "other").notes)


@needs_chromium
def test_in_a_browser(published: Path, html: str, tmp_path: Path) -> None:
    assert html
    with Browser(tmp_path) as browser:
        for width, phone in ((1280, False), (390, True)):
            browser.size(width, 900, phone=phone)
            browser.open((published / "report.html").as_uri())
            browser.wait_for("document.readyState === 'complete' && !!document.querySelector('h2')")
            # Nothing is wider than the window but tables that scroll within it.
            assert browser.run("document.documentElement.scrollWidth") <= width
            smallest = browser.run(
                "Math.min(...[...document.querySelectorAll('td, p, .tile span')]"
                ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
            )
            assert smallest >= 12
            assert browser.run("performance.getEntriesByType('resource').length") == 0
        assert browser.nameless() == []
        assert browser.complaints == []
