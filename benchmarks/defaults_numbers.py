"""How numbers are best given to the model: quantiles, buckets of equal mass, bins by value, fields.

Trains on four fifths of UCI Adult's train part and judges on the last fifth, for each way to add
buckets beside the numbers, or to embed the numbers themselves, and each embedding width; the best
by log loss is then judged once on the test part. With `--log`, also one pass over 400,000 rows of
`criteo_like.py` (salt 0). `--shapes` compares bins of all numbers with none instead, as `init`
declares them, on sets of the league table whose numbers and rows are many or few; `--tails` numbers
of long tails by their logarithm with standardised ones; `--shop` (UCI Online Retail, where
ONLINE_RETAIL names its file) ways to declare the shop's numbers and its list of what a customer
took last, on windows of its train part: 30,000 rows teach, the next 10,000 stop, and 60,000 rows
that begin 160,000 later judge, as the league table's test part does.

    python benchmarks/defaults_numbers.py [--seeds 3] [--log] [--test]
    python benchmarks/defaults_numbers.py --shapes [--seeds 1]
    python benchmarks/defaults_numbers.py --tails [--seeds 3]
    python benchmarks/defaults_numbers.py --shop [--seeds 1]

Prints the tables as Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sweep_defaults import CROSSES, JUDGED, data_file

import widedeep as wd
from widedeep.features.numeric import Numeric

if TYPE_CHECKING:
    from league_sets import League

Floats = NDArray[np.float64]
ADULT = Path(__file__).resolve().parent.parent / "src" / "widedeep" / "census"
ADULT_NUMBERS = (
    *("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week"),
)
EMBEDDINGS = wd.Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025)
DENSE = wd.Adagrad(lr=0.02)


SHAPES = (
    ("digits", 1_797), ("adult", 2_000), ("hastie", 12_000), ("clicks 0", 30_000),
    ("one-way", 10_000), ("one-way", 30_000), ("adult", 30_000),
)  # fmt: skip
"""Sets of the league table, and rows of them."""
TAILS = (("adult", 30_000), ("clicks 0", 5_000), ("clicks 0", 30_000))
WINDOWS = (300_000, 600_000, 900_000, 1_200_000)
"""First rows of the windows of the shop's train part."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to give numbers to the model, beside their quantiles."""

    name: str
    option: str | None = None
    buckets: int = 255
    wide: bool = False
    deep: bool = False
    width: int = 16
    embedding: Literal["bins", "piecewise", "periodic"] | None = None

    def numbers(self, names: tuple[str, ...]) -> list[wd.features.Feature]:
        """Return the numbers themselves: plain, or as fields."""
        if self.embedding is None:
            return [*wd.numeric(*names)]
        return [*wd.numeric(*names, embedding=self.embedding, embedding_dim=self.width)]

    def features(self, numbers: tuple[str, ...]) -> list[wd.features.Feature]:
        """Return the buckets of each number."""
        if self.option is None:
            return []
        options = {self.option: self.buckets, "embedding_dim": self.width if self.deep else None}
        return [wd.bucketized(f"{name}_bin", source=name, **options) for name in numbers]

    def spec(
        self,
        label: str,
        numbers: tuple[str, ...],
        categories: list[str],
        crosses: list[tuple[str, str]],
    ) -> wd.FeatureSpec:
        """Return the declaration with the buckets in the parts of this way."""
        buckets = self.features(numbers)
        crossed = [wd.crossed(*parts) for parts in crosses]
        names = [bucket.name for bucket in buckets]
        return wd.FeatureSpec(
            label=label,
            features=[*self.numbers(numbers), *wd.categorical(*categories), *buckets, *crossed],
            wide=[*categories, *(names if self.wide else []), *(cross.name for cross in crossed)],
            deep=[*numbers, *categories, *(names if self.deep else [])],
        )


def ways() -> Iterator[Way]:
    """Yield what is compared."""
    yield Way(name="quantiles alone")
    yield Way(name="+ 64 buckets of equal mass", option="quantiles", buckets=64, deep=True)
    yield Way(name="+ bins", option="bins", wide=True)
    for width in (4, 8, 16):
        yield Way(name="+ bins", option="bins", deep=True, width=width)
    for width in (4, 8, 16):
        yield Way(name="+ bins", option="bins", wide=True, deep=True, width=width)
    for embedding in ("bins", "piecewise", "periodic"):
        name = f'`embedding="{embedding}"`'
        yield Way(name=name, embedding=embedding, deep=True, width=8)


