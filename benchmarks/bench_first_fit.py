"""The first fit of a new user: the bare estimators against scikit-learn's linear models and trees.

Ten tables of 150 to 20,640 rows, three folds each: log loss of `WideDeepClassifier()`, r2 of
`WideDeepRegressor()`, both without a setting, beside a linear model in the usual pipeline
(standardised numbers, one-hot categories) and the better of scikit-learn's two gradient boostings.
Those are told which columns are categories; the estimator finds out by itself. Five tables come
with scikit-learn, five are generated here, as the functions below say.
`--adult` fits Adult's 32,561 rows too, and scores its 16,281 test rows.

    python benchmarks/bench_first_fit.py [--only iris titanic ...] [--adult] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

import widedeep as wd

Array = NDArray[Any]
ADULT = Path(__file__).parents[1] / "src" / "widedeep" / "census"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to fit.

    Args:
        X: Its columns.
        y: What is to be predicted.
        categories: Columns that are categories, for scikit-learn's models.
        regression: The label is a number.
    """

    X: pd.DataFrame
    y: Array
    categories: tuple[str, ...] = ()
    regression: bool = False


def bundled(load: Callable[..., Any], regression: bool = False) -> Table:
    """Return a table that comes with scikit-learn."""
    data = load(as_frame=True)
    return Table(X=data.data, y=data.target.to_numpy(), regression=regression)


def softmax_draw(rng: np.random.Generator, logits: Array) -> Array:
    """Draw a class for each row of logits."""
    noise = rng.gumbel(size=logits.shape)
    classes: Array = (logits + noise).argmax(axis=1)
    return classes


def penguins(seed: int = 0) -> Table:
    """344 birds as in Palmer Penguins: three species whose sizes overlap a little.

    Bill, flipper and mass are normal around the species' and sex' mean; Gentoo live on one island,
    Chinstrap on another, Adelie on all three. 2 of 100 cells are missing.
    """
    rng = np.random.default_rng(seed)
    species = rng.choice(3, 344, p=[0.44, 0.2, 0.36])
    male = rng.random(344) < 0.5
    means = np.array([[38.8, 18.3, 190, 3700], [48.8, 18.4, 196, 3730], [47.5, 15.0, 217, 5070]])
    spread = np.array([2.4, 0.95, 6.2, 320])
    values = means[species] + spread * rng.normal(size=(344, 4))
    values += np.where(male[:, None], 1, -1) * np.array([1.5, 0.6, 2.5, 330])
    values[rng.random(values.shape) < 0.02] = np.nan
    anywhere = rng.choice(["Torgersen", "Biscoe", "Dream"], 344, p=[0.34, 0.29, 0.37])
    island = np.select([species == 1, species == 2], ["Dream", "Biscoe"], anywhere)
    sex = np.where(rng.random(344) < 0.03, None, np.where(male, "male", "female"))
    names = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    X = pd.DataFrame({"island": island, **dict(zip(names, values.T, strict=True)), "sex": sex})
    y = np.array(["Adelie", "Chinstrap", "Gentoo"])[species]
    return Table(X=X, y=y, categories=("island", "sex"))


def titanic(seed: int = 0) -> Table:
    """891 passengers as in the Titanic table: survival by sex, class and age, and their products.

    Women of the first two classes survive, those of the third half of the time; boys are saved,
    large families are not. A fifth of the ages is missing; the fare follows class and family.
    """
    rng = np.random.default_rng(seed)
    rows = 891
    pclass = rng.choice([1, 2, 3], rows, p=[0.24, 0.21, 0.55])
    female = rng.random(rows) < 0.35
    age = np.clip(rng.normal(38 - 4.5 * (pclass - 1), 14), 0.4, 80).round(1)
    child = rng.random(rows) < 0.08
    age[child] = rng.uniform(0.4, 12, child.sum()).round(1)
    sibsp = rng.choice([0, 1, 2, 3, 4, 5, 8], rows, p=[0.68, 0.23, 0.03, 0.02, 0.02, 0.01, 0.01])
    parch = rng.choice([0, 1, 2, 3, 4, 5], rows, p=[0.76, 0.13, 0.09, 0.006, 0.004, 0.01])
    fare = np.exp(rng.normal(4.1 - 0.85 * (pclass - 1) + 0.25 * (sibsp + parch), 0.45)).round(4)
    embarked = rng.choice(["S", "C", "Q"], rows, p=[0.72, 0.19, 0.09])
    logit = np.where(female, np.where(pclass < 3, 3.4, 0.1), np.where(pclass == 1, -0.5, -2.2))
    logit = logit + np.where((age < 13) & (pclass < 3), 4.0, np.where(age < 13, 1.0, 0.0))
    logit = logit - 1.5 * (sibsp + parch >= 4) - 0.015 * (age - 30) + 0.3 * (embarked == "C")
    y = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    age[rng.random(rows) < 0.2] = np.nan
    X = pd.DataFrame(
        {
            "pclass": pclass,
            "sex": np.where(female, "female", "male"),
            "age": age,
            "sibsp": sibsp,
            "parch": parch,
            "fare": fare,
            "embarked": embarked,
        }
    )
    return Table(X=X, y=y, categories=("pclass", "sex", "embarked"))


