"""The verb `import`: an estimator of TensorFlow as a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widedeep._version import __version__
from widedeep.cli.output import check_free, count, print_json, print_next, print_table, print_text
from widedeep.cli.parser import EXIT_OK, VerbParser, share
from widedeep.cli.runs import RunDirectory
from widedeep.config import load_config
from widedeep.errors import ConfigError
from widedeep.files import atomic_directory
from widedeep.options import read_tables
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.config import DataConfig

if TYPE_CHECKING:
    from widedeep.importing import ImportedModel

EXAMPLE = (
    "  widedeep import export/1700000000 --checkpoint model_dir --out runs/ads\n"
    "  widedeep import export/1700000000 --train train.parquet --label click --out runs/ads\n\n"
    "OUT becomes a run folder, as `widedeep train` leaves it: config.toml, schema.safetensors,\n"
    "checkpoints/ with the optimizers' state, bundle/, and imported.json, which says what became\n"
    "of each variable. TensorFlow is not needed."
)
NEXT = "widedeep serve runs/ads/bundle"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option(
        "model SAVED_MODEL|CHECKPOINT",
        "what estimator.export_saved_model wrote, or the folder of its versions: the newest; with "
        "--spec a checkpoint alone",
    )
    parser.option("-o --out RUN_DIR", "folder to write", required=True)
    parser.option(
        "--checkpoint MODEL_DIR",
        "the estimator's model_dir, or a checkpoint of the same step, for the state of the "
        "optimizers (default: they start anew)",
    )
    parser.option(
        "--spec RUN.toml",
        "for a checkpoint alone: a configuration that declares features, activation and head as "
        "the estimator had them",
    )
    parser.option(
        "--label COLUMNS",
        "column of the label; of a label of several values their columns, separated by commas",
        default="label",
    )
    parser.option("--weight COLUMN", "column of example weights")
    parser.option(
        "--lists COLUMNS",
        "columns, separated by commas, that hold a list in each row, beside those that do in the "
        "warm-up requests",
        default="",
    )
    parser.option(
        "--dropout P",
        "probability to drop a hidden unit, which a SavedModel does not hold",
        type=share,
        default=0.0,
    )
    for name, what in (("train", "training"), ("valid", "validation"), ("test", "test")):
        parser.add_argument(f"--{name}", metavar="DATA", help=f"{what} data to go on with")
    parser.option("--force", "replace an existing RUN_DIR")
    parser.set_option("train.batch_size=512")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    out = Path(arguments.out)
    check_free(out, force=arguments.force)
    from widedeep.importing import from_estimator

    imported = from_estimator(
        arguments.model,
        checkpoint=arguments.checkpoint,
        spec=None if arguments.spec is None else load_config(arguments.spec),
        labels=_names(arguments.label),
        weight=arguments.weight,
        lists=_names(arguments.lists),
        data=_data(arguments),
        dropout=arguments.dropout,
        train=_train_options(arguments.set),
    )
    write_run(imported, out)
    if arguments.json:
        print_json({"run": out, "bundle": out / "bundle", **imported.to_json()})
        return EXIT_OK
    _print(imported)
    print_text(f"\nrun: {out} (step {imported.step:,})\nbundle: {out / 'bundle'}")
    if arguments.train is None:
        print_next("inspect", out)
    else:
        print_next("train", out / "config.toml", "--out", out, "--resume")
    return EXIT_OK


def write_run(imported: ImportedModel, out: Path) -> None:
    """Write a run folder, whole or not at all."""
    trainer = imported.trainer
    with atomic_directory(out) as folder:
        directory = RunDirectory(folder)
        directory.save_config(imported.config)
        trainer.model.schema.save(directory.schema)
        trainer.state.warmup.rows = [dict(row) for row in imported.rows[:8]]
        CheckpointDirectory(directory.checkpoints).save(trainer.state.checkpoint())
        trainer.export(directory.bundle)
        directory.write_json(directory.history, [])
        directory.write_json(folder / "imported.json", imported.to_json())
        document = {
            "steps": imported.step,
            "rows": 0,
            "schema": trainer.model.schema.fingerprint,
            "widedeep": __version__,
        }
        directory.write_json(directory.metrics, document)


def _data(arguments: argparse.Namespace) -> DataConfig | None:
    paths = {name: getattr(arguments, name) for name in ("train", "valid", "test")}
    return DataConfig(**paths) if any(paths.values()) else None


def _train_options(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the options of ``--set``: how training goes on is all that can be chosen."""
    tables = read_tables(os.devnull, overrides)
    for section in tables:
        if section != "train":
            raise ConfigError(
                f"got --set {section}..., expected an option of [train]; features and model are "
                "those of the SavedModel"
            )
    return dict(tables.get("train", {}))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(imported: ImportedModel) -> None:
    rows = []
    for tensor in imported.tensors:
        shape = " x ".join(f"{size:,}" for size in tensor.shape) or "1"
        state = count(len(tensor.state), "slot") if tensor.state else tensor.why or "none"
        rows.append([tensor.variable, tensor.tensor, shape, state])
    print_table(["variable", "became", "shape", "optimizer's state"], rows, right=["shape"])
    for note in imported.notes:
        print_text(f"note: {note}")
    if imported.checked:
        print_text(
            f"\nchecked: {count(imported.checked, 'row')} of the warm-up requests, largest "
            f"difference of a logit to TensorFlow's: {imported.difference:.1e}"
        )
