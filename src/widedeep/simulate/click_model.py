"""Click model: the true probability that a user installs an app that is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.simulate import config as constants
from widedeep.simulate.world import World


def attention(n_shown: int) -> NDArray[np.float64]:
    """Return the probability that each position of a list is looked at (S,)."""
    return 1 / (1 + constants.POSITION_DECAY * np.arange(n_shown))


def install_probability(
    world: World,
    user_R: NDArray[Any],
    device_R: NDArray[Any],
    hour_R: NDArray[Any],
    app_RC: NDArray[Any],
) -> NDArray[np.float64]:
    """Return the probability of an install, given that the user looks at the app."""
    config = world.config
    logit_RC = _for_everyone(world)[app_RC]
    if config.generalisation:
        logit_RC += config.generalisation * _tastes(world, user_R, device_R, hour_R, app_RC)
    if config.memorisation:
        installed_RL = world.users.installed_UL[user_R]
        # An empty slot is -1 and reads the last row, which is zero.
        pairs_RC = sum(
            world.pairs_AA[installed_RL[:, [slot]], app_RC] for slot in _used(installed_RL)
        )
        limit = constants.PAIR_LIMIT
        logit_RC += config.memorisation * np.clip(pairs_RC, -limit, limit)
    probability_RC: NDArray[np.float64] = 1 / (1 + np.exp(-logit_RC))
    return probability_RC


def _used(installed_RL: NDArray[Any]) -> list[int]:
    """Return the slots that hold an app for any user; at least one, so that there is a sum."""
    return [0, *(np.flatnonzero((installed_RL[:, 1:] >= 0).any(axis=0)) + 1).tolist()]


def _for_everyone(world: World) -> NDArray[np.float64]:
    apps = world.apps
    age_A = world.day - apps.born_A
    return np.asarray(
        constants.BASE_LOGIT
        + constants.QUALITY_EFFECT * apps.quality_A
        + constants.PAID_EFFECT * (apps.price_A > 0)
        + constants.PRICE_EFFECT * np.log1p(apps.price_A)
        + constants.NEW_EFFECT * np.exp(-age_A / constants.NEW_DAYS),
        np.float64,
    )


def _tastes(
    world: World,
    user_R: NDArray[Any],
    device_R: NDArray[Any],
    hour_R: NDArray[Any],
    app_RC: NDArray[Any],
) -> NDArray[Any]:
    taste_RZ, topic_AZ = world.tastes(world.users)[user_R], world.topic_AZ
    affinity_RA = taste_RZ @ topic_AZ.T / np.float32(np.sqrt(constants.TASTES))
    category_RC = world.apps.category_A[app_RC]
    block_R = np.asarray(hour_R) // constants.HOURS_A_BLOCK
    logit_RC: NDArray[np.float64] = (
        constants.AFFINITY * np.take_along_axis(affinity_RA, app_RC, axis=1)
        + constants.HOUR_EFFECT * world.group_tastes.hour_category[block_R[:, None], category_RC]
        + constants.DEVICE_EFFECT
        * world.group_tastes.device_category[np.asarray(device_R)[:, None], category_RC]
    )
    return logit_RC
