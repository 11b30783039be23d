"""pytorch-widedeep: its preprocessors, its Wide and TabMlp parts, Adagrad for both.

    python benchmarks/peers/pytorch_widedeep_tab.py TRAIN TEST [--batch 2048]

The optimizers' rates are the best of those tried for it; nulls of numbers get the mean beforehand,
since the preprocessor lets NaN pass.
"""

from __future__ import annotations

import time

import pandas as pd
import pyarrow as pa
import shared_task as task
import torch

# The library imports torchvision, which next to a build of torch that it was not compiled for
# misses these operators of its own. No table needs them.
_VISION = torch.library.Library("torchvision", "FRAGMENT")
for _name, _signature in {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold)",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold)",
}.items():
    if not hasattr(torch.ops.torchvision, _name):
        _VISION.define(f"{_name}{_signature} -> Tensor")

from pytorch_widedeep import Trainer  # noqa: E402
from pytorch_widedeep.models import TabMlp, Wide, WideDeep  # noqa: E402
from pytorch_widedeep.preprocessing import TabPreprocessor, WidePreprocessor  # noqa: E402

WIDTH = 16
WIDE_RATE, DEEP_RATE = 0.05, 0.01


def frame(table: pa.Table, means: pd.Series) -> pd.DataFrame:
    """Return the rows as pandas holds them, without nulls."""
    return table.to_pandas().fillna(means)


def main() -> None:
    """Prepare, learn, judge."""
    asked = task.arguments(__doc__).parse_args()
    torch.manual_seed(asked.seed)
    start = time.process_time()
    train = task.read_rows(asked.train)
    means = train.select(task.NUMBERS).to_pandas().mean()
    rows = frame(train, means)
    wide = WidePreprocessor(task.WORDS, crossed_cols=task.CROSSES[asked.crosses])
    deep = TabPreprocessor(
        cat_embed_cols=[(name, WIDTH) for name in task.WORDS],
        continuous_cols=task.NUMBERS,
        cols_to_scale=task.NUMBERS,
    )
    x_wide, x_tab = wide.fit_transform(rows), deep.fit_transform(rows)
    prepare_s = time.process_time() - start
    model = WideDeep(
        wide=Wide(input_dim=int(x_wide.max()), pred_dim=1),
        deeptabular=TabMlp(
            column_idx=deep.column_idx,
            cat_embed_input=deep.cat_embed_input,
            continuous_cols=task.NUMBERS,
            mlp_hidden_dims=[256, 128],
        ),
    )
    trainer = Trainer(
        model,
        objective="binary",
        optimizers={
            "wide": torch.optim.Adagrad(model.wide.parameters(), lr=WIDE_RATE),
            "deeptabular": torch.optim.Adagrad(model.deeptabular.parameters(), lr=DEEP_RATE),
        },
        device="cpu",
        num_workers=0,
        seed=asked.seed,
        verbose=0,
    )
    start = time.process_time()
    trainer.fit(
        X_wide=x_wide,
        X_tab=x_tab,
        target=task.labels_of(train),
        n_epochs=1,
        batch_size=asked.batch,
    )
    train_s = time.process_time() - start

    def predict(table: pa.Table) -> object:
        raw = frame(table, means)
        return trainer.predict_proba(
            X_wide=wide.transform(raw), X_tab=deep.transform(raw), batch_size=8192
        )[:, 1]

    test = task.read_rows(asked.test)
    task.report(
        "pytorch-widedeep",
        table=test,
        probabilities=predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: predict(task.request_of(test, n))),
        note=f"Adagrad {WIDE_RATE} and {DEEP_RATE}, batch {asked.batch}",
    )


if __name__ == "__main__":
    main()
