"""Charts put things where their figures say."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.page import DotRow, bar_list, chips, column_chart, dot_list, line_chart
from widedeep.page.charts import outer_ticks, tick_texts, ticks

numbers = st.floats(-1e9, 1e9, allow_nan=False)


@given(numbers, st.floats(1e-6, 1e9))
def test_ticks_are_round_and_within(low: float, length: float) -> None:
    high = low + length
    if not low < high or high - low < 1e-9 * max(abs(low), abs(high)):
        return
    found = ticks(low, high)
    room = 1e-6 * (high - low)
    assert 1 <= len(found) <= 7
    assert all(low - room <= tick <= high + room for tick in found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert all(gap == pytest.approx(gaps[0], rel=1e-3) for gap in gaps)


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=20))
def test_outer_ticks_reach_around(values: list[float]) -> None:
    found = outer_ticks(values)
    room = 1e-6 * (found[-1] - found[0])
    assert found[0] - room <= min(values)
    assert max(values) <= found[-1] + room
    assert 2 <= len(found) <= 9
    assert len(set(tick_texts(found))) == len(found) or max(map(abs, found)) >= 1e6


def circles(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_keep_their_distances() -> None:
    (x0, y0), (x1, y1), (x2, y2) = circles(
        line_chart({"a": [(0, 1.0), (10, 2.0), (40, 1.5)]}, x_label="step")
    )
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(2.0, abs=0.02)  # upwards is less


def test_the_diagonal_has_one_scale() -> None:
    drawn = line_chart({"a": [(0.2, 0.4), (0.4, 0.2)]}, x_label="x", diagonal=True)
    (xa, ya), (xb, yb) = circles(drawn)
    dashed = re.search(r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"[^/]*dash', drawn)
    assert dashed is not None
    x1, y1, x2, y2 = map(float, dashed.groups())
    for x, y, over in ((xa, ya, True), (xb, yb, False)):
        on_line = y1 + (x - x1) / (x2 - x1) * (y2 - y1)
        assert (y < on_line) == over


def test_whiskers_reach_as_far_as_the_error() -> None:
    drawn = line_chart(
        {"a": [(0, 0.0), (1, 1.0)]}, x_label="x", errors={"a": [0.25, 0.0]}, mark=(1, "<kept>")
    )
    (_, y0), (_, y1) = circles(drawn)
    whisker = re.search(r'y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)"[^/]*opacity', drawn)
    assert whisker is not None
    low, high = map(float, whisker.groups())
    assert (y0 - high) == pytest.approx(0.25 * (y0 - y1), abs=0.2)
    assert low <= 250  # cut at the edge
    assert "&lt;kept&gt;" in drawn


@pytest.mark.parametrize("points", [[(1, 1.0)], [(1, 0.0)], [(5, 2.0), (5, 2.0)]])
def test_one_place(points: list[tuple[float, float]]) -> None:
    assert all(
        0 < x < 420 and 0 < y < 250 for x, y in circles(line_chart({"a": points}, x_label="x"))
    )


def test_nothing_to_draw() -> None:
    assert line_chart({}, x_label="x") == line_chart({"a": []}, x_label="x") == ""
    assert bar_list([]) == dot_list([], series=["a"], headings=("b", "c")) == ""
    assert column_chart([], ends=("a", "b")) == chips([], ("a", "b")) == ""


def test_bars_are_as_long_as_their_figures() -> None:
    drawn = bar_list([("a", 2.0, "2"), ("b", -1.0, "-1")], signed=True)
    assert re.findall(r'<rect width="([\d.]+)%"', drawn) == ["100.0", "50.0"]
    assert bar_list([("a", 0.25, "")], longest=1.0).count('width="25.0%"') == 1
    assert "0.0%" in bar_list([("a", 0.0, "")])
    tall = re.findall(
        r'height="([\d.]+)%"', column_chart([("a", 2, ""), ("b", 1, "")], ends=("", ""))
    )
    assert [float(t) - 2 for t in tall] == [96, 48]


def test_dots_share_a_scale_and_stop_at_its_ends() -> None:
    drawn = dot_list(
        [DotRow("<a>", (0.5, None), "1", True), DotRow("b", (0.75, 9.0))],
        series=["now", "then"],
        headings=("slice", "rows"),
        scale=[0.5, 1.0],
    )
    assert re.findall(r'<circle cx="([\d.]+)%"', drawn) == ["3.0", "97.0", "50.0"]
    assert "&lt;a&gt;" in drawn
    assert drawn.count('class="dim"') == 1
    assert not math.isnan(float(outer_ticks([0.5])[0]))


def test_the_highest_column_is_told_as_what_it_counts() -> None:
    counts = column_chart([("a", 3000.0, ""), ("b", 1.0, "")], ends=("a", "b"))
    assert "highest: 3,000<" in counts
    assert "highest: 0.2500<" in column_chart([("a", 0.25, "")], ends=("a", "b"))
