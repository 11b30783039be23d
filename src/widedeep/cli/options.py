"""Options of the command line from the fields of configuration dataclasses."""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from widedeep.cli.parser import Parser, real, whole, with_default
from widedeep.options import field_help

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
    texts = {**_described(kind), **field_help(kind)}
    for name, words in flags.items():
        flag, _, metavar = words.partition(" ")
        hint, default = _without_none(hints[name]), getattr(config, name)
        if hint is bool:
            text = f"do not {texts[name]}" if default else texts[name]
            parser.add_argument(flag, action="store_const", const=not default, help=text)
            continue
        reader: Any = (readers or {}).get(name, _READERS.get(hint))
        parser.add_argument(
            flag,
            action="append" if default == () else "store",
            type=reader,
            choices=typing.get_args(hint) if typing.get_origin(hint) is Literal else None,
            metavar=metavar or None,
            help=with_default(texts[name], default).replace("%", "%%"),
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


def _described(kind: type) -> dict[str, str]:
    """The first sentence on each field under the docstring's ``Args``, as a phrase."""
    _, _, args = (inspect.getdoc(kind) or "").partition("Args:\n")
    texts = {}
    for name, text in _ENTRY.findall(args):
        sentence = re.split(r"(?<=[\w)])[.;] ", " ".join(text.split()))[0].removesuffix(".")
        sentence = sentence.replace("``", "")
        acronym = sentence[1:2].isupper()
        texts[name] = sentence if acronym else sentence[:1].lower() + sentence[1:]
    return texts
