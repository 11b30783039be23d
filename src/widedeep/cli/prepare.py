"""The verb `prepare`: fit the schema before training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from widedeep.cli.output import print_json, print_next, print_text, say
from widedeep.cli.parser import EXIT_OK, VerbParser, threads, without_option
from widedeep.cli.runs import RunDirectory, pin_tables, train_command, training_data
from widedeep.config import load_config
from widedeep.data.counts import CountsFolder
from widedeep.data.encoded import EncodedRows, encoded_rows
from widedeep.data.fit import declared_types, fit_schema
from widedeep.data.fragments import InputRecord
from widedeep.data.reuse import reuse_inputs
from widedeep.data.sources import Data, RowShare, open_source
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.launch import launch, launched_size
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.ranks.shared import on_first, shared_failures
from widedeep.schema import Schema
from widedeep.training.config import RunConfig

EXAMPLE = (
    "  widedeep prepare ads.toml\n"
    "  widedeep prepare ads.toml --encode\n"
    "  widedeep prepare ads.toml --counts examples/counts   # of a join on Spark\n"
    "  widedeep train ads.toml         # uses the saved schema\n"
    "  widedeep prepare ads.toml --ranks 4                  # 4 processes, the same schema\n\n"
    "'train' fits the schema by itself; 'prepare' shows it before hours of training. With\n"
    "encoded rows, no epoch reads and encodes the raw rows again."
)
NEXT = "widedeep train ads.toml"
_TIMEOUT = "1h"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("config RUN.toml", "configuration of the run")
    parser.option("-o --out RUN_DIR", "folder of the run (default: runs/RUN)")
    parser.option("--encode", "save the encoded training rows too, in encoded/")
    parser.option(
        "--counts DIR",
        "learn from the counts beside a dataset that was joined on Spark, not from its rows",
    )
    parser.option(
        "--ranks N",
        "fit on N processes of this machine, each on its part of the rows; several machines launch "
        "them by torchrun",
        type=threads,
    )
    parser.set_option()


@reuse_inputs()
def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    config = load_config(arguments.config, arguments.set)
    if arguments.ranks is not None and arguments.ranks > 1:
        return launch(arguments.ranks, without_option(arguments.words, "--ranks"))
    # The lanes of training do not matter here, and a rank may read for hours before it answers.
    ranks = ranks_of(DistributedConfig(lanes=launched_size(), timeout=_TIMEOUT))
    config = pin_tables(config, ranks)
    directory = RunDirectory.of_config(arguments.config, arguments.out)
    on_first(ranks, directory.check_free)
    counts = arguments.counts
    schema = prepare_schema(config, directory, counts=counts, progress=True, ranks=ranks)
    if not ranks.is_first:
        return EXIT_OK
    encoded: dict[str, Any] = {}
    if arguments.encode:
        rows, new = encode_rows(config, directory, schema)
        encoded = {"encoded": {"path": rows.path, "bytes": rows.nbytes, "new": new}}
        verb = "wrote" if new else "found, as they should be:"
        say(f"{verb} the encoded rows {rows.path} ({rows.nbytes >> 20:,} MiB)")
    if arguments.json:
        print_json(
            {
                "schema": directory.schema,
                "fingerprint": schema.fingerprint,
                "rows": schema.rows,
                "features": _feature_sizes(schema),
                "notes": schema.notes,
                **encoded,
            }
        )
    else:
        print_text(repr(schema))
        print_text(f"\nwrote {directory.schema}")
        print_next(*train_command(arguments))
    return EXIT_OK


def _feature_sizes(schema: Any) -> Mapping[str, int]:
    return {feature.name: schema.id_count(feature.name) for feature in schema.spec.all_features}


def prepare_schema(
    config: RunConfig,
    directory: RunDirectory,
    *,
    counts: str | None = None,
    progress: bool = False,
    ranks: Ranks | None = None,
) -> Schema:
    """Fit the schema of a run, over all ranks, and keep it in its folder."""
    ranks = ranks or Ranks()
    schema, inputs = fit_run_schema(config, progress, counts=counts, ranks=ranks)
    on_first(ranks, partial(directory.save_schema, schema, inputs))
    return schema


def encode_rows(
    config: RunConfig, directory: RunDirectory, schema: Schema
) -> tuple[EncodedRows, bool]:
    """Encode the training rows into the run's folder, unless it holds them already."""
    train, _ = training_data(config)
    transform = Transform(schema)
    types = schema.input_types()
    with open_source(train, columns=transform.columns(), column_types=types) as source:
        return encoded_rows(directory.encoded, transform, source)


def fit_run_schema(
    config: RunConfig,
    progress: bool,
    grow: Schema | None = None,
    ranks: Ranks | None = None,
    *,
    counts: str | None = None,
) -> tuple[Schema, list[InputRecord]]:
    """Fit the schema of a run over all ranks and return it with a record of its inputs."""
    if not config.spec.labels:  # said before the long way through the data
        raise ConfigError('got no label to learn; write label = "COLUMN" under [data]')
    ranks = ranks or Ranks()
    inputs = on_first(ranks, partial(_inputs, config), "the inputs")
    train, _ = training_data(config)
    show_bar = progress and sys.stderr.isatty() and ranks.is_first
    if counts is None:
        return fit_schema(config.spec, train, progress=show_bar, grow=grow, ranks=ranks), inputs
    _check_counted(train, counts, sum(record["rows"] for record in inputs))
    return fit_schema(config.spec, counts=counts, progress=show_bar, ranks=ranks), inputs


def _check_counted(train: Data, counts: str, rows: int) -> None:
    """Refuse counts of other rows than those of the run."""
    if isinstance(train, RowShare):
        raise ConfigError(
            f"--counts {counts}: counts all rows of its dataset's train folder, and [data] splits "
            "them; name the dataset's folders as train and valid"
        )
    counted = CountsFolder.open(counts).rows
    if rows != counted:
        raise DataError(
            f"--counts {counts}: counts {counted:,} rows, and [data] train has {rows:,}; name the "
            "folder counts/ beside the train folder"
        )


def _inputs(config: RunConfig) -> list[InputRecord]:
    train, _ = training_data(config)
    types = declared_types(config.spec)
    with open_source(train, columns=_needed_columns(config), column_types=types) as source:
        if not source.num_rows:
            raise DataError(f"{config.data.train}: got no training rows; give at least one example")
        return source.describe()


def prepared_schema(config: RunConfig, directory: RunDirectory, ranks: Ranks) -> Schema | None:
    """The schema in the folder, if it was fitted for these features on these inputs; collective."""

    def is_fitted() -> bool:
        fitted = directory.fitted_inputs()
        return fitted is not None and fitted == _inputs(config)

    if not on_first(ranks, is_fitted, "the prepared schema"):
        return None
    with shared_failures(ranks):
        schema = Schema.load(directory.schema)
    return schema if schema.spec == config.spec else None


def _needed_columns(config: RunConfig) -> list[str]:
    spec = config.spec
    more = [*spec.labels.values(), *spec.weights, spec.group]
    return [*spec.columns(), *(name for name in more if name is not None)]
