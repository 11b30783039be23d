"""Data sets to begin with: the census, in the package, and a simulated app store."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from widedeep.census import Dataset, load_census
from widedeep.errors import ConfigError, show_value
from widedeep.join import load_join_config, run_join
from widedeep.simulate import AppStore, Popularity, StoreConfig
from widedeep.simulate.declaration import JOIN_TOML, app_store_spec

__all__ = ["Dataset", "load_app_store", "load_census"]


def load_app_store(
    *, seed: int = 0, days: int = 5, users: int = 5_000, requests_per_day: int = 2_000
) -> Dataset:
    """Return days of a simulated app store: was an app that was shown installed within the hour?

    The store ranks by popularity and shows ten apps per request; its logs are joined by
    :func:`widedeep.join.run_join`. The last fifth of the time is ``valid`` and ``test``. The same
    arguments give the same rows. The features are those of Cheng et al. 2016 for their app store.

    Args:
        seed: Seed of the store.
        days: Days, at least 2; the last hour is left out, whose installs are not all logged.
        users: Users at the start, at least 10.
        requests_per_day: Requests per day, at least 1.

    Raises:
        ConfigError: If a number is outside its range, or DuckDB is missing
            (``pip install 'widedeep[join]'``).

    Example:
        >>> from widedeep.datasets import load_app_store
        >>> store = load_app_store(days=2, users=500, requests_per_day=200)
        >>> sum(part.num_rows for part in (store.train, store.valid, store.test))
        3870
        >>> store.spec.label, store.spec.group
        ('label', 'request_id')
    """
    if isinstance(days, bool) or not isinstance(days, int) or days < 2:
        raise ConfigError(f"got days={show_value(days)}, expected an integer of at least 2")
    config = StoreConfig(seed=seed, users=users, requests_per_day=requests_per_day)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for day, logs in enumerate(AppStore(config).days(Popularity(), days)):
            logs.write(folder, f"day{day:04d}")
        (folder / "join.toml").write_text(JOIN_TOML, encoding="utf-8")
        examples = run_join(load_join_config(folder / "join.toml")).output
        train, valid, test = (
            pq.read_table(examples / split) for split in ("train", "valid", "test")
        )
    return Dataset(
        train=train,
        valid=valid,
        test=test,
        spec=app_store_spec(),
        about=f"{days} days of a simulated app store (widedeep.simulate), seed {seed}",
    )
