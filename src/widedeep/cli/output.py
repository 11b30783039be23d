"""Output of the command line: text and tables for people, one JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widedeep.errors import ConfigError, WideDeepError
from widedeep.ranks.launch import launched_rank

if TYPE_CHECKING:
    from rich.console import Console


_UNLISTED = 1_000  # table order of metrics that are printed under --json alone


def print_json(value: object, *, indent: int | None = 1) -> None:
    """Print one JSON document on standard output, in one line for indent=None; NaN becomes null."""
    from widedeep.bundle.plain_json import plain

    ascii_only = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") != "utf-8"
    text = json.dumps(plain(value, "the output"), indent=indent, ensure_ascii=ascii_only)
    sys.stdout.write(text + "\n")


def say(text: str) -> None:
    """Print a line for a person on standard error; of several ranks the first one does."""
    if launched_rank():
        return
    show_error(text)


def show_error(text: str) -> None:
    """Print a line on standard error, whichever rank this is."""
    sys.stderr.write(f"{text}\n")  # in one piece: a server's threads write here at once
    sys.stderr.flush()


def print_text(text: str = "") -> None:
    """Print text on standard output as it is."""
    sys.stdout.write(f"{text}\n")


def next_line(*words: object, note: str = "") -> str:
    """Return the line with the next command, ready to be pasted into a shell."""
    command = shlex.join(["widedeep", *map(str, words)])
    return f"next: {command}" + (f"  # {note}" if note else "")


def print_next(*words: object, note: str = "") -> None:
    """Print :func:`next_line` on standard output."""
    print_text(next_line(*words, note=note))


_FETCHED: dict[Path, str] = {}  # The URL of each folder that was fetched


def remember_url(folder: Path, url: str) -> Path:
    """Return a folder that was fetched, which :func:`address_of` names by its URL from now on."""
    _FETCHED[folder] = url.rstrip("/")
    return folder


def address_of(path: Path) -> str:
    """Return a path as it is; of what was fetched from behind a URL, its URL."""
    for folder in (path, *path.parents):
        if folder in _FETCHED:
            return "/".join((_FETCHED[folder], *path.relative_to(folder).parts))
    return str(path)


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as seen from here, if it lies below; else as :func:`address_of` does."""
    absolute, here = Path(path).absolute(), Path.cwd()
    if (address := address_of(Path(path))) != str(Path(path)):
        return address
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def free_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that does not exist: this one, or with a number after its stem."""
    first, number = Path(path), 2
    free = first
    while free.exists():
        free = first.with_name(f"{first.stem}-{number}{first.suffix}")
        number += 1
    return free


def check_free(path: Path, *, force: bool, advice: str = "choose another folder, or ") -> None:
    """Refuse to write over what exists, unless by force."""
    if path.exists() and not force:
        raise ConfigError(f"{path}: already exists; {advice}replace it with --force")


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print a table as wide as the terminal allows (80 columns where there is none)."""
    from rich import box
    from rich.table import Table

    console = _console()
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False
    )
    for heading in headings:
        numeric = heading in right
        table.add_column(
            heading,
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_literal(cell) for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print_text("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _literal(cell: str) -> Any:
    """Text that is not read as markup: a value may hold brackets."""
    from rich.text import Text

    return Text(cell)


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)


def print_metrics(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Print the metrics of one or more data sets, side by side."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    orders = [(*_table_order(name), index, name) for index, name in enumerate(names)]
    printed = [name for _, order, _, name in sorted(orders) if order < _UNLISTED]
    rows = [[name, *(_cell(name, values) for values in metrics.values())] for name in printed]
    print_table(["metric", *metrics], rows, right=list(metrics))
    for heading, values in metrics.items():
        for name in printed:
            prefix, _, last = name.rpartition("label_mean")
            if not last and math.isnan(values.get(f"{prefix}auc", 0.0)):
                print_text(
                    f"{heading}: {prefix}auc is undefined where every label is "
                    f"{values[name]:g}; take more rows, or others"
                )


def _cell(name: str, values: Mapping[str, float]) -> str:
    value = values.get(name)
    is_count = name.rpartition("/")[2] == "rows" and value is not None
    return f"{value:,.0f}" if is_count else number(value)


def _table_order(name: str) -> tuple[str, int]:
    """Return a metric's head and its position among the metrics of the head."""
    from widedeep.metrics import find_metric

    metric = find_metric(name)
    order = None if metric is None or metric.detail else metric.table_order
    return name.rpartition("/")[0], _UNLISTED if order is None else order


def number(value: float | None) -> str:
    """Return a figure as a person reads it: four decimals, or a whole number with separators."""
    if value is None:
        return ""
    if value != value:
        return "undefined"
    if math.isfinite(value) and value == round(value) and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}"


def count(number_of: int, what: str) -> str:
    """Return ``"1 row"``, ``"2 rows"``."""
    return f"{number_of:,} {what}" + ("" if number_of == 1 else "s")


@dataclass(kw_only=True)
class Checked:
    """What a check found."""

    problems: list[str] = field(default_factory=list)  # Reasons for which the work would fail
    notes: list[str] = field(default_factory=list)  # Remarks, such as constant columns

    @contextlib.contextmanager
    def collecting(self, prefix: str = "") -> Iterator[None]:
        """Take what the block raises for a problem, which is told once."""
        try:
            yield
        except WideDeepError as error:
            if (problem := f"{prefix}{error}") not in self.problems:
                self.problems.append(problem)

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"ok": not self.problems, "problems": self.problems, "notes": self.notes}

    def print_all(
        self, failure: str, success: str = "no problems found", but_notes: Sequence[str] = ()
    ) -> None:
        """Print notes but ``but_notes``, and problems, and what follows from them."""
        for note in self.notes:
            if note not in but_notes:
                print_text(f"note: {note}")
        for problem in self.problems:
            print_text(f"problem: {problem}")
        problems = count(len(self.problems), "problem")
        print_text(f"\n{problems}; {failure}" if self.problems else f"\n{success}")
