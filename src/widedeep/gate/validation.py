"""validate: may this model serve? A dry run, its quality against the model in service, drift."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from widedeep._version import __version__
from widedeep.bundle import Bundle
from widedeep.data.sources import Data
from widedeep.errors import BundleError, WideDeepError
from widedeep.gate.config import GateConfig
from widedeep.gate.drift import drift_reasons, score_psi
from widedeep.gate.dry_run import dry_run, dry_run_reasons
from widedeep.gate.quality import Quality, judge_quality
from widedeep.gate.scored import Scored, score_both
from widedeep.gate.verdict import Verdict, bundle_identity, described, undefined_figures

__all__ = ["validate"]


def validate(
    candidate: str | os.PathLike[str],
    serving: str | os.PathLike[str] | None,
    data: Data,
    *,
    config: GateConfig | None = None,
    threads: int = 1,
) -> Verdict:
    """Judge a bundle before it serves.

    Args:
        candidate: The new bundle's directory.
        serving: That of the model in service; None for a first one, which is judged on its own.
        data: Recent labelled rows that neither model was trained on, as :func:`open_source` reads.
        config: The limits.
        threads: Threads to score with; the verdict does not depend on it.

    Returns:
        The verdict. A candidate that does not load fails with that reason.

    Raises:
        BundleError: If there is no candidate, or the model in service does not load.
        DataError: If the data has no rows or lacks a column.
        SchemaError: If the models predict different labels.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education"))
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.fit("train.parquet")
        >>> _ = trainer.export("candidate")
        >>> validate("candidate", None, "test.parquet").passed
        True
    """
    started, config = time.perf_counter(), config or GateConfig()
    path = Path(candidate)
    if not path.is_dir():
        raise BundleError(f"{path}: got no directory, expected the candidate's bundle")
    served = None if serving is None else Bundle.load(serving)
    about: dict[str, Any] = {
        "config": asdict(config),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "widedeep": __version__,
        "serving": None if served is None else described(served),
    }
    tried = dry_run(path)
    reasons, notes = dry_run_reasons(tried, config)
    if tried["error"] is not None:
        return Verdict(
            passed=False,
            reasons=tuple(reasons),
            candidate={"path": os.fspath(path), "sha256": _identity(path), "schema": None},
            dry_run=tried,
            seconds=time.perf_counter() - started,
            **about,
        )
    bundle = Bundle.load(path)
    try:
        scored = score_both(bundle, served, data, config, threads=threads)
        quality = judge_quality(scored, config)
        drift, moved, told = _drift(scored, config)
    except WideDeepError:
        raise
    except Exception as error:
        # A mistake of ours, or data that nobody thought of: what was not judged does not pass.
        return Verdict(
            passed=False,
            reasons=(*reasons, f"the gate could not judge ({error!r}): please report it"),
            candidate=described(bundle),
            dry_run=tried,
            seconds=time.perf_counter() - started,
            **about,
        )
    figures: dict[str, Any] = {
        "data": {"rows": len(scored), "unit": scored.unit, "inputs": scored.inputs},
        "dry_run": tried,
        "quality": _heads(quality),
        "slices": tuple(quality.slices),
        "drift": drift,
    }
    reasons += [*quality.reasons, *moved]
    reasons += undefined_figures({**figures, **about})
    notes += [*quality.notes, *told]
    if served is None:
        notes.append("there is no model in service to compare with; it was judged on its own")
    return Verdict(
        passed=not reasons,
        reasons=tuple(reasons),
        notes=tuple(notes),
        candidate=described(bundle),
        seconds=time.perf_counter() - started,
        **figures,
        **about,
    )


def _identity(path: Path) -> str | None:
    try:
        return bundle_identity(path)
    except BundleError:
        return None


def _heads(quality: Quality) -> dict[str, Any]:
    return {name or "score": entry for name, entry in quality.heads.items()}


def _drift(scored: Scored, config: GateConfig) -> tuple[dict[str, Any], list[str], list[str]]:
    features = scored.drift.features()
    reasons, told = drift_reasons(features, config)
    scores: dict[str, float] = {}
    for head in scored.heads:
        if head.serving_B is None or any(head.undefined.values()):
            continue
        mine, theirs = head.common or (head.candidate_B, head.serving_B)
        found = score_psi(theirs, mine)
        scores[head.head.name or "score"] = found
        if not found <= config.max_score_psi:
            where = f"head {head.head.name}: " if head.head.name else ""
            reasons.append(
                f"drift: {where}the scores are spread otherwise than those of the model in service "
                f"(stability index {found:.3g}, allowed {config.max_score_psi:g}); mean "
                f"{head.candidate_B.mean():.4g} against {head.serving_B.mean():.4g}"
            )
    drift = {"features": [one.to_json() for one in features], "scores": scores}
    return drift, reasons, told
