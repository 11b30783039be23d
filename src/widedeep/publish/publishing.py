"""publish: adds a bundle that passed the gate to a directory of versions."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from widedeep._version import __version__
from widedeep.bundle import Bundle
from widedeep.bundle.manifest import PATCH, check_files, read_manifest
from widedeep.bundle.patch import read_patch, write_patch
from widedeep.bundle.plain_json import plain
from widedeep.bundle.write import rewrite_bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.gate.verdict import Verdict, bundle_identity, undefined_figures, verdict_path
from widedeep.kernels.packed_rows import packed_table
from widedeep.kernels.score import from_bfloat16, to_bfloat16
from widedeep.publish.storage import RECORDS, ModelStore, open_store
from widedeep.serving.versions import version_key
from widedeep.traces import traced
from widedeep.training.config import MOST_PATCHES

__all__ = ["PublishRecord", "publish"]

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PublishRecord:
    """The record of a published version.

    Args:
        version: Name of the version.
        bundle: SHA-256 of the bundle's manifest.
        parent: The version that took the traffic before; None for the first.
        published: Time of publication, ISO 8601 in UTC.
        code: Versions of widedeep that wrote the bundle and that published it.
        config: Configuration of the run.
        metrics: Metrics of the bundle.
        data: Training data: files with sizes and checksums, the manifest of the join that wrote
            them, and the shards of a stream.
        size: Size in bytes of what was published.
        verdict: Verdict of the gate; None if there was none.
        forced: Reason for publishing it without having passed; None if it passed.
        patches: Number of patches from the last whole version to this one, which is a patch of
            ``parent`` then; 0 for a whole one.
    """

    version: str
    bundle: str
    parent: str | None
    published: str
    code: Mapping[str, str]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    data: Mapping[str, Any]
    size: int
    verdict: Mapping[str, Any] | None = None
    forced: str | None = None
    patches: int = 0

    def to_text(self) -> str:
        """Return the text of the record's file."""
        value = plain({"format": _FORMAT, **asdict(self)}, "record")
        if not self.patches:  # as earlier versions wrote it
            del value["patches"]
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_text(cls, text: str, *, origin: str) -> PublishRecord:
        """Read the text of a record's file.

        Raises:
            ConfigError: If it is no record.
        """
        try:
            value = json.loads(text)
            if value.pop("format") != _FORMAT:
                raise ValueError("another format")
            return cls(**value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{origin}: got a file that is no record of a version ({error}); restore it, or "
                "delete it to forget where the version came from"
            ) from error


def checked_verdict(
    bundle: Path, verdict: Verdict | Path | None, *, force: bool, reason: str | None
) -> Verdict | None:
    """Return the verdict that passes a bundle; with ``force``, any verdict or None."""
    if force and not (reason and reason.strip()):
        raise ConfigError(
            "got force without a reason; say why it is published all the same (--reason TEXT): it "
            "is kept with the version"
        )
    if reason is not None and not force:
        raise ConfigError("got a reason without force; add --force, or leave --reason out")
    source = verdict_path(bundle) if verdict is None else verdict
    if force and verdict is None and isinstance(source, Path) and not source.is_file():
        return None
    accepted = Verdict.load(source) if isinstance(source, Path) else source
    identity = bundle_identity(bundle)
    judged = accepted.candidate
    if judged["sha256"] != identity:
        raise BundleError(
            f"{bundle}: the verdict is of another bundle ({str(judged['sha256'])[:12]} at "
            f"{judged.get('path')}), this one is {identity[:12]}; validate this one"
        )
    if not force and (missing := undefined_figures(asdict(accepted))) and accepted.passed:
        raise BundleError(
            f"{bundle}: the verdict lacks what it should rest on: {'; '.join(missing)}; validate "
            "the bundle again"
        )
    if not accepted.passed and not force:
        why = "; ".join(accepted.reasons)
        raise BundleError(
            f"{bundle}: the gate stopped it: {why}; train a better one, or publish it all the same "
            "with --force and --reason"
        )
    return accepted


def make_record(
    bundle: Bundle,
    *,
    version: str,
    parent: str | None,
    verdict: Verdict | None,
    forced: str | None,
    files: Path,
) -> PublishRecord:
    """Return the record of a bundle to publish, as a patch or whole as it is in ``files``."""
    patch = read_patch(files)
    return PublishRecord(
        version=version,
        bundle=bundle_identity(bundle.path),
        parent=parent,
        published=datetime.now(UTC).isoformat(timespec="seconds"),
        code={"trained": bundle.manifest.created_by, "published": __version__},
        config=bundle.config,
        metrics=bundle.metrics,
        data=_data(bundle),
        size=sum(file.stat().st_size for file in files.iterdir()),
        verdict=None if verdict is None else verdict.to_json(),
        forced=forced,
        patches=0 if patch is None else patch.depth,
    )


