"""The verb `train`: from a configuration to a bundle."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any, get_args

from widedeep.cli.options import add_fields, field_values
from widedeep.cli.output import (
    count,
    number,
    print_json,
    print_metrics,
    print_next,
    print_text,
    say,
)
from widedeep.cli.parser import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    VerbParser,
    period,
    resume_command,
    seconds,
    threads,
    typed_options,
    without_option,
)
from widedeep.cli.remote_runs import run_folder
from widedeep.cli.runs import RunDirectory, model_to_start_from, pin_tables
from widedeep.config import load_config, load_follow_config
from widedeep.data.paths import check_followed
from widedeep.data.topics import SCHEME
from widedeep.errors import ConfigError
from widedeep.gate.config import load_gate_config
from widedeep.ranks.launch import launch, launched_rank, launched_size
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.remote import is_url
from widedeep.training.config import FollowConfig, Quality, RunConfig, WarmStartConfig

if TYPE_CHECKING:
    from widedeep.cli.run_training import Followed, TrainedRun

EXAMPLE = (
    "  widedeep train ads.toml --set train.epochs=3 --set train.wide.lr=0.05\n"
    "  widedeep train ads.toml --resume     # after Ctrl-C, a crash, or for more epochs\n"
    "  widedeep train ads.toml --quality best\n"
    "  widedeep train today.toml --warm-start runs/yesterday\n"
    "  widedeep train ads.toml --follow examples/ --publish models --export-rows 1000000\n\n"
    "The run folder holds config.toml, schema.safetensors, checkpoints/, history.json,\n"
    "metrics.json and bundle/."
)
NEXT = "widedeep evaluate runs/ads"

_FOLLOW = {
    "publish": "--publish MODELS",
    "export_rows": "--export-rows N",
    "export_minutes": "--export-minutes M",
    "judge_rows": "--judge-rows N",
    "full_every": "--full-every N",
    "grow": "--grow",
    "evict_after": "--evict-after N",
}


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("config RUN.toml", "configuration of the run")
    parser.option("--out RUN_DIR", "folder of the run, or its URL (default: runs/RUN)")
    going_on = parser.add_mutually_exclusive_group()
    parser.option("--resume", "continue from the last checkpoint", group=going_on)
    parser.option("--force", "replace an existing run", group=going_on)
    parser.option(
        "--quality",
        "how much time to spend: fast, good, or best: an averaged ensemble in one bundle (default: "
        "that of [train], good)",
        choices=get_args(Quality),
    )
    parser.option(
        "--warm-start MODEL",
        "start from the parameters of a run, a checkpoint or a bundle, or of its URL",
    )
    parser.option(
        "--carry PATTERN",
        "tensors to transfer, such as 'wide/*'; may be repeated (default: all)",
        action="append",
    )
    parser.option("--project", "project embeddings of another width")
    _add_following(parser)
    parser.option(
        "--ranks N",
        "train by N processes of this machine (torchrun launches those of several)",
        type=threads,
    )
    parser.set_option()


def _add_following(parser: VerbParser) -> None:
    parser.option(
        "--follow DIR",
        "then train on the Parquet files that arrive in DIR, or on the messages of "
        "kafka://HOST:PORT/TOPIC",
    )
    parser.option("--poll S", "seconds between looks at DIR", type=period, default=1.0)
    parser.option(
        "--idle S", "stop after S seconds without a new file (default: never)", type=seconds
    )
    add_fields(parser, FollowConfig(), _FOLLOW)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if arguments.ranks is not None and arguments.ranks > 1:
        config = _load_config(arguments)  # whose mistakes each rank would tell
        Ranks(size=arguments.ranks, lanes=config.distributed.lanes)
        return launch(arguments.ranks, without_option(arguments.words, "--ranks"))
    ranks = ranks_of(_load_config(arguments).distributed)
    resume, force = arguments.resume, arguments.force
    with (
        run_folder(arguments.out, ranks, resume=resume, force=force) as folder,
        RunDirectory.of_config(arguments.config, folder) as directory,
    ):
        return _train(arguments, ranks, directory)


def _train(arguments: argparse.Namespace, ranks: Ranks, directory: RunDirectory) -> int:
    from widedeep.cli.run_training import train_run

    config = pin_tables(_load_config(arguments), ranks)
    warm = _warm_from(arguments)
    follow = _follow_config(arguments)
    run, followed = None, None
    try:
        if not (arguments.follow and arguments.resume and directory.state == "finished"):
            run = train_run(
                config,
                directory,
                resume=arguments.resume,
                force=arguments.force,
                warm=warm,
                grows=follow.grow,
            )
        if arguments.follow and ranks.is_first:
            directory.hold()
        followed = _follow(arguments, config, directory, follow)
        if run is not None and followed is not None:
            run = dataclasses.replace(run, metrics=followed.metrics)
    except KeyboardInterrupt:
        if directory.state != "new":
            say(f"widedeep: interrupted; go on with: {resume_command(arguments)}")
        else:
            say("widedeep: interrupted before the first step; nothing to resume")
        return EXIT_INTERRUPTED
    if arguments.json:
        print_json(_train_document(directory, run, followed))
        return EXIT_OK
    if followed is not None:
        _print_followed(followed, _shown(arguments, directory), follow)
    if run is not None:
        _print_run(run, _shown(arguments, directory))
    elif followed is not None and followed.metrics:
        print_metrics(followed.metrics)
    data = config.data
    can_judge = data.test is not None or data.valid is not None or data.valid_fraction > 0
    print_next("evaluate" if can_judge else "inspect", _shown(arguments, directory))
    return EXIT_OK


def _load_config(arguments: argparse.Namespace) -> RunConfig:
    of_quality = [f'train.quality="{arguments.quality}"'] if arguments.quality else []
    return load_config(arguments.config, [*arguments.set, *of_quality])


def _follow(
    arguments: argparse.Namespace, config: RunConfig, directory: RunDirectory, follow: FollowConfig
) -> Followed | None:
    if arguments.follow is None:
        return None
    of_gate = [text for text in arguments.set if text.strip().startswith("gate.")]
    from widedeep.cli.run_training import follow_run

    return follow_run(
        config,
        directory,
        arguments.follow,
        follow=follow,
        gate=load_gate_config(arguments.config, of_gate),
        poll_s=arguments.poll,
        idle_s=arguments.idle,
    )


def _follow_config(arguments: argparse.Namespace) -> FollowConfig:
    """Read the options of following, before training starts."""
    names = [flag.split()[0] for flag in _FOLLOW.values()]
    options = typed_options(arguments, *names, "--idle")
    if options and arguments.follow is None:
        raise ConfigError(f"got {options[0]} without a folder to follow; add --follow DIR")
    is_folder = arguments.follow is not None and not arguments.follow.startswith(SCHEME)
    if is_folder and launched_rank() == 0:  # it alone looks there
        check_followed(arguments.follow)
    values = field_values(arguments, _FOLLOW)
    return load_follow_config(arguments.config, arguments.set, options=values)


def _shown(arguments: argparse.Namespace, directory: RunDirectory) -> str:
    """Return the run's folder as the caller knows it."""
    is_behind_url = arguments.out is not None and is_url(arguments.out)
    return str(arguments.out if is_behind_url else directory.path)


