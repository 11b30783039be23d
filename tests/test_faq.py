"""Every error that docs/faq.md quotes is one that the program says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAID = r"\*\*((?:\"[^\"]+\"(?:, )?)+)"


def texts() -> str:
    """Every text of the sources, formatted values as …, lines that follow each other joined."""
    pieces = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                pieces.append("".join(map(str, parts)))
    return "\n".join(pieces)


def test_every_quoted_error_is_said() -> None:
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    quoted = [
        text for group in re.findall(SAID, page) for text in re.findall(r"\"([^\"]+)\"", group)
    ]
    assert len(quoted) >= 12
    said = texts()
    missing = [text for text in quoted if text not in said]
    assert missing == []
