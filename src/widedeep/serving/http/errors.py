"""HttpError: an answer that says what was wrong with the request, and where in its body."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from widedeep.errors import LimitError, WideDeepError

if TYPE_CHECKING:
    from widedeep.schema import Schema

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_PLACE = re.compile(r"(feature|column) '(.*?)' \(row (\d+)[) ]")
_AT = " - at `$"
_LONGEST_MESSAGE = 2_000


class HttpError(Exception):
    """A request that is not answered as its sender hoped."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        pointer: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _shortened(message)
        self.pointer = pointer if pointer is None or len(pointer) <= _LONGEST_MESSAGE else None
        self.retry_after = retry_after
        self.close = close

    def body(self) -> bytes:
        """The body of the answer."""
        found = {"error": self.message}
        if self.pointer is not None:
            found["pointer"] = self.pointer
        return msgspec.json.encode(found)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beside those of every answer."""
        found = []
        if self.retry_after is not None:
            found.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.close:
            found.append((b"connection", b"close"))
        return found


def _shortened(message: str) -> str:
    """Return a message without most of a value that it quotes."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return f"{message[:_LONGEST_MESSAGE]}... ({len(message)} characters)"


def json_pointer(path: str) -> str:
    """Return a place as msgspec names it as a JSON pointer."""
    steps = (name or index for name, index in _STEP.findall(path))
    return "".join(f"/{step.replace('~', '~0').replace('/', '~1')}" for step in steps)


def bad_json(error: Exception) -> HttpError:
    """Return the answer to a body that is no JSON, or not of the shape that was asked for."""
    if isinstance(error, RecursionError):
        return HttpError(400, "got JSON that is nested too deep; send plain values and lists")
    if isinstance(error, UnicodeError):
        return HttpError(400, f"got text that is no UTF-8 ({error}); encode the body as UTF-8")
    message = str(error)
    said, at, where = message.rpartition(_AT)
    if not at:
        pointer = "" if isinstance(error, msgspec.ValidationError) else None
        return HttpError(400, message, pointer=pointer)
    return HttpError(400, said, pointer=json_pointer("$" + where.removesuffix("`")))


def misfit(
    error: WideDeepError, schema: Schema, place: Callable[[str, int], str | None]
) -> HttpError:
    """Return the answer to values that do not fit the model's features."""
    message = _shortened(str(error))
    status = 413 if isinstance(error, LimitError) else 400
    found = _PLACE.search(message)
    if found is None:
        return HttpError(status, message)
    kind, name, row = found[1], found[2], int(found[3])
    if kind == "feature" and name in schema.spec.by_name:
        source = getattr(schema.spec.by_name[name], "source", None)
        if source is None:  # a cross: no one column is at fault
            return HttpError(status, message)
        name = source
    return HttpError(status, message, pointer=place(name, row))
