"""Values and tables as TOML text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from widedeep.errors import FeatureError


def comment_text(text: str) -> str:
    """Return text that a comment of TOML may hold: column names may break lines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def toml_text(table: Mapping[str, Mapping[str, object]]) -> str:
    """Write two levels of tables as TOML; deeper ones become inline tables."""
    blocks = []
    for section, entries in table.items():
        lines = [f"[{section}]"]
        for key, value in entries.items():
            inner = value if isinstance(value, Mapping) else {}
            if inner and all(isinstance(v, Mapping) for v in inner.values()):
                lines += [
                    f"{toml_key(key)}.{toml_key(k)} = {toml_value(v)}" for k, v in inner.items()
                ]
            else:
                lines.append(f"{toml_key(key)} = {toml_value(value)}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def toml_key(name: str) -> str:
    """Return a key, quoted if it must be."""
    bare = name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if bare else toml_value(name)


def toml_value(value: object) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML has no surrogate pairs and forbids a raw DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        # NumPy's scalars are floats that print with their type's name.
        return repr(float(value))
    raise FeatureError(f"got {value!r} ({type(value).__name__}), which TOML cannot hold")


def toml_table(entries: object, key: str) -> Mapping[str, Any]:
    """Return a table of ``[features]``."""
    if not isinstance(entries, Mapping):
        raise FeatureError(
            f"got {key} = {entries!r} in [features], expected a table with one entry a feature"
        )
    return entries


def toml_list(entries: object, key: str) -> list[Any]:
    """Return a list of ``[features]``."""
    if not isinstance(entries, (list, tuple)):
        raise FeatureError(f"got {key} = {entries!r} in [features], expected a list")
    return list(entries)
