"""Pages from templates: the frame with its style, and blocks such as sections, tables and tiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> Environment:
    """Return the templates of the package: files ``ROOM/NAME.html``, beside the code they show."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parents[1]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["anchor"] = _anchor
    environment.filters["breakable"] = lambda text: Markup(breakable(text))
    return environment


def render(template: str, **values: Any) -> str:
    """Return a template filled with values: text is escaped, HTML is marked ``safe`` there."""
    return _environment().get_template(template).render(**values)


def _block(name: str, *values: Any) -> str:
    blocks = _environment().get_template("page/blocks.html").module
    return str(getattr(blocks, name)(*values)).strip("\n")


def document(title: str, parts: Sequence[str], *, subtitle: str = "") -> str:
    """Return a whole page of HTML blocks."""
    return render("page/page.html", title=title, subtitle=subtitle, parts=parts)


def framed_page(title: str, parts: Sequence[str], *, subtitle: str = "", height: int = 420) -> str:
    """Return blocks of HTML as a page in a frame, as a notebook shows it; ``height`` in pixels."""
    return page_frame(document(title, parts, subtitle=subtitle), height=height)


def page_frame(page: str, *, height: int = 720) -> str:
    """Return a whole page in a frame that keeps its style inside and runs no script."""
    return (
        f'<iframe sandbox srcdoc="{escape(page)}" title="widedeep" loading="lazy" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def contents(headings: Sequence[str]) -> str:
    """Return links to the sections of these headings."""
    return _block("contents", headings)


def section(heading: str, *parts: str) -> str:
    """Return a heading (text) and its blocks (HTML); nothing without any."""
    return _block("section", heading, "".join(parts))


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def subsection(heading: str, *parts: str) -> str:
    """Return a smaller heading (text) and its blocks (HTML); nothing without any."""
    return _block("subsection", heading, "".join(parts))


def pair(*parts: str) -> str:
    """Return blocks of HTML in two columns where there is room; empty ones are left out."""
    return _block("columns", "pair", [block for block in parts if block])


def charts(*parts: str) -> str:
    """Return blocks of HTML in up to three columns; empty ones are left out."""
    return _block("columns", "charts", [block for block in parts if block])


def note(text: str) -> str:
    """Return a paragraph of plain text."""
    return _block("note", text)


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    bad: Sequence[int] = (),
    good: Sequence[int] = (),
    strong: Sequence[int] = (),
) -> str:
    """Return a table of text, columns of numbers to the right, rows marked by their index."""
    kinds = [heading in numbers for heading in headings] or [False] * max(map(len, rows), default=0)
    marks = {
        index: kind
        for kind, marked in (("strong", strong), ("good", good), ("bad", bad))
        for index in marked
    }
    return _block("table", headings, rows, kinds, marks)


def framed(rows: str, headings: Sequence[str]) -> str:
    """Return rows (HTML) as a table that scrolls where it is too wide, named by its headings."""
    return _block("framed", rows, headings)


def breakable(text: str) -> str:
    """Return text as HTML in which a long name may be broken behind an underscore."""
    return escape(text).replace("_", "_<wbr>")


def tiles(entries: Sequence[tuple[str, ...]]) -> str:
    """Return large numbers side by side: what, value, and further lines; as text."""
    return _block("tiles", entries)
