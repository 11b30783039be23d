"""The verb simulate: logs of a store whose truth is known."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from widedeep.cli_output import number, print_json, print_next, print_table, print_text, say
from widedeep.cli_parser import GOOD, Verbs, add_verb, positive, real, share, whole

if TYPE_CHECKING:
    from widedeep.commands.simulate import Simulated
    from widedeep.simulate import StoreConfig


def add_verbs(verbs: Verbs) -> None:
    """Add the verb ``simulate``."""
    parser = add_verb(
        verbs,
        "simulate",
        _simulate,
        "write the logs of a simulated app store, ranked by a policy",
        "  widedeep simulate week1                        # by popularity: there is no model yet\n"
        "  widedeep join week1/join.toml && widedeep train week1/app_store.toml\n"
        "  widedeep simulate week2 --resume week1 --policy old=popularity "
        "--policy new=runs/app_store/bundle",
        then="widedeep join week1/join.toml",
    )
    parser.add_argument("folder", metavar="FOLDER", help="where the logs go")
    parser.add_argument("--days", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="[ARM=]POLICY",
        help="who ranks: popularity (default), random, oracle, the folder of a bundle, or the URL "
        "of a server; several share the users in equal parts",
    )
    parser.add_argument(
        "--explore", type=share, default=0.0, metavar="SHARE", help="of requests, in random order"
    )
    parser.add_argument(
        "--resume", metavar="FOLDER", help="an earlier stretch, whose store lives on"
    )
    parser.add_argument(
        "--catalogue", metavar="FILE", help="the apps' file that the server reads: kept up to date"
    )
    _add_store(parser)


def _add_store(parser: argparse.ArgumentParser) -> None:
    store = parser.add_argument_group("a new store")
    for name, kind, told in (
        ("seed", whole, "of everything"),
        ("users", positive, "at the start"),
        ("apps", positive, "at the start"),
        ("requests", positive, "a day"),
        ("memorisation", real, "strength of particular pairs of apps; 0: none"),
        ("generalisation", real, "strength of general tastes; 0: none"),
        ("drift", real, "of tastes, a day"),
    ):
        store.add_argument(f"--{name}", type=kind, metavar="X" if kind is real else "N", help=told)


def _simulate(arguments: argparse.Namespace) -> int:
    from widedeep.commands.simulate import arms_policy, simulate_store

    found = simulate_store(
        Path(arguments.folder),
        arms_policy(
            arguments.policy or ["popularity"],
            explore=arguments.explore,
            catalogue=None if arguments.catalogue is None else Path(arguments.catalogue),
        ),
        config=_store(arguments),
        resume=None if arguments.resume is None else Path(arguments.resume),
        days=arguments.days,
        on_day=lambda done: say(f"day {done} of {arguments.days}"),
    )
    if arguments.json:
        print_json({**dataclasses.asdict(found), "folder": str(found.folder)})
    else:
        _print(found)
    return GOOD


def _store(arguments: argparse.Namespace) -> StoreConfig:
    from widedeep.errors import ConfigError
    from widedeep.simulate import StoreConfig as Store

    names = ("seed", "users", "apps", "memorisation", "generalisation", "drift")
    given = {name: getattr(arguments, name) for name in names}
    given["requests_per_day"] = arguments.requests
    given = {name: value for name, value in given.items() if value is not None}
    if given and arguments.resume is not None:
        words = ", ".join(f"--{name.partition('_')[0]}" for name in given)
        raise ConfigError(f"got {words} with --resume: the store there has been made; leave it out")
    return Store(**given)


def _print(found: Simulated) -> None:
    rows = [
        [
            arm,
            f"{int(figures['requests']):,}",
            number(figures["installs_a_request"]),
            f"{figures['of_the_best']:.1%}",
        ]
        for arm, figures in found.arms.items()
    ]
    headings = ["arm", "requests", "installs a request", "of the best policy's"]
    print_table(headings, rows, right=headings[1:])
    rate = found.installs / max(1, found.impressions)
    print_text(
        f"\n{found.impressions:,} impressions, {found.installs:,} installs ({rate:.2%}) in "
        f"{found.days} days; ten apps hold {found.top_share:.0%} of the installs"
    )
    print_text(
        f"wrote {found.folder}; once joined, 'widedeep train' takes its own declaration too, "
        f"{found.folder / 'app_store.toml'}"
    )
    print_next("join", found.folder / "join.toml")
