"""After `pip install 'widedeep[sklearn]' pandas` behind the plain install."""

from __future__ import annotations

import os
import sys

from tests.install.commands import blocks, python, run_lanes

THREE_LINES = """
import pandas as pd
table = pd.read_parquet("train.parquet")[:5000]
X, y = table.drop(columns=["income"]), table["income"]
import widedeep as wd
model = wd.WideDeepClassifier().fit(X, y)
print(model.predict_proba(X[:3]))
"""


def section() -> None:
    """The tutorial's last section."""
    last = blocks("docs/tutorial.md", "python", after="The same through scikit-learn")
    python("import widedeep as wd\n" + "".join(last), says="accuracy")


def frame() -> None:
    """A first model of a frame."""
    python(THREE_LINES, says="[[")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    run_lanes("with scikit-learn", [section, frame])
