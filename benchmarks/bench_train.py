"""Training speed of the standard model against torch's own sparse embeddings, in one run.

Model S: 26 fields x 16 and 13 numbers -> 256 -> 128 -> 1, wide part of 26 fields and 3 crosses,
5.6M rows in the tables. Batches are encoded beforehand; the engines take turns, and medians of the
repeats are printed.

    python benchmarks/bench_train.py [--batch 2048] [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import widedeep as wd
from widedeep.data.batch import Batch
from widedeep.training.dense_update import DenseUpdate
from widedeep.training.step import TrainStep

CARDINALITIES = [
    1460,
    583,
    1_000_000,
    800_000,
    305,
    24,
    12517,
    633,
    3,
    93145,
    5683,
    1_000_000,
    3194,
    27,
    14992,
    900_000,
    10,
    5652,
    2173,
    4,
    1_000_000,
    18,
    15,
    286_181,
    105,
    142_572,
]
CROSSES = 3
CROSS_BUCKETS = 100_000
NUMBERS = 13
DIM = 16
HIDDEN = (256, 128)


def make_schema() -> wd.Schema:
    """Identity categories and hashed crosses: the shape of the model without any text."""
    from widedeep.schema import ColumnType, NumericFit

    fields = [f"c{i}" for i in range(len(CARDINALITIES))]
    numbers = [f"i{i}" for i in range(NUMBERS)]
    crosses = [(f"c{i}", f"c{j}") for i, j in ((4, 7), (0, 13), (18, 1))]
    spec = wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*numbers, transform="none"),
            *(
                wd.categorical(name, num_buckets=size)
                for name, size in zip(fields, CARDINALITIES, strict=True)
            ),
            *(wd.crossed(*parts, hash_buckets=CROSS_BUCKETS) for parts in crosses),
        ],
    )
    zero, one = np.zeros(1), np.ones(1)
    fit = NumericFit(
        boundaries=(),
        shift=zero,
        scale=one,
        fill=np.zeros(1, np.float32),
        minimum=zero,
        maximum=one,
        mean=zero,
    )
    columns = {name: ColumnType(kind="int") for name in [*fields, "label"]}
    columns.update({name: ColumnType(kind="float") for name in numbers})
    return wd.Schema(
        spec=spec,
        columns=columns,
        vocabularies={},
        boundaries={},
        numerics=dict.fromkeys(numbers, fit),
        rows=1,
        quantile_rows=1,
    )


def zipf(
    rng: np.random.Generator, size: int, rows: int, exponent: float = 1.05
) -> NDArray[np.int64]:
    """Ranks 0 to size - 1 of a truncated power law."""
    u = rng.random(rows)
    ranks = ((size ** (1 - exponent) - 1) * u + 1) ** (1 / (1 - exponent))
    return np.clip(ranks.astype(np.int64) - 1, 0, size - 1)


def make_batches(count: int, rows: int, seed: int = 0) -> list[Batch]:
    """Encoded batches of Zipf ids, the first rank being id 2."""
    rng = np.random.default_rng(seed)
    sizes = [*CARDINALITIES, *[CROSS_BUCKETS] * CROSSES]
    batches = []
    for _ in range(count):
        ids = np.stack([zipf(rng, size, rows) + 2 for size in sizes], axis=1)
        batches.append(
            Batch(
                ids_N=ids.reshape(-1),
                offsets_BF=np.arange(rows * len(sizes) + 1),
                dense_BK=rng.random((rows, NUMBERS), np.float32),
                labels_BL=(rng.random((rows, 1)) < 0.25).astype(np.float32),
            )
        )
    return batches


class SparseBaseline(nn.Module):
    """The same model from torch's parts: a fused sparse embedding and a sparse bag."""

    def __init__(self) -> None:
        super().__init__()
        sizes = np.array([*CARDINALITIES, *[CROSS_BUCKETS] * CROSSES]) + 2
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)[:-1]]))
        self.fields = len(CARDINALITIES)
        self.embedding = nn.Embedding(int(sizes[: self.fields].sum()), DIM, sparse=True)
        self.wide = nn.EmbeddingBag(int(sizes.sum()), 1, mode="sum", sparse=True)
        width = self.fields * DIM + NUMBERS
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
            nn.Linear(HIDDEN[1], 1),
        )
        self.sparse = torch.optim.Adagrad([self.embedding.weight, self.wide.weight], lr=0.05)
        self.dense = torch.optim.Adagrad(self.mlp.parameters(), lr=0.05)

    def step(self, batch: Batch) -> None:
        """One joint step."""
        ids = torch.from_numpy(batch.ids_N).view(len(batch), -1) + self.starts
        dense = torch.from_numpy(batch.dense_BK)
        labels = torch.from_numpy(batch.labels_BL)
        deep = self.embedding(ids[:, : self.fields]).flatten(1)
        logits = self.mlp(torch.cat([deep, dense], 1)) + self.wide(ids)
        self.sparse.zero_grad(set_to_none=True)
        self.dense.zero_grad(set_to_none=True)
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        self.sparse.step()
        self.dense.step()


