"""What a large version costs while it is loaded and swapped in: latency, failures, memory.

`widedeep serve` answers paced requests over loopback (200 candidates by id, 26 + 13 features, 8
crosses of user and item, a 1 GB bundle, 100,000 items), each timed from the moment it was due.
Three phases take turns: quiet; quiet beside a neighbour, another process that loads the same bundle
over and over at the lowest priority; and a swap, from the publication of a new version until two
seconds after its first answer, when the old one is freed.

With --memory: the proportional set size (PSS) of one worker and of two, with the catalogue's rows
in a shared file and every page of the bundle touched.

    python benchmarks/bench_swap.py [--gigabytes 1] [--items 100000] [--rate 200] [--rounds 3]
    python benchmarks/bench_swap.py --memory
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from results_file import machine, write_section

import widedeep as wd
from widedeep.bundle import BundleHead, BundleModel, DeepColumn, write_bundle
from widedeep.cli.bench import started
from widedeep.schema import ColumnType, NumericFit

USERS, ITEM_FIELDS, NUMBERS, CROSSES, VALUES = 13, 13, 13, 8, 10_000
HIDDEN, DIM = (256, 128), 16
CANDIDATES = 200
PHASE_S = 6.0


def make_schema(user_buckets: int) -> wd.Schema:
    """13 categories of the user, 13 of the item (the id among them), 13 numbers, 8 crosses."""
    users = ["user", *(f"u{n}" for n in range(1, USERS))]
    items = ["item", *(f"i{n}" for n in range(1, ITEM_FIELDS))]
    numbers = [f"n{n}" for n in range(NUMBERS)]
    of_item = [*items, *numbers[NUMBERS // 2 :]]
    spec = wd.FeatureSpec(
        features=[
            *wd.numeric(*numbers, transform="none", missing=0.0),
            *wd.categorical("user", hash_buckets=user_buckets),
            *wd.categorical(*users[1:], *items, num_buckets=VALUES),
            *(wd.crossed(users[n], items[n], hash_buckets=100_000) for n in range(1, 1 + CROSSES)),
        ],
        item=of_item,
    )
    zero, one = np.zeros(1), np.ones(1)
    fit = NumericFit(
        boundaries=(),
        shift=zero,
        scale=one,
        fill=zero.astype(np.float32),
        minimum=zero,
        maximum=one,
        mean=zero,
    )
    kinds = {name: ColumnType(kind="int") for name in (*users, *items)}
    return wd.Schema(
        spec=spec,
        columns={**kinds, **{name: ColumnType(kind="float") for name in numbers}},
        vocabularies={},
        boundaries={},
        numerics=dict.fromkeys(numbers, fit),
    )


def publish(root: Path, version: int, user_buckets: int) -> None:
    """Write a version with random weights; another version, another seed."""
    schema = make_schema(user_buckets)
    slots = {slot.name: slot for slot in schema.slots}
    columns: list[DeepColumn] = []
    for slot in schema.slots:
        if slot.deep:
            at = columns[-1].stop if columns else 0
            columns.append(
                DeepColumn(
                    name=slot.name, source="table", start=at, stop=at + DIM, combiner=slot.combiner
                )
            )
    for name, places in schema.dense_layout.items():
        at, width = columns[-1].stop, places.stop - places.start
        columns.append(DeepColumn(name=name, source="dense", start=at, stop=at + width))
    model = BundleModel(
        heads=(BundleHead(name="", kind="binary", start=0, stop=1),),
        hidden_units=HIDDEN,
        wide=tuple(slot.name for slot in schema.slots if slot.wide),
        deep=tuple(columns),
    )
    rng = np.random.default_rng(version)

    def draw(*size: int) -> NDArray[np.float32]:
        block = rng.normal(scale=0.05, size=min(int(np.prod(size)), 1 << 20)).astype(np.float32)
        return np.resize(block, size)

    weights = {"bias": draw(1)}
    weights |= {f"wide/{name}": draw(slots[name].size, 1) for name in model.wide}
    weights |= {
        f"table/{slots[c.name].table}": draw(slots[c.name].size, DIM)
        for c in columns
        if c.source == "table"
    }
    inputs = model.width
    for layer, units in enumerate(HIDDEN):
        weights[f"mlp/{layer}/weight"] = draw(units, inputs)
        weights[f"mlp/{layer}/bias"] = draw(units)
        inputs = units
    weights["head/weight"] = draw(1, inputs)
    rows = [{**user_of(n), **{f"i{k}": n for k in range(1, 13)}, "item": n} for n in range(16)]
    write_bundle(
        root / str(version),
        schema=schema,
        weights=weights,
        model=model,
        metrics={},
        warmup_rows=rows,
        config={},
    )


def user_of(request: int) -> dict[str, Any]:
    fields = {f"u{n}": (request * 7 + n) % VALUES for n in range(1, USERS)}
    return {"user": request * 7919, **fields, **{f"n{n}": 0.5 for n in range(NUMBERS // 2)}}


def write_items(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"item": np.arange(count)}
    columns |= {f"i{n}": rng.integers(0, VALUES, count) for n in range(1, ITEM_FIELDS)}
    columns |= {f"n{n}": rng.random(count) for n in range(NUMBERS // 2, NUMBERS)}
    pq.write_table(pa.table(columns), path)
    return path


class Requests:
    """Asks a server at a steady rate, over one connection.

    A request that waits for the one before it is late, and counts so.
    """

    def __init__(self, port: int, rate: float, items: int) -> None:
        self._port, self._pause, self._items = port, 1 / rate, items
        self.version = ""
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng(0)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        due, number = time.perf_counter(), 0
        while not self._stop.is_set():
            due += self._pause
            number += 1
            candidates = rng.integers(0, self._items, CANDIDATES).tolist()
            body = json.dumps({"user": user_of(number), "candidates": candidates})
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                connection.request("POST", "/v1/rank", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                told = json.loads(answer.read())
                if answer.status != 200 or len(told["scores"]) != CANDIDATES:
                    raise ValueError(f"{answer.status}: {told}")
                self.version = str(told["model_version"])
            except Exception as error:
                self.failures.append(repr(error))
            self.latencies.append(time.perf_counter() - due)

    def stop(self) -> tuple[NDArray[np.float64], list[str]]:
        self._stop.set()
        self._thread.join()
        return np.array(self.latencies) * 1e3, self.failures


LOAD = """
import sys
from pathlib import Path
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.ranker import RankerOptions
from widedeep.serving.loading import load_ranker, lower_thread_priority
bundle, items = sys.argv[1:]
lower_thread_priority()
print("loading", flush=True)
while True:
    catalogue = Catalogue.read(items, id_column="item")
    load_ranker(Path(bundle), RankerOptions(item_id="item"), catalogue)
