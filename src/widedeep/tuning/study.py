"""tune: a search for a configuration's best settings, judged on validation data."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widedeep.bundle.plain_json import plain
from widedeep.config import config_from_tables
from widedeep.data.fit import fit_schema
from widedeep.data.paths import input_paths
from widedeep.data.reuse import reuse_inputs
from widedeep.data.sources import Data, RowShare, split_rows
from widedeep.errors import ConfigError, DataError, WideDeepError, extra_imports, show_value
from widedeep.features import FeatureSpec
from widedeep.files import held_folder
from widedeep.metrics import find_metric
from widedeep.metrics.registry import loss_metric
from widedeep.models.wide_deep import WideDeep
from widedeep.options import with_options
from widedeep.page.document import page_frame
from widedeep.schema import Schema
from widedeep.training.config import RunConfig, TuneConfig
from widedeep.training.defaults import at_quality, auto_batch_size
from widedeep.training.early_stopping import (
    EarlyStopping,
    check_conditions,
    configured_stopping,
)
from widedeep.training.evaluation import metric_names
from widedeep.training.trainer import Trainer
from widedeep.tuning.page import study_page
from widedeep.tuning.space import Space, apply_settings

if TYPE_CHECKING:
    import optuna

VALID_FRACTION = 0.2
"""Share of the training rows to validate on where no validation data are named."""

TrialState = Literal["finished", "cut", "pruned", "failed"]

_PARTS = 8  # evaluations of a model that makes one pass
_PROBE_S, _PROBE_STEPS = 1.0, 200
_LONGEST_TRIAL = 0.25  # of the minutes: a slow model must not be the whole search
_JOURNAL = "study.journal"
STUDY_FILES = (_JOURNAL, "study.json", "study.html", "best.toml")
"""What a study's folder holds of it; other files in it are left alone."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model of a study."""

    number: int  # From 0: the configuration as given
    # ``"finished"``; ``"cut"`` by the time limit, after which its best evaluation counts;
    # ``"pruned"``: it fell behind the others; ``"failed"``
    state: TrialState
    value: float | None  # The monitored metric on the validation data
    params: Mapping[str, Any] = field(default_factory=dict)  # What was drawn, by short names
    # What that means: values by section and key, None for a key left out
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)  # All, on the validation data
    curve: tuple[tuple[int, float], ...] = ()  # Steps, and the monitored metric there
    seconds: float = 0.0
    reason: str | None = None  # Why it was pruned, cut or failed

    @property
    def counts(self) -> bool:
        """Whether its value is that of a model which training its settings would give."""
        return self.value is not None and self.state in ("finished", "cut")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The outcome of a search.

    Args:
        config: The best configuration.
        given: The configuration that the search began with.
        trials: All models, in order.
        monitor: The metric of the validation data that decided.
        minutes: Time spent, in minutes, earlier calls that were resumed included.
    """

    config: RunConfig
    given: RunConfig
    trials: tuple[Trial, ...]
    monitor: str
    minutes: float

    @property
    def best(self) -> Trial:
        """The trial with the best value."""
        return min((t for t in self.trials if t.counts), key=lambda t: goal(self.monitor, t.value))

    def to_json(self) -> dict[str, Any]:
        """Return the study as plain values."""
        return {
            "monitor": self.monitor,
            "minutes": self.minutes,
            "best": self.best.number,
            "config": self.config.to_table(),
            "trials": [
                {**asdict(trial), "curve": [list(point) for point in trial.curve]}
                for trial in self.trials
            ],
        }

    def to_html(self) -> str:
        """Return the study as one page that needs nothing else: no script, no network."""
        return study_page(self.to_json())

    def _repr_html_(self) -> str:
        return page_frame(self.to_html())


def goal(monitor: str, value: float | None) -> float:
    """Return a number that is the smaller the better a metric's value is."""
    metric = find_metric(monitor)
    direction = "lower" if metric is None else metric.direction
    if value is None or not math.isfinite(value):
        return math.inf
    if direction == "higher":
        return -value
    ideal = {"nearest_1": 1.0, "nearest_0": 0.0}.get(direction or "")
    return value if ideal is None else abs(value - ideal)


