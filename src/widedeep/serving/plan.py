"""From what there is and what was asked for to what is to be loaded, and who answers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from widedeep.serving.state import ServingState
from widedeep.serving.versions import Latest, Policy


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded, and which version is to take the traffic."""

    keep: tuple[str, ...]  # The versions to be loaded, the one that takes the traffic first
    default: str | None  # The version that takes the traffic; None: there is none


def make_plan(
    versions: Sequence[str], policy: Policy, state: ServingState, failed: Collection[str] = ()
) -> Plan:
    """Decide which versions are served."""
    usable = [name for name in versions if name not in state.withdrawn and name not in failed]
    stable = state.labels.get("stable")
    canary = None if state.canary is None else state.canary.version
    # A version under trial does not take all the traffic by being the newest.
    on_trial = {canary, state.shadow} - {stable}
    if isinstance(policy, Latest):
        wanted = [name for name in usable if name not in on_trial][-policy.n :]
        wanted = wanted or usable[-policy.n :]
    else:
        wanted = [name for name in usable if name in policy.versions]
    tried = [name for name in wanted if name not in on_trial] or wanted
    default = stable if stable in usable else (tried[-1] if tried else None)
    asked = [*state.labels.values(), canary, state.shadow, *state.loaded]
    order = [default, *reversed(wanted), *asked]
    keep = dict.fromkeys(name for name in order if name is not None and name in usable)
    return Plan(keep=tuple(keep), default=default)


def is_canary_request(request_id: str, share: float) -> bool:
    """Tell whether a request belongs to the canary's share; every process tells the same."""
    digest = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64
