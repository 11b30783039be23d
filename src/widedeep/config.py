"""A run's configuration: frozen dataclasses, read from TOML and ``--set`` overrides."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from widedeep.errors import ConfigError, FeatureError, WideDeepError, nearest, show_value
from widedeep.features import FeatureSpec
from widedeep.features.toml import spec_from_table, spec_to_table, toml_text

__all__ = [
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "read_section",
    "read_tables",
]

Auto = Literal["auto"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
LossReduction = Literal["mean", "sum"]
Precision = Literal["fp32", "bf16", "auto"]
_PLACES = ("train", "valid", "test")
_PLURALS = {float: "numbers", int: "integers", str: "texts"}
_INT64 = range(-(2**63), 2**63)
_COUNT = "an integer of at least 1, at most 2,147,483,647"
_COUNTS = range(1, 2**31)
_THREADS = range(1, 1025)
_SEEDS = range(2**63)


def _check_range(owner: str, name: str, got: object, condition: bool, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{owner}: got {name}={show_value(got)}, expected {allowed}")


_HINTS: dict[type, dict[str, Any]] = {}


def _type_hints(kind: type) -> dict[str, Any]:
    """Evaluate a class's types once: that takes longer than all checks of its values."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def check_types(config: object, owner: str, raising: type[WideDeepError] = ConfigError) -> None:
    """Refuse values of other types than a dataclass declares, and a text twice in a list."""
    hints = _type_hints(type(config))
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        name, hint = entry.name, hints[entry.name]
        given = getattr(config, name)
        value = _plain(given, hint)
        if value is not given:
            object.__setattr__(config, name, value)
        if not _fits_field(entry, value, hint):
            raise raising(f"{owner}: got {name} = {_typed(value)}, {_expected(value, hint)}")
        texts = [item for item in value if isinstance(item, str)] if _is_tuple(value, hint) else []
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise raising(f"{owner}: got {name} with {twice!r} twice, expected it once")


def _is_tuple(value: object, hint: Any) -> bool:
    return isinstance(value, tuple) and _takes(hint, tuple)


def _typed(value: object) -> str:
    """A value with its type; the quotes of text say what it is."""
    kind = "" if isinstance(value, str) else f" ({type(value).__name__})"
    return f"{show_value(value)}{kind}"


