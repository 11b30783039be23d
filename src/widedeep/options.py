"""Options as frozen dataclasses: their checks, and how TOML and ``--set`` are read into them."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import importlib
import inspect
import math
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np

from widedeep.errors import ConfigError, WideDeepError, nearest, show_value

__all__ = ["read_section", "read_tables"]

Auto = Literal["auto"]
Section = TypeVar("Section")
_PLURALS = {float: "numbers", int: "integers", str: "texts"}
_INT64 = range(-(2**63), 2**63)
COUNT = "an integer of at least 1, at most 2,147,483,647"
COUNTS = range(1, 2**31)


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Values that an option may have beside its type, as :func:`check_types` reads ``Annotated``.

    Of a list every item is tested; None and the texts of a ``Literal`` are allowed by the type.
    """

    test: Callable[[Any], bool]
    text: str  # What errors say is expected; {name} is the option's


Count = Annotated[int, Allowed(COUNTS.__contains__, COUNT)]
Widths = Annotated[tuple[int, ...], Allowed(COUNTS.__contains__, f"widths: {COUNT} each")]
AutoCount = Annotated[int | Auto, Allowed(COUNTS.__contains__, f"{COUNT}, or 'auto'")]
Positive = Annotated[float, Allowed(lambda x: x > 0, "a number > 0")]
NotNegative = Annotated[float, Allowed(lambda x: x >= 0, "a number of at least 0")]
FractionBelow1 = Annotated[float, Allowed(lambda x: 0 <= x < 1, "0 <= {name} < 1")]
UnitInterval = Annotated[float, Allowed(lambda x: 0 <= x <= 1, "0 <= {name} <= 1")]
Seed = Annotated[int, Allowed(range(2**63).__contains__, "an integer, 0 <= seed < 2**63")]
Threads = Annotated[
    int, Allowed(range(1, 1025).__contains__, "an integer of at least 1, at most 1,024")
]
_HINTS: dict[type, dict[str, Any]] = {}
_ALLOWED: dict[type, dict[str, Allowed]] = {}
# A key of TOML: bare, or in quotes, where dots and equals signs are part of it.
_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^."'=\s][^.="']*?)\s*([.=])""")


def check_range(owner: str, name: str, got: object, condition: bool, allowed: str) -> None:
    """Raise ConfigError with the value and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{owner}: got {name}={show_value(got)}, expected {allowed}")


def _type_hints(kind: type) -> dict[str, Any]:
    """Evaluate a class's types once: that takes longer than all checks of its values."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def field_help(config: type) -> dict[str, str]:
    """Return the help of a dataclass's fields: the text in ``Annotated[type, text]``."""
    hints = typing.get_type_hints(config, include_extras=True)
    annotated = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {
        name: part for name, parts in annotated.items() for part in parts if isinstance(part, str)
    }


def allowed_values(kind: type) -> dict[str, Allowed]:
    """Return what ``Annotated`` says of a dataclass's fields."""
    if kind not in _ALLOWED:
        hints = typing.get_type_hints(kind, include_extras=True)
        ranges = {name: _find_allowed(hint) for name, hint in hints.items()}
        _ALLOWED[kind] = {name: allowed for name, allowed in ranges.items() if allowed is not None}
    return _ALLOWED[kind]


def _find_allowed(hint: Any) -> Allowed | None:
    candidates = getattr(hint, "__metadata__", ())
    if _is_union(hint):
        candidates = [_find_allowed(arg) for arg in typing.get_args(hint)]
    return next((one for one in candidates if isinstance(one, Allowed)), None)


def check_types(config: object, owner: str, raising: type[WideDeepError] = ConfigError) -> None:
    """Refuse values of other types than a dataclass declares, and a text twice in a list."""
    hints = _type_hints(type(config))
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        name, hint = entry.name, hints[entry.name]
        raw = getattr(config, name)
        value = _plain(raw, hint)
        if value is not raw:
            object.__setattr__(config, name, value)
        if not _fits_field(entry, value, hint):
            raise raising(f"{owner}: got {name} = {_typed(value)}, {_expected(value, hint)}")
        texts = [item for item in value if isinstance(item, str)] if _is_tuple(value, hint) else []
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise raising(f"{owner}: got {name} with {twice!r} twice, expected it once")
    check_ranges(config, owner, raising)


