"""Rows per second of Parquet read from an object store on loopback, against the same file here.

    python benchmarks/bench_object_store.py [--mb 1000] [--write]

The store answers what S3 does to HEAD and to GET of a range, in a process of its own, by sendfile:
what it costs is the library's requests and copies, not the store. The columns that are read are all
of the file's, then half of them. The store's own ceiling is the rate of plain GETs of as many bytes
as a row group has, one after the other. Processor time is this process's, without the store's.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from results_file import machine, write_section

from widedeep.data.fragments import column_stream
from widedeep.data.sources import open_source

_SERVER = """
import http.server, os, sys

PATH = sys.argv[1]
SIZE = os.stat(PATH).st_size

class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.head(200, SIZE)

    def do_GET(self):
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last or SIZE), SIZE - 1)
        self.head(206, last + 1 - first, f"bytes {first}-{last}/{SIZE}")
        self.wfile.flush()
        with open(PATH, "rb") as file:
            out, left = self.connection.fileno(), last + 1 - first
            while left:
                sent = os.sendfile(out, file.fileno(), last + 1 - left, left)
                left -= sent

    def head(self, status, length, content_range=None):
        self.send_response(status)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
print(server.server_port, flush=True)
server.serve_forever()
"""
ROUNDS = 5


def write_rows(path: Path, megabytes: int) -> int:
    """Write rows of ids and numbers that hardly compress; return their number."""
    rng = np.random.default_rng(0)
    rows = megabytes * 1_000_000 // 80
    columns = {f"id_{n}": rng.integers(0, 1 << 40, rows) for n in range(5)}
    columns |= {f"number_{n}": rng.normal(size=rows) for n in range(5)}
    pq.write_table(pa.table(columns), path, row_group_size=65_536, use_dictionary=False)
    return rows


def read(data: str, columns: list[str]) -> tuple[float, float, int]:
    """Return seconds, those of processors, and rows of a pass, as training's first one reads."""
    started, started_cpu = time.perf_counter(), time.process_time()
    with open_source(data, columns=columns) as source:
        rows = sum(table.num_rows for table in column_stream(source))
    return time.perf_counter() - started, time.process_time() - started_cpu, rows


def raw_rate(port: int, size: int, rows: int) -> float:
    """Return rows per second of plain GETs of a file's bytes, a row group at a time."""
    connection, step = http.client.HTTPConnection("127.0.0.1", port), 65_536 * 80
    buffer = bytearray(step)
    started = time.perf_counter()
    for start in range(0, size, step):
        headers = {"Range": f"bytes={start}-{start + step - 1}"}
        connection.request("GET", "/bench/rows.parquet", headers=headers)
        answer = connection.getresponse()
        while answer.readinto(buffer):
            pass
    return rows / (time.perf_counter() - started)


def _columns(*kinds: str) -> list[str]:
    return [f"{kind}_{n}" for n in range(5) for kind in kinds]


def _compared(what: str, local: str, columns: list[str]) -> str:
    """Return the row of a table: medians of passes in turn, here and from the store."""
    rates: dict[str, list[tuple[float, float]]] = {local: [], "s3://bench/rows.parquet": []}
    for _ in range(ROUNDS):
        for data, values in rates.items():
            seconds, cpu_seconds, rows = read(data, columns)
            values.append((rows / seconds, cpu_seconds / rows))
    (here, here_cpu), (store, store_cpu) = (
        [statistics.median(each) for each in zip(*values, strict=True)] for values in rates.values()
    )
    return (
        f"| {what} | {here / 1e6:.2f} | {store / 1e6:.2f} | {store / here:.2f} | "
        f"{here_cpu * 1e9:.0f} | {store_cpu * 1e9:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="megabytes of Parquet")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "rows.parquet"
        n_rows = write_rows(local, arguments.mb)
        size = local.stat().st_size / 1e6
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(local)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            raw = statistics.median(
                raw_rate(int(port), local.stat().st_size, n_rows) for _ in range(ROUNDS)
            )
            lines = [
                _compared("all columns", str(local), _columns("id", "number")),
                _compared("half of the columns", str(local), _columns("id")),
            ]
        finally:
            server.kill()
            server.wait()
    text = "\n".join(
        [
            f"{size:.0f} MB of Parquet, medians of {ROUNDS} passes; {machine()}, load of the "
            f"machine before: {load:.1f}. Plain GETs of all bytes: {raw / 1e6:.2f} million rows/s.",
            "",
            "| read | here, million rows/s | from the store on loopback | ratio | "
            "ns of a processor a row, here | from the store |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )
    print(text)
    if arguments.write:
        write_section("object store", f"## Reading from an object store\n\n{text}")


if __name__ == "__main__":
    main()
