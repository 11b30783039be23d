"""Wide & Deep on UCI Adult: who earns more than 50,000 dollars a year?

Trains jointly on 26,049 people, stops by 6,512 others, evaluates on UCI's own test split of 16,281,
writes a bundle and scores one person with it, here and over HTTP.

    python examples/census/run.py [--out DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import widedeep as wd

DATA = Path(__file__).parents[2] / "src" / "widedeep" / "census"
NUMBERS = ["age", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
CATEGORIES = ["workclass", "education", "marital_status", "occupation", "relationship"]
AGES = [18, 25, 30, 35, 40, 45, 50, 55, 60, 65]
PERSON = {
    "age": 39,
    "workclass": "State-gov",
    "education": "Bachelors",
    "education_num": 13,
    "marital_status": "Never-married",
    "occupation": "Adm-clerical",
    "relationship": "Not-in-family",
    "capital_gain": 2174,
    "capital_loss": 0,
    "hours_per_week": 40,
}


def census_spec() -> wd.FeatureSpec:
    """Numbers and their bins, categories, and the crosses that the wide part memorises."""
    bins = [wd.bucketized(f"{name}_bin", source=name, bins=255) for name in NUMBERS]
    return wd.FeatureSpec(
        label="income",
        features=[
            *wd.numeric(*NUMBERS),
            *wd.categorical(*CATEGORIES),
            *bins,
            wd.bucketized("age_bucket", source="age", boundaries=AGES),
            wd.crossed("education", "occupation"),
            wd.crossed("age_bucket", "education", "occupation"),
        ],
        deep=[*NUMBERS, *CATEGORIES, *(feature.name for feature in bins)],
    )


def train_and_valid() -> tuple[pa.Table, pa.Table]:
    """Return UCI's training rows: the first four fifths to learn from, the last to stop by."""
    people = pq.read_table(DATA / "train.parquet")
    cut = people.num_rows * 4 // 5
    return people.slice(0, cut), people.slice(cut)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="bundles/census", help="where to write the bundle")
    arguments = parser.parse_args()

    train, valid = train_and_valid()
    schema = wd.fit_schema(census_spec(), train)
    print(schema, end="\n\n")
    model = wd.WideDeep(schema, hidden_units=[100, 75, 50, 25], embedding_dim=8)
    trainer = wd.Trainer(model)
    trainer.fit(train, epochs="auto", valid=valid)
    metrics = trainer.evaluate(DATA / "test.parquet")
    for name in ("auc", "log_loss", "accuracy", "accuracy_baseline", "calibration"):
        print(f"{name:18} {metrics[name]:.4f}")

    bundle = trainer.export(arguments.out, metrics=metrics, warmup=[PERSON], overwrite=True)
    print(f"\nbundle written to {arguments.out}")
    print(
        f"P(income > 50K) of a {PERSON['age']}-year-old in {PERSON['occupation']}: "
        f"{bundle.score([PERSON])[0]:.3f}"
    )
    print(bundle.explain(PERSON))
    report = wd.make_report(bundle, DATA / "test.parquet", history=trainer.history, name="census")
    print(f"\nall about it on one page: {report.save(f'{arguments.out}.report.html')}")
    serve_one_request(arguments.out)


def serve_one_request(bundle: str) -> None:
    """Serve the bundle in a process of its own, and ask it for the same person's score."""
    command = [sys.executable, "-m", "widedeep", "serve", f"census={bundle}", "--http", ":0"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["http"]
        body = json.dumps({"examples": [PERSON]})
        print(f"\ncurl {url}/v1/models/census:regress -d '{body}'")
        try:
            while True:
                try:
                    request = urllib.request.Request(
                        f"{url}/v1/models/census:regress",
                        body.encode(),
                        {"Content-Type": "application/json"},
                    )
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        print(answer.read().decode())
                    return
                except urllib.error.HTTPError as error:
                    if error.code != 503:  # the bundle is still being loaded
                        raise
                    time.sleep(0.05)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
