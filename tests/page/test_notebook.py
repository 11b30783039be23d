"""What a notebook shows of a schema, a model, a training, an explanation and a join."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.training.config import RunConfig
from widedeep.tuning import Study, Trial

EVIL = "<script>alert('x')</script>"
ROWS = [{EVIL: ["a", EVIL][i % 2], "n": float(i), "y": i % 2} for i in range(64)]


def page_of(shown: Any) -> str:
    """The page in a representation, which is one frame that runs no script."""
    match = re.fullmatch(r'<iframe sandbox srcdoc="([^"]*)" [^<>]*></iframe>', shown._repr_html_())
    assert match is not None
    page = html.unescape(match[1])
    assert "<script" not in page and page.startswith("<!doctype html>")
    return page


@pytest.fixture(scope="module")
def trainer() -> wd.Trainer:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical(EVIL), wd.numeric("n")])
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), hidden_units=[4], embedding_dim=2)
    trainer = wd.Trainer(model, batch_size=16, threads=1, progress=False)
    trainer.fit(ROWS, epochs=2, valid=ROWS, early_stopping=False)
    return trainer


def test_a_schema_and_a_model(trainer: wd.Trainer) -> None:
    name = html.escape(EVIL)
    schema = page_of(trainer.model.schema)
    assert "Schema of 2 features" in schema and name in schema and "label: y" in schema
    model = page_of(trainer.model)
    tower = sum(p.numel() for p in trainer.model.towers["mlp"].parameters())
    for count in (4, 8, tower):  # wide weights, embeddings, the tower
        assert f"<b>{count:,}</b>" in model
    assert "4 x 2" in model and "hidden units [4]" in model


def test_an_inferred_spec_has_reasons() -> None:
    inferred = wd.infer_spec(pa.Table.from_pylist(ROWS), label="y")
    page = page_of(inferred)
    assert html.escape(EVIL) in page and "from 64 of 64 rows" in page
    for column in inferred.columns:
        assert html.escape(column.describe()) in page
    assert all(html.escape(text) in page for text in inferred.warnings)


def test_a_study_is_its_page() -> None:
    config = RunConfig(spec=wd.FeatureSpec(label="y", features=[wd.numeric("n")]))
    trials = [
        Trial(number=n, state="finished", value=0.7 + n / 10, params={"lr": n}, curve=((1, 0.5),))
        for n in range(2)
    ]
    study = Study(config=config, given=config, trials=tuple(trials), monitor="auc", minutes=1.0)
    assert page_of(study) == study.to_html()


def test_a_training_has_curves(trainer: wd.Trainer) -> None:
    page = page_of(trainer.history)
    assert page.count("<svg") >= 3 and "validation" in page
    assert f"{trainer.history[-1]['loss']:.4f}" in page
    assert "empty" in page_of(type(trainer.history)())


def test_an_explanation_has_bars(trainer: wd.Trainer, tmp_path: Path) -> None:
    explanation = trainer.export(tmp_path / "bundle").explain(ROWS[1])
    page = page_of(explanation)
    assert f"{explanation.logits[0]:+.4f}" in page and html.escape(EVIL) in page
    assert f"probability {explanation.score['']:.4f}" in page
    assert page.count("<rect") == len(explanation.wide) + 3  # the deep part, the bias, the sum


def test_a_join_and_a_report_are_their_pages(trainer: wd.Trainer, tmp_path: Path) -> None:
    log = pa.table(
        {
            "request_id": [f"r{i}" for i in range(20)],
            "user_id": [i % 4 for i in range(20)],
            "item_id": ["<b>"] * 20,
            "event_time": [1_700_000_000 + 60 * i for i in range(20)],
        }
    )
    joined = wd.join_actions(log, log.slice(0, 5), output=tmp_path / "examples", window="1m")
    assert page_of(joined) == (joined.output / "report.html").read_text()
    assert re.fullmatch(r"JoinResult \(\d+ train, \d+ valid, \d+ test examples\)", repr(joined))
    report = wd.make_report(trainer.export(tmp_path / "bundle"))
    assert page_of(report) == report.to_html()
