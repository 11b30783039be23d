"""Finds the functions of a C++ source and their lengths, without a C++ parser."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Comments, strings and characters: what braces inside them mean nothing.
_OPAQUE = re.compile(
    r"//[^\n]*|/\*.*?\*/|R\"\((?:.*?)\)\"|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL
)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_CONTAINER = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b")
_NAME = re.compile(r"([~\w:]+)\s*\($")


def _blank(match: re.Match[str]) -> str:
    """Replace a piece of text by as many line ends as it has."""
    return "\n" * match.group().count("\n")


def _function_name(header: str) -> str | None:
    """Return the name if `header` (the text before a brace) opens a function, else None."""
    paren = header.find("(")
    if paren < 0:
        return None
    before = header[:paren]
    if "=" in before or (_CONTAINER.search(before) and not before.rstrip()[-1:].isalnum()):
        return None
    match = _NAME.search(header[: paren + 1])
    return match.group(1) if match else "operator"


def function_sizes(text: str) -> Iterator[tuple[int, str, int]]:
    r"""Yield (first line, name, number of lines) of each function that is not inside another.

    Example:
        >>> list(function_sizes("namespace a {\nint f(int x) {\n  return x;\n}\n}\n"))
        [(2, 'f', 3)]
    """
    text = _DIRECTIVE.sub(_blank, _OPAQUE.sub(_blank, text))
    open_blocks: list[tuple[str, int] | None] = []
    header_start = 0
    inside = 0
    for match in re.finditer(r"[{};]", text):
        token, at = match.group(), match.start()
        if token == "{":
            header = text[header_start:at]
            name = None if inside else _function_name(header)
            first = text.count("\n", 0, header_start + len(header) - len(header.lstrip())) + 1
            open_blocks.append((name, first) if name else None)
            inside += name is not None
        elif token == "}" and open_blocks:
            block = open_blocks.pop()
            if block:
                inside -= 1
                name, first = block
                yield first, name, text.count("\n", 0, at) + 2 - first
        header_start = match.end()
