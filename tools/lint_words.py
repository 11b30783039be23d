"""Checks the words of the sources: names that say what a value is, descriptions that are sentences.

    python tools/lint_words.py             # the repository this file stands in

A filler as the name of a variable or a parameter (`found`, `told`, `held`) says what happened to a
value, not what it is. A description that begins with `Of` or `That` is the stump of a sentence.
Prints one line a finding and ends with 1 if there are more than a few in a hundred functions.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FILLERS = {
    *("asked", "at", "chosen", "figures", "found", "given", "held", "kept", "known", "left"),
    *("made", "mine", "part", "place", "placed", "rest", "share", "shown", "taken", "theirs"),
    *("there", "told", "wanted", "who"),
}
STUMP = re.compile(r"(?:Of|That|Which|Whose)\b")
ARGUMENT = re.compile(r"\s{4,}\w+(?: \([^)]*\))?: (.*)")
FIELD = re.compile(r"\w+: .*# (.*)")

# A name in a hundred functions may be right: `given` is a word of probability, `share` of serving.
MAX_PER_HUNDRED = 3


def names_set(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return a function's parameters and variables, without leading underscores."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending.extend(ast.iter_child_nodes(node))
    return {name.lstrip("_") for name in names}


def stumps(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of descriptions of arguments and fields that are no sentences."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or 0
            for number in range(first, last + 1):
                match = ARGUMENT.fullmatch(lines[number - 1])
                if match and STUMP.match(match[1]):
                    yield number, match[1]
        for field in node.body if isinstance(node, ast.ClassDef) else ():
            text = lines[field.lineno - 1].strip()
            match = FIELD.match(text) if isinstance(field, ast.AnnAssign) else None
            if match and STUMP.match(match[1]):
                yield field.lineno, match[1]


def findings(root: Path) -> tuple[list[str], list[str], int]:
    """Return the fillers, the stumps and the number of functions of the package's sources."""
    fillers: list[str] = []
    stump_lines: list[str] = []
    n_functions = 0
    for path in sorted((root / "src" / "widedeep").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        name = path.relative_to(root)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_functions += 1
                for filler in sorted(names_set(node) & FILLERS):
                    fillers.append(f"{name}:{node.lineno}: {node.name} names a value {filler!r}")
        for line, words in stumps(tree, text.split("\n")):
            stump_lines.append(f"{name}:{line}: a stump of a sentence: {words!r}")
    return fillers, stump_lines, n_functions


def main() -> int:
    """Print the findings; return the exit code."""
    fillers, stump_lines, n_functions = findings(ROOT)
    excess = len(fillers) * 100 > MAX_PER_HUNDRED * n_functions
    for line in [*(fillers if excess else ()), *stump_lines]:
        print(line)
    print(f"{len(fillers)} fillers as names in {n_functions} functions, {len(stump_lines)} stumps")
    return 1 if excess or stump_lines else 0


if __name__ == "__main__":
    sys.exit(main())
