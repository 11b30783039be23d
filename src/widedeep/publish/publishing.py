"""publish: a bundle that passed the gate becomes the newest version of a directory."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from widedeep.bundle import Bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.gate.verdict import Verdict, bundle_identity
from widedeep.publish.record import PublishRecord, checked_verdict, make_record
from widedeep.publish.storage import RECORDS, Place, open_place
from widedeep.serving.versions import version_key

__all__ = ["publish"]

_ATTEMPTS = 20


def publish(
    bundle: str | os.PathLike[str],
    models: str | os.PathLike[str],
    *,
    verdict: Verdict | str | os.PathLike[str] | None = None,
    version: str | None = None,
    force: bool = False,
    reason: str | None = None,
) -> PublishRecord:
    """Publish a bundle that passed the gate.

    The version appears whole or not at all: whenever the publisher is killed, servers find the old
    versions, or those and the new one. Publishers wait for each other.

    Args:
        bundle: The candidate's directory.
        models: The directory of versions, or its URL.
        verdict: That let it pass, or its file; None: the file that the gate left beside it. It is
            bound to the bundle's bytes.
        version: The version's name; None: one more than the largest number there is.
        force: Publish what has not passed, or is a version already.
        reason: Why, with ``force``; kept with the version.

    Returns:
        What is kept of the version.

    Raises:
        BundleError: If the bundle is damaged, has not passed, was compared with another model than
            the one in service or with none, was published before, or cannot be written.
        ConfigError: If the version's name is taken or would not be the newest, or ``force`` comes
            without a reason.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education"))
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.export("candidate")
        >>> publish("candidate", "models", force=True, reason="the first one").version
        '1'
    """
    path = Path(bundle)
    given = verdict if verdict is None or isinstance(verdict, Verdict) else Path(verdict)
    loaded = Bundle.load(path)
    passed = checked_verdict(path, given, force=force, reason=reason)
    place = open_place(models)
    try:
        with place.locked():
            return _put(place, loaded, passed, version, reason if force else None)
    except OSError as error:
        raise BundleError(
            f"{place.name}: the version could not be written ({error.strerror or error}); the "
            "versions that were there are as they were: make room, or check the directory, and "
            "publish again"
        ) from error


def _put(
    place: Place, bundle: Bundle, verdict: Verdict | None, version: str | None, reason: str | None
) -> PublishRecord:
    for _ in range(_ATTEMPTS):
        there = place.versions()
        name = _next(there, place.records()) if version is None else version
        _check_name(place, name, there)
        parent = place.served()
        stale = _stale(place, parent, verdict)
        again = _again(place, there, bundle_identity(bundle.path))
        for refusal in (stale, again):
            if refusal is not None and reason is None:
                raise BundleError(refusal)
        passed = verdict is not None and verdict.passed and stale is None and again is None
        forced = None if passed else reason
        record = make_record(bundle, version=name, parent=parent, verdict=verdict, forced=forced)
        try:
            place.put(bundle.path, name, record.to_text())
        except FileExistsError:
            if version is None:
                continue  # another publisher was faster: the next number
            raise
        return record
    raise BundleError(
        f"{place.name}: other publishers took {_ATTEMPTS} numbers in a row; try again"
    )


def _stale(place: Place, parent: str | None, verdict: Verdict | None) -> str | None:
    """Tell of a comparison with a model that serves no longer, or with none where one serves."""
    compared = None if verdict is None or verdict.serving is None else verdict.serving["sha256"]
    if parent is None or place.identity(parent) == compared is not None:
        return None
    if compared is None:
        return (
            f"{place.name}: version {parent} serves there, and the gate compared the bundle with "
            f"nothing; validate it against what serves: --against {place.name}"
        )
    return (
        f"{place.name}: the gate compared the bundle with another model ({str(compared)[:12]}) "
        f"than the one in service, version {parent}, which was published or rolled back to since; "
        "validate it again, against what serves now"
    )


def _again(place: Place, versions: Collection[str], identity: str) -> str | None:
    """Tell of a version that is this very bundle."""
    records = place.records()
    for name in sorted({*versions, *records}, key=version_key):
        if name in records:
            origin = f"{place.name}/{RECORDS}/{name}.json"
            held = PublishRecord.from_text(records[name], origin=origin).bundle
        else:
            held = place.identity(name) or ""
        if held == identity:
            return (
                f"{place.name}: this very bundle ({identity[:12]}) was published as version "
                f"{name}; nothing is published. To serve an older version go back to it "
                "(rollback), or publish it once more by force (--force --reason TEXT)"
            )
    return None


def _next(versions: Collection[str], records: Collection[str]) -> str:
    # Records count too: a number whose bundle was deleted is not given to another model.
    numbers = [int(name) for name in (*versions, *records) if name.isdecimal()]
    others = [name for name in versions if not name.isdecimal()]
    name = str(max(numbers, default=0) + 1)
    if others and version_key(max(others, key=version_key)) > version_key(name):
        raise ConfigError(
            f"got versions with names such as {others[-1]!r}, after which no number comes; name "
            "the version (--version)"
        )
    return name


def _check_name(place: Place, name: str, there: Collection[str]) -> None:
    if not name or name.startswith((".", "_")) or "/" in name or name != name.strip():
        raise ConfigError(
            f"got version {name!r}, expected a name without '/', that begins with neither '.' "
            "nor '_'"
        )
    if name in there:
        raise ConfigError(
            f"{place.name}: version {name!r} is there already; a version is never replaced: name "
            "another"
        )
    newest = max(there, key=version_key, default=None)
    if newest is not None and version_key(name) < version_key(newest):
        raise ConfigError(
            f"{place.name}: version {name!r} comes before {newest!r} and would not be served; "
            "name a later one"
        )
