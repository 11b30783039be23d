"""What is called while a model is trained: the base class, and who calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from widedeep.errors import ConfigError, nearest

if TYPE_CHECKING:
    from widedeep.bundle import Bundle

Moment = Literal["on_begin", "on_step", "on_evaluate", "on_end", "on_fail", "on_export"]
MOMENTS: tuple[Moment, ...] = (
    *("on_begin", "on_step", "on_evaluate", "on_end"),
    *("on_fail", "on_export"),
)


class RunningTrainer(Protocol):
    """What the callbacks of this package use of a :class:`widedeep.Trainer`."""

    @property
    def model(self) -> Any:
        """The model, with its ``schema``."""

    @property
    def position(self) -> Any:
        """Epochs, steps and rows done so far."""

    @property
    def history(self) -> Iterable[dict[str, Any]]:
        """The rows of figures so far."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""

    @property
    def monitors(self) -> Sequence[str]:
        """The metrics of its validation; none without validation data."""

    def config_tables(self) -> dict[str, Any]:
        """Return the resolved configuration as nested tables."""

    def export(self, path: str, *, metrics: Mapping[str, float], overwrite: bool) -> Bundle:
        """Write the model as it is as a bundle."""


class Callback:
    """Base of callbacks: every method is empty; override those that you need.

    :class:`widedeep.Trainer` takes any object with some of these methods. On several ranks the
    first one alone calls them, unless ``every_rank`` is True. An exception that a method raises
    ends the training.

    Attributes:
        step_interval: Steps between two calls of :meth:`on_step`, at least 1. On a GPU each call
            waits for the step's loss.
        stop_training: Set to True in any method to end the training after the present step, as
            returning True from :meth:`on_step` or :meth:`on_evaluate` does. False again when a
            training begins.
        every_rank: True calls it on every rank, which all have the same metrics: for one that calls
            the trainer's ``export``, ``evaluate`` or ``predict``, which the ranks do together.

    Example:
        >>> import widedeep as wd
        >>> class Losses(wd.callbacks.Callback):
        ...     def on_begin(self, trainer):
        ...         self.seen = []
        ...
        ...     def on_step(self, metrics):
        ...         self.seen.append(metrics["loss"])
        ...         self.stop_training = len(self.seen) == 3
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
        >>> losses = Losses()
        >>> trainer = wd.Trainer(model, batch_size=8, callbacks=[losses], progress=False)
        >>> _ = trainer.fit(rows, epochs=20)
        >>> len(losses.seen), trainer.position.step
        (3, 3)
    """

    step_interval: int = 1
    stop_training: bool = False
    every_rank: bool = False

    def on_begin(self, trainer: RunningTrainer) -> None:
        """Before the first step of a training, of one that is resumed too.

        Args:
            trainer: The :class:`widedeep.Trainer`, with its resolved configuration
                (``config_tables()``), ``model``, ``position``, ``history`` and ``folder``.
        """

    def on_step(self, metrics: dict[str, Any]) -> bool | None:
        """After a step: ``step``, ``epoch``, ``rows``, ``loss`` (mean of the step).

        True ends the training after this step, as its last step would: with an evaluation and a
        checkpoint, and with early stopping the best model comes back. A stream ends after its
        shard. A run that is resumed goes on.
        """

    def on_evaluate(self, metrics: dict[str, Any]) -> bool | None:
        """After an evaluation, or a shard of a stream, with the row added to the history.

        True ends the training.
        """

    def on_end(self, metrics: dict[str, Any]) -> None:
        """After training, with the last row of the history; the model is the one that is kept."""

    def on_fail(self, error: BaseException) -> None:
        """Where training ends by an exception, ``KeyboardInterrupt`` included, in place of the end.

        Args:
            error: It is raised on after this.
        """

    def on_export(self, bundle: Bundle) -> None:
        """After :meth:`widedeep.Trainer.export` wrote a bundle, with it."""