def _plain(value: Any, hint: Any) -> Any:
    """The Python value that a NumPy number, a list or a path stands for."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike) and _takes(hint, str):
        return os.fspath(value)
    if isinstance(value, datetime.date) and _takes(hint, str):
        return value.isoformat()
    if isinstance(value, list) and _takes(hint, tuple):
        value = tuple(value)
    plain_items = (np.generic, os.PathLike, datetime.date)
    if isinstance(value, (list, tuple)) and any(isinstance(v, plain_items) for v in value):
        return type(value)(_plain(item, str) for item in value)
    return value


def _takes(hint: Any, kind: type) -> bool:
    """Tell whether a type hint is of a kind, or a union with one of it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_takes(arg, kind) for arg in typing.get_args(hint))
    return hint is kind or typing.get_origin(hint) is kind


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the examples are.

    Args:
        train: Training data: a path, a glob or a list of paths.
        valid: Validation data, for early stopping and the learning curve.
        test: Test data, for ``widedeep evaluate``.
        valid_fraction: Without ``valid``, the share of the training rows kept for validation, 0 <=
            share < 1.
        valid_by: Keep rows of one value of this column together: all rows of a request.
        valid_latest: Take the last rows in the order of this column, as of a time.
    """

    train: str | list[str] | None = None
    valid: str | list[str] | None = None
    test: str | list[str] | None = None
    valid_fraction: float = 0.0
    valid_by: str | None = None
    valid_latest: str | None = None

    def __post_init__(self) -> None:
        owner, share = "[data]", self.valid_fraction
        check_types(self, owner)
        _check_range(owner, "valid_fraction", share, 0 <= share < 1, "0 <= share < 1")
        if self.valid_by is not None and self.valid_latest is not None:
            raise ConfigError(
                f"{owner}: got both valid_by = {self.valid_by!r} and valid_latest = "
                f"{self.valid_latest!r}, expected one of them"
            )
        for name in _PLACES:
            value = getattr(self, name)
            paths = value if isinstance(value, list) else ["no data" if value is None else value]
            named = bool(paths) and all(paths)
            _check_range(owner, name, value, named, "a path, a glob or a list of paths")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a Wide & Deep model.

    Args:
        hidden_units: Width of each hidden layer; empty for a wide-only model.
        embedding_dim: Width of embeddings that declare none, or ``"auto"``: 1.6 x size^0.56, at
            most 64.
        activation: Of the hidden layers.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.
        wide_combiner: How a feature's several values are combined in the wide part: ``"sum"``,
            ``"mean"`` or ``"sqrtn"``. Numbers and vectors are summed as they are.
        head: ``"binary"``, ``"multiclass"``, ``"regression"``, or None: by the label.
        embedding_std: Standard deviation of initial embeddings, at least 0.
        seed: Of all initial values.
    """

    hidden_units: tuple[int, ...] = (256, 128)
    embedding_dim: int | Literal["auto"] = 16
    activation: Literal["relu", "gelu", "tanh", "elu", "leaky_relu", "silu"] = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    wide_combiner: Literal["sum", "mean", "sqrtn"] = "sum"
    head: Literal["binary", "multiclass", "regression"] | None = None
    embedding_std: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        owner = "[model]"
        check_types(self, owner)
        _check_range(owner, "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= dropout < 1")
        dim = self.embedding_dim
        known = dim == "auto" or dim in _COUNTS
        _check_range(owner, "embedding_dim", dim, known, f"{_COUNT}, or 'auto'")
        for width in self.hidden_units:
            _check_range(owner, "hidden_units", width, width in _COUNTS, f"widths: {_COUNT} each")
        std = self.embedding_std
        _check_range(owner, "embedding_std", std, std >= 0, "a number >= 0")
        check_seed(owner, self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained.

    Args:
        epochs: Passes over the data, at least 1, or ``"auto"``: by the number of rows (see
            :meth:`widedeep.Trainer.fit`).
        batch_size: Examples a step, or ``"auto"``: a hundredth of the rows, rounded to a power of
            two from 16 to 512.
        shuffle: Read in a new seeded order each epoch.
        seed: Of the reading order and dropout.
        grad_scale: Sparse optimizers get ``grad_scale`` times the sum of an id's example gradients.
        loss_reduction: ``"mean"`` divides dense gradients and reported losses by the batch's rows,
            ``"sum"`` does not.
        clip_norm: Largest norm of the dense gradients; None does not clip.
        schedule: Of all learning rates (FTRL's gradients): ``"constant"``, ``"linear"`` or
            ``"cosine"`` decay to 0 at the last step, or ``"wsd"``: constant, then linear to 0.
        decay_fraction: Share of the steps in which ``"wsd"`` decays, 0 < fraction < 1.
        warmup_steps: Learning rates rise linearly over this many first steps.
        early_stopping: Stop when the validation metric no longer improves, and go back to the best
            model: ``"auto"``: where there are validation data and several evaluations.
        patience: Evaluations without a better ``monitor`` before stopping; None: 2.
        monitor: Validation metric that decides which model is best; None: the model's loss.
        eval_every: Steps between evaluations on the validation data; None: once an epoch.
        threads: Threads of kernels and matrix products; None: all the process may use.
        precision: Of the towers' matrix products in training: ``"fp32"``, ``"bf16"`` (master
            weights and optimizer state stay float32), or ``"auto"``: bf16 where the processor has
            it at a higher rate.
        device: Where tables and towers live and are trained: ``"cpu"`` or ``"cuda"``.
        pool_rows: Rows that wait in memory while they are mixed with others from all over the
            input.
        wide: The wide part's optimizer, ``{ optimizer = "ftrl", lr = 0.1 }``.
        deep: The embeddings' optimizer; None: an Adagrad of their own (see
            :class:`widedeep.Trainer`).
        dense: The hidden layers' optimizer; None: as ``deep``, or :class:`widedeep.Adagrad`.
    """

    epochs: int | Auto = 1
    batch_size: int | Auto = "auto"
    shuffle: bool = True
    seed: int = 0
    grad_scale: float = 1.0
    loss_reduction: LossReduction = "mean"
    clip_norm: float | None = None
    schedule: Schedule = "wsd"
    decay_fraction: float = 0.2
    warmup_steps: int = 0
    early_stopping: bool | Auto = "auto"
    patience: int | None = None
    monitor: str | None = None
    eval_every: int | None = None
    threads: int | None = None
    precision: Precision = "fp32"
    device: str = "cpu"
    pool_rows: int = 262_144
    wide: Mapping[str, Any] = field(default_factory=lambda: {"optimizer": "ftrl"})
    deep: Mapping[str, Any] | None = None
    dense: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        owner = "[train]"
        check_types(self, owner)
        for name in ("pool_rows", "patience", "eval_every"):
            value = getattr(self, name)
            _check_range(owner, name, value, value is None or value in _COUNTS, _COUNT)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            known = value == "auto" or value in _COUNTS
            _check_range(owner, name, value, known, f"{_COUNT}, or 'auto'")
        if self.early_stopping is False and self.patience is not None:
            raise ConfigError(
                f"{owner}: got patience = {self.patience} and early_stopping = false; drop one"
            )
        check_threads(owner, self.threads)
        check_seed(owner, self.seed)
        fraction = self.decay_fraction
        _check_range(owner, "decay_fraction", fraction, 0 < fraction < 1, "0 < fraction < 1")
        steps = self.warmup_steps
        _check_range(owner, "warmup_steps", steps, steps >= 0, "an integer of at least 0")
        for name in ("grad_scale", "clip_norm"):
            value = getattr(self, name)
            _check_range(owner, name, value, value is None or value > 0, "a number > 0")
        self._name_optimizers()

    def _name_optimizers(self) -> None:
        """A table without ``optimizer`` means the one that its part has by default."""
        for part, name in (("wide", "ftrl"), ("deep", "adagrad"), ("dense", "adagrad")):
            table = getattr(self, part)
            if table is not None and "optimizer" not in table:
                if part == "dense" and self.deep is not None:
                    name = self.deep["optimizer"]
                object.__setattr__(self, part, {"optimizer": name, **table})


def check_seed(owner: str, seed: int) -> None:
    """Refuse a seed outside 0 <= seed < 2**63."""
    _check_range(owner, "seed", seed, seed in _SEEDS, "an integer, 0 <= seed < 2**63")


def check_threads(owner: str, threads: int | None) -> None:
    """Refuse a number of threads that no machine has."""
    known = threads is None or threads in _THREADS
    _check_range(owner, "threads", threads, known, "an integer of at least 1, at most 1,024")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs, as one value.

    Args:
        spec: The features.
        data: Where the examples are.
        model: The model's shape.
        train: How it is trained.
    """

    spec: FeatureSpec
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_table(self) -> dict[str, dict[str, Any]]:
        """Return the configuration as nested tables, defaults included."""
        tables = spec_to_table(self.spec)
        data = {
            **{k: v for k, v in _as_table(self.data).items() if v is not None},
            **tables["data"],
        }
        return {
            "data": data,
            "features": tables["features"],
            "model": _as_table(self.model),
            "train": _as_table(self.train),
        }

    def to_toml(self) -> str:
        """Return the configuration as TOML text; keys that are None are left out."""
        tables = {
            name: {key: value for key, value in table.items() if value is not None}
            for name, table in self.to_table().items()
        }
        return toml_text(tables)


