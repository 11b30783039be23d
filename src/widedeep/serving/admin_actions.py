"""What an operator may ask for, as changes of the state that every server follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from widedeep.bundle import Bundle
from widedeep.errors import WideDeepError, nearest
from widedeep.serving.loading import PrivateCopies
from widedeep.serving.versions import (
    Canary,
    Latest,
    NoVersion,
    ServingState,
    change_state,
    find_versions,
    make_plan,
    state_path,
    version_key,
)


def check_known(root: Path, version: str) -> None:
    """Refuse a version that is not in the directory."""
    found = find_versions(root)
    if version not in found:
        raise NoVersion(f"{root}: got version {version!r}; {nearest(version, found)}")


def load(state: ServingState, version: str) -> ServingState:
    """Keep a version loaded, and let it be served."""
    state = _served_again(state, version)
    return replace(state, loaded=(*_without(state.loaded, version), version))


def withdraw(state: ServingState, *versions: str) -> ServingState:
    """Serve these versions no longer, under no name."""
    canary = state.canary
    return replace(
        state,
        withdrawn=tuple(sorted({*state.withdrawn, *versions}, key=version_key)),
        loaded=_without(state.loaded, *versions),
        labels={name: of for name, of in state.labels.items() if of not in versions},
        canary=None if canary is not None and canary.version in versions else canary,
        shadow=None if state.shadow in versions else state.shadow,
    )


def label(state: ServingState, name: str, version: str | None) -> ServingState:
    """Give a version a label, or take the label away."""
    labels = {each: of for each, of in state.labels.items() if each != name}
    if version is None:
        return replace(state, labels=labels)
    return replace(_served_again(state, version), labels={**labels, name: version})


def canary(state: ServingState, version: str | None, share: float) -> ServingState:
    """Have a version answer a share of the requests; None or 0 ends that."""
    if version is None or share == 0:
        return replace(state, canary=None)
    return replace(_served_again(state, version), canary=Canary(version=version, share=share))


def shadow(state: ServingState, version: str | None) -> ServingState:
    """Have a version score what others answer; None ends that."""
    if version is None:
        return replace(state, shadow=None)
    return replace(_served_again(state, version), shadow=version)


def _served_again(state: ServingState, version: str) -> ServingState:
    return replace(state, withdrawn=_without(state.withdrawn, version))


def _without(names: Sequence[str], *gone: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in gone)


def roll_back(
    root: Path,
    *,
    to: str | None = None,
    state_file: Path | None = None,
    serving: str | None = None,
    failed: Collection[str] = (),
    check: Callable[[str], None] | None = None,
) -> str:
    """Withdraw the version that serves, and all newer ones, so that an older one serves."""
    versions = list(find_versions(root))
    target = ""

    def change(state: ServingState) -> ServingState:
        nonlocal target
        now = serving or make_plan(versions, Latest(), state, failed).default
        target = to if to is not None else _before(root, versions, now, {*state.withdrawn, *failed})
        if check is not None:
            check(target)
        newer = [name for name in versions if version_key(name) > version_key(target)]
        # The stable label, where there is one, would hold the traffic where it is.
        moved = label(state, "stable", target) if "stable" in state.labels else state
        return withdraw(_served_again(moved, target), *newer)

    if to is not None:
        check_known(root, to)
    change_state(state_path(root) if state_file is None else state_file, change)
    return target


def check_loads(root: Path, version: str, copies: PrivateCopies) -> None:
    """Refuse a version that does not load, before those are withdrawn that could serve."""
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


def _before(root: Path, versions: Sequence[str], now: str | None, bad: Collection[str]) -> str:
    at = versions.index(now) if now in versions else 0
    older = [name for name in versions[:at] if name not in bad]
    if not older:
        raise NoVersion(
            f"{root}: there is no version before {now!r} to go back to; the versions are "
            f"{', '.join(versions) or 'none'}"
        )
    return older[-1]
