"""What an operator has asked for, in one small file that every server of a directory follows."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from widedeep.bundle.manifest import MANIFEST
from widedeep.directory import fsync_path
from widedeep.errors import ConfigError

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A version that answers a share of the requests."""

    version: str  # Its name
    share: float  # Of the request ids, 0 < share <= 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"canary: got share={self.share!r}, expected 0 < share <= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingState:
    """What an operator has asked for, beyond the policy that the servers were started with."""

    changes: int = 0  # How often the state was changed
    # Versions that are not to be served, by a rollback or an unload
    withdrawn: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()  # Versions to keep loaded besides those that the policy wants
    labels: Mapping[str, str] = field(default_factory=dict)  # Version by label
    canary: Canary | None = None  # A version that answers a share of the requests
    shadow: str | None = None  # A version that scores what another one answers, to be compared

    def to_text(self) -> str:
        """Return the state as the file holds it."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def state_path(root: Path) -> Path:
    """Return where a directory's state is kept: in it, or beside it if it is itself a bundle."""
    if (root / MANIFEST).is_file():
        whole = root.resolve()
        return whole.parent / f".{whole.name}.serving.json"
    return root / "serving.json"


def read_state(path: Path) -> ServingState:
    """Read the state; the default one if there is no file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ServingState()
    except OSError as error:
        raise ConfigError(
            f"{path}: the state cannot be read ({error.strerror or error}); make it a file that "
            "this user may read, or delete it to serve by the policy alone"
        ) from error
    try:
        value = json.loads(raw)
        if value.pop("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        return _state_of(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise ConfigError(
            f"{path}: got a state that cannot be read ({error}); correct it, or delete the file to "
            "serve by the policy alone"
        ) from error


def _state_of(value: Mapping[str, Any]) -> ServingState:
    canary = value["canary"]
    return ServingState(
        **{
            **value,
            "withdrawn": tuple(map(str, value["withdrawn"])),
            "loaded": tuple(map(str, value["loaded"])),
            "labels": {str(label): str(name) for label, name in value["labels"].items()},
            "canary": None if canary is None else Canary(**canary),
        }
    )


def change_state(path: Path, change: Callable[[ServingState], ServingState]) -> ServingState:
    """Change the state: read, changed and renamed into place under a lock, so that none is lost."""
    try:
        with _locked(path):
            before = read_state(path)
            after = dataclasses.replace(change(before), changes=before.changes + 1)
            _replace_text(path, after.to_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: the state cannot be written ({error.strerror}); make its directory writable "
            "for this user"
        ) from error
    return after


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A file of its own: the state's own is replaced, and a lock on the old one keeps nobody out.
    lock = os.open(path.with_name(f".{path.name.lstrip('.')}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace_text(path: Path, text: str) -> None:
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(made, path)
        fsync_path(path.parent)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