def check_ranges(config: object, owner: str, raising: type[WideDeepError] = ConfigError) -> None:
    """Refuse values that ``Annotated`` does not allow."""
    try:
        hints, ranges = _type_hints(type(config)), allowed_values(type(config))
    except NameError:  # a class of one's own with types that type checkers alone see
        return
    for name, allowed in ranges.items():
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is None or (isinstance(item, str) and hints[name] not in (int, float)):
                continue  # allowed by the type
            if not allowed.test(item):
                expected = allowed.text.format(name=name)
                raise raising(f"{owner}: got {name}={show_value(item)}, expected {expected}")


def _is_tuple(value: object, hint: Any) -> bool:
    return isinstance(value, tuple) and _takes(hint, tuple)


def _typed(value: object) -> str:
    """A value with its type; the quotes of text say what it is."""
    kind = "" if isinstance(value, str) else f" ({type(value).__name__})"
    return f"{show_value(value)}{kind}"


def _plain(value: Any, hint: Any) -> Any:
    """The Python value that a NumPy number, a list or a path stands for."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike) and _takes(hint, str):
        return os.fspath(value)
    if isinstance(value, datetime.date) and _takes(hint, str):
        return value.isoformat()
    if isinstance(value, list) and _takes(hint, tuple):
        value = tuple(value)
    plain_items = (np.generic, os.PathLike, datetime.date)
    if isinstance(value, (list, tuple)) and any(isinstance(v, plain_items) for v in value):
        return type(value)(_plain(item, str) for item in value)
    return value


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _takes(hint: Any, kind: type) -> bool:
    """Tell whether a type hint is of a kind, or a union with one of it."""
    if _is_union(hint):
        return any(_takes(arg, kind) for arg in typing.get_args(hint))
    return hint is kind or typing.get_origin(hint) is kind


def as_table(config: Any) -> dict[str, Any]:
    """Return a dataclass's fields as TOML knows values: tuples become lists."""
    return {key: _as_toml(value) for key, value in dataclasses.asdict(config).items()}


def _as_toml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_toml(item) for key, item in value.items()}
    if callable(value):  # a function, of which a record holds the name
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"function {value.__module__}.{name}"
    return [_as_toml(item) for item in value] if isinstance(value, (list, tuple)) else value


def with_options(config: Section, options: Mapping[str, Any], owner: str) -> Section:
    """Return a configuration with fields replaced by keyword arguments of ``owner``."""
    check_option_names(options, type(config), owner)
    return dataclasses.replace(config, **options)  # type: ignore[type-var]


def as_count(name: str, count: Any) -> Any:
    """Return an integer of at least 1, of NumPy too, or None."""
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if whole and 1 <= count < 2**63:
        return int(count)
    if count is not None:
        raise ConfigError(f"got {name}={show_value(count)}, expected an integer of at least 1")


def keyword_signature(
    owner: Callable[..., Any], config_class: type, *left_out: str
) -> inspect.Signature:
    """Return the signature of a class or function whose ``**options`` are a dataclass's fields."""
    own, fields = inspect.signature(owner).parameters, inspect.signature(config_class).parameters
    parameters = [own[name] for name in own if name != "options"]
    further = [fields[name] for name in fields if name not in (*own, *left_out)]
    return inspect.Signature([*parameters, *further])


def check_option_names(names: Iterable[str], config_class: type, owner: str) -> None:
    """Raise TypeError for a keyword that is no field of a dataclass."""
    fields = [entry.name for entry in dataclasses.fields(config_class)]
    for name in names:
        if name not in fields:
            raise TypeError(f"{owner}: got the unknown option {name!r}; {nearest(name, fields)}")


