"""Settings for every test: the same examples each run, no deadline on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("widedeep", deadline=None, derandomize=True)
settings.load_profile("widedeep")
