"""The sparse kernels against torch's index operations, in the same run on the same batches.

    python benchmarks/bench_kernels.py --cap 1000000 --batch-size 2048 --threads 2

26 features with the cardinalities of the Kaggle Criteo data (capped) and ids from a Zipf law,
embeddings of 16 with Adagrad, wide weights of the same features with FTRL. Prints the time of
each step and how many times faster it is than the same result by torch.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from widedeep import _native
from widedeep.optim import FTRL, Adagrad
from widedeep.optim.base import Step
from widedeep.tables.embedding_table import EmbeddingTable

CARDINALITIES = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]  # fmt: skip
DIM = 16
N_BATCHES = 20


def zipf_batch(rng: np.random.Generator, sizes: list[int], rows: int) -> Any:
    """One id a cell, from a power law with exponent 1.05 over each feature's ids."""
    a = 1.05
    columns = []
    for size in sizes:
        rank = ((size ** (1 - a) - 1) * rng.random(rows) + 1) ** (1 / (1 - a))
        columns.append(np.minimum(rank.astype(np.int64) - 1, size - 1).clip(0))
    ids = np.stack(columns, axis=1).reshape(-1)
    return SimpleNamespace(ids_N=ids, offsets_BF=np.arange(len(ids) + 1), values_N=None)


def typical_us(run: Callable[[int], Any], repeats: int) -> float:
    """Time of a call in microseconds over the batches in turn: what one in ten stays below.

    A neighbour's work on the machine lengthens a median; it seldom lengthens nine in ten.
    """
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run(i % N_BATCHES)
        times.append(time.perf_counter() - start)
    return float(np.quantile(times[2:], 0.1)) * 1e6


class Bench:
    """Tables, batches and gradients, and each step in our kernels and in torch."""

    def __init__(self, cap: int, batch_size: int, threads: int) -> None:
        rng = np.random.default_rng(0)
        sizes = [min(size, cap) for size in CARDINALITIES]
        self.slots = [
            SimpleNamespace(name=f"c{i}", combiner="sum", wide_combiner=str)
            for i in range(len(sizes))
        ]
        names = [slot.name for slot in self.slots]
        tables = dict(zip(names, sizes, strict=True))
        features = {name: name for name in names}
        self.deep = EmbeddingTable(tables, features, dim=DIM, seed=1, std=0.25)
        self.wide = EmbeddingTable(tables, features, dim=1)
        self.adagrad, self.ftrl = Adagrad(lr=0.01), FTRL(lr=0.01, l1=0.1)
        self.deep.attach(self.adagrad)
        self.wide.attach(self.ftrl)
        self.columns = {name: slice(i * DIM, (i + 1) * DIM) for i, name in enumerate(names)}
        self.threads = threads
        width = len(names) * DIM
        self.out_BX = torch.zeros(batch_size, width)
        self.grad_BX = torch.randn(batch_size, width)
        self.grad_BC = torch.randn(batch_size, 1)
        self.batches = [zipf_batch(rng, sizes, batch_size) for _ in range(N_BATCHES)]
        self.groups = [self.deep.group(batch, self.slots) for batch in self.batches]
        self.sums = torch.randn(max(len(groups) for groups in self.groups), DIM) * 0.01
        # For torch: contiguous weights and state, and each id's row.
        bases = np.cumsum([0, *sizes[:-1]])
        self.rows = [
            torch.from_numpy((b.ids_N.reshape(-1, len(sizes)) + bases).reshape(-1))
            for b in self.batches
        ]
        self.plain = {name: part.contiguous() for name, part in self.deep.state.items()}
        self.plain["weight"] = self.deep.weight.contiguous()
        self.plain_wide = {name: part.contiguous() for name, part in self.wide.state.items()}
        self.plain_wide["weight"] = self.wide.weight.contiguous()
        self.unique = [torch.unique(rows, return_inverse=True) for rows in self.rows]

    def steps(self) -> dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]]:
        """Each step: ours, torch's."""
        step = Step(lr=0.01, grad_scale=1.0, number=1, threads=self.threads)
        options = {"threads": self.threads}

        def gather(i: int) -> None:
            self.deep.gather(self.batches[i], self.slots, self.columns, self.out_BX, **options)

        def gather_torch(i: int) -> None:
            torch.index_select(self.plain["weight"], 0, self.rows[i], out=self.out_BX.view(-1, DIM))

        def reduce_torch(i: int) -> torch.Tensor:
            rows, inverse = self.unique[i]
            sums = torch.zeros(len(rows), DIM)
            return sums.index_add_(0, inverse, self.grad_BX.view(-1, DIM))

        def adagrad(i: int) -> None:
            groups = self.groups[i]
            self.deep.apply(groups, self.sums[: len(groups)], self.adagrad, **options)

        def adagrad_torch(i: int) -> None:
            rows = self.unique[i][0]
            weight, state = self.plain["weight"], self.plain
            self.adagrad.update_tensors(weight, state, rows, self.sums[: len(rows)], step)

        def ftrl(i: int) -> None:
            groups = self.groups[i]
            self.wide.apply(groups, self.sums[: len(groups), :1], self.ftrl, **options)

        def ftrl_torch(i: int) -> None:
            rows = self.unique[i][0]
            weight, state = self.plain_wide["weight"], self.plain_wide
            self.ftrl.update_tensors(weight, state, rows, self.sums[: len(rows), :1], step)

        return {
            "gather": (gather, gather_torch),
            "wide sum": (
                lambda i: self.wide.add_wide(
                    self.batches[i], self.slots, "sum", torch.zeros(len(self.out_BX), 1), **options
                ),
                lambda i: (
                    self.plain_wide["weight"][self.rows[i]].view(len(self.out_BX), -1).sum(1)
                ),
            ),
            "group": (
                lambda i: self.deep.group(self.batches[i], self.slots, **options),
                lambda i: torch.unique(self.rows[i], return_inverse=True),
            ),
            "reduce": (
                lambda i: self.deep.sum_deep(
                    self.batches[i], self.groups[i], self.slots, self.columns, self.grad_BX,
                    **options,
                ),
                reduce_torch,
            ),
            "adagrad": (adagrad, adagrad_torch),
            "ftrl": (ftrl, ftrl_torch),
        }  # fmt: skip


def main() -> None:
    """Time every step and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cap", type=int, default=200_000, help="largest cardinality")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.cap, options.batch_size, options.threads)
    ids = len(bench.batches[0].ids_N)
    print(
        f"{platform.processor() or platform.machine()}, {_native.isa()}, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    print(f"{bench.deep.n_rows:,} rows, {ids:,} ids a batch, {len(bench.groups[0]):,} distinct")
    print(f"{'':12}{'ours µs':>10}{'torch µs':>10}{'ratio':>8}")
    totals = [0.0, 0.0]
    for name, (ours, theirs) in bench.steps().items():
        times = [typical_us(run, options.repeats) for run in (ours, theirs)]
        totals = [total + t for total, t in zip(totals, times, strict=True)]
        print(f"{name:12}{times[0]:10.0f}{times[1]:10.0f}{times[1] / times[0]:8.1f}")
    print(f"{'total':12}{totals[0]:10.0f}{totals[1]:10.0f}{totals[1] / totals[0]:8.1f}")


if __name__ == "__main__":
    main()
