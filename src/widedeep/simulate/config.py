"""The configuration of a simulated app store, and the constants of its world."""

from __future__ import annotations

from dataclasses import dataclass, fields

from widedeep.errors import ConfigError
from widedeep.join.times import moment_us
from widedeep.options import check_types

__all__ = ["StoreConfig"]

# ---- the world. These were set before any model was compared on it, and stay. --------------------

TASTES = 8
"""Dimensions of the space in which users' tastes and apps' topics lie."""
COUNTRIES = ("br", "de", "fr", "gb", "in", "jp", "kr", "us")
AGES = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
DEVICES = ("phone", "tablet", "tv")
DEVICE_SHARES = (0.7, 0.22, 0.08)
CATEGORIES = (
    *("books", "business", "education", "finance", "fitness", "food", "games", "kids"),
    *("maps", "music", "news", "photo", "shopping", "social", "tools", "travel"),
)
APPS_A_DEVELOPER = 8
HOURS_A_BLOCK = 4

# A user's taste, and an app's topic: shares of the variance.
TASTE_SHARES = {"country": 0.35, "age": 0.35, "own": 0.3}
TOPIC_SHARES = {"category": 0.55, "developer": 0.15, "own": 0.3}
# What general tastes add to the logit, in standard deviations, at generalisation = 1.
AFFINITY, HOUR_EFFECT, DEVICE_EFFECT = 0.85, 0.3, 0.4
# Particular pairs: the share of all (installed, shown) pairs that have an effect, the share of
# those where it is a lift, its size on the logit at memorisation = 1, and what several may add to.
PAIR_SHARE, LIFT_SHARE, PAIR_EFFECT, PAIR_LIMIT = 0.006, 0.75, 1.6, 2.5
# What counts for everyone: the logit of a free app of middling quality, then the effects.
BASE_LOGIT, QUALITY_EFFECT, PAID_EFFECT, PRICE_EFFECT, NEW_EFFECT = -4.9, 0.5, -0.35, -0.15, 0.4
NEW_DAYS = 14.0
PAID_SHARE = 0.3
# The k-th place of the list is looked at with probability 1 / (1 + POSITION_DECAY (k - 1)).
POSITION_DECAY = 0.15

# Popularity of the app at rank r is proportional to (r + ZIPF_SHIFT) ** -ZIPF_POWER.
ZIPF_POWER, ZIPF_SHIFT = 1.05, 3.0
# Retrieval: popular apps, new ones, and those of categories the user has.
RETRIEVAL_POWER, RETRIEVAL_NEW, RETRIEVAL_CATEGORY = 0.9, 2.0, 0.4
INSTALLED_AT_FIRST, MOST_INSTALLED = 9.0, 30
ACTIVITY_SPREAD = 0.8
WEIGHT_DRIFT = 0.03
"""Daily standard deviation of the logarithm of an app's popularity."""
MOST_APPS = 5000
MOST_USERS = 10_000_000
REQUESTS_AT_ONCE = 2000
"""Most requests of a round; a user sends one at most in it."""
DELAY_MEAN_S, DELAY_MOST_S = 60.0, 600.0
"""From the impression to the install."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """The size of an app store, and how strong its two kinds of regularity are.

    Everything else is a constant of :mod:`widedeep.simulate.config`.

    Args:
        seed: Random seed. The same configuration gives the same store, and the same logs under the
            same policy.
        users: Users at the start, at least 10.
        apps: Apps at the start, 50 to 5,000. The effect of each pair of them is kept in memory.
        requests_per_day: Requests per day, at least 1.
        candidates: Candidates that retrieval proposes per request, at least ``shown``.
        shown: Apps per list, at least 1.
        new_users_per_day: Users who arrive per day, with a few apps installed.
        new_apps_per_day: Apps that appear in the store per day.
        memorisation: Strength of the effects of particular pairs of apps (who has app A installs
            app B), 0 for none. No attribute tells of them.
        generalisation: Strength of the general tastes of countries, ages, devices and hours for
            kinds of apps, 0 for none.
        drift: Fraction of the tastes' standard deviation that is new each day, 0 to 1.
        start: The first day's midnight, ISO 8601.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> StoreConfig(users=5000, memorisation=0.0).shown
        10
    """

    seed: int = 0
    users: int = 20_000
    apps: int = 600
    requests_per_day: int = 10_000
    candidates: int = 50
    shown: int = 10
    new_users_per_day: int = 100
    new_apps_per_day: int = 3
    memorisation: float = 1.0
    generalisation: float = 1.0
    drift: float = 0.08
    start: str = "2026-01-05T00:00:00Z"

    def __post_init__(self) -> None:
        check_types(self, "the store")
        least = {
            **{entry.name: 0 for entry in fields(self) if entry.name != "start"},
            **{"users": 10, "apps": 50, "requests_per_day": 1, "shown": 1},
            "candidates": self.shown,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if not value >= bound:
                raise ConfigError(f"the store: got {name} = {value!r}, expected at least {bound}")
        for name in ("users", "new_users_per_day", "requests_per_day"):
            value = getattr(self, name)
            if value > MOST_USERS:
                raise ConfigError(
                    f"the store: got {name} = {value!r}, expected at most {MOST_USERS:,}: all are "
                    "kept in memory"
                )
        if self.apps > MOST_APPS:
            raise ConfigError(
                f"the store: got apps = {self.apps!r}, expected at most {MOST_APPS}: the effects "
                "of their pairs are kept in memory"
            )
        if self.drift > 1:
            raise ConfigError(f"the store: got drift = {self.drift!r}, expected 0 <= drift <= 1")
        if self.candidates > self.apps - MOST_INSTALLED:
            raise ConfigError(
                f"the store: got apps = {self.apps}, expected at least "
                f"{self.candidates + MOST_INSTALLED}: {self.candidates} candidates a request, of "
                f"which a user may not have installed any, and up to {MOST_INSTALLED} that are"
            )
        moment_us(self.start, "the store: start")

    @property
    def start_us(self) -> int:
        """The first midnight in microseconds since 1970."""
        return moment_us(self.start, "the store: start")
