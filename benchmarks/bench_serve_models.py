"""Serving of other towers than the standard one: arithmetic and whole servers, by CPU a request.

Each model has the features of bench_rank.py (26 + 13, 8 crosses of user and item; for DIN a history
of 50 of the items' values too), embeddings of 16 and hidden layers 256, 128; MMoE has two labels.
A request names 200 candidates by id. Three things are told of each:

- arithmetic: ready-made ids to logits in ONNX Runtime, against the query's sums, the crosses'
  look-ups and the candidates' logits here; one thread each, median of processor time in turns;
- whole servers: uvicorn with a handler around ONNX Runtime, against `widedeep serve`, processor
  time a request, median over rounds in which all servers take turns;
- this server's processor time to that of the standard tower's server in the same round.

    python benchmarks/bench_serve_models.py [--models din finalmlp] [--quick]
                                            [--python PEERS] [--write]

PEERS is as in bench_serve.py; without it, the whole servers of ONNX Runtime are left out. With
--write the table goes into RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import bench_rank
import bench_serve
import torch
from results_file import machine, write_section

from widedeep import _native
from widedeep.cli.bench import started
from widedeep.serving.load import Target, run_load

EVENTS = 50
STANDARD = "standard tower"
SECTION = "serving:models"


@dataclass(frozen=True)
class Case:
    """A tower to serve; see :class:`bench_rank.Bench`."""

    name: str
    word: str  # Its name on the command line
    tower: dict[str, Any] | None
    options: dict[str, int] = field(default_factory=dict)


CASES = [
    Case(STANDARD, "mlp", None),
    Case("DeepFM", "deep_fm", {"name": "deep_fm"}),
    Case("DCN-v2, rank 64", "dcn_v2_low_rank", {"name": "dcn_v2", "rank": 64}),
    Case("DCN-v2, full rank", "dcn_v2", {"name": "dcn_v2"}),
    Case("FinalMLP", "finalmlp", {"name": "finalmlp"}),
    Case("MMoE, 4 experts, 2 tasks", "mmoe", {"name": "mmoe"}, {"labels": 2}),
    Case("DIN, history of 50", "din", {"name": "din"}, {"events": EVENTS}),
]


@dataclass(frozen=True)
class Row:
    """Processor time of a model, in milliseconds a request, by who spends it."""

    arithmetic_onnx: float
    arithmetic: float
    server_onnx: float  # NaN where the peers are not there
    server: float
    to_onnx: float  # The other server's to this one's, in the same round
    to_standard: float  # This one's to the standard tower's, in the same round

    def cells(self) -> str:
        """Return it as cells of a table."""
        ratio = self.arithmetic_onnx / self.arithmetic
        arithmetic = f"{self.arithmetic_onnx:.3f} | {self.arithmetic:.3f} | {ratio:.1f}x"
        servers = f"{self.server_onnx:.3f} | {self.server:.3f}"
        ratios = f"{self.to_onnx:.1f}x | {self.to_standard:.2f}x"
        return f"{arithmetic} | {servers} | {ratios}"


def cpu_times(engines: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median processor time of each engine in milliseconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, run in engines.items():
            run()  # with its own weights in the caches, as under load
            start = time.process_time()
            for _ in range(3):
                run()
            times[name].append((time.process_time() - start) / 3)
    return {name: 1e3 * median(own) for name, own in times.items()}


def arithmetic(bench: bench_rank.Bench, repeats: int) -> dict[str, float]:
    """Time both engines' arithmetic, which agree on the scores."""
    ids = bench.ids(200)
    session, feed, ranker = bench.session(ids), bench.feed(ids), bench.ranker()
    bench_rank.check_scores(bench.query, ids, ranker, session.run(["logits"], feed)[0])
    engines: dict[str, Callable[[], object]] = {
        "onnx": lambda: session.run(["logits"], feed),
        "widedeep": bench_rank.arithmetic_of(ranker, bench.query, ids),
    }
    return cpu_times(engines, repeats)


