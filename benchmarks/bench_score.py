"""Scoring speed of a bundle against torch and ONNX Runtime, in one run.

A request of 200 candidates with 40 features (10,000 values each) and 13 numbers. The engines get
the same encoded batch and the same weights, agree on the logits, take turns on the same threads,
and the median and the best of the repeats are printed. The last lines add the way from a request's
dicts to probabilities.

    python benchmarks/bench_score.py [--rows 200] [--repeats 200] [--threads 1]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import widedeep as wd
from widedeep import _native
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform

FEATURES = 40
VALUES = 10_000
NUMBERS = 13
MODELS = {
    "256-128, embeddings of 16": ((256, 128), 16),
    "1024-512-256, embeddings of 32": ((1024, 512, 256), 32),
}


def make_schema() -> wd.Schema:
    """Identity categories, half of them the item's, and numbers taken as they are."""
    from widedeep.schema import ColumnType, NumericFit

    fields = [f"c{i}" for i in range(FEATURES)]
    numbers = [f"n{i}" for i in range(NUMBERS)]
    spec = wd.FeatureSpec(
        features=[
            *wd.numeric(*numbers, transform="none"),
            *wd.categorical(*fields, num_buckets=VALUES),
        ],
        item=fields[FEATURES // 2 :],
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
    return wd.Schema(
        spec=spec,
        columns={
            **{name: ColumnType(kind="int") for name in fields},
            **{name: ColumnType(kind="float") for name in numbers},
        },
        vocabularies={},
        boundaries={},
        numerics=dict.fromkeys(numbers, fit),
    )


def make_rows(n_rows: int) -> list[dict[str, Any]]:
    """A request: each candidate with all its values."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, VALUES, (n_rows, FEATURES)).tolist()
    numbers = rng.random((n_rows, NUMBERS)).tolist()
    return [
        {f"c{i}": value for i, value in enumerate(row)}
        | {f"n{i}": value for i, value in enumerate(dense)}
        for row, dense in zip(values, numbers, strict=True)
    ]


class PlainModel(nn.Module):
    """The same model as one torch module over one row of ids an example."""

    def __init__(self, model: wd.WideDeep) -> None:
        super().__init__()
        (table,) = model.deep_tables.values()
        assert model.wide_table is not None
        self.embedding = nn.Embedding.from_pretrained(table.weight.detach().clone())
        self.wide = nn.Embedding.from_pretrained(model.wide_table.weight.detach().clone())
        mlp: Any = model.towers["mlp"]
        self.layers = nn.ModuleList(mlp.layers)
        self.output = model.outputs["mlp"]
        self.bias = model.bias

    def forward(self, rows_BF: Tensor, dense_BK: Tensor) -> Tensor:
        """Return the logits, (B, 1)."""
        hidden = torch.cat([self.embedding(rows_BF).flatten(1), dense_BK], dim=1)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        logits: Tensor = self.wide(rows_BF).sum(dim=1) + self.output(hidden) + self.bias
        return logits


def session_of(
    plain: PlainModel, arguments: tuple[Tensor, Tensor], threads: int
) -> onnxruntime.InferenceSession:
    """The torch module in ONNX Runtime."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(  # type: ignore[arg-type]
            plain,
            arguments,
            buffer,
            input_names=["rows_BF", "dense_BK"],
            output_names=["logits"],
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        buffer.getvalue(), options, providers=["CPUExecutionProvider"]
    )


def timed(engines: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Return the median and the best time of each engine in milliseconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(repeats + 5):
        for name, run in engines.items():
            start = time.perf_counter()
            run()
            if turn >= 5:
                times[name].append(time.perf_counter() - start)
    return {name: (1e3 * median(took), 1e3 * min(took)) for name, took in times.items()}


def check_agreement(engines: dict[str, Callable[[], object]]) -> None:
    """Stop if an engine computes something else."""
    found: dict[str, NDArray[np.float32]] = {k: np.asarray(run()) for k, run in engines.items()}
    for name, logits in found.items():
        worst = float(np.abs(logits - found["widedeep"]).max())
        if worst > 1e-5:
            raise SystemExit(f"{name} differs from widedeep by {worst:.1e}")


def bench(
    name: str,
    rows: list[dict[str, Any]],
    repeats: int,
    threads: int,
    folder: Path,
) -> None:
    """Time one model and print the results."""
    hidden, dim = MODELS[name]
    schema = make_schema()
    model = wd.WideDeep(schema, hidden_units=hidden, embedding_dim=dim)
    assert model.wide_table is not None
    torch.manual_seed(0)
    model.wide_table.weight.normal_(std=0.1)
    bundle = wd.Trainer(model).export(folder / str(dim))
    transform = Transform(schema, threads=threads)
    batch: Batch = transform.rows(rows)
    starts = np.arange(FEATURES) * (VALUES + 2)
    rows_BF = torch.from_numpy(batch.ids_N.reshape(-1, FEATURES) + starts)
    dense_BK = torch.from_numpy(batch.dense_BK)
    plain = PlainModel(model).eval()
    session = session_of(plain, (rows_BF, dense_BK), threads)
    feed = {"rows_BF": rows_BF.numpy(), "dense_BK": batch.dense_BK}

    def in_torch() -> Tensor:
        with torch.inference_mode():
            return plain(rows_BF, dense_BK)

    engines: dict[str, Callable[[], object]] = {
        "widedeep": lambda: bundle.logits(batch, threads=threads),
        "torch": in_torch,
        "onnxruntime": lambda: session.run(["logits"], feed)[0],
    }
    check_agreement(engines)
    found = timed(engines, repeats)
    print(f"\n{name}: {len(rows)} rows on {threads} thread(s), {_native.isa()}")
    for engine, (middle, best) in found.items():
        ratio = middle / found["widedeep"][0]
        print(f"  {engine:12} {middle:7.3f} ms (best {best:6.3f})  {ratio:5.2f}x")
    whole: dict[str, Callable[[], object]] = {
        "dicts to ids": lambda: transform.rows(rows),
        "dicts to probabilities": lambda: bundle.score(rows, threads=threads),
        "one dict": lambda: bundle.score(rows[0], threads=threads),
    }
    for step, (middle, best) in timed(whole, repeats).items():
        print(f"  {step:22} {middle:7.3f} ms (best {best:6.3f})")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = make_rows(arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            bench(name, rows, arguments.repeats, arguments.threads, Path(folder))


if __name__ == "__main__":
    main()
