"""Prints which files and functions of src/widedeep run in one steady step, batch or request.

    python tools/trace_step.py            # a batch that is in memory -> updated weights
    python tools/trace_step.py batch      # from Parquet to updated weights
    python tools/trace_step.py rank       # POST /v1/rank, from the ASGI application to the reply
    python tools/trace_step.py --functions

A step is traced after a few others, so that what is made once does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "widedeep"
WARM_STEPS = 5  # steps before the traced one
ROWS, BATCH_SIZE = 4_000, 100

Calls = Counter[CodeType]


@contextmanager
def traced_calls() -> Iterator[Calls]:
    """Count the calls of functions of the package, in every thread that starts inside."""
    calls: Calls = Counter()
    prefix = f"{PACKAGE}/"

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(prefix):
            calls[frame.f_code] += 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def example_data(path: Path) -> None:
    """Write rows of one number, a few categories and a label."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"age": rng.integers(18, 80, ROWS)}
    for name, size in (("job", 12), ("city", 300), ("device", 4)):
        columns[name] = [f"{name} {value}" for value in rng.integers(0, size, ROWS)]
    columns["click"] = rng.integers(0, 2, ROWS)
    pq.write_table(pa.table(columns), path, row_group_size=500)


def example_trainer(path: Path, **options: Any) -> Any:
    """Return a trainer of the default model: a wide part with a cross, embeddings, an MLP."""
    import widedeep as wd

    spec = wd.FeatureSpec(
        label="click",
        features=[
            wd.numeric("age"),
            *wd.categorical("job", "city", "device"),
            wd.crossed("job", "device"),
        ],
    )
    model = wd.WideDeep(wd.fit_schema(spec, path), hidden_units=[32, 16])
    return wd.Trainer(model, batch_size=BATCH_SIZE, progress=False, **options)


def trace_training_step() -> Calls:
    """Trace one call of the training step: group, gather, forward, backward, reduce, apply."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.parquet")
        example_data(path)
        trainer = example_trainer(path)
        step = trainer.step
        with trainer.evaluator.open(str(path), "training data") as source:
            batches = trainer.evaluator.batches(source, targets=True, batch_size=BATCH_SIZE)
            for number in range(WARM_STEPS):
                step(next(batches), step=number + 1)
            batch = next(batches)
            batches.close()
        with traced_calls() as calls:
            step(batch, step=WARM_STEPS + 1)
    return calls


def trace_batch() -> Calls:
    """Trace a run between two steps: reading, encoding and learning a batch from Parquet."""
    calls: Calls = Counter()

    class StepCounter:
        """Starts the trace at one step and ends it a pool of row groups later."""

        def on_step(self, metrics: dict[str, Any]) -> None:
            if metrics["step"] == WARM_STEPS:
                before.update(calls)
            elif metrics["step"] == WARM_STEPS + ROWS // BATCH_SIZE // 2:
                after.update(calls)

    before: Calls = Counter()
    after: Calls = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.parquet")
        example_data(path)
        trainer = example_trainer(path, callbacks=[StepCounter()], pool_rows=1000)
        with traced_calls() as calls:
            trainer.fit(str(path))
    return after - before


def trace_ranking() -> Calls:
    """Trace one `POST /v1/rank` of candidates by id through the ASGI application."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import widedeep as wd
    from widedeep.serving.http.app import App
    from widedeep.serving.http.service import Models, Service, Settings
    from widedeep.serving.registry import Registry

    body = json.dumps({"user": {"age": 40, "job": "job 1"}, "candidates": [1, 2, 3]}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/rank", "query_string": b""}
    scope["headers"] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 200) == 200, message

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.parquet")
        example_data(path)
        spec = wd.FeatureSpec(
            label="click",
            features=[wd.numeric("age"), *wd.categorical("job", "city", "device")],
            item=["city", "device"],
        )
        trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, path), hidden_units=[16]))
        trainer.export(Path(folder, "models", "1"))
        items = {"item": [1, 2, 3], "city": ["city 1"] * 3, "device": ["device 1"] * 3}
        pq.write_table(pa.table(items), Path(folder, "items.parquet"))
        with Registry(
            Path(folder, "models"), items=Path(folder, "items.parquet"), item_id="item"
        ) as registry:
            assert registry.wait_ready(60)
            models = Models({"apps": registry})
            app = App(Service(models=models, settings=Settings(request_log="none")))
            for _ in range(WARM_STEPS):
                asyncio.run(app(dict(scope), receive, send))
            with traced_calls() as calls:
                asyncio.run(app(dict(scope), receive, send))
    return calls


def report(calls: Calls, *, functions: bool) -> str:
    """Return one line per file: its calls, and its functions if they are asked for."""
    by_file: dict[str, Counter[str]] = {}
    for code, count in calls.items():
        file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
        by_file.setdefault(file, Counter())[code.co_qualname] += count
    lines = []
    for file in sorted(by_file):
        lines.append(f"{file}  ({len(by_file[file])} functions, {by_file[file].total()} calls)")
        if functions:
            lines += [f"    {name} x {count}" for name, count in sorted(by_file[file].items())]
    n_functions = sum(map(len, by_file.values()))
    lines.append(f"{len(by_file)} files, {n_functions} functions, {calls.total()} calls")
    return "\n".join(lines)


TRACES: dict[str, Callable[[], Calls]] = {
    "step": trace_training_step,
    "batch": trace_batch,
    "rank": trace_ranking,
}


def main() -> None:
    """Print the trace that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="step", choices=TRACES)
    parser.add_argument("--functions", action="store_true", help="list functions too")
    options = parser.parse_args()
    print(report(TRACES[options.what](), functions=options.functions))


if __name__ == "__main__":
    main()