def _warm_from(arguments: argparse.Namespace) -> WarmStartConfig | None:
    if arguments.warm_start is None:
        if arguments.carry or arguments.project:
            raise ConfigError(
                "got --carry or --project without a model to start from; add --warm-start MODEL"
            )
        return None
    return WarmStartConfig(
        path=str(model_to_start_from(arguments.warm_start)),
        transfer=tuple(arguments.carry or ("*",)),
        widths="project" if arguments.project else "fresh",
    )


def _print_followed(followed: Followed, folder: str, follow: FollowConfig) -> None:
    shards = count(len(followed.shards), "shard")
    print_text(f"\nlearned {shards}; bundle: {folder}/bundle")
    if follow.publish is not None:
        published = sum(candidate.version is not None for candidate in followed.candidates)
        of = count(len(followed.candidates), "candidate")
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
            "ranks": launched_size(),
            "sent_bytes_per_example": run.sent_bytes,
            "warm_start": None if run.warm is None else run.warm.to_json(),
        }
    if followed is not None:
        candidates = [dataclasses.asdict(candidate) for candidate in followed.candidates]
        document |= {"shards": followed.shards, "attempts": candidates}
        document["metrics"] = followed.metrics  # of the bundle, not of the model before the stream
    return document


def _print_run(run: TrainedRun, folder: str) -> None:
    if run.metrics:
        print_metrics(run.metrics)
    summary = f"{run.steps:,} steps, {run.rows:,} rows, {number(run.seconds)} s"
    print_text(f"\nrun: {folder} ({summary})\nbundle: {folder}/bundle")
