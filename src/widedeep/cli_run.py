"""The verbs of a run: init, check, join, prepare, train."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from widedeep.cli_join import add_verb_join, check_document, print_check
from widedeep.cli_output import (
    count,
    free_path,
    number,
    print_json,
    print_metrics,
    print_next,
    print_table,
    print_text,
    say,
)
from widedeep.cli_parser import (
    GOOD,
    INTERRUPTED,
    NO,
    Verbs,
    add_set,
    add_verb,
    period,
    positive,
    real,
    seconds,
)
from widedeep.config import load_config
from widedeep.errors import ConfigError

if TYPE_CHECKING:
    from widedeep.commands.check import CheckReport
    from widedeep.commands.follow import Followed
    from widedeep.commands.run_directory import RunDirectory
    from widedeep.commands.train import TrainedRun, WarmFrom
    from widedeep.training.config import FollowConfig, RunConfig


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of a run."""
    for add in (_add_init, _add_check, add_verb_join, _add_prepare, _add_train):
        add(verbs)


# ---- init ---------------------------------------------------------------------------------------


def _add_init(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "init",
        _init,
        "write a first configuration from a table's columns",
        "  widedeep init train.parquet --label click -o ads.toml\n"
        "  widedeep check ads.toml\n\n"
        "Numbers become numeric features and bins, text, lists and integer keys categorical ones;\n"
        "columns that name rows, times and constants are left out; crosses that gain on held rows\n"
        "are suggested. Each line says what it was guessed from: read it through.",
        then="widedeep check ads.toml",
    )
    parser.add_argument("data", metavar="DATA", help="training data: Parquet, CSV, or a glob")
    parser.add_argument("--label", metavar="NAME", help="the label's column (guessed if plain)")
    parser.add_argument("-o", "--out", default="run.toml", metavar="FILE", help="default: run.toml")
    parser.add_argument("--force", action="store_true", help="replace FILE")


def _init(arguments: argparse.Namespace) -> int:
    from widedeep.commands.init_config import write_config

    inferred = write_config(
        arguments.data, arguments.out, label=arguments.label, overwrite=arguments.force
    )
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
        return GOOD
    rows = [[c.name, c.role, c.describe()] for c in inferred.columns]
    rows += [[" x ".join(c.columns), "cross", c.reason] for c in inferred.crosses]
    print_table(["column", "taken for", "because it holds"], rows)
    for warning in inferred.warnings:
        print_text(f"look at {warning}")
    print_text(f"\nwrote {arguments.out}; read it through")
    print_next("check", arguments.out)
    return GOOD


# ---- check --------------------------------------------------------------------------------------


def _add_check(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "check",
        _check,
        "check a configuration against a sample of its data; nothing is trained or written",
        "  widedeep check ads.toml\n"
        "  widedeep check ads.toml --set data.train=other.parquet --rows 100000\n"
        "  widedeep check join.toml       # of a join: a sample of its users is joined\n\n"
        "Ends with 1 if training, or the join, could not succeed.",
        then="widedeep train ads.toml",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="the configuration")
    parser.add_argument(
        "--rows",
        type=positive,
        default=50_000,
        help="rows to look at in each file, or impressions to join (default: 50,000)",
    )
    add_set(parser)


def _check(arguments: argparse.Namespace) -> int:
    from widedeep.commands.check import check_run
    from widedeep.commands.check_join import is_join_file

    if is_join_file(arguments.config):
        return _check_join(arguments)
    report = check_run(arguments.config, arguments.set, rows=arguments.rows)
    if arguments.json:
        print_json(_check_document(report))
    else:
        _print_check(report)
        if report.problems:
            print_text(f"\n{count(len(report.problems), 'problem')}; training would fail")
        else:
            print_text("\nno problems found")
            print_next(*_train_command(arguments))
    return NO if report.problems else GOOD


