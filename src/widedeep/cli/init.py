"""The verb `init`: writes a first, commented configuration for a table, from a sample of it."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from widedeep.census import load_census
from widedeep.cli.output import check_free, print_json, print_next, print_table, print_text
from widedeep.cli.parser import EXIT_OK, VerbParser
from widedeep.config import config_from_tables
from widedeep.data.infer import InferredSpec, data_lines, features_block, infer_spec
from widedeep.data.paths import input_paths
from widedeep.data.roles import no_label
from widedeep.errors import ConfigError, DataError
from widedeep.features.toml import comment_text, toml_value
from widedeep.files import write_text_whole

EXAMPLE = (
    "  widedeep init train.parquet --label click -o ads.toml\n"
    "  widedeep check ads.toml\n"
    "  widedeep init --dataset census                # a data set of the package, to try it out\n\n"
    "Numbers become numeric features and bins; text, lists and integer keys become categorical\n"
    "features. Row ids, times and constants are left out. Crosses that help on held-out rows\n"
    "are added. Each line has a comment with its evidence: read it through."
)
NEXT = "widedeep check ads.toml"
_VALID_FRACTION = 0.1


# Without a line on early stopping or optimizers, so that they follow the defaults.
_TRAIN_BLOCK = """[train]
epochs = "auto"  # by the number of rows; the best model on the validation data is kept
batch_size = "auto"  # by the number of rows\
"""


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("data DATA", "training data: a Parquet or CSV file, or a glob", nargs="?")
    parser.option(
        "--dataset",
        "write a data set of the package into a folder of its name, and take that",
        choices=("census",),
    )
    parser.option("--label NAME", "label column (default: guessed if it is obvious)")
    parser.option("-o --out FILE", "configuration to write", default="run.toml")
    parser.option("--force", "replace an existing FILE")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    data, label = arguments.data, arguments.label
    if (data is None) is (arguments.dataset is None):
        raise ConfigError("got both or neither of them; give either DATA or --dataset")
    if arguments.dataset is not None:
        data, label = write_dataset(arguments.out, overwrite=arguments.force)
    inferred = write_config(data, arguments.out, label=label, overwrite=arguments.force)
    if arguments.json:
        columns = [
            {
                "column": c.name,
                "role": c.role,
                "type": str(c.profile.arrow_type),
                "distinct": c.profile.distinct,
                "missing": c.profile.missing,
                "options": c.options,
                "reason": c.reason,
            }
            for c in inferred.columns
        ]
        crosses = [{"columns": c.columns, "gain": c.gain, "z": c.z} for c in inferred.crosses]
        document = {"config": arguments.out, "columns": columns, "crosses": crosses}
        print_json({**document, "warnings": inferred.warnings})
        return EXIT_OK
    rows = [[c.name, c.role, c.describe()] for c in inferred.columns]
    rows += [[" x ".join(c.columns), "cross", c.reason] for c in inferred.crosses]
    print_table(["column", "taken for", "because it holds"], rows)
    for warning in inferred.warnings:
        print_text(f"look at {warning}")
    print_text(f"\nwrote {arguments.out}; read it through")
    print_next("check", arguments.out)
    return EXIT_OK


def write_dataset(config: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[str, str]:
    """Write the census into a folder beside a configuration; return its train file and label."""
    folder = Path(config).parent / "census"
    for path in (Path(config), folder):
        check_free(path, force=overwrite, advice="")
    load_census().write(folder)
    return str(folder / "train.parquet"), "income"


def write_config(
    data: str, path: str | os.PathLike[str], *, label: str | None = None, overwrite: bool = False
) -> InferredSpec:
    """Write a first configuration for a table beside it or elsewhere."""
    path = Path(path)
    check_free(path, force=overwrite, advice="choose another file (-o), or ")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no folder {path.parent}; make it first")
    inferred = infer_spec(data, label=label)
    if inferred.spec.label is None:
        raise no_label([column.profile for column in inferred.columns])
    text = config_text(inferred, data, path.parent)
    _check_text(text, path)
    try:
        write_text_whole(path, text)
    except OSError as error:
        cause = error.strerror or error
        raise ConfigError(
            f"{path}: cannot be written ({cause}); choose another file (-o)"
        ) from error
    return inferred


def _check_text(text: str, path: Path) -> None:
    """Fail here rather than in the user's next command."""
    import tomllib

    config_from_tables(tomllib.loads(text), folder=path.parent, origin=str(path))


def config_text(inferred: InferredSpec, data: str, folder: str | os.PathLike[str]) -> str:
    """Return a declaration as a configuration's TOML, with a comment on each guessed line."""
    rows = f"{inferred.sampled:,} rows"
    if inferred.sampled < inferred.total:
        rows = f"{rows} of {inferred.total:,}"
    warnings = "".join(f"\n# Look at {comment_text(text)}" for text in inferred.warnings)
    blocks = [
        f"# Written by: widedeep init {comment_text(data)}\n"
        f"# Guessed from {rows}: read it through, change what you know better.{warnings}",
        _data_block(inferred, data, Path(folder)),
        features_block(inferred),
        _model_block(inferred),
        _TRAIN_BLOCK,
    ]
    return "\n\n".join(blocks) + "\n"


def _data_block(inferred: InferredSpec, data: str, folder: Path) -> str:
    lines = ["[data]", f"train = {toml_value(_relative(data, folder))}"]
    others = _siblings(data)
    lines += [f"{role} = {toml_value(_relative(path, folder))}" for role, path in others.items()]
    if "valid" not in others:
        lines.append(
            f"valid_fraction = {_VALID_FRACTION}  # of the training rows; or name a file: valid ="
        )
        if inferred.time is not None:
            lines.append(f"valid_latest = {toml_value(inferred.time)}  # the last rows in time")
        elif inferred.spec.group is not None:
            lines.append(f"valid_by = {toml_value(inferred.spec.group)}  # whole requests")
    return "\n".join([*lines, *data_lines(inferred)])


def _siblings(data: str) -> dict[str, str]:
    """Return test and validation data that lie beside training data and are named like it."""
    folder, slash, file = data.rpartition("/")
    paths: dict[str, str] = {}
    for role, names in (("valid", ("valid", "validation", "dev")), ("test", ("test",))):
        for name in names:
            other = f"{folder}{slash}{file.replace('train', name)}"
            with contextlib.suppress(DataError):
                if other != data and input_paths(other):
                    paths.setdefault(role, other)
    return paths


def _relative(path: str, folder: Path) -> str:
    """Seen from the file's folder, or absolute where that would climb far up."""
    if "://" in path:
        return path
    relative = os.path.relpath(path, folder)
    return (
        os.path.abspath(path)
        if os.path.isabs(path) or relative.startswith("../../..")
        else relative
    )


def _model_block(inferred: InferredSpec) -> str:
    lines = ["[model]", "hidden_units = [256, 128]", "embedding_dim = 16"]
    if inferred.head == "regression":
        lines.append('head = "regression"  # the label is a number outside 0 to 1')
    return "\n".join(lines)
