"""The frame of a page: title, contents, sections, tables, tiles of figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

_LIGHT = """--ink: #1d2733; --soft: #56657a; --line: #dde3ea; --paper: #fff; --panel: #f6f8fa;
  --blue: #2f6db3; --grey: #9aa7b5; --amber: #b7791f; --good: #1b7f4b; --bad: #b3261e;"""
_STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6ebf1; --soft: #a3b1c2; --line: #323d4a;
  --paper: #151b22; --panel: #1d252e; --blue: #6ea8e6; --grey: #75839a; --amber: #e0b15c;
  --good: #5cc48d; --bad: #ff8a80; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem;
  padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper); }}
h1 {{ font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.4rem 0 .6rem; scroll-margin-top: 1rem; }}
h3 {{ font-size: .95rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }}
p {{ color: var(--soft); margin: .4rem 0; overflow-wrap: anywhere; }}
nav {{ display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .8rem 0 1.2rem;
  font-size: .87rem; }}
a {{ color: var(--blue); text-decoration: none; }} a:hover {{ text-decoration: underline; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .87rem; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
th:first-child, td:first-child {{ padding-left: 0; }}
th {{ color: var(--soft); font-weight: 600; white-space: nowrap; vertical-align: bottom; }}
td {{ overflow-wrap: break-word; max-width: 26rem; }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
td.bar {{ width: 26%; min-width: 4.5rem; }} tr:has(> td.bar) td {{ vertical-align: middle; }}
tr.strong td {{ font-weight: 600; }} tr.dim td {{ color: var(--soft); }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; }}
.tile {{ background: var(--panel); border-radius: 8px; padding: .7rem .9rem; min-width: 0; }}
.tile b {{ display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }}
.tile span {{ display: block; color: var(--soft); font-size: .82rem; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.4rem; }}
.pair > div {{ min-width: 0; }} .pair h3, .charts h3 {{ margin-top: .4rem; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1.2rem; }} .charts > div {{ min-width: 0; max-width: 34rem; }}
.good {{ color: var(--good); }} .bad {{ color: var(--bad); }}
tr.bad td {{ color: var(--bad); }} tr.good td.n {{ color: var(--good); }}
.verdict {{ border-left: 5px solid currentColor; padding: .1rem 0 .1rem .9rem; margin: .8rem 0; }}
.verdict b {{ font-size: 1.1rem; }} .verdict li, .verdict p {{ color: var(--ink); }}
li {{ overflow-wrap: anywhere; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ fill: var(--soft); font: 12px system-ui, sans-serif; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .82rem;
  color: var(--soft); }} .legend i {{ display: inline-block; width: .8rem; height: .25rem;
  margin-right: .35rem; vertical-align: middle; }}
.ends {{ display: flex; justify-content: space-between; font-weight: 400; font-size: .82rem;
  color: var(--soft); }}
.chips {{ display: flex; flex-wrap: wrap; gap: .3rem; }}
.chips span {{ background: var(--panel); border-radius: 6px; padding: .05rem .45rem; }}
.chips small {{ color: var(--soft); font-variant-numeric: tabular-nums; }}
code {{ font-size: .85em; overflow-wrap: anywhere; }}
@media (max-width: 34rem) {{ body {{ padding: 1rem .8rem 3rem; }}
  table {{ font-size: .8rem; }} th, td {{ padding: .3rem .25rem; }}
  th, th.n, td.n {{ white-space: normal; }} td:last-child:not(.n):not(:empty) {{ min-width: 9rem; }}
  .tiles {{ grid-template-columns: repeat(2, 1fr); }} }}
@media print {{ :root {{ color-scheme: light; font-size: 11px; {_LIGHT} }}
  body {{ max-width: none; padding: 0; font-size: 1rem; }} nav {{ display: none; }}
  .scroll {{ overflow: visible; }} th, th.n, td.n {{ white-space: normal; }}
  .pair {{ grid-template-columns: 1fr 1fr; }} .charts {{ grid-template-columns: 1fr 1fr 1fr; }}
  tr, .tile, .tiles, .charts > div {{ break-inside: avoid; }}
  h2, h3 {{ break-after: avoid; }}
  .tile, .chips span, .legend i {{ print-color-adjust: exact; }} }}
"""


def document(title: str, parts: Sequence[str], *, subtitle: str = "") -> str:
    """Return a whole page."""
    below = f"<p>{escape(subtitle)}</p>" if subtitle else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{below}{''.join(parts)}</body></html>\n"
    )


def contents(headings: Sequence[str]) -> str:
    """Return links to the sections of these headings."""
    links = "".join(f'<a href="#{_anchor(text)}">{escape(text)}</a>' for text in headings)
    return f'<nav aria-label="contents">{links}</nav>' if links else ""


def section(heading: str, *parts: str) -> str:
    """Return a heading (text) and what stands under it (HTML); nothing if nothing does."""
    body = "".join(parts)
    if not body:
        return ""
    return f'<section><h2 id="{_anchor(heading)}">{escape(heading)}</h2>{body}</section>'


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def subsection(heading: str, *parts: str) -> str:
    """Return a smaller heading (text) and what stands under it; nothing if nothing does."""
    body = "".join(parts)
    return f"<h3>{escape(heading)}</h3>{body}" if body else ""


def pair(*parts: str) -> str:
    """Return blocks of HTML in two columns where there is room; empty ones are left out."""
    return _side_by_side("pair", parts)


def charts(*parts: str) -> str:
    """Return blocks of HTML in up to three columns; empty ones are left out."""
    return _side_by_side("charts", parts)


def _side_by_side(kind: str, parts: Sequence[str]) -> str:
    blocks = "".join(f"<div>{block}</div>" for block in parts if block)
    return f'<div class="{kind}">{blocks}</div>' if blocks else ""


def note(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    bad: Sequence[int] = (),
    good: Sequence[int] = (),
    strong: Sequence[int] = (),
) -> str:
    """Return a table of text."""
    kinds = [' class="n"' if heading in numbers else "" for heading in headings]

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{kind}>{breakable(cell)}</{tag}>"
            for kind, cell in zip(kinds or [""] * len(row), row, strict=True)
        )

    marks = {
        index: f' class="{kind}"'
        for kind, marked in (("strong", strong), ("good", good), ("bad", bad))
        for index in marked
    }
    body = "".join(
        f"<tr{marks.get(index, '')}>{cells('td', row)}</tr>" for index, row in enumerate(rows)
    )
    head = f"<tr>{cells('th', headings)}</tr>" if headings else ""
    return framed(head + body, headings or ("name", "value"))


def framed(rows: str, headings: Sequence[str]) -> str:
    """Return rows (HTML) as a table that scrolls where it is too wide, named by its headings."""
    label = escape(", ".join(heading for heading in headings if heading))
    return f'<div class="scroll"><table aria-label="{label}">{rows}</table></div>'


def breakable(text: str) -> str:
    """Return text as HTML in which a long name may be broken behind an underscore."""
    return escape(text).replace("_", "_<wbr>")


def tiles(entries: Sequence[tuple[str, ...]]) -> str:
    """Return figures side by side: what, how much, and what more there is to say; as text."""
    html = ""
    for what, figure, *more in entries:
        texts = "".join(f"<span>{escape(text)}</span>" for text in (what, *more))
        html += f'<div class="tile"><b>{escape(figure)}</b>{texts}</div>'
    return f'<div class="tiles">{html}</div>' if html else ""
