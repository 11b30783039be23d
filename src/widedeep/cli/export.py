"""The verb `export`: a checkpoint as a bundle, or a bundle as an ONNX model."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import get_args

from widedeep.bundle import Bundle, export_onnx
from widedeep.bundle.manifest import MANIFEST
from widedeep.bundle.onnx_model import TOLERANCE
from widedeep.bundle.write import round_bundle
from widedeep.cli.output import (
    address_of,
    count,
    print_json,
    print_next,
    print_table,
    print_text,
    shown_path,
)
from widedeep.cli.parser import EXIT_OK, VerbParser
from widedeep.cli.runs import load_bundle, model_to_start_from, run_of, training_data
from widedeep.cli.validate import print_validate
from widedeep.config import config_from_tables
from widedeep.errors import BundleError, CheckpointError, ConfigError
from widedeep.kernels.packed_rows import TableKind
from widedeep.remote import is_url, output_file, output_folder
from widedeep.training.checkpoint import find_checkpoint, read_checkpoint

EXAMPLE = (
    "  widedeep export runs/ads -o bundles/ads-2\n"
    "  widedeep export runs/ads/checkpoints/step-0000001500 -o bundles/ads-early\n"
    "  widedeep export runs/ads --tables int8 -o bundles/ads-small\n"
    "  widedeep export runs/ads --format onnx -o ads.onnx"
)
NEXT = "widedeep validate bundles/ads-2 --data runs/ads"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option(
        "model RUN_DIR|CHECKPOINT|BUNDLE",
        "run folder, a step-* folder in it, or, for ONNX and --tables, a bundle",
    )
    parser.option("-o --out OUT", "folder, or ONNX file, to write", required=True)
    parser.option(
        "--format",
        "what to write: a bundle, or the bundle's whole model from raw columns to scores as one "
        "ONNX file, checked on the bundle's stored rows",
        choices=("bundle", "onnx"),
        default="bundle",
    )
    parser.option(
        "--posterior DATA",
        "store how uncertain the last layer is after these rows, shown and labelled, for a server "
        "that explores by thompson or linucb",
    )
    parser.option(
        "--items PATH",
        "items whose vectors the bundle keeps, for a model with two towers (default: [data] items "
        "of the run)",
    )
    parser.option(
        "--tables",
        "numbers of the tables of embeddings: int8 takes a quarter of the memory, int4 an eighth, "
        "and the bundle tells how much scores change (default: [train] bundle_tables of the run, "
        "fp32)",
        choices=get_args(TableKind),
    )
    parser.option("--force", "replace an existing OUT")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if arguments.format == "onnx":
        return _run_onnx(arguments)
    with output_folder(arguments.out, last=MANIFEST, overwrite=arguments.force) as out:
        named = arguments.model
        model = model_to_start_from(named) if is_url(named) else Path(named)
        if (model / MANIFEST).is_file():
            bundle, source = _round(arguments, model, out), model
        else:
            bundle, source = export_checkpoint(
                model,
                out,
                posterior=arguments.posterior,
                items=arguments.items,
                tables=arguments.tables,
                overwrite=arguments.force,
            )
    if is_url(arguments.out):
        bundle.path = arguments.out
    if arguments.json:
        rounding = None if bundle.rounding is None else dataclasses.asdict(bundle.rounding)
        origin = {"checkpoint": address_of(source), "metrics": bundle.metrics, "rounding": rounding}
        print_json({"bundle": bundle.path, **origin})
    else:
        print_text(f"from {address_of(source)}")
        print_text(repr(bundle))
        run = source.parent.parent
        print_validate(arguments.out, [] if run_of(run) is None else [shown_path(run)])
    return EXIT_OK


def _round(arguments: argparse.Namespace, model: Path, out: Path) -> Bundle:
    """Write a bundle again with its tables in other numbers."""
    for option in ("posterior", "items"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"got --{option} for a bundle, whose own is kept; leave it out")
    if arguments.tables in (None, "fp32"):
        raise ConfigError(
            f"{arguments.model}: got a bundle, which is exported already; add --tables int8 (or "
            "bf16, int4) to write it smaller, --format onnx for ONNX, or name its run"
        )
    bundle = load_bundle(model)
    return round_bundle(bundle, out, arguments.tables, overwrite=arguments.force)


def _run_onnx(arguments: argparse.Namespace) -> int:
    for option in ("posterior", "items", "tables"):
        if getattr(arguments, option) is not None:
            raise ConfigError(
                f"got --{option} with --format onnx, which writes a bundle as it is; leave it out"
            )
    with output_file(arguments.out, overwrite=arguments.force) as out:
        _check_free(out, overwrite=arguments.force)
        bundle = load_bundle(arguments.model)
        inputs = export_onnx(bundle, out)
        size = out.stat().st_size
    if arguments.json:
        print_json({"onnx": arguments.out, "bundle": address_of(bundle.path), "inputs": inputs})
        return EXIT_OK
    print_text(f"from {address_of(bundle.path)}\n")
    print_table(("input", "holds"), list(inputs.items()))
    rows = count(len(bundle.warmup.rows), "stored row")
    print_text(
        f"\n{arguments.out}: {size / 1e6:.1f} MB; scores of {rows} within {TOLERANCE:g} of the "
        "bundle's"
    )
    print_next("score", shown_path(bundle.path), "ROWS", note="the scores to compare with")
    return EXIT_OK


def _check_free(out: str | os.PathLike[str], *, overwrite: bool) -> None:
    if Path(out).exists() and not overwrite:
        raise BundleError(f"{out}: already exists; choose another, or replace it with --force")


def export_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    posterior: str | None = None,
    items: str | None = None,
    tables: TableKind | None = None,
    overwrite: bool = False,
) -> tuple[Bundle, Path]:
    """Write a run's best (or newest) checkpoint, or any checkpoint, as a bundle."""
    _check_free(out, overwrite=overwrite)
    from widedeep.cli.run_training import make_trainer

    folder = find_checkpoint(path)
    checkpoint = read_checkpoint(folder)
    config = config_from_tables(checkpoint.state["config"], origin=str(folder))
    # What a GPU trained is exported anywhere.
    here = dataclasses.replace(config, train=dataclasses.replace(config.train, device="cpu"))
    try:
        trainer = make_trainer(checkpoint.schema, here, progress=False, restored=True)
    except ConfigError as error:
        raise CheckpointError(
            f"{folder}: its trainer cannot be made from its configuration ({error}); export it "
            "where it was made: trainer.export(...)"
        ) from error
    described = {f"module/{name}" for name in trainer.model.dense_state()}
    unknown = {n for n in checkpoint.tensors if n.startswith("module/")} - described
    if unknown:
        raise CheckpointError(
            f"{folder}: holds {sorted(unknown)[0]!r}, part of a tower that the configuration does "
            "not describe; export it where it was made: trainer.export(...)"
        )
    trainer.load_checkpoint(folder)
    trainer.state.config = dataclasses.replace(trainer.config, device=config.train.device)
    trainer.show_progress = True  # what export has to say
    rows: object | None = posterior
    if rows is None and config.train.posterior:
        rows = training_data(config)[0]
    item_rows = here.data.items if items is None else items
    bundle = trainer.export(
        out, posterior=rows, items=item_rows, tables=tables, overwrite=overwrite
    )
    return bundle, folder
