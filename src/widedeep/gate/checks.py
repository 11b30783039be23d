"""The checks of the gate: each gives reasons that stop a candidate, notes, and fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from widedeep.bundle.layout import Rounding
from widedeep.data.drift import FeatureDrift, score_psi
from widedeep.evaluation.compare import ComparedRows
from widedeep.evaluation.off_policy import UndefinedPrediction, policy_values
from widedeep.evaluation.statistics import p_value_at_limit
from widedeep.gate.config import GateConfig
from widedeep.gate.dry_run import REQUEST_ROWS, TOLERANCE
from widedeep.gate.quality import judge_quality


@dataclass(slots=True)
class Findings:
    """Result of one check."""

    reasons: list[str] = field(default_factory=list)  # Why the candidate does not pass
    notes: list[str] = field(default_factory=list)  # Remarks that stop nothing
    fields: dict[str, Any] = field(default_factory=dict)  # By field of the verdict


Check: TypeAlias = Callable[[ComparedRows, GateConfig], Findings]


def check_quality(rows: ComparedRows, config: GateConfig) -> Findings:
    """Compare the quality of both models, overall and by slice."""
    quality = judge_quality(rows, config)
    heads = {name or "score": entry for name, entry in quality.heads.items()}
    fields = {"quality": heads, "slices": tuple(quality.slices)}
    return Findings(quality.reasons, quality.notes, fields)


def check_feature_drift(rows: ComparedRows, config: GateConfig) -> Findings:
    """Compare today's inputs with those of training."""
    features = rows.drift.features()
    reasons, notes = drift_reasons(features, config)
    return Findings(reasons, notes, {"drift": {"features": [one.to_json() for one in features]}})


def check_score_drift(rows: ComparedRows, config: GateConfig) -> Findings:
    """Compare the distributions of both models' scores."""
    scores: dict[str, float] = {}
    reasons = []
    for head in rows.heads:
        if head.serving_B is None or any(head.undefined.values()):
            continue
        candidate_B, serving_B = head.common or (head.candidate_B, head.serving_B)
        index = score_psi(serving_B, candidate_B)
        scores[head.head.name or "score"] = index
        if not index <= config.max_score_psi:
            where = f"head {head.head.name}: " if head.head.name else ""
            reasons.append(
                f"drift: {where}score distribution differs from the serving model's (PSI "
                f"{index:.3g}, limit {config.max_score_psi:g}); mean {head.candidate_B.mean():.4g} "
                f"against {head.serving_B.mean():.4g}"
            )
    return Findings(reasons, [], {"drift": {"scores": scores}})


def check_policy(rows: ComparedRows, config: GateConfig) -> Findings:
    """Compare what both models' rankings would earn, where the log says how it was ranked."""
    result = Findings()
    try:
        by_head = policy_values(rows, resamples=config.bootstrap, seed=config.seed)
    except UndefinedPrediction as error:
        return Findings([f"policy: {error}"])
    for name, values in by_head.items():
        result.fields.setdefault("policy", {})[name or "score"] = values
        where = f"policy: head {name}: " if name else "policy: "
        problems = [
            f"{where}{'the candidate' if model == 'candidate' else 'the serving model'}: {problem}"
            for model, problem in ((m, v["problem"]) for m, v in values["models"].items())
            if problem is not None
        ]
        change = values.get("change")
        if change is not None and math.isfinite(config.max_reward_drop):
            change["limit"] = config.max_reward_drop
            if not all(math.isfinite(change[key]) for key in ("worse", "error")):
                problems.append(
                    f"{where}no drop can be told against the serving model's reward, which is "
                    "undefined or may be 0 or less"
                )
            elif not problems:
                change["p"] = p = p_value_at_limit(
                    change["worse"], change["error"], change["limit"]
                )
                new, old = (v["dr"]["value"] for v in values["models"].values())
                if p < 1 - config.confidence:
                    result.reasons.append(
                        f"{where}its rankings would earn {new:.4g} per request, "
                        f"{change['worse']:.1%} below the serving model's {old:.4g} (95 % interval "
                        f"{change['low']:.1%} to {change['high']:.1%}), limit {change['limit']:.1%}"
                    )
        # What was asked for and cannot be judged does not pass.
        (result.notes if config.propensity is None else result.reasons).extend(problems)
    return result


CHECKS: tuple[Check, ...] = (
    check_quality,
    check_feature_drift,
    check_score_drift,
    check_policy,
)