def _check_join(arguments: argparse.Namespace) -> int:
    from widedeep.commands.check_join import check_join

    found = check_join(arguments.config, arguments.set, rows=arguments.rows)
    if arguments.json:
        print_json(check_document(found))
    else:
        print_check(found, arguments.config, arguments.set)
    return NO if found.problems else GOOD


def _check_document(report: CheckReport) -> dict[str, Any]:
    inputs = {
        found.role: {
            "data": found.place,
            "rows": found.rows,
            "sampled": found.sampled,
            "columns": {
                c.name: {"type": str(c.arrow_type), "distinct": c.distinct, "missing": c.missing}
                for c in found.columns
            },
        }
        for found in report.inputs
    }
    return {
        "ok": not report.problems,
        "problems": report.problems,
        "notes": report.notes,
        "labels": report.labels,
        "inputs": inputs,
    }


def _train_command(arguments: argparse.Namespace) -> list[str]:
    """The words that train what was checked or prepared, into a folder that is free."""
    from widedeep.commands.run_directory import RunDirectory

    words = ["train", arguments.config, *_set_words(arguments.set)]
    named = getattr(arguments, "out", None)
    run = RunDirectory.of_config(arguments.config, named)
    if run.state == "unfinished":
        return [*words, *(["--out", named] if named else []), "--resume"]
    if run.state == "finished":
        return [*words, "--out", str(free_path(run.path))]
    return [*words, *(["--out", named] if named else [])]