def _data(bundle: Bundle) -> dict[str, Any]:
    """Return the training data that the run beside the bundle recorded, if it has this schema."""
    data: dict[str, Any] = {"rows": bundle.schema.rows, "schema": bundle.schema.fingerprint}
    stream = _read(stream_path(bundle.path))
    if stream is not None and stream.get("bundle") == bundle_identity(bundle.path):
        data["stream"] = {"rows": stream["rows"], "shards": stream["shards"]}
    fitted = _read(bundle.path.absolute().parent / "inputs.json")
    if fitted is None or fitted.get("fingerprint") != bundle.schema.fingerprint:
        return data
    data["inputs"] = fitted["inputs"]
    manifests = {}
    for entry in fitted["inputs"]:
        path = Path(str(entry.get("path", entry.get("name", ""))))
        manifest = path.parent.parent / "manifest.json"
        text = _read(manifest)
        if text is not None and text.get("kind") == "widedeep examples":
            manifests[str(manifest)] = text
    if manifests:
        data["manifests"] = manifests
    return data


def stream_path(bundle: Path) -> Path:
    """Return the file beside a bundle that lists the shards of a stream it has learned."""
    return bundle.absolute().with_name(f"{bundle.name}.stream.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


_ATTEMPTS = 20


@traced("publish")
def publish(
    bundle: str | os.PathLike[str],
    models: str | os.PathLike[str],
    *,
    verdict: Verdict | str | os.PathLike[str] | None = None,
    version: str | None = None,
    force: bool = False,
    reason: str | None = None,
    full_every: int = 1,
) -> PublishRecord:
    """Publish a bundle that passed the gate.

    The version appears atomically: whenever the publisher is killed, servers see the old versions,
    or those and the new one. Concurrent publishers wait for each other.

    Args:
        bundle: Directory of the candidate.
        models: Directory of versions, or its URL.
        verdict: Verdict of the gate on this very bundle, or its file; None: the file beside the
            bundle.
        version: Name of the version; None: one more than the largest number.
        force: Publish a bundle that has not passed, or is a version already.
        reason: Reason for ``force``; kept with the version.
        full_every: Every so many-th version is published whole; those between are patches of the
            version before, which hold the rows that changed. From these servers make the same
            bundle, byte by byte. A patch that would be larger than half of it is published whole.

    Returns:
        The record of the version.

    Raises:
        BundleError: If the bundle is damaged, has not passed, was compared with another model than
            the serving one or with none, was published before, or cannot be written.
        ConfigError: If the version exists or would not be the newest, ``force`` comes without a
            reason, or ``full_every`` is out of its range (1 to 200).

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education"))
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.export("candidate")
        >>> publish("candidate", "models", force=True, reason="the first one").version
        '1'
    """
    check_full_every(full_every)
    path = Path(bundle)
    gate_verdict = verdict if verdict is None or isinstance(verdict, Verdict) else Path(verdict)
    loaded = Bundle.load(path)
    passed = checked_verdict(path, gate_verdict, force=force, reason=reason)
    store = open_store(models)
    try:
        with store.locked():
            return _put(store, loaded, passed, version, reason if force else None, full_every)
    except OSError as error:
        raise BundleError(
            f"{store.name}: the version could not be written ({error.strerror or error}); the "
            "existing versions are unchanged: make room, or check the directory, and publish again"
        ) from error


def _put(
    store: ModelStore,
    bundle: Bundle,
    verdict: Verdict | None,
    version: str | None,
    reason: str | None,
    full_every: int,
) -> PublishRecord:
    for _ in range(_ATTEMPTS):
        versions = store.versions()
        name = _next(versions, store.records()) if version is None else version
        _check_name(store, name, versions)
        parent = store.served()
        stale = _stale(store, parent, verdict)
        again = _again(store, versions, bundle_identity(bundle.path))
        for refusal in (stale, again):
            if refusal is not None and reason is None:
                raise BundleError(refusal)
        passed = verdict is not None and verdict.passed and stale is None and again is None
        forced = None if passed else reason
        try:
            with _patch_or_whole(store, bundle.path, parent, full_every) as files:
                record = make_record(
                    bundle, version=name, parent=parent, verdict=verdict, forced=forced, files=files
                )
                store.put(files, name, record.to_text())
        except FileExistsError:
            if version is None:
                continue  # another publisher was faster: the next number
            raise
        return record
    raise BundleError(
        f"{store.name}: other publishers took {_ATTEMPTS} numbers in a row; try again"
    )


def check_full_every(full_every: int) -> None:
    """Raise a :class:`ConfigError` unless every so many-th version can be whole."""
    if not isinstance(full_every, int) or not 1 <= full_every <= MOST_PATCHES:
        raise ConfigError(
            f"got full_every={full_every!r}, expected a whole number of versions from 1 (all are "
            f"whole) to {MOST_PATCHES}"
        )


def next_depth(store: ModelStore, parent: str | None, full_every: int) -> int:
    """Return the number of patches with which a version comes next; 0 for a whole one."""
    text = None if parent is None else store.records().get(parent)
    if text is None:
        return 0
    patches = PublishRecord.from_text(text, origin=f"{store.name}/{RECORDS}/{parent}.json").patches
    return (patches + 1) % full_every


def round_changes(base: Path, bundle: Path) -> None:
    """Write a bundle again with the rows rounded to bfloat16 that differ from those of another.

    Vectors of items were computed from the exact rows: a bundle with some stays as it is, and so do
    packed tables.
    """
    candidate, before = Bundle.load(bundle, verify=False), Bundle.load(base, verify=False).weights
    if candidate.items is not None:
        return
    weights = dict(candidate.weights)
    for name, array in weights.items():
        old = before.get(name)
        is_packed = packed_table(array) or packed_table(old)
        is_table = name.startswith(("table/", "wide/")) and is_packed is None
        if is_table and old is not None and old.shape[1:] == array.shape[1:]:
            weights[name] = rounded = from_bfloat16(to_bfloat16(array))
            both = min(len(old), len(array))
            np.copyto(rounded[:both], array[:both], where=array[:both] == old[:both])
    rewrite_bundle(
        candidate, bundle, weights=weights, calibration=candidate.calibration, overwrite=True
    )


@contextlib.contextmanager
def _patch_or_whole(
    store: ModelStore, bundle: Path, parent: str | None, full_every: int
) -> Iterator[Path]:
    """Give a folder with what is to be published.

    From a version that is damaged or gone no server could make what comes after it: that is whole.
    """
    depth = next_depth(store, parent, full_every)
    if depth == 0 or parent is None:
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="widedeep-") as temporary:
        folder, is_patch = Path(temporary), True
        try:
            with store.bundle(parent) as base:
                check_files(base, read_manifest(base), verify=True)
                write_patch(base, bundle, folder, version=parent, depth=depth)
        except BundleError:
            is_patch = False
        if not is_patch:
            yield bundle
            return
        whole = sum(file.stat().st_size for file in bundle.iterdir())
        yield folder if 2 * (folder / PATCH).stat().st_size < whole else bundle


