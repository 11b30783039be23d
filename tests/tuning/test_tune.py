"""The search for settings: what it tries, what it finds, how it goes on, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.ads import ads_table
from tests.command_line import Run
from widedeep.cli.run_training import train_run
from widedeep.cli.runs import RunDirectory, training_data
from widedeep.config import config_from_tables, load_config
from widedeep.errors import ConfigError, DataError
from widedeep.training.config import RunConfig
from widedeep.training.defaults import make_optimizers
from widedeep.tuning import Study
from widedeep.tuning.space import Space, apply_settings

SLOW_RATES = [
    'train.wide={optimizer="ftrl",lr=0.002}',
    'train.deep={optimizer="adagrad",lr=0.001}',
    "train.epochs=6",
]


def search(folder: Path, *overrides: str, out: Path | None = None, **options: Any) -> Study:
    config = load_config(folder / "ads.toml", overrides)
    train, valid = training_data(config)
    return wd.tune(config, train, valid=valid, folder=out, progress=False, **options)


def values(study: Study) -> list[tuple[str, float | None]]:
    return [(trial.state, trial.value) for trial in study.trials]


# ---- what is searched ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        {"hidden_units": [7, 3], "dropout": 0.1, "embedding_dim": 5},
        {"deep": {"name": "dcn_v2", "layers": 1, "hidden_units": [9]}},
        {"deep": ["fm", "mlp"]},
        {"hidden_units": [8], "deep": "fm"},
    ],
)
def test_the_given_parameters_mean_the_given_configuration(model: dict[str, Any]) -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
    tables = RunConfig(spec=spec).to_table()
    tables["model"] = model
    tables["train"] = {"wide": {"lr": 0.3, "l1": 0.0}, "dense": {"optimizer": "sgd", "lr": 0.7}}
    config = config_from_tables(tables)
    space = Space(config, None)
    settings = space.suggest(optuna.trial.FixedTrial(space.given()))
    again = config_from_tables(apply_settings(tables, settings))
    assert again.model == config.model
    assert make_optimizers(again.train) == make_optimizers(config.train)


def test_embeddings_are_searched_around_what_training_would_take() -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
    tables = RunConfig(spec=spec).to_table()
    for train, rate, l2 in (({}, 0.2, 0.025), ({"epochs": "auto"}, 0.02, 0.3)):
        space = Space(config_from_tables({**tables, "train": train}), None)
        space.resolve(50_000, rate)
        assert (space.given()["deep.lr"], space.given()["deep.l2"]) == (rate, l2)
    space = Space(config_from_tables({**tables, "train": {"deep": {"lr": 0.3}}}), None)
    space.resolve(50_000, 0.02)
    assert space.given()["deep.lr"] == 0.3


def test_first_comes_the_configuration_then_one_change_each() -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
    given, adam, *models = Space(RunConfig(spec=spec), ["dcn_v2", "finalmlp"]).first()
    assert {key for key in adam if adam[key] != given.get(key)} == {
        "dense.optimizer", "dense.adam.lr", "dense.adam.weight_decay",
    }  # fmt: skip
    assert [params["model"] for params in models] == ["dcn_v2", "finalmlp"]


def test_what_a_configuration_lacks_is_not_searched() -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
    space = Space(RunConfig(spec=spec), None)
    assert [list(params) for params in space.first()] == [["wide.lr", "wide.l1"]]


def test_a_tower_that_does_not_fit_fails_with_its_reason(
    ads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(ads / "ads.toml", ["train.epochs=1"])
    train, valid = training_data(config)
    study = wd.tune(config, train, valid=valid, trials=3, models=["din"])
    assert [trial.state for trial in study.trials] == ["finished", "finished", "failed"]
    assert study.trials[2].reason in capsys.readouterr().err
    assert "din" in str(study.trials[2].reason)


# ---- what is found ------------------------------------------------------------------------------


def test_rates_that_are_far_too_low_are_raised(ads: Path) -> None:
    study = search(ads, *SLOW_RATES, trials=9)
    given, best = study.trials[0], study.best
    assert given.settings == {} and study.given == load_config(ads / "ads.toml", SLOW_RATES)
    assert best.value < given.value - 0.02
    assert make_optimizers(study.config.train).wide.lr > 0.002
    # What fell behind is given up, and is never the best.
    pruned = [trial for trial in study.trials if trial.state == "pruned"]
    assert pruned and all(len(trial.curve) < 6 for trial in pruned)
    assert best.value == min(trial.value for trial in study.trials if trial.counts)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_best_settings_train_to_the_same_model(run: Run, ads: Path, epochs: int) -> None:
    words = ["--set", f"train.epochs={epochs}", "--trials", "3", "-o", "study"]
    code, out, _ = run("tune", "ads.toml", *words)
    assert code == 0
    assert out.splitlines()[-1] == "next: widedeep train study/best.toml"
    document = json.loads(Path("study/study.json").read_text())
    best = document["trials"][document["best"]]
    trained = train_run(load_config("study/best.toml"), RunDirectory("best"), progress=False)
    assert trained.metrics["valid"]["log_loss"] == best["value"]
    assert not Path("study/study.encoded").exists()


def test_the_trials_of_quality_best_are_ensembles(ads: Path) -> None:
    overrides = ["train.quality=best", "train.epochs=1"]
    study = search(ads, *overrides, trials=1, models=["mlp"])
    config = load_config(ads / "ads.toml", overrides)
    trained = train_run(config, RunDirectory("best"), progress=False)
    assert study.best.value == trained.metrics["valid"]["log_loss"]
    assert study.config.model.deep == ()


def test_a_search_for_a_metric_that_is_better_the_higher(ads: Path) -> None:
    study = search(ads, "train.monitor=auc", trials=4)
    assert study.best.value == max(trial.value for trial in study.trials if trial.counts)


def test_a_search_with_conditions_on_validation_metrics(ads: Path) -> None:
    conditions = ["train.stop_at={auc=0.5}", 'train.schedule="plateau"', "train.eval_every=20"]
    study = search(ads, *conditions, trials=1)
    assert [trial.state for trial in study.trials] == ["finished"]
    assert len(study.trials[0].curve) == 1  # it stopped at the first
    with pytest.raises(ConfigError, match="stop_at with the metric 'acu'"):
        search(ads, "train.stop_at={acu=0.5}", trials=1)


def test_a_table_in_memory_is_split(ads: Path) -> None:
    spec = wd.FeatureSpec(label="click", features=[wd.categorical("job", "ad"), wd.numeric("age")])
    study = wd.tune(spec, ads_table(400, 1), trials=2, progress=False)
    assert 50 < study.trials[0].metrics["rows"] < 110


# ---- one seed, one search -----------------------------------------------------------------------


def test_a_search_goes_on_where_it_stopped(ads: Path) -> None:
    search(ads, trials=3, out=ads / "study")
    more = search(ads, trials=6, out=ads / "study", resume=True)
    at_once = search(ads, trials=3)
    assert len(more.trials) == 6
    assert values(more)[:3] == values(at_once)
    assert [t.params for t in more.trials[:3]] == [t.params for t in at_once.trials]
    # What comes after is new: no trial is tried twice.
    assert len({json.dumps(t.params, sort_keys=True) for t in more.trials}) == 6
    unchanged = search(ads, trials=6, out=ads / "study", resume=True)
    assert values(unchanged) == values(more)


def test_an_interrupted_trial_is_kept_as_failed(ads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def interrupted(**options: Any) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("widedeep.tuning.study._Watch.on_evaluate", interrupt)
            search(ads, out=ads / "study", **options)

    interrupted(trials=1)
    first = search(ads, trials=1, out=ads / "study", resume=True)
    assert [(t.number, t.state, t.settings) for t in first.trials] == [(0, "finished", {})]
    interrupted(trials=3, resume=True)
    study = search(ads, trials=3, out=ads / "study", resume=True)
    assert [trial.state for trial in study.trials] == ["finished", "failed", "finished"]
    assert study.trials[1].reason == "interrupted"


# ---- what it refuses ----------------------------------------------------------------------------


def test_a_folder_with_another_study(run: Run, ads: Path) -> None:
    words = ["tune", "ads.toml", "--trials", "1", "-o", "study"]
    assert run(*words).code == 0
    code, _, err = run(*words)
    assert code == 2 and "study: holds a study; --resume goes on with it" in err
    code, _, err = run(*words, "--resume", "--set", "model.seed=5")
    assert code == 2 and "holds a study with another 'model'" in err
    # What is refused replaces nothing, and what is replaced is the study alone.
    mine = [Path("study") / name for name in ("notes.txt", "encoded/rows.arrow")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    journal = Path("study/study.journal").read_bytes()
    assert run(*words, "--force", "--minutes", "1e-9").code == 2
    assert Path("study/study.journal").read_bytes() == journal
    code, out, _ = run(*words, "--force", "--set", "model.seed=5", "--json")
    assert (code, len(json.loads(out)["trials"])) == (0, 1)
    assert all(file.read_text() == "mine" for file in mine)
    code, _, err = run(*words[:-1], "study/notes.txt")
    assert code == 2 and "is a file, expected a folder" in err


def test_too_few_minutes_are_told_before_the_search(run: Run, ads: Path) -> None:
    code, _, err = run("tune", "ads.toml", "--minutes", "1e-9", "-o", "study")
    assert code == 2
    assert "got 1e-09 minutes, in which the given configuration does not pass once" in err
    assert "give --minutes 1 or more" in err
    assert not Path("study").exists()


def test_validation_data_of_one_class(ads: Path) -> None:
    ones = ads_table(300, 3)
    pq.write_table(ones.filter(pa.compute.equal(ones["click"], 0)), ads / "zeros.parquet")
    config = load_config(ads / "ads.toml", ["data.valid=zeros.parquet", "data.valid_fraction=0"])
    train, valid = training_data(config)
    with pytest.raises(DataError, match=r"label 'click' with the one value 0 in all \d+ rows"):
        wd.tune(config, train, valid=valid, progress=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "dcnv2"], "[tune] models: got 'dcnv2'; did you mean 'dcn_v2'?"),
        (["--trials", "0"], "got trials=0, expected an integer of at least 1"),
        (["--set", "tune.trails=3"], "got the unknown key 'trails'; did you mean 'trials'?"),
        (["--set", "train.monitor=acu"], "got monitor='acu', which was not evaluated"),
    ],
)
def test_misuse(run: Run, ads: Path, words: list[str], message: str) -> None:
    code, _, err = run("tune", "ads.toml", *words, "-o", "study")
    assert code == 2
    assert message in err
    assert not Path("study").exists()


def test_without_optuna(ads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"optuna is not installed; run: pip install 'widedeep"):
        search(ads, trials=1)


# ---- what it writes -----------------------------------------------------------------------------


def test_the_page_and_the_document_hold_the_trials(run: Run, ads: Path) -> None:
    code, out, _ = run("tune", "ads.toml", "--trials", "6", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["config_file"] == "runs/ads-tune/best.toml"
    page = Path("runs/ads-tune/study.html").read_text()
    for trial in document["trials"]:
        assert trial["value"] is None or f"{trial['value']:.5f}" in page
    assert "log_loss by model" in page and "log10 of wide.lr" in page
    assert "<svg" in page and "http" not in page


def test_the_section_of_a_file_is_read(run: Run, ads: Path) -> None:
    text = Path("ads.toml").read_text() + "\n[tune]\ntrials = 2\nmodels = []\n"
    Path("ads.toml").write_text(text)
    code, out, err = run("tune", "ads.toml", "--json")
    assert (code, len(json.loads(out)["trials"])) == (0, 2)
    assert "trial 1, mlp: log_loss" in err
