"""FuxiCTR's DeepFM, DCN-v2 and FinalMLP on a set of the league table (`bench_quality.py`).

    python benchmarks/peers/models_fuxictr_league.py FOLDER MODEL [--seed 0] [--seconds 600]

Put together of its layers as models_fuxictr.py does it, trained by its `train_step` with Adam at
its configurations' rate of 0.001, embeddings of 16 with their penalty of 1e-5, layers of 256 and
128; the best pass on the validation rows is kept.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from league_rows import read_task, scaled, write_answer
from models_fuxictr import HIDDEN, MAKERS, FeatureMap, Model
from models_league import THREADS, best_pass
from torch import nn

from fuxictr.pytorch.layers import InnerProductInteraction, MLP_Block  # isort: skip

DIM, BATCH, RATE, PENALTY = 16, 512, 1e-3, 1e-5


class FactorizationMachine(nn.Module):
    """DeepFM: products of pairs of fields beside a perceptron."""

    def __init__(self, width: int, dim: int, fields: int) -> None:
        super().__init__()
        self.shape = (fields, dim)
        self.products = InnerProductInteraction(fields, "product_sum") if fields > 1 else None
        self.hidden = MLP_Block(width, HIDDEN, output_dim=1)
        self.linear = nn.Linear(width, 1)

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        fields, dim = self.shape
        logits = self.hidden(flat) + self.linear(flat)
        if self.products is None:
            return logits
        return logits + self.products(flat[:, : fields * dim].view(-1, fields, dim))


MAKERS["fuxi deep_fm"] = lambda _, width, dim, fields, numbers: FactorizationMachine(
    width, dim, fields
)


def main() -> None:
    """Learn and answer."""
    task = read_task()
    torch.set_num_threads(THREADS)
    torch.manual_seed(task.seed)
    features = FeatureMap("rows", "")
    features.labels, features.default_emb_dim = ["label"], DIM
    for i, size in enumerate(task.sizes):
        features.features[f"c{i}"] = {"source": "", "type": "categorical", "vocab_size": size}
    width = task.train.numbers.shape[1]
    for i in range(width):
        features.features[f"i{i}"] = {"source": "", "type": "numeric", "embedding_dim": 1}
    parts = []
    for numbers, rows in zip(scaled(task), (task.train, task.valid, task.test), strict=True):
        columns = {"label": torch.from_numpy(rows.labels)}
        columns |= {f"c{i}": torch.from_numpy(rows.codes[:, i]) for i in range(len(task.sizes))}
        columns |= {f"i{i}": torch.from_numpy(numbers[:, i].copy()) for i in range(width)}
        parts.append(columns)
    train, valid, test = parts
    fields = len(task.sizes)
    body = MAKERS[task.model](features, fields * DIM + width, DIM, fields, width)
    model = Model(features, DIM, body)
    model._embedding_regularizer = PENALTY
    model.compile("adam", "binary_cross_entropy", RATE)
    model._max_gradient_norm, model._eval_steps = 10.0, sys.maxsize
    model._total_steps, model._stop_training = 0, False

    def learn() -> None:
        model.train()
        for index in torch.randperm(len(train["label"])).split(BATCH):
            model.train_step({name: column[index] for name, column in train.items()})
            if time.process_time() > task.deadline:
                return

    def probabilities(columns: dict[str, torch.Tensor]) -> Any:
        model.eval()
        count = len(columns["label"])
        with torch.inference_mode():
            chunks = [
                model({name: column[at : at + 4096] for name, column in columns.items()})["y_pred"]
                for at in range(0, count, 4096)
            ]
        return torch.cat(chunks).squeeze(1).numpy()

    write_answer(task, best_pass(task, model, learn, probabilities, valid, test))


if __name__ == "__main__":
    main()
