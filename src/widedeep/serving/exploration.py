"""Exploration: rankings that now and then show what the scores would not, with propensities."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.options import check_range, check_seed, check_types

__all__ = ["Exploration"]

PolicyName = Literal["epsilon"]

LOG_COLUMNS = ("policy", "propensity")
"""Columns of the log of a ranker that explores; null for a ranking without a draw."""


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """How a ranker explores: what it shows beside the best by score.

    With probability ``epsilon`` a request's candidates are put in an order drawn uniformly from
    all orders; otherwise in the order of the policy: for ``"epsilon"`` best score first
    (epsilon-greedy, Sutton and Barto 2018, section 2.2, over whole lists). The draw depends on the
    request's id and ``seed`` alone, so that the same request gets the same answer.

    The propensity of an item at its position is the probability, over draws for such a request,
    that this item gets this position: ``epsilon / n + (1 - epsilon)`` where the policy puts it
    there and ``epsilon / n`` elsewhere, for n candidates. It is above 0 for every candidate at
    every position, so that a log can be judged under any other policy.

    Args:
        policy: Order of the requests that are not drawn at random.
        epsilon: Fraction of the requests to rank at random, 0 < epsilon < 1.
        seed: Random seed, 0 <= seed < 2**63. Change it to draw anew for the same ids.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> Exploration(epsilon=0.1).policy
        'epsilon'
    """

    policy: Annotated[
        PolicyName,
        "explore: show some requests another order than the scores', and log propensities "
        "(default: best score first, always)",
    ] = "epsilon"
    epsilon: Annotated[float, "fraction of the requests to rank at random, above 0 and below 1"] = (
        0.05
    )
    seed: Annotated[int, "seed of the draws, which depend on it and the request's id"] = 0

    def __post_init__(self) -> None:
        check_types(self, "exploration")
        check_range(
            "exploration",
            "epsilon",
            self.epsilon,
            0 < self.epsilon < 1,
            "a fraction above 0 and below 1, such as 0.05: at 0 some items would never be shown "
            "(leave exploration out to show the best always), at 1 no score would count",
        )
        check_seed("exploration", self.seed)

    def draw(
        self, scores_B: NDArray[np.float64], k: int | None, request_id: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the candidates' order, (k,) positions, and the propensity of each, (k,)."""
        rng, n = self._rng(request_id), len(scores_B)
        best_B = np.argsort(-scores_B, kind="stable")
        order = rng.permutation(n) if rng.random() < self.epsilon else best_B
        order, best = order[:k], best_B[:k]
        floor = self.epsilon / max(n, 1)
        return order, np.minimum(floor + (1 - self.epsilon) * (order == best), 1.0)

    def _rng(self, request_id: str) -> np.random.Generator:
        digest = hashlib.blake2b(
            request_id.encode("utf-8", "surrogatepass"),
            digest_size=16,
            salt=self.seed.to_bytes(8, "little"),
            person=b"exploration",
        ).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))
