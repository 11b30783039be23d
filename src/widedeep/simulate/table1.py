"""The experiment of Cheng et al. 2016, table 1: wide, deep, and both, offline and live.

A store lives for some days by popularity. Its logs are joined, and three models are trained on the
same examples: the wide part alone, the deep part alone, and both. Then the store goes on, each
model ranks for a third of the users, and installs are counted.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.config import config_from_tables
from widedeep.errors import ConfigError
from widedeep.features import FeatureSpec
from widedeep.join import JoinResult, Negatives, Split, load_join_config, run_join
from widedeep.options import check_types
from widedeep.simulate import policies
from widedeep.simulate.config import StoreConfig
from widedeep.simulate.declaration import APP_STORE_TOML, JOIN_TOML
from widedeep.simulate.policies import Model
from widedeep.simulate.store import AppStore
from widedeep.training.config import RunConfig

ARMS: dict[str, Callable[[FeatureSpec], FeatureSpec]] = {
    "wide": lambda spec: spec.replace(deep=[]),
    "deep": lambda spec: spec.replace(wide=[]),
    "wide & deep": lambda spec: spec,
}
"""The features of each model; the one that others are compared with comes first."""

NO_CROSS = "without the cross"
"""Wide & Deep whose wide part holds no cross: what it lacks is what crosses remember."""

_MOST_INSTALLED = 20  # apps of a user that a tower over histories reads, the latest ones

# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table1Config:
    """Configuration of the experiment."""

    store: StoreConfig = StoreConfig(seed=1, requests_per_day=8000)  # noqa: RUF009 - it is frozen
    seeds: Annotated[int, "simulated stores, each with three models, 2 to 10"] = 5
    days: Annotated[int, "days that are logged for training"] = 14
    live_days: Annotated[int, "days of the A/B test"] = 3
    live_requests: Annotated[int, "requests per day of the A/B test"] = 25_000
    negatives: Annotated[float, "fraction of the negatives that is trained on"] = 0.15
    epochs: Annotated[int, "most passes; the best by validation log loss is kept"] = 3
    without_cross: Annotated[bool, "also train and try Wide & Deep without its cross"] = False
    towers: Annotated[
        tuple[str, ...], "also a model with this tower beside the wide part; may be repeated"
    ] = ()
    threads: Annotated[int | None, "threads of training (default: all)"] = None

    def __post_init__(self) -> None:
        if not 2 <= self.seeds <= 10:
            raise ConfigError(f"the experiment: got seeds = {self.seeds!r}, expected 2 to 10")
        check_types(self, "the experiment")
        for name in self.towers:
            _tower(name, ())

    @property
    def arms(self) -> dict[str, Callable[[FeatureSpec], FeatureSpec]]:
        """The function that makes each arm's features from those of the store."""
        towers = {
            name: _reading_history if _reads_history(name) else ARMS["wide & deep"]
            for name in self.towers
        }
        apart = {NO_CROSS: _without_cross} if self.without_cross else {}
        return {**ARMS, **apart, **towers}


def _tower(name: str, hidden_units: Sequence[int]) -> dict[str, Any]:
    """Return a tower's table, with hidden layers if it has any."""
    from widedeep.models.tower import tower_config

    config = tower_config({"name": name})
    has_layers = any(field.name == "hidden_units" for field in dataclasses.fields(config))
    return {"name": name, **({"hidden_units": hidden_units} if has_layers else {})}


def _reads_history(tower: str) -> bool:
    from widedeep.models.histories import HistoryConfig
    from widedeep.models.tower import tower_config

    return isinstance(tower_config({"name": tower}), HistoryConfig)


def _reading_history(spec: FeatureSpec) -> FeatureSpec:
    """The apps that a user has installed as a sequence, not as their mean."""
    features = [
        replace(feature, combiner=None, maxlen=_MOST_INSTALLED)  # type: ignore[call-arg]
        if feature.name == "user_installed"
        else feature
        for feature in spec.all_features
    ]
    return spec.replace(features=features)