def our_step(threads: int) -> tuple[Callable[[Batch], object], TrainStep]:
    """Our step over the same shape."""
    model = wd.WideDeep(make_schema(), hidden_units=HIDDEN, embedding_dim=DIM)
    adagrad = wd.Adagrad()
    step = TrainStep(
        model,
        wide=wd.FTRL(),
        deep=adagrad,
        dense=DenseUpdate(dict(model.named_parameters()), adagrad),
        threads=threads,
    )
    return step, step


def gemm_floor(rows: int) -> Callable[[], None]:
    """The matrix products of one step of the tower, and nothing else."""
    widths = [len(CARDINALITIES) * DIM + NUMBERS, *HIDDEN, 1]
    weights = [torch.randn(b, a) for a, b in itertools.pairwise(widths)]
    hidden = [torch.randn(rows, width) for width in widths]
    outs = [torch.empty(rows, width) for width in widths]
    grads = [torch.empty_like(weight) for weight in weights]

    def run() -> None:
        for i, weight in enumerate(weights):
            torch.mm(hidden[i], weight.t(), out=outs[i + 1])
        for i in reversed(range(len(weights))):
            torch.mm(outs[i + 1].t(), hidden[i], out=grads[i])
            torch.mm(outs[i + 1], weights[i], out=outs[i])

    return run


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def split(step: TrainStep, batches: list[Batch]) -> dict[str, float]:
    """Microseconds an example spent in each of the four functions."""
    spent = dict.fromkeys(
        ("group and gather", "dense forward and backward", "reduce", "apply"), 0.0
    )
    rows = sum(len(batch) for batch in batches)
    for batch in batches:
        marks = [time.perf_counter()]
        gathered = step.group_and_gather(batch)
        marks.append(time.perf_counter())
        result = step.dense_pass(batch, gathered)
        marks.append(time.perf_counter())
        gradients = step.reduce(batch, gathered, result)
        marks.append(time.perf_counter())
        step.apply(gradients, len(batch), rate=1.0, step=1)
        marks.append(time.perf_counter())
        for name, (a, b) in zip(spent, itertools.pairwise(marks), strict=True):
            spent[name] += (b - a) / rows * 1e6
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=65_536, help="rows a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    batches = make_batches(max(1, arguments.rows // arguments.batch), arguments.batch)
    rows = sum(len(batch) for batch in batches)
    ours, step = our_step(arguments.threads)
    baseline = SparseBaseline()
    floor = gemm_floor(arguments.batch)
    engines: dict[str, Callable[[], object]] = {
        "widedeep": lambda: [ours(batch) for batch in batches],
        "torch sparse": lambda: [baseline.step(batch) for batch in batches],
        "matrix products alone": lambda: [floor() for _ in batches],
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    for run in engines.values():
        run()
    for _ in range(arguments.repeats):
        for name, run in engines.items():
            times[name].append(timed(run))
    print(
        f"model S, batch {arguments.batch}, {arguments.threads} threads, medians of "
        f"{arguments.repeats} interleaved runs"
    )
    for name, found in times.items():
        print(
            f"{name:24} {rows / median(found):>12,.0f} examples/s  "
            f"{median(found) / rows * 1e6:8.2f} us each"
        )
    for name in ("torch sparse", "matrix products alone"):
        ratio = median([b / a for a, b in zip(times["widedeep"], times[name], strict=True)])
        print(f"widedeep / {name}: {ratio:.2f}x its rate")
    for name, micros in split(step, batches).items():
        print(f"  {name:28} {micros:6.2f} us an example")


if __name__ == "__main__":
    main()