def _set_words(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _print_check(report: CheckReport) -> None:
    for found in report.inputs:
        rows = f"{found.rows:,} rows" if found.rows is not None else "not counted"
        print_text(f"{found.role}: {found.place} ({rows}, {found.sampled:,} sampled)")
        if found.role == "train":
            cells = [[c.name, str(c.arrow_type), c.describe()] for c in found.columns]
            print_table(["column", "type", "holds"], cells)
            print_text()
    for label, values in report.labels.items():
        print_text(f"label {label}: {values}")
    if report.schema is not None:
        whole = report.inputs[0].rows == report.inputs[0].sampled
        print_text("" if whole else "\nOf the sample alone:")
        print_text(repr(report.schema))
    if report.notes or report.problems:
        print_text()
    for note in report.notes:
        print_text(f"note: {note}")
    for problem in report.problems:
        print_text(f"problem: {problem}")


# ---- prepare ------------------------------------------------------------------------------------


def _add_prepare(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "prepare",
        _prepare,
        "fit the schema (vocabularies, quantiles) on the training data and keep it",
        "  widedeep prepare ads.toml\n"
        "  widedeep prepare ads.toml --encode\n"
        "  widedeep train ads.toml         # takes the schema that is there\n\n"
        "'train' does this by itself; prepare shows the schema before hours of training. Encoded\n"
        "rows spare every epoch, and every run on the same rows, the reading of raw ones.",
        then="widedeep train ads.toml",
    )
    parser.add_argument("config", metavar="RUN.toml", help="the configuration")
    parser.add_argument("-o", "--out", metavar="DIR", help="default: runs/RUN")
    parser.add_argument(
        "--encode", action="store_true", help="keep the encoded training rows too, in encoded/"
    )
    add_set(parser)


def _prepare(arguments: argparse.Namespace) -> int:
    from widedeep.commands.run_directory import RunDirectory
    from widedeep.commands.train import encode_rows, prepare_schema

    config = load_config(arguments.config, arguments.set)
    directory = RunDirectory.of_config(arguments.config, arguments.out)
    directory.check_free()
    schema = prepare_schema(config, directory, progress=True)
    encoded: dict[str, Any] = {}
    if arguments.encode:
        rows, new = encode_rows(config, directory, schema)
        encoded = {"encoded": {"path": rows.path, "bytes": rows.nbytes, "new": new}}
        told = "wrote" if new else "found, as they should be:"
        say(f"{told} the encoded rows {rows.path} ({rows.nbytes >> 20:,} MiB)")
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
        print_next(*_train_command(arguments))
    return GOOD


def _feature_sizes(schema: Any) -> Mapping[str, int]:
    return {feature.name: schema.id_count(feature.name) for feature in schema.spec.all_features}


# ---- train --------------------------------------------------------------------------------------


def _add_train(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "train",
        _train,
        "fit the schema, train, evaluate and export a bundle",
        "  widedeep train ads.toml --set train.epochs=3 --set train.wide.lr=0.05\n"
        "  widedeep train ads.toml --resume     # after Ctrl-C, a crash, or for more epochs\n"
        "  widedeep train today.toml --warm-start runs/yesterday\n"
        "  widedeep train ads.toml --follow examples/ --publish models --export-rows 1000000\n\n"
        "The run's folder holds config.toml, schema.safetensors, checkpoints/, history.json,\n"
        "metrics.json and bundle/.",
        then="widedeep evaluate runs/ads",
    )
    parser.add_argument("config", metavar="RUN.toml", help="the configuration")
    parser.add_argument("--out", metavar="RUN_DIR", help="the run's folder; default: runs/RUN")
    going_on = parser.add_mutually_exclusive_group()
    going_on.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    going_on.add_argument("--force", action="store_true", help="replace the run that is there")
    parser.add_argument(
        "--warm-start", metavar="MODEL", help="start from a run, a checkpoint or a bundle"
    )
    parser.add_argument(
        "--carry",
        action="append",
        metavar="PATTERN",
        help="tensors to take over, such as 'wide/*'; may be repeated (default: all)",
    )
    parser.add_argument(
        "--project", action="store_true", help="project embeddings to another width"
    )
    _add_following(parser)
    add_set(parser)


def _add_following(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow", metavar="DIR", help="then learn the folder's Parquet files as they land"
    )
    parser.add_argument(
        "--poll", type=period, default=1.0, metavar="S", help="look every S seconds (default: 1)"
    )
    parser.add_argument(
        "--idle", type=seconds, metavar="S", help="end after S seconds without a new file"
    )
    parser.add_argument(
        "--export-rows", type=positive, metavar="N", help="write a bundle every N rows"
    )
    parser.add_argument(
        "--export-minutes", type=real, metavar="M", help="write a bundle every M minutes"
    )
    parser.add_argument(
        "--publish",
        metavar="MODELS",
        help="judge each such bundle on the newest shards, and publish what passes the gate there",
    )
    parser.add_argument(
        "--judge-rows", type=positive, metavar="N", help="rows to judge on (default: 10,000)"
    )


def _follow(
    arguments: argparse.Namespace, config: RunConfig, directory: RunDirectory, follow: FollowConfig
) -> Followed | None:
    from widedeep.commands.follow import follow_run
    from widedeep.gate.config import load_gate_config

    if arguments.follow is None:
        return None
    of_gate = [text for text in arguments.set if text.strip().startswith("gate.")]
    return follow_run(
        config,
        directory,
        arguments.follow,
        follow=follow,
        gate=load_gate_config(arguments.config, of_gate),
        poll_s=arguments.poll,
        idle_s=arguments.idle,
    )


_FOLLOWING = ("publish", "export_rows", "export_minutes", "judge_rows")


def _follow_config(arguments: argparse.Namespace) -> FollowConfig:
    """Read before the training, so that a mistake is told before it."""
    from widedeep.config import load_follow_config

    options = {name: getattr(arguments, name) for name in _FOLLOWING}
    if arguments.follow is None:
        for name, value in {**options, "idle": arguments.idle}.items():
            if value is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"got {option} without a folder to follow; add --follow DIR")
    return load_follow_config(arguments.config, arguments.set, options=options)


def _warm_from(arguments: argparse.Namespace) -> WarmFrom | None:
    from widedeep.commands.train import WarmFrom

    if arguments.warm_start is None:
        if arguments.carry or arguments.project:
            raise ConfigError("--carry and --project say how to start warm; add --warm-start MODEL")
        return None
    return WarmFrom(
        path=arguments.warm_start,
        carry=tuple(arguments.carry or ("*",)),
        widths="project" if arguments.project else "fresh",
    )


