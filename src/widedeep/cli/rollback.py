"""The verb `rollback`: the version before, in one command."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from widedeep.bundle.manifest import MANIFEST
from widedeep.cli.output import print_json, print_next, print_text, say
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser
from widedeep.remote import is_url, local_path
from widedeep.serving.loading import PrivateCopies, default_cache
from widedeep.serving.remote_models import RemoteModels
from widedeep.serving.versions import (
    NoVersion,
    check_loads,
    find_versions,
    read_state,
    roll_back,
    state_path,
)

EXAMPLE = (
    "  widedeep rollback models            # the version before the serving one\n"
    "  widedeep rollback models --to 41\n\n"
    "Servers read the request from MODELS/serving.json every few seconds. The newer versions\n"
    "are withdrawn; a version that is published later is served again."
)
NEXT = "widedeep inspect models"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("models MODELS", "folder of versions that is served, or its URL")
    parser.option("--to VERSION", "version to serve (default: the one before the serving one)")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    remote = RemoteModels(arguments.models) if is_url(arguments.models) else None
    root = Path(local_path(arguments.models)) if remote is None else remote.root
    if remote is not None:
        remote.refresh()

    # A half-copied folder serves nowhere: the version before the serving one is not before it.
    folders = {} if remote is not None else find_versions(root)
    incomplete = [name for name, path in folders.items() if not (path / MANIFEST).is_file()]

    def check(version: str) -> None:
        if remote is not None:
            remote.fetch(version)
        check_loads(root, version, PrivateCopies(default_cache()))

    try:
        with nullcontext() if remote is None else remote.changing_state():
            target = roll_back(root, to=arguments.to, failed=incomplete, check=check)
    except NoVersion as error:
        say(f"widedeep: {str(error).replace(str(root), arguments.models)}")
        return EXIT_FAILED
    withdrawn = read_state(state_path(root)).withdrawn
    if arguments.json:
        print_json({"version": target, "withdrawn": list(withdrawn), "state": "requested"})
    else:
        print_text(
            f"{arguments.models}: version {target} is requested; servers that follow the directory "
            "take it at their next look (2 s, unless --poll says otherwise), and GET /v1/status "
            f"says which version serves; withdrawn: {', '.join(withdrawn)}"
        )
        print_next("inspect", arguments.models)
    return EXIT_OK
