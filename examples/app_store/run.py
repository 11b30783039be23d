"""Wide, deep, and Wide & Deep on a simulated app store, offline and live: the paper's table 1.

    python examples/app_store/run.py [--seeds 5] [--without] [--out FOLDER]

Writes the outcome into the README beside it. `--without` adds the two stores in which one of the
two regularities is switched off, and tries a model without its cross in each.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from widedeep.simulate.table1 import Table1Config, table1_in, table1_text

README = Path(__file__).with_name("README.md")


def write_section(name: str, text: str) -> None:
    """Replace the part of the README between the marks of a name."""
    before = README.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    after, replacements = marked.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before)
    if not replacements:
        raise SystemExit(f"{README}: the marks <!-- {name} --> and <!-- end of {name} --> are gone")
    README.write_text(after, encoding="utf-8")


def measure(name: str, folder: Path | None, config: Table1Config) -> None:
    """Do the experiment in one kind of store, and write down what came of it."""
    started = time.perf_counter()
    result = table1_in(
        folder and folder / name.replace(" ", "_"),
        config,
        on_progress=lambda message: print(message, file=sys.stderr, flush=True),
    )
    text = table1_text(result)
    print(f"{text}\n\n{time.perf_counter() - started:.0f} s", flush=True)
    write_section(name, text)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="stores (default: 5)")
    parser.add_argument(
        "--without", action="store_true", help="also without either regularity, three stores each"
    )
    parser.add_argument("--out", type=Path, help="keep logs, examples and bundles there")
    arguments = parser.parse_args()
    measure("table1", arguments.out, Table1Config(seeds=arguments.seeds))
    if arguments.without:
        few = Table1Config(seeds=3, live_requests=12_000, without_cross=True)
        for strength in ("none", "memorisation", "generalisation"):
            store = few.store if strength == "none" else replace(few.store, **{strength: 0.0})
            measure(f"without {strength}", arguments.out, replace(few, store=store))


if __name__ == "__main__":
    main()
