"""What a report is about, and on which rows, where only a folder is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import widedeep as wd
from tests.command_line import Run
from tests.report.pages import read_page
from widedeep.cli.report import report_on
from widedeep.errors import BundleError
from widedeep.publish import publish


@pytest.fixture
def finished(ads_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(ads_run / "run", tmp_path / "runs" / "ads")
    return tmp_path / "runs" / "ads"


def test_a_run_is_judged_on_its_test_data(finished: Path, ads_run: Path, run: Run) -> None:
    ran = run("report", finished)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-2:] == [
        f"report: {finished / 'report.html'}; open it in a browser",
        f"next: widedeep validate {finished}",
    ]
    page = read_page((finished / "report.html").read_text())
    metrics = json.loads((finished / "metrics.json").read_text())["test"]
    rows = {row[0]: row[1] for row in page.table("metric", "this model")}
    assert float(rows["AUC"]) == pytest.approx(metrics["auc"], abs=1e-4)
    assert f"{ads_run.name}/test.parquet" in page.text
    assert "#training" in page.links  # its history


def test_the_figures_as_json(finished: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "made" / "figures.json"
    ran = run("report", finished, "-o", out, "--json", "--slices", "job,ad", "--top", 3)
    printed = json.loads(ran.out)
    assert printed.pop("report") == str(out)
    assert json.loads(out.read_text()) == printed
    assert {one["column"] for one in printed["slices"]} == {"job", "ad"}
    assert len(printed["wide"][0]["crosses"]["positive"]) == 3
    assert not run("report", finished, "-o", out, "--slices", "none").err
    assert json.loads(out.read_text())["slices"] == []


def test_validation_rows_where_there_is_no_test_data(finished: Path) -> None:
    config = (finished / "config.toml").read_text()
    kept = [line for line in config.splitlines() if not line.startswith("test = ")]
    (finished / "config.toml").write_text("\n".join(kept))
    report = report_on(finished)
    valid = json.loads((finished / "metrics.json").read_text())["valid"]
    assert report.heads[""]["metrics"]["model"]["auc"] == pytest.approx(valid["auc"], abs=2e-6)


def test_data_that_is_gone_is_told(finished: Path, tmp_path: Path) -> None:
    config = (finished / "config.toml").read_text()
    (finished / "config.toml").write_text(config.replace("test.parquet", "gone.parquet"))
    report = report_on(finished)
    assert report.data is None
    assert "gone.parquet" in report.notes[-1]


def test_the_step_that_was_kept(finished: Path) -> None:
    history = json.loads((finished / "history.json").read_text())
    metrics = json.loads((finished / "metrics.json").read_text())
    for row, kept_step in ((history[-1], None), (history[0], history[0]["step"])):
        metrics["valid"] = {
            k.removeprefix("valid/"): v for k, v in row.items() if k.startswith("valid/")
        }
        (finished / "metrics.json").write_text(json.dumps(metrics))
        assert report_on(finished).run["kept_step"] == kept_step  # None: the last


def test_versions(finished: Path, ads_run: Path, tmp_path: Path, run: Run) -> None:
    models, rows = tmp_path / "models", ads_run / "test.parquet"
    schema = wd.Schema.load(finished / "schema.safetensors")
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[4]), batch_size=64, progress=False)
    trainer.fit(ads_run / "train.parquet")
    trainer.export(tmp_path / "first")
    publish(tmp_path / "first", models, force=True, reason="the first")
    # Before it is published it is compared with the version in service,
    unpublished = report_on(finished, models=models)
    assert unpublished.against["path"] == str(models / "1")
    assert [one["this"] for one in unpublished.lineage] == [False]
    publish(finished / "bundle", models, force=True, reason="the second")
    # afterwards with the one that it followed, by whichever name it goes.
    for model in (finished, models, models / "2"):
        report = report_on(model, rows, models=models if model == finished else None)
        assert report.against["path"] == str(models / "1")
        assert [one["this"] for one in report.lineage] == [False, True]
    assert report_on(models / "1", rows).against is None
    ran = run("report", models, "--data", rows, "--against", finished, "-o", tmp_path / "r.html")
    assert ran.code == 0
    shutil.rmtree(models / "1")
    assert report_on(finished, rows, models=models).against is None


def test_misuse(finished: Path, tmp_path: Path, run: Run) -> None:
    assert run("report", tmp_path / "nowhere").code == 2
    ran = run("report", finished, "--against", tmp_path / "nowhere")
    assert (ran.code, "nowhere: no such folder" in ran.err) == (2, True)
    ran = run("report", finished, "--slices", "nowhere")
    assert (ran.code, "nowhere" in ran.err, "Traceback" in ran.err) == (2, True, False)
    (tmp_path / "file").write_text("")
    assert run("report", finished, "-o", tmp_path / "file" / "r.html").code == 2
    with pytest.raises(BundleError):
        report_on(tmp_path)
    (finished / "history.json").write_text("{")
    ran = run("report", finished)
    assert (ran.code, "history.json" in ran.err) == (2, True)
