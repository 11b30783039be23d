"""Crosses that `infer_spec` suggests for a click log whose truth is known, and what they are worth.

Infers the features of the first 400,000 rows of `criteo_like.py` (of a million, for several planted
truths), prints each suggested cross, whether it was planted and how long the search took, then
learns the rows once, with and without the crosses, and judges on the last 100,000. The same is done
with a label that was shuffled, where no cross is one too few.

    python benchmarks/defaults_crosses.py [--salts 0,1,2] [--train-rows 400000]

Prints the table as Markdown and writes it into RESULTS.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from criteo_like import GENERALISED, MEMORISED
from results_file import machine, write_section
from sweep_defaults import JUDGED, data_file

import widedeep as wd
from widedeep.features import Crossed

COLUMNS = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]


def planted(pairs: list[tuple[int, int]]) -> set[frozenset[str]]:
    """Return the columns of planted pairs."""
    return {frozenset((f"C{one + 1}", f"C{other + 1}")) for one, other in pairs}


def without_crosses(spec: wd.FeatureSpec) -> wd.FeatureSpec:
    """Return the same features but the crosses."""
    features = [f for f in spec.all_features if not isinstance(f, Crossed)]
    return replace(spec, features=features)


def judge(spec: wd.FeatureSpec, train: pa.Table, test: pa.Table) -> tuple[float, float]:
    """Learn one pass with default settings; return AUC and log loss."""
    model = wd.WideDeep(wd.fit_schema(spec, train))
    trainer = wd.Trainer(model, threads=1, progress=False)
    trainer.fit(train)
    metrics = trainer.evaluate(test)
    return metrics["auc"], metrics["log_loss"]


def table_rows(options: argparse.Namespace) -> Iterator[str]:
    """Yield the table's lines as they are found."""
    yield (
        "| salt | planted crosses | planted products | others | of a shuffled label "
        "| AUC / log loss without | with |"
    )
    yield "|---|---|---|---|---|---|---|"
    for salt in map(int, options.salts.split(",")):
        table = pq.read_table(data_file(salt), columns=COLUMNS)
        train = table.slice(0, options.train_rows)
        test = table.slice(table.num_rows - JUDGED)
        start = time.process_time()
        inferred = wd.infer_spec(train, label="label")
        print(f"salt {salt}: {time.process_time() - start:.0f} s of processor time", flush=True)
        for cross in inferred.crosses:
            print(f"salt {salt}: {' x '.join(cross.columns)} {cross.reason}", flush=True)
        crosses = {frozenset(cross.columns) for cross in inferred.crosses}
        memorised, products = planted(MEMORISED), planted(GENERALISED)
        label = np.random.default_rng(0).permutation(train["label"].to_numpy())
        noise = wd.infer_spec(train.set_column(0, "label", pa.array(label)), label="label")
        without = judge(without_crosses(inferred.spec), train, test)
        full = judge(inferred.spec, train, test)
        yield (
            f"| {salt} | {len(crosses & memorised)} of {len(memorised)} "
            f"| {len(crosses & products)} of {len(products)} "
            f"| {len(crosses - memorised - products)} | {len(noise.crosses)} "
            f"| {without[0]:.4f} / {without[1]:.4f} | {full[0]:.4f} / {full[1]:.4f} |"
        )


def main() -> None:
    """Print the table and keep it in RESULTS.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--salts", default="0,1,2")
    parser.add_argument("--train-rows", type=int, default=400_000)
    options = parser.parse_args()
    lines = []
    for line in table_rows(options):
        print(line, flush=True)
        lines.append(line)
    text = f"""## Suggested crosses

On {machine()}, one of them: {options.train_rows:,} rows of `criteo_like.py`; AUC and log loss of
one pass with default settings, on {JUDGED:,} other rows.
"""
    write_section("crosses", "\n".join([text, *lines]))


if __name__ == "__main__":
    main()
