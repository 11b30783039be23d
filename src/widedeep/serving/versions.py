"""Versions of a model: names, policy, the operators' state file, the plan, and loaded copies."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import ConfigError, WideDeepError, nearest
from widedeep.files import locked, write_text_whole
from widedeep.options import check_table, read_section, show_path
from widedeep.serving.loading import PrivateCopies, PrivateCopy
from widedeep.serving.ranker import Ranker, RankerOptions

# ---- which versions there are --------------------------------------------------------------------

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, size, modification time and inode of each file; a changed file changes it."""

_DIGITS = re.compile(r"(\d+)")


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

    versions: Sequence[str]  # Names, at least one

    def __post_init__(self) -> None:
        if isinstance(self.versions, str) or not self.versions:
            raise ConfigError(
                f"Specific: got versions={self.versions!r}, expected a list of names, ['3', '7']"
            )
        object.__setattr__(self, "versions", tuple(str(name) for name in self.versions))


Policy: TypeAlias = Latest | Specific


@dataclass(frozen=True, kw_only=True)
class RegistryOptions(RankerOptions):
    """Which versions a registry serves, and how."""

    items: Annotated[
        str | os.PathLike[str] | None, "the items' catalogue, a Parquet file; followed"
    ] = None
    policy: Annotated[Policy, "the versions to keep loaded and to serve"] = Latest(1)
    poll_s: Annotated[
        float, "seconds between looks at the directory, the state and the catalogue"
    ] = 2.0
    cache: Annotated[
        str | os.PathLike[str] | None,
        "where bundles are copied to before they are served, so that nobody who writes to the "
        "directory can change what serves (default: the user's cache)",
    ] = None

    def __post_init__(self) -> None:
        RankerOptions.__post_init__(self)
        if self.items is not None and self.item_id is None:
            raise ConfigError(
                f"got items={os.fspath(self.items)!r} without item_id; name the column of ids"
            )
        if self.poll_s <= 0:
            raise ConfigError(f"got poll_s={self.poll_s!r}, expected seconds > 0")


class NoVersion(WideDeepError):
    """No version can answer: none is loaded, or not the requested one."""


class OrderPending(WideDeepError):
    """An operator's change is written, and this registry cannot read it yet."""


def version_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return the sort key of a version's name: digits inside it compare as numbers."""
    pieces = [piece for piece in _DIGITS.split(name) if piece]
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces)


def find_versions(root: Path) -> dict[str, Path]:
    """Return the versions in a directory, oldest first."""
    try:
        if (root / MANIFEST).is_file():
            return {show_path(root.resolve().name): root}
        with os.scandir(root) as entries:
            directories = [entry.name for entry in entries if entry.is_dir()]
    except (OSError, RuntimeError) as error:  # the latter is a loop of links
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{root}: got no readable directory ({reason}), expected one with a bundle for "
            "each version; check the path"
        ) from error
    names = sorted((n for n in directories if not n.startswith((".", "_"))), key=version_key)
    return {show_path(name): root / name for name in names}


def check_version(root: Path, version: str) -> None:
    """Raise :class:`NoVersion` for a version that is not in the directory."""
    versions = find_versions(root)
    if version not in versions:
        raise NoVersion(f"{root}: got version {version!r}; {nearest(version, versions)}")


def signature(path: Path) -> Signature:
    """Return the signature of a version's files; what cannot be read is for loading to tell."""
    try:
        with os.scandir(path) as entries:
            return tuple(sorted(_entry_signature(entry) for entry in entries))
    except PermissionError:
        return (("", -errno.EACCES, 0, 0),)


def file_signature(path: str | os.PathLike[str]) -> Signature:
    """Return the signature of one file; empty for one that cannot be read."""
    try:
        stats = os.stat(path)
    except OSError:
        return ()
    return ((os.fspath(path), stats.st_size, stats.st_mtime_ns, stats.st_ino),)