def train(
    spec: wd.FeatureSpec, rows: pa.Table, valid: pa.Table | None, *, seed: int, epochs: int
) -> wd.Trainer:
    """Train with the rates under test, and go back to the best epoch where rows are held out."""
    model = wd.WideDeep(
        wd.fit_schema(spec, rows), hidden_units=[256, 128], embedding_std=0.1, seed=seed
    )
    trainer = wd.Trainer(
        model,
        deep=EMBEDDINGS,
        dense=DENSE,
        batch_size=256,
        schedule="linear" if epochs > 1 else "constant",
        seed=seed,
        threads=1,
        progress=False,
    )
    trainer.fit(rows, epochs=epochs, valid=valid)
    return trainer


def table(
    title: str,
    label: str,
    numbers: tuple[str, ...],
    parts: tuple[pa.Table, pa.Table],
    crosses: list[tuple[str, str]],
    *,
    seeds: int,
    epochs: int,
) -> Way:
    """Print a table of all ways and return the best by log loss."""
    rows, judged = parts
    categories = [name for name in rows.column_names if name not in (label, *numbers)]
    print(f"\n{title}\n")
    print("| numbers | in | width | AUC | log loss |\n|---|---|---|---|---|")
    losses: dict[Way, float] = {}
    for way in ways():
        metrics = []
        for seed in range(seeds):
            spec = way.spec(label, numbers, categories, crosses)
            valid = judged if epochs > 1 else None
            trainer = train(spec, rows, valid, seed=seed, epochs=epochs)
            scores = trainer.evaluate(judged)
            metrics.append([scores["auc"], scores["log_loss"]])
        mean, spread = np.mean(metrics, axis=0), np.std(metrics, axis=0)
        losses[way] = mean[1]
        places = " + ".join(part for part in ("wide", "deep") if getattr(way, part))
        print(
            f"| {way.name} | {places} | {way.width if way.deep else ''} | "
            f"{mean[0]:.4f} ± {spread[0]:.4f} | {mean[1]:.4f} ± {spread[1]:.4f} |",
            flush=True,
        )
    return min(losses, key=lambda way: losses[way])


def compare_shapes(seeds: int) -> None:
    """Print what bins of all numbers, and of none, are worth by the numbers and rows of a set."""
    from league_sets import SETS

    print("| set | rows | rows per bin | bins | validation AUC | test AUC / log loss |")
    print("|---|---|---|---|---|---|")
    for name, rows in SHAPES:
        league = SETS[name](rows, ADULT.parents[2] / "benchmarks" / "data")
        count = league.train.num_rows
        for bins in (True, False):
            inferred = wd.infer_spec(league.train, label=league.label, bins=bins)
            numbers = [c for c in inferred.columns if c.is_number]
            cells = sum(min(c.profile.distinct, c.bin_count(count)) for c in numbers)
            print(
                f"| {name} | {count:,} | {count / cells:.0f} | {'all' if bins else 'none'} | "
                f"{means(judge(inferred.spec, league, seeds))} |",
                flush=True,
            )


def compare_tails(seeds: int) -> None:
    """Print what the logarithm of long tails is worth where `infer_spec` sees some."""
    from league_sets import SETS

    print("| set | rows | long tails | numbers | validation AUC | test AUC / log loss |")
    print("|---|---|---|---|---|---|")
    for name, rows in TAILS:
        league = SETS[name](rows, ADULT.parents[2] / "benchmarks" / "data")
        spec = wd.infer_spec(league.train, label=league.label).spec
        plain = [
            replace(f, transform="standard") if isinstance(f, Numeric) else f for f in spec.features
        ]
        tails = sum(isinstance(f, Numeric) and f.transform == "log1p" for f in spec.features)
        start = f"| {name} | {league.train.num_rows:,} | {tails}"
        standard = replace(spec, features=tuple(plain))
        print(f"{start} | standardised | {means(judge(standard, league, seeds))} |", flush=True)
        print(f"{start} | logarithms of them | {means(judge(spec, league, seeds))} |", flush=True)


