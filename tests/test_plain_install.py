"""Where a package of an extra is absent, all names are there; `make test-install` has none."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("absent", ["duckdb", "sqlglot", "sklearn"])
def test_names_are_listed_whichever_package_is_absent(absent: str) -> None:
    code = """
import inspect, pydoc, sys
hidden = sys.argv[1].split(",")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import widedeep
from widedeep import *
assert dict(inspect.getmembers(widedeep))["Trainer"] is Trainer
assert "WideDeepClassifier" in pydoc.render_doc(widedeep)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, absent], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
