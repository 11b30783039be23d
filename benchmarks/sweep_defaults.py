"""How the default rates were chosen: one pass over a click log whose truth is known.

Generates 1M rows of `criteo_like.py` with salt 0 (a cached file), trains on the first 400k or more,
and judges on the last 100k. Rows are encoded once; every setting then trains from the same encoded
batches.

    python benchmarks/sweep_defaults.py [--set wide.lr=0.02,0.05 deep.lr=0.01 batch=256,2048 ...]
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

import widedeep as wd
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.metrics import auc, log_loss
from widedeep.models.tower import EMBEDDING_STD
from widedeep.training.config import TrainConfig
from widedeep.training.step import TrainStep

DATA = Path(__file__).parent / "data"
JUDGED = 100_000
CROSSES = {
    "planted": [("C5", "C8"), ("C1", "C14"), ("C19", "C2")],
    "wrong": [("C6", "C9"), ("C7", "C17"), ("C23", "C25")],
    "none": [],
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the sweep."""

    wide_lr: float = wd.FTRL().lr
    wide_l1: float = wd.FTRL().l1
    wide_l2: float = wd.FTRL().l2
    wide_beta: float = wd.FTRL().beta
    wide_acc: float = wd.FTRL().initial_accumulator
    deep_lr: float = 0.2
    deep_acc: float = 0.1
    deep_l2: float = 0.025
    dense_lr: float = wd.Adagrad().lr
    dense_acc: float = wd.Adagrad().initial_accumulator
    std: float = EMBEDDING_STD
    dim: int = 16
    scale: float = 1.0
    batch: int = 2048
    seed: int = 0
    parts: str = "both"
    hidden: str = "256,128"


def data_file(salt: int, rows: int = 1_000_000) -> Path:
    """Return the generated log, made on the first call."""
    path = DATA / f"criteo_like_{rows}_{salt}.parquet"
    if not path.exists():
        DATA.mkdir(exist_ok=True)
        script = Path(__file__).with_name("criteo_like.py")
        subprocess.run(
            [sys.executable, script, "--rows", str(rows), "--salt", str(salt), "--out", path],
            check=True,
        )
    return path


def make_spec(crosses: str, min_count: int) -> wd.FeatureSpec:
    """26 text columns, 13 numbers and three crosses."""
    return wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*(f"I{i}" for i in range(1, 14))),
            *wd.categorical(*(f"C{i}" for i in range(1, 27)), min_count=min_count),
            *(wd.crossed(*parts, min_count=min_count) for parts in CROSSES[crosses]),
        ],
    )


def encode(
    path: Path, train_rows: int, crosses: str, min_count: int
) -> tuple[wd.Schema, Batch, Batch]:
    """Fit on the training rows, and return them and the judged rows, encoded."""
    table = pq.read_table(path)
    train, test = table.slice(0, train_rows), table.slice(table.num_rows - JUDGED)
    schema = wd.fit_schema(make_spec(crosses, min_count), train)
    transform = Transform(schema, threads=1)
    order = np.random.default_rng(0).permutation(train_rows)
    return schema, transform(train).take(order), transform(test)


def run(
    setting: Setting, schema: wd.Schema, train: Batch, test: Batch
) -> tuple[float, float, float]:
    """Train one pass; return AUC, log loss and seconds."""
    start = time.perf_counter()
    model = wd.WideDeep(
        schema,
        hidden_units=[int(width) for width in setting.hidden.split(",")],
        embedding_dim=setting.dim,
        embedding_std=setting.std,
        seed=setting.seed,
    )
    dense = wd.Adagrad(lr=setting.dense_lr, initial_accumulator=setting.dense_acc)
    step = TrainStep(
        model,
        TrainConfig(grad_scale=setting.scale),
        wide=wd.FTRL(
            lr=setting.wide_lr, l1=setting.wide_l1, l2=setting.wide_l2, beta=setting.wide_beta,
            initial_accumulator=setting.wide_acc,
        ),
        deep=wd.Adagrad(
            lr=setting.deep_lr, initial_accumulator=setting.deep_acc, l2=setting.deep_l2
        ),
        dense=dense,
        threads=1,
    )  # fmt: skip
    if setting.seed:
        train = train.take(np.random.default_rng(setting.seed).permutation(len(train)))
    for number, at in enumerate(range(0, len(train), setting.batch)):
        step(train.slice(at, at + setting.batch), step=number + 1)
    logits = np.concatenate(
        [model(test.slice(at, at + 8192))[:, 0].numpy() for at in range(0, len(test), 8192)]
    )
    labels = test.labels_BL[:, 0]
    loss = log_loss(labels, logits, score_kind="logit")
    return auc(labels, logits), loss, time.perf_counter() - start


def settings(choices: list[str]) -> list[Setting]:
    """Every combination of ``name=a,b,c``."""
    names, values = [], []
    kinds = {entry.name: type(entry.default) for entry in fields(Setting)}
    for choice in choices:
        name, _, text = choice.partition("=")
        name = name.replace(".", "_")
        split = text.split(";") if name == "hidden" else text.split(",")
        names.append(name)
        values.append([kinds[name](value) for value in split])
    return [
        replace(Setting(), **dict(zip(names, point, strict=True)))
        for point in itertools.product(*values)
    ]


def main() -> None:
    """Sweep and print one line a setting, best first at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=["batch=256,2048,8192"], metavar="NAME=A,B")
    parser.add_argument("--salt", type=int, default=0, help="tune on 0; judge on the others, once")
    parser.add_argument("--train-rows", type=int, default=400_000)
    parser.add_argument("--crosses", choices=CROSSES, default="planted")
    parser.add_argument("--min-count", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    schema, train, test = encode(
        data_file(arguments.salt), arguments.train_rows, arguments.crosses, arguments.min_count
    )
    found = []
    for setting in settings(arguments.set):
        area, loss, seconds = run(setting, schema, train, test)
        changed = {
            f.name: getattr(setting, f.name)
            for f in fields(Setting)
            if getattr(setting, f.name) != f.default
        }
        found.append((area, loss, changed))
        print(f"auc {area:.4f}  log loss {loss:.4f}  {seconds:5.1f}s  {changed}", flush=True)
    print("\nbest by log loss")
    for area, loss, changed in sorted(found, key=lambda row: row[1])[:5]:
        print(f"auc {area:.4f}  log loss {loss:.4f}  {changed}")


if __name__ == "__main__":
    main()
