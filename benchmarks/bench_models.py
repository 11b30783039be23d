"""Training speed of the registered towers against the same models of other libraries.

Each model has the same fields, embedding width, hidden layers, batch and optimizer (Adagrad) on
both sides, and each side its own ids. Rows are encoded already. Of the other library two things are
timed: its `fit` without metrics, which is what one calls, and its step alone (forward, loss,
backward, update), without the gathering of rows into batches. It runs in a process and environment
of its own, and the two take turns; the ratios are medians over the turns. With one thread times are
processor time, so that another program on the machine counts little; with more they are the
clock's.

"Products" is a step's matrix products and nothing else: the operations that torch counts in the
model's forward and backward pass (histories of their mean length, without padding), at the rate of
torch's product of a batch with 429 x 256 weights, forward and backward, in the same turns. Who
multiplies no faster than that can be as many times faster than their `fit` as "most" says, with
everything else for nothing.

    python benchmarks/bench_models.py [--quick] [--models deep_fm din] [--ids 100000] [--threads 1]
                                      [--write]

`make bench-models` makes the environments first: all models at 100,000 ids with one and two
threads, some at 5.6 million. `--write` replaces the measured lines of RESULTS.md and keeps the
others, so that a run may be cut into several by `--models`. Fields: 26 and 13 numbers; models of
histories: 4 fields and the 30 last items; models of several tasks: two labels. 16 numbers an
embedding (4 in ONN, which has one a pair of fields), hidden layers 256, 128.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
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
from results_file import RESULTS, machine, write_section
from torch.utils.flop_counter import FlopCounterMode
from train_models import CARDINALITIES, draw

from widedeep.data.batch import Batch
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.models import DeepInput, registered_towers
from widedeep.models.tower import SequenceInput

HERE = Path(__file__).resolve().parent
NUMBERS = 13
EVENTS = 30
DIM = 16
HIDDEN = (256, 128)
LARGE = sum(CARDINALITIES)
SMALL_IDS, LARGE_IDS = 100_000, 5_600_000
SECTION = "models:training"
# Measured at many ids too, where the other side moves every row of every table
AT_MANY_IDS = (
    *("mlp", "deep_fm", "pnn", "nfm", "dcn", "autoint", "ccpm", "din", "dien", "mmoe", "ple"),
    *("finalmlp", "dlrm"),
)


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
    names = ("dim", "labels", "history", "most", "peer")
    known = {key: options.pop(key) for key in names if key in options}
    return Case(name, {"name": tower or name, **options}, **known)


CASES = [
    _case("mlp"), _case("deep_fm"), _case("xdeepfm", cin_units=(128, 128)), _case("afm"),
    _case("difm"), _case("ifm"), _case("ccpm"), _case("pnn"), _case("mlr"), _case("nfm"),
    _case("onn", dim=4, most=100_000), _case("dcn"), _case("dcn matrix", tower="dcn_v2"),
    _case("dcn_mix"), _case("autoint"), _case("fibinet"), _case("afn"),
    _case("din", history=True, dice=False), _case("dien", history=True),
    _case("shared_bottom", labels=2), _case("esmm", labels=2), _case("mmoe", labels=2),
    _case("ple", labels=2),
    _case("fuxi dcn_v2", tower="dcn_v2", peer="models_fuxictr"),
    _case("fuxi dcn_mix", tower="dcn_mix", peer="models_fuxictr"),
    _case("finalmlp", peer="models_fuxictr"), _case("dlrm", peer="models_fuxictr"),
]  # fmt: skip
PEERS = {"models_deepctr_torch": "DeepCTR-Torch", "models_fuxictr": "FuxiCTR"}


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
        with Stopwatch(self.trainer.threads) as watch:
            for _ in range(batches):
                self.trainer.step(self.batches[self.place % len(self.batches)])
                self.place += 1
        return watch.seconds

    def operations(self, rows: int = 32) -> float:
        """Return how many operations the products of a step have, an example."""
        model = self.trainer.model
        if not model.towers:
            return 0.0
        inputs = model.gather(self.batches[0], threads=1)
        concat_BX = inputs.concat_BX[:rows].clone().requires_grad_()
        sequences = {}
        for name, sequence in inputs.sequences.items():
            mean = round(float(sequence.lengths_B.float().mean()))
            values_ND = torch.randn(rows * mean, sequence.values_ND.shape[1], requires_grad=True)
            sequences[name] = SequenceInput(values_ND, torch.arange(rows + 1) * mean)
        leaf = DeepInput(
            concat_BX=concat_BX, layout=inputs.layout, sequences=sequences,
            dense_BK=concat_BX[:, model.gathered.dense],
        )  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            logits = model.member_logits(leaf)
            assert logits is not None
            logits.sum().backward()
        return counter.get_total_flops() / rows


def registered_fields(tower: str) -> tuple[Any, ...]:
    """Return the fields of a tower's configuration."""
    return tuple(registered_towers()[tower].__dataclass_fields__.values())


