"""Reads a page back, as strictly as a machine can: every tag closed, nothing fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "wbr", "br"}
_KNOWN = {
    *("html", "head", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "a", "section"),
    *("div", "span", "i", "b", "small", "ul", "li", "table", "tr", "th", "td", "code"),
    *("svg", "line", "text", "polyline", "circle", "rect", "title"),
    *_VOID,
}


class Page(HTMLParser):
    """A page's tables, as rows of texts, and its whole text.

    Args:
        html: The page.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        assert html.startswith("<!doctype html>")
        self.html = html
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in _KNOWN, tag
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "xlink:href", "data", "action"), (tag, name)
            assert value is None or "url(" not in value
            if name == "id":
                assert value not in self.ids, value
                self.ids.append(str(value))
            if name == "href":
                self.links.append(str(value))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            assert not re.search(r"url\(|@import", data)
            return
        self.texts.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def table(self, *headings: str) -> list[list[str]]:
        """The rows of the table whose first headings these are."""
        for rows in self.tables:
            if rows and tuple(rows[0][: len(headings)]) == headings:
                return rows[1:]
        raise AssertionError((headings, [rows[0] for rows in self.tables if rows]))


def read_page(html: str) -> Page:
    """Parse a page and check that it is whole and fetches nothing."""
    page = Page(html)
    assert "://" not in re.sub(r"[^<>]*", "", page.html)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links), page.links
    return page
