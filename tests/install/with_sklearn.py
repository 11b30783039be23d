"""After `pip install 'widedeep[sklearn]' pandas` behind the plain install."""

from __future__ import annotations

import os
import sys

from tests.install.commands import blocks, python, run_lanes


def section() -> None:
    """The tutorial's last section, a first model of a frame."""
    last = blocks("docs/tutorial.md", "python", after="The same through scikit-learn")
    python("import widedeep as wd\n" + "".join(last), says="accuracy")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    run_lanes("with scikit-learn", [section])
