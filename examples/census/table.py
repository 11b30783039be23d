"""Wide, deep, and Wide & Deep on UCI Adult: the table of the README, means of five seeds.

Epochs are chosen on the last fifth of the train part; each model is then trained on all of it and
judged once on UCI's test split. Optimizers and batch size are the library's defaults; rates decay
to 0 at the end, which steadies calibration (constant ones leave it to the last batches).

    python examples/census/table.py [--seeds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import fmean, stdev

import pyarrow as pa
import pyarrow.parquet as pq
from run import DATA, census_spec

import widedeep as wd

EPOCHS = (2, 3, 5, 8, 12)
SHOWN = ("auc", "log_loss", "accuracy", "calibration")
PARTS: dict[str, Callable[[wd.FeatureSpec], wd.FeatureSpec]] = {
    "wide alone": lambda spec: spec.replace(deep=[]),
    "deep alone": lambda spec: spec.replace(wide=[]),
    "Wide & Deep": lambda spec: spec,
}


def make_trainer(schema: wd.Schema, seed: int) -> wd.Trainer:
    """The model of the quickstart."""
    model = wd.WideDeep(schema, hidden_units=[100, 75, 50, 25], embedding_dim=8, seed=seed)
    return wd.Trainer(model, seed=seed, schedule="linear", progress=False)


def choose_epochs(spec: wd.FeatureSpec, train: pa.Table, seed: int) -> int:
    """Return the number of epochs with the best log loss on the last fifth of the training rows."""
    cut = train.num_rows * 4 // 5
    fitted, kept = train.slice(0, cut), train.slice(cut)
    schema, losses = wd.fit_schema(spec, fitted), {}
    for epochs in EPOCHS:
        trainer = make_trainer(schema, seed)
        trainer.fit(fitted, epochs=epochs)
        losses[epochs] = trainer.evaluate(kept)["log_loss"]
    return min(losses, key=losses.__getitem__)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    train = pq.read_table(DATA / "train.parquet")
    print(f"| {'model':11} | test AUC | log loss | accuracy | calibration | epochs |")
    print("|---|---|---|---|---|---|")
    for name, part in PARTS.items():
        spec = part(census_spec())
        schema = wd.fit_schema(spec, train)
        found, epochs = [], []
        for seed in seeds:
            epochs.append(choose_epochs(spec, train, seed))
            trainer = make_trainer(schema, seed)
            trainer.fit(train, epochs=epochs[-1])
            found.append(trainer.evaluate(DATA / "test.parquet"))
        cells = []
        for metric in SHOWN:
            values = [metrics[metric] for metrics in found]
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.4f}{spread}")
        shown = ", ".join(str(count) for count in sorted(set(epochs)))
        print(f"| {name:11} | {' | '.join(cells)} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
