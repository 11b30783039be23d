"""Charts as inline SVG: lines over a number, bars and dots by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from widedeep.page.document import breakable, framed

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 10, 36
_COLOURS = ("var(--blue)", "var(--grey)", "var(--amber)", "var(--good)", "var(--bad)")
_TICKS = 5


def line_chart(
    lines: Mapping[str, Points],
    *,
    x_label: str,
    diagonal: bool = False,
    dots: bool = True,
    joined: bool = True,
    errors: Mapping[str, Sequence[float]] | None = None,
    mark: tuple[float, str] | None = None,
) -> str:
    """Return lines with axes and a legend; a line without points is left out.

    Without ``joined`` there are dots alone.
    """
    series = {name: points for name, points in lines.items() if points}
    every = [point for points in series.values() for point in points]
    if not every:
        return ""
    xs, ys = [x for x, _ in every], [y for _, y in every]
    if diagonal:
        xs = ys = [0.0, *xs, *ys]
    (x_low, x_high), (y_low, y_high) = _span(xs), _span(ys, margin=not diagonal)

    def to_canvas(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        up = min(max(up, 0.0), 1.0)  # what reaches beyond, an uncertainty, ends at the edge
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = _axes((x_low, x_high), (y_low, y_high), x_label, to_canvas)
    if diagonal:
        ends = (to_canvas(x_low, x_low), to_canvas(x_high, x_high))
        parts.append(_stroke(*ends, "var(--grey)", 'stroke-dasharray="5 4"'))
    if mark is not None:
        parts += _marked(mark, x_low, x_high, to_canvas, (y_low, y_high))
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        reach = (errors or {}).get(name, ())
        parts += _line(name, points, reach, colour, to_canvas, dots=dots, joined=joined)
    label = escape(f"{', '.join(series)}; across: {x_label}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>{legend(list(series))}"
    )


_Place = Callable[[float, float], tuple[float, float]]


def _line(
    name: str,
    points: Points,
    reach: Sequence[float],
    colour: str,
    to_canvas: _Place,
    *,
    dots: bool,
    joined: bool,
) -> list[str]:
    parts = [
        _stroke(to_canvas(x, y - error), to_canvas(x, y + error), colour, 'stroke-opacity=".45"')
        for (x, y), error in zip(points, reach, strict=False)
        if error > 0
    ]
    if joined:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (to_canvas(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x, y in points if dots or len(points) == 1 else ():
        across, down = to_canvas(x, y)
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}">'
            f"<title>{escape(name)}: {_figure(x)}, {y:.4g}</title></circle>"
        )
    return parts


def _stroke(
    start: tuple[float, float], end: tuple[float, float], colour: str, more: str = ""
) -> str:
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{colour}" stroke-width="1.5" {more}/>'
    )


def _marked(
    mark: tuple[float, str], low: float, high: float, to_canvas: _Place, ys: tuple[float, float]
) -> list[str]:
    x, label = mark
    right = (x - low) / (high - low) > 0.5
    foot, head = to_canvas(x, ys[0]), to_canvas(x, ys[1])
    anchor, aside = ("end", -5) if right else ("start", 5)
    return [
        _stroke(foot, head, "var(--good)", 'stroke-dasharray="2 3"'),
        f'<text x="{head[0] + aside:.1f}" y="{head[1] + 11:.1f}" text-anchor="{anchor}">'
        f"{escape(label)}</text>",
    ]


def _axes(
    xs: tuple[float, float], ys: tuple[float, float], label: str, to_canvas: _Place
) -> list[str]:
    parts = []
    y_ticks, x_ticks = ticks(*ys), ticks(*xs)
    for y, text in zip(y_ticks, tick_texts(y_ticks), strict=True):
        down = to_canvas(xs[0], y)[1]
        parts.append(
            f'<line x1="{_LEFT}" y1="{down:.1f}" x2="{_WIDTH - _RIGHT}" y2="{down:.1f}" '
            f'stroke="var(--line)"/><text x="{_LEFT - 6}" y="{down + 4:.1f}" '
            f'text-anchor="end">{text}</text>'
        )
    for x, text in zip(x_ticks, tick_texts(x_ticks), strict=True):
        across = to_canvas(x, ys[0])[0]
        anchor = "end" if across > _WIDTH - _RIGHT - 12 and len(text) > 3 else "middle"
        parts.append(
            f'<text x="{across:.1f}" y="{_HEIGHT - 20}" text-anchor="{anchor}">{text}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle">{escape(label)}</text>'
    )
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between two others."""
    step = _step(low, high)
    return _multiples(step, math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9))


def outer_ticks(values: Sequence[float]) -> list[float]:
    """Return a few round numbers from below the least of some others to above the largest."""
    low, high = _span(values)
    step = _step(low, high)
    return _multiples(step, math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9))


def _step(low: float, high: float) -> float:
    raw = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))


def _multiples(step: float, first: int, last: int) -> list[float]:
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) + 0.0 for index in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return round numbers as text, all with as many decimals as they need."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-4:
        return [f"{value:.3g}" for value in values]
    digits = max((len(f"{v:.10g}".partition(".")[2]) for v in values), default=0)
    return ["0" if value == 0 else f"{value:,.{digits}f}" for value in values]


