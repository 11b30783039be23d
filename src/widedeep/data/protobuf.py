"""Protocol buffers, read without a schema: numbers of fields and raw values; ``tf.Example``.

The format is public (Protocol Buffers, *Encoding*): a message is a row of pairs, a key (field
number and wire type) and a value. What the fields mean stands with each reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

Value = int | memoryview
Message = dict[int, list[Value]]
_LONGEST_VARINT = 10


class WireError(ValueError):
    """Bytes that are no message: cut off, or of another kind."""


UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    struct.error,
)
"""What a reader of a damaged message meets: text that is none, a field that is not there."""


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at ``at``, and where it ends."""
    number = 0
    for i in range(_LONGEST_VARINT):
        if at + i >= len(data):
            raise WireError(f"ends within a number (byte {at + i})")
        byte = data[at + i]
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise WireError(f"holds a number of more than {_LONGEST_VARINT} bytes (byte {at})")


def read_fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value): an unsigned number, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = read_varint(data, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise WireError(f"holds a field of wire type {kind} (byte {at})")
        if at + size > len(data):
            raise WireError(f"ends within a field of {size:,} bytes (byte {at})")
        value = data[at : at + size]
        at += size
        yield key >> 3, int.from_bytes(value, "little") if kind != 2 else value


def read_message(data: bytes | memoryview) -> Message:
    """Return a message's values by field number, in their order."""
    fields: Message = {}
    for number, value in read_fields(memoryview(data)):
        fields.setdefault(number, []).append(value)
    return fields


def messages(message: Message, field: int) -> list[memoryview]:
    """Return the values of a field that holds messages, bytes or text."""
    values = message.get(field, [])
    if any(isinstance(value, int) for value in values):
        raise WireError(f"holds a number in field {field}, where a message belongs")
    return values  # type: ignore[return-value]


def number(message: Message, field: int, default: int = 0) -> int:
    """Return the last value of a field of numbers, as unsigned bits."""
    value = message.get(field, [default])[-1]
    if not isinstance(value, int):
        raise WireError(f"holds bytes in field {field}, where a number belongs")
    return value


def signed(message: Message, field: int, default: int = 0) -> int:
    """Return the last value of a field of signed 64-bit numbers (not zigzag)."""
    value = number(message, field, default & (2**64 - 1))
    return value - 2**64 if value >= 2**63 else value


def text(message: Message, field: int) -> str:
    """Return the last value of a field of text."""
    values = messages(message, field)
    return bytes(values[-1]).decode("utf-8", "replace") if values else ""


def numbers(message: Message, field: int, form: str = "varint") -> list[int | float]:
    """Return a repeated field of numbers, packed or not.

    Args:
        message: The message.
        field: Its number.
        form: ``"varint"`` (signed 64 bits), or a code of :mod:`struct`: ``"f"``, ``"d"``.
    """
    out: list[int | float] = []
    for value in message.get(field, []):
        if isinstance(value, int):
            raw: list[int | float] = [value]
            if form != "varint":
                size = struct.calcsize(form)
                raw = list(struct.unpack(f"<{form}", value.to_bytes(size, "little")))
        elif form == "varint":
            raw, at = [], 0
            while at < len(value):
                entry, at = read_varint(value, at)
                raw.append(entry)
        else:
            raw = list(struct.unpack(f"<{len(value) // struct.calcsize(form)}{form}", value))
        out += [n - 2**64 if form == "varint" and n >= 2**63 else n for n in raw]
    return out


def map_entry(entry: bytes | memoryview) -> tuple[str, memoryview]:
    """Return the key and the value of an entry of a map from text to messages."""
    pair = read_message(entry)
    return text(pair, 1), messages(pair, 2)[-1]


def read_example(serialized: bytes) -> dict[str, list[Any]]:
    """Return the features of a serialized ``tf.train.Example``: bytes, or numbers, by name.

    Raises:
        WireError: If the bytes are none.
    """
    try:
        return {
            name: _feature_values(read_message(feature))
            for features in messages(read_message(serialized), 1)
            for name, feature in map(map_entry, messages(read_message(features), 1))
        }
    except UNREADABLE as error:
        raise WireError(f"is no tf.train.Example ({error})") from error


def _feature_values(feature: Message) -> list[Any]:
    values: list[Any] = []
    for one in messages(feature, 1):
        values += [bytes(value) for value in messages(read_message(one), 1)]
    for one in messages(feature, 2):
        values += numbers(read_message(one), 1, "f")
    for one in messages(feature, 3):
        values += numbers(read_message(one), 1)
    return values
