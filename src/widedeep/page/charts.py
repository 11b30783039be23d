"""Charts as inline SVG: lines over a number, bars by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["bar_list", "line_chart"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_COLOURS = ("var(--blue)", "var(--grey)", "var(--good)", "var(--bad)")
_TICKS = 4


def line_chart(
    lines: Mapping[str, Points],
    *,
    x_label: str,
    diagonal: bool = False,
    dots: bool = True,
) -> str:
    """Return lines with axes and a legend; a line without points is left out.

    Args:
        lines: Points by the line's name, in order of x.
        x_label: What x is.
        diagonal: Draw y = x, and give both axes one scale.
        dots: Mark the points; each tells its figures when pointed at.

    Example:
        >>> line_chart({"loss": [(1, 0.5), (2, 0.4)]}, x_label="epoch").count("<circle")
        2
    """
    shown = {name: points for name, points in lines.items() if points}
    every = [point for points in shown.values() for point in points]
    if not every:
        return ""
    xs, ys = [x for x, _ in every], [y for _, y in every]
    if diagonal:
        xs = ys = [0.0, *xs, *ys]
    (x_low, x_high), (y_low, y_high) = _span(xs), _span(ys, margin=not diagonal)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = _axes(x_low, x_high, y_low, y_high, x_label)
    if diagonal:
        (x1, y1), (x2, y2) = place(x_low, x_low), place(x_high, x_high)
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            'stroke="var(--line)" stroke-width="2" stroke-dasharray="5 4"/>'
        )
    for number, (name, points) in enumerate(shown.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in points if dots or len(points) == 1 else ():
            across, down = place(x, y)
            parts.append(
                f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}">'
                f"<title>{escape(name)}: {_figure(x)}, {y:.4g}</title></circle>"
            )
    drawn = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return drawn + _legend(list(shown))


def _axes(x_low: float, x_high: float, y_low: float, y_high: float, label: str) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        down = _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)
        across = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        parts.append(
            f'<line x1="{_LEFT}" y1="{down:.1f}" x2="{_WIDTH - _RIGHT}" y2="{down:.1f}" '
            'stroke="var(--line)"/>'
            f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">'
            f"{y_low + share * (y_high - y_low):.4g}</text>"
        )
        anchor = "end" if tick == _TICKS else "start" if not tick else "middle"
        if tick % 2 == 0:
            told = _figure(x_low + share * (x_high - x_low))
            parts.append(
                f'<text x="{across:.1f}" y="{_HEIGHT - 16}" text-anchor="{anchor}">{told}</text>'
            )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 2}" text-anchor="middle">{escape(label)}</text>'
    )
    return parts


def _span(values: Sequence[float], *, margin: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        spread = abs(low) or 1.0
        return low - 0.05 * spread, high + 0.05 * spread
    room = 0.06 * (high - low) if margin else 0.0
    return low - room, high + room


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    entries = "".join(
        f'<span><i style="background:{_COLOURS[at % len(_COLOURS)]}"></i>{escape(name)}</span>'
        for at, name in enumerate(names)
    )
    return f'<div class="legend">{entries}</div>'


def bar_list(rows: Sequence[tuple[str, float, str]], *, signed: bool = False) -> str:
    """Return a table with a bar beside each name.

    Args:
        rows: Name, length of its bar, and what stands behind the bar.
        signed: Colour bars by their sign.

    Example:
        >>> bar_list([("a & b", 2.0, "2.0")]).count("a &amp; b")
        1
    """
    longest = max((abs(value) for _, value, _ in rows), default=0.0) or 1.0
    found = []
    for name, value, told in rows:
        colour = "var(--bad)" if signed and value < 0 else "var(--blue)"
        wide = 100 * abs(value) / longest
        bar = f'<rect width="{wide:.1f}" height="8" rx="1" fill="{colour}"/>'
        found.append(
            f'<tr><td>{escape(name)}</td><td style="width:34%">'
            f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" style="height:.7rem">{bar}</svg>'
            f'</td><td class="n">{escape(told)}</td></tr>'
        )
    return f'<div class="scroll"><table>{"".join(found)}</table></div>' if found else ""
