"""Rows per second of Parquet read from an object store on loopback, against the same file here.

    python benchmarks/bench_object_store.py [--mb 1000] [--write]

The store answers what S3 does to HEAD and to GET of a range, in a process of its own, by sendfile:
what it costs is the library's requests and copies, not the store. The columns that are read are all
of the file's, then half of them. What fetching alone costs is that of as many bytes as a row group
has, one after the other: by plain GETs, Arrow, s3fs and the package. Processor time is this
process's, without the store's.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from pyarrow.fs import S3FileSystem
from results_file import machine, write_section

from widedeep.data.fragments import column_stream
from widedeep.data.paths import input_paths
from widedeep.data.sources import open_source
from widedeep.remote import RemoteFile

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


def fetches(port: int, size: int) -> dict[str, Callable[[], None]]:
    """Return what fetches a file's bytes without decoding them, a row group at a time."""
    spans = [(start, min(start + 65_536 * 80, size)) for start in range(0, size, 65_536 * 80)]
    buffer = memoryview(bytearray(65_536 * 80))

    def plain() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for start, stop in spans:
            headers = {"Range": f"bytes={start}-{stop - 1}"}
            connection.request("GET", "/bench/rows.parquet", headers=headers)
            answer = connection.getresponse()
            while answer.readinto(buffer):
                pass
        connection.close()

    def arrow() -> None:
        file = S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http").open_input_file(
            "bench/rows.parquet"
        )
        for start, stop in spans:
            file.read_at(stop - start, start)

    def library() -> None:
        fs = s3fs.S3FileSystem()
        for start, stop in spans:
            fs.cat_ranges(["bench/rows.parquet"], [start], [stop])

    def ours() -> None:
        (file,) = input_paths("s3://bench/rows.parquet") or ()
        assert isinstance(file, RemoteFile)
        for span in spans:
            file.start_ranges([span])()

    return {
        "plain GETs, into one buffer": plain,
        "Arrow's S3FileSystem": arrow,
        "s3fs": library,
        "widedeep": ours,
    }


def fetch_costs(port: int, size: int) -> dict[str, tuple[float, float]]:
    """Return nanoseconds a byte, and those of a processor, of fetching alone: medians in turn."""
    costs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, fetch in fetches(port, size).items():
            started, started_cpu = time.perf_counter(), time.process_time()
            fetch()
            cost = time.perf_counter() - started, time.process_time() - started_cpu
            costs.setdefault(name, []).append(cost)
    return {
        name: tuple(statistics.median(each) / size * 1e9 for each in zip(*values, strict=True))
        for name, values in costs.items()
    }


def _columns(*kinds: str) -> list[str]:
    return [f"{kind}_{n}" for n in range(5) for kind in kinds]


def _compared(what: str, local: str, columns: list[str], get_cpu: float) -> str:
    """Return the row of a table: medians of passes in turn, here and from the store.

    ``get_cpu`` is the processor's time of plain GETs of these columns, in seconds a row.
    """
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
        f"{here_cpu * 1e9:.0f} | {store_cpu * 1e9:.0f} | {here_cpu / store_cpu:.2f} | "
        f"{here_cpu / (here_cpu + get_cpu):.2f} |"
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
            costs = fetch_costs(int(port), local.stat().st_size)
            get_cpu = costs["plain GETs, into one buffer"][1] * local.stat().st_size / n_rows / 1e9
            lines = [
                _compared("all columns", str(local), _columns("id", "number"), get_cpu),
                _compared("half of the columns", str(local), _columns("id"), get_cpu / 2),
            ]
        finally:
            server.kill()
            server.wait()
    text = "\n".join(
        [
            f"{size:.0f} MB of Parquet, medians of {ROUNDS} passes in turn; {machine()}, load of "
            f"the machine before: {load:.1f}. What a row costs here and its plain GET, without any "
            "library, bound the ratio of processor time.",
            "",
            "| read | here, million rows/s | from the store on loopback | ratio | "
            "ns of a processor a row, here | from the store | ratio | what plain GETs permit |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            "| bytes alone, row groups one after the other | ns a byte | ns of a processor |",
            "|---|---|---|",
            *(f"| {name} | {wall:.2f} | {cpu:.2f} |" for name, (wall, cpu) in costs.items()),
        ]
    )
    print(text)
    if arguments.write:
        write_section("object store", f"## Reading from an object store\n\n{text}")


if __name__ == "__main__":
    main()
