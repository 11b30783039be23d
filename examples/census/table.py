"""Wide, deep, and Wide & Deep on UCI Adult: the table of the README, means of five seeds.

Everything is a default of the library: each model learns from the first four fifths of the train
part, stops by the last fifth, and is judged once on UCI's test split.

    python examples/census/table.py [--seeds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import fmean, stdev

import pyarrow as pa
from run import DATA, census_spec, train_and_valid

import widedeep as wd

SHOWN = ("auc", "log_loss", "accuracy", "calibration")
PARTS: dict[str, Callable[[wd.FeatureSpec], wd.FeatureSpec]] = {
    "wide alone": lambda spec: spec.replace(deep=[]),
    "deep alone": lambda spec: spec.replace(wide=[]),
    "Wide & Deep": lambda spec: spec,
}


def trained(spec: wd.FeatureSpec, train: pa.Table, valid: pa.Table, seed: int) -> wd.Trainer:
    """Train the model of the quickstart."""
    schema = wd.fit_schema(spec, train)
    model = wd.WideDeep(schema, hidden_units=[100, 75, 50, 25], embedding_dim=8, seed=seed)
    trainer = wd.Trainer(model, seed=seed, progress=False)
    trainer.fit(train, epochs="auto", valid=valid)
    return trainer


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    train, valid = train_and_valid()
    print(f"| {'model':11} | test AUC | log loss | accuracy | calibration |")
    print("|---|---|---|---|---|")
    for name, make_spec in PARTS.items():
        spec = make_spec(census_spec())
        results = [
            trained(spec, train, valid, seed).evaluate(DATA / "test.parquet") for seed in seeds
        ]
        cells = []
        for metric in SHOWN:
            values = [metrics[metric] for metrics in results]
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.4f}{spread}")
        print(f"| {name:11} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
