"""Options of runs: ``[data]``, ``[train]``, ``[follow]`` and ``[tune]`` in a TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from widedeep.callbacks.loggers import log_table
from widedeep.errors import ConfigError, nearest
from widedeep.features import FeatureSpec
from widedeep.features.spec import spec_to_table
from widedeep.features.toml import toml_text
from widedeep.kernels.packed_rows import TableKind
from widedeep.metrics import registered
from widedeep.models.config import ModelConfig
from widedeep.options import (
    Allowed,
    Auto,
    AutoCount,
    Count,
    Positive,
    Seed,
    Threads,
    as_table,
    check_range,
    check_types,
    import_modules,
)
from widedeep.ranks.config import DistributedConfig
from widedeep.training.schedules import (
    PARTS,
    DecayFraction,
    Schedule,
    ScheduleOption,
    describe_schedule,
    make_schedule,
)

__all__ = [
    "DataConfig",
    "FollowConfig",
    "RunConfig",
    "TrainConfig",
    "TuneConfig",
    "WarmStartConfig",
]

LossReduction = Literal["mean", "sum"]
Precision = Literal["fp32", "bf16", "auto"]
MOST_PATCHES = 200  # from one whole version to the next
_AT_LEAST_1 = Allowed(lambda n: n >= 1, "an integer of at least 1")
_PATCHES = Allowed(range(1, MOST_PATCHES + 1).__contains__, f"an integer from 1 to {MOST_PATCHES}")
_SCALE = Allowed(lambda x: x > 0, "a number > 0, or 'mean'")
_ABOVE_0 = Allowed(lambda x: x > 0, "a number above 0")
Widths = Literal["fresh", "project"]
Quality = Literal["fast", "good", "best"]
DATA_PATHS = ("train", "valid", "test", "items")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the examples are.

    Args:
        train: Training data: a path, a glob or a list of paths.
        valid: Validation data, for early stopping and the learning curve.
        test: Test data, for ``widedeep evaluate``.
        items: Items whose vectors the bundle keeps, one row per item, for a model with two towers
            (:class:`widedeep.models.TwoTower`).
        valid_fraction: Without ``valid``, the share of the training rows kept for validation, 0 <=
            share < 1.
        valid_by: Keep rows of one value of this column together: all rows of a request.
        valid_latest: Take the last rows in the order of this column, as of a time.
    """

    train: str | list[str] | None = None
    valid: str | list[str] | None = None
    test: str | list[str] | None = None
    items: str | list[str] | None = None
    valid_fraction: Annotated[float, Allowed(lambda x: 0 <= x < 1, "0 <= share < 1")] = 0.0
    valid_by: str | None = None
    valid_latest: str | None = None

    def __post_init__(self) -> None:
        owner = "[data]"
        check_types(self, owner)
        if self.valid_by is not None and self.valid_latest is not None:
            raise ConfigError(
                f"{owner}: got both valid_by = {self.valid_by!r} and valid_latest = "
                f"{self.valid_latest!r}, expected one of them"
            )
        for name in DATA_PATHS:
            value = getattr(self, name)
            paths = value if isinstance(value, list) else ["no data" if value is None else value]
            named = bool(paths) and all(paths)
            check_range(owner, name, value, named, "a path, a glob or a list of paths")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained.

    :class:`widedeep.Trainer` takes it, or its fields by keyword; ``[train]`` of a TOML file and
    ``--set train.KEY=VALUE`` are read into it; checkpoints and bundles record it.

    Args:
        quality: How much time to spend: ``"fast"``: about 1,000 steps where ``epochs`` is
            ``"auto"``; ``"good"``; ``"best"``: a run makes an ensemble of four of each tower
            (:class:`widedeep.models.Ensemble`), exported as one bundle. A :class:`widedeep.Trainer`
            takes the model that it is given.
        epochs: Passes over the data, at least 1, or ``"auto"``: as many as give 4,000 steps, at
            most 100, with early stopping; as many as give 1,000, at most 20, without.
        batch_size: Examples a step, or ``"auto"``: a hundredth of the rows, rounded to a power of
            two from 16 to 512.
        shuffle: Read in a new seeded order each epoch.
        seed: Seed of the reading order and of dropout.
        grad_scale: Sparse optimizers get ``grad_scale`` times the sum of an id's example gradients;
            ``"mean"``: that sum by the batch's rows.
        loss_reduction: ``"mean"`` divides dense gradients and reported losses by the batch's rows,
            ``"sum"`` does not.
        clip_norm: Largest norm of the dense gradients; None does not clip.
        schedule: Schedule of the learning rates (of FTRL's gradients: see :class:`widedeep.FTRL`):
            a name, a table of a name and options, a schedule, or a function that returns the
            factor of the rates at a step, counted from 0 (:mod:`widedeep.training.schedules`):
            ``"constant"``, ``"linear"``, ``"cosine"``, ``"polynomial"``, ``"exponential"``,
            ``"inverse_time"``, ``"step"``, ``"plateau"`` or ``"wsd"``: constant, and linear to 0
            over the last ``decay_fraction`` of the steps. ``"auto"``: ``"wsd"``, or ``"constant"``
            for a model with ``compat``. Where training stops early, ``"wsd"`` then decays from the
            best model: the run goes on for as many steps as would have followed it, and keeps the
            result if validation is better.
        schedules: Schedules of single parts, which come before ``schedule``: of ``wide``, of
            ``deep`` (the embeddings) and of ``dense``:
            ``{ wide = "constant", dense = { name = "exponential", decay_steps = 1000 } }``.
        decay_fraction: Fraction of the steps in which ``"wsd"`` decays, 0 < fraction < 1.
        warmup_steps: Learning rates rise linearly over this many first steps.
        early_stopping: Stop when the validation metric no longer improves, and go back to the best
            model: ``"auto"``: where there are validation data and several evaluations.
        patience: Evaluations without a better ``monitor`` before stopping; None: 2, or those of two
            epochs where epochs are ``"auto"``.
        monitor: Validation metric that decides which model is best; None: the model's loss.
        eval_every: Steps between evaluations on the validation data; None: once an epoch, twice
            where ``epochs`` and ``early_stopping`` are ``"auto"``.
        eval_seconds: Seconds of training between evaluations, in the place of ``eval_every`` and of
            the ends of epochs; the end of the run is evaluated in any case.
        stop_at: Values of validation metrics with which training ends, once an evaluation reaches
            all of them: ``{ auc = 0.9 }``. That model is kept as the best.
        checkpoint_every: Steps between checkpoints; None: one per epoch. The best model and the
            last have one in any case.
        checkpoint_seconds: Seconds between checkpoints, in the place of ``checkpoint_every``.
        metrics: Modules that register metrics of your own (:func:`widedeep.metrics.register`), as
            import paths such as ``"my_project.metrics"``; the working directory is searched too.
        log: Where figures go while it trains: ``"csv"``, ``"tensorboard"``, ``"mlflow"``,
            ``"wandb"``, or tables of ``kind`` and options,
            ``[{ kind = "tensorboard", dir = "boards" }]`` (:mod:`widedeep.callbacks`). Relative
            paths are relative to the run's folder.
        threads: Threads of kernels and matrix products; None: all the process may use.
        precision: Precision of the towers' matrix products in training: ``"fp32"``, ``"bf16"``
            (master weights and optimizer state stay float32), or ``"auto"``: bf16 where the
            processor computes it faster. Evaluation is float32.
        device: Where tables and towers live and are trained: ``"cpu"`` or ``"cuda"``.
        pool_rows: Rows that wait in memory while they are mixed with others from all over the
            input; at any time those of 6 to 16 row groups are mixed. More take more memory, and
            mix better where row groups are large.
        rollback_bytes: Most bytes of rows, in each process, that are kept as they were in the best
            model so far, to go back to it; with more of them its checkpoint is read instead, where
            a run writes checkpoints.
        wide: The wide part's optimizer, ``{ optimizer = "ftrl", lr = 0.1 }``, or its name.
        posterior: Store in the bundle how uncertain the last layer is after the training data, for
            a ranker that explores by Thompson sampling or LinUCB.
        bundle_tables: Numbers in which bundles keep the tables of embeddings: ``"fp32"``,
            ``"bf16"``, ``"int8"`` or ``"int4"``, the last two with a step per row. Training is
            float32; a bundle tells how much rounding changed its scores.
        freeze: Parts that are not trained: patterns of the names that warm starts and checkpoints
            use, such as ``["table/item", "wide/*", "towers.mlp.*"]``.
        rates: Factor of the learning rate, > 0, by pattern of such names:
            ``{ "table/user" = 0.1, "towers.*" = 0.5 }``. The last one that matches holds. Where
            weights scale with the rate (:class:`widedeep.FTRL`), gradients get the factor, as by a
            schedule.
        deep: The embeddings' optimizer; None: an Adagrad of their own (see
            :class:`widedeep.Trainer`).
        dense: The hidden layers' optimizer; None: as ``deep``, or :class:`widedeep.Adagrad`.
    """

    quality: Quality = "good"
    epochs: AutoCount = 1
    batch_size: AutoCount = "auto"
    shuffle: bool = True
    seed: Seed = 0
    grad_scale: Annotated[float | Literal["mean"], _SCALE] = 1.0
    loss_reduction: LossReduction = "mean"
    clip_norm: Positive | None = None
    schedule: ScheduleOption = "auto"
    schedules: Mapping[str, ScheduleOption] = field(default_factory=dict)
    decay_fraction: DecayFraction = 0.2
    warmup_steps: Annotated[int, Allowed(lambda n: n >= 0, "an integer of at least 0")] = 0
    early_stopping: bool | Auto = "auto"
    patience: Count | None = None
    monitor: str | None = None
    eval_every: Count | None = None
    eval_seconds: Positive | None = None
    stop_at: Mapping[str, float] = field(default_factory=dict)
    checkpoint_every: Count | None = None
    checkpoint_seconds: Positive | None = None
    metrics: list[str] = field(default_factory=list)
    log: list[str | Mapping[str, Any]] = field(default_factory=list)
    threads: Threads | None = None
    precision: Precision = "fp32"
    device: str = "cpu"
    pool_rows: Count = 262_144
    rollback_bytes: Annotated[int, Allowed(lambda n: n >= 1, "at least 1")] = 4 << 30
    posterior: bool = False
    bundle_tables: TableKind = "fp32"
    freeze: list[str] = field(default_factory=list)
    rates: Mapping[str, float] = field(default_factory=dict)
    wide: str | Mapping[str, Any] = field(default_factory=lambda: {"optimizer": "ftrl"})
    deep: str | Mapping[str, Any] | None = None
    dense: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        owner = "[train]"
        check_types(self, owner)
        for what in ("eval", "checkpoint"):
            steps, seconds = (getattr(self, f"{what}_{unit}") for unit in ("every", "seconds"))
            if steps is not None and seconds is not None:
                raise ConfigError(
                    f"{owner}: got {what}_every = {steps} and {what}_seconds = {seconds:g}; drop "
                    "one"
                )
        if self.early_stopping is False and self.patience is not None:
            raise ConfigError(
                f"{owner}: got patience = {self.patience} and early_stopping = false; drop one"
            )
        for pattern, factor in self.rates.items():
            check_range(f"{owner} rates", repr(pattern), factor, 0 < factor < 1e30, "a number > 0")
        import_modules(self.metrics, "metrics", registered)
        check_range(owner, "monitor", self.monitor, self.monitor != "", "a metric's name")
        for option in self.log:
            log_table(option)
        self._name_optimizers()
        self.part_schedules()
        object.__setattr__(self, "schedule", describe_schedule(self.schedule))
        described = {part: describe_schedule(option) for part, option in self.schedules.items()}
        object.__setattr__(self, "schedules", described)

    def _name_optimizers(self) -> None:
        """Make a name a table; one without ``optimizer`` means the default of its part."""
        for group, name in (("wide", "ftrl"), ("deep", "adagrad"), ("dense", "adagrad")):
            table = getattr(self, group)
            if isinstance(table, str):
                object.__setattr__(self, group, {"optimizer": table})
                continue
            if table is not None and "optimizer" not in table:
                if group == "dense" and self.deep is not None:
                    name = self.optimizer_tables["deep"]["optimizer"]
                object.__setattr__(self, group, {"optimizer": name, **table})

    def part_schedules(self) -> dict[str, Schedule]:
        """Return the schedule of each part; those without one of their own share an object."""
        for part in self.schedules:
            if part not in PARTS:
                raise ConfigError(
                    f"[train] schedules: got the part {part!r}; {nearest(part, PARTS)}"
                )
        made: dict[str, Schedule] = {}
        for name, option in {"schedule": self.schedule, **self.schedules}.items():
            try:
                made[name] = make_schedule(option, decay_fraction=self.decay_fraction)
            except ConfigError as error:
                where = "schedule" if name == "schedule" else f"schedules.{name}"
                raise ConfigError(f"[train] {where}: {error}") from error
        return {part: made.get(part, made["schedule"]) for part in PARTS}

    @property
    def optimizer_tables(self) -> dict[str, Any]:
        """The optimizers' tables by part, names made tables; None for one by default."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs, as one value.

    Args:
        spec: The features.
        data: Where the examples are.
        model: The model's shape.
        train: How it is trained.
        distributed: How the processes of a run share the work.
    """

    spec: FeatureSpec
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def to_table(self) -> dict[str, dict[str, Any]]:
        """Return the configuration as nested tables, with the defaults of all but the ranks."""
        tables = spec_to_table(self.spec)
        data = {
            **{k: v for k, v in as_table(self.data).items() if v is not None},
            **tables["data"],
        }
        sections = {
            "data": data,
            "features": tables["features"],
            "model": as_table(self.model),
            "train": as_table(self.train),
        }
        if self.distributed != DistributedConfig():
            sections["distributed"] = as_table(self.distributed)
        return sections

    def to_toml(self) -> str:
        """Return the configuration as TOML text; keys that are None are left out."""
        tables = {
            name: {key: value for key, value in table.items() if value is not None}
            for name, table in self.to_table().items()
        }
        return toml_text(tables)


@dataclass(frozen=True, kw_only=True, slots=True)
class FollowConfig:
    """When a run that follows a folder writes a bundle, and where it publishes what passes."""

    publish: Annotated[
        str | None,
        "directory of versions, or its URL, in which to publish each bundle that passes the gate "
        "on the newest shards",
    ] = None
    export_rows: Annotated[int | None, _AT_LEAST_1, "rows to learn between two bundles"] = None
    export_minutes: Annotated[float | None, _ABOVE_0, "minutes between two bundles"] = None
    judge_rows: Annotated[
        int,
        _AT_LEAST_1,
        "rows of the newest shards, at least, that the gate judges on before they are learned",
    ] = 10_000
    full_every: Annotated[
        int,
        _PATCHES,
        "every so many-th published version is whole; those between are patches of the rows that "
        "changed",
    ] = 1
    patch_precision: Annotated[
        Literal["float32", "bfloat16"],
        "numbers of changed rows in patches: exact, or rounded to 8 bits of precision",
    ] = "float32"
    grow: Annotated[
        bool, "give rows to new values of each shard, once they were seen min_count times"
    ] = False
    evict_after: Annotated[
        int | None,
        _AT_LEAST_1,
        "with --grow: forget values that so many shards in a row did not hold",
    ] = None
    kafka: Annotated[
        Mapping[str, str] | None,
        "settings of librdkafka for a topic that is followed, such as security.protocol; $NAME is "
        "an environment variable",
    ] = None

    def __post_init__(self) -> None:
        owner = "[follow]"
        check_types(self, owner)
        check_range(owner, "publish", self.publish, self.publish != "", "a directory or its URL")
        if self.evict_after is not None and not self.grow:
            raise ConfigError(
                f"{owner}: got evict_after = {self.evict_after} without grow = true; give both"
            )
        if self.patch_precision != "float32" and self.full_every == 1:
            raise ConfigError(
                f"{owner}: got patch_precision = {self.patch_precision!r} without patches; give "
                "full_every = 2 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """How far settings are searched: :func:`widedeep.tune` takes its fields by keyword.

    Args:
        trials: Models to train at most, the configuration as it is among them; at least 1.
        minutes: Minutes to spend at most, above 0.
        seed: Seed of the search; the models keep the seeds of their configuration.
        models: Towers to try beside the configuration's own, by name; None: ``"mlp"`` and
            ``"dcn_v2"`` where the configuration has one of these as its only tower, else none.
    """

    trials: Count = 20
    minutes: Annotated[float, _ABOVE_0] = 10.0
    seed: Seed = 0
    models: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_types(self, "[tune]")


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """An older model to start from."""

    path: str | os.PathLike[str]  # A bundle, a run's folder, or a checkpoint
    transfer: tuple[str, ...] = ("*",)  # Patterns of the names of tensors to take over
    widths: Widths = "fresh"  # What becomes of embeddings of another width

    def __post_init__(self) -> None:
        if self.widths not in ("fresh", "project"):
            raise ConfigError(
                f"warm start: got widths={self.widths!r}, expected 'fresh' or 'project'"
            )
        if isinstance(self.transfer, str):  # type: ignore[unreachable]
            raise ConfigError(
                f"warm start: got transfer={self.transfer!r}, expected a list such as "
                f"[{self.transfer!r}]"
            )