def _without_cross(spec: FeatureSpec) -> FeatureSpec:
    crosses = {feature.name for feature in spec.all_features if feature.part_names}
    return spec.replace(wide=[name for name in spec.wide_names if name not in crosses])


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """Results of one model in one store."""

    auc: float  # AUC on the last days of the log
    log_loss: float  # Log loss on the same days
    requests: int  # Live requests of the arm
    installs: int  # Counted installs of the arm
    deviation: float  # Standard error of the installs per request, over users
    expected: float  # Expected installs of its lists, by the true probabilities
    best: float  # Expected installs of the best lists of the same candidates

    @property
    def rate(self) -> float:
        """Installs per request."""
        return self.installs / self.requests

    @property
    def of_the_best(self) -> float:
        """Expected fraction of the best policy's installs: 1 minus the regret."""
        return self.expected / self.best


@dataclass(frozen=True, kw_only=True, slots=True)
class Lift:
    """Relative gain in installs of one model over another: 0.03 is 3 %."""

    counted: float  # By the installs that were counted, all seeds together
    counted_95: float  # Half of its 95 % interval, from users
    true: float  # By the true probabilities of what was shown: the mean over seeds
    true_95: float  # Half of its 95 % interval, from seeds

    @property
    def significant(self) -> bool:
        """Whether both intervals lie above zero."""
        return self.counted > self.counted_95 and self.true > self.true_95


@dataclass(frozen=True, kw_only=True)
class Table1:
    """Results of the experiment: each arm for each seed."""

    config: Table1Config  # Configuration of the experiment
    # Arms by name, one mapping a seed; ``popularity`` among them has no model
    seeds: Sequence[Mapping[str, Arm]]

    def arms(self, name: str) -> list[Arm]:
        """Return the results of one arm, one per seed."""
        return [arms[name] for arms in self.seeds]

    def lift(self, name: str, over: str) -> Lift:
        """Return the relative gain of one arm over another."""
        return lift(self.arms(name), self.arms(over))


