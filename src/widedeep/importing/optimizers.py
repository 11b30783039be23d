"""Optimizers of an estimator: their kinds and options, and their state by variable."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from widedeep.importing.saved_model import Graph, Op, restored_names, training_graph
from widedeep.importing.tensor_bundle import TensorBundle

PARTS = ("wide", "deep", "dense")


@dataclass(frozen=True, slots=True)
class _Kind:
    """An optimizer of TensorFlow: ours, its options by theirs, its state by their slots."""

    name: str
    options: Mapping[str, str]
    state: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)


_FTRL = {"convention": "tensorflow", "initial_accumulator": 0.1, "adapt": 0.0}
_RATE, _MOMENTUM = {"learning_rate": "lr"}, {"momentum": "momentum"}
_FTRL_OPTIONS = {
    **_RATE,
    "learning_rate_power": "lr_power",
    "l1_regularization_strength": "l1",
    "l2_regularization_strength": "l2",
    "beta": "beta",
}
_RMSPROP_STATE = {"rms": "square", "mg": "mean", "momentum": "velocity"}
# Of Keras, by the name of its scope: training/Ftrl/VARIABLE/SLOT.
_KERAS: Mapping[str, _Kind] = {
    "Ftrl": _Kind("ftrl", _FTRL_OPTIONS, {"accumulator": "n", "linear": "z"}, _FTRL),
    "Adagrad": _Kind(
        "adagrad", _RATE, {"accumulator": "accumulator"}, {"initial_accumulator": 0.1, "eps": 1e-7}
    ),
    "Adam": _Kind(
        "adam",
        {**_RATE, "beta_1": "beta1", "beta_2": "beta2"},
        {"m": "mean", "v": "square"},
        {"eps": 1e-7},
    ),
    "SGD": _Kind("sgd", {**_RATE, **_MOMENTUM}, {"momentum": "velocity"}),
    "RMSprop": _Kind(
        "rmsprop", {**_RATE, "rho": "decay", **_MOMENTUM}, _RMSPROP_STATE, {"eps": 1e-7}
    ),
}
# Of TensorFlow 1: VARIABLE/SLOT; their options are in no checkpoint.
_OLDER: Mapping[str, _Kind] = {
    "Ftrl": _Kind("ftrl", {}, {"Ftrl": "n", "Ftrl_1": "z"}, {**_FTRL, "l1": 0.0, "beta": 0.0}),
    "Adagrad": _Kind(
        "adagrad", {}, {"Adagrad": "accumulator"}, {"initial_accumulator": 0.1, "eps": 0.0}
    ),
    "Adam": _Kind("adam", {}, {"Adam": "mean", "Adam_1": "square"}),
    "Momentum": _Kind("sgd", {}, {"Momentum": "velocity"}, {"momentum": 0.9}),
    "RMSProp": _Kind(
        "rmsprop",
        {},
        {"RMSProp": "square", "RMSProp_1": "velocity"},
        {"eps": 1e-10, "initial_accumulator": 1.0, "convention": "tensorflow"},
    ),
}


# Options among the inputs of the operations that apply gradients, by the place of each; those of
# sparse gradients have the indices before what is marked "*".
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "AddV2": operator.add,
    "Mul": operator.mul,
    "RealDiv": operator.truediv,
    "Maximum": max,
}
_APPLIES: Mapping[str, tuple[str, ...]] = {
    "ApplyFtrl": ("", "", "", "", "*lr", "l1", "l2", "lr_power"),
    "ApplyFtrlV2": ("", "", "", "", "*lr", "l1", "l2", "l2_shrinkage", "lr_power"),
    "ApplyAdagrad": ("", "", "lr"),
    "ApplyAdagradV2": ("", "", "lr", "eps"),
    "ApplyAdam": ("", "", "", "", "", "lr", "beta1", "beta2", "eps"),
    "ApplyGradientDescent": ("", "lr", ""),
    "ApplyMomentum": ("", "", "lr", "", "*momentum"),
    "ApplyKerasMomentum": ("", "", "lr", "", "*momentum"),
    "ApplyRMSProp": ("", "", "", "lr", "decay", "momentum", "eps"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A tensor of an optimizer's state, and what it is multiplied by here."""

    tensor: str
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerState:
    """What is known of an estimator's optimizers.

    Attributes:
        tables: Our options by part, as ``[train]`` takes them; a part of which nothing is known
            has none.
        slots: By variable: the tensor of each state of ours.
        is_older: Whether TensorFlow 1's optimizers wrote it, whose estimators sum losses.
        others: Tensors of the checkpoint that are options and counters of optimizers.
        notes: What a person should know.
        why: Why there is no state at all, or "".
    """

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slots: Mapping[str, Mapping[str, Slot]] = field(default_factory=dict)
    is_older: bool = False
    others: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    why: str = ""


