"""The verb `doctor`: what of widedeep works on this machine, and what is missing."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from widedeep._version import __version__
from widedeep.cli.output import print_json, print_next, print_table, print_text
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK

EXAMPLE = (
    "  widedeep doctor\n"
    "  widedeep doctor --json    # for a report of a bug\n\n"
    "Exit code 1: something that is installed does not work, or is older than it must be."
)
NEXT = "widedeep init train.parquet --label click"

State = Literal["good", "note", "wrong"]
_LEAST_FREE = 2 << 30  # bytes of a disk under which a run soon stops
_WORK_ON_WIDEDEEP = ("build", "test", "check", "docs")
_EXTRAS = {
    "train": "train, tune, export",
    "sklearn": "estimators for scikit-learn",
    "join": "join logs (DuckDB)",
    "spark": "join logs on Spark",
    "serve": "serve over HTTP",
    "grpc": "serve over gRPC",
    "retrieval": "retrieval by faiss",
    "publish": "folders of versions at URLs",
    "onnx": "towers without a native form",
    "tune": "search for settings",
}
"""What the commonest extras are for, in the order of the table; others follow by name."""
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:; extra == \"(\w+)\")?")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    found: str
    state: State = "good"
    do: str = ""  # what puts it right, or what it means


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options: there are none but --json."""


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    findings = [finding for look in (_machine, _packages, _disks) for finding in look()]
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if arguments.json:
        print_json({"good": not wrong, "findings": [asdict(finding) for finding in findings]})
        return EXIT_FAILED if wrong else EXIT_OK
    marks = {"good": "", "note": "note", "wrong": "WRONG"}
    rows = [[f.what, f.found, marks[f.state], f.do] for f in findings]
    print_table(["", "found", "state", "what to do"], rows)
    if wrong:
        print_text(f"{len(wrong)} of these must be put right: {', '.join(f.what for f in wrong)}")
        return EXIT_FAILED
    print_next("init", "train.parquet", "--label", "click")
    return EXIT_OK


# ---- the machine --------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    yield Finding("widedeep", f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield _native_core()
    yield _processors()
    yield from _memory()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding != "utf8":
        yield Finding(
            "terminal", encoding or "of no encoding", "note",
            "values outside it are printed as \\u escapes; set PYTHONUTF8=1",
        )  # fmt: skip


def _native_core() -> Finding:
    """Load the native module, and let it compute something that is known."""
    try:
        import numpy as np

        from widedeep import kernels

        weight_RD = np.ones((2, 1), np.float32)
        grads_UD = np.full((1, 1), 3.0, np.float32)
        kernels.sgd_rows(weight_RD, np.array([1]), grads_UD, lr=0.5)
        computed = weight_RD.ravel().tolist()
    except (ImportError, OSError) as error:
        do = "install a wheel for this Python and processor, or in a clone: pip install ."
        return Finding("native core", f"does not load: {error}", "wrong", do)
    if computed != [1.0, -0.5]:
        return Finding("native core", f"computes {computed}, not [1.0, -0.5]", "wrong", "reinstall")
    return Finding("native core", f"for {kernels.isa()} instructions; computes as it must")


def _processors() -> Finding:
    from widedeep.kernels.threads import usable_cores

    cores = usable_cores()
    usable = f"{cores} of {os.cpu_count()} usable by this process"
    quota = _first_word(_CPU_QUOTA).split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[0]) < cores * int(quota[1]):
        granted = int(quota[0]) / int(quota[1])
        do = f"give threads={max(1, int(granted))} (train) and --workers (serve): more only wait"
        return Finding("processors", f"{usable}, time of {granted:.1f} granted", "note", do)
    return Finding("processors", usable)


def _memory() -> Iterator[Finding]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    limit = _first_word(_MEMORY_LIMIT)
    size = _gib(total)
    if limit.isdigit() and int(limit) < total:
        size += f", of which a container's limit grants {_gib(int(limit))}"
    yield Finding("memory", size)


def _first_word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


# ---- packages -----------------------------------------------------------------------------------


