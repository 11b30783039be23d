"""Where a run's figures go: a CSV file, TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from widedeep.callbacks.base import Callback, RunningTrainer
from widedeep.errors import ConfigError, MissingPackageError, install_hint, nearest, show_value
from widedeep.features.toml import toml_text
from widedeep.files import write_text_whole
from widedeep.options import COUNT, COUNTS, check_range, check_types, read_section

if TYPE_CHECKING:
    from widedeep.bundle import Bundle

LogOption: TypeAlias = str | Mapping[str, Any]
_EVERY = 50
_LONGEST_VALUE = 500  # characters of a hyper-parameter: what older MLflow servers take


def parameters(tables: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the sections ``model`` and ``train`` of a configuration as flat hyper-parameters.

    Args:
        tables: A configuration as nested tables. What is None is left out; a list is its text.

    Example:
        >>> parameters({"model": {"hidden_units": [64, 32]}, "train": {"wide": {"lr": 0.1}}})
        {'model.hidden_units': '[64, 32]', 'train.wide.lr': 0.1}
    """
    flat: dict[str, str | int | float | bool] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{prefix}.{key}", item)
        elif isinstance(value, (bool, int, float)):
            flat[prefix] = value
        elif value is not None and value != []:
            flat[prefix] = str(value)[:_LONGEST_VALUE]

    for section in ("model", "train"):
        add(section, tables.get(section, {}))
    flat.pop("train.log", None)
    return flat


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of the history by name; those without a set are of training."""
    return {
        key if "/" in key else f"train/{key}": float(value)
        for key, value in row.items()
        if isinstance(value, (int, float)) and key != "step"
    }


class Logger(Callback):
    """Base of the loggers: sends figures and says, once, where one cannot be sent.

    A tracker that is away when training begins is an error; one that goes away later costs the
    figures, not the training.
    """

    package: str | None = None
    _offset = 0  # Steps of earlier runs of the trainer: a second fit goes on behind the first
    _failed = False

    def __post_init__(self) -> None:
        owner = f"callback {type(self).__name__}"
        check_types(self, owner)
        every = getattr(self, "every", 1)
        check_range(owner, "every", every, every in COUNTS, COUNT)
        self.step_interval = every
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise MissingPackageError(
                f"{owner}: {install_hint(self.package, self.package)}", name=self.package
            )

    @abstractmethod
    def begin(self, trainer: RunningTrainer) -> None:
        """Open the log and record the configuration."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name."""

    def end(self, error: BaseException | None) -> None:
        """Record that training ended."""

    def export(self, bundle: Bundle) -> None:
        """Record a bundle."""

    def on_begin(self, trainer: RunningTrainer) -> None:
        """Open the log."""
        self._offset = trainer.position.updates - trainer.position.step
        self._failed = False
        self.begin(trainer)

    def on_step(self, metrics: dict[str, Any]) -> None:
        """Record the loss of one step."""
        self._send(self.log, {"step/loss": metrics["loss"]}, metrics["step"] + self._offset)

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """Record an evaluation."""
        self._send(self.log, scalars(metrics), metrics["step"] + self._offset)

    def on_end(self, metrics: dict[str, Any]) -> None:
        """Record the end."""
        self._send(self.end, None)

    def on_fail(self, error: BaseException) -> None:
        """Record what ended the training."""
        self._send(self.end, error)

    def on_export(self, bundle: Bundle) -> None:
        """Record a bundle."""
        self._send(self.export, bundle)

    def _send(self, method: Any, *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:
            if not self._failed:
                self._failed = True
                name = type(self).__name__
                print(
                    f"warning: {name}: got {error!r:.300}; figures are lost, training goes on",
                    file=sys.stderr,
                    flush=True,
                )


@dataclass(eq=False)
class CSVLog(Logger):
    """Writes the history to a CSV file, a line an evaluation.

    The file holds the whole history of the trainer: a run that is resumed keeps the lines of its
    checkpoint's history, and those behind it are written again.

    Args:
        path: The file; None: ``history.csv`` in the folder of the run (the one above
            ``checkpoints``), or the working folder.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
        >>> log = wd.callbacks.CSVLog("losses.csv")
        >>> _ = wd.Trainer(model, callbacks=[log], progress=False).fit(rows, epochs=2, valid=rows)
        >>> with open("losses.csv") as file:
        ...     print(file.readline().rstrip()[:26])
        epoch,step,rows,loss,rows_
    """

    path: str | None = None
    _trainer: Any = field(default=None, init=False, repr=False)
    _columns: list[str] = field(default_factory=list, init=False, repr=False)

    def begin(self, trainer: RunningTrainer) -> None:
        """Write the rows of the history so far."""
        self._trainer = trainer
        self._write()

    def on_step(self, metrics: dict[str, Any]) -> None:
        """Nothing: the file has a line an evaluation."""

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """Append a line; a new figure writes the file again, with a column for it."""
        self._send(self._append, metrics)

    def _append(self, row: Mapping[str, Any]) -> None:
        if not set(row) <= set(self._columns):
            self._write()
            return
        with open(self._file, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @property
    def _file(self) -> Path:
        return Path(self.path) if self.path else self._trainer.folder / "history.csv"

    def _write(self) -> None:
        rows = list(self._trainer.history)
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO(newline="")
        if rows:
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text_whole(self._file, text.getvalue())
        except OSError as error:
            raise ConfigError(
                f"callback CSVLog: {self._file} cannot be written ({error.strerror}); give "
                "another path"
            ) from error


@dataclass(eq=False)
class TensorBoard(Logger):
    """Writes event files for TensorBoard: losses, metrics, hyper-parameters.

    ``tensorboard --logdir runs`` shows them; ``widedeep[tensorboard]`` brings the package.

    Args:
        dir: Folder of the event files; None: ``tensorboard`` in the folder of the run (the one
            above ``checkpoints``), or in the working folder.
        every: Steps between two losses ``step/loss``, at least 1.

    Raises:
        MissingPackageError: If ``tensorboard`` is not installed.

    Example:
        >>> import widedeep as wd
        >>> board = wd.callbacks.TensorBoard("board", every=10)
        >>> board.step_interval
        10
    """

    dir: str | None = None
    every: int = _EVERY
    _writer: Any = field(default=None, init=False, repr=False)

    package = "tensorboard"

    def begin(self, trainer: RunningTrainer) -> None:
        """Open an event file that hides events of later steps, of a run that this one resumes."""
        from torch.utils.tensorboard import SummaryWriter

        self.end(None)
        folder = Path(self.dir) if self.dir else trainer.folder / "tensorboard"
        purge = trainer.position.updates + 1 if trainer.position.updates else 0
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        tables = trainer.config_tables()
        toml = toml_text(_without_none(tables))
        text = f"schema {trainer.model.schema.fingerprint}\n\n```toml\n{toml}```"
        self._writer.add_text("config", text, self._offset + trainer.position.step)
        self._hyper_parameters(parameters(tables))

    def _hyper_parameters(self, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import summary

        hparams: Any = summary.hparams
        experiment, start, end = hparams(dict(values), {"valid/auc": 0.0, "valid/log_loss": 0.0})
        for record in (experiment, start, end):
            self._writer.file_writer.add_summary(record)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, error: BaseException | None) -> None:
        """Write out what waits; a file that is closed would be opened again by a next event."""
        if self._writer is not None:
            self._writer.close()

    def export(self, bundle: Bundle) -> None:
        """Write the bundle's metrics."""
        if self._writer is None:
            return
        for name, value in numbers_of(bundle.metrics).items():
            self._writer.add_scalar(f"bundle/{name}", value, self._offset)
        self._writer.close()


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers."""
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}


def _without_none(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in table.items() if value is not None}
        for name, table in tables.items()
    }


@dataclass(eq=False)
class MLflow(Logger):
    """Logs to MLflow: hyper-parameters, metrics, the schema's fingerprint, the bundle as a model.

    The run begins with training and is FINISHED, KILLED or FAILED with it. A bundle that
    ``trainer.export`` or ``widedeep train`` writes after that is added to it as a pyfunc model
    (:func:`widedeep.bundle.log_mlflow_model`). A training that is resumed is a run of its own,
    tagged with its first step, unless ``run_id`` says which goes on. ``widedeep[mlflow]`` brings
    the package.

    Args:
        experiment: Name of the experiment; it is made where there is none.
        tracking_uri: Where the tracking server or its database is, such as
            ``"http://localhost:5000"`` or ``"sqlite:///mlflow.db"``; None: MLflow's own setting,
            ``MLFLOW_TRACKING_URI``.
        name: Name of the run; None: the name of the run's folder.
        run_id: A run to go on with.
        tags: Tags of the run.
        every: Steps between two losses ``step/loss``, at least 1.
        bundle: Log bundles as models.

    Raises:
        MissingPackageError: If ``mlflow`` is not installed.

    Example:
        >>> import widedeep as wd
        >>> wd.callbacks.MLflow("ads").every  # doctest: +SKIP
        50
    """

    experiment: str = "widedeep"
    tracking_uri: str | None = None
    name: str | None = None
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    every: int = _EVERY
    bundle: bool = True
    _client: Any = field(default=None, init=False, repr=False)

    package = "mlflow"

    def begin(self, trainer: RunningTrainer) -> None:
        """Start a run, and record what it is made of."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._client = MlflowClient(self.tracking_uri)
            goes_on = self.run_id is not None
            if self.run_id is None:
                self.run_id = self._new_run(trainer)
            else:
                self._client.update_run(self.run_id, "RUNNING")
        except MlflowException as error:
            raise ConfigError(
                f"callback MLflow: {self.tracking_uri or 'the tracking store'} cannot be used "
                f"({error!s:.300}); check tracking_uri or MLFLOW_TRACKING_URI"
            ) from error
        tables = trainer.config_tables()
        if not goes_on:  # parameters cannot be changed
            for name, value in parameters(tables).items():
                self._client.log_param(self.run_id, name, value)
        self._client.log_text(self.run_id, toml_text(_without_none(tables)), "config.toml")

    def _new_run(self, trainer: RunningTrainer) -> str:
        experiment = self._client.get_experiment_by_name(self.experiment)
        key = (
            self._client.create_experiment(self.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        tags = {
            "widedeep.schema": trainer.model.schema.fingerprint,
            "widedeep.first_step": str(trainer.position.step),
            **self.tags,
        }
        name = self.name or trainer.folder.resolve().name
        run = self._client.create_run(key, tags=tags, run_name=name)
        run_id: str = run.info.run_id
        return run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers, in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def end(self, error: BaseException | None) -> None:
        """End the run."""
        if self._client is not None:
            killed = isinstance(error, KeyboardInterrupt)
            status = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
            self._client.set_terminated(self.run_id, status)

    def export(self, bundle: Bundle) -> None:
        """Add a bundle to the run."""
        from widedeep.bundle.mlflow_model import log_mlflow_model

        if self._client is None:
            return
        self.log({f"bundle/{k}": v for k, v in numbers_of(bundle.metrics).items()}, self._offset)
        if self.bundle:
            log_mlflow_model(bundle, run_id=self.run_id, tracking_uri=self.tracking_uri)


@dataclass(eq=False)
class WandB(Logger):
    """Logs to Weights & Biases: hyper-parameters, metrics, the bundle as an artifact.

    The run stays open for a bundle that is exported after training, and ends with :meth:`close`,
    with the next training of this callback, or with the process. ``widedeep[wandb]`` brings the
    package.

    Args:
        project: Name of the project.
        name: Name of the run; None: the name of the run's folder.
        mode: ``"online"``, ``"offline"`` (``wandb sync`` sends it later) or ``"disabled"``; None:
            W&B's own setting, ``WANDB_MODE``.
        dir: Folder of W&B's files; None: the folder of the run.
        tags: Tags of the run.
        every: Steps between two losses ``step/loss``, at least 1.
        bundle: Log bundles as artifacts.

    Raises:
        MissingPackageError: If ``wandb`` is not installed.

    Example:
        >>> import widedeep as wd
        >>> wd.callbacks.WandB("ads", mode="offline").project  # doctest: +SKIP
        'ads'
    """

    project: str = "widedeep"
    name: str | None = None
    mode: str | None = None
    dir: str | None = None
    tags: tuple[str, ...] = ()
    every: int = _EVERY
    bundle: bool = True
    _run: Any = field(default=None, init=False, repr=False)

    package = "wandb"

    def __post_init__(self) -> None:
        super().__post_init__()
        modes = (None, "online", "offline", "disabled")
        check_range("callback WandB", "mode", self.mode, self.mode in modes, f"one of {modes[1:]}")

    def begin(self, trainer: RunningTrainer) -> None:
        """Start a run."""
        import wandb

        self.close()
        folder = Path(self.dir) if self.dir else trainer.folder
        folder.mkdir(parents=True, exist_ok=True)
        config = parameters(trainer.config_tables())
        config["schema"] = trainer.model.schema.fingerprint
        mode: Any = self.mode  # one of the modes that wandb names in its types
        try:
            self._run = wandb.init(
                project=self.project,
                name=self.name or trainer.folder.resolve().name,
                mode=mode,
                dir=str(folder),
                tags=self.tags,
                config=config,
                reinit="create_new",
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"callback WandB: no run can begin ({error}); log in with 'wandb login', or give "
                "mode='offline'"
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers."""
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def end(self, error: BaseException | None) -> None:
        """End a run that failed."""
        if error is not None:
            self.close(exit_code=1)

    def export(self, bundle: Bundle) -> None:
        """Add a bundle to the run."""
        import wandb

        if self._run is None:
            return
        values = numbers_of(bundle.metrics)
        self._run.summary.update({f"bundle/{name}": value for name, value in values.items()})
        if self.bundle:
            metadata = {"schema": bundle.schema.fingerprint, "metrics": values}
            artifact = wandb.Artifact(f"bundle-{self._run.id}", "model", metadata=metadata)
            artifact.add_dir(str(bundle.path))
            self._run.log_artifact(artifact)

    def close(self, exit_code: int = 0) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None


_KINDS: dict[str, type[Any]] = {
    "csv": CSVLog,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}
_PATHS = ("dir", "path")  # Options that are places on disk


def log_table(option: LogOption) -> tuple[type[Any], dict[str, Any]]:
    """Return the logger that one of ``[train] log`` means, and its options.

    Raises:
        ConfigError: If the kind or an option is unknown.
    """
    table: dict[str, Any] = {"kind": option} if isinstance(option, str) else dict(option)
    name = table.pop("kind", None)
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(
            f"[train] log: got kind = {show_value(name)}; {nearest(str(name), _KINDS)}"
        )
    kind = _KINDS[name]
    names = [entry.name for entry in dataclasses.fields(kind) if entry.init]
    unknown = next((key for key in table if key not in names), None)
    if unknown is not None:
        raise ConfigError(
            f"[train] log {name!r}: got the unknown key {unknown!r}; {nearest(unknown, names)}"
        )
    return kind, table


def make_loggers(options: Sequence[LogOption], folder: Path) -> list[Logger]:
    """Return the loggers of ``[train] log``.

    Args:
        options: Each a kind, ``"csv"``, ``"tensorboard"``, ``"mlflow"`` or ``"wandb"``, or a table
            of ``kind`` and options: ``{"kind": "tensorboard", "dir": "boards"}``.
        folder: Folder of the run, to which relative paths among the options are relative.

    Raises:
        ConfigError: If a kind or an option is unknown, or a value outside its range.
        MissingPackageError: If a package is not installed.
    """
    loggers = []
    for option in options:
        kind, table = log_table(option)
        for key in _PATHS:
            if isinstance(table.get(key), str):
                table[key] = str(folder / table[key])
        loggers.append(read_section(kind, table, f"[train] log: {kind.__name__}"))
    return loggers
