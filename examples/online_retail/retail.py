"""The shop's invoice lines as a log of actions, and the join that makes examples of them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import widedeep as wd
from widedeep.join import ActionLog, Attributes, History, JoinResult, Negatives, Split

VARIABLE = "ONLINE_RETAIL"
HOW_TO_GET = f"""The data is not here: UCI Online Retail (Chen 2015, CC BY 4.0), an online shop's
541,909 invoice lines of a year.

  1. Download "Online Retail.xlsx" from https://archive.ics.uci.edu/dataset/352/online+retail
  2. Make a Parquet file of it:
       pip install pandas openpyxl
       python examples/online_retail/convert.py "Online Retail.xlsx" online_retail.parquet
  3. Name it:
       python examples/online_retail/run.py online_retail.parquet
     (or set {VARIABLE}=online_retail.parquet)"""

NEGATIVES = 4
HISTORY = (
    History(name="last_items", feature="last", k=20),
    History(name="user_lines_30d", feature="count", window="30d"),
    History(name="user_days", feature="since"),
    History(name="item_sold_1d", feature="count", by="item", window="1d"),
    History(name="item_sold_7d", feature="count", by="item", window="7d"),
    History(name="item_sold_30d", feature="count", by="item", window="30d"),
    History(name="item_sold_120d", feature="count", by="item", window="120d"),
    History(name="item_since", feature="since", by="item"),
    History(name="pair_times", feature="count", by="pair"),
    History(name="pair_since", feature="since", by="pair"),
)


def find_file(argument: str | None) -> Path | None:
    """Return the data's path from an argument or the environment, or None if it is not there."""
    folder = argument or os.environ.get(VARIABLE)
    return Path(folder) if folder and Path(folder).is_file() else None


def sales(path: Path) -> pa.Table:
    """Return the lines that sold something to a known customer: who, what, when, for how much."""
    lines = pq.read_table(path)
    sold = pc.and_(pc.greater(lines["Quantity"], 0), pc.greater(lines["UnitPrice"], 0))
    complete = pc.and_(pc.is_valid(lines["CustomerID"]), pc.is_valid(lines["Description"]))
    lines = lines.filter(pc.and_(sold, complete))
    return pa.table(
        {
            "customer": lines["CustomerID"].cast(pa.int64()),
            "item": pc.utf8_trim_whitespace(lines["Description"].cast(pa.string())),
            "time": lines["InvoiceDate"].cast(pa.timestamp("us")),
            "price": lines["UnitPrice"].cast(pa.float64()),
            "country": lines["Country"].cast(pa.string()),
        }
    )


def prices(lines: pa.Table) -> pa.Table:
    """Return the versions of each item's price: one at each moment it was sold."""
    return (
        lines.group_by(["item", "time"])
        .aggregate([("price", "min")])
        .rename_columns(["item", "time", "price"])
    )


def countries(lines: pa.Table) -> pa.Table:
    """Return each customer's country, the first by name of those that have two."""
    return (
        lines.group_by(["customer"])
        .aggregate([("country", "min")])
        .rename_columns(["customer", "country"])
    )


def make_examples(path: Path, output: Path) -> JoinResult:
    """Join: each line a positive, four negatives drawn by popularity, history strictly before."""
    lines = sales(path)
    return wd.join_actions(
        None,
        ActionLog(
            path=lines.select(["customer", "item", "time"]),
            user="customer",
            item="item",
            time="time",
            timezone="UTC",
        ),
        output=output,
        window="1d",
        # A price is known once it was asked: that of the line itself must not be.
        item_attributes=Attributes(
            path=prices(lines),
            key="item",
            valid_from="time",
            timezone="UTC",
            availability_delay="1s",
        ),
        user_attributes=Attributes(path=countries(lines), key="customer"),
        history=HISTORY,
        split=Split(by="time", fractions=(0.8, 0.1, 0.1)),
        negatives=Negatives(per_positive=NEGATIVES),
        partition_rows=5_000_000,  # one pass: all examples in order of time
        progress=True,
    )


def retail_spec() -> wd.FeatureSpec:
    """The features: what sold lately, and what the customer took before.

    Counts and times are read by their logarithm. Each basket repeats its list in a hundred rows: an
    embedding shared with the items, or a cross with them, would learn baskets by heart.
    """
    counts = [h.name for h in HISTORY if h.feature == "count"]
    others = ["user_days", "item_since", "pair_since", "price"]
    return wd.FeatureSpec(
        label="label",
        group="customer",
        features=[
            *wd.numeric(*counts, transform="log1p"),
            *wd.numeric(*others, transform="log1p", missing="indicator"),
            *(wd.bucketized(f"{name}_bin", source=name, bins=255) for name in [*counts, *others]),
            *wd.categorical("item", "customer", min_count=5),
            *wd.categorical("last_items", min_count=5),
            *wd.categorical("country"),
        ],
        item=["item", "price", *(h.name for h in HISTORY if h.by == "item")],
    )
