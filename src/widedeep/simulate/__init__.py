"""A simulated app store: logs with known probabilities, and live tests of ranking policies."""

from __future__ import annotations

from widedeep.simulate.config import StoreConfig
from widedeep.simulate.policies import (
    Explore,
    Model,
    Oracle,
    Policy,
    Popularity,
    Random,
    Ranked,
    Server,
    Split,
)
from widedeep.simulate.requests import Requests
from widedeep.simulate.store import AppStore
from widedeep.simulate.traffic import Traffic

__all__ = [
    "AppStore",
    "Explore",
    "Model",
    "Oracle",
    "Policy",
    "Popularity",
    "Random",
    "Ranked",
    "Requests",
    "Server",
    "Split",
    "StoreConfig",
    "Traffic",
]
