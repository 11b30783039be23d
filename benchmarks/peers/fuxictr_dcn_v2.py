"""FuxiCTR 2.3's DCN-v2: its feature processor on the CSV file, its layers, its steps.

    python benchmarks/peers/fuxictr_dcn_v2.py TRAIN TEST [--batch 2048] [--rate 0.001]

Put together of its layers as models_fuxictr.py does it. Its feature processor reads, counts and
codes the text; what it would write to files for a loader of several processes stays in memory.
Crosses and logarithms of numbers are what it calls preprocessing functions, which one writes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import models_fuxictr
import numpy as np
import polars as pl
import pyarrow as pa
import shared_task as task
import torch
from models_fuxictr import MAKERS, FeatureMap, Model

from fuxictr.preprocess import FeatureProcessor  # isort: skip

WIDTH = 16


class Processor(FeatureProcessor):
    """FuxiCTR's, with functions of ours."""

    def cross(self, names: str) -> pl.Expr:
        """Return two columns as one."""
        return pl.concat_str(names.split(","), separator="_")

    def logarithm(self, name: str) -> pl.Expr:
        """Return log(1 + x)."""
        return pl.col(name).log1p()


def make_processor(crosses: list[tuple[str, str]], folder: str) -> Processor:
    """Return the declaration of all columns."""
    common = {"active": True}
    word = common | {"dtype": "str", "type": "categorical"}
    number = common | {"dtype": "float", "type": "numeric", "preprocess": "logarithm"}
    columns: list[dict[str, Any]] = [word | {"name": name} for name in task.WORDS]
    columns += [word | {"name": f"{a}x{b}", "preprocess": f"cross({a},{b})"} for a, b in crosses]
    columns += [
        number | {"name": n, "normalizer": "StandardScaler", "embedding_dim": 1}
        for n in task.NUMBERS
    ]
    label = {"name": "label", "dtype": "float"}
    return Processor(columns, label, dataset_id="rows", data_root=folder)


def coded(processor: Processor, rows: pl.LazyFrame) -> dict[str, torch.Tensor]:
    """Return preprocessed rows as the model reads them."""
    columns = {column.name: column.to_numpy() for column in rows.collect().iter_columns()}
    arrays = {name: np.asarray(column) for name, column in processor.transform(columns).items()}
    return {
        name: torch.from_numpy(array.astype("float32" if array.dtype.kind == "f" else "int64"))
        for name, array in arrays.items()
    }


def make_model(features: FeatureMap, crosses: int, asked: argparse.Namespace) -> Model:
    """Return DCN-v2 over all columns."""
    features.default_emb_dim = WIDTH
    fields, numbers = len(task.WORDS) + crosses, len(task.NUMBERS)
    body = MAKERS["fuxi dcn_v2"](features, fields * WIDTH + numbers, WIDTH, fields, numbers)
    model = Model(features, WIDTH, body)
    model._embedding_regularizer = asked.penalty
    model.compile("adam", "binary_cross_entropy", asked.rate)
    model._max_gradient_norm, model._eval_steps = 10.0, sys.maxsize
    model._total_steps, model._stop_training = 0, False
    return model


def batches(columns: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Return the rows in batches."""
    return [
        {name: column[at : at + size] for name, column in columns.items()}
        for at in range(0, len(columns["label"]), size)
    ]


def main() -> None:
    """Prepare, learn, judge."""
    parser = task.arguments(__doc__)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--penalty", type=float, default=None)
    asked = parser.parse_args()
    sys.stdout = models_fuxictr.answers
    crosses = task.CROSSES[asked.crosses]
    torch.manual_seed(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        processor = make_processor(crosses, folder)
        rows = processor.preprocess(processor.read_data(str(asked.train)))
        processor.fit(rows)
        train = coded(processor, rows)
        prepare_s = time.process_time() - start
        model = make_model(processor.feature_map, len(crosses), asked)
        start = time.process_time()
        model.train_epoch(batches(train, asked.batch))
        train_s = time.process_time() - start

        def predict(table: pa.Table) -> Any:
            frame = processor.preprocess(pl.from_arrow(table).lazy())
            return model.predict(batches(coded(processor, frame), 8192))

        test = task.read_rows(asked.test)
        task.report(
            "fuxictr",
            table=test,
            probabilities=predict(test),
            prepare_s=prepare_s,
            train_s=train_s,
            train_rows=len(train["label"]),
            latency=task.latency_ms(lambda n: predict(task.request_of(test, n))),
            note=f"DCN-v2, Adam {asked.rate}, batch {asked.batch}",
        )


if __name__ == "__main__":
    main()
