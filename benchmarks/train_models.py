"""The models, batches and rivals of `bench_train.py`.

Model S: 26 fields x 16 and 13 numbers -> 256 -> 128 -> 1, wide part of 26 fields and 3 crosses,
5.6M rows in the tables. Model B: the same fields x 32 -> 1024 -> 512 -> 256 -> 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import widedeep as wd
from widedeep.data.batch import Batch
from widedeep.kernels.torch_ops import to_device
from widedeep.schema import ColumnType, NumericFit
from widedeep.training.config import TrainConfig
from widedeep.training.step import TrainStep

CARDINALITIES = (
    *(1460, 583, 1_000_000, 800_000, 305, 24, 12517, 633, 3, 93145, 5683, 1_000_000, 3194),
    *(27, 14992, 900_000, 10, 5652, 2173, 4, 1_000_000, 18, 15, 286_181, 105, 142_572),
)
CROSSES = ((4, 7), (0, 13), (18, 1))
NUMBERS = 13

Law = Literal["zipf", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model looks like: fields' sizes, crosses' buckets, embedding width, hidden layers."""

    name: str
    fields: tuple[int, ...] = CARDINALITIES
    cross_buckets: int = 100_000
    dim: int = 16
    hidden: tuple[int, ...] = (256, 128)

    @property
    def slot_sizes(self) -> list[int]:
        """Values of every id slot: fields, then crosses."""
        return [*self.fields, *[self.cross_buckets] * len(CROSSES)]

    @property
    def widths(self) -> list[int]:
        """From the tower's input to its logit."""
        return [len(self.fields) * self.dim + NUMBERS, *self.hidden, 1]


S = Shape(name="S")
B = Shape(name="B", dim=32, hidden=(1024, 512, 256))


def of_rows(rows: int) -> Shape:
    """Model S over 26 fields that have this many rows together."""
    share = rows // len(CARDINALITIES)
    return Shape(name=f"S of {rows:,} rows", fields=(share,) * len(CARDINALITIES))


def make_schema(shape: Shape) -> wd.Schema:
    """Identity categories and hashed crosses: the shape of the model without any text."""
    fields = [f"c{i}" for i in range(len(shape.fields))]
    numbers = [f"i{i}" for i in range(NUMBERS)]
    crosses = [(f"c{i}", f"c{j}") for i, j in CROSSES]
    spec = wd.FeatureSpec(
        label="label",
        deep=None if shape.hidden else [],
        features=[
            *wd.numeric(*numbers, transform="none"),
            *(
                wd.categorical(name, num_buckets=size)
                for name, size in zip(fields, shape.fields, strict=True)
            ),
            *(wd.crossed(*parts, hash_buckets=shape.cross_buckets) for parts in crosses),
        ],
    )
    zero, one = np.zeros(1), np.ones(1)
    fit = NumericFit(
        boundaries=(), shift=zero, scale=one, fill=np.zeros(1, np.float32), minimum=zero,
        maximum=one, mean=zero,
    )  # fmt: skip
    columns = {name: ColumnType(kind="int") for name in [*fields, "label"]}
    columns.update({name: ColumnType(kind="float") for name in numbers})
    return wd.Schema(
        spec=spec, columns=columns, vocabularies={}, boundaries={},
        numerics=dict.fromkeys(numbers, fit), rows=1, quantile_rows=1,
    )  # fmt: skip


def draw(rng: np.random.Generator, size: int, rows: int, law: Law) -> NDArray[np.int64]:
    """Ids 0 to size - 1, uniform or by a truncated power law."""
    if law == "uniform":
        return rng.integers(0, size, rows)
    tail = 1 - 1.05
    ranks = ((size**tail - 1) * rng.random(rows) + 1) ** (1 / tail)
    return np.clip(ranks.astype(np.int64) - 1, 0, size - 1)


def make_batches(
    shape: Shape, count: int, rows: int, law: Law = "zipf", seed: int = 0
) -> list[Batch]:
    """Encoded batches; the first rank is id 2."""
    rng = np.random.default_rng(seed)
    sizes = shape.slot_sizes
    batches = []
    for _ in range(count):
        ids = np.stack([draw(rng, size, rows, law) + 2 for size in sizes], axis=1)
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

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)
        sizes = np.array(shape.slot_sizes) + 2
        self.starts = to_device(np.concatenate([[0], np.cumsum(sizes)[:-1]]), self.device)
        self.fields = len(shape.fields)
        with self.device:
            self.embedding = nn.Embedding(int(sizes[: self.fields].sum()), shape.dim, sparse=True)
            self.wide = nn.EmbeddingBag(int(sizes.sum()), 1, mode="sum", sparse=True)
            layers: list[nn.Module] = []
            for a, b in itertools.pairwise(shape.widths):
                layers += [nn.Linear(a, b), nn.ReLU()]
            self.mlp = nn.Sequential(*layers[:-1])
        self.sparse = torch.optim.Adagrad([self.embedding.weight, self.wide.weight], lr=0.05)
        self.dense = torch.optim.Adagrad(self.mlp.parameters(), lr=0.05)

    def step(self, batch: Batch) -> None:
        """One joint step."""
        ids = to_device(batch.ids_N, self.device).view(len(batch), -1) + self.starts
        dense = to_device(batch.dense_BK, self.device)
        labels = to_device(batch.labels_BL, self.device)
        deep = self.embedding(ids[:, : self.fields]).flatten(1)
        logits = self.mlp(torch.cat([deep, dense], 1)) + self.wide(ids)
        self.sparse.zero_grad(set_to_none=True)
        self.dense.zero_grad(set_to_none=True)
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        self.sparse.step()
        self.dense.step()


def our_step(
    schema: wd.Schema,
    shape: Shape,
    threads: int,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
) -> TrainStep:
    """Our step over the same shape."""
    model = wd.WideDeep(schema, hidden_units=shape.hidden, embedding_dim=shape.dim, device=device)
    adagrad = wd.Adagrad()
    return TrainStep(
        model,
        TrainConfig(precision=precision),
        wide=wd.FTRL(),
        deep=adagrad,
        dense=adagrad,
        threads=threads,
    )


def gemm_floor(shape: Shape, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products of one step of the tower, and nothing else."""
    widths = shape.widths
    weights = [torch.randn(b, a).to(dtype) for a, b in itertools.pairwise(widths)]
    hidden = [torch.randn(rows, width).to(dtype) for width in widths]
    outs = [torch.empty(rows, width, dtype=dtype) for width in widths]
    grads = [torch.empty_like(weight) for weight in weights]

    def run() -> None:
        for i, weight in enumerate(weights):
            torch.mm(hidden[i], weight.t(), out=outs[i + 1])
        for i in reversed(range(len(weights))):
            torch.mm(outs[i + 1].t(), hidden[i], out=grads[i])
            torch.mm(outs[i + 1], weights[i], out=outs[i])

    return run
