"""Self-contained pages from templates, with charts as inline SVG; no script, no network."""

from widedeep.page.charts import (
    DotRow,
    bar_list,
    chips,
    column_chart,
    dot_list,
    legend,
    line_chart,
    outer_ticks,
)
from widedeep.page.document import (
    charts,
    contents,
    document,
    note,
    pair,
    render,
    section,
    subsection,
    table,
    tiles,
)

__all__ = [
    "DotRow",
    "bar_list",
    "charts",
    "chips",
    "column_chart",
    "contents",
    "document",
    "dot_list",
    "legend",
    "line_chart",
    "note",
    "outer_ticks",
    "pair",
    "render",
    "section",
    "subsection",
    "table",
    "tiles",
]
