"""Pages that need nothing else: tables and charts as HTML and inline SVG, no script, no network."""

from widedeep.page.charts import bar_list, line_chart
from widedeep.page.document import document, note, section, table, tiles

__all__ = ["bar_list", "document", "line_chart", "note", "section", "table", "tiles"]
