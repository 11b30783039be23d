"""Crafted bundles: whatever the files hold, loading refuses it by name or the bundle scores.

    python -m tests.fuzz.fuzz_bundle --cases 10000          # from the repository's root
    python -m tests.fuzz.fuzz_bundle --case 4711            # one case, with its traceback

A case takes a small sound bundle, changes tensors, JSON values or bytes of its files, and signs it
again: checksums, fingerprint and manifest are those of the changed files, as an attacker or a
program that writes bundles would leave them. It then loads the bundle, scores rows and ranks
candidates. Right are a WideDeepError and answers; any other exception, a crash of the process, a
case of more than a minute and one that needs more than four gigabytes are findings. Cases run in
child processes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import widedeep.schema
from tests.serving.random_models import random_bundle, random_items, random_query
from widedeep.bundle import Bundle, write_bundle
from widedeep.bundle.calibration import Isotonic, Platt
from widedeep.bundle.layout import (
    CALIBRATION,
    CONFIG,
    METRICS,
    SCHEMA,
    WARMUP,
    BundleModel,
)
from widedeep.bundle.manifest import MANIFEST, Manifest, file_entries
from widedeep.bundle.program import Program
from widedeep.bundle.weights import WEIGHTS
from widedeep.bundle.write import round_bundle
from widedeep.errors import WideDeepError
from widedeep.kernels.packed_rows import PackedKind
from widedeep.schema import Schema
from widedeep.serving.ranker import Ranker

BASES = 12
POSTERIOR = 3  # A base with the posterior of its last layer
# Bases whose towers are described as native operations
PROGRAMS: dict[int, list[Any]] = {
    8: [{"name": "dcn", "hidden_units": [5]}, {"name": "mlp", "hidden_units": [6, 4]}],
    9: [{"name": "finalmlp", "hidden_units": [6]}, {"name": "gdcn", "hidden_units": []}],
    11: [{"name": "deep_fm", "hidden_units": [4]}],
}
# Bases whose tables are packed
PACKED: dict[int, PackedKind] = {10: "int8", 11: "int4"}
CASES_PER_CHILD = 500
SECONDS_PER_CASE = 60
MEMORY = 4 << 30
N_CANDIDATES = 5
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    -(2**63),
)
REALS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-40,
    1e30,
    3.5e38,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 1000, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, -1e308),
    *(
        "",
        "a",
        "age",
        "app",
        "\x00",
        "x" * 1000,
        [],
        [0],
        [[]],
        [None],
        {},
        {"a": 1},
        [1, "a", None],
    ),
)


class SignedByAnyone:
    """Lets every schema pass its own fingerprint, as if its writer had computed it anew."""

    def __enter__(self) -> None:
        self._fingerprint = Schema.__dict__["fingerprint"]
        self._facts = widedeep.schema._facts_digest
        Schema.fingerprint = property(lambda self: "0" * 64)  # type: ignore[assignment]
        widedeep.schema._facts_digest = lambda *_: "0" * 64

    def __exit__(self, *_: object) -> None:
        Schema.fingerprint = self._fingerprint  # type: ignore[method-assign]
        widedeep.schema._facts_digest = self._facts


def write_bases(folder: Path) -> None:
    """Write the sound bundles that cases start from, with a catalogue and a query for each."""
    for number in range(BASES):
        rng = np.random.default_rng(number)
        label = "click" if number == POSTERIOR else None
        bundle = random_bundle(rng, folder / f"{number}", label)
        rows = [random_query(rng) | row for row in random_items(rng, 3).to_pylist()]
        for row in rows:
            row.pop("item")
        labelled = [row | {"click": place % 2} for place, row in enumerate(rows)]
        curve: Any = Platt(slope=1.5, intercept=0.1)
        if number % 2:
            curve = Isotonic(logits=(-1.0, 0.0, 2.0), values=(0.1, 0.4, 0.9))
        weights, model, program = dict(bundle.weights), bundle.model, None
        if number in PROGRAMS:
            weights, model, program = _with_program(bundle.schema, PROGRAMS[number])
        write_bundle(
            folder / f"{number}",
            schema=bundle.schema,
            weights=weights,
            model=model,
            engine="native" if program is None else "graph",
            program=program,
            metrics={"auc": 0.5},
            warmup_rows=rows,
            config={"train": {"epochs": 1}},
            calibration={head.name: curve for head in model.heads if head.kind == "binary"},
            posterior_rows=labelled if number == POSTERIOR else None,
            overwrite=True,
        )
        if number in PACKED:
            place = folder / f"{number}"
            round_bundle(Bundle.load(place), place, PACKED[number], overwrite=True)


def _with_program(
    schema: Schema, deep: list[Any]
) -> tuple[dict[str, NDArray[Any]], BundleModel, Program | None]:
    """Return the weights of towers that a bundle describes as native operations."""
    from widedeep.models.wide_deep import WideDeep
    from widedeep.training.evaluation import bundle_model, bundle_weights
    from widedeep.training.export import describe_towers

    towers = WideDeep(schema, deep=deep, embedding_dim=3, seed=1).eval()
    described = describe_towers(towers)
    weights = {**bundle_weights(towers, described.sequences), **described.tensors}
    return weights, bundle_model(towers, described.sequences), described.program


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, bytearray]]:
    """Return a safetensors file's header and each tensor's bytes."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    body = raw[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    return header, {name: bytearray(body[slice(*header[name]["data_offsets"])]) for name in names}


