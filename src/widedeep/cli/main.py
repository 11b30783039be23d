"""Entry point of the command line: the verbs, and the exit codes of errors."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import keyword
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from widedeep import traces
from widedeep._version import __version__
from widedeep.cli.completion import InstallCompletion
from widedeep.cli.output import say, show_error
from widedeep.cli.parser import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    VerbParser,
    add_verb,
)
from widedeep.errors import ConfigError, WideDeepError, missing_package, nearest
from widedeep.ranks.launch import TOLD_BESIDE, launched_rank, launched_size

VERBS = {
    "init": "write a first configuration from a table's columns",
    "check": "check a configuration against a sample of its data, without training or writing",
    "simulate": "simulate days of an app store, ranked by a policy, and write their logs",
    "join": "join impression and action logs into labelled examples",
    "prepare": "fit the schema (vocabularies, quantiles) on the training data and save it",
    "plan": "tell what training on several machines takes: memory, payload, rate",
    "train": "train a model: fit the schema, train, evaluate, export a bundle",
    "import": "carry an estimator of TensorFlow over: its scores, its optimizers' state",
    "tune": "search for the settings of a configuration that predict its validation data best",
    "evaluate": "measure a run's or a bundle's quality on labelled data",
    "export": "write a run's best checkpoint, or any checkpoint, as a bundle",
    "calibrate": "correct a bundle's probabilities in each value of some features",
    "validate": "test whether a model may serve: a dry run, quality against the serving model, "
    "drift",
    "publish": "publish a validated model as the newest version in a folder that servers follow",
    "rollback": "make all servers of a folder of versions return to an older version",
    "serve": "serve rankings and scores over HTTP",
    "score": "score the rows of a file or stream, in order",
    "inspect": "show a model's sizes and strongest wide weights, explain a row's score, or list "
    "versions",
    "report": "write a page about a model: quality, learning curves, calibration, slices, weights, "
    "inputs, sizes, versions",
    "replay": "rank a log's requests with two bundles: what would be ranked otherwise, and why",
    "debias": "learn how likely each place of a list is looked at, and weigh rows by it",
    "doctor": "tell what of widedeep works on this machine, and what is missing",
    "bench": "run a benchmark: the paper's table 1 on a simulated store, or a server under load",
}
"""The verbs in the order of the loop; ``widedeep.cli.VERB`` holds a verb's options and work."""

OVER_RANKS = ("prepare", "train", "evaluate")
"""The verbs whose work several ranks share."""

_VARIABLES = ("WIDEDEEP_DEBUG", "WIDEDEEP_KERNELS", "WIDEDEEP_ROWS_DIRECTORY")