def tune(
    config: RunConfig | FeatureSpec,
    data: Data,
    *,
    valid: Data | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    options: TuneConfig | None = None,
    **fields: Any,
) -> Study:
    """Search for the settings of a configuration that predict validation data best.

    The first model is the configuration as it is. The next ones change one thing each: the hidden
    layers' optimizer, then the tower. The others are drawn by a tree-structured Parzen estimator
    (Bergstra et al. 2011; Optuna's), around what was good: learning rates from a fifth of the given
    ones to five times, penalties above 0 from a tenth to ten times, widths of layers and
    embeddings, dropout, and the tower. A model whose best validation result is behind the
    median of the others at the same evaluation is given up. All train on the same rows in the same
    order and from the same seed, so ``seed`` alone decides which models are tried; where time runs
    out, how many.

    Args:
        config: The run's configuration, or features alone.
        data: Training data, as for :meth:`widedeep.Trainer.fit`, that can be read more than once.
        valid: Validation data; None: a fifth of the training rows.
        folder: Where the study is kept, so that it can be resumed; None keeps it in memory.
        resume: Go on with the study in ``folder``: ``trials`` counts its trials too.
        overwrite: Replace the study in ``folder``; other files there stay.
        progress: False shows nothing.
        options: How far to search; None: :class:`widedeep.tuning.TuneConfig` with its defaults.
        fields: Fields of :class:`widedeep.tuning.TuneConfig` by keyword, such as ``trials=50``.

    Returns:
        The best configuration, and all trials.

    Raises:
        MissingPackageError: If Optuna is not installed (``pip install 'widedeep[tune]'``).
        ConfigError: If ``minutes`` are too few for one pass of the given configuration, or the
            folder holds another study.
        DataError: If a label has one value only in the validation data.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"job": "abc"[i % 3], "y": int(i % 3 == 1)} for i in range(300)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> study = wd.tune(spec, rows, trials=3, models=["mlp"], progress=False)
        >>> len(study.trials), study.monitor
        (3, 'log_loss')
        >>> study.best.value <= study.trials[0].value
        True
    """
    options = with_options(options or TuneConfig(), fields, "tune")
    with extra_imports():
        import optuna  # noqa: F401
    if isinstance(config, FeatureSpec):
        config = RunConfig(spec=config)
    if valid is None:
        data, valid = split_rows(data, VALID_FRACTION)
    search = _Search(config, options, data, valid, progress=progress)
    place = None if folder is None else Path(folder)
    return search.run(place, resume=resume, overwrite=overwrite)


