"""Whether an average of weights over the steps predicts better than the last ones.

    python benchmarks/defaults_average.py [--sets adult,clicks] [--seeds 3] [--decays 0.98,0.995]

Every few steps all weights (tables, hidden layers, biases) move an exponential average, which is
judged beside the weights themselves: after rates that decay (`wsd`, the default) and at a constant
rate, whose noise an average is to take away. Adult: a fifth of UCI Adult's train part is judged,
after as many passes as were best on another tenth; clicks: one pass of `criteo_like.py`, salt 0.
Features as `widedeep init` declares them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from statistics import fmean, pstdev
from typing import Any

import pyarrow as pa
import torch
from quality_levels import ROOT, clicks
from torch import Tensor

import widedeep as wd
from widedeep.models.config import ModelConfig
from widedeep.training.config import TrainConfig
from widedeep.training.step import TrainStep

EVERY = {"adult": 5, "clicks": 20}  # Steps between two moves of an average
PASSES = {"adult": 8, "clicks": 1}
Weights = dict[str, Tensor]
Scores = tuple[float, float]  # AUC, log loss


class Averages:
    """Exponential averages of a model's weights, one per decay (per step)."""

    def __init__(self, decays: list[float], every: int) -> None:
        self.weights: dict[float, Weights] = {decay: {} for decay in decays}
        self.every, self.steps = every, 0

    @torch.no_grad()
    def update(self, model: wd.WideDeep) -> None:
        """Take a step; a young average moves faster (Kingma and Ba's correction, approximately)."""
        self.steps += 1
        moves, rest = divmod(self.steps, self.every)
        if rest:
            return
        now = {k: v.detach() for k, v in model.state_dict().items() if v.is_floating_point()}
        for decay, average in self.weights.items():
            kept = min(decay**self.every, (1 + moves) / (10 + moves))
            for name, value in now.items():
                if name in average:
                    average[name].mul_(kept).add_(value, alpha=1 - kept)
                else:
                    average[name] = value.clone()


def watch(averages: list[Averages]) -> None:
    """Make every training step move the last averages of the list."""
    step: Callable[..., Any] = TrainStep.__call__

    def stepped(self: TrainStep, *args: Any, **options: Any) -> Any:
        result = step(self, *args, **options)
        averages[-1].update(self.model)
        return result

    TrainStep.__call__ = stepped  # type: ignore[method-assign]


def judge(trainer: wd.Trainer, data: Any, weights: Weights | None) -> Scores:
    """Return the metrics of the model with other weights, which are taken back."""
    own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict({**own, **(weights or {})})
    metrics = trainer.evaluate(data)
    trainer.model.load_state_dict(own)
    return metrics["auc"], metrics["log_loss"]


def adult() -> tuple[pa.Table, pa.Table, pa.Table, str]:
    """Return rows to learn, to choose the number of passes by, and to judge."""
    import numpy as np
    import pyarrow.parquet as pq

    people = pq.read_table(ROOT / "src" / "widedeep" / "census" / "train.parquet")
    people = people.take(np.random.default_rng(7).permutation(people.num_rows))
    cut = people.num_rows // 5
    return people.slice(cut + cut // 2), people.slice(cut, cut // 2), people.slice(0, cut), "income"


def run(
    name: str, schema: wd.Schema, parts: Any, averages: list[Averages], asked: argparse.Namespace
) -> None:
    """Print the table's lines of a set."""
    train, valid, test = parts
    found: dict[str, list[Scores]] = {}
    for seed in range(asked.seeds):
        for schedule in ("wsd", "constant"):
            averages.append(Averages(asked.decays, EVERY[name]))
            config = TrainConfig(seed=seed, threads=1, schedule=schedule)
            model = wd.WideDeep(schema, ModelConfig(seed=seed))
            trainer = wd.Trainer(model, config, progress=False)
            best: dict[float, tuple[float, Scores]] = {}
            for passes in [PASSES[name]] if schedule == "wsd" else [1] * PASSES[name]:
                trainer.fit(train, epochs=passes, early_stopping=False)
                weights: Mapping[float, Weights] = {0.0: {}, **averages[-1].weights}
                for decay, each in weights.items():
                    loss = judge(trainer, valid, each)[1] if valid is not None else 0.0
                    if decay not in best or loss < best[decay][0]:
                        best[decay] = loss, judge(trainer, test, each)
            for decay, (_, scores) in best.items():
                what = f"average, {decay:g}" if decay else "last"
                found.setdefault(f"{name} | {schedule} | {what}", []).append(scores)
    for key, scores in found.items():
        cells = [f"{fmean(v):.4f} ± {pstdev(v):.4f}" for v in zip(*scores, strict=True)]
        print(f"| {key} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default="adult,clicks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--decays", default="0.98,0.995")
    asked = parser.parse_args()
    asked.decays = [float(decay) for decay in asked.decays.split(",")]
    averages: list[Averages] = []
    watch(averages)
    print("| data | rates | weights | AUC | log loss |\n|---|---|---|---|---|", flush=True)
    for name in asked.sets.split(","):
        if name == "adult":
            train, valid, test, label = adult()
            spec = wd.infer_spec(train, label=label).spec
            parts = train, valid, test
        else:
            data = clicks(ROOT, "")
            spec, parts = data.spec, (data.train, data.valid, data.test)
        run(name, wd.fit_schema(spec, parts[0]), parts, averages, asked)


if __name__ == "__main__":
    main()