def import_modules(
    modules: Sequence[str], owner: str, registered: Callable[[], Iterable[object]] | None = None
) -> None:
    """Import modules that register what is of one's own.

    Args:
        modules: Import paths, such as ``"my_project.metrics"``; the working directory is searched
            too.
        owner: The option that names them.
        registered: Returns what they are to register something in.

    Raises:
        ConfigError: If one cannot be imported, or registers nothing.
    """
    for module in modules:
        directory = os.getcwd()
        before = None if registered is None or module in sys.modules else [*registered()]
        sys.path.insert(0, directory)
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is the user's own
            why = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{owner}: got {module!r}, which cannot be imported ({why}); give an import path "
                f"that Python finds, or a module in {directory}"
            ) from error
        finally:
            sys.path.remove(directory)
        of_python = registered is not None and module.split(".")[0] in sys.stdlib_module_names
        if of_python or (before is not None and before == [*(registered or tuple)()]):
            raise ConfigError(
                f"{owner}: got {module!r}, which registers nothing; name a module that does"
            )


def check_table(table: object, name: str, origin: str) -> None:
    """Refuse a value, or a list of tables, where a section is asked for."""
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"{origin}: got {name} = {show_value(table)}, expected a section [{name}]"
        )


def read_section(
    kind: type[Section], table: Mapping[str, Any], origin: str, extra: tuple[str, ...] = ()
) -> Section:
    """Read a TOML table into a dataclass.

    Args:
        kind: The dataclass; its annotations say what is allowed.
        table: The values.
        origin: Named in errors, such as ``"run.toml: [train]"``.
        extra: Further keys that the section may hold, read elsewhere.

    Raises:
        ConfigError: For an unknown key (with the nearest), a value of another type, or one that the
            dataclass refuses.
    """
    entries = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = {name: hint for name, hint in _type_hints(kind).items() if name in entries}
    for key, raw in table.items():
        if key not in hints:
            raise ConfigError(
                f"{origin}: got the unknown key {key!r}; {nearest(key, [*hints, *extra])}"
            )
        value = _plain(raw, hints[key])
        if not _fits_field(entries[key], value, hints[key]):
            raise ConfigError(
                f"{origin}: got {key} = {_typed(value)}, {_expected(value, hints[key])}"
            )
    try:
        return kind(**{key: _plain(value, hints[key]) for key, value in table.items()})
    except ConfigError as error:
        # The section is in the error already.
        where = origin.rpartition(": [")[0]
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _fits_field(entry: dataclasses.Field[Any], value: object, hint: Any) -> bool:
    may_be_infinite = entry.metadata.get("may_be_infinite", False)
    if may_be_infinite and isinstance(value, float) and value == math.inf:
        return True
    return _fits(value, hint)


def _fits(value: object, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, args[0]) for item in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is not None:
        return isinstance(value, Mapping) and all(
            _fits(key, args[0]) and _fits(item, args[1]) for key, item in value.items()
        )
    if hint is float:
        return _is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value in _INT64
    if hint is str:
        return isinstance(value, str) and is_unicode(value)
    return hint is Any or isinstance(value, hint)


def _is_number(value: object) -> bool:
    """Tell whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond 1.8e308
        return False


def is_unicode(text: str) -> bool:
    """Tell whether text can be written: half a surrogate pair, or bytes of a name, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expected(value: object, hint: Any) -> str:
    """What is allowed instead of a value that does not fit; the nearest of some words."""
    words = [arg for arg in typing.get_args(hint) if isinstance(arg, str)]
    if isinstance(value, str) and len(words) > 1 and nearest(value, words).startswith("did"):
        return f"expected {_say(hint)}; {nearest(value, words)}"
    if isinstance(value, str) and not is_unicode(value):
        return "expected text in Unicode; name it in UTF-8"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected {_say(hint)} that is finite"
    if isinstance(value, int) and value not in _INT64:
        return f"expected {_say(hint)} of 64 bits"
    return f"expected {_say(hint)}"


def _say(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_say(arg) for arg in args if arg is not type(None)))
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(args[0], 'values')}"
    if origin is collections.abc.Callable:
        return "a function"
    names = {float: "a number", int: "an integer", bool: "true or false", str: "text"}
    names |= {datetime.date: "a date or time", datetime.timedelta: "a timedelta"}
    return names.get(hint, "a table")


def check_value(
    value: object, hint: Any, where: str, raising: type[WideDeepError] = ConfigError
) -> None:
    """Refuse a plain value, read from JSON or TOML, of another type than a hint says."""
    if not _fits(value, hint):
        raise raising(f"{where}: got {value!r:.80}, {_expected(value, hint)}")