class _Search:
    """The search of one call."""

    def __init__(
        self, config: RunConfig, options: TuneConfig, data: Data, valid: Data, *, progress: bool
    ) -> None:
        configured_stopping(config.train, has_valid=True)
        self.config, self.options = config, options
        self.data, self.valid = data, valid
        self.progress = progress
        self.space = Space(config, options.models)
        self.cache: Path | None = None
        self.monitor = ""
        self.started = time.monotonic()
        self.deadline = self.started + 60 * options.minutes
        self.schema: Schema

    @reuse_inputs()
    def run(self, folder: Path | None, *, resume: bool, overwrite: bool) -> Study:
        """Search until the trials or the minutes are spent."""
        if folder is not None:
            _check_free(folder, goes_on=resume or overwrite)
        self._prepare()
        with contextlib.ExitStack() as stack:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held_folder(folder))
                # Again: another process may have searched here meanwhile.
                _check_free(folder, goes_on=resume or overwrite)
            return self._run(folder, resume=resume, overwrite=overwrite)

    def _run(self, folder: Path | None, *, resume: bool, overwrite: bool) -> Study:
        if folder is not None and overwrite:
            for name in STUDY_FILES:
                (folder / name).unlink(missing_ok=True)
        with _quiet_optuna():
            study = self._open(folder)
            spent = float(study.user_attrs.get("minutes", 0.0))
            self._say(f"{len(_done(study))} of {self.options.trials} trials are done", resume)
            try:
                if folder is not None and _in_files(self.data):
                    self.cache = folder / "study.encoded"
                self._search(study)
            finally:
                minutes = spent + (time.monotonic() - self.started) / 60
                study.set_user_attr("minutes", minutes)
                if self.cache is not None:
                    shutil.rmtree(self.cache, ignore_errors=True)
            trials = tuple(map(_as_trial, _done(study)))
        if not any(trial.counts for trial in trials):
            raise ConfigError(
                f"no model came to its first evaluation in {self.options.minutes:g} minutes; give "
                "more (--minutes), or less to learn (--set train.epochs=1)"
            )
        found = Study(
            config=self.config,
            given=self.config,
            trials=trials,
            monitor=self.monitor,
            minutes=minutes,
        )
        return replace(found, config=self._configured(found.best.settings))

    # ---- before the first trial ------------------------------------------------------------------

    def _prepare(self) -> None:
        """Fit the schema, and refuse what cannot be judged or not be done in time."""
        self.schema = fit_schema(self.config.spec, self.data, progress=False)
        probe = _Probe()
        # What looks at validation metrics costs a step nothing, and has none to look at here.
        trainer = self._trainer({}, probe, stop_at={}, schedule="constant", schedules={})
        names = metric_names(trainer.model)
        self.monitor = self.config.train.monitor or loss_metric(names)
        EarlyStopping(self.monitor).check_monitor(names)
        check_conditions(self.config.train, has_valid=True, names=names)
        _check_labels(trainer, self.valid)
        batch_size = self.config.train.batch_size
        rows = self.schema.rows
        self.space.resolve(rows, trainer.model.embedding_rate)
        self.steps = math.ceil(
            rows / (auto_batch_size(rows) if batch_size == "auto" else batch_size)
        )
        with contextlib.suppress(_Enough):
            trainer.fit(self.data, epochs=1, steps=_PROBE_STEPS, early_stopping=False)
        minutes = self.steps * probe.seconds_per_step / 60
        if minutes > self.options.minutes:
            raise ConfigError(
                f"got {self.options.minutes:g} minutes, in which the given configuration does not "
                f"pass once over its {rows:,} training rows (about {minutes:.2g} minutes a pass); "
                f"give --minutes {math.ceil(4 * minutes)} or more, or fewer rows"
            )
        passes = "a pass takes about " + (
            f"{60 * minutes:.2g} s" if minutes < 1 else f"{minutes:.2g} minutes"
        )
        self._say(f"{rows:,} training rows; {passes}; {self.monitor} decides")
        self.deadline += time.monotonic() - self.started  # preparing is not searching

    def _open(self, folder: Path | None) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage = None
        if folder is not None:
            storage = JournalStorage(JournalFileBackend(str(folder / _JOURNAL)))
        study = optuna.create_study(study_name="tune", storage=storage, load_if_exists=True)
        if storage is not None and not _done(study):  # also one interrupted in its first trial
            optuna.delete_study(study_name="tune", storage=storage)
            study = optuna.create_study(study_name="tune", storage=storage)
        table: dict[str, Any] = {"monitor": self.monitor, "models": list(self.space.models)}
        table["number of training rows"] = self.schema.rows
        table |= {name: self.config.to_table()[name] for name in ("features", "model", "train")}
        table = plain(table, "the study")  # as the journal keeps it
        known = study.user_attrs.get("config")
        if known is None:
            study.set_user_attr("config", table)
            for params in self.space.first():
                study.enqueue_trial(params)
        else:
            _check_same(known, table, folder)
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        # A resumed search draws on: from the same seed it would draw the same again.
        seed = (self.options.seed + 1_000_003 * len(study.trials)) % 2**32
        first = len(self.space.first())
        study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=first + 2, multivariate=True, group=True
        )
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
        return study

    # ---- trials ----------------------------------------------------------------------------------

    def _search(self, study: optuna.Study) -> None:
        from optuna.trial import TrialState as State

        while len(_done(study)) < self.options.trials and time.monotonic() < self.deadline:
            trial = study.ask()
            settings = self.space.suggest(trial)
            if trial.number == 0:
                settings = {}
            outcome = self._try(trial, settings)
            for name in ("state", "value", "settings", "metrics", "curve", "seconds", "reason"):
                trial.set_user_attr(name, getattr(outcome, name))
            if outcome.counts:
                study.tell(trial, goal(self.monitor, outcome.value))
            else:
                pruned = outcome.state in ("pruned", "cut")
                study.tell(trial, state=State.PRUNED if pruned else State.FAIL)
            self._show(study, outcome)

    def _try(self, optuna_trial: optuna.Trial, settings: Mapping[str, Any]) -> Trial:
        """Train a model by some settings."""
        limit = self.deadline
        if optuna_trial.number:
            limit = min(limit, time.monotonic() + _LONGEST_TRIAL * 60 * self.options.minutes)
        watch = _Watch(optuna_trial, self.monitor, limit)
        started = time.perf_counter()
        state: TrialState = "finished"
        reason = None
        stops = True
        try:
            trainer = self._trainer(settings, watch)
            stops = self._stops(trainer)
            every = self.config.train.eval_every
            if not stops and every is None:
                every = math.ceil(self.steps / _PARTS)
            trainer.fit(
                self.data,
                valid=self.valid,
                eval_every=every,
                early_stopping="auto" if stops else False,
                cache=self.cache,
            )
            watch.metrics = dict(trainer.valid_metrics)
        except _Enough as stop:
            state, reason = stop.state, stop.reason
        except WideDeepError as error:
            if optuna_trial.number == 0:
                raise  # The user's own configuration does not train
            state, reason = "failed", str(error)
        if state == "cut" and not stops:
            watch.metrics = {}  # its rates had not decayed: another model than training would give
        return Trial(
            number=optuna_trial.number,
            state=state,
            value=watch.metrics.get(self.monitor),
            params=dict(optuna_trial.params),
            settings=settings,
            metrics=watch.metrics,
            curve=tuple(watch.curve),
            seconds=time.perf_counter() - started,
            reason=reason,
        )

    def _stops(self, trainer: Trainer) -> bool:
        """Whether training goes back to the best evaluation, as ``train`` would decide."""
        train = trainer.options
        if train.early_stopping != "auto" or train.patience is not None:
            return train.early_stopping is not False
        one_pass = train.epochs == 1 and (train.eval_every or self.steps) >= self.steps
        return not one_pass or train.monitor is not None

    def _configured(self, settings: Mapping[str, Any]) -> RunConfig:
        if not settings:
            return self.config
        return config_from_tables(apply_settings(self.config.to_table(), settings))

    def _trainer(self, settings: Mapping[str, Any], callback: Any, **changes: Any) -> Trainer:
        config = at_quality(self._configured(settings))
        model = WideDeep(self.schema, config.model, device=config.train.device)
        train = replace(config.train, log=[], **changes)
        return Trainer(model, train, progress=False, callbacks=[callback])

    def _show(self, study: optuna.Study, trial: Trial) -> None:
        best = min(
            (t for t in map(_as_trial, study.trials) if t.counts),
            key=lambda t: goal(self.monitor, t.value),
            default=None,
        )
        value = trial.state if trial.value is None else f"{self.monitor} {trial.value:.5f}"
        if trial.value is not None and trial.state != "finished":
            value += f", {trial.state}"
        lead = "" if best is None else f"  best {best.value:.5f} (trial {best.number})"
        number = f"trial {trial.number}, {trial.params.get('model', 'wide')}"
        self._say(f"{number}: {value}  {trial.seconds:.0f} s{lead}")
        self._say(f"  {trial.reason}", trial.state == "failed")

    def _say(self, text: str, when: bool = True) -> None:
        if self.progress and when:
            print(text, file=sys.stderr, flush=True)


