"""Fits docstrings to a site of Markdown, as they are read.

A Sphinx role such as :class:`X` is shown as `X`, and the section "Example" is given the name by
which its lines are known to be a Python session.
"""

from __future__ import annotations

import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class DocstringMarkdown(griffe.Extension):
    """Rewrites the docstrings of the API reference."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", text)
