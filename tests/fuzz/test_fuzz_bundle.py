"""Crafted bundles are refused by name, or score."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import fuzz_bundle
from tests.fuzz.fuzz_bundle import SignedByAnyone, read_tensors, sign, use, write_tensors
from widedeep.bundle import Bundle
from widedeep.bundle.layout import CALIBRATION, CONFIG, METRICS, SCHEMA, WARMUP
from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import BundleError, WideDeepError

INT64 = np.iinfo(np.int64)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    fuzz_bundle.write_bases(folder)
    return folder


@pytest.fixture
def crafted(bases: Path, tmp_path: Path) -> Callable[..., Path]:
    """Craft a bundle: one tensor of its schema, or one of its JSON files, is changed and signed."""

    def craft(file: str, change: Callable[[Any], Any], tensor: str = "", base: int = 0) -> Path:
        place = tmp_path / "bundle"
        shutil.copytree(bases / f"{base}", place)
        body = json.loads((place / MANIFEST).read_text())
        header, tensors = read_tensors(place / SCHEMA)
        metadata = header["__metadata__"]
        if tensor:
            array = np.frombuffer(bytes(tensors[tensor]), np.int64).copy()
            changed = change(array)
            tensors[tensor] = bytearray(np.asarray(changed, np.int64).tobytes())
            header[tensor]["shape"] = [len(changed)]
        elif file == SCHEMA:
            metadata["facts"] = json.dumps(change(json.loads(metadata["facts"])))
        else:
            value = change(json.loads((place / file).read_text()))
            (place / file).write_text(json.dumps(value))
        metadata["fingerprint"] = metadata["facts_sha256"] = "0" * 64
        write_tensors(place / SCHEMA, header, tensors)
        sign(place, body)
        return place

    return craft


def put(index: int, value: int) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize("base", range(fuzz_bundle.BASES))
def test_a_sound_bundle_signed_again_scores(bases: Path, tmp_path: Path, base: int) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(bases / f"{base}", place)
    header, tensors = read_tensors(place / SCHEMA)
    header["__metadata__"]["fingerprint"] = header["__metadata__"]["facts_sha256"] = "0" * 64
    write_tensors(place / SCHEMA, header, tensors)
    sign(place, json.loads((place / MANIFEST).read_text()))
    with SignedByAnyone():
        assert use(place, base) == "scored"


@pytest.mark.parametrize(
    "change",
    [
        put(0, 1),
        put(0, -1),
        put(1, INT64.max),
        put(1, INT64.min),
        put(-1, 2**40),
        put(-1, 0),
        put(2, 0),
        lambda array: array[:0],
        lambda array: array[:-1],
        lambda array: np.append(array, array[-1] + 1),
        lambda array: array[::-1],
        lambda array: array + 7,
    ],
)
def test_offsets_of_a_vocabulary_that_leave_its_bytes(
    crafted: Callable[..., Path], change: Callable[[Any], Any]
) -> None:
    place = crafted(SCHEMA, change, tensor="offsets/user")
    with SignedByAnyone(), pytest.raises(BundleError, match=r"offsets/user|counts/user"):
        Bundle.load(place)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        (SCHEMA, lambda facts: facts | {"missing": {"age": "much"}}, "missing"),
        (SCHEMA, lambda facts: facts | {"missing": ["age"]}, "missing"),
        (SCHEMA, lambda facts: facts | {"rows": None}, "rows"),
        (SCHEMA, lambda facts: facts | {"notes": [1]}, "notes"),
        (SCHEMA, lambda facts: facts | {"dropped": {"user": "x"}}, "dropped"),
        (SCHEMA, lambda facts: facts | {"label_means": 7}, "label_means"),
        (METRICS, lambda metrics: [metrics], "metrics"),
        (METRICS, lambda metrics: "good", "metrics"),
        (CONFIG, lambda config: config | {"run": "train"}, "config"),
        (CONFIG, lambda config: config | {"model": []}, "config"),
        (WARMUP, lambda warmup: warmup | {"rows": {}}, "warmup"),
        (WARMUP, lambda warmup: warmup | {"rows": [1, 2]}, "warmup"),
        (WARMUP, lambda warmup: warmup | {"scores": {"no head": [0.5]}}, "warmup"),
        (WARMUP, lambda warmup: warmup | {"scores": 0.5}, "warmup"),
        (CALIBRATION, lambda curves: list(curves), "calibration"),
        (CALIBRATION, lambda curves: {head: "platt" for head in curves}, "calibration"),
        (CALIBRATION, lambda curves: {h: c | {"slope": [1]} for h, c in curves.items()}, "platt"),
    ],
)
def test_values_of_another_kind_are_named(
    crafted: Callable[..., Path], file: str, change: Callable[[Any], Any], named: str
) -> None:
    place = crafted(file, change)
    with SignedByAnyone(), pytest.raises(BundleError, match=named):
        Bundle.load(place)


def with_schema(place: Path, change: Callable[[str], str]) -> Path:
    """Change the text of a bundle's declaration, and sign it again."""
    header, tensors = read_tensors(place / SCHEMA)
    text = json.dumps(json.loads(header["__metadata__"]["schema"]))
    assert change(text) != text
    header["__metadata__"]["schema"] = change(text)
    write_tensors(place / SCHEMA, header, tensors)
    sign(place, json.loads((place / MANIFEST).read_text()))
    return place


@pytest.mark.parametrize("base", fuzz_bundle.PROGRAMS)
def test_a_program_of_other_sides_is_refused(crafted: Callable[..., Path], base: int) -> None:
    place = crafted(SCHEMA, lambda facts: facts, base=base)
    with_schema(place, lambda text: text.replace('"genres", "maker"], "buck', '"genres"], "buck'))
    with SignedByAnyone(), pytest.raises(BundleError, match="inputs of the query"):
        Bundle.load(place)


def test_a_size_that_no_file_has_is_refused_at_once(crafted: Callable[..., Path]) -> None:
    place = crafted(SCHEMA, lambda facts: facts)
    with_schema(place, lambda text: text.replace('"size": 2', f'"size": {2**20}'))
    with SignedByAnyone(), pytest.raises(WideDeepError, match="shape"):
        Bundle.load(place)


def test_some_crafted_bundles() -> None:
    findings: list[str] = []
    results = fuzz_bundle.run(150, report=findings.append)
    assert findings == []
    assert len(results["scored"]) > 15 and len(results["refused"]) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_crafted_bundles() -> None:
    findings: list[str] = []
    fuzz_bundle.run(10_000, first=random.randrange(10**6), report=findings.append)
    assert findings == []