class _Enough(Exception):
    """Ends a training from within a callback."""

    def __init__(self, state: TrialState = "cut", reason: str | None = None) -> None:
        self.state, self.reason = state, reason


class _Probe:
    """Measures the time of a step."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def on_step(self, metrics: dict[str, Any]) -> None:
        """Stop as soon as the time is known; the first step also starts threads."""
        self._times.append(time.perf_counter())
        if len(self._times) > 2 and self._times[-1] - self._times[0] > _PROBE_S:
            raise _Enough

    @property
    def seconds_per_step(self) -> float:
        """Mean of all steps but the first."""
        return (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)


class _Watch:
    """Follows a trial's evaluations, and ends it where it is not worth going on."""

    def __init__(self, trial: optuna.Trial, monitor: str, deadline: float) -> None:
        self._trial, self._monitor, self._deadline = trial, monitor, deadline
        self.curve: list[tuple[int, float]] = []
        self.metrics: dict[str, float] = {}  # Of the best evaluation

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """Report the best value so far."""
        found = {
            name.removeprefix("valid/"): value
            for name, value in metrics.items()
            if name.startswith("valid/")
        }
        value = found[self._monitor]
        self.curve.append((metrics["step"], value))
        if goal(self._monitor, value) < goal(self._monitor, self.metrics.get(self._monitor)):
            self.metrics = found
        best = goal(self._monitor, self.metrics.get(self._monitor))
        if not math.isfinite(best):
            return
        self._trial.report(best, len(self.curve))
        if time.monotonic() > self._deadline:
            raise _Enough("cut", "its time was spent")
        if self._trial.should_prune():
            raise _Enough("pruned", "behind the median of the other trials")