def _entry_signature(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    try:
        stats = entry.stat()
    except OSError as error:
        code = error.errno or 0
        if code not in (errno.ENOENT, errno.ELOOP, errno.EACCES):
            raise  # a file system that is away for a moment changes no version
        return entry.name, -code, 0, 0  # a link to nothing, to itself, to what is closed
    return entry.name, stats.st_size, stats.st_mtime_ns, stats.st_ino


# ---- the state that operators set ----------------------------------------------------------------

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A version that answers a fraction of the requests."""

    version: str  # Version name
    share: float  # Fraction of the request ids, 0 < share <= 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"canary: got share={self.share!r}, expected 0 < share <= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingState:
    """What operators have set, beyond the policy that the servers were started with.

    Methods return a changed state. One that puts a version to use also ends its withdrawal.
    """

    changes: int = 0  # Number of changes so far
    withdrawn: tuple[str, ...] = ()  # Versions not to be served, after a rollback or an unload
    loaded: tuple[str, ...] = ()  # Versions to keep loaded beside those of the policy
    labels: Mapping[str, str] = field(default_factory=dict)  # Version by label
    canary: Canary | None = None  # Version that answers a fraction of the requests
    shadow: str | None = None  # Version that scores answered requests again, for comparison

    def to_text(self) -> str:
        """Return the contents of the state's file."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def load(self, version: str) -> ServingState:
        """Keep a version loaded."""
        state = self.restore(version)
        return replace(state, loaded=(*_without(state.loaded, version), version))

    def withdraw(self, *versions: str) -> ServingState:
        """Stop serving these versions, under any name."""
        canary = self.canary
        return replace(
            self,
            withdrawn=tuple(sorted({*self.withdrawn, *versions}, key=version_key)),
            loaded=_without(self.loaded, *versions),
            labels={name: v for name, v in self.labels.items() if v not in versions},
            canary=None if canary is not None and canary.version in versions else canary,
            shadow=None if self.shadow in versions else self.shadow,
        )

    def set_label(self, label: str, version: str | None) -> ServingState:
        """Give a version a label; None removes the label."""
        labels = {name: v for name, v in self.labels.items() if name != label}
        if version is None:
            return replace(self, labels=labels)
        return replace(self.restore(version), labels={**labels, label: version})

    def set_canary(self, version: str | None, fraction: float) -> ServingState:
        """Let a version answer a fraction of the requests; None or 0 ends the trial."""
        if version is None or fraction == 0:
            return replace(self, canary=None)
        return replace(self.restore(version), canary=Canary(version=version, share=fraction))

    def set_shadow(self, version: str | None) -> ServingState:
        """Let a version score answered requests again; None ends that."""
        return replace(self if version is None else self.restore(version), shadow=version)

    def restore(self, version: str) -> ServingState:
        """End a version's withdrawal."""
        return replace(self, withdrawn=_without(self.withdrawn, version))


def _without(names: Sequence[str], *removed: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in removed)


def state_path(root: Path) -> Path:
    """Return the state's file: in the directory, or beside it if it is itself a bundle."""
    if (root / MANIFEST).is_file():
        bundle = root.resolve()
        return bundle.parent / f".{bundle.name}.serving.json"
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
    return parse_state(raw, str(path))


def parse_state(raw: bytes, path: str) -> ServingState:
    """Return the state from its file's contents."""
    try:
        value = json.loads(raw)
        if value.pop("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        if value.get("canary") is not None:
            check_table(value["canary"], "canary", path)
            value["canary"] = read_section(Canary, value["canary"], "canary")
        return read_section(ServingState, value, "state")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise ConfigError(
            f"{path}: got a state that cannot be read ({error}); correct it, or delete the file to "
            "serve by the policy alone"
        ) from error


def change_state(path: Path, change: Callable[[ServingState], ServingState]) -> ServingState:
    """Read, change and replace the state under a lock, so that no change is lost."""
    try:
        with locked(path.with_name(f".{path.name.lstrip('.')}.lock"), 0o644):
            before = read_state(path)
            after = replace(change(before), changes=before.changes + 1)
            write_text_whole(path, after.to_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: the state cannot be written ({error.strerror}); make its directory writable "
            "for this user"
        ) from error
    return after


# ---- which versions are to be loaded -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """The versions to load, and the one that takes the traffic."""

    keep: tuple[str, ...]  # Versions to load, the one that takes the traffic first
    default: str | None  # Version that takes the traffic; None: there is none


def make_plan(
    versions: Sequence[str], policy: Policy, state: ServingState, failed: Collection[str] = ()
) -> Plan:
    """Choose the versions to load, by policy and state."""
    usable = [name for name in versions if name not in state.withdrawn and name not in failed]
    stable = state.labels.get("stable")
    canary = None if state.canary is None else state.canary.version
    # A version under trial does not take all the traffic by being the newest.
    on_trial = {canary, state.shadow} - {stable}
    if isinstance(policy, Latest):
        by_policy = [name for name in usable if name not in on_trial][-policy.n :]
        by_policy = by_policy or usable[-policy.n :]
    else:
        by_policy = [name for name in usable if name in policy.versions]
    proven = [name for name in by_policy if name not in on_trial] or by_policy
    default = stable if stable in usable else (proven[-1] if proven else None)
    by_state = [*state.labels.values(), canary, state.shadow, *state.loaded]
    order = [default, *reversed(by_policy), *by_state]
    keep = dict.fromkeys(name for name in order if name is not None and name in usable)
    return Plan(keep=tuple(keep), default=default)


def is_canary_request(request_id: str, fraction: float) -> bool:
    """Tell whether the canary answers a request: the same in every process."""
    digest = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def roll_back(
    root: Path,
    *,
    to: str | None = None,
    state_file: Path | None = None,
    serving: str | None = None,
    failed: Collection[str] = (),
    check: Callable[[str], None] | None = None,
) -> str:
    """Withdraw the version that serves and all newer ones, so that an older one serves."""
    versions = list(find_versions(root))
    target = ""

    def change(state: ServingState) -> ServingState:
        nonlocal target
        current = serving or make_plan(versions, Latest(), state, failed).default
        unusable = {*state.withdrawn, *failed}
        target = to if to is not None else _version_before(root, versions, current, unusable)
        if check is not None:
            check(target)
        newer = [name for name in versions if version_key(name) > version_key(target)]
        # The stable label, if set, would keep the traffic on the version that it names.
        state = state.set_label("stable", target) if "stable" in state.labels else state
        return state.restore(target).withdraw(*newer)

    if to is not None:
        check_version(root, to)
    change_state(state_path(root) if state_file is None else state_file, change)
    return target


def _version_before(
    root: Path, versions: Sequence[str], current: str | None, unusable: Collection[str]
) -> str:
    index = versions.index(current) if current in versions else 0
    older = [name for name in versions[:index] if name not in unusable]
    if not older:
        raise NoVersion(
            f"{root}: there is no version before {current!r} to go back to; the versions are "
            f"{', '.join(versions)}"
            if current is not None
            else f"{root}: holds no version that serves; expected a folder of published versions"
        )
    return older[-1]


def check_loads(root: Path, version: str, copies: PrivateCopies) -> None:
    """Raise :class:`NoVersion` for a version that does not load."""
    try:
        copy = copies.take(find_versions(root)[version])
        try:
            Bundle.load(copy.path)
        finally:
            copy.close()
    except (WideDeepError, OSError) as error:
        raise NoVersion(
            f"version {version!r} does not load, nothing is rolled back: {error}"
        ) from error


# ---- which versions are loaded -------------------------------------------------------------------

VersionState: TypeAlias = Literal["available", "loading", "ready", "failed", "unloading"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionStatus:
    """The status of a version."""

    version: str  # Version name
    state: VersionState  # ``"available"``: in the directory, and not to be loaded
    error: str | None = None  # Why it, or the newer copy of it in its directory, did not load
    labels: tuple[str, ...] = ()  # Labels; ``"stable"`` where it takes the traffic
    catalogue_version: str | None = None  # Version of the catalogue it serves
    catalogue_error: str | None = None  # Why the newest catalogue did not load
    loaded_at: float | None = None  # Time of loading, in seconds since 1970
    load_s: float | None = None  # Duration of loading
    requests: int = 0  # Requests answered since it was loaded
    in_use: int = 0  # Requests that it is answering


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Why a version did not load."""

    files: Signature  # Signature of the version's files
    items: Signature  # Signature of the catalogue; if either changes, loading is tried again
    reason: str  # Message for the operator
    # Monotonic time at which loading is tried again without a change; None: never, because the
    # reason lies in the files
    retry_at: float | None = None


class LoadedVersion:
    """A loaded version with the number of requests that use it."""

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
        # Monotonic time at which an unchanged catalogue is read again.
        self.catalogue_retry_at = float("inf")
        self.requests = self.in_use = 0
        self._copy = copy
        # The native server's route, and the number of requests that it answered without a lease.
        self.native: object = None
        self.native_requests = 0

    def free(self) -> None:
        """Release the ranker; no request may use this version any more."""
        self.native = None
        del self.ranker
        if self._copy is not None:
            self._copy.close()
