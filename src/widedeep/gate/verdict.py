"""Verdict: whether a model may serve, with every reason, bound to the bytes of its bundle."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST, read_manifest
from widedeep.bundle.plain_json import plain
from widedeep.errors import BundleError
from widedeep.evaluation.statistics import LOSSES
from widedeep.files import file_sha256, refuse_folder, write_text_whole
from widedeep.gate.measures import MEASURES
from widedeep.gate.verdict_page import verdict_page

__all__ = ["Verdict", "bundle_identity", "undefined_figures", "verdict_path"]

_FORMAT = 2


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
    """Return the default path of a bundle's verdict: beside it."""
    path = bundle.absolute()
    return path.with_name(f"{path.name}.verdict.json")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Decision of the gate.

    Args:
        passed: Whether the candidate may serve.
        reasons: Why it may not serve, one sentence each; empty if it may.
        notes: Remarks that stop nothing.
        candidate: ``path``, ``sha256`` (see :func:`bundle_identity`) and ``schema``.
        serving: The same of the serving model; None without one.
        data: ``rows``, ``unit`` and ``inputs`` of the rows it was judged on.
        dry_run: Measurements in a fresh process.
        quality: Both models' metrics by head, and by how much the candidate is worse.
        slices: The same for each slice.
        drift: ``features`` and ``scores``.
        policy: By head, what the models' rankings would earn, where the data has propensities: see
            :func:`widedeep.evaluation.off_policy.estimate_policies`.
        config: Limits.
        created: Time of the decision, ISO 8601 in UTC.
        seconds: Duration.
        widedeep: Version that decided.
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
    policy: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    widedeep: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain values; NaN becomes None."""
        value = plain({"format": _FORMAT, **asdict(self)}, "verdict")
        assert isinstance(value, dict)
        return {**value, "sha256": _digest(value)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the verdict as JSON, and as a page beside it (``.html``).

        Args:
            path: The JSON file.

        Returns:
            The page.

        Raises:
            DataError: If it is a folder.
            OSError: If it cannot be written.
        """
        file = Path(path)
        refuse_folder(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        page = file.with_suffix(".html")
        write_text_whole(page, verdict_page(self.to_json()))
        write_text_whole(file, text)
        return page

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Verdict:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: If it is not a verdict.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(
                f"{path}: there is no verdict; 'widedeep validate' writes one"
            ) from error
        except (ValueError, OSError) as error:
            raise BundleError(
                f"{path}: not a verdict ({error}); validate the model again"
            ) from error
        return cls.from_json(value, origin=str(path))

    @classmethod
    def from_json(cls, value: Any, *, origin: str = "verdict") -> Verdict:
        """Read what :meth:`to_json` gave.

        Args:
            value: Plain values.
            origin: Named in errors.

        Raises:
            BundleError: If it is not a verdict.
        """
        try:
            if value["format"] != _FORMAT:
                raise ValueError(f"format {value['format']!r}, expected {_FORMAT}")
            sealed = {key: item for key, item in value.items() if key != "sha256"}
            if value["sha256"] != _digest(sealed):
                raise ValueError("it was changed after it was written")
            fields = {key: item for key, item in sealed.items() if key != "format"}
            for key in ("reasons", "notes", "slices"):
                fields[key] = tuple(fields[key])
            if type(fields["passed"]) is not bool or bool(fields["reasons"]) is fields["passed"]:
                raise ValueError("it passes and names reasons, or neither")
            fields["candidate"]["sha256"]
            if fields["serving"] is not None:
                fields["serving"]["sha256"]
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{origin}: not a verdict ({type(error).__name__}: {error}); "
                "validate the model again"
            ) from error


def _digest(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a verdict's contents, which shows edits by hand."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def undefined_figures(verdict: Mapping[str, Any]) -> list[str]:
    """Return why a verdict may not pass: each limited figure that is not a finite number."""
    limits, against = verdict["config"], verdict["serving"] is not None
    wrong = [] if _at_least_one(verdict["data"].get("rows")) else ["data: rows"]
    wrong += _undefined_run(verdict["dry_run"], limits)
    if not verdict["quality"]:
        wrong.append("quality: every head")
    for head, entry in verdict["quality"].items():
        if entry.get("judged") is not False:
            wrong += _undefined_measures(f"quality of {head}", entry, limits, against, slices=False)
    for entry in verdict["slices"]:
        if entry["too_little"] is None:
            where = f"slice {entry['column']} = {entry['value']}"
            wrong += _undefined_measures(where, entry, limits, against, slices=True)
    wrong += _undefined_drift(verdict, limits, against)
    return [
        f"{name} is not defined; what cannot be judged does not pass (an infinite limit under "
        "[gate] leaves a measure out)"
        for name in wrong
    ]


def _undefined_drift(
    verdict: Mapping[str, Any], limits: Mapping[str, Any], against: bool
) -> list[str]:
    drift, wrong = verdict["drift"], []
    for entry in drift.get("features", ()):
        for key in ("psi", "missing_training", "missing_now", "missing_psi", "new_values"):
            # None is a value of these two: no counts of training, no new values of a number.
            absent = key in ("psi", "new_values") and entry[key] is None
            if not absent and not _finite(entry[key]):
                wrong.append(f"drift of feature {entry['feature']!r}: {key}")
    if against and _limited(limits, "max_score_psi"):
        for head, entry in verdict["quality"].items():
            if entry.get("judged") is not False and not _finite(drift.get("scores", {}).get(head)):
                wrong.append(f"drift of the scores of {head}")
    return wrong


def _undefined_run(run: Mapping[str, Any], limits: Mapping[str, Any]) -> list[str]:
    if "error" not in run or run["error"] is not None:
        return ["dry run"]
    wrong = [
        f"dry run: {key}"
        for key in ("load_s", "memory_mb")
        if _limited(limits, f"max_{key}") and not _finite(run.get(key))
    ]
    if run.get("rows"):
        wrong += [f"dry run: {key}" for key in ("latency_ms", "worst") if not _finite(run.get(key))]
    elif _limited(limits, "max_latency_ms"):
        wrong.append("dry run: latency_ms")
    return wrong


def _undefined_measures(
    where: str,
    entry: Mapping[str, Any],
    limits: Mapping[str, Any],
    against: bool,
    *,
    slices: bool,
) -> list[str]:
    models = {"candidate": "the candidate", **({"serving": "the serving model"} if against else {})}
    candidate = entry.get("candidate", {})
    loss = next((name for name in LOSSES if name in candidate), "log_loss")
    wrong = []
    for name, measure in MEASURES.items():
        options = [measure.slice_limit] if slices else [measure.limit, measure.absolute_limit]
        present = name == loss or name in candidate
        if not present or not any(_limited(limits, option) for option in options if option):
            continue
        keys = measure.other_values + (() if slices else measure.overall_values)
        for model, text in models.items():
            for key in (name, *keys):
                if not _finite(entry.get(model, {}).get(key)):
                    wrong.append(f"{where}: {key} of {text}")
        change = entry.get("changes", {}).get(name, {})
        if against and not all(_finite(change.get(k)) for k in ("worse", "error", "low", "high")):
            wrong.append(f"{where}: how much worse {name} is, with its interval,")
    return wrong


def _limited(limits: Mapping[str, Any], name: str) -> bool:
    limit = limits.get(name)
    return limit is not None and math.isfinite(limit)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _at_least_one(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return path, identity and schema of a bundle."""
    return {
        "path": os.fspath(bundle.path),
        "sha256": bundle_identity(bundle.path),
        "schema": bundle.schema.fingerprint,
    }