def _check_labels(trainer: Trainer, valid: Data) -> None:
    """Refuse validation data in which a label of two classes has one value only."""
    heads, names = trainer.model.heads, list(trainer.model.schema.spec.labels.values())
    binary = [index for index, head in enumerate(heads) if head.kind == "binary"]
    lows, highs = dict.fromkeys(binary, math.inf), dict.fromkeys(binary, -math.inf)
    rows = 0
    with trainer.evaluator.open(valid, "validation data") as source:
        for batch in trainer.evaluator.batches(source, targets=True):
            rows += len(batch)
            for index in binary:
                labels = trainer.model.losses.labels(batch, index)
                lows[index] = min(lows[index], float(labels.min()))
                highs[index] = max(highs[index], float(labels.max()))
    for index in binary:
        if lows[index] == highs[index]:
            raise DataError(
                f"validation data: got label {names[index]!r} with the one value "
                f"{lows[index]:g} in all {rows:,} rows, on which no setting can be judged; give "
                "validation data of both classes, or more rows of them"
            )


def _check_free(folder: Path, *, goes_on: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder for the study")
    if (folder / _JOURNAL).exists() and not goes_on:
        raise ConfigError(
            f"{folder}: holds a study; --resume goes on with it, --force replaces it, "
            "--out DIR writes elsewhere"
        )


def _check_same(known: Mapping[str, Any], now: Mapping[str, Any], folder: Path | None) -> None:
    for name in now:
        if known.get(name) != now[name]:
            raise ConfigError(
                f"{folder}: holds a study with another {name!r}: {show_value(known.get(name))}, "
                f"now {show_value(now[name])}; go on with the same configuration, or start anew "
                "(--force, or --out DIR)"
            )


def _in_files(data: Data) -> bool:
    return input_paths(data.data if isinstance(data, RowShare) else data) is not None


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that were made, not those that wait."""
    return [trial for trial in study.trials if trial.state.is_finished()]


def _as_trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    known = frozen.user_attrs
    return Trial(
        number=frozen.number,
        state=known.get("state", "failed"),
        value=known.get("value"),
        params=frozen.params,
        settings=known.get("settings", {}),
        metrics=known.get("metrics", {}),
        curve=tuple((int(step), float(value)) for step, value in known.get("curve", ())),
        seconds=known.get("seconds", 0.0),
        reason=known.get("reason", "interrupted"),
    )


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Let Optuna log warnings alone, and keep its remarks on experimental options to itself."""
    import warnings

    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
