"""Importing a large TensorFlow checkpoint: seconds, and memory beside the tables.

    python benchmarks/bench_import.py [--gigabytes 2] [--times 3] [--write]

Writes a checkpoint as a canned estimator saves one (hashed columns in the linear part under Ftrl
and as embeddings of 16 under Adagrad, with all slots), then runs `widedeep import` on it with its
specification, and measures that process: its time, what it writes, and the peak of its anonymous
memory less the tables and their state. The reading alone, checksums included, is told apart.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from results_file import machine, write_section

from widedeep.importing import TensorBundle
from widedeep.kernels import crc32c

COLUMNS = ["user", "item", "shop"]
WIDTH = 16
HIDDEN = [64, 32]
BYTES_PER_ROW = 4 * (3 * 1 + 2 * WIDTH)  # weight and two slots; embedding and one
INPUT = "dnn/input_from_feature_columns/input_layer"
FTRL = {"beta": 0.0, "decay": 0.0, "l1_regularization_strength": 0.0, "learning_rate": 0.1,
        "l2_regularization_strength": 0.0, "learning_rate_power": -0.5}  # fmt: skip
ADAGRAD = {"decay": 0.0, "learning_rate": 0.05}

Array = NDArray[np.generic]


def tensors(rows: int) -> Iterator[tuple[str, Array]]:
    """Yield the variables of a model of so many rows in each column, with their slots."""
    rng = np.random.default_rng(0)

    def values(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    def with_slots(scope: str, name: str, shape: tuple[int, ...], *slots: str) -> Iterator[
        tuple[str, Array]
    ]:  # fmt: skip
        yield name, values(*shape)
        for slot in slots:
            yield f"training/{scope}/{name}/{slot}", np.abs(values(*shape))

    yield "global_step", np.array(1000, np.int64)
    for column in COLUMNS:
        name = f"linear/linear_model/{column}/weights"
        yield from with_slots("Ftrl", name, (rows, 1), "accumulator", "linear")
        name = f"{INPUT}/{column}_embedding/embedding_weights"
        yield from with_slots("Adagrad", name, (rows, WIDTH), "accumulator")
    bias = "linear/linear_model/bias_weights"
    yield from with_slots("Ftrl", bias, (1,), "accumulator", "linear")
    sizes = [WIDTH * len(COLUMNS), *HIDDEN, 1]
    names = [*(f"hiddenlayer_{i}" for i in range(len(HIDDEN))), "logits"]
    for name, before, after in zip(names, sizes, sizes[1:], strict=False):
        yield from with_slots("Adagrad", f"dnn/{name}/kernel", (before, after), "accumulator")
        yield from with_slots("Adagrad", f"dnn/{name}/bias", (after,), "accumulator")
    yield "training/Ftrl/iter", np.array(1000, np.int64)
    for scope, options in (("Ftrl", FTRL), ("Adagrad", ADAGRAD)):
        for key, value in options.items():
            yield f"training/{scope}/{key}", np.array(value, np.float32)


def write_checkpoint(prefix: Path, rows: int) -> int:
    """Write a checkpoint of one shard, one tensor in memory at a time; return its bytes."""
    entries: dict[bytes, bytes] = {b"": _field(1, 1)}
    offset = 0
    with Path(f"{prefix}.data-00000-of-00001").open("wb") as shard:
        for name, array in tensors(rows):
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            shard.write(raw.data)
            dims = b"".join(_field(2, _field(1, size)) for size in array.shape)
            dtype = {"float32": 1, "int64": 9}[array.dtype.name]
            place = _field(4, offset) + _field(5, raw.size)
            checksum = _varint(6 << 3 | 5) + struct.pack("<I", _masked(raw))
            entries[name.encode()] = _field(1, dtype) + _field(2, dims) + place + checksum
            offset += raw.size
    Path(f"{prefix}.index").write_bytes(_table(entries))
    return offset


def _table(entries: dict[bytes, bytes]) -> bytes:
    """A sorted table of one block, no key sharing its beginning with the last."""
    out = b""
    handles = []
    empty, body = _block({}), _block(dict(sorted(entries.items())))
    index = _block({max(entries): _varint(0) + _varint(len(body))})
    for block in (body, empty, index):
        handles.append(_varint(len(out)) + _varint(len(block)))
        checksum = _masked(np.frombuffer(block + b"\0", np.uint8))
        out += block + b"\0" + struct.pack("<I", checksum)
    footer = (handles[1] + handles[2]).ljust(40, b"\0")
    return out + footer + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: dict[bytes, bytes]) -> bytes:
    out, restarts = b"", []
    for key, value in entries.items():
        restarts.append(len(out))
        out += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _masked(data: NDArray[np.uint8]) -> int:
    crc = crc32c(data, 0)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_spec(path: Path, rows: int) -> None:
    """Write the specification that belongs to the checkpoint."""
    lines = ["[data]", 'label = "click"', "", "[features]", f"categorical = {COLUMNS}"]
    for name in COLUMNS:
        options = f'hash_buckets = {rows}, embedding_dim = {WIDTH}, combiner = "mean"'
        lines.append(f"options.{name} = {{ {options} }}")
    lines += ["", "[model]", f"hidden_units = {HIDDEN}"]
    path.write_text("\n".join(lines) + "\n")


def import_once(folder: Path, prefix: Path) -> tuple[float, float, int]:
    """Run the import in a process of its own.

    Returns:
        Its seconds, its processor seconds, and its peak of anonymous bytes.
    """
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "widedeep", "import", str(prefix)]
    command += ["--spec", str(folder / "spec.toml"), "--out", str(out)]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, peak


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def read_once(prefix: Path) -> float:
    """Return the seconds that reading every tensor takes, checksums included."""
    start = time.perf_counter()
    bundle = TensorBundle(prefix)
    for name in bundle.tensors:
        bundle.read(name)
    return time.perf_counter() - start


def main() -> None:
    """Write, import, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    rows = int(options.gigabytes * 1e9 / BYTES_PER_ROW / len(COLUMNS))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        prefix = folder / "model.ckpt-1000"
        size = write_checkpoint(prefix, rows)
        write_spec(folder / "spec.toml", rows)
        reading = statistics.median(read_once(prefix) for _ in range(options.times))
        runs = [import_once(folder, prefix) for _ in range(options.times)]
        written = sum(p.stat().st_size for p in (folder / "run").rglob("*") if p.is_file())
    seconds, used, peak = (statistics.median(column) for column in zip(*runs, strict=True))
    tables = rows * len(COLUMNS) * BYTES_PER_ROW
    largest = 4 * rows * WIDTH
    text = (
        "## Importing a TensorFlow checkpoint\n\n"
        f"`python benchmarks/bench_import.py` on {machine()}; medians of {options.times}. The "
        f"import writes a run folder of {written / 1e9:.2f} GB.\n\n"
        "| checkpoint | reading with checksums | import | its processor time "
        "| peak memory less the tables | largest tensor |\n|---:|---:|---:|---:|---:|---:|\n"
        f"| {size / 1e9:.2f} GB | {reading:.1f} s | {seconds:.1f} s | {used:.1f} s "
        f"| {(peak - tables) / 1e6:,.0f} MB | {largest / 1e6:,.0f} MB |\n"
    )
    text += f"\nLoad of the machine meanwhile: {os.getloadavg()[1]:.0f} processes.\n"
    print(text)
    if options.write:
        write_section("import", text)


if __name__ == "__main__":
    main()