"""


def phase(port: int, arguments: argparse.Namespace, kind: str, folder: Path) -> Any:
    """Run one phase; return its latencies in ms and its failures."""
    neighbour = None
    if kind == "neighbour":
        command = [sys.executable, "-c", LOAD, str(folder / "models" / "1")]
        neighbour = subprocess.Popen([*command, str(folder / "items.parquet")], stdout=-1)
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
    requests = Requests(port, arguments.rate, arguments.items)
    try:
        if kind == "swap":
            swap(requests, folder)
        else:
            time.sleep(PHASE_S)
    finally:
        latencies, failures = requests.stop()
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    return latencies, failures


def swap(requests: Requests, folder: Path) -> None:
    """Publish the version that waits aside; wait until it answers, and the old one is freed."""
    number = max(int(path.name) for path in (folder / "models").glob("[0-9]*")) + 1
    os.rename(folder / "aside" / "next", folder / "models" / str(number))
    end = time.monotonic() + 300
    while requests.version != str(number):
        if time.monotonic() > end:
            raise SystemExit(f"version {number} did not take the traffic: {requests.version}")
        time.sleep(0.01)
    time.sleep(2.0)


def bench_latency(folder: Path, arguments: argparse.Namespace) -> None:
    buckets = int(arguments.gigabytes * 1e9 / (4 * (DIM + 1)))
    publish(folder / "models", 1, buckets)
    write_items(folder / "items.parquet", arguments.items)
    found: dict[str, list[NDArray[np.float64]]] = {"quiet": [], "neighbour": [], "swap": []}
    failures: list[str] = []
    words = [f"S={folder / 'models'}", "--items", str(folder / "items.parquet")]
    with started([*words, "--item-id", "item", "--poll", "0.2"]) as target:
        for _ in range(arguments.rounds):
            publish(folder / "aside", 0, buckets)
            (folder / "aside" / "0").rename(folder / "aside" / "next")
            time.sleep(1)
            for kind in found:
                latencies, failed = phase(target.port, arguments, kind, folder)
                found[kind].append(latencies)
                failures += failed
            for old in sorted((folder / "models").glob("[0-9]*"), key=lambda p: int(p.name))[1:-1]:
                shutil.rmtree(old)
    table = report(found, failures)
    if arguments.write:
        head = (
            f"## A version swapped in under load\n\n`benchmarks/bench_swap.py` on {machine()}: a "
            f"bundle of {arguments.gigabytes:g} GB, {arguments.items:,} items, "
            f"{arguments.rate:g} requests a second.\n\n"
        )
        write_section("serving:swap", head + table)


def report(found: dict[str, list[NDArray[np.float64]]], failures: list[str]) -> str:
    """Print a table of the phases; return it as Markdown."""
    lines = [
        "| phase | requests | p50 ms | p99 ms | worst | p99 of each round |",
        "|---|---|---|---|---|---|",
    ]
    p99 = {}
    for kind, rounds in found.items():
        every = np.concatenate(rounds)
        p99[kind] = float(np.percentile(every, 99))
        each = " ".join(f"{np.percentile(r, 99):.2f}" for r in rounds)
        p50, worst = np.percentile(every, 50), every.max()
        lines.append(
            f"| {kind} | {len(every):,} | {p50:.2f} | {p99[kind]:.2f} | {worst:.1f} | {each} |"
        )
    beside = max(p99["quiet"], p99["neighbour"])
    lines += [
        "",
        f"Failed requests: {len(failures)}. p99 of the swap: "
        f"{p99['swap'] / p99['quiet']:.2f} times the quiet one, "
        f"{p99['swap'] / beside:.2f} times the larger of quiet and neighbour.",
    ]
    print("\n".join(lines), *failures[:1], sep="\n")
    return "\n".join(lines)


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1e3
    raise SystemExit(f"no Pss of process {pid}")


WORKER = """
import sys
import numpy as np
from widedeep.serving.registry import Registry
root, items, rows = sys.argv[1:]
registry = Registry(root, items=items, item_id="item", rows=rows or None)
registry.start()
assert registry.wait_ready(300), registry.status()
with registry.lease("r") as served:
    for array in served.ranker.bundle.weights.values():
        float(np.asarray(array).reshape(-1)[:: 1024].sum())
    served.rank({"user": 1}, candidates=list(range(200)))
print("ready", flush=True)
sys.stdin.read()
"""


def bench_memory(folder: Path, arguments: argparse.Namespace) -> None:
    publish(folder / "models", 1, int(arguments.gigabytes * 1e9 / (4 * (DIM + 1))))
    items = write_items(folder / "items.parquet", arguments.items)
    for shared in (False, True):
        command = [sys.executable, "-c", WORKER, str(folder / "models"), str(items)]
        command.append(str(folder / "rows") if shared else "")
        workers, sums = [], []
        try:
            for _ in range(2):
                workers.append(subprocess.Popen(command, stdin=-1, stdout=-1))
                assert workers[-1].stdout is not None
                assert workers[-1].stdout.readline() == b"ready\n"
                sums.append(sum(pss_mb(worker.pid) for worker in workers))
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        kind = "rows in a shared file" if shared else "rows of each worker's own"
        one, two = sums
        more = f"{two - one:,.0f} MB more, + {two / one - 1:.1%}"
        print(f"{kind}: PSS {one:,.0f} MB of one, {two:,.0f} MB of two: {more}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-swap-"))
    try:
        (bench_memory if arguments.memory else bench_latency)(folder, arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
