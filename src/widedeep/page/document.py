"""The frame of a page: title, sections, tables, tiles of figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["document", "note", "section", "table", "tiles"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #56657a; --line: #dde3ea;
  --paper: #fff; --panel: #f6f8fa; --blue: #2f6db3; --grey: #9aa7b5; --good: #1b7f4b;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #a3b1c2; --line: #323d4a;
  --paper: #151b22; --panel: #1d252e; --blue: #6ea8e6; --grey: #75839a; --good: #5cc48d;
  --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem;
  padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
p { color: var(--soft); margin: .4rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; }
.tile { background: var(--panel); border-radius: 8px; padding: .7rem .9rem; min-width: 0; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.4rem; }
.pair > div { min-width: 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
.verdict { border-left: 5px solid currentColor; padding: .2rem 0 .2rem .9rem; margin: 1rem 0; }
.verdict b { font-size: 1.1rem; } .verdict li, .verdict p { color: var(--ink); }
li { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft);
  font: 12px system-ui, sans-serif; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .82rem;
  color: var(--soft); } .legend i { display: inline-block; width: .8rem; height: .25rem;
  margin-right: .35rem; vertical-align: middle; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


def document(title: str, parts: Sequence[str], *, subtitle: str = "") -> str:
    """Return a whole page.

    Args:
        title: Its heading, as text.
        parts: HTML, one after the other.
        subtitle: A line under the heading, as text.

    Example:
        >>> "<h1>A run</h1>" in document("A run", [section("Metrics", "...")])
        True
    """
    below = f"<p>{escape(subtitle)}</p>" if subtitle else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{below}{''.join(parts)}</body></html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """Return a heading (text) and what stands under it (HTML); nothing if nothing does."""
    body = "".join(parts)
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def note(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    bad: Sequence[int] = (),
) -> str:
    """Return a table of text.

    Args:
        headings: One a column.
        rows: Cells, as text.
        numbers: Headings of columns to be aligned on the right.
        bad: Rows to be marked.

    Example:
        >>> '<td class="n">1</td>' in table(["a"], [["1"]], numbers=["a"])
        True
    """
    kinds = [' class="n"' if heading in numbers else "" for heading in headings]

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(
        f"<tr{' class=bad' if at in bad else ''}>{cells('td', row)}</tr>"
        for at, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><tr>{cells("th", headings)}</tr>{body}</table></div>'


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """Return figures (what, how much; as text) side by side."""
    found = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
        for what, figure in figures
    )
    return f'<div class="tiles">{found}</div>' if found else ""