def california(seed: int = 0) -> Table:
    """20,640 districts as in California Housing: a price by income, place and crowding.

    The place acts as six smooth hills of the map, which no linear model can follow; income acts
    along a curve, more so near the coast; prices end at 5.
    """
    rng = np.random.default_rng(seed)
    rows = 20_640
    south = rng.random(rows) < 0.58
    along = rng.normal(np.where(south, 0.25, 0.72), 0.09, rows)
    across = rng.normal(0.0, 1.0, rows) * 0.9
    latitude = (32.5 + 9.5 * np.clip(along, 0, 1)).round(2)
    longitude = (-117.0 - 6.5 * np.clip(along, 0, 1) + across).round(2)
    income = np.exp(rng.normal(1.25, 0.45, rows)).round(4)
    house_age = np.clip(rng.gamma(5.5, 5.2, rows), 1, 52).round()
    rooms = np.exp(rng.normal(1.6 + 0.08 * income, 0.2, rows)) / 1.2
    bedrooms = np.exp(rng.normal(0.07, 0.08, rows))
    population = np.exp(rng.normal(7.0, 0.75, rows)).round()
    occupancy = np.exp(rng.normal(1.05, 0.25, rows))
    hills = rng.uniform([32.6, -122.5], [41.5, -117.0], (6, 2))
    heights = rng.uniform(0.4, 1.6, 6)
    near = sum(
        height * np.exp(-((latitude - a) ** 2 + (longitude - b) ** 2) / 0.8)
        for (a, b), height in zip(hills, heights, strict=True)
    )
    coast = 1 / (1 + np.exp(3 * (across - 0.2)))
    value = 0.25 + 0.33 * income + 0.25 * income * coast + near - 0.28 * (occupancy - 2.9)
    value = value + 0.006 * house_age + 0.03 * (rooms - 5) - 0.02 * income**1.5 * (income > 7)
    value = np.clip(value + rng.normal(0, 0.42, rows), 0.15, 5.0)
    X = pd.DataFrame(
        {
            "MedInc": income,
            "HouseAge": house_age,
            "AveRooms": rooms,
            "AveBedrms": bedrooms,
            "Population": population,
            "AveOccup": occupancy,
            "Latitude": latitude,
            "Longitude": longitude,
        }
    )
    return Table(X=X, y=value, regression=True)


def pairs(seed: int = 0) -> Table:
    """4,000 rows of six categories, where the label hangs on pairs of them and no one alone.

    Two pairs of columns (of 6 x 8 and 5 x 7 values) have a random effect of each combination, of
    mean 0 over each value; two columns do nothing.
    """
    rng = np.random.default_rng(seed)
    sizes = (6, 8, 5, 7, 4, 10)
    codes = np.stack([rng.integers(0, size, 4_000) for size in sizes], axis=1)
    logit = np.zeros(4_000)
    for a, b in ((0, 1), (2, 3)):
        effect = rng.normal(0, 1.8, (sizes[a], sizes[b]))
        effect -= effect.mean(axis=0)
        effect -= effect.mean(axis=1, keepdims=True)
        logit += effect[codes[:, a], codes[:, b]]
    y = (rng.random(4_000) < 1 / (1 + np.exp(-logit))).astype(int)
    names = [f"c{i}" for i in range(6)]
    X = pd.DataFrame({name: [f"v{v}" for v in codes[:, i]] for i, name in enumerate(names)})
    return Table(X=X, y=y, categories=tuple(names))


