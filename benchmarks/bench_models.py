"""Training speed of the registered towers against the same models of other libraries.

Each model has the same fields, embedding width, hidden layers, batch and optimizer (Adagrad) on
both sides, and each side its own ids. Rows are encoded already. Of the other library two things are
timed: its `fit` without metrics, which is what one calls, and its step alone (forward, loss,
backward, update), without the gathering of rows into batches. It runs in a process and environment
of its own, and the two take turns; the ratios are medians over the turns. With one thread, the
default, times are processor time, so that another program on the machine counts little; with more
they are the clock's.

    python benchmarks/bench_models.py [--quick] [--only deep_fm din] [--ids 100000] [--write]

`make bench-models` makes the environments first. Fields: 26 and 13 numbers; models of histories: 4
fields and the 30 last items; models of several tasks: two labels. 16 numbers an embedding (4 in
ONN, which has one a pair of fields), hidden layers 256, 128.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# Before torch: it says how long torch's threads spin.
import widedeep as wd

# isort: split
import numpy as np
import pyarrow as pa
import torch
from results_file import machine, write_section
from train_models import CARDINALITIES, draw

from widedeep.data.batch import Batch
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.models import registered_towers

HERE = Path(__file__).resolve().parent
NUMBERS = 13
EVENTS = 30
DIM = 16
HIDDEN = (256, 128)
LARGE = sum(CARDINALITIES)


@dataclass(frozen=True)
class Case:
    """A model on both sides.

    Args:
        name: Of the case, which the other side's script knows.
        tower: Its configuration here.
        peer: The other side's script and environment.
        dim: Width of an embedding.
        labels: Number of labels.
        history: Whether it reads a history.
        most: Most ids together that fit into memory on both sides.
    """

    name: str
    tower: dict[str, Any]
    peer: str = "models_deepctr_torch"
    dim: int = DIM
    labels: int = 1
    history: bool = False
    most: int = 10**9


def _case(name: str, *, tower: str = "", **options: Any) -> Case:
    known = {
        key: options.pop(key) for key in ("dim", "labels", "history", "most") if key in options
    }
    return Case(name, {"name": tower or name, **options}, **known)


CASES = [
    _case("mlp"), _case("deep_fm"), _case("xdeepfm", cin_units=(128, 128)), _case("afm"),
    _case("difm"), _case("ifm"), _case("ccpm"), _case("pnn"), _case("mlr"), _case("nfm"),
    _case("onn", dim=4, most=100_000), _case("dcn"), _case("dcn matrix", tower="dcn_v2"),
    _case("dcn_mix"), _case("autoint"), _case("fibinet"), _case("afn"),
    _case("din", history=True, dice=False), _case("dien", history=True),
    _case("shared_bottom", labels=2), _case("esmm", labels=2), _case("mmoe", labels=2),
    _case("ple", labels=2),
]  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows of a case, for both sides."""

    sizes: list[int]
    ids: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any] | None = None
    history: np.ndarray[Any, Any] | None = None

    def save(self, path: Path) -> None:
        """Write them for the other side."""
        arrays = {"ids": self.ids, "numbers": self.numbers, "labels": self.labels}
        if self.history is not None and self.lengths is not None:
            arrays |= {"history": self.history, "lengths": self.lengths}
        np.savez(path, **arrays)

    def table(self) -> pa.Table:
        """Return them as columns."""
        columns: dict[str, Any] = {f"c{i}": self.ids[:, i] for i in range(len(self.sizes))}
        columns |= {f"i{i}": self.numbers[:, i] for i in range(NUMBERS)}
        columns |= {f"y{i}": self.labels[:, i].astype(np.int8) for i in range(self.labels.shape[1])}
        if self.history is not None and self.lengths is not None:
            rows = zip(self.history, self.lengths, strict=True)
            columns["events"] = pa.array([list(row[:n]) for row, n in rows], pa.list_(pa.int64()))
        return pa.table(columns)


