"""FuxiCTR's models as a worker of `bench_models.py`; its questions are in models_deepctr_torch.py.

The package holds layers and the loop that trains; of whole models those over long histories alone.
So the models are put together here from its layers, with its embeddings, base class and
`train_step` (forward, loss, backward, clipping, its optimizer). A number is a field of width 1, and
there is no term of first order, which ours has. `fit` is its `train_epoch` without evaluation, over
batches that lie in memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what the library prints goes to stderr

from fuxictr.features import FeatureMap  # noqa: E402
from fuxictr.pytorch.layers import (  # noqa: E402
    CrossNetMix,
    CrossNetV2,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel  # noqa: E402
from model_zoo.LongCTR.FinalMLP.FinalMLP import (  # noqa: E402
    FeatureSelection,
    InteractionAggregation,
)

HIDDEN = [256, 128]
RATE = 0.05


class Model(BaseModel):
    """Embeddings of all features under a body, which returns logits."""

    def __init__(self, features: FeatureMap, dim: int, body: nn.Module) -> None:
        super().__init__(features, verbose=0, model_root="", metrics=[])
        self.embeddings = FeatureEmbedding(features, dim)
        self.body = body
        self.compile("Adagrad", "binary_cross_entropy", RATE)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the probabilities."""
        flat = self.embeddings(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.output_activation(self.body(flat))}


class Crosses(nn.Module):
    """Cross layers beside a perceptron."""

    def __init__(self, width: int, crosses: nn.Module) -> None:
        super().__init__()
        self.crosses = crosses
        self.hidden = MLP_Block(width, HIDDEN)
        self.output = nn.Linear(width + HIDDEN[-1], 1)

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.output(torch.cat([self.crosses(flat), self.hidden(flat)], dim=1))


class TwoStreams(nn.Module):
    """FinalMLP: two gated perceptrons and their bilinear fusion."""

    def __init__(self, features: FeatureMap, width: int, dim: int) -> None:
        super().__init__()
        self.gates = FeatureSelection(features, width, dim, [64])
        self.first, self.second = MLP_Block(width, HIDDEN), MLP_Block(width, HIDDEN)
        self.fusion = InteractionAggregation(HIDDEN[-1], HIDDEN[-1])

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        first, second = self.gates(None, flat)
        return self.fusion(self.first(first), self.second(second))


class Products(nn.Module):
    """DLRM: scalar products of fields, and of what a perceptron makes of the numbers."""

    def __init__(self, fields: int, numbers: int, dim: int) -> None:
        super().__init__()
        self.shape = (fields, dim)
        self.bottom = MLP_Block(numbers, [512, 256, 64, dim])
        self.products = InnerProductInteraction(fields + 1, "inner_product")
        self.top = MLP_Block(dim + (fields + 1) * fields // 2, HIDDEN, output_dim=1)

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        fields, dim = self.shape
        number = self.bottom(flat[:, fields * dim :])
        vectors = torch.cat([flat[:, : fields * dim].view(-1, fields, dim), number[:, None]], dim=1)
        return self.top(torch.cat([number, self.products(vectors)], dim=1))


Maker = Callable[[FeatureMap, int, int, int, int], nn.Module]
MAKERS: dict[str, Maker] = {
    "fuxi dcn_v2": lambda _, width, *sizes: Crosses(width, CrossNetV2(width, 3)),
    "fuxi dcn_mix": lambda _, width, *sizes: Crosses(width, CrossNetMix(width, 3)),
    "finalmlp": lambda features, width, dim, *sizes: TwoStreams(features, width, dim),
    "dlrm": lambda _, width, dim, fields, numbers: Products(fields, numbers, dim),
}


class Worker:
    """One model and its rows."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["threads"])
        torch.manual_seed(0)
        rows, dim = np.load(asked["data"]), asked["dim"]
        fields, numbers = len(asked["sizes"]), rows["numbers"].shape[1]
        features = FeatureMap("rows", "")
        features.labels, features.default_emb_dim = ["label"], dim
        self.columns = {"label": torch.from_numpy(rows["labels"][:, 0].copy())}
        for i, size in enumerate(asked["sizes"]):
            features.features[f"c{i}"] = {"source": "", "type": "categorical", "vocab_size": size}
            self.columns[f"c{i}"] = torch.from_numpy(rows["ids"][:, i].copy())
        for i in range(numbers):
            spec = {"source": "", "type": "numeric", "embedding_dim": 1}
            features.features[f"i{i}"] = spec
            self.columns[f"i{i}"] = torch.from_numpy(rows["numbers"][:, i].copy())
        body = MAKERS[asked["make"]](features, fields * dim + numbers, dim, fields, numbers)
        self.model = Model(features, dim, body).train()
        self.model._max_gradient_norm, self.model._eval_steps = 10.0, sys.maxsize
        self.model._total_steps, self.model._stop_training = 0, False
        self.batch, self.place, self.rows = asked["batch"], 0, len(rows["labels"])

    def batches(self, count: int) -> list[dict[str, torch.Tensor]]:
        """Return the next batches."""
        starts = [(self.place + i * self.batch) % self.rows for i in range(count)]
        self.place += count * self.batch
        return [
            {name: column[start : start + self.batch] for name, column in self.columns.items()}
            for start in starts
        ]

    def train(self, batches: int, *, fit: bool) -> float:
        """Learn; return the seconds."""
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        prepared = self.batches(batches)
        start = clock()
        if fit:
            self.model.train_epoch(prepared)
        else:
            for batch in prepared:
                self.model.train_step(batch)
        return clock() - start


def main() -> None:
    """Answer until the input ends."""
    worker: Worker | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "make" in asked:
                worker = None  # before the next one takes memory
                worker = Worker(asked)
                answer = {"parameters": sum(p.numel() for p in worker.model.parameters())}
            else:
                assert worker is not None
                answer = {"seconds": worker.train(asked["train"], fit=bool(asked.get("fit")))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
