"""HttpError: an answer that names the fault of a request and its place in the body."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from widedeep.errors import LimitError, WideDeepError, nearest

if TYPE_CHECKING:
    from widedeep.schema import Schema

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_COLUMN_AND_ROW = re.compile(r"(feature|column) '(.*?)' \(row (\d+)[) ]")
_BYTE = re.compile(r"malformed.*\(byte (\d+)\)")
_NO_NUMBER = re.compile(rb"NaN|Infinity|nan|inf")
_UNKNOWN_FIELD = re.compile("Object contains unknown field `(.*)`")
_PATH_SEPARATOR = " - at `$"
_MAX_MESSAGE = 2_000
_ADVICE = {
    "items": '; give a list for each column, {"price": [1.5, 2.0]}, with a value for each item',
    "candidates": "; give a list of ids, and columns of items in items",
}


class HttpError(Exception):
    """An error reply to a request; `pointer` is a JSON pointer into the request's body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        pointer: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _shortened(message)
        self.pointer = pointer if pointer is None or len(pointer) <= _MAX_MESSAGE else None
        self.retry_after = retry_after
        self.close, self.allow = close, allow

    def body(self) -> bytes:
        """Return the body of the answer."""
        document = {"error": self.message}
        if self.pointer is not None:
            document["pointer"] = self.pointer
        return msgspec.json.encode(document)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers beside those of every answer."""
        headers = []
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode()))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


def _shortened(message: str) -> str:
    """Cut a message that quotes a long value."""
    if len(message) <= _MAX_MESSAGE:
        return message
    return f"{message[:_MAX_MESSAGE]}... ({len(message)} characters)"


def json_pointer(path: str) -> str:
    """Return the JSON pointer of a path as msgspec writes it."""
    steps = (name or index for name, index in _STEP.findall(path))
    return "".join(f"/{step.replace('~', '~0').replace('/', '~1')}" for step in steps)


def bad_json(error: Exception, body: bytes = b"", fields: Sequence[str] = ()) -> HttpError:
    """Return the answer to a body that is not JSON, or not of the expected structure.

    Args:
        error: What the decoder raised.
        body: The body.
        fields: Names that an object may have.
    """
    if isinstance(error, RecursionError):
        return HttpError(400, "got JSON that is nested too deeply; send plain values and lists")
    if isinstance(error, UnicodeError):
        return HttpError(400, f"got text that is not UTF-8 ({error}); encode the body as UTF-8")
    message = str(error)
    if isinstance(error, msgspec.DecodeError) and not body.strip():
        return HttpError(400, "got no body; send a JSON object")
    if (place := _BYTE.search(message)) and _NO_NUMBER.match(body, int(place[1])):
        return HttpError(400, f"{message}: JSON has no NaN and no Infinity; send null")
    if (field := _UNKNOWN_FIELD.fullmatch(message)) and fields:
        message = f"{message}; {nearest(field[1], fields)}"
    said, separator, where = message.rpartition(_PATH_SEPARATOR)
    if not separator:
        pointer = "" if isinstance(error, msgspec.ValidationError) else None
        return HttpError(400, message, pointer=pointer)
    pointer = json_pointer("$" + where.removesuffix("`"))
    advice = _ADVICE.get(pointer[1:].partition("/")[0], "")
    return HttpError(400, said + advice, pointer=pointer)


def feature_error(
    error: WideDeepError, schema: Schema, pointer_of: Callable[[str, int], str | None]
) -> HttpError:
    """Return the answer to values that do not fit the model's features."""
    message = _shortened(str(error))
    status = 413 if isinstance(error, LimitError) else 400
    match = _COLUMN_AND_ROW.search(message)
    if match is None:
        return HttpError(status, message)
    kind, name, row = match[1], match[2], int(match[3])
    if kind == "feature" and name in schema.spec.by_name:
        source = getattr(schema.spec.by_name[name], "source", None)
        if source is None:  # a cross: no one column is at fault
            return HttpError(status, message)
        name = source
    return HttpError(status, message, pointer=pointer_of(name, row))
