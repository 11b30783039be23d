"""Checks that objects compiled for AVX2 / AVX-512 define nothing outside their own namespace.

    python tools/lint_isa_symbols.py build/inplace

An inline or library function that the compiler emits there (a `std::vector` growing, say) is one
that the linker may choose for the whole program, and a processor without those instructions dies
of it far from here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512bf16")


def foreign_symbols(listing: str, isa: str) -> list[str]:
    """Return the global or weak symbols that `nm -C --defined-only` lists outside widedeep::isa.

    Example:
        >>> foreign_symbols("0000 T widedeep::avx2::scale(float*, long, float)", "avx2")
        []
        >>> foreign_symbols("0000 W std::max(int, int)", "avx2")
        ['W std::max(int, int)']
    """
    found = []
    for line in listing.splitlines():
        parts = line.split(maxsplit=2)
        if len(parts) < 3 or (parts[1].islower() and parts[1] not in "uvw"):
            continue  # lower-case letters are local symbols, save these three
        if not parts[2].startswith(f"widedeep::{isa}::"):
            found.append(f"{parts[1]} {parts[2]}")
    return found


def main(build: Path) -> int:
    """Print each foreign symbol of the instruction-set objects under `build`."""
    bad = 0
    for isa in INSTRUCTION_SETS:
        for item in sorted(build.glob(f"CMakeFiles/widedeep_isa_{isa}.dir/**/*.o")):
            listing = subprocess.run(
                ["nm", "-C", "--defined-only", str(item)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for symbol in foreign_symbols(listing, isa):
                print(f"{item.name} ({isa}): defines {symbol}; keep it in an anonymous namespace")
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
