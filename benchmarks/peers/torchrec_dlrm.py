"""TorchRec's DLRM on the CPU: FBGEMM's tables with the optimizer fused into the backward pass.

    python benchmarks/peers/torchrec_dlrm.py TRAIN TEST [--batch 2048] [--dcn] [--rate 0.2]

It has no encoder: text is coded by a dictionary of the training values, and the three crosses are
columns made by hand, each with a table. `--dcn` takes its DLRM with cross layers of low rank. The
tables' rule is row-wise Adagrad, the dense layers' Adagrad, at the best of three rates.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pyarrow as pa
import shared_task as task
import torch
from coded_rows import Encoder
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

WIDTH = 16


def make_model(sizes: dict[str, int], asked: argparse.Namespace) -> torch.nn.Module:
    """Return the model; its tables learn by themselves in the backward pass."""
    tables = FusedEmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"table_{name}", feature_names=[name], num_embeddings=size, embedding_dim=WIDTH
            )
            for name, size in sizes.items()
        ],
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": asked.rate, "eps": 1e-7},
        device=torch.device("cpu"),
    )
    for table in tables.embedding_bags.values():
        torch.nn.init.normal_(table.weight, std=asked.std)
    layers: dict[str, Any] = {
        "embedding_bag_collection": tables,
        "dense_in_features": len(task.NUMBERS),
        "dense_arch_layer_sizes": [64, WIDTH],
        "over_arch_layer_sizes": [256, 128, 1],
    }
    return (
        DLRM_DCN(**layers, dcn_num_layers=2, dcn_low_rank_dim=64) if asked.dcn else DLRM(**layers)
    )


class Rows:
    """Codes and numbers as TorchRec reads them."""

    def __init__(self, encoder: Encoder, table: pa.Table) -> None:
        columns = encoder(table)
        self.names = list(encoder.known)
        self.codes = torch.from_numpy(np.stack([columns[name] for name in self.names]))
        self.numbers = torch.from_numpy(np.stack([columns[n] for n in task.NUMBERS], axis=1))
        self.labels = torch.from_numpy(task.labels_of(table))

    def batch(self, rows: slice) -> tuple[torch.Tensor, KeyedJaggedTensor]:
        """Return the numbers and one id a row of every column."""
        codes = self.codes[:, rows]
        lengths = torch.ones(codes.numel(), dtype=torch.int32)
        return self.numbers[rows], KeyedJaggedTensor(self.names, codes.flatten(), lengths=lengths)


def learn(model: torch.nn.Module, rows: Rows, asked: argparse.Namespace) -> None:
    """Learn the rows once, from first to last."""
    tables = {id(p) for n, p in model.named_parameters() if "embedding_bags" in n}
    dense = [p for p in model.parameters() if id(p) not in tables]
    rule = torch.optim.Adagrad(dense, lr=asked.dense_rate, initial_accumulator_value=0.1)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    for at in range(0, len(rows.labels), asked.batch):
        part = slice(at, at + asked.batch)
        rule.zero_grad()
        loss_of(model(*rows.batch(part)).squeeze(1), rows.labels[part]).backward()
        rule.step()


def predict(model: torch.nn.Module, rows: Rows) -> Any:
    """Return the probabilities."""
    with torch.no_grad():  # its operators on the CPU miss inference mode
        parts = [
            model(*rows.batch(slice(at, at + 8192))) for at in range(0, len(rows.labels), 8192)
        ]
    return torch.sigmoid(torch.cat(parts)).squeeze(1).numpy()


def main() -> None:
    """Prepare, learn, judge."""
    parser = task.arguments(__doc__)
    parser.add_argument("--dcn", action="store_true")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--dense-rate", type=float, default=0.02)
    parser.add_argument("--std", type=float, default=0.01)
    asked = parser.parse_args()
    start = time.process_time()
    train = task.read_rows(asked.train)
    encoder = Encoder(train, task.CROSSES[asked.crosses])
    rows = Rows(encoder, train)
    prepare_s = time.process_time() - start
    torch.manual_seed(asked.seed)
    model = make_model(encoder.sizes, asked)
    start = time.process_time()
    learn(model, rows, asked)
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)
    task.report(
        "torchrec",
        table=test,
        probabilities=predict(model, Rows(encoder, test)),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: predict(model, Rows(encoder, task.request_of(test, n)))),
        note=f"{'DLRM with cross layers' if asked.dcn else 'DLRM'}, fused row-wise Adagrad "
        f"{asked.rate}, dense Adagrad {asked.dense_rate}, batch {asked.batch}, "
        f"{sum(encoder.sizes.values()):,} table rows of {WIDTH}",
    )


if __name__ == "__main__":
    main()
