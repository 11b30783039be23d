"""DeepCTR-Torch's models as a worker of `bench_models.py`: one line of JSON in, one out.

    {"make": "deep_fm", "data": "rows.npz", "sizes": [...], "batch": 2048, "threads": 2}
    {"train": 4}                learn that many batches by its step; answers {"seconds": ...}
    {"train": 4, "fit": true}   the same by its `fit`

Its step is what its `fit` does with a batch: forward, loss, regularisation (set to 0 here, as ours
has none), backward, its optimizer. `fit` also shuffles the rows and gathers them into batches.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import requests
import torch


def _refuse(*_: object, **__: object) -> None:
    raise OSError("no network in a benchmark")


requests.get = _refuse  # it asks the package index for its newest version when it is imported
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what the library prints goes to stderr

from deepctr_torch import models  # noqa: E402
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat  # noqa: E402

DIM = 16
HIDDEN = (256, 128)
RATE = 0.05
PLAIN = {"l2_reg_embedding": 0.0, "device": "cpu"}
LINEAR = {**PLAIN, "l2_reg_linear": 0.0}

Columns = list[Any]


def tasks(model: Any, columns: Columns, **options: Any) -> Any:
    """Return a model of two tasks."""
    return model(columns, **LINEAR, **options)


def history(model: Any, columns: Columns, **options: Any) -> Any:
    """Return a model of a history."""
    return model(columns, ["item"], dnn_hidden_units=HIDDEN, **PLAIN, **options)


def wide_deep(model: Any, columns: Columns, **options: Any) -> Any:
    """Return a model with a linear part over the same columns."""
    return model(columns, columns, **LINEAR, **options)


def _mlr(columns: Columns) -> Any:
    return models.MLR(columns, region_num=4, l2_reg_linear=0.0, device="cpu")


DNN = {"dnn_hidden_units": HIDDEN}
MAKERS: dict[str, Callable[[Columns], Any]] = {
    "mlp": lambda c: wide_deep(models.WDL, c, **DNN),
    "deep_fm": lambda c: wide_deep(models.DeepFM, c, **DNN),
    "xdeepfm": lambda c: wide_deep(models.xDeepFM, c, **DNN, cin_layer_size=(128, 128)),
    "afm": lambda c: wide_deep(models.AFM, c, l2_reg_att=0.0),
    "difm": lambda c: wide_deep(models.DIFM, c, **DNN, att_head_num=4),
    "ifm": lambda c: wide_deep(models.IFM, c, **DNN),
    "ccpm": lambda c: wide_deep(models.CCPM, c, **DNN),
    "pnn": lambda c: models.PNN(c, **PLAIN, **DNN),
    "mlr": _mlr,
    "nfm": lambda c: wide_deep(models.NFM, c, **DNN),
    "onn": lambda c: wide_deep(models.ONN, c, **DNN),
    "dcn": lambda c: wide_deep(models.DCN, c, **DNN, cross_num=3, l2_reg_cross=0.0),
    "dcn matrix": lambda c: wide_deep(
        models.DCN, c, **DNN, cross_num=3, l2_reg_cross=0.0, cross_parameterization="matrix"
    ),
    "dcn_mix": lambda c: wide_deep(models.DCNMix, c, **DNN, cross_num=3, l2_reg_cross=0.0),
    "autoint": lambda c: models.AutoInt(c, c, **PLAIN, **DNN),
    "fibinet": lambda c: wide_deep(models.FiBiNET, c, **DNN),
    "afn": lambda c: wide_deep(models.AFN, c, afn_dnn_hidden_units=HIDDEN),
    "din": lambda c: history(models.DIN, c, att_hidden_size=(36,)),
    "dien": lambda c: history(models.DIEN, c, gru_type="AUGRU", att_hidden_units=(64, 16)),
    "shared_bottom": lambda c: tasks(models.SharedBottom, c, bottom_dnn_hidden_units=HIDDEN),
    "esmm": lambda c: tasks(models.ESMM, c, tower_dnn_hidden_units=HIDDEN),
    "mmoe": lambda c: tasks(models.MMOE, c, num_experts=4, gate_dnn_hidden_units=()),
    "ple": lambda c: tasks(models.PLE, c, gate_dnn_hidden_units=()),
}


WITHOUT_NUMBERS = {"afm", "ccpm"}  # which refuse dense columns


def clock() -> float:
    """Seconds of this process's processor time; of the clock, where threads wait for each other."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Worker:
    """One model and its rows."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["threads"])
        torch.manual_seed(0)
        rows, name = np.load(asked["data"]), asked["make"]
        sizes, dim = asked["sizes"], asked.get("dim", DIM)
        columns: Columns = [
            SparseFeat(f"c{i}", size, embedding_dim=dim) for i, size in enumerate(sizes)
        ]
        parts = [rows["ids"][:, : len(sizes)]]
        if "history" in rows:
            columns[-1] = SparseFeat("item", sizes[-1], embedding_dim=dim)
            hist = SparseFeat("hist_item", sizes[-1], embedding_dim=dim, embedding_name="item")
            events = rows["history"].shape[1]
            columns.append(VarLenSparseFeat(hist, maxlen=events, length_name="hist_length"))
            parts += [rows["history"], rows["lengths"][:, None]]
        numbers = rows["numbers"]
        if name in WITHOUT_NUMBERS:
            numbers = numbers[:, :0]
        columns += [DenseFeat(f"i{i}", 1) for i in range(numbers.shape[1])]
        self.x = torch.from_numpy(np.concatenate([*parts, numbers], axis=1).astype(np.float32))
        self.y = torch.from_numpy(rows["labels"])
        self.model = MAKERS[name](columns).train()
        optimizer = torch.optim.Adagrad(self.model.parameters(), lr=RATE)
        self.tasks = getattr(self.model, "num_tasks", 1)
        loss = ["binary_crossentropy"] * self.tasks if self.tasks > 1 else "binary_crossentropy"
        self.model.compile(optimizer, loss)
        self.batch, self.place = asked["batch"], 0

    def train(self, batches: int) -> float:
        """Learn; return the seconds."""
        start = clock()
        for _ in range(batches):
            if self.place + self.batch > len(self.x):
                self.place = 0
            chosen = slice(self.place, self.place + self.batch)
            self.step(self.x[chosen], self.y[chosen])
            self.place += self.batch
        return clock() - start

    def fit(self, batches: int) -> float:
        """Learn by the library's own loop, without metrics; return the seconds."""
        rows = min(batches * self.batch, len(self.x))
        x = [self.x[:rows].numpy()]
        y = self.y[:rows].numpy()
        start = clock()
        self.model.fit(x, y, batch_size=self.batch, epochs=1, verbose=0)
        return clock() - start

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Do what `fit` does with a batch."""
        model = self.model
        predicted = model(x)
        model.optim.zero_grad()
        if self.tasks > 1:
            parts = enumerate(model.loss_func)
            loss = sum(one(predicted[:, i], y[:, i], reduction="sum") for i, one in parts)
        else:
            loss = model.loss_func(predicted.squeeze(-1), y[:, 0], reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        loss.item(), total.item()
        total.backward()
        model.optim.step()


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
                learn = worker.fit if asked.get("fit") else worker.train
                answer = {"seconds": learn(asked["train"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
