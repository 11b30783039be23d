"""Wide & Deep on UCI Online Retail: what will a customer take next?

Joins a year of invoice lines into examples (each line a positive, four negatives drawn by
popularity, history strictly before), trains on the first 80 % of the time, stops by the next 10 %,
and reports on the last 10 %.

    python examples/online_retail/run.py online_retail.parquet [--out DIRECTORY] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from retail import HOW_TO_GET, find_file, make_examples, retail_spec

import widedeep as wd
from widedeep.join import open_dataset
from widedeep.metrics import calibration, log_loss

REPORTED = ("auc", "gauc", "log_loss", "calibration", "label_mean", "rows")


def train(
    examples: Path, folder: Path, *, epochs: int, threads: int | None
) -> tuple[dict[str, float], wd.Bundle]:
    """Fit the schema on train alone, train, and report on the test period."""
    schema = wd.fit_schema(retail_spec(), examples / "train")
    print(schema, end="\n\n")
    # Factors beside the perceptron: which customer goes with which item.
    model = wd.WideDeep(schema, hidden_units=(256, 128), deep="fm")
    trainer = wd.Trainer(model, batch_size=1024, threads=threads)
    trainer.fit(examples / "train", epochs=epochs, valid=examples / "valid")
    bundle = trainer.export(
        folder, calibration="platt", calibrate_on=examples / "valid", overwrite=True
    )
    test_metrics = trainer.evaluate(examples / "test")
    metrics = {name: float(test_metrics[name]) for name in REPORTED}
    return metrics | _calibrated(bundle, examples / "test"), bundle


def _calibrated(bundle: wd.Bundle, test: Path) -> dict[str, float]:
    """As the bundle scores, whose probabilities were set right on the validation period."""
    label_B = pq.read_table(test, columns=["label"])["label"].to_numpy()
    score_B = bundle.score(test)
    return {
        "calibrated log_loss": log_loss(label_B, score_B),
        "calibrated calibration": calibration(label_B, score_B),
    }


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", help="the Parquet file")
    parser.add_argument("--out", type=Path, default=Path("retail"), help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=1, help="passes (default: 1)")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--keep", action="store_true", help="take the examples that are there")
    arguments = parser.parse_args()
    path = find_file(arguments.data)
    if path is None:
        print(HOW_TO_GET, file=sys.stderr)
        return 2
    started = time.perf_counter()
    examples = arguments.out / "examples"
    if arguments.keep and examples.exists():
        result = open_dataset(examples)
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        result = make_examples(path, examples)
    print(f"\nexamples: {result.rows} in {time.perf_counter() - started:.0f} s")
    metrics, bundle = train(
        examples, arguments.out / "bundle", epochs=arguments.epochs, threads=arguments.threads
    )
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"\nthe test period, {time.perf_counter() - started:.0f} s after the start:")
    for name, value in metrics.items():
        print(f"  {name:24} {value:.4f}")
    print(f"a request must bring: {', '.join(bundle.history)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
