"""TensorFlow's own Wide & Deep tutorial (release 0.10, UCI Adult), beside TensorFlow's estimator.

    make peers-tf_estimator_dnn_linear
    benchmarks/peers/.../python benchmarks/peers/tf_estimator_tutorial.py --out tutorial.json
    python benchmarks/bench_estimator.py --tensorflow tutorial.json --write

The same columns, layers, 200 steps over the whole training split and rates on both sides: the
estimator's in its own environment, ours by ``compat="tensorflow"``. Last, the same features with
our defaults. Quality alone: medians over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from results_file import write_section

import widedeep as wd

STEPS = 200
NUMBERS = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
HASHED = {
    "education": 1000,
    "relationship": 100,
    "workclass": 100,
    "occupation": 1000,
    "native_country": 1000,
}
AGES = [18, 25, 30, 35, 40, 45, 50, 55, 60, 65]
EMBEDDED = ("workclass", "education", "gender", "relationship", "native_country", "occupation")
OURS = "our defaults, 5 epochs"
METRICS = ("accuracy", "auc", "auc_precision_recall", "average_loss")
SETTINGS: dict[str, dict[str, Any]] = {
    "tensorflow_2_defaults": {},
    "tensorflow_1_defaults": {"loss_reduction": "sum"},
    "rates_0.2_and_0.05": {
        "wide": {"optimizer": "ftrl", "lr": 0.2},
        "deep": {"optimizer": "adagrad", "lr": 0.05},
    },
}


def tutorial_spec() -> wd.FeatureSpec:
    """Return the tutorial's columns."""
    words = [
        *(wd.categorical(name, hash_buckets=size)[0] for name, size in HASHED.items()),
        *wd.categorical("gender", vocabulary=("female", "male"), oov="drop"),
    ]
    numbers = wd.numeric(*NUMBERS, transform="none")
    wide = [
        *(word.name for word in words),
        "ages",
        "education_x_occupation",
        "ages_x_education_x_occupation",
        "native_country_x_occupation",
    ]
    return wd.FeatureSpec(
        label="income",
        features=[
            words,
            numbers,
            wd.bucketized("ages", source="age", boundaries=AGES),
            wd.crossed("education", "occupation", hash_buckets=10_000),
            wd.crossed("ages", "education", "occupation", hash_buckets=1_000_000),
            wd.crossed("native_country", "occupation", hash_buckets=10_000),
        ],
        wide=wide,
        deep=[*EMBEDDED, *NUMBERS],
    )


def read_split(path: Path) -> pa.Table:
    """Return a split with the tutorial's values: "?" for a null, genders in lower case."""
    table = pq.read_table(path)
    for name in (*HASHED, "gender"):
        words = pc.fill_null(table[name].cast(pa.string()), "?")
        words = pc.utf8_lower(words) if name == "gender" else words
        table = table.set_column(table.column_names.index(name), name, words)
    return table


def run(setting: str, seed: int, schema: wd.Schema, train: pa.Table, test: pa.Table) -> Any:
    """Train, and return the metrics of the test split."""
    model = wd.WideDeep(
        schema, hidden_units=[100, 50], embedding_dim=8, compat="tensorflow", seed=seed
    )
    trainer = wd.Trainer(model, batch_size=len(train), progress=False, **SETTINGS[setting])
    trainer.fit(train, epochs=STEPS)
    return {name: trainer.evaluate(test)[name] for name in METRICS}


def run_ours(seed: int, schema: wd.Schema, train: pa.Table, test: pa.Table) -> Any:
    """Train with our defaults and the same features, numbers by quantiles."""
    features = [
        *wd.numeric(*NUMBERS),
        *(f for f in schema.spec.features if getattr(f, "name", "") not in NUMBERS),
    ]
    spec = schema.spec.replace(features=features)
    model = wd.WideDeep(wd.fit_schema(spec, train), seed=seed)
    trainer = wd.Trainer(model, epochs=5, seed=seed, progress=False)
    trainer.fit(train)
    metrics = trainer.evaluate(test)
    ours = {"auc_precision_recall": "pr_auc", "average_loss": "log_loss"}
    return {name: metrics[ours.get(name, name)] for name in METRICS}


def medians(runs: list[Any]) -> dict[str, float]:
    """Return the median of each metric, and the number of seeds."""
    figures = {name: statistics.median(run[name] for run in runs) for name in METRICS}
    return {**figures, "seeds": len(runs)}


def table_text(rows: dict[str, dict[str, float]]) -> str:
    """Return the section of RESULTS.md."""
    lines = [
        "## The tutorial of TensorFlow r0.10",
        "",
        "UCI Adult, the tutorial's columns, 200 steps over all training rows; the test split. "
        "Medians over seeds, by `benchmarks/bench_estimator.py`. TensorFlow's AUC is interpolated "
        "between 200 thresholds, ours is exact.",
        "",
        "| setting | by | accuracy | AUC | AUC (precision, recall) | average loss | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in rows.items():
        setting, _, by = name.rpartition("|")
        cells = " | ".join(f"{figures[metric]:.4f}" for metric in METRICS)
        lines.append(f"| {setting} | {by} | {cells} | {figures['seeds']} |")
    return "\n".join(lines)


def main() -> None:
    """Run every setting and seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).parents[1] / "src" / "widedeep" / "census",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tensorflow", type=Path, help="figures of tf_estimator_tutorial.py")
    parser.add_argument("--write", action="store_true", help="write into RESULTS.md")
    options = parser.parse_args()
    train, test = (read_split(options.data / f"{name}.parquet") for name in ("train", "test"))
    schema = wd.fit_schema(tutorial_spec(), train)
    theirs: dict[str, list[Any]] = {}
    for one in json.loads(options.tensorflow.read_text())["runs"] if options.tensorflow else []:
        theirs.setdefault(one["setting"], []).append(one)
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for setting in (*SETTINGS, OURS):
            metrics = (
                run_ours(seed, schema, train, test)
                if setting == OURS
                else run(setting, seed, schema, train, test)
            )
            runs.setdefault(setting, []).append(metrics)
            print(json.dumps({"setting": setting, "seed": seed, **metrics}), flush=True)
    rows: dict[str, dict[str, float]] = {}
    for setting, measured in runs.items():
        if setting in theirs:
            rows[f"{setting}|tensorflow"] = medians(theirs[setting])
        rows[f"{setting}|widedeep"] = medians(measured)
    text = table_text(rows)
    print(text)
    if options.write:
        write_section("estimator tutorial", text)


if __name__ == "__main__":
    main()
