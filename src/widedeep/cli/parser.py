"""Parsers of the verbs: errors, values of options, hints made from the typed command."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from widedeep.cli.output import say
from widedeep.errors import nearest
from widedeep.ranks.launch import LAUNCHED_HERE

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 70, 130

Parser: TypeAlias = argparse.ArgumentParser | argparse._ArgumentGroup
Verbs: TypeAlias = Any
"""Where verbs are added; argparse does not name the type."""

_CHOICE = re.compile(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)")


class VerbParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest verb or option."""

    def error(self, message: str) -> NoReturn:
        """Print the error as one line and exit with code 2."""
        match = _CHOICE.fullmatch(message)
        if match:
            what, got, listed = match.groups()
            choices = [name.strip().strip("'") for name in listed.split(",")]
            message = f"got {what} {got!r}; {nearest(got, choices)}"
        say(f"widedeep: error: {message} (see '{self.prog} --help')")
        raise SystemExit(EXIT_USAGE)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Report the arguments that are not understood, and exit with code 2."""
        got = words[0].partition("=")[0]
        if not got.startswith("-"):
            self.error(f"unexpected argument {got!r}")
        options = [name for action in self._actions for name in action.option_strings]
        self.error(f"got the unknown option {got!r}; {nearest(got, options)}")

    def option(
        self,
        words: str,
        text: str,
        *,
        default: Any = None,
        group: Parser | None = None,
        **settings: Any,
    ) -> None:
        """Add an option, ``"-o --out FILE"``, a flag, ``"--force"``, or an argument, ``"data D"``.

        ``text`` is its help, to which the default is added; it stands in ``group``, if that is
        given; ``settings`` are argparse's.
        """
        *names, last = words.split()
        help_text = with_default(text, default).replace("%", "%%")
        if not last.startswith("-"):
            settings["metavar"] = last
        else:
            names.append(last)
            if not settings.keys() & {"choices", "action"}:
                settings["action"], default = "store_true", False
        (group or self).add_argument(*names, help=help_text, default=default, **settings)

    def set_option(self, example: str = "train.epochs=3") -> None:
        """Add ``--set``, which overrides the configuration."""
        text = f"override a value of the configuration, such as --set {example}; may be repeated"
        self.option("--set SECTION.KEY=VALUE", text, action="append", default=[])


def add_verb(
    verbs: Verbs,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int] | None,
    *,
    example: str,
    following: str = "",
) -> VerbParser:
    """Add a verb and return its parser; ``--json`` goes with what runs, not with mere targets."""
    parser: VerbParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n{example}" + (f"\n\nnext: {following}" if following else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.option("--json", "print one JSON document")
        parser.set_defaults(run=run, parser=parser)
    return parser


def with_default(text: str, default: object) -> str:
    """Return the help of an option with its default, unless it tells one already."""
    if default in (None, (), [], "") or "(default" in text:
        return text
    if isinstance(default, int | float):
        return f"{text} (default: {default:,})".replace(".0)", ")")
    return f"{text} (default: {default})"


def typed_options(arguments: argparse.Namespace, *names: str) -> list[str]:
    """Return the options that were typed, as words; of ``names`` alone, if there are any."""
    words: list[str] = []
    for action in arguments.parser._actions:
        option = action.option_strings[-1] if action.option_strings else ""
        value = getattr(arguments, action.dest, None)
        if not option or (names and option not in names) or value in (None, action.default):
            continue
        if value is True:
            words.append(option)
        elif action.nargs == "+":
            words += [option, *(str(item) for item in value or ())]
        else:
            values: list[Any] = value if isinstance(value, list) else [value]
            for text in map(str, values):
                # A value that begins with a dash would be taken for an option.
                words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return words


def without_option(words: Sequence[str], option: str) -> list[str]:
    """Return the words of a command without an option and its value."""
    others: list[str] = []
    skips = False
    for word in words:
        if not skips and word != option and not word.startswith(f"{option}="):
            others.append(word)
        skips = word == option and not skips
    return others


def resume_command(arguments: argparse.Namespace) -> str:
    """Return the command that continues an interrupted one: as typed, with ``--resume``."""
    arguments.resume = arguments.force = False
    positional = [a.dest for a in arguments.parser._actions if not a.option_strings]
    words = [str(getattr(arguments, name)) for name in positional]
    ranks = os.environ.get(LAUNCHED_HERE)
    words += ["--resume", *typed_options(arguments), *(["--ranks", ranks] if ranks else [])]
    return shlex.join([*arguments.parser.prog.split(), *words])


def whole(text: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """Read an option's value that is an integer of ``least`` to ``most``."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        upper = "" if most == 2**63 - 1 and value < least else f", at most {most:,}"
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, expected an integer of at least {least}{upper}"
        )
    return value


def positive(text: str) -> int:
    """Read an option's value that is an integer of at least 1."""
    return whole(text, 1)


def threads(text: str) -> int:
    """Read a number of threads or processes."""
    return whole(text, 1, 1024)


def seconds(text: str) -> float:
    """Read a time that a process can wait for: at most about three years."""
    return real(text, 0.0, 1e8)


def period(text: str) -> float:
    """Read a time between looks at something, of at least 10 milliseconds."""
    return real(text, 0.01, 1e8)


def share(text: str) -> float:
    """Read a share of 0 to 1."""
    return real(text, 0.0, 1.0)


def real(text: str, least: float = 0.0, most: float = math.inf) -> float:
    """Read an option's value that is a finite number of ``least`` to ``most``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        upper = "" if most == math.inf else f", at most {most:g}"
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, expected a number of at least {least:g}{upper}"
        )
    return value
