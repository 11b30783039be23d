"""Versions of a model: which are loaded, which answer, which retire, and their counts."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import ConfigError, WideDeepError
from widedeep.files import fsync_path
from widedeep.serving.loading import PrivateCopy
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.shadow import AnsweredRequest, ShadowScoring

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, size, time and inode of every file of a version: another one, another version."""

_PARTS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Latest:
    """Serve the newest ``n`` versions that load; the newest of them takes the traffic."""

    n: int = 1  # At least 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"Latest: got n={self.n!r}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Specific:
    """Serve these versions and no other; the newest of them takes the traffic."""

    versions: Sequence[str]  # Their names, at least one

    def __post_init__(self) -> None:
        if isinstance(self.versions, str) or not self.versions:
            raise ConfigError(
                f"Specific: got versions={self.versions!r}, expected a list of names, ['3', '7']"
            )
        object.__setattr__(self, "versions", tuple(str(name) for name in self.versions))


Policy: TypeAlias = Latest | Specific


def version_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are ordered by: numbers inside a name count as numbers."""
    parts = [part for part in _PARTS.split(name) if part]
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def find_versions(root: Path) -> dict[str, Path]:
    """Return the versions in a directory, oldest first."""
    try:
        if (root / MANIFEST).is_file():
            return {root.resolve().name: root}
        with os.scandir(root) as entries:
            found = [entry.name for entry in entries if entry.is_dir()]
    except (OSError, RuntimeError) as error:  # the latter is a loop of links
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{root}: got no readable directory ({reason}), expected one with a bundle for "
            "each version; check the path"
        ) from error
    names = sorted((n for n in found if not n.startswith((".", "_"))), key=version_key)
    return {name: root / name for name in names}


def signature(path: Path) -> Signature:
    """Return what tells a version's files from those of another copy."""
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            about = entry.stat()
            found.append((entry.name, about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(sorted(found))


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


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded, and which version is to take the traffic."""

    keep: tuple[str, ...]  # The versions to be loaded, the one that takes the traffic first
    default: str | None  # The version that takes the traffic; None: there is none


def make_plan(
    versions: Sequence[str], policy: Policy, state: ServingState, failed: Collection[str] = ()
) -> Plan:
    """Decide which versions are served."""
    usable = [name for name in versions if name not in state.withdrawn and name not in failed]
    stable = state.labels.get("stable")
    canary = None if state.canary is None else state.canary.version
    # A version under trial does not take all the traffic by being the newest.
    on_trial = {canary, state.shadow} - {stable}
    if isinstance(policy, Latest):
        wanted = [name for name in usable if name not in on_trial][-policy.n :]
        wanted = wanted or usable[-policy.n :]
    else:
        wanted = [name for name in usable if name in policy.versions]
    tried = [name for name in wanted if name not in on_trial] or wanted
    default = stable if stable in usable else (tried[-1] if tried else None)
    asked = [*state.labels.values(), canary, state.shadow, *state.loaded]
    order = [default, *reversed(wanted), *asked]
    keep = dict.fromkeys(name for name in order if name is not None and name in usable)
    return Plan(keep=tuple(keep), default=default)


def is_canary_request(request_id: str, share: float) -> bool:
    """Tell whether a request belongs to the canary's share; every process tells the same."""
    digest = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


VersionState: TypeAlias = Literal["available", "loading", "ready", "failed", "unloading"]


class NoVersion(WideDeepError):
    """No version can answer: none is loaded, or not the one that was asked for."""


class OrderPending(WideDeepError):
    """An operator's order is written, and not followed yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionStatus:
    """A version, as the status endpoint tells it."""

    version: str  # Its name
    state: VersionState  # ``"available"`` stands for: it is there, and nobody wants it loaded
    error: str | None = None  # Why it, or the newer copy of it in its directory, did not load
    labels: tuple[str, ...] = ()  # That it bears; ``"stable"`` where it takes the traffic
    catalogue_version: str | None = None  # Of the items it serves
    catalogue_error: str | None = None  # Why the newest catalogue did not load
    loaded_at: float | None = None  # Seconds since 1970
    load_s: float | None = None  # How long loading took
    requests: int = 0  # That it has answered since it was loaded
    in_use: int = 0  # Leases not yet given back


class LoadedVersion:
    """A loaded copy of a version, and how many requests use it."""

    def __init__(
        self,
        name: str,
        ranker: Ranker,
        files: Signature,
        items: Signature,
        load_s: float,
        copy: PrivateCopy | None = None,
    ) -> None:
        self.name, self.ranker, self.files, self.items = name, ranker, files, items
        self.loaded_at, self.load_s = time.time(), load_s
        self.catalogue_error: str | None = None
        # When its catalogue is read again though the file has not changed, by the monotonic clock.
        self.items_again_at = float("inf")
        self.requests = self.in_use = 0
        self._copy = copy
        # What the native server made of it, and the requests that it answered without a lease.
        self.native: object = None
        self.native_requests = 0

    def free(self) -> None:
        """Let go of the ranker; nobody may use this version any more."""
        self.native = None
        del self.ranker
        if self._copy is not None:
            self._copy.close()


class Served:
    """The version that answers one request, as long as its lease is held."""

    __slots__ = ("_shadow", "label", "ranker", "version")

    def __init__(
        self, version: str, ranker: Ranker, label: str | None, shadow: ShadowScoring | None
    ) -> None:
        self.version, self.ranker, self.label = version, ranker, label
        self._shadow = shadow

    def rank(
        self,
        user: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        candidates: Any = (),
        *,
        k: int | None = None,
        explain: bool = False,
        head: str | None = None,
    ) -> Ranking:
        """Rank as :meth:`widedeep.serving.ranker.Ranker.rank` does; the shadow follows later."""
        ranking = self.ranker.rank(user, context, candidates, k=k, explain=explain, head=head)
        if self._shadow is not None:
            request = AnsweredRequest(user, context, candidates, head, ranking, self.ranker)
            self._shadow.offer(request)
        return ranking


class Lease:
    """Keeps a version alive for one request; made by :meth:`widedeep.serving.Registry.lease`."""

    __slots__ = ("_give_back", "_held", "_take")

    def __init__(
        self,
        take: Callable[[], tuple[LoadedVersion, Served]],
        give_back: Callable[[LoadedVersion], None],
    ) -> None:
        self._take, self._give_back = take, give_back
        self._held: LoadedVersion | None = None

    def __enter__(self) -> Served:
        self._held, served = self._take()
        return served

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._give_back(held)
