"""Learning-rate schedules: the factor of each part's rate at a step of a run.

A schedule is named in ``schedule`` of :class:`widedeep.training.config.TrainConfig`, or given as a
table of its name and options, as one of the classes here, or as a function of the step, counted
from 0.

Example:
    >>> table = {"name": "exponential", "decay_steps": 1000, "decay_rate": 0.5, "staircase": True}
    >>> schedule = make_schedule(table)
    >>> [schedule.at(step, None) for step in (0, 999, 1000, 2500)]
    [1.0, 1.0, 0.5, 0.25]
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, nearest, show_value
from widedeep.metrics.registry import is_better
from widedeep.options import (
    Allowed,
    Count,
    Positive,
    UnitInterval,
    check_range,
    check_types,
    read_section,
)

__all__ = [
    "WSD",
    "Cosine",
    "Exponential",
    "InverseTime",
    "Linear",
    "Plateau",
    "Polynomial",
    "Schedule",
    "Step",
    "make_schedule",
]

PARTS = ("wide", "deep", "dense")
"""Parts of a model with a schedule each: wide weights, embeddings, dense parameters."""
DecayFraction = Annotated[float, Allowed(lambda x: 0 < x < 1, "0 < fraction < 1")]
_NOT_NEGATIVE = Allowed(lambda x: x >= 0, "at least 0")
FUNCTION = "function "
"""Before the name of a function, where a checkpoint or bundle records one."""


class Rates(NamedTuple):
    """Factor of each part's learning rate at one step."""

    wide: float = 1.0
    deep: float = 1.0
    dense: float = 1.0


FULL_RATES = Rates()


class Schedule(ABC):
    """A factor of the learning rate by the step, counted from 0."""

    name: ClassVar[str] = "function"

    needs_run: ClassVar[bool] = False
    """True if it looks at the end or the validation data of a run, which a stream does not have."""

    @property
    def owner(self) -> str:
        """What errors call it."""
        return repr(self.name)

    @abstractmethod
    def at(self, step: int, total_steps: int | None) -> float:
        """Return the factor at a step of a run of ``total_steps``; None: it has no end."""

    def over(self, steps_S: NDArray[np.int64], total_steps: int | None) -> NDArray[np.float64]:
        """Return what :meth:`at` returns, of several steps."""
        return np.array([self.at(step, total_steps) for step in steps_S.tolist()], np.float64)

    @property
    def spans_run(self) -> bool:
        """True if it decays over the steps of the run, however many these are."""
        return False


ScheduleOption = str | Mapping[str, Any] | Schedule | Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """``"constant"``: the rate as it is."""

    name: ClassVar[str] = "constant"

    def at(self, step: int, total_steps: int | None) -> float:
        """Return 1."""
        return 1.0

    def over(self, steps_S: NDArray[np.int64], total_steps: int | None) -> NDArray[np.float64]:
        """Return ones."""
        return np.ones(len(steps_S))


class Function(Schedule):
    """A function of the step."""

    def __init__(self, function: Callable[[int], float]) -> None:
        self._function = function

    def at(self, step: int, total_steps: int | None) -> float:
        """Return what the function returns.

        Raises:
            ConfigError: If that is no number of at least 0.
        """
        factor = self._function(step)
        try:
            number = float(factor)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise ConfigError(
                f"schedule: got {show_value(factor)} from its function at step {step:,}, expected "
                "the factor of the learning rate, a number >= 0"
            )
        return number


class RecordedFunction(Schedule):
    """A function of an earlier run, of which a checkpoint records the name."""

    def __init__(self, record: str) -> None:
        self.record = record

    def at(self, step: int, total_steps: int | None) -> float:
        """Refuse: the function is not there."""
        raise ConfigError(
            f"schedule: got {self.record!r}, the record of a function; give the function itself: "
            "wd.Trainer(model, schedule=...)"
        )


@dataclass(frozen=True, kw_only=True)
class Decay(Schedule):
    """What decays over a number of steps, or over those of the run."""

    decay_steps: Count | None = None

    def __post_init__(self) -> None:
        check_types(self, self.owner)

    @property
    def spans_run(self) -> bool:
        """True without ``decay_steps``."""
        return self.decay_steps is None

    def progress(self, step: int, total_steps: int | None) -> float:
        """Return the steps done over those of the decay; 0 for a run without an end."""
        steps = self.decay_steps or total_steps
        return step / steps if steps else 0.0