def read_optimizers(
    bundle: TensorBundle | None, parts: Mapping[str, Collection[str]]
) -> OptimizerState:
    """Read the optimizers of a checkpoint.

    Args:
        bundle: The checkpoint; None: nothing is known.
        parts: The names of the variables that each part's optimizer moves.
    """
    if bundle is None:
        note = "the optimizers start anew, with TensorFlow's defaults: no checkpoint was given"
        return OptimizerState(notes=(note,), why="no checkpoint with its state was given")
    slots_of = _slots(bundle, {variable for names in parts.values() for variable in names})
    applied = _applied(training_graph(bundle.prefix))
    tables: dict[str, dict[str, Any]] = {}
    state: dict[str, dict[str, Slot]] = {}
    notes: list[str] = []
    # One optimizer moves tables and layers; the operation that moves rows tells no rate.
    deep = [variable for part in ("deep", "dense") for variable in parts.get(part, ())]
    for part, variables in parts.items():
        scopes = {scope for v in variables for scope, _, _ in slots_of.get(v, [])}
        if not scopes:
            if not variables:
                continue
            same = variables if part == "wide" else deep
            plain = _plain_descent(bundle, slots_of, [applied.get(v, {}) for v in same])
            if plain is not None:
                tables[part] = plain
            else:
                notes.append(
                    f"{part}: the checkpoint has no state of its optimizer, which starts anew with "
                    "TensorFlow's defaults"
                )
            continue
        scope = min(scopes)
        kind = _kind_of(scope, {slot for v in variables for _, slot, _ in slots_of.get(v, [])})
        if kind is None:
            notes.append(
                f"{part}: its optimizer {scope.rpartition('/')[2] or 'of TensorFlow 1'!r} has no "
                "counterpart, and starts anew as TensorFlow's default one"
            )
            continue
        names = {slot for v in variables for _, slot, _ in slots_of.get(v, [])}
        by_graph = next((applied[v] for v in sorted(variables) if v in applied), None)
        table = tables[part] = _table(bundle, scope, kind, names, by_graph or {})
        notes += _warnings(bundle, scope, table, part, told=by_graph is not None)
        for variable in variables:
            state[variable] = {
                kind.state[slot]: Slot(tensor=tensor, factor=_factor(table, scope, slot))
                for _, slot, tensor in slots_of.get(variable, [])
                if slot in kind.state
            }
    scopes = {scope for slots in slots_of.values() for scope, _, _ in slots}
    return OptimizerState(
        tables=tables,
        slots=state,
        is_older=scopes == {""},
        others=frozenset(
            t for t in bundle if _is_option(t) or t.rpartition("/")[0] in scopes - {""}
        )
        | frozenset(t for slots in slots_of.values() for _, _, t in slots),
        notes=tuple(dict.fromkeys(notes)),
    )