def make_rows(case: Case, ids: int, count: int) -> Rows:
    """Draw rows by a power law; ids 2 and up, which leaves 0 to a padding."""
    rng = np.random.default_rng(0)
    if case.history:
        sizes = [ids // 4] * 4
    else:
        scale = ids / LARGE
        sizes = [max(8, int(size * scale)) for size in CARDINALITIES]
    columns = [draw(rng, size - 2, count, "zipf") + 2 for size in sizes]
    rows = Rows(
        sizes,
        np.stack(columns, axis=1),
        rng.random((count, NUMBERS), np.float32),
        (rng.random((count, case.labels)) < 0.3).astype(np.float32),
    )
    if not case.history:
        return rows
    events = draw(rng, sizes[-1] - 2, count * EVENTS, "zipf").reshape(count, EVENTS) + 2
    lengths = rng.integers(1, EVENTS + 1, count)
    events[np.arange(EVENTS) >= lengths[:, None]] = 0
    return Rows(rows.sizes, rows.ids, rows.numbers, rows.labels, lengths, events)


class Ours:
    """A tower, its trainer and its encoded batches."""

    def __init__(self, case: Case, rows: Rows, batch: int, threads: int) -> None:
        fields = [
            wd.categorical(f"c{i}", num_buckets=size) for i, size in enumerate(rows.sizes)
        ]  # fmt: skip
        if case.history:
            last = f"c{len(rows.sizes) - 1}"
            fields.append(
                wd.categorical(
                    "events", num_buckets=rows.sizes[-1], table=last, combiner=None, maxlen=EVENTS
                )
            )
        numbers = wd.numeric(*(f"i{i}" for i in range(NUMBERS)), transform="none")
        labels = [f"y{i}" for i in range(case.labels)]
        wide = [f"c{i}" for i in range(len(rows.sizes))]
        spec = wd.FeatureSpec(
            label=labels if len(labels) > 1 else labels[0], features=[*fields, *numbers], wide=wide
        )
        table = rows.table()
        known = {field.name for field in registered_fields(case.tower["name"])}
        hidden = {"hidden_units": HIDDEN} if "hidden_units" in known else {}
        model = wd.WideDeep(
            wd.fit_schema(spec, table), embedding_dim=case.dim, deep={**hidden, **case.tower}
        )
        adagrad = wd.Adagrad(lr=0.05)
        self.trainer = wd.Trainer(
            model, batch_size=batch, threads=threads, progress=False,
            wide=adagrad, deep=adagrad, dense=adagrad,
        )  # fmt: skip
        self.batches = list(encoded(self.trainer, table, batch))
        self.place = 0

    def train(self, batches: int) -> float:
        """Learn; return the seconds."""
        clock = time.process_time if self.trainer.threads == 1 else time.perf_counter
        start = clock()
        for _ in range(batches):
            self.trainer.step(self.batches[self.place % len(self.batches)])
            self.place += 1
        return clock() - start


def registered_fields(tower: str) -> tuple[Any, ...]:
    """Return the fields of a tower's configuration."""
    return tuple(registered_towers()[tower].__dataclass_fields__.values())


def encoded(trainer: wd.Trainer, table: pa.Table, batch: int) -> Iterator[Batch]:
    """Encode a table's rows."""
    reader = trainer.evaluator
    with reader.open(table, "rows") as source:
        plan = EpochPlan(source, batch_size=batch, seed=0, epoch=0, pool_rows=len(table))
        yield from BatchReader(source, reader.encoder(), plan)


class Peer:
    """The other library's process."""

    def __init__(self, script: str, threads: int) -> None:
        python = HERE / "peers" / f".venv-{script}" / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"no environment for {script}; run: make peers-{script}")
        waits = {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [str(python), str(HERE / "peers" / f"{script}.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env={**os.environ, **waits},
        )  # fmt: skip

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question; return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"ended with {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Close its input, which ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Found:
    """What the turns of a case gave."""

    ours: list[float] = field(default_factory=list)  # seconds a row
    fits: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def cells(self) -> list[str]:
        """Our rows a second, their fit's, the ratio, and the ratio to their step alone."""
        if self.error:
            return ["-", "-", self.error, "-"]
        rates = [f"{1 / median(seconds):,.0f}" for seconds in (self.ours, self.fits)]
        ratios = [
            median(b / a for a, b in zip(self.ours, theirs, strict=True))
            for theirs in (self.fits, self.steps)
        ]
        return [*rates, *(f"{ratio:.1f}" for ratio in ratios)]


def measure(case: Case, ids: int, peer: Peer, asked: argparse.Namespace) -> Found:
    """Take turns with the other side; ours does more steps a turn, since they are short."""
    if ids > case.most:
        return Found(error="too large for memory there")
    rows = make_rows(case, ids, asked.batch * 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        rows.save(path)
        made = peer.ask(
            make=case.name, data=str(path), sizes=rows.sizes, batch=asked.batch, dim=case.dim,
            threads=asked.threads,
        )  # fmt: skip
    if "error" in made:
        return Found(error=made["error"][:60])
    ours = Ours(case, rows, asked.batch, asked.threads)
    ours.train(2)
    found = Found()
    warm = peer.ask(train=1)
    for _ in range(asked.turns):
        fit, step = peer.ask(train=1, fit=True), peer.ask(train=1)
        for answer in (warm, fit, step):
            if "error" in answer:
                return Found(error=answer["error"][:60])
        found.fits.append(fit["seconds"] / asked.batch)
        found.steps.append(step["seconds"] / asked.batch)
        found.ours.append(ours.train(asked.steps) / (asked.steps * asked.batch))
    return found


def section(lines: list[str], asked: argparse.Namespace, load: float) -> str:
    """Return the section's Markdown."""
    clock = "processor time" if asked.threads == 1 else "the clock"
    return "\n".join(
        [
            "## Models: training against the same model elsewhere",
            "",
            f"`make bench-models` on {machine()}, Python {platform.python_version()}, torch "
            f"{torch.__version__}; DeepCTR-Torch 0.3.0. Encoded rows, batches of {asked.batch:,}, "
            f"{asked.threads} thread(s), Adagrad on both sides; rows a second of {clock}, medians "
            f"of {asked.turns} interleaved turns. Other programs ran beside: the machine's load "
            f"was {load:.1f} on {os.cpu_count()} processors when it began.",
            "",
            "| model | ids | rows/s | their fit, rows/s | ratio | ratio to their step |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few turns, small tables")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--ids", nargs="+", type=int, help="rows of all tables together")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--steps", type=int, default=3, help="of ours, a turn")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no case after these")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    asked = parser.parse_args()
    asked.ids = asked.ids or ([100_000] if asked.quick else [100_000, 5_600_000])
    asked.turns = asked.turns or (2 if asked.quick else 5)
    return asked


def main() -> None:
    """Measure, print, and write the section if asked to."""
    asked = parse()
    torch.set_num_threads(asked.threads)
    torch.set_flush_denormal(True)
    load = os.getloadavg()[0]
    chosen = [case for case in CASES if asked.only is None or case.name in asked.only]
    peers = {script: Peer(script, asked.threads) for script in {case.peer for case in chosen}}
    lines, stop = [], time.perf_counter() + 60 * asked.minutes
    for ids, case in itertools.product(asked.ids, chosen):
        if case.tower["name"] not in registered_towers():
            continue
        late = time.perf_counter() > stop
        found = Found(error="not measured") if late else measure(case, ids, peers[case.peer], asked)
        lines.append(f"| {case.name} | {ids:,} | {' | '.join(found.cells)} |")
        print(lines[-1], flush=True)
    for peer in peers.values():
        peer.end()
    if asked.write:
        write_section("models:training", section(lines, asked, load))


if __name__ == "__main__":
    main()