def _as_table(config: DataConfig | ModelConfig | TrainConfig) -> dict[str, Any]:
    table = dataclasses.asdict(config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    r"""Read a run's TOML file.

    Args:
        path: The file. Relative data paths in it are relative to its folder.
        overrides: ``"train.epochs=3"`` and the like; the value is read as TOML, or as text if it is
            none. Data paths in them are relative to the working folder.

    Returns:
        The configuration, checked.

    Raises:
        ConfigError: For a missing or broken file, an unknown section or key (with the nearest), or
            a bad value.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.toml"
        >>> _ = path.write_text('[data]\nlabel = "y"\n[features]\nnumeric = ["age"]\n')
        >>> load_config(path, ["train.epochs=3"]).train.epochs
        3
    """
    tables = read_tables(
        path,
        overrides,
        places=[f"data.{name}" for name in _PLACES],
        missing="'widedeep init DATA' writes one",
    )
    return config_from_tables(tables, folder=Path(path).parent, origin=str(path))


def read_tables(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    places: Collection[str] = (),
    missing: str = "check the path",
) -> dict[str, Any]:
    """Read a TOML file and put overrides into it.

    Args:
        path: The file.
        overrides: ``"section.key=value"``; the value is read as TOML, or as text if it is none.
        places: Dotted keys that are paths: in an override they are relative to the working folder,
            as they were typed there.
        missing: What to do where there is no such file.

    Raises:
        ConfigError: For a missing or broken file, or an override that is no assignment.
    """
    tables = _parse(_read_text(Path(path), missing), str(path))
    for override in overrides:
        _override(tables, override, places)
    _check_sizes(tables, str(path))
    return tables


def _check_sizes(value: object, where: str) -> None:
    """Refuse integers of thousands of digits, which no error could even show."""
    if isinstance(value, int) and value.bit_length() > 4096:
        raise ConfigError(f"{where}: got {show_value(value)}, expected an integer of 64 bits")
    for key, item in value.items() if isinstance(value, dict) else ():
        _check_sizes(item, f"{where}: {key}")
    for item in value if isinstance(value, list) else ():
        _check_sizes(item, where)


def _read_text(path: Path, missing: str) -> str:
    """A file's text in UTF-8; a byte order mark, as editors of Windows write it, is no text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{show_path(path)}: no such file; {missing}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, expected a TOML file") from error
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(f"{show_path(path)}: cannot be read ({told}); check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        told = "text in UTF-16" if utf16 else f"byte 0x{data[error.start]:02x}, which is no UTF-8"
        raise ConfigError(f"{path} (line {line}): got {told}; save the file as UTF-8") from error


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # of numbers of thousands of digits, too
        raise ConfigError(f"{origin}: got text that is no TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: got lists or tables nested too deeply") from error


def show_path(path: object) -> str:
    """Return a path as text that can be printed, whatever bytes the name holds."""
    return str(path).encode("utf-8", "backslashreplace").decode()


# A key of TOML: bare, or in quotes, where dots and equals signs are part of it.
_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^."'=\s][^.="']*?)\s*([.=])""")


