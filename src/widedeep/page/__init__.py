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
    framed_page,
    note,
    page_frame,
    pair,
    render,
    section,
    subsection,
    table,
    tiles,
)
from widedeep.page.training_charts import is_number, training_charts

__all__ = [
    "DotRow",
    "bar_list",
    "charts",
    "chips",
    "column_chart",
    "contents",
    "document",
    "dot_list",
    "framed_page",
    "is_number",
    "legend",
    "line_chart",
    "note",
    "outer_ticks",
    "page_frame",
    "pair",
    "render",
    "section",
    "subsection",
    "table",
    "tiles",
    "training_charts",
]
