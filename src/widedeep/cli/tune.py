"""The verb `tune`: search for a configuration's best settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from widedeep._version import __version__
from widedeep.cli.options import add_fields, field_values
from widedeep.cli.output import count, number, print_json, print_next, print_table, print_text, say
from widedeep.cli.parser import EXIT_INTERRUPTED, EXIT_OK, VerbParser, resume_command
from widedeep.cli.runs import RunDirectory, absolute_paths, training_data
from widedeep.config import load_config, load_tune_config
from widedeep.features.toml import toml_text
from widedeep.files import write_text_whole
from widedeep.options import read_tables
from widedeep.training.config import DATA_PATHS, TuneConfig

if TYPE_CHECKING:
    from widedeep.tuning import Study, Trial

EXAMPLE = (
    "  widedeep tune ads.toml --trials 20 --minutes 10\n"
    "  widedeep tune ads.toml --models mlp dcn_v2 finalmlp --set train.epochs=1\n"
    "  widedeep tune ads.toml --resume --trials 40     # 20 more, or after Ctrl-C\n\n"
    "Models are judged on the validation data of the configuration, or on a fifth of the\n"
    "training rows; test data are never read. The folder holds best.toml, study.html,\n"
    "study.json and study.journal."
)
NEXT = "widedeep train runs/ads-tune/best.toml"

_FLAGS = {"trials": "--trials N", "minutes": "--minutes M", "seed": "--seed N"}


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("config RUN.toml", "configuration of a run")
    parser.option("-o --out DIR", "folder of the study (default: runs/RUN-tune)")
    going_on = parser.add_mutually_exclusive_group()
    parser.option("--resume", "go on with the study; --trials counts all of it", group=going_on)
    parser.option("--force", "replace an existing study; other files stay", group=going_on)
    add_fields(parser, TuneConfig(), _FLAGS)
    parser.option(
        "--models TOWER",
        "towers to try beside the configuration's own (default: mlp and dcn_v2, where it has one "
        "of these)",
        nargs="+",
    )
    parser.set_option()


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from widedeep.tuning import tune
    from widedeep.tuning.study import VALID_FRACTION

    overrides = list(arguments.set)
    config = load_config(arguments.config, overrides)
    values = field_values(arguments, _FLAGS) | {"models": arguments.models}
    options = load_tune_config(arguments.config, arguments.set, options=values)
    if config.data.valid is None and not config.data.valid_fraction:
        overrides.append(f"data.valid_fraction={VALID_FRACTION}")
        config = load_config(arguments.config, overrides)
        say(f"no validation data are named: {VALID_FRACTION:.0%} of the training rows are kept")
    train, valid = training_data(config)
    name = f"{Path(arguments.config).stem}-tune"
    folder = Path(arguments.out or Path("runs") / name)
    try:
        study = tune(
            config,
            train,
            valid=valid,
            folder=folder,
            resume=arguments.resume,
            overwrite=arguments.force,
            options=options,
        )
    except KeyboardInterrupt:
        say(f"widedeep: interrupted; go on with: {resume_command(arguments)}")
        return EXIT_INTERRUPTED
    best = folder / "best.toml"
    write_text_whole(best, _best_text(study, arguments.config, overrides))
    write_text_whole(folder / "study.html", study.to_html())
    RunDirectory(folder).write_json(folder / "study.json", study.to_json())
    if arguments.json:
        print_json({"study": folder, "config_file": best, **study.to_json()})
        return EXIT_OK
    _print_study(study, folder)
    print_next("train", best)
    return EXIT_OK


def _best_text(study: Study, path: str, overrides: list[str]) -> str:
    """Return the user's configuration with the best settings in it, as TOML."""
    from widedeep.tuning.space import apply_settings

    places = [f"data.{name}" for name in DATA_PATHS]
    tables = apply_settings(read_tables(path, overrides, places=places), study.best.settings)
    paths = {name: absolute_paths(getattr(study.config.data, name)) for name in DATA_PATHS}
    named = {name: path for name, path in paths.items() if path is not None}
    tables["data"] = tables.get("data", {}) | named
    best, given = study.best, study.trials[0]
    note = f"{study.monitor} on the validation data {number(best.value)}"
    return (
        f"# Written by widedeep {__version__} tune {path}\n"
        f"# Trial {best.number} of {len(study.trials)}: {note}; as given {_given(given)}.\n\n"
        + toml_text(tables)
    )


def _print_study(study: Study, folder: Path) -> None:
    rows = [
        [*_cells(trial, study), "best" if trial == study.best else ""] for trial in study.trials
    ]
    headings = ["trial", study.monitor, "s", "state", "settings", ""]
    print_table(headings, rows, right=["trial", study.monitor, "s"])
    best, given = study.best, study.trials[0]
    print_text(
        f"\n{count(len(study.trials), 'trial')} in {study.minutes:.1f} minutes; "
        f"{study.monitor} {number(best.value)}, as given {_given(given)}"
    )
    print_text(f"page: {folder / 'study.html'}\nbest settings: {folder / 'best.toml'}")


def _given(trial: Trial) -> str:
    return number(trial.value) or "not judged"


def _cells(trial: Trial, study: Study) -> list[str]:
    from widedeep.tuning.page import params_text

    value = "" if trial.value is None else f"{trial.value:.5f}"
    text = params_text(trial.params, study.trials[0].params)
    return [str(trial.number), value, f"{trial.seconds:.0f}", trial.state, text]