def _override(tables: dict[str, Any], override: str, places: Collection[str]) -> None:
    keys, text = _assignment(override)
    value = _value(text)
    if ".".join(keys) in places:
        # Typed where the user is, not where the file lies.
        value = _resolve(value, Path.cwd())
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"got --set {show_value(override)}, but {key!r} is a value, not a table"
            )
    table[keys[-1]] = value


def _assignment(override: str) -> tuple[list[str], str]:
    """The keys of an override, and the text of its value."""
    keys: list[str] = []
    position = 0
    while match := _KEY.match(override, position):
        word, end = match.groups()
        quoted = word[0] in "\"'"
        keys.append(_parse(f"key = {word}", f"--set {override!r}")["key"] if quoted else word)
        position = match.end()
        if end == "=":
            break
    if len(keys) < 2 or override[position - 1] != "=":
        raise ConfigError(
            f"got --set {show_value(override)}, expected SECTION.KEY=VALUE such as train.epochs=3"
        )
    return keys, override[position:]


def _value(text: str) -> Any:
    """A value as TOML, or as the text it is."""
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return tables["value"] if len(tables) == 1 else text


def config_from_tables(
    tables: Mapping[str, Any], *, folder: Path | None = None, origin: str = "config"
) -> RunConfig:
    """Build a configuration from nested tables."""
    sections = ("data", "features", "model", "train", "gate", "follow")
    for name, table in tables.items():
        if name not in sections:
            raise ConfigError(
                f"{origin}: got the unknown section [{name}]; {nearest(name, sections)}"
            )
        check_table(table, name, origin)
    _check_later_sections(tables, origin)
    if "features" not in tables:
        raise ConfigError(f"{origin}: got no [features] section; 'widedeep init DATA' writes one")
    data = dict(tables.get("data", {}))
    try:
        spec = spec_from_table(data, tables["features"])
    except FeatureError as error:
        raise ConfigError(f"{origin}: {error}") from error
    places = {
        key: value
        for key, value in data.items()
        if key not in ("label", "weight", "group", "label_vocabulary")
    }
    if folder is not None:
        places = {
            key: _resolve(value, folder) if key in _PLACES else value
            for key, value in places.items()
        }
    return RunConfig(
        spec=spec,
        data=read_section(
            DataConfig,
            places,
            f"{origin}: [data]",
            extra=("label", "weight", "group", "label_vocabulary"),
        ),
        model=read_section(ModelConfig, tables.get("model", {}), f"{origin}: [model]"),
        train=read_section(TrainConfig, tables.get("train", {}), f"{origin}: [train]"),
    )