class LambdaCallback(Callback):
    """A callback of functions.

    Args:
        on_begin: Called as :meth:`Callback.on_begin`.
        on_step: Called as :meth:`Callback.on_step`; a true return value ends the training.
        on_evaluate: Called as :meth:`Callback.on_evaluate`; likewise.
        on_end: Called as :meth:`Callback.on_end`.
        on_fail: Called as :meth:`Callback.on_fail`.
        on_export: Called as :meth:`Callback.on_export`.
        step_interval: Steps between two calls of ``on_step``, at least 1.

    Raises:
        ConfigError: If none is given, or one is no function.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
        >>> steps = []
        >>> watch = wd.callbacks.LambdaCallback(on_step=lambda row: steps.append(row["step"]))
        >>> trainer = wd.Trainer(model, batch_size=16, callbacks=[watch], progress=False)
        >>> _ = trainer.fit(rows)
        >>> steps
        [1, 2, 3, 4]
    """

    def __init__(
        self,
        *,
        on_begin: Callable[[Any], object] | None = None,
        on_step: Callable[[dict[str, Any]], object] | None = None,
        on_evaluate: Callable[[dict[str, Any]], object] | None = None,
        on_end: Callable[[dict[str, Any]], object] | None = None,
        on_fail: Callable[[BaseException], object] | None = None,
        on_export: Callable[[Bundle], object] | None = None,
        step_interval: int = 1,
    ) -> None:
        functions = (on_begin, on_step, on_evaluate, on_end, on_fail, on_export)
        for moment, function in zip(MOMENTS, functions, strict=True):
            if function is not None:
                setattr(self, moment, function)
        self.step_interval = step_interval
        _check_callback(self)


class Callbacks:
    """Calls objects while a model is trained, each at the moments that it has a method for."""

    def __init__(self, callbacks: object, *, is_first: bool = True) -> None:
        if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
            raise ConfigError(
                f"got callbacks={callbacks!r}, expected a list of objects: callbacks=[...]"
            )
        self.objects = list(callbacks)
        self.stopped = False
        """True once one has asked to stop."""
        for callback in self.objects:
            _check_callback(callback)
        if not is_first:  # of several ranks
            self.objects = [c for c in self.objects if getattr(c, "every_rank", False) is True]

    def wants_step(self, step: int) -> bool:
        """True if one is called after this step, whose loss is then waited for."""
        return any(
            _method(c, "on_step") is not None and step % _interval(c) == 0 for c in self.objects
        )

    def steps_ahead(self, step: int) -> int | None:
        """Return after how many more steps one is called; None without any."""
        intervals = [_interval(c) for c in self.objects if _method(c, "on_step") is not None]
        return min((every - step % every for every in intervals), default=None)

    def call(self, moment: Moment, argument: Any) -> None:
        """Call the method of each that has it, and note whether one asks to stop."""
        for callback in self.objects:
            method = _method(callback, moment)
            if method is None:
                continue
            if moment == "on_step" and argument["step"] % _interval(callback):
                continue
            stops = method(argument) is True and moment in ("on_step", "on_evaluate")
            if stops or getattr(callback, "stop_training", False) is True:
                self.stopped = True

    @contextlib.contextmanager
    def around(self, trainer: RunningTrainer) -> Iterator[None]:
        """Call ``on_begin``, and ``on_fail`` if the block raises."""
        self.stopped = False
        for callback in self.objects:
            if isinstance(callback, Callback):
                callback.stop_training = False
        try:
            self.call("on_begin", trainer)
            yield
        except BaseException as error:
            try:
                self.call("on_fail", error)
            except Exception as second:
                error.add_note(f"on_fail of a callback raised {second!r}")
            raise


def _interval(callback: object) -> int:
    interval: int = getattr(callback, "step_interval", 1)
    return interval


def _method(callback: object, moment: Moment) -> Callable[[Any], object] | None:
    """Return a callback's method; None without one, or with the empty one of the base."""
    method = getattr(callback, moment, None)
    empty = getattr(method, "__func__", None) is getattr(Callback, moment)
    return None if empty else method


def _check_callback(callback: object) -> None:
    what = f"callback {type(callback).__name__}"
    if isinstance(callback, type):
        raise ConfigError(f"got the class {callback.__name__} as a callback; give an object of it")
    methods = [name for name in dir(callback) if name.startswith("on_")]
    for name in methods:
        if name not in MOMENTS:
            raise ConfigError(
                f"{what}: got the method {name!r}, which nothing calls; {nearest(name, MOMENTS)}"
            )
        if not callable(getattr(callback, name)):
            raise ConfigError(f"{what}: got {name}={getattr(callback, name)!r}, expected a method")
    if all(_method(callback, moment) is None for moment in MOMENTS):
        raise ConfigError(f"{what}: got none of the methods {', '.join(MOMENTS)}; define one")
    interval = _interval(callback)
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ConfigError(f"{what}: got step_interval={interval!r}, expected an integer >= 1")