EXIT_BROKEN_PIPE = 141
"""The exit code that shells give to a program that a closed pipe ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb."""
    try:
        with _printable(), _ended_like_interrupted():
            code = _run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return code
    except WideDeepError as error:
        return _failed(error, str(error))
    except BrokenPipeError:
        # Whoever read has enough.
        _drop_output()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        say("widedeep: interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        # A folder that may not be written, a full disk: the user's to put right, and not a bug.
        _drop_output()
        prefix = "" if error.filename is None else f"{error.filename}: "
        return _failed(error, f"{prefix}{error.strerror or error}; check the path and its disk")
    except MemoryError as error:
        return _failed(error, "out of memory; use fewer or narrower features, or smaller batches")
    except Exception as error:
        hint = missing_package(error) if isinstance(error, ImportError) else None
        return _bug(error) if hint is None else _failed(error, hint)


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: state is saved, and temporary files go.

    Also where Ctrl-C is ignored, as by what a script starts in the background.
    """

    def end(number: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(number, frame)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for ending in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(ending) is signal.SIG_DFL:
                before[ending] = signal.signal(ending, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(argv: Sequence[str]) -> int:
    """The exit code of one verb."""
    for word in argv:
        if not word or re.fullmatch("--[^=]+=", word):
            raise ConfigError(
                f"got {f'{word!r} without a value' if word else 'an empty argument'}, expected a "
                "value; a variable of the shell may not be set"
            )
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise WideDeepError(
                f"got the argument {word!r}, which is no text in UTF-8; rename the file, or write "
                "the value in UTF-8"
            )
    traces.follow_environment(say)
    _note_misspelt_variables()
    parser = make_parser(argv[:1])
    if not argv:
        parser.print_help()
        return EXIT_OK
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:  # told by the verb's own parser, which knows its options
            arguments.parser.unknown(unknown)
        arguments.words = list(argv)
        _check_ranks(argv[0])
        code: int = arguments.run(arguments)
    except SystemExit as stop:  # argparse: help, version, misuse
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    return code


def _note_misspelt_variables() -> None:
    """Tell of variables of the environment that resemble ours; others may be anybody's."""
    prefix = "WIDEDEEP_"
    words = [name.removeprefix(prefix) for name in _VARIABLES]
    for name in os.environ:
        word = name.removeprefix(prefix)
        if name.startswith(prefix) and word not in words:
            hint = nearest(word, words)
            if hint.startswith("did you mean"):
                meant = next(one for one in words if repr(one) in hint)
                say(f"note: the variable {name} is unknown; did you mean {prefix}{meant}?")


def _check_ranks(verb: str) -> None:
    """Let the first of several ranks print, and refuse verbs that each of them would repeat."""
    size = launched_size()
    if size == 1:
        return
    if verb not in OVER_RANKS:
        raise ConfigError(
            f"got 'widedeep {verb}' on {size} ranks, each of which would do all of the work; run "
            f"it in one process, without torchrun (on ranks run {', '.join(OVER_RANKS)})"
        )
    if launched_rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def _printable() -> Iterator[None]:
    """Let every text be printed: to a terminal that lacks a letter, and to no terminal at all."""
    if sys.stdout is None:  # closed by the shell: >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    errors = getattr(sys.stdout, "errors", None)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is None or errors not in ("strict", "surrogateescape"):
        yield
        return
    reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            reconfigure(errors=errors)


def _drop_output() -> None:
    """Discard buffered output, so that it does not raise again when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: Exception, message: str) -> int:
    if os.environ.get("WIDEDEEP_DEBUG") == "1":
        traceback.print_exception(error)
    if TOLD_BESIDE in getattr(error, "__notes__", ()):
        return EXIT_USAGE
    rank = f"rank {launched_rank()}: " if launched_rank() else ""
    show_error(f"widedeep: {rank}error: {_one_line(message)}")
    return EXIT_USAGE


def _bug(error: Exception) -> int:
    """Say that widedeep is at fault, and where the details are."""
    said = _one_line(f"{type(error).__name__}: {error}")[:300]
    if os.environ.get("WIDEDEEP_DEBUG") == "1":
        traceback.print_exception(error)
        details = "the traceback is above"
    else:
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix="widedeep-bug-", suffix=".log", delete=False, errors="backslashreplace"
            ) as log:
                log.write(f"widedeep {__version__}, Python {sys.version}\n{sys.argv}\n\n")
                traceback.print_exception(error, file=log)
            details = f"please report it with {log.name}"
        except OSError:
            details = "WIDEDEEP_DEBUG=1 shows the traceback"
    show_error(f"widedeep: bug: {said}; this is a fault of widedeep itself: {details}")
    return EXIT_BUG


def _one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def make_parser(named: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the verbs, those that are named know their options."""
    parser = VerbParser(
        prog="widedeep",
        description="Wide & Deep ranking: from logs and tables to models that serve.",
        epilog="a first run:\n"
        "  widedeep init train.parquet --label click\n"
        "  widedeep train run.toml\n"
        "  widedeep score runs/run/bundle test.parquet -o scores.parquet\n\n"
        "'widedeep VERB --help' shows a verb's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"widedeep {__version__}")
    parser.add_argument(
        "--install-completion", action=InstallCompletion, whole_parser=lambda: make_parser([*VERBS])
    )
    verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", required=True, parser_class=VerbParser
    )
    for verb, summary in VERBS.items():
        if verb in named:
            name = f"{verb}_" if keyword.iskeyword(verb) else verb
            module = importlib.import_module(f"widedeep.cli.{name}")
            work, following = getattr(module, "run", None), getattr(module, "NEXT", "")
            options = add_verb(
                verbs, verb, summary, work, example=module.EXAMPLE, following=following
            )
            module.add_options(options)
        else:
            verbs.add_parser(verb, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
