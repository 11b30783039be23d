"""RESULTS.md: each benchmark owns a section between two markers and replaces that alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Replace a section, or add it at the end.

    Args:
        name: Of the section; it stands in its markers, ``<!-- name -->`` and ``<!-- /name -->``.
        text: Markdown with its heading.
        path: The file; made if there is none.
    """
    held = path.read_text(encoding="utf-8") if path.exists() else "# Results of the benchmarks\n"
    block = f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->\n"
    pattern = re.compile(
        rf"^<!-- {re.escape(name)} -->\n.*?^<!-- /{re.escape(name)} -->\n", re.S | re.M
    )
    if pattern.search(held):
        held = pattern.sub(lambda _: block, held)
    else:
        held = f"{held.rstrip()}\n\n{block}"
    path.write_text(held, encoding="utf-8")


def machine() -> str:
    """The processor's name and how many of them, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} processors of {name}"
