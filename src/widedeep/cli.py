"""The command line: one verb for each step, from a table to scores."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from widedeep import __version__
from widedeep.cli_output import say
from widedeep.cli_parser import INTERRUPTED, MISUSE, VerbParser
from widedeep.errors import WideDeepError

__all__ = ["main"]

BROKEN_PIPE = 141
"""What a shell reports of a program that a closed pipe ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after ``widedeep``; None takes the process's own.

    Returns:
        0 good; 1 it ran, and the answer is no; 2 misuse; 130 after Ctrl-C.

    Example:
        >>> main(["--version"])
        widedeep 0.1.0
        0
    """
    try:
        arguments, unknown = _parser().parse_known_args(argv)
        if unknown:  # told by the verb's own parser, which knows its options
            arguments.parser.unknown(unknown)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: help, version, misuse
        return stop.code if isinstance(stop.code, int) else MISUSE
    except WideDeepError as error:
        return _failed(error, str(error))
    except BrokenPipeError:
        # Whoever read has enough; what is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        say("widedeep: interrupted")
        return INTERRUPTED
    except OSError as error:
        # A folder that may not be written, a full disk: the user's to put right, and not a bug.
        place = "" if error.filename is None else f"{error.filename}: "
        return _failed(error, f"{place}{error.strerror or error}; check the path and its disk")


def _failed(error: Exception, message: str) -> int:
    if os.environ.get("WIDEDEEP_DEBUG") == "1":
        traceback.print_exception(error)
    say(f"widedeep: error: {message}")
    return MISUSE


def _parser() -> argparse.ArgumentParser:
    from widedeep import (
        cli_bench,
        cli_bundle,
        cli_gate,
        cli_report,
        cli_rollback,
        cli_run,
        cli_serve,
        cli_simulate,
    )

    parser = VerbParser(
        prog="widedeep",
        description="Wide & Deep ranking: from a table of examples to a model that scores.",
        epilog="a first run:\n"
        "  widedeep init train.parquet --label click\n"
        "  widedeep train run.toml\n"
        "  widedeep score runs/run/bundle test.parquet -o scores.parquet\n\n"
        "'widedeep VERB --help' shows a verb's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"widedeep {__version__}")
    verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", required=True, parser_class=VerbParser
    )
    cli_run.add_verbs(verbs)
    cli_bundle.add_verbs(verbs)
    cli_gate.add_verbs(verbs)
    cli_report.add_verbs(verbs)
    cli_rollback.add_verbs(verbs)
    cli_serve.add_verbs(verbs)
    cli_simulate.add_verbs(verbs)
    cli_bench.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
