"""Runs the supervisor as a program of its own: `run_counting.py TARGET COUNT [HOST PORT ...]`."""

from __future__ import annotations

import sys

from tests.serving import counting_worker
from widedeep.serving.supervisor import run_workers

if __name__ == "__main__":
    name, count, *rest = sys.argv[1:]
    place = (rest[0], int(rest[1]), *rest[2:]) if rest else ()
    sys.exit(
        run_workers(
            int(count),
            getattr(counting_worker, name),
            place,
            drain_s=3,
            restart_s=(0.1, 0.4),
        )
    )
