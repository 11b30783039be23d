"""Verdict: whether a model may serve, with every reason, bound to that model's very bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST, read_manifest
from widedeep.bundle.plain_json import plain
from widedeep.directory import file_sha256, write_text_whole
from widedeep.errors import BundleError

__all__ = ["Verdict", "bundle_identity", "verdict_path"]

_FORMAT = 1


def bundle_identity(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a bundle's manifest, which names that of every other file.

    Args:
        path: The bundle's directory.

    Raises:
        BundleError: If there is no bundle, or its manifest is damaged.
    """
    read_manifest(Path(path))
    return file_sha256(Path(path) / MANIFEST)


def verdict_path(bundle: Path) -> Path:
    """Return where a bundle's verdict is kept unless another place is named: beside it."""
    whole = bundle.absolute()
    return whole.with_name(f"{whole.name}.verdict.json")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided.

    Args:
        passed: Whether the candidate may serve.
        reasons: Why not, one sentence each; empty if it may.
        notes: What a person should know besides.
        candidate: ``path``, ``sha256`` (see :func:`bundle_identity`) and ``schema``.
        serving: The same of the model in service; None without one.
        data: ``rows``, ``unit`` and ``inputs``: what it was judged on.
        dry_run: What was measured in a fresh process.
        quality: By head: both models' metrics, and how much worse the candidate is.
        slices: The same of each slice.
        drift: ``features`` and ``scores``.
        config: The limits.
        created: When, as ISO 8601 in UTC.
        seconds: What it took.
        widedeep: The version that judged.
    """

    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    candidate: Mapping[str, Any] = field(default_factory=dict)
    serving: Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    dry_run: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    slices: tuple[Mapping[str, Any], ...] = ()
    drift: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    widedeep: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain values; NaN becomes None."""
        found = plain({"format": _FORMAT, **asdict(self)}, "verdict")
        assert isinstance(found, dict)
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the verdict as JSON, and as a page beside it (``.html``).

        Args:
            path: The JSON file.

        Returns:
            The page.

        Raises:
            OSError: If it cannot be written.
        """
        from widedeep.gate.verdict_page import verdict_page

        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        page = file.with_suffix(".html")
        write_text_whole(page, verdict_page(self))
        write_text_whole(file, text)
        return page

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Verdict:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: If it is no verdict.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(
                f"{path}: got no verdict there; 'widedeep validate' writes one"
            ) from error
        except (ValueError, OSError) as error:
            raise BundleError(
                f"{path}: got a file that is no verdict ({error}); validate the model again"
            ) from error
        return cls.from_json(value, origin=str(path))

    @classmethod
    def from_json(cls, value: Any, *, origin: str = "verdict") -> Verdict:
        """Read what :meth:`to_json` gave.

        Args:
            value: Plain values.
            origin: Named in errors.

        Raises:
            BundleError: If it is no verdict.
        """
        try:
            if value["format"] != _FORMAT:
                raise ValueError(f"format {value['format']!r}, expected {_FORMAT}")
            fields = {key: item for key, item in value.items() if key != "format"}
            for key in ("reasons", "notes", "slices"):
                fields[key] = tuple(fields[key])
            if type(fields["passed"]) is not bool or bool(fields["reasons"]) is fields["passed"]:
                raise ValueError("it passes and names reasons, or neither")
            fields["candidate"]["sha256"]
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{origin}: got a file that is no verdict ({error!r}); validate the model again"
            ) from error


def described(bundle: Bundle) -> dict[str, Any]:
    """Return what tells one bundle from another."""
    return {
        "path": os.fspath(bundle.path),
        "sha256": bundle_identity(bundle.path),
        "schema": bundle.schema.fingerprint,
    }
