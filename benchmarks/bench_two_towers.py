"""Retrieval in the simulated app store: how many of a user's truly best apps the candidates hold.

    python benchmarks/bench_two_towers.py [--seeds 1 2 3] [--requests 200] [--folder DIR] [--write]

A store lives for 14 days by popularity. Its logs are joined and a ranker is trained on them, alone
and with two towers beside it. Then each user of the next requests gets 200 candidates, what he has
installed left out, and it is counted how many of his 50 truly best apps (by the true probability
of an install) are among them. Settings were chosen on the store of seed 0, which is not measured.

With `implicit` installed (pip install implicit), its ALS and BPR are measured too, trained on what
every user has installed.
"""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results_file import machine, write_section

import widedeep as wd
from widedeep import models
from widedeep.config import config_from_tables
from widedeep.join import Negatives, Split, load_join_config, run_join
from widedeep.optim import make_optimizer
from widedeep.serving.retrieval import Retriever
from widedeep.simulate import AppStore, Popularity, StoreConfig
from widedeep.simulate.click_model import install_probability
from widedeep.simulate.declaration import APP_STORE_TOML, JOIN_TOML
from widedeep.simulate.requests import Requests, new_round
from widedeep.simulate.store import load_store, save_store
from widedeep.simulate.table1 import interval

DAYS, CANDIDATES, BEST = 14, 200, 50
TOWERS = {
    "two towers": models.TwoTower(item="app"),
    "two towers, log_q = 1": models.TwoTower(item="app", log_q=1.0),
}
Found = Callable[[int], list[str]]