def compare_shop(seeds: int) -> None:
    """Print what ways to declare the shop's numbers and lists are worth, beside one another."""
    from league_sets import SETS, League
    from retail import HISTORY

    whole = SETS["shop"](2_000_000, ADULT.parents[2] / "benchmarks" / "data")
    windows = [
        League(
            train=whole.train.slice(start, 30_000), valid=whole.train.slice(start + 30_000, 10_000),
            test=whole.train.slice(start + 200_000, 60_000), label=whole.label,
        ) for start in WINDOWS
    ]  # fmt: skip
    counts = [h.name for h in HISTORY if h.feature == "count"]
    others = ["user_days", "item_since", "pair_since", "price"]
    ids = [*wd.categorical("item", "customer", min_count=5), *wd.categorical("country")]
    cross = wd.crossed("last_items", "item", min_count=20)
    shared = wd.categorical("last_items", table="item", min_count=5)
    lists = {
        "none": [],
        "of its own table": wd.categorical("last_items", min_count=5),
        "of the items' table": shared,
        "of the items' table, crossed with the item": [*shared, cross],
    }
    print("| numbers | the list | validation AUC | AUC / log loss |\n|---|---|---|---|")
    for transform in ("quantile", "standard", "log1p"):
        numbers = [
            *wd.numeric(*counts, transform=transform),
            *wd.numeric(*others, transform=transform, missing="indicator"),
            *(wd.bucketized(f"{name}_bin", source=name, bins=255) for name in [*counts, *others]),
        ]
        for name, features in lists.items():
            spec = wd.FeatureSpec(label=whole.label, features=[*numbers, *ids, *features])
            runs = np.mean([judge(spec, window, seeds) for window in windows], axis=0)
            print(f"| {transform} | {name} | {means(runs)} |", flush=True)


def judge(spec: wd.FeatureSpec, league: League, seeds: int) -> Floats:
    """Return the mean AUC of the validation rows, and AUC and log loss of the test rows."""
    runs = []
    for seed in range(seeds):
        model = wd.WideDeep(wd.fit_schema(spec, league.train), seed=seed)
        trainer = wd.Trainer(model, epochs="auto", seed=seed, threads=1, progress=False)
        trainer.fit(league.train, valid=league.valid)
        test = trainer.evaluate(league.test)
        runs.append((trainer.valid_metrics["auc"], test["auc"], test["log_loss"]))
    mean: Floats = np.mean(runs, axis=0)
    return mean


def means(figures: Floats) -> str:
    """Return what `judge` found as cells of a table."""
    valid, auc, loss = figures
    return f"{valid:.4f} | {auc:.4f} / {loss:.4f}"


def main() -> None:
    """Print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of UCI Adult")
    parser.add_argument("--log", action="store_true", help="also one pass of the generated log")
    parser.add_argument("--test", action="store_true", help="also the best on the test part")
    parser.add_argument("--shapes", action="store_true", help="bins by rows and numbers")
    parser.add_argument("--tails", action="store_true", help="logarithms of long tails")
    parser.add_argument("--shop", action="store_true", help="the shop's numbers and its list")
    arguments = parser.parse_args()
    for asked, compare in (
        (arguments.shapes, compare_shapes),
        (arguments.tails, compare_tails),
        (arguments.shop, compare_shop),
    ):
        if asked:
            compare(arguments.seeds)
            return
    adult = pq.read_table(ADULT / "train.parquet")
    order = np.random.default_rng(0).permutation(adult.num_rows)
    cut = adult.num_rows * 4 // 5
    parts = adult.take(order[:cut]), adult.take(order[cut:])
    best = table(
        "UCI Adult, validation fifth", "income", ADULT_NUMBERS, parts, [],
        seeds=arguments.seeds, epochs=arguments.epochs,
    )  # fmt: skip
    if arguments.test:
        categories = [n for n in adult.column_names if n not in ("income", *ADULT_NUMBERS)]
        test, metrics = pq.read_table(ADULT / "test.parquet"), []
        for seed in range(arguments.seeds):
            spec = best.spec("income", ADULT_NUMBERS, categories, [])
            trainer = train(spec, parts[0], parts[1], seed=seed, epochs=arguments.epochs)
            scores = trainer.evaluate(test)
            metrics.append([scores["auc"], scores["log_loss"], scores["calibration"]])
        mean, spread = np.mean(metrics, axis=0), np.std(metrics, axis=0)
        print(f"\n{best} on the test part: AUC, log loss, calibration {mean} ± {spread}")
    if arguments.log:
        numbers = tuple(f"I{i}" for i in range(1, 14))
        columns = ["label", *numbers, *(f"C{i}" for i in range(1, 27))]
        log = pq.read_table(data_file(0), columns=columns)
        table(
            "criteo_like, salt 0, one pass", "label", numbers,
            (log.slice(0, 400_000), log.slice(log.num_rows - JUDGED)), CROSSES["planted"],
            seeds=1, epochs=1,
        )  # fmt: skip


if __name__ == "__main__":
    main()
