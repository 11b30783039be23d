"""Warm start: a new model takes over, value by value, what an older one learned."""

from widedeep.warm_start.carry import Moved, WarmStart, warm_start
from widedeep.warm_start.old_model import OldModel, read_old_model

__all__ = ["Moved", "OldModel", "WarmStart", "read_old_model", "warm_start"]