def logged_store(folder: Path, seed: int) -> AppStore:
    """Return a store after its days, with joined examples in the folder."""
    if not (folder / "store.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        store = AppStore(StoreConfig(seed=seed, requests_per_day=8000))
        for day, logged in enumerate(store.days(Popularity(), DAYS)):
            logged.write(folder, f"day{day:04d}")
        (folder / "join.toml").write_text(JOIN_TOML, encoding="utf-8")
        run_join(
            replace(
                load_join_config(folder / "join.toml"),
                split=Split(fractions=(0.9, 0.05, 0.05)),
                negatives=Negatives(rate=0.15, splits=("train", "valid")),
            )
        )
        save_store(store, folder / "store.npz")
    return load_store(folder / "store.npz")


class Truth:
    """Requests of the next day, what their users have, and their best apps."""

    def __init__(self, store: AppStore, requests: int) -> None:
        self.catalogue = store.catalogue()
        asked = new_round(store.world, self.catalogue, 0, 40)
        self.requests: Requests = asked.take(np.arange(min(requests, len(asked))))
        self.apps = self.catalogue["app"].to_pylist()
        taken = self.requests
        every_RA = np.tile(np.arange(len(self.apps)), (len(taken), 1))
        chance_RA = install_probability(
            store.world, taken.user_R, taken.device_R, taken.hour_R, every_RA
        )
        self.installed = [row[row >= 0] for row in store.world.users.installed_UL[taken.user_R]]
        self.best: list[set[str]] = []
        for chance_A, own in zip(chance_RA, self.installed, strict=True):
            chance_A[own] = -1.0
            self.best.append({self.apps[i] for i in np.argsort(-chance_A)[:BEST]})

    def names(self, rows: NDArray[Any]) -> list[str]:
        """Return the ids of apps."""
        return [self.apps[row] for row in rows]

    def held(self, found: Found) -> float:
        """Return how many of a user's best apps the candidates hold, on average."""
        return fmean(len(best & set(found(row))) for row, best in enumerate(self.best))

    def retrieved(self, retriever: Retriever, *, by: str) -> float:
        """Return the same for a retriever; ``by``: "query", "like" (what is installed), or none."""

        def found(row: int) -> list[str]:
            own = self.names(self.installed[row])
            asked = self.requests
            query = {**asked.user(row), **asked.context(row)} if by == "query" else None
            like = own if by == "like" else ()
            return retriever.retrieve(CANDIDATES, exclude=own, query=query, like=like)

        return self.held(found)


def trained(folder: Path, seed: int, tower: models.TwoTower | None) -> wd.Trainer:
    """Train the app store's ranker, with a tower beside it or alone."""
    run = config_from_tables(tomllib.loads(APP_STORE_TOML))
    spec = run.spec.replace(weight="weight")
    model = wd.WideDeep(
        wd.fit_schema(spec, folder / "examples" / "train"),
        hidden_units=run.model.hidden_units,
        deep=() if tower is None else tower,
        embedding_dim=run.model.embedding_dim,
        seed=seed,
    )
    trainer = wd.Trainer(
        model,
        wide=make_optimizer(run.train.wide),
        deep=make_optimizer(run.train.deep or {}),
        batch_size=run.train.batch_size,
        seed=seed,
        progress=False,
    )
    trainer.fit(folder / "examples" / "train", epochs=2)
    return trainer


def factorized(store: AppStore, truth: Truth, kind: str) -> float | None:
    """Return what a factorisation of installs by `implicit` finds; None where it is missing."""
    try:
        from implicit.als import AlternatingLeastSquares
        from implicit.bpr import BayesianPersonalizedRanking
    except ImportError:
        return None
    from scipy.sparse import csr_matrix

    installed_UL = store.world.users.installed_UL
    users, places = np.nonzero(installed_UL >= 0)
    shape = len(installed_UL), len(truth.apps)
    ones = np.ones(len(users), np.float32)
    matrix = csr_matrix((ones, (users, installed_UL[users, places])), shape=shape)
    made = {"ALS": AlternatingLeastSquares, "BPR": BayesianPersonalizedRanking}[kind]
    model = made(factors=32, iterations=30, random_state=0, num_threads=1)
    model.fit(matrix, show_progress=False)

    def found(row: int) -> list[str]:
        user = int(truth.requests.user_R[row])
        rows, _ = model.recommend(user, matrix[user], N=CANDIDATES)
        return truth.names(rows[rows >= 0])

    return truth.held(found)


def measure(folder: Path, seed: int, requests: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return how many apps each way finds in one store, and the test AUC of each model."""
    store = logged_store(folder, seed)
    truth = Truth(store, requests)
    options: dict[str, Any] = {"id_column": "app", "popularity": "app_installs"}
    held = {"popularity": truth.retrieved(Retriever(truth.catalogue, **options), by="nothing")}
    held["at random"] = BEST * CANDIDATES / (len(truth.apps) - fmean(map(len, truth.installed)))
    for kind in ("ALS", "BPR"):
        if (found := factorized(store, truth, kind)) is not None:
            held[f"implicit's {kind}"] = found
    auc = {}
    for name, tower in {"the ranker alone": None, **TOWERS}.items():
        trainer = trained(folder, seed, tower)
        auc[name] = trainer.evaluate(folder / "examples" / "test")["auc"]
        items = None if tower is None else truth.catalogue
        bundle = trainer.export(folder / "bundle", items=items, overwrite=True)
        retriever = Retriever(truth.catalogue, bundle=bundle, **options)
        by = "like" if tower is None else "query"
        held["near what is installed, and popular" if tower is None else name] = truth.retrieved(
            retriever, by=by
        )
        print(f"seed {seed}: {name}: AUC {auc[name]:.4f}; {held}", flush=True)
    return held, auc


def table(results: list[tuple[dict[str, float], dict[str, float]]], apps: int) -> str:
    """Return the results as Markdown."""
    lines = [
        "## Learned retrieval\n",
        f"`benchmarks/bench_two_towers.py` on {machine()}; {len(results)} simulated stores of "
        f"about {apps} apps, logged for {DAYS} days under popularity; of {CANDIDATES} candidates, "
        f"how many are among the user's {BEST} truly best apps (means and 95 % intervals over "
        "stores; ratios are paired), and the test AUC of the bundle's ranking.\n",
        f"| candidates by | of the best {BEST} | times popularity's | test AUC |",
        "|---|---|---|---|",
    ]
    for name in results[0][0]:
        ratios = [held[name] / held["popularity"] for held, _ in results]
        aucs = [auc[name] for _, auc in results if name in auc]
        spread = f" ± {interval(ratios):.2f}" if len(ratios) > 1 else ""
        lines.append(
            f"| {name} | {fmean(held[name] for held, _ in results):.1f} | "
            f"{fmean(ratios):.2f}{spread} | {f'{fmean(aucs):.4f}' if aucs else ''} |"
        )
    alone = fmean(auc["the ranker alone"] for _, auc in results)
    return "\n".join([*lines, f"\nThe ranker alone has a test AUC of {alone:.4f}."])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="keep the stores there, and take those there")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        results = [
            measure(root / f"seed{seed}", seed, arguments.requests) for seed in arguments.seeds
        ]
        apps = load_store(root / f"seed{arguments.seeds[0]}" / "store.npz").catalogue().num_rows
    text = table(results, apps)
    print(text)
    if arguments.write:
        write_section("learned retrieval", text)


if __name__ == "__main__":
    main()
