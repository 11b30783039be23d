"""Join logs into examples as a file says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from widedeep.join.config import load_join_config
from widedeep.join.dataset import JoinResult
from widedeep.join.run import run_join


def join_logs(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, resume: bool = False
) -> JoinResult:
    """Make the dataset that a TOML file asks for, with progress on standard error."""
    return run_join(load_join_config(path, overrides), resume=resume, progress=True)