def users_items(seed: int = 0) -> Table:
    """20,000 clicks of 200 users on 100 items, ids as integers: popularity and taste of rank 2."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 200, 20_000), rng.integers(0, 100, 20_000)
    taste, kind = rng.normal(size=(200, 2)), rng.normal(size=(100, 2))
    logit = -0.5 + 0.6 * rng.normal(size=200)[user] + 0.8 * rng.normal(size=100)[item]
    logit += 0.9 * (taste[user] * kind[item]).sum(axis=1)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(int)
    X = pd.DataFrame({"user_id": user + 1, "item_id": item + 1})
    return Table(X=X, y=y, categories=("user_id", "item_id"))


TABLES: dict[str, Callable[[], Table]] = {
    "iris": lambda: bundled(datasets.load_iris),
    "wine": lambda: bundled(datasets.load_wine),
    "breast cancer": lambda: bundled(datasets.load_breast_cancer),
    "digits": lambda: bundled(datasets.load_digits),
    "diabetes": lambda: bundled(datasets.load_diabetes, regression=True),
    "penguins": penguins,
    "titanic": titanic,
    "california": california,
    "pairs": pairs,
    "users x items": users_items,
}


def linear(table: Table) -> Any:
    """The linear model in its usual pipeline."""
    numbers = [name for name in table.X.columns if name not in table.categories]
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), list(table.categories)),
    )
    last = Ridge() if table.regression else LogisticRegression(max_iter=2_000)
    return make_pipeline(columns, last)


def trees(table: Table) -> list[Any]:
    """Both gradient boostings; the plain one takes no missing numbers."""
    numbers = [name for name in table.X.columns if name not in table.categories]
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    flags = [True] * len(table.categories) + [False] * len(numbers)
    histogram: Any = HistGradientBoostingClassifier
    plain: Any = GradientBoostingClassifier
    if table.regression:
        histogram, plain = HistGradientBoostingRegressor, GradientBoostingRegressor
    return [
        make_pipeline(
            make_column_transformer((ordinal, list(table.categories)), ("passthrough", numbers)),
            histogram(categorical_features=flags, random_state=0),
        ),
        make_pipeline(
            make_column_transformer(
                (OneHotEncoder(handle_unknown="ignore"), list(table.categories)),
                (SimpleImputer(), numbers),
            ),
            plain(random_state=0),
        ),
    ]


def bare(table: Table, threads: int | None) -> Any:
    """The estimator as it comes."""
    kind: Any = wd.WideDeepRegressor if table.regression else wd.WideDeepClassifier
    return kind(threads=threads)


def folds(table: Table) -> list[tuple[Array, Array]]:
    """Three folds, of equal shares of the classes."""
    kind = KFold if table.regression else StratifiedKFold
    return list(kind(3, shuffle=True, random_state=0).split(table.X, table.y))


def cross_score(make: Callable[[], Any], table: Table) -> tuple[float, float]:
    """Return the mean log loss or r2 of three folds, and the seconds of a fit."""
    scores, seconds = [], []
    for train, test in folds(table):
        started = time.perf_counter()
        model = make().fit(table.X.iloc[train], table.y[train])
        seconds.append(time.perf_counter() - started)
        X, y = table.X.iloc[test], table.y[test]
        if table.regression:
            scores.append(r2_score(y, model.predict(X)))
        else:
            scores.append(log_loss(y, model.predict_proba(X), labels=model.classes_))
    return float(np.mean(scores)), float(np.mean(seconds))


def compare(name: str, threads: int | None) -> tuple[bool, bool]:
    """Print a table's line; tell whether it is within 5 % of the best, and 10 % of the linear."""
    table = TABLES[name]()
    straight, _ = cross_score(lambda: linear(table), table)
    count = len(trees(table))
    boosted = [cross_score(lambda i=i: trees(table)[i], table)[0] for i in range(count)]
    ours, seconds = cross_score(lambda: bare(table, threads), table)
    if table.regression:
        best_boosted = max(boosted)
        ratio, to_linear = ours / max(straight, best_boosted), ours / straight
        near, safe = ratio >= 0.95, to_linear >= 0.90
    else:
        best_boosted = min(boosted)
        ratio, to_linear = ours / min(straight, best_boosted), ours / straight
        near, safe = ratio <= 1.05, to_linear <= 1.10
    metric = "r2" if table.regression else "log loss"
    print(
        f"| {name} | {len(table.y):,} | {metric} | {straight:.4f} | {best_boosted:.4f} | "
        f"{ours:.4f} | {ratio:.2f}{'' if near else ' (!)'} | {seconds:.1f} |",
        flush=True,
    )
    return near, safe


def adult(threads: int | None) -> None:
    """Print the figures of Adult's own split."""
    train = pd.read_parquet(ADULT / "train.parquet")
    test = pd.read_parquet(ADULT / "test.parquet")
    started = time.perf_counter()
    model = wd.WideDeepClassifier(threads=threads)
    model.fit(train.drop(columns="income"), train["income"])
    seconds = time.perf_counter() - started
    p = model.predict_proba(test.drop(columns="income"))[:, 1]
    y = test["income"].to_numpy()
    print(
        f"adult: AUC {roc_auc_score(y, p):.4f}, log loss {log_loss(y, p):.4f}, "
        f"calibration {p.mean() / y.mean():.3f}, {seconds:.1f} s"
    )


def main() -> None:
    """Print one line a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--adult", action="store_true", help="fit Adult, too")
    parser.add_argument("--threads", type=int, help="of the estimators; all if not given")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    print(
        "| table | rows | metric | linear | boosting | bare estimator | to the better | s a fit |"
    )
    print("|---|---|---|---|---|---|---|---|")
    found = [compare(name, args.threads) for name in args.only]
    print(
        f"\nwithin 5 % of the better on {sum(near for near, _ in found)} of {len(found)}; "
        f"within 10 % of the linear on {sum(safe for _, safe in found)}"
    )
    if args.adult:
        adult(args.threads)


if __name__ == "__main__":
    main()