def _plain_descent(
    bundle: TensorBundle,
    slots_of: Mapping[str, Sequence[tuple[str, str, str]]],
    applied: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Return the options of gradient descent without momentum, which has no state, or None."""
    rates = {options["lr"] for options in applied if options.get("is_plain") and "lr" in options}
    scopes = {tensor.rpartition("/")[0] for tensor in bundle if _is_option(tensor)}
    for scope in scopes - {scope for slots in slots_of.values() for scope, _, _ in slots}:
        if _kind_of(scope, ()) is _KERAS["SGD"]:
            rates.add(_short(float(bundle.read(f"{scope}/learning_rate"))))
    return {"optimizer": "sgd", "lr": rates.pop()} if len(rates) == 1 else None


def _slots(
    bundle: TensorBundle, variables: Collection[str]
) -> dict[str, list[tuple[str, str, str]]]:
    """Return (scope, slot, tensor) by variable: SCOPE/VARIABLE/SLOT, or VARIABLE/SLOT."""
    slots_of: dict[str, list[tuple[str, str, str]]] = {}
    for tensor in bundle:
        owner, _, slot = tensor.rpartition("/")
        if tensor in variables or not owner:
            continue
        # A lone linear or DNN estimator of TensorFlow 1: VARIABLE/part_0/Ftrl, VARIABLE/t_0/Adagrad
        whole = re.sub(r"/(part|t)_0$", "", owner)
        if whole in variables and bundle.shape(whole) == bundle.shape(tensor):
            owner = whole
        if owner in variables:
            slots_of.setdefault(owner, []).append(("", slot, tensor))
            continue
        parts = owner.split("/")
        for cut in range(1, min(4, len(parts))):  # training/Ftrl, or training_2/Ftrl_1
            variable = "/".join(parts[cut:])
            if variable in variables:
                slots_of.setdefault(variable, []).append(("/".join(parts[:cut]), slot, tensor))
                break
    return slots_of


def _is_option(tensor: str) -> bool:
    """Tell whether a tensor is an option of Keras's optimizer, which may have no state: SGD's."""
    scope, _, name = tensor.rpartition("/")
    kind = _kind_of(scope, ()) if scope.startswith("training") else None
    return kind is not None and (name in kind.options or name == "decay")


def _kind_of(scope: str, slots: Collection[str]) -> _Kind | None:
    if scope:
        return _KERAS.get(re.sub(r"_\d+$", "", scope.rpartition("/")[2]))
    return next((kind for name, kind in _OLDER.items() if name in slots), None)


def _applied(graph: Graph | None) -> dict[str, dict[str, Any]]:
    """Return the options that a training graph gives to each variable's optimizer."""
    options: dict[str, dict[str, Any]] = {}
    if graph is None:
        return options
    names = restored_names(graph)
    for op in graph.ops.values():
        kind = op.kind.removeprefix("Resource")
        is_sparse = kind.startswith("Sparse")
        places = _APPLIES.get(kind.removeprefix("Sparse"))
        variable = None if places is None else graph.source(op.inputs[0])[0].name
        if places is not None and variable in names:
            constants = _constants(graph, op, places, is_sparse=is_sparse)
            if kind.endswith("Momentum"):  # Adam's flag is never set
                constants["nesterov"] = op.flag("use_nesterov")
            if kind.endswith("GradientDescent"):
                constants["is_plain"] = True
            options.setdefault(names[variable][0], {}).update(constants)
    return options


def _constants(graph: Graph, op: Op, places: Sequence[str], *, is_sparse: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    shift = 0
    for i, name in enumerate(places):
        shift = 1 if is_sparse and name.startswith("*") else shift
        value = _value(graph, op.inputs[i + shift]) if name else None
        if value is not None:
            values[name.removeprefix("*")] = _short(value)
    return values


def _value(graph: Graph, tensor: str) -> float | None:
    """Return a number of a graph, or computed of such: Ftrl's l2 + beta / (2 max(lr, 1e-36))."""
    op, _ = graph.source(tensor)
    if op.kind in _ARITHMETIC:
        left, right = (_value(graph, tensor) for tensor in op.inputs)
        if left is None or right is None or (op.kind == "RealDiv" and not right):
            return None
        return _ARITHMETIC[op.kind](left, right)
    value = graph.constant(tensor)
    return float(value.reshape(())) if value is not None and value.size == 1 else None


def _table(
    bundle: TensorBundle,
    scope: str,
    kind: _Kind,
    slots: Collection[str],
    by_graph: Mapping[str, Any],
) -> dict[str, Any]:
    """Return our options: those that a checkpoint records, and those that its state shows."""
    recorded = {
        ours: _short(float(bundle.read(f"{scope}/{theirs}")))
        for theirs, ours in kind.options.items()
        if f"{scope}/{theirs}" in bundle
    }
    table = {"optimizer": kind.name, **kind.fixed, **recorded, **by_graph}
    if "beta1" in table:
        table["betas"] = [table.pop("beta1"), table.pop("beta2")]
    if kind.name == "rmsprop" and "mg" in slots:
        table["centered"] = True
    if kind.name == "rmsprop" and table.get("momentum"):
        table["convention"] = "tensorflow"  # another kernel than without momentum
    return table


def _factor(table: Mapping[str, Any], scope: str, slot: str) -> float:
    """Return what a slot is multiplied by: Keras's momentum is -lr times that of its own paper."""
    is_step = table["optimizer"] == "sgd" and scope and slot == "momentum"
    return -1.0 / table["lr"] if is_step else 1.0


def _short(value: float) -> float:
    """Return the shortest number that float32 holds as this one: 0.1, not 0.10000000149."""
    return next(
        float(f"{value:.{n}g}")
        for n in (6, 7, 8, 9)
        if abs(float(f"{value:.{n}g}") - value) <= 6e-8 * abs(value)
    )


def _warnings(
    bundle: TensorBundle, scope: str, table: Mapping[str, Any], part: str, *, told: bool
) -> list[str]:
    name, notes = table["optimizer"], []
    if not scope and not told:
        notes.append(
            f"{part}: a checkpoint of TensorFlow 1 without its .meta file does not say the options "
            f"of {name}; TensorFlow's defaults are taken: write those of your program under "
            f"[train.{part}]"
        )
    decay = f"{scope}/decay"
    if decay in bundle and float(bundle.read(decay)):
        notes.append(
            f"{part}: the rate of {name} decays by {float(bundle.read(decay)):g} a step in "
            "TensorFlow, and is constant here; write a schedule under [train]"
        )
    if table.get("momentum") and "nesterov" not in table and name == "sgd":
        notes.append(
            f"{part}: without its .meta file a checkpoint does not say whether momentum is "
            "Nesterov's; it is not here"
        )
    if name in ("adam", "rmsprop") and part != "dense":
        notes.append(
            f"{part}: {name} moves all rows of a table in TensorFlow, and here those that a batch "
            "touches"
        )
    return notes