def read_tables(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    places: Collection[str] = (),
    missing: str = "check the path",
) -> dict[str, Any]:
    """Read a TOML file and put overrides into it.

    Args:
        path: The file.
        overrides: ``"section.key=value"``; the value is read as TOML, or as text if it is none.
        places: Dotted keys that are paths: in an override they are relative to the working folder,
            as they were typed there.
        missing: What to do where there is no such file.

    Raises:
        ConfigError: For a missing or broken file, or an override that is no assignment.
    """
    tables = _parse(_read_text(Path(path), missing), str(path))
    for override in overrides:
        _override(tables, override, places)
    _check_sizes(tables, str(path))
    return tables


def unknown_section(name: str, value: object, sections: Sequence[str]) -> str:
    """Return what is wrong with a name at the top of a configuration that is no section's."""
    if isinstance(value, dict | list):
        return f"got the unknown section [{name}]; {nearest(name, sections)}"
    headings = ", ".join(f"[{section}]" for section in sections)
    return f"got the key {name!r} outside of a section; write it under its own, of {headings}"


def _check_sizes(value: object, where: str) -> None:
    """Refuse integers of thousands of digits, which no error could even show."""
    if isinstance(value, int) and value.bit_length() > 4096:
        raise ConfigError(f"{where}: got {show_value(value)}, expected an integer of 64 bits")
    for key, item in value.items() if isinstance(value, dict) else ():
        _check_sizes(item, f"{where}: {key}")
    for item in value if isinstance(value, list) else ():
        _check_sizes(item, where)


def _read_text(path: Path, missing: str) -> str:
    """A file's text in UTF-8; a byte order mark, as editors of Windows write it, is no text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{show_path(path)}: no such file; {missing}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, expected a TOML file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{show_path(path)}: cannot be read ({reason}); check the path"
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        reason = "text in UTF-16" if utf16 else f"byte 0x{data[error.start]:02x}, which is no UTF-8"
        advice = _no_configuration(str(path)) or "; save the file as UTF-8"
        raise ConfigError(f"{path} (line {line}): got {reason}{advice}") from error


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # of numbers of thousands of digits, too
        advice = _no_configuration(origin)
        raise ConfigError(f"{origin}: got text that is no TOML: {error}{advice}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: got lists or tables nested too deeply") from error


def _no_configuration(path: str) -> str:
    """Return what to do with a file that is none by its name; data are often given in its place."""
    if path.endswith(".toml"):
        return ""
    return f"; expected a configuration (.toml): 'widedeep init {path}' writes one for a table"


def show_path(path: object) -> str:
    """Return a path as text that can be printed, whatever bytes the name holds."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _override(tables: dict[str, Any], override: str, places: Collection[str]) -> None:
    keys, text = _assignment(override)
    value = _value(text)
    if ".".join(keys) in places:
        # Typed where the user is, not where the file lies.
        value = resolve_paths(value, Path.cwd())
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"got --set {show_value(override)}, but {key!r} is a value, not a table"
            )
    table[keys[-1]] = value


def _assignment(override: str) -> tuple[list[str], str]:
    """The keys of an override, and the text of its value."""
    keys: list[str] = []
    position = 0
    while match := _KEY.match(override, position):
        word, end = match.groups()
        quoted = word[0] in "\"'"
        keys.append(_parse(f"key = {word}", f"--set {override!r}")["key"] if quoted else word)
        position = match.end()
        if end == "=":
            break
    if len(keys) < 2 or override[position - 1] != "=":
        raise ConfigError(
            f"got --set {show_value(override)}, expected SECTION.KEY=VALUE such as train.epochs=3"
        )
    return keys, override[position:]


def _value(text: str) -> Any:
    """A value as TOML, or as the text it is."""
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return tables["value"] if len(tables) == 1 else text


def resolve_paths(value: Any, folder: Path) -> Any:
    """Return a path, or a list of paths, relative to a folder; other values as they are."""
    if isinstance(value, str):
        is_whole = not value or os.path.isabs(value) or "://" in value  # no path is no folder
        return value if is_whole else str(folder / value)
    return [resolve_paths(item, folder) for item in value] if isinstance(value, list) else value