def check_table(table: object, name: str, origin: str) -> None:
    """Refuse a value, or a list of tables, where a section is asked for."""
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"{origin}: got {name} = {show_value(table)}, expected a section [{name}]"
        )


def _check_later_sections(tables: Mapping[str, Any], origin: str) -> None:
    """A mistake in what is read after the training is told before it."""
    from widedeep.config_follow import FollowConfig
    from widedeep.config_gate import GateConfig

    kinds: dict[str, type[Any]] = {"gate": GateConfig, "follow": FollowConfig}
    for name, kind in kinds.items():
        if name in tables:
            read_section(kind, tables[name], f"{origin}: [{name}]")


def _resolve(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value if os.path.isabs(value) else str(folder / value)
    return [_resolve(item, folder) for item in value] if isinstance(value, list) else value


def read_section(
    kind: type[Any], table: Mapping[str, Any], origin: str, extra: tuple[str, ...] = ()
) -> Any:
    """Read a TOML table into a dataclass.

    Args:
        kind: The dataclass; its annotations say what is allowed.
        table: The values.
        origin: Named in errors, such as ``"run.toml: [train]"``.
        extra: Further keys that the section may hold, read elsewhere.

    Raises:
        ConfigError: For an unknown key (with the nearest), a value of another type, or one that the
            dataclass refuses.
    """
    hints = _type_hints(kind)
    entries = {entry.name: entry for entry in dataclasses.fields(kind)}
    for key, given in table.items():
        if key not in hints:
            raise ConfigError(
                f"{origin}: got the unknown key {key!r}; {nearest(key, [*hints, *extra])}"
            )
        value = _plain(given, hints[key])
        if not _fits_field(entries[key], value, hints[key]):
            raise ConfigError(
                f"{origin}: got {key} = {_typed(value)}, {_expected(value, hints[key])}"
            )
    try:
        return kind(**{key: _plain(value, hints[key]) for key, value in table.items()})
    except ConfigError as error:
        # The section is in the error already.
        raise ConfigError(f"{origin.rpartition(': [')[0]}: {error}") from error


def _fits_field(entry: dataclasses.Field[Any], value: object, hint: Any) -> bool:
    may_be_infinite = entry.metadata.get("may_be_infinite", False)
    if may_be_infinite and isinstance(value, float) and value == math.inf:
        return True
    return _fits(value, hint)


def _fits(value: object, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, args[0]) for item in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(
            _fits(key, args[0]) and _fits(item, args[1]) for key, item in value.items()
        )
    if hint is float:
        return _is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value in _INT64
    if hint is str:
        return isinstance(value, str) and is_unicode(value)
    return hint is Any or isinstance(value, hint)


def _is_number(value: object) -> bool:
    """Tell whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond 1.8e308
        return False


def is_unicode(text: str) -> bool:
    """Tell whether text can be written: half a surrogate pair, or bytes of a name, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expected(value: object, hint: Any) -> str:
    """What is allowed instead of a value that does not fit; the nearest of some words."""
    words = [arg for arg in typing.get_args(hint) if isinstance(arg, str)]
    if isinstance(value, str) and len(words) > 1 and nearest(value, words).startswith("did"):
        return f"expected {_say(hint)}; {nearest(value, words)}"
    if isinstance(value, str) and not is_unicode(value):
        return "expected text in Unicode; name it in UTF-8"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected {_say(hint)} that is finite"
    if isinstance(value, int) and value not in _INT64:
        return f"expected {_say(hint)} of 64 bits"
    return f"expected {_say(hint)}"


def _say(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_say(arg) for arg in args if arg is not type(None))
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(args[0], 'values')}"
    names = {float: "a number", int: "an integer", bool: "true or false", str: "text"}
    names |= {datetime.date: "a date or time", datetime.timedelta: "a timedelta"}
    return names.get(hint, "a table")


def check_value(
    value: object, hint: Any, where: str, raising: type[WideDeepError] = ConfigError
) -> None:
    """Refuse a plain value, read from JSON or TOML, of another type than a hint says."""
    if not _fits(value, hint):
        raise raising(f"{where}: got {value!r:.80}, {_expected(value, hint)}")