def _stale(store: ModelStore, parent: str | None, verdict: Verdict | None) -> str | None:
    """Refuse a verdict that compared the bundle with another model than the serving one."""
    compared = None if verdict is None or verdict.serving is None else verdict.serving["sha256"]
    if parent is None or store.identity(parent) == compared is not None:
        return None
    if compared is None:
        return (
            f"{store.name}: version {parent} serves there, and the gate compared the bundle with "
            f"nothing; validate it against what serves: --against {store.name}"
        )
    return (
        f"{store.name}: the gate compared the bundle with another model ({str(compared)[:12]}) "
        f"than the one in service, version {parent}, which was published or rolled back to since; "
        "validate it again, against what serves now"
    )


def _again(store: ModelStore, versions: Collection[str], identity: str) -> str | None:
    """Refuse a bundle that is a version already."""
    records = store.records()
    for name in sorted({*versions, *records}, key=version_key):
        if name in records:
            origin = f"{store.name}/{RECORDS}/{name}.json"
            stored = PublishRecord.from_text(records[name], origin=origin).bundle
        else:
            stored = store.identity(name) or ""
        if stored == identity and name not in versions:
            return (
                f"{store.name}: this very bundle ({identity[:12]}) was published as version "
                f"{name}, which is not there: its upload was cut, or it was deleted since; publish "
                "it again by force (--force --reason TEXT)"
            )
        if stored == identity:
            return (
                f"{store.name}: this very bundle ({identity[:12]}) was published as version "
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


def _check_name(store: ModelStore, name: str, versions: Collection[str]) -> None:
    if not name or name.startswith((".", "_")) or "/" in name or name != name.strip():
        raise ConfigError(
            f"got version {name!r}, expected a name without '/', that begins with neither '.' "
            "nor '_'"
        )
    if name in versions:
        raise ConfigError(
            f"{store.name}: version {name!r} already exists, and a version is never replaced: name "
            "another"
        )
    newest = max(versions, key=version_key, default=None)
    if newest is not None and version_key(name) < version_key(newest):
        raise ConfigError(
            f"{store.name}: version {name!r} comes before {newest!r} and would not be served; "
            "name a later one"
        )
