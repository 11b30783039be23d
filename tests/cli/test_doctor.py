"""`widedeep doctor`: what works, what is missing, and what it says to do."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from widedeep import kernels
from widedeep.cli import doctor
from widedeep.cli.main import main

DECLARED = [
    "numpy>=1.26",
    'torch>=2.6; extra == "train"',
    'duckdb>=2.0; extra == "join"',
    'sqlglot>=30; extra == "join"',
    'pytest>=8.2; extra == "test"',
]


def findings(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, dict[str, str]]:
    assert main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["good"] == (code == 0)
    return {finding["what"]: finding for finding in told["findings"]}


def test_a_machine_that_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys, 0)
    assert kernels.isa() in found["native core"]["found"]
    assert found["numpy"] == {
        "what": "numpy", "found": np.__version__, "state": "good", "do": ""
    }  # fmt: skip
    assert {"[serve]", "[join]", "memory", "this folder"} <= found.keys()
    assert not {"[test]", "[docs]", "[check]", "[build]"} & found.keys()
    assert main(["doctor"]) == 0
    assert "next: widedeep init" in capsys.readouterr().out


def test_packages_that_are_missing_or_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = {"numpy": "1.25.9", "torch": metadata.version("torch"), "duckdb": "2.0.1"}

    def version(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(metadata, "requires", lambda _: DECLARED)
    monkeypatch.setattr(metadata, "version", version)
    found = findings(capsys, 1)
    assert found["numpy"]["state"] == "wrong"
    assert found["numpy"]["do"] == "pip install 'numpy>=1.26'"
    assert found["[join]"]["state"] == "note"
    assert found["[join]"]["found"] == "without sqlglot"
    assert "pip install 'widedeep[join]'" in found["[join]"]["do"]
    assert found["[train]"]["state"] in ("good", "note")
    installed["numpy"] = "1.26.0rc1"
    assert findings(capsys, 0)["numpy"]["state"] == "good"
    del installed["numpy"]
    assert findings(capsys, 1)["numpy"]["found"] == "not installed"


def test_packages_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError(f"lib{name}.so: cannot open shared object file\nmore of it")

    monkeypatch.setattr(metadata, "requires", lambda _: DECLARED)
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = [doctor._extra("join", {"duckdb": "2.0"}), doctor._extra("publish", {"fsspec": "1"})]
    assert [finding.state for finding in found] == ["wrong", "good"]
    assert "import duckdb fails: libduckdb.so: cannot open shared object file" in found[0].found


def test_a_native_core_that_computes_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(weights: Any, *_: object, lr: float) -> None:
        weights[:] = lr

    monkeypatch.setattr(kernels, "sgd_rows", other)
    found = findings(capsys, 1)
    assert found["native core"]["found"] == "computes [0.5, 0.5], not [1.0, -0.5]"


def test_what_a_container_grants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quota, limit = tmp_path / "cpu.max", tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "_CPU_QUOTA", quota)
    monkeypatch.setattr(doctor, "_MEMORY_LIMIT", limit)
    assert doctor._processors().state == "good"  # there is no such file
    quota.write_text("max 100000\n")
    assert doctor._processors().state == "good"
    quota.write_text("50000 100000\n")
    finding = doctor._processors()
    assert (finding.state, "time of 0.5 granted" in finding.found) == ("note", True)
    assert "threads=1" in finding.do
    limit.write_text("1073741824\n")
    (memory,) = doctor._memory()
    assert memory.found.endswith("a container's limit grants 1.0 GiB")
