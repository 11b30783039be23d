"""Options of the command line from the fields of dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from widedeep.cli.options import add_fields, field_values
from widedeep.cli.parser import VerbParser, resume_command, share, typed_options
from widedeep.simulate import StoreConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration.

    Args:
        rows: Rows to read, at least 1; 0 reads
            none. A second sentence stays in the documentation.
        mode: How to read.
        loud: Say more.
    """

    rows: int = 10_000
    fraction: Annotated[float, "fraction, 100 % at most"] = 0.5
    mode: Literal["fast", "slow"] = "fast"
    path: Annotated[str | None, "a file"] = None
    loud: bool = False
    page: Annotated[bool, "serve a page"] = True
    names: Annotated[tuple[str, ...], "a name"] = ()


FLAGS = {
    "rows": "--rows N",
    "fraction": "--fraction F",
    "mode": "--mode",
    "path": "--file FILE",
    "loud": "--loud",
    "page": "--no-page",
    "names": "--name NAME",
}


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = VerbParser(prog="widedeep verb", allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--data", nargs="+", default=[])
    add_fields(parser, Config(rows=20_000), FLAGS, {"fraction": share})
    parser.set_defaults(parser=parser)
    return parser


def test_help_and_default_are_those_of_the_field(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    assert "--rows N rows to read, at least 1 (default: 20,000)" in text
    assert "--fraction F fraction, 100 % at most (default: 0.5)" in text
    assert "--mode {fast,slow} how to read (default: fast)" in text
    assert (
        "--file FILE a file --loud say more --no-page do not serve a page --name NAME a name"
        in text
    )
    assert "second sentence" not in text


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--rows", "3", "--fraction", "0"], {"rows": 3, "fraction": 0.0}),
        (["--mode", "slow", "--file", "x"], {"mode": "slow", "path": "x"}),
        (["--loud", "--no-page"], {"loud": True, "page": False}),
        (["--name", "a", "--name", "b"], {"names": ["a", "b"]}),
    ],
)
def test_values_of_typed_options(
    parser: argparse.ArgumentParser, words: list[str], values: dict[str, Any]
) -> None:
    assert field_values(parser.parse_args(["a.toml", *words]), FLAGS) == values


@pytest.mark.parametrize("words", [["--rows", "x"], ["--fraction", "1.1"], ["--mode", "medium"]])
def test_values_that_the_field_does_not_take(
    parser: argparse.ArgumentParser, words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["a.toml", *words])
    assert stop.value.code == 2


def test_every_field_of_a_public_configuration_has_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    add_fields(parser, StoreConfig(), {"seed": "--seed N", "drift": "--drift X"})
    text = " ".join(parser.format_help().split())
    assert "--seed N random seed (default: 0)" in text
    assert "new each day, 0 to 1 (default: 0.08)" in text


def test_typed_options_are_repeated(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--set", "a=1", "--set", "b=2", "--data", "x", "y z", "--file=-dash", "--loud"]
    arguments = parser.parse_args(["my a.toml", "--force", *words])
    assert typed_options(arguments, "--data", "--set") == words[:7]
    assert resume_command(arguments) == (
        "widedeep verb 'my a.toml' --resume --set a=1 --set b=2 --data x 'y z' --file=-dash --loud"
    )
    monkeypatch.setenv("WIDEDEEP_RANKS", "2")
    assert resume_command(arguments).endswith(" --ranks 2")
    assert typed_options(parser.parse_args(["a.toml"])) == []
