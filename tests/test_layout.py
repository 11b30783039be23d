"""The public face of the package, and the lint that holds the rooms apart."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import widedeep

ROOT = Path(__file__).resolve().parent.parent

# Frozen: a name added here is a promise, a name removed breaks somebody.
PUBLIC_NAMES = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Bundle",
    "Catalogue",
    "EarlyStopping",
    "FeatureSpec",
    "RMSProp",
    "Ranker",
    "Schema",
    "Trainer",
    "WideDeep",
    "WideDeepClassifier",
    "WideDeepError",
    "WideDeepRegressor",
    "bucketized",
    "categorical",
    "crossed",
    "fit_schema",
    "indicator",
    "infer_spec",
    "join_actions",
    "load_config",
    "make_report",
    "numeric",
    "reuse_inputs",
    "tune",
]

OBSERVE_IMPORT = """
import json, socket, sys, threading
opened = []
real = socket.socket.__init__
socket.socket.__init__ = lambda self, *a, **k: (opened.append(1), real(self, *a, **k))[1]
before = set(sys.modules)
import widedeep
added = set(sys.modules) - before
print(json.dumps({
    "torch": "torch" in sys.modules,
    "widedeep": sorted(name for name in added if name.startswith("widedeep")),
    "third_party": sorted(added & {"torch", "numpy", "pyarrow", "pandas", "safetensors", "rich"}),
    "sockets": len(opened),
    "threads": threading.active_count(),
}))
"""


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def test_public_names_are_frozen() -> None:
    assert widedeep.__all__ == PUBLIC_NAMES
    assert len(PUBLIC_NAMES) <= 40


def test_every_public_name_is_told_to_type_checkers() -> None:
    tree = ast.parse(Path(widedeep.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("widedeep.")
        for alias in node.names
    }
    assert typed - {"__version__"} == set(PUBLIC_NAMES)
    assert set(widedeep._MODULE_OF) == set(PUBLIC_NAMES)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(widedeep, name).__name__ == name


def test_dir_shows_the_names_before_they_are_loaded() -> None:
    assert set(PUBLIC_NAMES) <= set(dir(widedeep))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'WideDeeper'"):
        widedeep.WideDeeper  # noqa: B018


def test_import_is_light_and_silent() -> None:
    done = run_python(OBSERVE_IMPORT)
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen == {
        "torch": False,
        "widedeep": ["widedeep", "widedeep._version"],
        "third_party": [],
        "sockets": 0,
        "threads": 1,
    }


def test_import_adds_little_to_the_import_of_torch() -> None:
    source = "import time, torch; start = time.process_time(); import widedeep; "
    source += "print(time.process_time() - start)"
    # The best of three: other work on the machine only ever adds.
    assert min(float(run_python(source).stdout) for _ in range(3)) < 0.2


def test_loading_every_name_starts_no_thread_and_opens_no_socket() -> None:
    source = OBSERVE_IMPORT.replace(
        "import widedeep\n", f"import widedeep\nfor n in {PUBLIC_NAMES}: getattr(widedeep, n)\n"
    )
    seen = json.loads(run_python(source).stdout)
    assert (seen["sockets"], seen["threads"]) == (0, 1)


def test_every_module_below_the_model_imports_where_torch_does_not_exist() -> None:
    package = ROOT / "src" / "widedeep"
    rooms = ("errors", "features", "kernels", "schema", "data", "bundle", "metrics", "serving")
    names = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0].removesuffix(".py") in rooms
        and not path.name.startswith("torch_")
    ]
    assert len(names) > 20
    source = "import importlib, sys\nsys.modules['torch'] = None\n"
    run_python(source + f"for name in {names}: importlib.import_module(name)")


def test_the_native_module_says_its_instruction_set() -> None:
    from widedeep import _native

    assert _native.isa() in {"baseline", "avx2", "avx512"}


def test_the_stub_lists_exactly_what_the_native_module_offers() -> None:
    from widedeep import _native

    stub = Path(widedeep.__file__).with_name("_native.pyi").read_text(encoding="utf-8")
    kinds = ast.FunctionDef | ast.ClassDef
    declared = {node.name for node in ast.parse(stub).body if isinstance(node, kinds)}
    assert declared == {name for name in dir(_native) if not name.startswith("_")}


def test_a_wrong_instruction_set_is_told_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEDEEP_ISA", "sse9")
    with pytest.raises(AssertionError, match="got 'sse9', expected 'baseline', 'avx2' or 'avx512'"):
        run_python("from widedeep import _native")


def test_baseline_can_be_forced_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEDEEP_ISA", "baseline")
    assert run_python("from widedeep import _native; print(_native.isa())").stdout == "baseline\n"


class TestLint:
    """The layout lint finds what it is there for."""

    @pytest.fixture
    def lint(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("lint_layout")

    def findings(self, lint, folder: Path, files: dict[str, str]) -> list[str]:
        files = {"src/widedeep/__init__.py": "__all__ = []\n"} | files
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return lint.findings(folder)

    def test_a_good_tree_has_none(self, lint, tmp_path: Path) -> None:
        files = {
            "src/widedeep/schema.py": "from widedeep.features import FeatureSpec\n",
            "src/widedeep/data/fit.py": "from widedeep import errors\n",
            "src/widedeep/training/run.py": "import torch\nfrom ..models import WideDeep\n",
        }
        assert self.findings(lint, tmp_path, files) == []

    @pytest.mark.parametrize(
        "statement",
        [
            "from widedeep.training.trainer import Trainer",
            "from widedeep import training",
            "import widedeep.training.trainer",
            "from ..training.trainer import Trainer",
            "def late():\n    from widedeep.training.trainer import Trainer",
        ],
    )
    def test_an_import_against_the_order(self, lint, tmp_path: Path, statement: str) -> None:
        found = self.findings(lint, tmp_path, {"src/widedeep/serving/ranker.py": statement + "\n"})
        assert len(found) == 1
        assert "'serving' imports 'training', which does not stand before it" in found[0]

    def test_an_import_for_type_checkers_counts(self, lint, tmp_path: Path) -> None:
        text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import widedeep.data.fit\n"
        found = self.findings(lint, tmp_path, {"src/widedeep/schema.py": text})
        assert found == [
            "src/widedeep/schema.py:3: 'schema' imports 'data', which does not stand before it"
        ]

    @pytest.mark.parametrize(
        "back",
        ["from widedeep.data.a import A", "from .a import A", "from widedeep.data import a"],
    )
    def test_a_circle_within_a_room(self, lint, tmp_path: Path, back: str) -> None:
        files = {
            "src/widedeep/data/__init__.py": "",
            "src/widedeep/data/a.py": "from widedeep.data import b\n",
            "src/widedeep/data/b.py": "from widedeep.data import c\n",
            "src/widedeep/data/c.py": f"def late():\n    {back}\n",
        }
        found = self.findings(lint, tmp_path, files)
        assert found == [
            "src/widedeep: modules import each other in a circle: data.a, data.b, data.c"
        ]

    def test_too_many_floors(self, lint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tower = {"errors": ()} | {f"r{n}": (f"r{n - 1}" if n else "errors",) for n in range(12)}
        monkeypatch.setattr(lint, "BEFORE", tower)
        assert self.findings(lint, tmp_path, {}) == ["src/widedeep: 13 floors of rooms, at most 12"]

    @pytest.mark.parametrize(
        ("text", "bad"),
        [
            ("import torch\n", True),
            ("from torch import nn\n", True),
            ("try:\n    import torch.nn\nexcept ImportError:\n    pass\n", True),
            ("def late() -> None:\n    import torch\n", False),
        ],
    )
    def test_torch_at_import_time(self, lint, tmp_path: Path, text: str, bad: bool) -> None:
        found = self.findings(lint, tmp_path, {"src/widedeep/bundle.py": text})
        assert [line for line in found if "imports torch" in line] == (found if bad else [])
        assert bool(found) is bad

    def test_the_native_module_is_for_kernels(self, lint, tmp_path: Path) -> None:
        text = "from widedeep import _native\n"
        assert self.findings(lint, tmp_path, {"src/widedeep/kernels/gather.py": text}) == []
        found = self.findings(lint, tmp_path, {"src/widedeep/models/mlp.py": text})
        assert found == [
            "src/widedeep/models/mlp.py:1: 'models' imports '_native'; go through 'kernels'"
        ]

    def test_a_new_module_needs_a_place(self, lint, tmp_path: Path) -> None:
        found = self.findings(lint, tmp_path, {"src/widedeep/extras.py": "\n"})
        assert found == [
            "src/widedeep/extras.py:1: no place in the import order; add 'extras' to BEFORE"
        ]

    def test_sizes_of_python(self, lint, tmp_path: Path) -> None:
        long_function = "def f() -> None:\n" + "    pass\n" * 80
        found = self.findings(lint, tmp_path, {"tests/test_a.py": long_function})
        assert found == ["tests/test_a.py:1: f has 81 lines, at most 80"]
        found = self.findings(lint, tmp_path, {"tests/test_a.py": "\n" * 801})
        assert found == ["tests/test_a.py:1: 801 lines, at most 800; split it along the data path"]

    def test_sizes_of_cpp(self, lint, tmp_path: Path) -> None:
        body = '  puts("} // {");\n' * 79
        text = "namespace a {\n\nclass B {\n  int f() { return 1; }\n};\n\n"
        text += "template <class T>\nvoid g(T x) {\n" + body + "}\n\n}  // namespace a\n"
        found = self.findings(lint, tmp_path, {"native/g.cpp": text})
        assert found == ["native/g.cpp:7: g has 82 lines, at most 80"]

    def test_vague_names_and_too_many_public_names(self, lint, tmp_path: Path) -> None:
        names = [f"name{i}" for i in range(41)]
        files = {
            "src/widedeep/__init__.py": f"__all__ = {names}\n",
            "src/widedeep/data/utils.py": "\n",
        }
        assert self.findings(lint, tmp_path, files) == [
            "src/widedeep/data/utils.py:1: the name 'utils' does not say what is inside",
            "src/widedeep/__init__.py:1: 41 public names, at most 40",
        ]


def test_every_list_of_public_names_can_be_read_without_running_it() -> None:
    """The reference's pages are made from these lists by reading the sources."""
    for path in sorted((ROOT / "src" / "widedeep").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                assert len(names) == len(set(names)), path


SPIN = """
{imports}
import threading
from widedeep.kernels.threads import limit_spinning
torch.rand(300, 300) @ torch.rand(300, 300)
done = [limit_spinning(2, 2), limit_spinning(2, 2), limit_spinning(2, 3)]
print(*done, sum(thread.name == "widedeep-openmp" for thread in threading.enumerate()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is torch's on Linux")
@pytest.mark.parametrize("imports", ["import torch, widedeep", "import widedeep, torch"])
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "True True True 2"),
        ({"GOMP_SPINCOUNT": "7"}, "False False False 0"),
        ({"OMP_WAIT_POLICY": "active"}, "False False False 0"),
    ],
)
def test_torchs_threads_spin_shortly_whoever_is_imported_first(
    imports: str, given: dict[str, str], found: str
) -> None:
    unset = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", SPIN.format(imports=imports)]
    told = subprocess.run(command, env={**unset, **given}, capture_output=True, text=True)
    assert (told.stdout.strip(), told.stderr) == (found, "")


def test_importing_sets_nothing_for_other_libraries() -> None:
    program = (
        "import os; old = dict(os.environ); import widedeep.models.wide_deep; "
        "print(old == os.environ)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout.strip() == "True"
