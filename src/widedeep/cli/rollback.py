"""The verb `rollback`: the version before, in one command."""

from __future__ import annotations

import argparse
from pathlib import Path

from widedeep.cli.output import print_json, print_next, print_text, say
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK
from widedeep.errors import ConfigError
from widedeep.serving.loading import PrivateCopies, default_cache
from widedeep.serving.versions import NoVersion, check_loads, read_state, roll_back, state_path

EXAMPLE = (
    "  widedeep rollback models            # the version before the serving one\n"
    "  widedeep rollback models --to 41\n\n"
    "Servers read the request from MODELS/serving.json every few seconds. The newer versions\n"
    "are withdrawn; a version that is published later is served again."
)
NEXT = "widedeep inspect models"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("models", metavar="MODELS", help="folder of versions that is served")
    parser.add_argument(
        "--to", metavar="VERSION", help="version to serve (default: the one before the serving one)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if "://" in arguments.models:
        raise ConfigError(
            f"{arguments.models}: got a URL, expected the directory that the servers follow: what "
            "they are told is kept there; roll back in it, or publish the older bundle again "
            "(--force --reason TEXT)"
        )
    root = Path(arguments.models)

    def check(version: str) -> None:
        check_loads(root, version, PrivateCopies(default_cache()))

    try:
        target = roll_back(root, to=arguments.to, check=check)
    except NoVersion as error:
        say(f"widedeep: {error}")
        return EXIT_FAILED
    withdrawn = read_state(state_path(root)).withdrawn
    if arguments.json:
        print_json({"version": target, "withdrawn": list(withdrawn), "state": "requested"})
    else:
        print_text(
            f"{root}: version {target} is requested; servers that follow the directory take it at "
            "their next look (2 s, unless --poll says otherwise), and GET /v1/status says which "
            f"version serves; withdrawn: {', '.join(withdrawn)}"
        )
        print_next("inspect", root)
    return EXIT_OK
