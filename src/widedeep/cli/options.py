"""Options of the command line from the fields of configuration dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from widedeep.cli.parser import real, whole

Parser = argparse.ArgumentParser | argparse._ArgumentGroup

_READERS: dict[Any, Callable[[str], object]] = {int: whole, float: real}
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)  # of a docstring's Args


def add_fields(
    parser: Parser,
    config: Any,
    flags: Mapping[str, str],
    readers: Mapping[str, Callable[[str], object]] | None = None,
) -> None:
    """Add an option for each field of a configuration that ``flags`` names.

    ``flags`` holds the option and its metavar by field: ``{"poll_s": "--poll S"}``. Help, type,
    choices and default are the field's; ``readers`` are for numbers of narrower bounds.
    """
    kind = type(config)
    hints = typing.get_type_hints(kind)
    texts = _described(kind)
    for entry in dataclasses.fields(kind):
        if entry.name not in flags:
            continue
        flag, _, metavar = flags[entry.name].partition(" ")
        hint, default = _without_none(hints[entry.name]), getattr(config, entry.name)
        text = entry.metadata.get("help") or texts[entry.name]
        if hint is bool:
            parser.add_argument(flag, action="store_const", const=not default, help=text)
            continue
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
        reader = (readers or {}).get(entry.name, _READERS.get(hint))
        parser.add_argument(
            flag,
            type=reader or str,
            choices=choices,
            metavar=metavar or None,
            help=_with_default(text, default).replace("%", "%%"),
        )


def field_values(arguments: argparse.Namespace, flags: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the fields whose options were typed."""
    options = {name: flag.split()[0].lstrip("-").replace("-", "_") for name, flag in flags.items()}
    values = {name: getattr(arguments, option) for name, option in options.items()}
    return {name: value for name, value in values.items() if value is not None}


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint


def _with_default(text: str, default: object) -> str:
    if default is None:
        return text
    if isinstance(default, int | float):
        return f"{text} (default: {default:,})".replace(".0)", ")")
    return f"{text} (default: {default})"


def _described(kind: type) -> dict[str, str]:
    """The first sentence on each field under the docstring's ``Args``, as a phrase."""
    _, _, args = (inspect.getdoc(kind) or "").partition("Args:\n")
    texts = {}
    for name, text in _ENTRY.findall(args):
        sentence = re.split(r"(?<=\w)[.;] ", " ".join(text.split()))[0].removesuffix(".")
        texts[name] = sentence[:1].lower() + sentence[1:]
    return texts