def encoded(trainer: wd.Trainer, table: pa.Table, batch: int) -> Iterator[Batch]:
    """Encode a table's rows."""
    reader = trainer.evaluator
    with reader.open(table, "rows") as source:
        plan = EpochPlan(source, batch_size=batch, seed=0, epoch=0, pool_rows=len(table))
        yield from BatchReader(source, reader.encoder(), plan)


class Stopwatch:
    """Seconds of processor time, or of the clock where several threads work."""

    def __init__(self, threads: int) -> None:
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self.seconds = -self.clock()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += self.clock()


def seconds_of_operation(batch: int, threads: int) -> float:
    """Return the seconds of one operation in torch's products, forward and backward."""
    inputs, weights = torch.randn(batch, 429), torch.randn(256, 429)
    grads = torch.randn(batch, 256)
    for _ in range(2):  # the first one warms up
        with Stopwatch(threads) as watch:
            for _ in range(3):
                inputs @ weights.t(), grads.t() @ inputs, grads @ weights
    return watch.seconds / (3 * 6 * weights.numel() * batch)


class Peer:
    """The other library's process; where it has no environment, every answer says so."""

    def __init__(self, script: str, threads: int) -> None:
        self.script = script
        self.process: subprocess.Popen[str] | None = None
        python = HERE / "peers" / f".venv-{script}" / "bin" / "python"
        if not python.exists():
            return
        waits = {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [str(python), str(HERE / "peers" / f"{script}.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env={**os.environ, **waits},
        )  # fmt: skip

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question; return the answer."""
        if self.process is None:
            return {"error": f"no environment; run: make peers-{self.script}"}
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
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Turns:
    """Seconds an example of a case's turns."""

    ours: list[float] = field(default_factory=list)
    fits: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def cells(self) -> list[str]:
        """Rows a second here and there, the ratios, rows a second of products, most possible."""
        if self.error:
            return ["-", "-", self.error, "-", "-", "-"]

        def rate(seconds: list[float]) -> str:
            return f"{1 / median(seconds):,.0f}"

        def ratio(theirs: list[float], ours: list[float]) -> str:
            return f"{median(b / a for a, b in zip(ours, theirs, strict=True)):.1f}"

        return [
            rate(self.ours), rate(self.fits), ratio(self.fits, self.ours),
            ratio(self.steps, self.ours), rate(self.products), ratio(self.fits, self.products),
        ]  # fmt: skip


def measure(case: Case, ids: int, threads: int, peer: Peer, options: argparse.Namespace) -> Turns:
    """Take turns with the other side; ours does more steps a turn, since they are short."""
    if ids > case.most:
        return Turns(error="too large for memory there")
    batch = options.batch
    torch.set_num_threads(threads)
    rows = make_rows(case, ids, batch * 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        rows.save(path)
        made = peer.ask(
            make=case.name, data=str(path), sizes=rows.sizes, batch=batch, dim=case.dim,
            threads=threads,
        )  # fmt: skip
    ours = Ours(case, rows, batch, threads)
    operations = ours.operations()
    ours.train(2)
    if "error" in made:
        return Turns(error=made["error"][:60])
    turns = Turns()
    warm = peer.ask(train=1)
    for _ in range(options.turns):
        fit, step = peer.ask(train=1, fit=True), peer.ask(train=1)
        for answer in (warm, fit, step):
            if "error" in answer:
                return Turns(error=answer["error"][:60])
        turns.fits.append(fit["seconds"] / batch)
        turns.steps.append(step["seconds"] / batch)
        turns.ours.append(ours.train(options.steps) / (options.steps * batch))
        turns.products.append(operations * seconds_of_operation(batch, threads))
    return turns


COLUMNS = (
    *("model", "against", "ids", "threads", "rows/s", "their fit, rows/s", "ratio"),
    *("ratio to their step", "products, rows/s", "most"),
)
Key = tuple[str, ...]  # a line's first four cells


def line_of(cells: list[str]) -> str:
    """Return a line of the table."""
    return f"| {' | '.join(cells)} |"


def earlier_lines() -> dict[Key, str]:
    """Return the lines that stand in RESULTS.md, if they have these columns."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    section = re.search(rf"<!-- {SECTION} -->\n(.*?)<!-- /{SECTION} -->", text, re.S)
    if section is None or line_of(list(COLUMNS)) not in section[1]:
        return {}
    rows = [line.strip("| ").split(" | ") for line in section[1].splitlines() if "|" in line]
    return {tuple(row[:4]): line_of(row) for row in rows[2:] if len(row) == len(COLUMNS)}


def section(lines: dict[Key, str], options: argparse.Namespace, load: float) -> str:
    """Return the section's Markdown."""
    order = {case.name: i for i, case in enumerate(CASES)}
    numbers = {key: (int(key[2].replace(",", "")), int(key[3])) for key in lines}
    keys = sorted(lines, key=lambda key: (*numbers[key], order.get(key[0], 0)))
    reached = []
    for peer, ids, goal in ((0, SMALL_IDS, 5.0), (0, LARGE_IDS, 30.0), (1, SMALL_IDS, 3.0)):
        cells = [
            lines[key].strip("| ").split(" | ")
            for key in keys
            if key[1] == list(PEERS.values())[peer] and numbers[key] == (ids, 1)
        ]
        known = [row for row in cells if row[4] != "-"]
        met = [row[0] for row in known if float(row[6]) >= goal]
        most = sum(float(row[9]) >= goal for row in known)
        reached.append(
            f"{goal:.0f} times {list(PEERS.values())[peer]} at {ids:,} ids, one thread: "
            f"{len(met)} of {len(known)} ({', '.join(met) or 'none'}); {most} could by their "
            "products."
        )
    return "\n".join(
        [
            "## Models: training against the same model elsewhere",
            "",
            f"`make bench-models` on {machine()}, Python {platform.python_version()}, torch "
            f"{torch.__version__}; DeepCTR-Torch 0.3.0, layers and loop of FuxiCTR 2.3.10. Encoded "
            f"rows, batches of {options.batch:,}, Adagrad on both sides, medians of "
            f"{options.turns} interleaved turns; processor time with one thread, the clock with "
            "two. Products: a step's matrix products alone at torch's rate; most: the ratio that "
            "they leave room for. The machine's load was "
            f"{load:.1f} on {os.cpu_count()} processors when the last run began.",
            "",
            line_of(list(COLUMNS)),
            "|" + "---|" * len(COLUMNS),
            *(lines[key] for key in keys),
            "",
            "Aimed at, and reached:",
            "",
            *(f"- {text}" for text in reached),
        ]
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("--quick", action="store_true", help="few turns, small tables, one thread")
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument("--ids", nargs="+", type=int, help="rows of all tables together")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--steps", type=int, default=3, help="of ours, a turn")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no case after these")
    parser.add_argument("--write", action="store_true", help="put the lines into RESULTS.md")
    options = parser.parse_args()
    options.turns = options.turns or (2 if options.quick else 4)
    return options


def plan(options: argparse.Namespace) -> list[tuple[int, int, Case]]:
    """Return ids, threads and model of each measurement."""
    chosen = [case for case in CASES if case.name in options.models]
    if options.ids or options.threads or options.quick:
        return list(itertools.product(options.ids or [SMALL_IDS], options.threads or [1], chosen))
    many = [case for case in chosen if case.name in AT_MANY_IDS]
    return [
        *itertools.product([SMALL_IDS], [1, 2], chosen),
        *itertools.product([LARGE_IDS], [1], many),
    ]


def main() -> None:
    """Measure, print, and write the section if asked to."""
    options = parse()
    torch.set_flush_denormal(True)
    load = os.getloadavg()[0]
    work = plan(options)
    lines = earlier_lines() if options.write else {}
    peer, stop = None, time.perf_counter() + 60 * options.minutes
    print(line_of(list(COLUMNS)), flush=True)
    for ids, threads, case in work:
        if time.perf_counter() > stop:
            print(f"{case.name}, {ids:,} ids, {threads} thread(s): not begun", flush=True)
            continue
        if peer is None or peer.script != case.peer:
            if peer is not None:
                peer.end()
            peer = Peer(case.peer, max(threads for _, threads, _ in work))
            if options.write and peer.process is None:
                raise SystemExit(f"no environment for {case.peer}; run: make peers-{case.peer}")
        turns = measure(case, ids, threads, peer, options)
        key = (case.name, PEERS[case.peer], f"{ids:,}", str(threads))
        lines[key] = line_of([*key, *turns.cells])
        print(lines[key], flush=True)
        if options.write:
            write_section(SECTION, section(lines, options, load))
    if peer is not None:
        peer.end()


if __name__ == "__main__":
    main()
