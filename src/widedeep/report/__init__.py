"""The report on a model: one page with all that a person wants to know of it.

:func:`make_report` measures a bundle on labelled rows, beside an older one, and reads from it what
it learned; :meth:`Report.save` writes the page. Nothing here imports torch.
"""

from widedeep.report.build import Report, RunRecord, make_report

__all__ = ["Report", "RunRecord", "make_report"]
