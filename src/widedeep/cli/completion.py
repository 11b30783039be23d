"""`widedeep --install-completion`: let the shell complete verbs, options and files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import shtab

from widedeep.cli.output import print_text
from widedeep.cli.parser import EXIT_OK
from widedeep.errors import ConfigError
from widedeep.files import write_text_whole

SHELLS = ("bash", "zsh", "fish")


class InstallCompletion(argparse.Action):
    """Writes the script where the shell looks for it, says so, and ends."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, whole_parser: Callable[[], Any]
    ) -> None:
        super().__init__(
            option_strings, dest, nargs="?", choices=SHELLS, metavar="SHELL",
            help="let the shell complete verbs, options and files: bash, zsh or fish (default: "
            "that of $SHELL)",
        )  # fmt: skip
        self.whole_parser = whole_parser  # All verbs with their options

    def __call__(
        self, parser: argparse.ArgumentParser, _: object, value: Any, __: Any = None
    ) -> None:
        """Install for one shell."""
        shell = value or Path(os.environ.get("SHELL", "")).name
        if shell not in SHELLS:
            raise ConfigError(
                f"got the shell {shell!r} of $SHELL, expected one of {', '.join(SHELLS)}; name it: "
                "widedeep --install-completion bash"
            )
        path = script_path(shell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, script(shell, self.whole_parser()))
        print_text(f"wrote {path}; {_HOW[shell].format(folder=path.parent)}")
        parser.exit(EXIT_OK)


_HOW = {
    "bash": "new shells load it where the package bash-completion is installed; else: "
    "echo 'source {folder}/widedeep' >> ~/.bashrc",
    "zsh": "in ~/.zshrc, before compinit: fpath=({folder} $fpath)",
    "fish": "new shells load it",
}


def script_path(shell: str) -> Path:
    """Return where a user's scripts of a shell lie."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / "widedeep",
        "zsh": data / "zsh" / "site-functions" / "_widedeep",
        "fish": config / "fish" / "completions" / "widedeep.fish",
    }[shell]


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script; values that are no choice are completed as files."""
    _complete_files(parser)
    text: str = shtab.complete(parser, shell=shell)
    return text


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for of_verb in action.choices.values():
                _complete_files(of_verb)
        elif action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