def _span(values: Sequence[float], *, margin: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-200):  # one value, as far as a chart can show
        spread = size if size > 1e-200 else 1.0
        return low - 0.05 * spread, high + 0.05 * spread
    room = 0.06 * (high - low) if margin else 0.0
    return low - room, high + room


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def legend(names: Sequence[str]) -> str:
    """Return the colours of a chart's series; nothing for one alone."""
    if len(names) < 2:
        return ""
    entries = "".join(
        f'<span><i style="background:{_COLOURS[index % len(_COLOURS)]}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<div class="legend">{entries}</div>'


def bar_list(
    rows: Sequence[tuple[str, float, *tuple[str, ...]]],
    *,
    signed: bool = False,
    headings: Sequence[str] = (),
    longest: float | None = None,
) -> str:
    """Return a table with a bar beside each name."""
    if not rows:
        return ""
    whole = longest or max(abs(value) for _, value, *_ in rows) or 1.0
    html = []
    if headings:
        name, *cells = headings
        heads = "".join(f'<th class="n">{escape(cell)}</th>' for cell in cells)
        html.append(f"<tr><th>{escape(name)}</th><td></td>{heads}</tr>")
    for name, value, *texts in rows:
        colour = "var(--bad)" if signed and value < 0 else "var(--blue)"
        wide = min(100.0, 100 * abs(value) / whole)
        bar = f'<rect width="{wide:.1f}%" height="100%" rx="2" fill="{colour}"/>'
        cells = [f'<td class="n">{escape(cell)}</td>' for cell in texts]
        html.append(
            f'<tr><td>{breakable(name)}</td><td class="bar">'
            f'<svg style="height:.7rem" aria-hidden="true">{bar}</svg></td>{"".join(cells)}</tr>'
        )
    return framed("".join(html), headings or ("name", "figure"))


def column_chart(bars: Sequence[tuple[str, float, str]], *, ends: tuple[str, str]) -> str:
    """Return upright bars side by side, from 0 up, with the highest told."""
    if not bars:
        return ""
    highest = max(height for _, height, _ in bars) or 1.0
    counts = all(height == int(height) for _, height, _ in bars)
    told = f"{highest:,.0f}" if counts else f"{highest:.4f}"
    step = 100 / len(bars)
    drawn = "".join(
        f'<rect x="{index * step + step / 20:.2f}%" '
        f'y="{98 - 96 * max(0.0, height) / highest:.1f}%" '
        f'width="{step * 0.9:.2f}%" height="{2 + 96 * max(0.0, height) / highest:.1f}%" '
        f'fill="var(--blue)"><title>{escape(label)}</title></rect>'
        for index, (_, height, label) in enumerate(bars)
    )
    first, last = (escape(end) for end in ends)
    return (
        f'<svg style="height:8rem" role="img" aria-label="from {first} to {last}, at most '
        f'{told}">{drawn}</svg><div class="ends"><span>{first}</span>'
        f"<span>highest: {told}</span><span>{last}</span></div>"
    )


class DotRow(NamedTuple):
    """A row of :func:`dot_list`."""

    name: str  # What it is about
    values: tuple[float | None, ...]  # One a series; None where there is none
    before: str = ""  # A cell before the dots
    dim: bool = False  # Set it back: there is little behind it


def dot_list(
    rows: Sequence[DotRow],
    *,
    series: Sequence[str],
    headings: tuple[str, str],
    scale: Sequence[float] | None = None,
) -> str:
    """Return a table with a dot a series on one scale beside each name, and the figures."""
    if not rows:
        return ""
    every = [v for row in rows for v in row.values if v is not None]
    scale = scale or outer_ticks(every or [0.0, 1.0])

    def across(value: float) -> str:
        fraction = (value - scale[0]) / (scale[-1] - scale[0])
        return f"{3 + 94 * min(max(fraction, 0.0), 1.0):.1f}%"

    marks = "".join(
        f'<line x1="{across(x)}" y1="0" x2="{across(x)}" y2="100%" stroke="var(--line)"/>'
        for x in scale
    )
    heads = "".join(f'<th class="n">{escape(name)}</th>' for name in series)
    html = [
        f'<tr><th>{escape(headings[0])}</th><th class="n">{escape(headings[1])}</th>'
        f'<th class="bar">{_ends(scale)}</th>{heads}</tr>'
    ]
    for row in rows:
        dots = "".join(
            f'<circle cx="{across(value)}" cy="50%" r="4" fill="{_COLOURS[index]}"/>'
            for index, value in reversed(list(enumerate(row.values)))
            if value is not None
        )
        cells = "".join(
            f'<td class="n">{"" if value is None else f"{value:.4f}"}</td>' for value in row.values
        )
        kind = ' class="dim"' if row.dim else ""
        html.append(
            f'<tr{kind}><td>{breakable(row.name)}</td><td class="n">{escape(row.before)}</td>'
            f'<td class="bar"><svg style="height:1rem" aria-hidden="true">{marks}{dots}</svg></td>'
            f"{cells}</tr>"
        )
    return framed("".join(html), (*headings, *series))


def _ends(scale: Sequence[float]) -> str:
    texts = tick_texts(scale)
    if len(texts) < 2:
        return ""
    return f'<div class="ends"><span>{texts[0]}</span><span>{texts[-1]}</span></div>'


def chips(rows: Sequence[tuple[str, Sequence[tuple[str, str]]]], headings: tuple[str, str]) -> str:
    """Return a table of names, each with a few others and a figure of theirs."""
    body = "".join(
        f'<tr><td>{breakable(name)}</td><td><div class="chips">'
        + "".join(
            f"<span>{escape(other)} <small>{escape(figure)}</small></span>"
            for other, figure in others
        )
        + "</div></td></tr>"
        for name, others in rows
    )
    heads = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    return framed(f"<tr>{heads}</tr>{body}", headings) if rows else ""
