"""PublishRecord: what a version was made from, who let it pass, and what it follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from widedeep import __version__
from widedeep.bundle import Bundle
from widedeep.bundle.plain_json import plain
from widedeep.errors import BundleError, ConfigError
from widedeep.gate.verdict import Verdict, bundle_identity, undefined_figures, verdict_path

__all__ = ["PublishRecord", "checked_verdict", "make_record", "stream_path"]

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PublishRecord:
    """What is kept of a published version.

    Args:
        version: Its name.
        bundle: SHA-256 of the bundle's manifest.
        parent: The version that took the traffic before; None for the first.
        published: When, as ISO 8601 in UTC.
        code: The version of widedeep that wrote the bundle, and the one that published it.
        config: The run's configuration.
        metrics: As kept in the bundle.
        data: What it was trained on: files with sizes and checksums, and the manifest of the join
            that made them, where there was one; the shards of a stream that it learned.
        size: In bytes.
        verdict: Of the gate; None if there was none.
        forced: Why it was published without having passed; None if it passed.
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

    def to_text(self) -> str:
        """Return the record as its file holds it."""
        value = plain({"format": _FORMAT, **asdict(self)}, "record")
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_text(cls, text: str, *, origin: str) -> PublishRecord:
        """Read what :meth:`to_text` gave.

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
    """Return the verdict that lets a bundle pass; with ``force`` whatever verdict there is."""
    if force and not (reason and reason.strip()):
        raise ConfigError(
            "got force without a reason; say why it is published all the same (--reason TEXT): it "
            "is kept with the version"
        )
    if reason is not None and not force:
        raise ConfigError("got a reason without force; add --force, or leave --reason out")
    place = verdict_path(bundle) if verdict is None else verdict
    if force and verdict is None and isinstance(place, Path) and not place.is_file():
        return None
    found = Verdict.load(place) if isinstance(place, Path) else place
    identity = bundle_identity(bundle)
    if found.candidate["sha256"] != identity:
        raise BundleError(
            f"{bundle}: the verdict is of another bundle ({str(found.candidate['sha256'])[:12]} at "
            f"{found.candidate.get('path')}), this one is {identity[:12]}; validate this one"
        )
    if not force and (missing := undefined_figures(asdict(found))) and found.passed:
        raise BundleError(
            f"{bundle}: the verdict lacks what it should rest on: {'; '.join(missing)}; validate "
            "the bundle again"
        )
    if not found.passed and not force:
        why = "; ".join(found.reasons)
        raise BundleError(
            f"{bundle}: the gate stopped it: {why}; train a better one, or publish it all the same "
            "with --force and --reason"
        )
    return found


def make_record(
    bundle: Bundle,
    *,
    version: str,
    parent: str | None,
    verdict: Verdict | None,
    forced: str | None,
) -> PublishRecord:
    """Return the record of a bundle that is about to be published."""
    return PublishRecord(
        version=version,
        bundle=bundle_identity(bundle.path),
        parent=parent,
        published=datetime.now(UTC).isoformat(timespec="seconds"),
        code={"trained": bundle.manifest.created_by, "published": __version__},
        config=bundle.config,
        metrics=bundle.metrics,
        data=_data(bundle),
        size=sum(entry.size for entry in bundle.manifest.files.values()),
        verdict=None if verdict is None else verdict.to_json(),
        forced=forced,
    )


def _data(bundle: Bundle) -> dict[str, Any]:
    """What the run beside the bundle says it was trained on, if it was this schema's run."""
    found: dict[str, Any] = {"rows": bundle.schema.rows, "schema": bundle.schema.fingerprint}
    stream = _read(stream_path(bundle.path))
    if stream is not None and stream.get("bundle") == bundle_identity(bundle.path):
        found["stream"] = {"rows": stream["rows"], "shards": stream["shards"]}
    told = _read(bundle.path.absolute().parent / "inputs.json")
    if told is None or told.get("fingerprint") != bundle.schema.fingerprint:
        return found
    found["inputs"] = told["inputs"]
    manifests = {}
    for entry in told["inputs"]:
        path = Path(str(entry.get("path", entry.get("name", ""))))
        manifest = path.parent.parent / "manifest.json"
        text = _read(manifest)
        if text is not None and text.get("kind") == "widedeep examples":
            manifests[str(manifest)] = text
    if manifests:
        found["manifests"] = manifests
    return found


def stream_path(bundle: Path) -> Path:
    """Return where it is kept, beside a bundle, which shards of a stream its model has learned."""
    return bundle.absolute().with_name(f"{bundle.name}.stream.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