def _train(arguments: argparse.Namespace) -> int:
    from widedeep.commands.run_directory import RunDirectory
    from widedeep.commands.train import train_run

    config = load_config(arguments.config, arguments.set)
    directory = RunDirectory.of_config(arguments.config, arguments.out)
    warm = _warm_from(arguments)
    follow = _follow_config(arguments)
    run, followed = None, None
    try:
        if not (arguments.follow and arguments.resume and directory.state == "finished"):
            run = train_run(
                config, directory, resume=arguments.resume, force=arguments.force, warm=warm
            )
        followed = _follow(arguments, config, directory, follow)
        if run is not None and followed is not None:
            run = dataclasses.replace(run, metrics=followed.metrics)
    except KeyboardInterrupt:
        if directory.state != "new":
            say(f"widedeep: interrupted; go on with: {_resume_command(arguments)}")
        else:
            say("widedeep: interrupted before the first step; nothing to resume")
        return INTERRUPTED
    if arguments.json:
        print_json(_train_document(directory, run, followed))
        return GOOD
    if followed is not None:
        _print_followed(followed, directory, follow)
    if run is not None:
        _print_run(run, directory)
    elif followed is not None and followed.metrics:
        print_metrics(followed.metrics)
    data = config.data
    can_judge = data.test is not None or data.valid is not None or data.valid_fraction > 0
    print_next("evaluate" if can_judge else "inspect", directory.path)
    return GOOD


def _print_followed(followed: Followed, directory: RunDirectory, follow: FollowConfig) -> None:
    told = count(len(followed.shards), "shard")
    print_text(f"\nlearned {told}; bundle: {directory.bundle}")
    if follow.publish is not None:
        published = sum(attempt.version is not None for attempt in followed.attempts)
        of = count(len(followed.attempts), "candidate")
        print_text(f"published {published} of {of} in {follow.publish}")


def _train_document(
    directory: RunDirectory, run: TrainedRun | None, followed: Followed | None
) -> dict[str, Any]:
    document: dict[str, Any] = {"run": directory.path, "bundle": directory.bundle}
    if run is not None:
        document |= {
            "steps": run.steps,
            "rows": run.rows,
            "seconds": run.seconds,
            "metrics": run.metrics,
            "history": run.history,
            "warm_start": None if run.warm is None else run.warm.to_json(),
        }
    if followed is not None:
        attempts = [dataclasses.asdict(attempt) for attempt in followed.attempts]
        document |= {"shards": followed.shards, "attempts": attempts}
        document["metrics"] = followed.metrics  # of the bundle, not of the model before the stream
    return document


def _print_run(run: TrainedRun, directory: RunDirectory) -> None:
    if run.metrics:
        print_metrics(run.metrics)
    told = f"{run.steps:,} steps, {run.rows:,} rows, {number(run.seconds)} s"
    print_text(f"\nrun: {directory.path} ({told})\nbundle: {directory.bundle}")


def _resume_command(arguments: argparse.Namespace) -> str:
    """The command that goes on: all that was typed, but for ``--force``."""
    options = [("set", text) for text in arguments.set]
    options += [("carry", pattern) for pattern in arguments.carry or ()]
    names = ("out", "warm_start", "follow", "idle", *_FOLLOWING)
    options += [(name, getattr(arguments, name)) for name in names]
    if arguments.follow is not None:
        options.append(("poll", arguments.poll))
    words = ["widedeep", "train", arguments.config, "--resume"]
    words += ["--project"] if arguments.project else []
    words += ["--json"] if arguments.json else []
    for name, value in options:
        if value is not None:
            option, text = f"--{name.replace('_', '-')}", str(value)
            # A value that begins with a dash would be taken for an option.
            words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return shlex.join(words)
