"""UCI Adult (Census Income), whose files lie beside this module, with features that suit it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.features import FeatureSpec, bucketized, categorical, crossed, numeric
from widedeep.files import atomic_file

__all__ = ["Dataset", "load_census"]

_FOLDER = Path(__file__).parent
_VALID_ROWS = 6_512  # the last fifth of UCI's train part


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled examples in three parts, with features that suit them.

    Args:
        train: Examples to learn from.
        valid: Examples to choose and to stop by.
        test: Examples to judge on.
        spec: The features and the label.
        about: What the data are, where they come from, and their licence.
    """

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    spec: FeatureSpec
    about: str

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``train.parquet``, ``valid.parquet`` and ``test.parquet``, or replace them.

        Args:
            folder: Folder to write to; created if it does not exist.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ("train", "valid", "test"):
            with atomic_file(Path(folder) / f"{name}.parquet") as temporary:
                pq.write_table(getattr(self, name), temporary)


def load_census() -> Dataset:
    """Return UCI Adult: who of 48,842 people earned over 50,000 dollars in 1994?

    14 columns; the label ``income`` is 0 or 1; ``?`` is a value that was not known. ``test`` is
    UCI's own (16,281 rows); the last fifth of UCI's train part is ``valid`` (6,512 rows).

    Source: Becker and Kohavi 1996, `doi:10.24432/C5XW20 <https://doi.org/10.24432/C5XW20>`_, CC BY
    4.0; written as Parquet, columns named, no value changed.

    Example:
        >>> import widedeep as wd
        >>> from widedeep.datasets import load_census
        >>> census = load_census()
        >>> census.train.num_rows, census.valid.num_rows, census.test.num_rows
        (26049, 6512, 16281)
        >>> model = wd.WideDeep(wd.fit_schema(census.spec, census.train), hidden_units=[8])
        >>> trainer = wd.Trainer(model, progress=False)
        >>> _ = trainer.fit(census.train)
        >>> trainer.evaluate(census.test)["auc"] > 0.9
        True
    """
    people = pq.read_table(_FOLDER / "train.parquet")
    rows = people.num_rows - _VALID_ROWS
    numbers = ["age", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
    categories = ["workclass", "education", "marital_status", "occupation", "relationship"]
    bins = [bucketized(f"{name}_bin", source=name, bins=255) for name in numbers]
    ages = [18, 25, 30, 35, 40, 45, 50, 55, 60, 65]
    spec = FeatureSpec(
        label="income",
        features=[
            *numeric(*numbers),
            *categorical(*categories),
            *bins,
            bucketized("age_bucket", source="age", boundaries=ages),
            crossed("education", "occupation"),
            crossed("age_bucket", "education", "occupation"),
        ],
        deep=[*numbers, *categories, *(feature.name for feature in bins)],
    )
    return Dataset(
        train=people.slice(0, rows),
        valid=people.slice(rows),
        test=pq.read_table(_FOLDER / "test.parquet"),
        spec=spec,
        about=(_FOLDER / "README.md").read_text(encoding="utf-8"),
    )
