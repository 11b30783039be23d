"""The Chinese pages are in step with the English ones: headings, code, figures, names and links."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README", "docs/tutorial")
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def sections(path: Path) -> list[tuple[str, str]]:
    """Return each section's heading marks and text, code blocks left out."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    parts = re.split(r"^(#+) .*$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def code(path: Path) -> list[str]:
    """Return the code blocks, without comments."""
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [re.sub(r" *# .*", "", block) for block in blocks]


def names(text: str) -> Counter[str]:
    return Counter(re.findall(r"`[^`]+`", re.sub(r"\s+", " ", text)))


def links(text: str) -> list[str]:
    """Return where links lead; anchors are spelt by the headings of each language."""
    targets = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(target.partition("#")[0].replace(".zh.md", ".md") for target in targets)


def figures(text: str) -> list[str]:
    """Return the figures of tables, row by row."""
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [" ".join(re.findall(r"[-+]?\d+(?:[.,]\d+)*", row)) for row in rows]


@pytest.mark.parametrize("page", PAGES)
def test_in_step(page: str) -> None:
    english, chinese = ROOT / f"{page}.md", ROOT / f"{page}.zh.md"
    assert code(chinese) == code(english)
    ours, theirs = sections(chinese), sections(english)
    assert [marks for marks, _ in ours] == [marks for marks, _ in theirs]
    for number, ((_, here), (_, there)) in enumerate(zip(ours, theirs, strict=True)):
        where = f"section {number} of {chinese.name}"
        assert names(here) == names(there), where
        assert links(here) == links(there), where
        assert figures(here) == figures(there), where
        assert len(re.findall(r"[\u4e00-\u9fff]", here)) >= len(there.split()) // 3, where
