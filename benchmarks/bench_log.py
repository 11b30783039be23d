"""What logging all impressions costs a server: requests for S by id, logged whole and not logged.

Both servers are one process; they take turns under the same load (200 candidates, 26 + 13
features), and medians over the rounds are told. The log's files are complete by the end of each
run of the table, encoding included, and its rows are counted against the answers.

    python benchmarks/bench_log.py [--rounds 5] [--seconds 3] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from bench_serve import CONNECTIONS, bodies, prepare, serve_words
from results_file import machine, write_section

from widedeep.cli.bench import started
from widedeep.serving.load import LoadReport, Target, run_load

CANDIDATES = 200


def log_counts(target: Target) -> dict[str, float]:
    """Return the log's figures by name."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    figures = [line.split(" ") for line in lines if line.startswith("widedeep_log_")]
    return {name: float(value) for name, value in figures}


def with_users(asked: list[bytes]) -> list[bytes]:
    """Give each request a user's id, without which it is not logged."""
    requests = [json.loads(body) for body in asked]
    return [
        json.dumps(
            {**request, "user": {**request["user"], "user_id": number}}, separators=(",", ":")
        ).encode()
        for number, request in enumerate(requests)
    ]


def measure(folder: Path, rounds: int, seconds: float) -> str:
    """Take turns, and return the table."""
    asked = with_users(bodies(prepare("S", folder), CANDIDATES)["/v1/rank"])
    found: dict[str, list[LoadReport]] = {"not logged": [], "logged whole": []}
    words = {"not logged": (), "logged whole": ("--log", str(folder / "log"))}
    with contextlib.ExitStack() as stack:
        targets = {
            name: stack.enter_context(started(serve_words("S", folder, *words[name])))
            for name in found
        }
        before = log_counts(targets["logged whole"])["widedeep_log_rows"]
        for _ in range(rounds):
            for name, target in targets.items():
                report = run_load(
                    target, asked, connections=CONNECTIONS, seconds=seconds, warm_up_s=0
                )
                assert not report.failures, report.failures
                found[name].append(report)
        time.sleep(1)
        counts = log_counts(targets["logged whole"])
    answered = sum(report.requests for report in found["logged whole"]) * CANDIDATES
    files = list(folder.glob("log/*/*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    nbytes = sum(file.stat().st_size for file in files)
    lines = [
        "| S, 200 candidates by id | requests/s | p50 ms | p99 ms | CPU ms/request | requests/s, "
        "to not logged | CPU, to not logged |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, reports in found.items():
        pairs = list(zip(reports, found["not logged"], strict=True))
        rate = statistics.median(a.requests_per_s / b.requests_per_s for a, b in pairs)
        cpu = statistics.median(a.cpu_ms / b.cpu_ms for a, b in pairs)
        middle = [
            statistics.median(getattr(each, field) for each in reports)
            for field in ("requests_per_s", "p50_ms", "p99_ms", "cpu_ms")
        ]
        cells = f"{middle[0]:,.0f} | {middle[1]:.2f} | {middle[2]:.2f} | {middle[3]:.3f}"
        lines.append(f"| {name} | {cells} | {rate:.2f} | {cpu:.2f} |")
    lines.append(
        f"\nRows in the files: {rows:,}, of {answered:,} answered; requests dropped: "
        f"{counts['widedeep_log_dropped']:.0f}; {nbytes / max(rows, 1):.1f} bytes a row."
    )
    assert counts["widedeep_log_rows"] - before == answered
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-log-") as place:
        table = measure(Path(place) / "S", arguments.rounds, arguments.seconds)
    print(table)
    about = f"`benchmarks/bench_log.py` on {machine()}; load of the machine before: {load:.1f}."
    if arguments.write:
        write_section("serving:log", f"## Logging impressions\n\n{about}\n\n{table}")


if __name__ == "__main__":
    main()
