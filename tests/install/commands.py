"""How the parts of `make test-install` run commands and documents: by Python's own library."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIDEDEEP = str(Path(sys.prefix) / "bin" / "widedeep")


def widedeep(line: str, *, code: int = 0, says: str = "") -> str:
    """Run one command line, and hold it to its exit code and to what it must say."""
    return process([WIDEDEEP, *line.split()], code=code, says=says)


def python(source: str, *, code: int = 0, says: str = "") -> str:
    """Run a program in a process of its own."""
    return process([sys.executable, "-c", source], code=code, says=says)


def process(command: list[str], *, code: int, says: str) -> str:
    """Run a command in the current folder."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    shown = " ".join(command)[:200]
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == code, f"{shown}: exit code {done.returncode}, not {code}:\n{output}"
    assert says in output, f"{shown}: says nothing of {says!r}:\n{output}"
    assert code != 2 or "Traceback" not in output, f"{shown}:\n{output}"
    return done.stdout


def blocks(document: str, language: str, *, after: str = "", before: str = "") -> list[str]:
    """Return the code blocks of a document, those between two headings if named."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for heading in filter(None, (after, before)):
        assert f"\n## {heading}\n" in text, f"{document} has no heading {heading!r}"
    text = text.partition(f"\n## {after}\n")[2] if after else text
    text = text.partition(f"\n## {before}\n")[0] if before else text
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"{document} has no block of {language} there"
    return found


def run_lanes(title: str, *lanes: Sequence[Callable[[], None]]) -> None:
    """Run lanes of steps side by side, each lane in order, and tell each step that passed."""

    def run(lane: Sequence[Callable[[], None]]) -> None:
        for step in lane:
            start = time.monotonic()
            step()
            what = (step.__doc__ or step.__name__).splitlines()[0].rstrip(".")
            print(f"{title}: {what} ({time.monotonic() - start:.1f} s)", flush=True)

    with ThreadPoolExecutor(len(lanes)) as pool:
        for done in as_completed([pool.submit(run, lane) for lane in lanes]):
            done.result()