@dataclass(frozen=True, kw_only=True)
class Linear(Decay):
    """``"linear"``: 1 - (1 - end)·step/decay_steps, then ``end``.

    Args:
        decay_steps: Steps of the decay, at least 1; None: those of the run.
        end: Factor at the end, 0 <= end <= 1.
    """

    name: ClassVar[str] = "linear"
    end: UnitInterval = 0.0

    def at(self, step: int, total_steps: int | None) -> float:
        """Return the factor at a step."""
        return self.end + (1.0 - self.end) * self.fraction(self.progress(step, total_steps))

    def fraction(self, progress: float) -> float:
        """Return how much of the way to ``end`` is left."""
        return 1.0 - min(1.0, progress)


@dataclass(frozen=True, kw_only=True)
class Cosine(Linear):
    """``"cosine"``: half a wave from 1 to ``end`` (Loshchilov & Hutter 2017), then ``end``.

    Args:
        decay_steps: Steps of the decay, at least 1; None: those of the run.
        end: Factor at the end, 0 <= end <= 1; TensorFlow's ``alpha``.
    """

    name: ClassVar[str] = "cosine"

    def fraction(self, progress: float) -> float:
        """Return how much of the way to ``end`` is left."""
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True, kw_only=True)
class Polynomial(Linear):
    """``"polynomial"``: end + (1 - end)·(1 - step/decay_steps)^power, then ``end``.

    TensorFlow's, which gives the end as a rate and not as a fraction of the first rate.

    Args:
        decay_steps: Steps of the decay, at least 1; None: those of the run.
        end: Factor at the end, 0 <= end <= 1.
        power: Exponent > 0.
        cycle: Beyond ``decay_steps``, decay towards the next multiple of it.
    """

    name: ClassVar[str] = "polynomial"
    power: Positive = 1.0
    cycle: bool = False

    def fraction(self, progress: float) -> float:
        """Return how much of the way to ``end`` is left."""
        if self.cycle:
            progress /= max(1, math.ceil(progress))
        return float((1.0 - min(1.0, progress)) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Exponential(Decay):
    """``"exponential"``: decay_rate^(step/decay_steps), as TensorFlow's.

    Args:
        decay_steps: Steps in which the rate falls to ``decay_rate`` of it, at least 1; None: those
            of the run.
        decay_rate: Factor over that many steps, > 0.
        staircase: Count whole multiples of ``decay_steps`` only.
    """

    name: ClassVar[str] = "exponential"
    decay_rate: Positive = 0.1
    staircase: bool = False

    def at(self, step: int, total_steps: int | None) -> float:
        """Return the factor at a step."""
        progress = self.progress(step, total_steps)
        return self.after(float(math.floor(progress)) if self.staircase else progress)

    def after(self, progress: float) -> float:
        """Return the factor after so many times ``decay_steps``."""
        return float(self.decay_rate**progress)


@dataclass(frozen=True, kw_only=True)
class InverseTime(Exponential):
    """``"inverse_time"``: 1/(1 + decay_rate·step/decay_steps), as TensorFlow's.

    Args:
        decay_steps: Unit of time in steps, at least 1; None: all steps of the run.
        decay_rate: > 0.
        staircase: Count whole multiples of ``decay_steps`` only.
    """

    name: ClassVar[str] = "inverse_time"
    decay_rate: Positive = 1.0

    def after(self, progress: float) -> float:
        """Return the factor after so many times ``decay_steps``."""
        return 1.0 / (1.0 + self.decay_rate * progress)


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """``"wsd"``: constant, then linear to 0 over the last steps of the run (Hu et al. 2024).

    Where training stops early, it decays from the best model.

    Args:
        decay_fraction: Fraction of the steps in which it decays, 0 < fraction < 1; by default
            ``decay_fraction`` under ``[train]``.
    """

    name: ClassVar[str] = "wsd"
    needs_run: ClassVar[bool] = True
    decay_fraction: DecayFraction = 0.2

    def __post_init__(self) -> None:
        check_types(self, self.owner)

    @property
    def spans_run(self) -> bool:
        """True: it ends with the run."""
        return True

    def at(self, step: int, total_steps: int | None) -> float:
        """Return the factor at a step."""
        return float(self.over(np.array([step]), total_steps)[0])

    def over(self, steps_S: NDArray[np.int64], total_steps: int | None) -> NDArray[np.float64]:
        """Return the factors at several steps."""
        done_S = np.minimum(1.0, steps_S / total_steps) if total_steps else np.zeros(len(steps_S))
        return np.minimum(1.0, (1.0 - done_S) / self.decay_fraction)


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """``"step"``: a factor up to each boundary, the next one from it on.

    As torch's ``MultiStepLR``; TensorFlow's ``PiecewiseConstantDecay`` changes one step later.

    Args:
        boundaries: Steps from which the next factor holds, each at least 1, ascending.
        factors: Factors >= 0, one more than ``boundaries``.
    """

    name: ClassVar[str] = "step"
    boundaries: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_types(self, self.owner)
        steps, factors = self.boundaries, self.factors
        ascending = bool(steps) and all(a < b for a, b in zip((0, *steps), steps, strict=False))
        check_range(self.owner, "boundaries", list(steps), ascending, "ascending steps, at least 1")
        fits = len(factors) == len(steps) + 1 and min(factors) >= 0
        allowed = f"{len(steps) + 1} numbers >= 0, one more than boundaries"
        check_range(self.owner, "factors", list(factors), fits, allowed)

    def at(self, step: int, total_steps: int | None) -> float:
        """Return the factor at a step."""
        return self.factors[sum(step >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """``"plateau"``: falls each time a validation metric has stopped improving, as Keras' does.

    Args:
        factor: What the rate is multiplied by, 0 < factor < 1.
        patience: Evaluations without an improvement before that, at least 1. Early stopping should
            wait for more of them.
        min_delta: Smallest change that counts as an improvement, at least 0.
        cooldown: Evaluations that do not count after a fall, at least 0.
        end: Smallest factor, 0 <= end <= 1.
        monitor: Validation metric; by default ``monitor`` under ``[train]``, or the model's loss.
    """

    name: ClassVar[str] = "plateau"
    needs_run: ClassVar[bool] = True
    factor: Annotated[float, Allowed(lambda x: 0 < x < 1, "0 < {name} < 1")] = 0.5
    patience: Count = 1
    min_delta: Annotated[float, _NOT_NEGATIVE] = 0.0
    cooldown: Annotated[int, _NOT_NEGATIVE] = 0
    end: UnitInterval = 0.0
    monitor: str | None = None

    def __post_init__(self) -> None:
        check_types(self, self.owner)
        check_range(self.owner, "monitor", self.monitor, self.monitor != "", "a metric's name")

    def at(self, step: int, total_steps: int | None) -> float:
        """Return 1: :class:`RateSchedules` knows how often it fell."""
        return 1.0


_KINDS: dict[str, type[Schedule]] = {
    kind.name: kind
    for kind in (
        *(Constant, Linear, Cosine, WSD),
        *(Polynomial, Exponential, InverseTime, Step, Plateau),
    )
}


def make_schedule(option: ScheduleOption, *, decay_fraction: float = 0.2) -> Schedule:
    """Return the schedule of a name, of a table with ``name`` and options, or of a function.

    Args:
        option: Such as ``"linear"`` or ``{"name": "linear", "end": 0.1}``; a schedule as it is.
        decay_fraction: Fraction in which ``"wsd"`` decays where its table has none.

    Raises:
        ConfigError: If the name or an option is unknown, or a value outside its range.
    """
    if isinstance(option, Schedule):
        return option
    if not isinstance(option, str | Mapping):
        return Function(option)
    table: dict[str, Any] = {"name": option} if isinstance(option, str) else dict(option)
    name = table.pop("name", None)
    if name == "auto":
        name = WSD.name
    if isinstance(name, str) and name.startswith(FUNCTION):
        return RecordedFunction(name)
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"got name={show_value(name)}; {nearest(str(name), _KINDS)}")
    kind = _KINDS[name]
    if kind is WSD:
        table.setdefault("decay_fraction", decay_fraction)
    return read_section(kind, table, repr(name))


def describe_schedule(option: ScheduleOption) -> ScheduleOption:
    """Return the table of a schedule, without options that are None; another option as it is."""
    if not isinstance(option, Schedule):
        return option
    table = {key: value for key, value in vars(option).items() if value is not None}
    return {"name": option.name, **table}


@dataclass(kw_only=True)
class Fall:
    """What the schedule of a part remembers of a plateau."""

    factor: float = 1.0
    best: float | None = None
    without: int = 0  # Evaluations without improvement
    cooldown: int = 0  # Evaluations that will not count

    def update(self, plateau: Plateau, monitor: str, value: float) -> bool:
        """Take an evaluation; return True if the rate falls."""
        finite = math.isfinite(value)
        if finite and (
            self.best is None or is_better(monitor, value, self.best, plateau.min_delta)
        ):
            self.best, self.without = value, 0
        elif self.best is not None and not self.cooldown:
            self.without += 1
        self.cooldown = max(0, self.cooldown - 1)
        if self.without < plateau.patience:
            return False
        self.without, self.cooldown = 0, plateau.cooldown
        before, self.factor = self.factor, max(self.factor * plateau.factor, plateau.end)
        return self.factor < before


class RateSchedules:
    """The schedule of each part of a model, and what plateaus remember in a run."""

    def __init__(self, parts: Mapping[str, Schedule], *, warmup_steps: int = 0) -> None:
        self.warmup_steps = warmup_steps
        by_id: dict[int, list[str]] = {}
        for part, schedule in parts.items():
            by_id.setdefault(id(schedule), []).append(part)
        # By the names of its parts
        self._parts = {", ".join(names): names for names in by_id.values()}
        self.schedules = {key: parts[names[0]] for key, names in self._parts.items()}
        self.monitor = ""
        self.falls: dict[str, Fall] = {}
        self._plateaus = {k: s for k, s in self.schedules.items() if isinstance(s, Plateau)}

    def begin(self, monitor: str) -> None:
        """Begin a run.

        Raises:
            ConfigError: If a function is missing.
        """
        self.monitor = monitor
        self.falls = {parts: Fall() for parts in self._plateaus}
        for schedule in self.schedules.values():
            if isinstance(schedule, RecordedFunction):
                schedule.at(0, None)

    @property
    def wsd(self) -> WSD | None:
        """The first that decays from the best model where training stops early."""
        return next((s for s in self.schedules.values() if isinstance(s, WSD)), None)

    def rates_of(
        self,
        steps: int,
        step: int,
        total_steps: int,
        *,
        before: int | None = None,
        tails_S: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the factors of the rates of the next steps, (S, 3), after those done in this run.

        ``before`` counts the steps of a stream before this shard of it. It has no end to decay
        towards and no validation data, so ``"wsd"`` and ``"plateau"`` stay constant, while others
        that last as long as the run go over each shard. ``tails_S`` are factors of ``"wsd"`` after
        an early stop.
        """
        run_S = np.arange(step, step + steps)
        done_S = run_S + (before or 0)
        rise_S = np.ones(steps)
        if self.warmup_steps:
            rise_S = np.minimum(1.0, (done_S + 1) / self.warmup_steps)
        rates_S3 = np.ones((steps, len(PARTS)))
        for parts, schedule in self.schedules.items():
            if tails_S is not None and isinstance(schedule, WSD):
                factors_S = tails_S
            elif before is not None and schedule.needs_run:
                factors_S = rise_S
            elif isinstance(schedule, Plateau):
                factors_S = rise_S * self.falls[parts].factor
            else:
                steps_S = run_S if schedule.spans_run else done_S
                factors_S = rise_S * schedule.over(steps_S, total_steps)
            for part in self._parts[parts]:
                rates_S3[:, PARTS.index(part)] = factors_S
        return rates_S3

    def update(self, metrics: Mapping[str, float]) -> list[str]:
        """Let plateaus see an evaluation; return a line for each fall."""
        lines = []
        for parts, plateau in self._plateaus.items():
            name, fall = plateau.monitor or self.monitor, self.falls[parts]
            if fall.update(plateau, name, metrics[name]):
                lines.append(f"{name} improves no more: the rates of {parts} x {fall.factor:g}")
        return lines

    def outwaited(self, patience: int) -> list[str]:
        """Return a line for each plateau that early stopping of a patience would leave no time."""
        return [
            f"the plateau of {parts} waits for {plateau.patience} evaluations, early stopping for "
            f"{patience}; give early stopping more patience"
            for parts, plateau in self._plateaus.items()
            if plateau.patience >= patience
        ]

    def dump(self) -> dict[str, Any]:
        """Return what plateaus remember, for a checkpoint."""
        return {parts: asdict(fall) for parts, fall in self.falls.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`dump` returned."""
        self.falls |= {k: Fall(**fall) for k, fall in state.items() if k in self._plateaus}