def run_checks(rows: ComparedRows, config: GateConfig) -> Findings:
    """Run every check; their fields are merged."""
    result = Findings()
    for check in CHECKS:
        findings = check(rows, config)
        result.reasons += findings.reasons
        result.notes += findings.notes
        for name, value in findings.fields.items():
            merged = {**result.fields.get(name, {}), **value} if isinstance(value, dict) else value
            result.fields[name] = merged
    return result


def dry_run_reasons(run: dict[str, Any], config: GateConfig) -> tuple[list[str], list[str]]:
    """Return the reasons of a dry run that stop the model, and notes."""
    if run["error"] is not None:
        return [f"dry run: {run['error']}"], []
    reasons, notes = [], []
    if not run["rows"]:
        text = "dry run: the bundle has no warm-up rows to replay; it was only loaded"
        if math.isfinite(config.max_latency_ms):
            reasons.append(
                f"{text}, so its scores and its latency cannot be judged: export it with rows "
                "(warmup), or set max_latency_ms = inf"
            )
        else:
            notes.append(text)
    elif not run["finite"]:
        reasons.append("dry run: a score is NaN or infinite")
    elif not run["worst"] <= TOLERANCE:
        reasons.append(
            f"dry run: scores differ by up to {run['worst']:.2g} from those stored at export, "
            f"limit {TOLERANCE:g}; export the model with this version"
        )
    for key, action, unit in (
        ("latency_ms", f"scoring {REQUEST_ROWS} rows takes", "ms"),
        ("memory_mb", "the process uses", "MB"),
        ("load_s", "loading takes", "s"),
    ):
        limit = getattr(config, f"max_{key}")
        if limit is not None and key in run and not run[key] <= limit:
            reasons.append(f"dry run: {action} {run[key]:.4g} {unit}, limit {limit:g} (max_{key})")
    return reasons, notes


def rounding_reasons(rounding: Rounding | None, config: GateConfig) -> tuple[list[str], list[str]]:
    """Return the reasons for which a bundle with rounded tables does not pass, and notes."""
    if rounding is None:
        return [], []
    limit = config.max_rounding
    if not rounding.rows and math.isfinite(limit):
        return [
            f"rounding: {rounding}, and no row was scored before and after, so that its change "
            "cannot be judged: export it with rows (warmup), or set max_rounding = inf"
        ], []
    if not rounding.mean <= limit:
        return [
            f"rounding: {rounding}, limit {limit:g} on average (max_rounding); export it in "
            f"{'int8' if rounding.tables == 'int4' else 'fp32'}"
        ], []
    return [], [f"rounding: {rounding}"]


def drift_reasons(features: list[FeatureDrift], config: GateConfig) -> tuple[list[str], list[str]]:
    """Return the reasons that stop the model, and notes, of the features' drift."""
    reasons: list[str] = []
    notes: list[str] = []
    for one in features:
        stops = notes if one.feature in config.ignore_drift else reasons
        stops += _broken_feed(one, config)
        # A NaN is beyond each limit, an infinite one too.
        if one.psi is not None and not one.psi <= min(config.warn_psi, config.max_psi):
            beyond = not one.psi <= config.max_psi
            limit = f"limit {config.max_psi:g}" if beyond else "a warning, which stops no model"
            (stops if beyond else notes).append(
                f"drift: feature {one.feature!r} has moved since training (PSI {one.psi:.3g}, "
                f"{limit}); most: {one.moved_most}"
            )
        if one.too_little is not None:
            notes.append(f"drift: feature {one.feature!r} was not compared: {one.too_little}")
    return reasons, notes


def _broken_feed(one: FeatureDrift, config: GateConfig) -> Iterator[str]:
    if not one.missing_psi <= config.max_missing_psi:
        yield (
            f"drift: feature {one.feature!r} is missing in {one.missing_now:.1%} of the rows, "
            f"{one.missing_training:.1%} in training"
        )
    if one.new_values is not None and not one.new_values <= config.max_new_values:
        yield (
            f"drift: {one.new_values:.1%} of the values of feature {one.feature!r} are new to "
            f"the model, limit {config.max_new_values:.0%}"
            + ("" if one.moved_most is None else f"; most: {one.moved_most}")
        )
    elif one.stuck is not None:
        yield (
            f"drift: feature {one.feature!r} has nearly one value alone: {one.stuck}; if that is "
            "expected, add it to ignore_drift under [gate]"
        )
