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

from retail import HOW_TO_GET, find_file, make_examples, retail_spec

import widedeep as wd
from widedeep.data.join import open_dataset

REPORTED = ("auc", "gauc", "log_loss", "calibration", "label_mean", "rows")


def train(
    examples: Path, bundle: Path, *, epochs: int, threads: int | None
) -> tuple[dict[str, float], wd.Bundle]:
    """Fit the schema on train alone, train, and report on the test period."""
    schema = wd.fit_schema(retail_spec(), examples / "train")
    print(schema, end="\n\n")
    trainer = wd.Trainer(wd.WideDeep(schema), batch_size=1024, threads=threads)
    trainer.fit(examples / "train", epochs=epochs, valid=examples / "valid", early_stopping=1)
    found = trainer.evaluate(examples / "test")
    metrics = {name: float(found[name]) for name in REPORTED}
    return metrics, trainer.export(bundle, metrics=metrics, overwrite=True)


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", help="the Parquet file")
    parser.add_argument("--out", type=Path, default=Path("retail"), help="where all of it goes")
    parser.add_argument("--epochs", type=int, default=4, help="at most (default: 4)")
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
        print(f"  {name:12} {value:.4f}")
    print(f"a request must bring: {', '.join(bundle.history)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