def interval(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t."""
    return _T95[len(values) - 2] * stdev(values) / math.sqrt(len(values))


def lift(arms: Sequence[Arm], over: Sequence[Arm]) -> Lift:
    """Compare two arms over the same seeds."""
    ratios = [a.of_the_best / b.of_the_best - 1 for a, b in zip(arms, over, strict=True)]
    rate, deviation = _pooled(arms)
    other, other_deviation = _pooled(over)
    ratio = rate / other
    relative = math.hypot(deviation / rate, other_deviation / other)
    return Lift(
        counted=ratio - 1,
        counted_95=1.96 * ratio * relative,
        true=fmean(ratios),
        true_95=interval(ratios),
    )


def _pooled(arms: Sequence[Arm]) -> tuple[float, float]:
    requests = sum(arm.requests for arm in arms)
    rate = sum(arm.installs for arm in arms) / requests
    variance = sum((arm.deviation * arm.requests / requests) ** 2 for arm in arms)
    return rate, math.sqrt(variance)


def run_table1(
    folder: Path,
    config: Table1Config | None = None,
    *,
    on_progress: Callable[[str], None] = lambda message: None,
) -> Table1:
    """Run the experiment."""
    config = config or Table1Config()
    outcomes = []
    for number in range(config.seeds):
        seed = config.store.seed + number
        seed_folder = folder / f"seed{seed}"
        if seed_folder.exists():
            raise ConfigError(f"{seed_folder}: already exists; choose another folder or delete it")
        seed_folder.mkdir(parents=True)
        outcomes.append(_one_seed(seed_folder, config, seed, on_progress))
    return Table1(config=config, seeds=outcomes)


def _one_seed(
    folder: Path, config: Table1Config, seed: int, tell: Callable[[str], None]
) -> dict[str, Arm]:
    store = AppStore(replace(config.store, seed=seed))
    for day, logged in enumerate(store.days(policies.Popularity(), config.days)):
        logged.write(folder, f"day{day:04d}")
    (folder / "join.toml").write_text(JOIN_TOML, encoding="utf-8")
    join = load_join_config(folder / "join.toml")
    examples = run_join(
        replace(
            join,
            split=Split(fractions=(0.86, 0.07, 0.07)),
            negatives=Negatives(rate=config.negatives, splits=("train", "valid")),
        )
    )
    tell(f"seed {seed}: {sum(examples.rows.values()):,} examples")
    offline = {}
    bundles = {}
    for name, make_spec in config.arms.items():
        bundles[name], offline[name] = _trained(
            folder / _folder(name),
            make_spec,
            examples,
            config,
            seed,
            tower=name if name in config.towers else None,
        )
        tell(f"seed {seed}: {name}: AUC {offline[name]['auc']:.4f}")
    live = _live(store, bundles, config)
    for name, sums in live.items():
        tell(
            f"seed {seed}: {name}: {sums['installs'] / sums['requests']:.4f} installs per "
            f"request, {sums['expected'] / sums['best']:.1%} of the best policy's"
        )
    none = {"auc": math.nan, "log_loss": math.nan}
    judged = {name: offline.get(name, none) for name in live}
    return {
        name: Arm(auc=judged[name]["auc"], log_loss=judged[name]["log_loss"], **sums)
        for name, sums in live.items()
    }


def _folder(name: str) -> str:
    return name.replace(" & ", "_").replace(" ", "_")


def _run_config() -> RunConfig:
    import tomllib

    return config_from_tables(tomllib.loads(APP_STORE_TOML))


def _trained(
    folder: Path,
    make_spec: Callable[[FeatureSpec], FeatureSpec],
    examples: JoinResult,
    config: Table1Config,
    seed: int,
    tower: str | None,
) -> tuple[Bundle, dict[str, float]]:
    import widedeep as wd
    from widedeep.optim import make_optimizer

    run = _run_config()
    spec = make_spec(run.spec)
    train, valid, test = (examples.output / name for name in ("train", "valid", "test"))
    units = (run.model.hidden_units or ()) if spec.deep_names else ()
    network: Any = {"hidden_units": units} if tower is None else {"deep": _tower(tower, units)}
    model = wd.WideDeep(
        wd.fit_schema(spec.replace(weight="weight"), train),
        **network,
        embedding_dim=run.model.embedding_dim,
        seed=seed,
    )
    trainer = wd.Trainer(
        model,
        wide=make_optimizer(run.train.wide),
        deep=make_optimizer(run.train.deep) if run.train.deep else None,
        batch_size=run.train.batch_size,
        seed=seed,
        threads=config.threads,
        progress=False,
    )
    trainer.fit(train, epochs=config.epochs, valid=valid, early_stopping=1)
    return trainer.export(folder), trainer.evaluate(test)


def _live(
    store: AppStore, bundles: Mapping[str, Bundle], config: Table1Config
) -> dict[str, dict[str, Any]]:
    arms: dict[str, policies.Policy] = {
        name: Model(bundle, name=name) for name, bundle in bundles.items()
    }
    arms["popularity"] = policies.Popularity()
    # Models share the users in equal parts; a few stay without, to show what models bring.
    split = policies.Split(arms, [3.0] * len(bundles) + [1.0])
    store = store.with_requests(config.live_requests)
    requests = store.run(split, config.live_days).requests
    return {name: _figures(requests, name) for name in arms}


def _figures(requests: pa.Table, arm: str) -> dict[str, Any]:
    requests_of_arm = requests.filter(np.array(requests["arm"].to_pylist(), object) == arm)
    users_R = np.unique(requests_of_arm["user_id"].to_numpy(), return_inverse=True)[1]
    installs_U = np.bincount(users_R, requests_of_arm["installs"].to_numpy())
    requests_U = np.bincount(users_R)
    return {
        "requests": requests_of_arm.num_rows,
        "installs": int(installs_U.sum()),
        "deviation": _ratio_deviation(installs_U, requests_U),
        "expected": float(requests_of_arm["expected"].to_numpy().sum()),
        "best": float(requests_of_arm["best"].to_numpy().sum()),
    }


def _ratio_deviation(above_U: NDArray[Any], below_U: NDArray[Any]) -> float:
    """The standard error of a ratio of sums over users (the delta method)."""
    ratio = above_U.sum() / below_U.sum()
    rest_U = above_U - ratio * below_U
    return float(np.sqrt((rest_U**2).sum()) / below_U.sum())


# ---- as text ------------------------------------------------------------------------------------

_PAPER = {"wide": (0.726, 0.0), "deep": (0.722, 0.029), "wide & deep": (0.728, 0.039)}
_FIRST = next(iter(ARMS))


def table1_in(
    folder: Path | None, config: Table1Config, *, on_progress: Callable[[str], None]
) -> Table1:
    """Run the experiment in a folder, or in a temporary one."""
    if folder is not None:
        return run_table1(folder, config, on_progress=on_progress)
    with tempfile.TemporaryDirectory(prefix="widedeep-table1-") as temporary:
        return run_table1(Path(temporary), config, on_progress=on_progress)


def table1_text(result: Table1) -> str:
    """Return the results as a Markdown table with a summary in sentences."""
    head = [
        "| model | offline AUC | live installs, counted | live installs, true | of the best | "
        "paper: AUC, live |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(
        [*head, *(_row(result, name) for name in result.config.arms), "", *_sentences(result)]
    )


def _row(result: Table1, name: str) -> str:
    arms = result.arms(name)
    auc = [arm.auc for arm in arms]
    counted = true = "0 %"
    if name != _FIRST:
        lift = result.lift(name, _FIRST)
        counted, true = _percent(lift.counted, lift.counted_95), _percent(lift.true, lift.true_95)
    paper = "{:.3f}, {:+.1%}".format(*_PAPER[name]) if name in _PAPER else ""
    best = fmean(arm.of_the_best for arm in arms)
    return (
        f"| {name} | {fmean(auc):.4f} ± {interval(auc):.4f} | {counted} | {true} | {best:.1%} | "
        f"{paper} |"
    )


def _percent(value: float, half: float) -> str:
    return f"{100 * value:+.1f} ± {100 * half:.1f} %"


def _sentences(result: Table1) -> list[str]:
    both = list(ARMS)[-1]
    lines = []
    for other in (name for name in result.config.arms if name != both):
        lift = result.lift(both, other)
        verdict = "significant" if lift.significant else "not significant"
        lines.append(
            f"{both} over {other}: {_percent(lift.counted, lift.counted_95)} installs counted, "
            f"{_percent(lift.true, lift.true_95)} by the true probabilities ({verdict})."
        )
    first, plain = result.arms(both), result.arms("popularity")
    requests = sum(arm.requests for arm in first)
    installs = sum(arm.installs for arm in first)
    lines.append(
        f"{len(first)} stores; {requests:,} live requests and {installs:,} installs in the arm of "
        f"{both}. Ranking by popularity gets {fmean(arm.of_the_best for arm in plain):.1%} of the "
        "best policy's installs."
    )
    return lines


def table1_document(result: Table1) -> dict[str, Any]:
    """Return the results as plain values."""
    names = [*result.config.arms, "popularity"]
    pairs = [("wide & deep", name) for name in result.config.arms if name != "wide & deep"]
    return {
        "config": dataclasses.asdict(result.config),
        "arms": {name: _arm_document(result.arms(name)) for name in names},
        "lifts": {
            f"{name} over {other}": _lift_document(result.lift(name, other))
            for name, other in (("deep", "wide"), *pairs)
        },
    }


def _arm_document(arms: Sequence[Arm]) -> list[Mapping[str, Any]]:
    return [{**dataclasses.asdict(arm), "of_the_best": arm.of_the_best} for arm in arms]


def _lift_document(lift: Lift) -> dict[str, Any]:
    return {**dataclasses.asdict(lift), "significant": lift.significant}