def write_tensors(path: Path, header: dict[str, Any], tensors: dict[str, bytearray]) -> None:
    """Write them back, one after the other; places that a case made up stay as they are."""
    at = 0
    for name, data in tensors.items():
        entry = header[name]
        if not entry.pop("crafted", False):
            entry["data_offsets"] = [at, at + len(data)]
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(map(bytes, tensors.values())))


def changed_values(rng: random.Random, dtype: str, data: bytearray) -> bytearray:
    """Return a tensor's bytes with some values replaced by odd ones, or moved."""
    kinds: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U64": "<u8"}
    kind = np.dtype(kinds.get(dtype, "u1"))
    if not data or len(data) % kind.itemsize:  # another change gave it another type
        return data
    array: NDArray[Any] = np.frombuffer(bytes(data), kind).copy()
    way = rng.randrange(5)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(array))
            if way == 0:
                array[at] = array[rng.randrange(len(array))]
            elif way == 1:
                array[at : at + 1] += array.dtype.type(1)
            elif way == 2:
                array = np.roll(array, rng.randrange(len(array)))
            elif array.dtype.kind == "f":
                array[at] = rng.choice(REALS)
            else:
                array[at] = np.array(rng.choice(NUMBERS) & 0xFFFFFFFFFFFFFFFF, "<u8").astype(
                    array.dtype
                )
    return bytearray(array.tobytes())


