"""A small click log and a run on it, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOML = """
[data]
train = "train.parquet"
test = "test.parquet"
valid_fraction = 0.2
label = "click"

[features]
numeric = ["age", "price"]
categorical = ["job", "ad", "tags"]
crossed = [["job", "ad"]]
bucketized.age_bucket = { source = "age", boundaries = [25, 40, 60] }

[model]
hidden_units = [8, 4]
embedding_dim = 4

[train]
epochs = 2
batch_size = 64
schedule = "constant"
threads = 1
wide = { optimizer = "ftrl", lr = 0.1, l1 = 0.1 }
deep = { optimizer = "adagrad", lr = 0.05 }
"""

JOBS = ["clerk", "cook", "nurse", "pilot"]


def ads_table(rows: int, seed: int) -> pa.Table:
    """Clicks that depend on the job, on one cross of job and ad, and on the age."""
    rng = np.random.default_rng(seed)
    job, ad = rng.integers(0, 4, rows), rng.integers(0, 6, rows)
    age = rng.integers(18, 80, rows)
    logit = 1.5 * (job == 1) - 1.0 + 3.0 * ((job == 2) & (ad == 3)) - 0.02 * (age - 40)
    click = rng.random(rows) < 1 / (1 + np.exp(-logit))
    tags = [[f"t{t}" for t in rng.integers(0, 9, size)] for size in rng.integers(0, 3, rows)]
    price = np.where(rng.random(rows) < 0.1, np.nan, rng.exponential(10, rows).round(2))
    return pa.table(
        {
            "row_id": pa.array(np.arange(rows) + 1000 * seed),
            "age": pa.array(age),
            "price": pa.array(price, from_pandas=True),
            "job": pa.array([JOBS[j] for j in job]),
            "ad": pa.array([None if rng.random() < 0.05 else f"ad {a}" for a in ad]),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "click": pa.array(click.astype(np.int8)),
        }
    )


def history_table(rows: int, seed: int) -> pa.Table:
    """The same clicks, with up to five ads clicked before: which, for what jobs, how long seen."""
    rng = np.random.default_rng(1000 + seed)
    sizes = rng.integers(0, 6, rows)
    ads = [[f"ad {a}" for a in rng.integers(0, 7, size)] for size in sizes]
    jobs = [[None if j == 4 else JOBS[j] for j in rng.integers(0, 5, size)] for size in sizes]
    lists = {"clicked_ads": ads, "clicked_jobs": jobs}
    table = ads_table(rows, seed)
    for name, column in lists.items():
        table = table.append_column(name, pa.array(column, pa.list_(pa.string())))
    seconds = [[None if s > 60 else float(s) for s in rng.exponential(20, size)] for size in sizes]
    return table.append_column("clicked_seconds", pa.array(seconds, pa.list_(pa.float32())))


def write_ads(folder: Path) -> Path:
    """Write `train.parquet`, `test.parquet` and `ads.toml`; return the folder."""
    pq.write_table(ads_table(600, 1), folder / "train.parquet", row_group_size=250)
    pq.write_table(ads_table(200, 2), folder / "test.parquet")
    (folder / "ads.toml").write_text(TOML)
    return folder
