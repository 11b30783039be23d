"""Whole servers under the same load: widedeep, uvicorn + ONNX Runtime, mlserver + ONNX Runtime.

Each is one process; each is asked for the ranking of 200 candidates by id (26 + 13 features, 8
crosses of user and item; the models of bench_rank.py) and answers with ids and probabilities. They
take turns, a short run each, several times; medians over the rounds are told. The load generator
shares the machine's processors, so CPU time for a request says more than requests a second.

    python benchmarks/bench_serve.py [--python PEERS] [--bundle BUNDLE] [--write]

PEERS is a Python with what peers/serving/requirements.txt names (`make bench-serve` makes one).
With --write the tables go into RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_rank
import bench_swap
import numpy as np
import onnx_ranker_files
import pyarrow.parquet as pq
import torch
from results_file import machine, write_section

from widedeep.cli.bench import started
from widedeep.serving.load import LoadReport, Target, run_load

PEERS = Path(__file__).resolve().parent / "peers" / "serving"
ROUNDS, SECONDS, CONNECTIONS = 3, 2.0, 4
PYTHON = Path(__file__).resolve().parent / "peers" / ".venv-serving" / "bin" / "python"


def free_port() -> int:
    """Return a port that nobody holds now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def peer(command: Sequence[str], port: int, path: str, folder: Path) -> Iterator[Target]:
    """Run another server until the block ends."""
    log = (folder / f"peer-{port}.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=PEERS)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command}: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)
        time.sleep(1.0)  # mlserver opens its port before its model is loaded
        yield Target(port=port, path=path, process=process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def uvicorn_peer(python: Path, folder: Path) -> Any:
    """Uvicorn, with a handler of its own."""
    port = free_port()
    command = [str(python), "uvicorn_onnx.py", str(port), str(folder)]
    return peer(command, port, "/v1/rank", folder)


def mlserver_peer(python: Path, folder: Path) -> Any:
    """Mlserver in one process: no pool of workers behind it."""
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    place = folder / "mlserver"
    place.mkdir(exist_ok=True)
    settings = {**ports, "host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    (place / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "m",
        "implementation": "mlserver_onnx.Ranking",
        "parameters": {"uri": str(folder)},
    }
    (place / "model-settings.json").write_text(json.dumps(model))
    start = "import sys; sys.path.insert(0, '.'); from mlserver.cli import main; main()"
    command = [str(python), "-c", start, "start", str(place)]
    return peer(command, ports["http_port"], "/v2/models/m/infer", folder)


def bodies(bench: bench_rank.Bench, n: int) -> dict[str, list[bytes]]:
    """The same 32 requests, in each server's words."""
    own, open_inference = [], []
    rng = np.random.default_rng(3)
    for _ in range(32):
        user = bench.query | {name: int(rng.integers(0, 100)) for name in bench_rank.QUERY}
        if bench_rank.HISTORY in user:
            events = rng.integers(0, 200, len(user[bench_rank.HISTORY]))
            user[bench_rank.HISTORY] = events.tolist()
        ids = [f"item{i}" for i in rng.integers(0, len(bench.rows), n)]
        own.append(json.dumps({"user": user, "candidates": ids}, separators=(",", ":")).encode())
        inputs = [
            {
                "name": name,
                "shape": [1],
                "datatype": "INT64" if isinstance(value, int) else "FP32",
                "data": [value],
            }
            for name, value in user.items()
            if not isinstance(value, list)
        ]
        inputs.append({"name": "candidates", "shape": [n], "datatype": "BYTES", "data": ids})
        open_inference.append(json.dumps({"inputs": inputs}, separators=(",", ":")).encode())
    return {"/v1/rank": own, "/v2/models/m/infer": open_inference}


def prepare(
    name: str, folder: Path, tower: dict[str, Any] | None = None, **options: int
) -> bench_rank.Bench:
    """Write the model for every server; see :class:`bench_rank.Bench`."""
    folder.mkdir()
    bench = bench_rank.Bench(name, 2000, folder, tower, **options)
    pq.write_table(bench.table, folder / "items.parquet")
    onnx_ranker_files.write(bench, folder)
    return bench


def serve_words(name: str, folder: Path, *more: str) -> list[str]:
    """What widedeep serve is given."""
    items = ["--items", str(folder / "items.parquet"), "--item-id", "item"]
    return [str(folder / name), *items, "--log-requests", "none", *more]


def whole_servers(name: str, python: Path, folder: Path) -> str:
    """All servers of a model take turns."""
    bench = prepare(name, folder)
    asked = bodies(bench, 200)
    with contextlib.ExitStack() as stack:
        servers: dict[str, Target] = {}
        if python.exists():
            servers["uvicorn + ONNX Runtime"] = stack.enter_context(uvicorn_peer(python, folder))
            servers["mlserver + ONNX Runtime"] = stack.enter_context(mlserver_peer(python, folder))
        else:
            print(f"{python}: not there, so the peers are left out; 'make bench-serve' makes it")
        servers["widedeep"] = stack.enter_context(started(serve_words(name, folder)))
        servers["widedeep, in bfloat16"] = stack.enter_context(
            started(serve_words(name, folder, "--bfloat16"))
        )
        agree(servers, asked)
        found: dict[str, list[LoadReport]] = {each: [] for each in servers}
        for _ in range(ROUNDS):
            for each, target in servers.items():
                report = run_load(
                    target, asked[target.path], connections=CONNECTIONS, seconds=SECONDS
                )
                if report.failures:
                    raise SystemExit(f"{each}: {report.failures}")
                found[each].append(report)
    return table(name, found)


def agree(servers: dict[str, Target], asked: dict[str, list[bytes]]) -> None:
    """Stop unless all servers give the same scores for the first request."""
    answers = {}
    for name, target in servers.items():
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", target.path, asked[target.path][0], headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if "outputs" in answer:
            answer = {each["name"]: each["data"] for each in answer["outputs"]}
        if "scores" not in answer:
            raise SystemExit(f"{name}: {answer}")
        answers[name] = np.array(answer["scores"], dtype=np.float64)
    for name, scores in answers.items():
        apart = np.abs(scores - answers["widedeep"]).max()
        if apart > (1e-5 if "bfloat16" not in name else 0.02):
            raise SystemExit(f"{name} differs from widedeep by {apart:.1e}")


def table(name: str, found: dict[str, list[LoadReport]]) -> str:
    """The medians, and ratios to widedeep's in the same round."""
    lines = [
        f"| {name}, {CONNECTIONS} connections | requests/s | p50 ms | p99 ms | CPU ms/request |"
        " requests/s, widedeep to it | CPU, it to widedeep |",
        "|---|---|---|---|---|---|---|",
    ]
    for server, reports in found.items():
        pairs = list(zip(reports, found["widedeep"], strict=True))
        ratio = statistics.median(own.requests_per_s / it.requests_per_s for it, own in pairs)
        cpu = statistics.median(it.cpu_ms / own.cpu_ms for it, own in pairs)
        middle = [
            statistics.median(getattr(each, field) for each in reports)
            for field in ("requests_per_s", "p50_ms", "p99_ms", "cpu_ms")
        ]
        cells = f"{middle[0]:,.0f} | {middle[1]:.2f} | {middle[2]:.2f} | {middle[3]:.3f}"
        lines.append(f"| {server} | {cells} | {ratio:.2f} | {cpu:.2f} |")
    return "\n".join(lines)


KEY = "a key of this benchmark"
JSON_BYTES = 1 << 13  # of a request with tensors as bytes: spaces fill it up


def kinds_of_requests(bench: bench_rank.Bench, n: int) -> dict[str, list[bytes]]:
    """The plain requests, and the same with what else a request may hold."""
    plain = [json.loads(body) for body in bodies(bench, n)["/v1/rank"]]
    unknown = [
        {**each, "candidates": [*each["candidates"][:-10], *(f"new{i}" for i in range(10))]}
        for each in plain
    ]
    rows = {row["item"]: row for row in bench.table.to_pylist()}
    items = [
        {
            "user": each["user"],
            "items": {
                name: [rows[id_][name] for id_ in each["candidates"]]
                for name in bench.table.column_names
            },
        }
        for each in plain
    ]
    kinds = {"plain": plain, "with an API key": plain, "10 unknown ids": unknown, "items": items}
    found = {
        kind: [json.dumps(each, separators=(",", ":")).encode() for each in requests]
        for kind, requests in kinds.items()
    }
    for kind, is_binary in (("tensors in JSON", False), ("tensors as bytes", True)):
        found[kind] = [tensors_of(each["user"], each["items"], is_binary) for each in items]
    return found


def tensors_of(user: dict[str, Any], items: dict[str, list[Any]], is_binary: bool) -> bytes:
    """The same rows in the words of Open Inference: each with the user's columns, too."""
    inputs, blobs = [], []
    n = len(items["item"])
    for name, values in ({name: [value] * n for name, value in user.items()} | items).items():
        if name == "item":  # the model does not read it
            continue
        dtype = "<i8" if isinstance(values[0], int) else "<f8"
        about = {"name": name, "shape": [n], "datatype": "INT64" if dtype == "<i8" else "FP64"}
        if is_binary:
            blobs.append(np.array(values, dtype).tobytes())
            about["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            about["data"] = values
        inputs.append(about)
    body: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": is_binary}}
    text = json.dumps(body, separators=(",", ":")).encode()
    return b"".join([text.ljust(JSON_BYTES), *blobs]) if is_binary else text


def target_of(kind: str, plain: Target, keyed: Target) -> Target:
    """Where requests of a kind go."""
    if kind.startswith("tensors"):
        length = ("inference-header-content-length", str(JSON_BYTES))
        headers = (length, ("content-type", "application/octet-stream"))
        is_binary = kind.endswith("bytes")
        return replace(plain, path="/v2/models/S/infer", headers=headers if is_binary else ())
    return keyed if "key" in kind else plain


def by_kind(folder: Path, bench: bench_rank.Bench) -> str:
    """Requests of each kind, by native threads and by Python; all take turns."""
    kinds = kinds_of_requests(bench, 200)
    keys = folder / "keys.toml"
    keys.write_text(f'[keys.caller]\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    found: dict[tuple[str, str], list[LoadReport]] = {}
    with contextlib.ExitStack() as stack:
        servers = {}
        for by, more in (("native", ()), ("Python", ("--no-native",))):
            open_one = stack.enter_context(started(serve_words("S", folder, *more)))
            keyed = started(serve_words("S", folder, "--keys", str(keys), *more))
            servers[by] = (
                open_one,
                replace(stack.enter_context(keyed), headers=(("x-api-key", KEY),)),
            )
        for _ in range(ROUNDS):
            for by, (open_one, keyed_one) in servers.items():
                for kind, requests in kinds.items():
                    target = target_of(kind, open_one, keyed_one)
                    report = run_load(
                        target, requests, connections=CONNECTIONS, seconds=SECONDS / 2
                    )
                    if report.failures:
                        raise SystemExit(f"{kind}: {report.failures}")
                    found.setdefault((by, kind), []).append(report)
    lines = [
        "| S, 200 candidates or rows | requests/s, native | of plain ones | CPU, of plain ones |"
        " requests/s, native to Python | CPU ms/request, native | Python |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        plain, own, python = (
            found[key] for key in (("native", "plain"), ("native", kind), ("Python", kind))
        )

        def ratio(ones: Sequence[LoadReport], others: Sequence[LoadReport], field: str) -> float:
            pairs = zip(ones, others, strict=True)
            return statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs)

        rate, cpu = "requests_per_s", "cpu_ms"
        cells = [
            f"{statistics.median(each.requests_per_s for each in own):,.0f}",
            f"{ratio(own, plain, rate):.2f}",
            f"{ratio(own, plain, cpu):.2f}",
            f"{ratio(own, python, rate):.1f}",
            f"{statistics.median(each.cpu_ms for each in own):.3f}",
            f"{statistics.median(each.cpu_ms for each in python):.3f}",
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def two_workers(folder: Path, asked: list[bytes]) -> str:
    """Requests for each CPU second of two processes against one's, over 16 connections."""
    per_cpu: dict[int, list[float]] = {1: [], 2: []}
    with contextlib.ExitStack() as stack:
        servers = {
            count: stack.enter_context(started(serve_words("S", folder, "--workers", str(count))))
            for count in per_cpu
        }
        time.sleep(2)  # the second worker joins the port when it has loaded
        for _ in range(ROUNDS):
            for count, target in servers.items():
                report = run_load(target, asked, connections=16, seconds=SECONDS)
                per_cpu[count].append(1e3 / report.cpu_ms)
    one, two = (statistics.median(per_cpu[count]) for count in (1, 2))
    ratio = statistics.median(b / a for a, b in zip(per_cpu[1], per_cpu[2], strict=True))
    return (
        f"Requests for a second of the server's CPU, S, 16 connections: {one:,.0f} by one worker, "
        f"{two:,.0f} by two: {ratio:.2f} times."
    )


def thousand(folder: Path, bench: bench_rank.Bench) -> str:
    """Latency with 1000 candidates."""
    with started(serve_words("S", folder)) as target:
        found = run_load(target, bodies(bench, 1000)["/v1/rank"], connections=1, seconds=5)
    return (
        f"S, 1000 candidates, one connection: p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms."
    )


def first_answer(bundle: str) -> str:
    """From the command to the first score, thrice; resident memory then."""
    from widedeep.bundle import Bundle

    row = json.dumps({"inputs": {k: [v] for k, v in Bundle.load(bundle).warmup.rows[0].items()}})
    times, memory = [], 0.0
    for _ in range(3):
        begun = time.perf_counter()
        with started([f"m={bundle}"]) as target:
            found = run_load(
                Target(port=target.port, path="/v1/models/m:predict"),
                [row.encode()],
                connections=1,
                seconds=0.0,
                warm_up_s=0,
            )
            times.append(time.perf_counter() - begun)
            if found.failures:
                raise SystemExit(f"no score: {found.failures}")
            status = Path(f"/proc/{target.process}/status")
            if status.exists():
                memory = int(status.read_text().split("VmRSS:")[1].split()[0]) / 1e3
    return (
        f"From `widedeep serve` to the first score, {Path(bundle).name}: "
        f"{statistics.median(times):.2f} s (median of 3); {memory:.0f} MB resident."
    )


def captured(run: Any) -> str:
    """What a part of another benchmark prints."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        run()
    sys.stdout.write(told.getvalue())
    return f"```\n{told.getvalue().strip()}\n```"


def shared_memory(quick: bool) -> str:
    """PSS of one worker and two; see bench_swap.py."""
    options = argparse.Namespace(
        gigabytes=0.1 if quick else 1.0, items=10_000 if quick else 100_000
    )
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        return captured(lambda: bench_swap.bench_memory(Path(folder), options))


def compute(quick: bool) -> str:
    """The arithmetic against ONNX Runtime's, and the paper's table; see bench_rank.py."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in bench_rank.MODELS:
                bench = bench_rank.Bench(name, 2000, Path(folder))
                for n in (200, 1000):
                    bench_rank.compare(bench, n, 20 if quick else 100)
            bench_rank.paper_table(bench, 20 if quick else 60)

    return captured(run)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, default=PYTHON)
    parser.add_argument("--bundle", help="measure the start with it, too; Adult's, for one")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kinds", action="store_true", help="the kinds of requests alone")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    if arguments.kinds:
        with tempfile.TemporaryDirectory(prefix="bench-serve-") as place:
            about = f"`benchmarks/bench_serve.py --kinds` on {machine()}; load before: {load:.1f}."
            told = by_kind(Path(place) / "S", prepare("S", Path(place) / "S"))
            print(f"{about}\n\n{told}")
            if arguments.write:
                write_section("serving kinds", f"## Kinds of requests\n\n{about}\n\n{told}")
        return
    parts = ["## Serving"]
    about = f"`benchmarks/bench_serve.py` on {machine()}; load of the machine before: {load:.1f}."
    parts.append(f"{about} 200 candidates by id, 26 + 13 features, 8 crosses; one process each.")
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as place:
        for name in bench_rank.MODELS:
            parts.append(whole_servers(name, arguments.python, Path(place) / name))
            print(parts[-1], flush=True)
        small = bench_rank.Bench("S", 2000, Path(place) / "again")
        parts.append(two_workers(Path(place) / "S", bodies(small, 200)["/v1/rank"]))
        print(parts[-1], flush=True)
        parts.append(thousand(Path(place) / "S", small))
        print(parts[-1], flush=True)
    if arguments.bundle:
        parts.append(first_answer(arguments.bundle))
        print(parts[-1], flush=True)
    size = "0.1 GB, 10,000" if arguments.quick else "1 GB, 100,000"
    parts.append(f"### Two workers, a bundle of {size} items\n\n{shared_memory(arguments.quick)}")
    parts.append(f"### Arithmetic alone\n\n{compute(arguments.quick)}")
    if arguments.write:
        write_section("serving", "\n\n".join(parts))


if __name__ == "__main__":
    main()