def change_tensor(
    rng: random.Random, header: dict[str, Any], tensors: dict[str, bytearray]
) -> None:
    """Change one tensor: its values, type, shape, length, place or name."""
    name = rng.choice([key for key in tensors if not key.startswith("__pad")])
    entry, data = header[name], tensors[name]
    way = rng.randrange(10)
    if way < 5:
        tensors[name] = changed_values(rng, entry["dtype"], data)
    elif way == 5:
        entry["dtype"] = rng.choice(
            ("F64", "F32", "I64", "I32", "U8", "BOOL", "F16", "nonsense", 3)
        )
    elif way == 6:
        entry["shape"] = rng.choice(
            (
                [],
                [0],
                [len(data)],
                [1, *entry["shape"]],
                entry["shape"][::-1],
                [2**32, 2**32],
                [-1],
                "x",
            )
        )
    elif way == 7:
        rows = rng.choice((0, 1, 3, 100))
        length = entry["shape"][0] if isinstance(entry["shape"], list) and entry["shape"] else 1
        width = max(1, len(data) // max(1, length))
        tensors[name] = bytearray((bytes(data) * (rows + 1))[: rows * width])
        entry["shape"] = [rows, *list(entry["shape"])[1:]]
    elif way == 8:
        entry["data_offsets"] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
        entry["crafted"] = True
    else:
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
        header[name], header[other] = header[other], header[name]


def change_json(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one place of it replaced, removed or doubled."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    if not places:
        return copy.deepcopy(rng.choice(VALUES))
    node, key = rng.choice(places)
    way = rng.randrange(6)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif way == 2 and isinstance(node, dict):
        node[rng.choice(("", "x", "kind", "size", "name"))] = copy.deepcopy(node[key])
    elif way == 3:
        other, at = rng.choice(places)
        with contextlib.suppress(IndexError, KeyError):  # removed in the meantime
            node[key] = copy.deepcopy(other[at])
    elif way == 4 and isinstance(node[key], int) and not isinstance(node[key], bool):
        node[key] += rng.choice((1, -1, 1000, 2**40))
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def change_schema(rng: random.Random, path: Path) -> None:
    """Change a schema file: a tensor, the declaration, or the facts beside it."""
    header, tensors = read_tensors(path)
    metadata = header["__metadata__"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            change_tensor(rng, header, tensors)
        else:
            part = rng.choice(("schema", "schema", "facts"))
            metadata[part] = json.dumps(change_json(rng, json.loads(metadata[part])))
    metadata["fingerprint"] = metadata["facts_sha256"] = "0" * 64
    write_tensors(path, header, tensors)


def change_weights(rng: random.Random, path: Path) -> None:
    """Change the weights file."""
    header, tensors = read_tensors(path)
    for _ in range(rng.choice((1, 1, 2, 3))):
        change_tensor(rng, header, tensors)
    write_tensors(path, header, tensors)


def change_bytes(rng: random.Random, path: Path) -> None:
    """Flip, cut or repeat bytes of any file."""
    raw = bytearray(path.read_bytes())
    start = rng.randrange(len(raw) + 1)
    way = rng.randrange(4)
    if way == 0:
        del raw[start:]
    elif way == 1:
        raw[start:start] = rng.randbytes(rng.choice((1, 8, 64)))
    elif way == 2:
        raw[:8] = struct.pack("<Q", rng.choice(NUMBERS) & 0xFFFFFFFFFFFFFFFF)
    else:
        for _ in range(rng.choice((1, 4, 32))):
            if raw:
                raw[rng.randrange(min(len(raw), rng.choice((64, 4096, len(raw)))))] = rng.randrange(
                    256
                )
    path.write_bytes(raw)


def change(rng: random.Random, bundle: Path) -> None:
    """Change a bundle's files and sign it again."""
    body = json.loads((bundle / MANIFEST).read_text())
    header, tensors = read_tensors(bundle / SCHEMA)
    header["__metadata__"]["fingerprint"] = header["__metadata__"]["facts_sha256"] = "0" * 64
    write_tensors(bundle / SCHEMA, header, tensors)
    way = rng.randrange(20)
    if way < 9:
        change_schema(rng, bundle / SCHEMA)
    elif way < 13:
        change_weights(rng, bundle / WEIGHTS)
    elif way < 18:
        names = [CONFIG, CONFIG, WARMUP, CALIBRATION, METRICS]
        file = bundle / rng.choice([name for name in names if (bundle / name).exists()])
        value = json.loads(file.read_text())
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = change_json(rng, value) if isinstance(value, dict | list) else value
        file.write_text(json.dumps(value))
    else:
        change_bytes(rng, rng.choice(sorted(bundle.iterdir())))
        if not (bundle / MANIFEST).exists():
            return
    if rng.random() < 0.05:
        body = change_json(rng, body)
        if not isinstance(body, dict):
            return
    sign(bundle, body)


def sign(bundle: Path, body: dict[str, Any]) -> None:
    """Write a manifest that agrees with the files."""
    body = {**body, "schema_fingerprint": "0" * 64}
    body.pop("sha256", None)
    body["files"] = {name: asdict(entry) for name, entry in file_entries(bundle).items()}
    with contextlib.suppress(TypeError, AttributeError):
        files = file_entries(bundle)
        text = Manifest(
            **{**body, "files": files, "history": tuple(body.get("history", ()))}
        ).to_text()
        (bundle / MANIFEST).write_text(text)


def use(bundle_path: Path, number: int) -> str:
    """Load, score, explain and rank; return "scored" or "refused"."""
    rng = np.random.default_rng(number % BASES)
    items = random_items(rng, N_CANDIDATES)
    query = random_query(rng)
    try:
        bundle = Bundle.load(bundle_path)
        repr(bundle), repr(bundle.schema)
        rows = [
            {**query, **{k: v for k, v in row.items() if k != "item"}} for row in items.to_pylist()
        ]
        bundle.score([*rows, {}])
        bundle.explain(rows[0])
        ranker = Ranker(bundle, items=items, item_id="item")
        ranker.rank(query, {}, [f"item{i}" for i in range(N_CANDIDATES)])
    except WideDeepError:
        return "refused"
    return "scored"


def run_case(number: int, bases: Path, place: Path) -> str:
    """Run one case in a fresh copy of its base."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(bases / f"{number % BASES}", place)
    change(random.Random(number), place)
    with SignedByAnyone(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return use(place, number)


def run_range(first: int, last: int, bases: Path) -> None:
    """The child's part: say each case before it runs and what came of it, a line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="wd-fuzz-", dir=bases.parent) as folder:
        for number in range(first, last):
            print(f"case {number}", flush=True)
            try:
                print(run_case(number, bases, Path(folder) / "bundle"), flush=True)
            except Exception:
                error = traceback.format_exc().strip().splitlines()
                print(f"finding {error[-1]} | {' '.join(error[-3:-1])}", flush=True)


def outcomes(first: int, last: int, bases: Path) -> Iterator[tuple[int, str]]:
    """Yield (case, what came of it) of every case; a child that dies is followed by another."""
    while first < last:
        end = min(last, first + CASES_PER_CHILD)
        command = [sys.executable, "-m", "tests.fuzz.fuzz_bundle", "--child", str(first), str(end)]
        number, open_case = first, False
        with subprocess.Popen([*command, str(bases)], stdout=subprocess.PIPE, text=True) as child:
            watchdog = _Watchdog(child)
            assert child.stdout is not None
            for line in child.stdout:
                watchdog.beat()
                if line.startswith("case "):
                    number, open_case = int(line.split()[1]), True
                else:
                    yield number, line.strip()
                    open_case = False
            child.wait()
            watchdog.stop()
        if open_case:
            yield number, f"finding the process ended with {child.returncode}"
        elif number + 1 < end:
            raise RuntimeError(f"the child ended with {child.returncode} between two cases")
        first = number + 1


class _Watchdog:
    """Kills a child that has said nothing for too long."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self._beaten = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        patience = 60.0  # imports first
        while not self._stopped:
            if not self._beaten.wait(patience):
                self._child.kill()
                return
            self._beaten.clear()
            patience = SECONDS_PER_CASE

    def beat(self) -> None:
        self._beaten.set()

    def stop(self) -> None:
        self._stopped = True
        self._beaten.set()
        self._thread.join()


def run(cases: int, first: int = 0, report: Callable[[str], None] = print) -> dict[str, list[int]]:
    """Run cases and return their numbers by outcome; findings are reported as they come."""
    results: dict[str, list[int]] = {"scored": [], "refused": [], "finding": []}
    with tempfile.TemporaryDirectory(prefix="wd-fuzz-") as folder:
        bases = Path(folder) / "bases"
        write_bases(bases)
        for number, outcome in outcomes(first, first + cases, bases):
            results[outcome.split()[0]].append(number)
            if outcome.startswith("finding"):
                report(f"case {number}: {outcome}")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--case", type=int, help="run this one here, and show its traceback")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        first, last, bases = options.child
        run_range(int(first), int(last), Path(bases))
        return 0
    if options.case is not None:
        with tempfile.TemporaryDirectory(prefix="wd-fuzz-") as folder:
            write_bases(Path(folder) / "bases")
            print(run_case(options.case, Path(folder) / "bases", Path(folder) / "bundle"))
        return 0
    results = run(options.cases, options.first)
    print(", ".join(f"{len(numbers)} {outcome}" for outcome, numbers in results.items()))
    return 1 if results["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
