"""The lint of words finds the fillers and the stumps that it is there for."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def lint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("lint_words")


def findings(lint, folder: Path, text: str) -> tuple[list[str], list[str], int]:
    (folder / "src" / "widedeep").mkdir(parents=True)
    (folder / "src" / "widedeep" / "a.py").write_text(text, encoding="utf-8")
    return lint.findings(folder)


def test_fillers_as_names(lint, tmp_path: Path) -> None:
    text = "def f(given, rows):\n    _found = rows\n    return [at for at in _found]\n"
    text += "\ndef g(): pass\n"
    fillers, stumps, n_functions = findings(lint, tmp_path, text)
    assert fillers == [
        f"src/widedeep/a.py:1: f names a value {name!r}" for name in ("at", "found", "given")
    ]
    assert (stumps, n_functions) == ([], 2)


def test_a_function_inside_counts_once(lint, tmp_path: Path) -> None:
    text = "def f():\n    def g():\n        told = 1\n    return g\n"
    fillers, _, n_functions = findings(lint, tmp_path, text)
    assert fillers == ["src/widedeep/a.py:2: g names a value 'told'"]
    assert n_functions == 2


def test_stumps_of_sentences(lint, tmp_path: Path) -> None:
    text = 'def f(seed, rows):\n    """Draw.\n\n    Args:\n        seed: Of the draws.\n'
    text += '        rows: Rows to draw.\n    """\n\nclass A:\n    n: int  # That were drawn\n'
    _, stumps, _ = findings(lint, tmp_path, text)
    assert stumps == [
        "src/widedeep/a.py:5: a stump of a sentence: 'Of the draws.'",
        "src/widedeep/a.py:10: a stump of a sentence: 'That were drawn'",
    ]
