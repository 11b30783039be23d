"""Exploration: rankings that now and then show what the scores would not, with propensities."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.posterior import ranked_head, uncertainty_bundles
from widedeep.errors import BundleError
from widedeep.options import Seed, check_range, check_types
from widedeep.serving.scorers import FactorizedScorer, RowScorer, new_scorer

__all__ = ["Exploration"]

PolicyName = Literal["epsilon", "thompson", "linucb"]

LOG_COLUMNS = ("policy", "propensity")
"""Columns of the log of a ranker that explores; null for a ranking without a draw."""

_PICKED_SINGLY = 8  # first keys that are found one after the other faster than by sorting
_SORTED_WHOLE = 1000  # keys that are sorted as fast as the first few of them are found
_BLOCK_KEYS = 1 << 16
_DRAWS = 129  # of the posterior, for propensities: the request's own, and 128 more


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How uncertain the logits of a request's candidates are."""

    variance_B: NDArray[np.float64]  # From the wide weights, taken as independent
    # Vectors whose squared lengths are the part of numbers in the wide part and hidden units
    hidden_BH: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """How a ranker explores: what it shows beside the best by score.

    With probability ``epsilon`` a request's candidates are put in an order drawn uniformly from
    all orders; otherwise in the order of the policy:

    - ``"epsilon"``: best score first (epsilon-greedy, Sutton and Barto 2018, section 2.2, over
      whole lists);
    - ``"thompson"``: by the logits under a draw of the last layer's weights from their posterior
      (Thompson sampling, Chapelle and Li 2011);
    - ``"linucb"``: by the logit plus ``scale`` standard deviations of it (Li et al. 2010,
      algorithm 1).

    The latter two need a bundle with a posterior (``[train] posterior = true``). All draws depend
    on the request's id and ``seed`` alone, so that the same request gets the same answer.

    The propensity of an item at its position is the probability, over draws for such a request,
    that this item gets this position: ``epsilon / n + (1 - epsilon) q`` for n candidates (twice
    ``epsilon / n`` for an item that is two of them), with q
    the probability that the policy puts it there: 0 or 1, and for Thompson sampling the fraction
    of 129 draws, the request's own among them. It is above 0 for every candidate at every
    position, so that a log can be judged under any other policy.

    Args:
        policy: Order of the requests that are not drawn at random.
        epsilon: Fraction of the requests to rank at random, 0 < epsilon < 1; None: 0.05 for
            ``"epsilon"``, 0.01 for the others, which explore by themselves.
        scale: Factor of the standard deviations of ``"thompson"`` and ``"linucb"``, above 0.
        seed: Random seed, 0 <= seed < 2**63. Change it to draw anew for the same ids.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> Exploration(policy="epsilon").epsilon, Exploration(policy="linucb").epsilon
        (0.05, 0.01)
    """

    policy: Annotated[
        PolicyName,
        "explore: show some requests another order than the scores', and log propensities "
        "(default: best score first, always)",
    ] = "epsilon"
    epsilon: Annotated[
        float | None,
        "fraction of the requests to rank at random, above 0 and below 1 (default: 0.05, and 0.01 "
        "with another policy than epsilon)",
    ] = None
    scale: Annotated[float, "factor of the standard deviations of thompson and linucb"] = 1.0
    seed: Annotated[Seed, "seed of the draws, which depend on it and the request's id"] = 0

    def __post_init__(self) -> None:
        check_types(self, "exploration")
        if self.epsilon is None:
            object.__setattr__(self, "epsilon", 0.01 if self.needs_posterior else 0.05)
        check_range(
            "exploration",
            "epsilon",
            self.epsilon,
            0 < self._epsilon < 1,
            "a fraction above 0 and below 1, such as 0.05: at 0 some items would never be shown "
            "(leave exploration out to show the best always), at 1 no score would count",
        )
        check_range("exploration", "scale", self.scale, self.scale > 0, "a number above 0")

    @property
    def needs_posterior(self) -> bool:
        """Whether the policy asks how uncertain scores are."""
        return self.policy != "epsilon"

    @property
    def _epsilon(self) -> float:
        assert self.epsilon is not None  # as __post_init__ left it
        return self.epsilon

    def draw(
        self,
        scores_B: NDArray[np.float64],
        k: int | None,
        request_id: str,
        uncertainty: Uncertainty | None = None,
        item_B: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the candidates' order, (k,) positions, and the propensity of each, (k,).

        ``scores_B`` are logits where there is an ``uncertainty``; ``item_B`` numbers the items,
        if one is there twice.
        """
        rng, n = self._rng(request_id), len(scores_B)
        free = rng.permutation(n) if rng.random() < self._epsilon else None
        # A few draws at a time, the request's own first: all would be 129 times the candidates.
        orders = (_first(keys_DB, k) for keys_DB in self._keys(scores_B, uncertainty, rng))
        drawn_DK = next(orders)
        order = drawn_DK[0] if free is None else free[:k]
        item_B = np.arange(n) if item_B is None else item_B
        hits_DK = [item_B[each_DK] == item_B[order] for each_DK in chain([drawn_DK], orders)]
        placed = np.concatenate(hits_DK).mean(axis=0)
        floor = self._epsilon * np.bincount(item_B)[item_B[order]] / max(n, 1)
        return order, np.minimum(floor + (1 - self._epsilon) * placed, 1.0)

    def _keys(
        self, scores_B: NDArray[np.float64], given: Uncertainty | None, rng: np.random.Generator
    ) -> Iterator[NDArray[np.float64]]:
        """Yield what the policy sorts by, a row per draw, a block of draws at a time."""
        if given is None:
            yield scores_B[None]
        elif self.policy == "linucb":
            variance_B = given.variance_B + (given.hidden_BH**2).sum(axis=1)
            yield (scores_B + self.scale * np.sqrt(variance_B))[None]
        else:
            deviation_B = np.sqrt(given.variance_B)
            normal_DB = rng.standard_normal((_DRAWS, len(scores_B)))
            normal_DH = rng.standard_normal((_DRAWS, given.hidden_BH.shape[1]))
            block = max(1, _BLOCK_KEYS // max(1, len(scores_B)))
            for at in range(0, _DRAWS, block):
                noise_DB = normal_DB[at : at + block] * deviation_B
                noise_DB += normal_DH[at : at + block] @ given.hidden_BH.T
                yield scores_B + self.scale * noise_DB

    def _rng(self, request_id: str) -> np.random.Generator:
        digest = hashlib.blake2b(
            request_id.encode("utf-8", "surrogatepass"),
            digest_size=16,
            salt=self.seed.to_bytes(8, "little"),
            person=b"exploration",
        ).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))


def _first(keys_DB: NDArray[np.float64], k: int | None) -> NDArray[np.int64]:
    """Return the first k of each row's order, largest first and equal ones as they stand."""
    if k is not None and 0 < k <= min(_PICKED_SINGLY, keys_DB.shape[1]):
        left_DB, rows_D = keys_DB.copy(), np.arange(len(keys_DB))
        order_DK = np.empty((len(keys_DB), k), np.int64)
        if np.isfinite(left_DB).all():
            for place in range(k):
                order_DK[:, place] = left_DB.argmax(axis=1)
                left_DB[rows_D, order_DK[:, place]] = -np.inf
            return order_DK
    losses_DB = -keys_DB
    if k is None or not 0 < k < keys_DB.shape[1] or keys_DB.shape[1] <= _SORTED_WHOLE:
        return np.argsort(losses_DB, axis=1, kind="stable")[:, :k]
    orders = []
    for losses_B in losses_DB:
        places = np.flatnonzero(~(losses_B > np.partition(losses_B, k - 1)[k - 1]))  # NaN is last
        orders.append(places[np.argsort(losses_B[places], kind="stable")][:k])
    return np.array(orders)


def no_posterior(path: Path) -> str:
    """Return the error of a bundle that cannot explore by its uncertainty."""
    return (
        f"{path}: got a bundle without the posterior of its last layer, which 'thompson' and "
        "'linucb' explore by; train with posterior = true under [train], export it with "
        "'widedeep export --posterior DATA', or explore by 'epsilon'"
    )


@dataclass(frozen=True, slots=True)
class _Sides:
    """A query, or items, as each scorer prepared them; the model's own first."""

    parts: list[Any]

    @property
    def absent(self) -> Any:
        return self.parts[0].absent


class UncertainScorer:
    """A scorer that also tells how uncertain its logits are.

    Args:
        scorer: The model's own.
        bundle: The model, with a posterior.
        threads: Threads per request.

    Raises:
        BundleError: If the bundle has no posterior.
    """

    def __init__(
        self, scorer: FactorizedScorer | RowScorer, bundle: Bundle, *, threads: int
    ) -> None:
        if not bundle.posterior:
            raise BundleError(no_posterior(bundle.path))
        self.column = ranked_head(bundle.model).start
        wide, hidden = uncertainty_bundles(bundle)
        self._wide = wide
        parts = [*([] if wide is None else [wide.bundle]), *([] if hidden is None else [hidden])]
        self._scorers = [scorer, *(new_scorer(part, threads=threads) for part in parts)]

    def query(self, row: Mapping[str, Any]) -> _Sides:
        """Prepare a query."""
        return _Sides([scorer.query(row) for scorer in self._scorers])

    def items(self, table: pa.Table) -> _Sides:
        """Prepare a table of items."""
        return _Sides([scorer.items(table) for scorer in self._scorers])

    def item_rows(self, rows: Sequence[Mapping[str, Any]]) -> _Sides:
        """Prepare items as mappings."""
        return _Sides([scorer.item_rows(rows) for scorer in self._scorers])

    def logits(
        self, query: _Sides, items: _Sides, rows_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of candidates, (B, C), not calibrated."""
        return self._of(0, query, items, rows_B)

    def deviations(
        self, query: _Sides, items: _Sides, rows_B: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the wide variance (0 without a wide part) and vectors of the rest, (B, 1 + H)."""
        parts: list[NDArray[Any]] = [
            self._of(i, query, items, rows_B) for i in range(1, len(self._scorers))
        ]
        if self._wide is None:
            parts.insert(0, np.zeros((len(rows_B), 1)))
        else:
            parts[0] = self._wide.deviations(parts[0])
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def _of(
        self, index: int, query: _Sides, items: _Sides, rows_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        scorer: Any = self._scorers[index]
        logits_BC: NDArray[np.float32] = scorer.logits(
            query.parts[index], items.parts[index], rows_B
        )
        return logits_BC