def _packages() -> Iterator[Finding]:
    """Yield the packages that widedeep needs, then its extras."""
    try:
        declared = metadata.requires("widedeep") or []
    except metadata.PackageNotFoundError:
        do = "pip install . in the clone, so that versions can be compared"
        yield Finding("packages", "widedeep runs from its sources", "note", do)
        return
    declared_by_extra: dict[str, dict[str, str]] = {}
    for line in declared:
        match = _REQUIREMENT.fullmatch(line)
        if match:
            package, least, extra = match.groups()
            declared_by_extra.setdefault(extra or "", {})[package] = least
    for package, least in declared_by_extra.pop("", {}).items():
        yield _package(package, least)
    extras = [*_EXTRAS, *sorted(declared_by_extra.keys() - _EXTRAS.keys() - {*_WORK_ON_WIDEDEEP})]
    for extra in extras:
        if extra in declared_by_extra:
            yield _extra(extra, declared_by_extra[extra])


def _package(package: str, least: str) -> Finding:
    version = _version_of(package)
    do = f"pip install '{package}>={least}'"
    if version is None:
        return Finding(package, "not installed", "wrong", do)
    if _numbers(version) < _numbers(least):
        return Finding(package, f"{version}, expected {least} or later", "wrong", do)
    return Finding(package, version)


def _extra(extra: str, packages: dict[str, str]) -> Finding:
    """Tell whether an extra's packages are there, new enough, and can be imported."""
    what = f"[{extra}]"
    versions = {package: _version_of(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    use = _EXTRAS.get(extra, "")
    install = f"pip install 'widedeep[{extra}]'"
    if missing:
        lacking = f"without {', '.join(missing)}"
        return Finding(what, lacking, "note", f"{use}: {install}" if use else install)
    installed = ", ".join(f"{package} {version}" for package, version in versions.items())
    for package, version in versions.items():
        if _numbers(version or "") < _numbers(packages[package]):
            do = f"pip install -U 'widedeep[{extra}]' ({package} >= {packages[package]})"
            return Finding(what, installed, "wrong", do)
    broken = _broken_import(extra)
    if broken is not None:
        return Finding(what, f"{installed}; {broken}", "wrong", f"reinstall: {install}")
    note = _NOTES.get(extra, lambda: "")()
    return Finding(what, installed, "note" if note else "good", note)


def _broken_import(extra: str) -> str | None:
    """Return why an installed package that is more than Python files cannot be imported."""
    modules = {
        "train": "torch", "join": "duckdb", "grpc": "grpc", "retrieval": "faiss",
        "onnx": "onnxruntime", "sklearn": "sklearn",
    }  # fmt: skip
    if extra not in modules:
        return None
    try:
        importlib.import_module(modules[extra])
    except (ImportError, OSError, RuntimeError) as error:
        return f"import {modules[extra]} fails: {str(error).splitlines()[0][:120]}"
    return None


def _torch_note() -> str:
    import torch

    if torch.version.cuda and not torch.cuda.is_available():
        return "the CUDA build, without a GPU here: it works; the CPU build is gigabytes smaller"
    return ""


def _java_note() -> str:
    return "" if shutil.which("java") else "Spark needs Java 17 or later; there is no java on PATH"


_NOTES: dict[str, Callable[[], str]] = {"train": _torch_note, "spark": _java_note}


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what follows them (``+cpu``, ``rc1``)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


# ---- disks --------------------------------------------------------------------------------------


def _disks() -> Iterator[Finding]:
    """Yield the disks that a run writes to: this folder, and that of temporary files."""
    folders = {"this folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for what, folder in folders.items():
        free = shutil.disk_usage(folder).free
        room = f"{_gib(free)} free in {folder}"
        if not os.access(folder, os.W_OK):
            do = "give -o/--out a folder that may be written to" if what == "this folder" else (
                "set TMPDIR to a folder that may be written to"
            )  # fmt: skip
            yield Finding(what, f"{folder} may not be written to", "note", do)
        elif free < _LEAST_FREE:
            yield Finding(what, room, "note", "free some: checkpoints and sorting need room")
        else:
            yield Finding(what, room)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):,.1f} GiB"