def servers(
    benches: dict[str, bench_rank.Bench], folders: dict[str, Path], python: Path, quick: bool
) -> dict[str, dict[str, list[float]]]:
    """Return processor times a request of this and the other server, by model and round.

    The standard tower's server answers all the while; of the others two at a time.
    """
    found: dict[str, dict[str, list[float]]] = {}
    asked = {name: bench_serve.bodies(own, 200)["/v1/rank"] for name, own in benches.items()}
    words = {name: bench_serve.serve_words(name, folders[name]) for name in benches}
    with started(words[STANDARD]) as standard:
        for name in benches:
            with contextlib.ExitStack() as stack:
                targets = {"standard": standard}
                if name != STANDARD:
                    targets["widedeep"] = stack.enter_context(started(words[name]))
                if python.exists():
                    peer = bench_serve.uvicorn_peer(python, folders[name])
                    targets["onnx"] = stack.enter_context(peer)
                    pair = {"widedeep": targets.get("widedeep", standard), "onnx": targets["onnx"]}
                    bench_serve.agree(pair, {"/v1/rank": asked[name]})
                requests = {each: asked[name] for each in targets} | {"standard": asked[STANDARD]}
                found[name] = take_turns(targets, requests, quick)
    return found


def take_turns(
    targets: dict[str, Target], requests: dict[str, list[bytes]], quick: bool
) -> dict[str, list[float]]:
    """Return the processor times a request of servers, in milliseconds by round."""
    found: dict[str, list[float]] = {each: [] for each in targets}
    rounds, seconds = (1, 0.5) if quick else (7, 1.0)
    for _ in range(rounds):
        for each, target in targets.items():
            report = run_load(target, requests[each], connections=2, seconds=seconds)
            if report.failures:
                raise SystemExit(f"{each}: {report.failures}")
            found[each].append(report.cpu_ms)
    return found


def measured(cases: list[Case], python: Path, quick: bool, place: Path) -> dict[str, Row]:
    """Measure the models, the standard tower first."""
    benches, folders = {}, {}
    for case in cases:
        folders[case.name] = place / case.name
        benches[case.name] = bench_serve.prepare(
            case.name, folders[case.name], case.tower, **case.options
        )
    alone = {name: arithmetic(bench, 5 if quick else 41) for name, bench in benches.items()}
    rows = {}
    for name, by_server in servers(benches, folders, python, quick).items():
        own = by_server.get("widedeep", by_server["standard"])
        other = by_server.get("onnx", [float("nan")] * len(own))
        rows[name] = Row(
            alone[name]["onnx"],
            alone[name]["widedeep"],
            median(other),
            median(own),
            median(a / b for a, b in zip(other, own, strict=True)),
            median(a / b for a, b in zip(own, by_server["standard"], strict=True)),
        )
    return rows


def table(rows: dict[str, Row]) -> str:
    """Return the table."""
    lines = [
        "| model S, 200 candidates | arithmetic: ONNX Runtime, CPU ms | widedeep | ratio |"
        " server: uvicorn + ONNX Runtime, CPU ms | widedeep | ratio | to the standard tower's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {row.cells()} |" for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = [case.word for case in CASES if case.tower is not None]
    parser.add_argument("--models", nargs="+", choices=words, default=words)
    parser.add_argument("--python", type=Path, default=bench_serve.PYTHON)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    cases = [case for case in CASES if case.tower is None or case.word in arguments.models]
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as place:
        rows = measured(cases, arguments.python, arguments.quick, Path(place))
    found = table(rows)
    print(found)
    if arguments.write:
        about = (
            f"`benchmarks/bench_serve_models.py` on {machine()}, {_native.isa()}; load of the "
            f"machine before: {load:.1f}. Embeddings of 16, hidden layers 256, 128. Aimed at: "
            "3x, 5x, and no more than 4x the standard tower's."
        )
        write_section(SECTION, f"## Serving of other towers\n\n{about}\n\n{found}")


if __name__ == "__main__":
    main()
