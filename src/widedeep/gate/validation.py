"""validate: a dry run, quality against the serving model, and drift decide if a model may serve."""

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
from widedeep.evaluation.compare import ChunkCallback, ComparedRows, score_both
from widedeep.evaluation.logged_rankings import LogColumns
from widedeep.gate.checks import dry_run_reasons, rounding_reasons, run_checks
from widedeep.gate.config import GateConfig
from widedeep.gate.dry_run import dry_run
from widedeep.gate.verdict import Verdict, bundle_identity, describe_bundle, undefined_figures
from widedeep.traces import traced

__all__ = ["validate"]


@traced("validate")
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
        serving: Directory of the serving bundle; None for a first model, judged on its own.
        data: Recent labelled rows that neither model was trained on.
        config: Limits.
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
        raise BundleError(f"{path}: not a directory, expected the candidate's bundle")
    served = None if serving is None else Bundle.load(serving)
    about: dict[str, Any] = {
        "config": asdict(config),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "widedeep": __version__,
        "serving": None if served is None else describe_bundle(served),
    }
    about["dry_run"] = run = dry_run(path)
    reasons, notes = dry_run_reasons(run, config)

    def verdict(candidate: dict[str, Any], **findings: Any) -> Verdict:
        return Verdict(
            passed=not reasons,
            reasons=tuple(reasons),
            candidate=candidate,
            seconds=time.perf_counter() - started,
            **findings,
            **about,
        )

    if run["error"] is not None:
        return verdict({"path": os.fspath(path), "sha256": _identity(path), "schema": None})
    bundle = Bundle.load(path)
    for own, more in zip((reasons, notes), rounding_reasons(bundle.rounding, config), strict=True):
        own += more
    try:
        rows = score_rows_to_judge(bundle, served, data, config, threads)
        findings = run_checks(rows, config)
    except WideDeepError:
        raise
    except Exception as error:
        # An unforeseen error: what was not judged does not pass.
        reasons.append(f"the gate could not judge ({error!r}): please report it")
        return verdict(describe_bundle(bundle))
    results: dict[str, Any] = {
        "data": {"rows": len(rows), "unit": rows.unit, "inputs": rows.inputs},
        **findings.fields,
    }
    reasons += findings.reasons
    reasons += undefined_figures({**results, **about})
    notes += findings.notes
    if served is None:
        notes.append("there is no serving model; the candidate was judged on its own")
    return verdict(describe_bundle(bundle), notes=tuple(notes), **results)


def score_rows_to_judge(
    candidate: Bundle,
    serving: Bundle | None,
    data: Data,
    config: GateConfig,
    threads: int,
    on_chunk: ChunkCallback | None = None,
) -> ComparedRows:
    """Score the data with both models, cut and resampled as the configuration says."""
    log = LogColumns.find(
        data,
        candidate,
        propensity=config.propensity,
        position=config.position,
        request=config.request,
    )
    cut: dict[str, Any] = {"slices": config.slices, "unit": config.unit, "log": log}
    return score_both(candidate, serving, data, **cut, threads=threads, on_chunk=on_chunk)


def _identity(path: Path) -> str | None:
    try:
        return bundle_identity(path)
    except BundleError:
        return None
