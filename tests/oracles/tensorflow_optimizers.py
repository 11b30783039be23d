"""Optimizer vectors from TensorFlow: every weight and slot after every step.

Dense cases run TensorFlow's kernels in float64 (``tf.raw_ops``), so a reference can be held to
them far below 1e-6. Sparse cases run its optimizers (``tf.compat.v1.train``, legacy Keras) in
float32 on IndexedSlices with duplicate ids, because summing the duplicates is the optimizers'
work, not the kernels'.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["optimizer_vectors"]

tf: Any = import_module("tensorflow")

Array = NDArray[Any]
Hyper = dict[str, float]

STEPS = 20
SPARSE_STEPS = 8
SPARSE_ROWS = 5
CLASSES = 3


def _dense_gradients() -> Array:
    """(steps, 2, 3): each coordinate has a story of its own."""
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(STEPS, 2, 3))
    gradients[:, 0, 0] = np.where(np.arange(STEPS) < 5, 0.5, -0.9)  # Leaves zero, crosses over.
    gradients[:, 0, 1] *= 0.05  # Within the L1 band for long.
    gradients[::3, 0, 2] = 0.0  # Often no gradient.
    gradients[:, 1, 0] = 0.0  # Never a gradient.
    gradients[:, 1, 1] = 3.0 * np.cos(np.arange(STEPS) * 0.6)  # Large, changing sign.
    gradients[:, 1, 2] = np.where(np.arange(STEPS) % 5 == 4, 20.0, 1e-4)  # Spikes over a whisper.
    return gradients.round(6)


START = np.array([[0.0, 0.0, 0.0], [0.7, -0.3, 0.05]])

FTRL: Hyper = {
    "lr": 0.1,
    "l1": 0.0,
    "l2": 0.0,
    "l2_shrinkage": 0.0,
    "beta": 0.0,
    "lr_power": -0.5,
    "initial_accumulator": 0.1,
}

FTRL_CASES: dict[str, tuple[Hyper, bool]] = {
    # name: (what differs from FTRL, whether the weights start at START instead of 0)
    "plain (equals Adagrad)": ({}, False),
    "l1": ({"l1": 0.7}, False),
    "l1 and l2": ({"l1": 0.5, "l2": 0.3}, False),
    "l2 shrinkage": ({"l2_shrinkage": 0.2, "l1": 0.1}, False),
    "beta": ({"beta": 1.0, "l1": 0.1}, False),
    "lr_power -0.3": ({"lr_power": -0.3, "l1": 0.5, "lr": 0.5}, False),
    "lr_power 0 (a fixed rate)": ({"lr_power": 0.0, "l1": 0.5}, False),
    "McMahan's start: accumulator 0, beta 1": (
        {"initial_accumulator": 0.0, "beta": 1.0, "l1": 0.5, "l2": 0.5},
        False,
    ),
    "all, weights not zero and linear zero": (
        {"l1": 0.2, "l2": 0.1, "l2_shrinkage": 0.05, "beta": 0.5, "lr_power": -0.6, "lr": 0.2},
        True,
    ),
}


def _ftrl_kernel(w: Any, slots: dict[str, Any], gradient: Any, hyper: Hyper) -> None:
    """The kernel has no beta; Keras passes it as l2 + beta / (2 lr), and so do we."""
    tf.raw_ops.ResourceApplyFtrlV2(
        var=w.handle,
        accum=slots["accumulator"].handle,
        linear=slots["linear"].handle,
        grad=gradient,
        lr=_double(hyper["lr"]),
        l1=_double(hyper["l1"]),
        l2=_double(hyper["l2"] + hyper["beta"] / (2.0 * hyper["lr"])),
        l2_shrinkage=_double(hyper["l2_shrinkage"]),
        lr_power=_double(hyper["lr_power"]),
    )


def _adagrad_kernel(w: Any, slots: dict[str, Any], gradient: Any, hyper: Hyper) -> None:
    tf.raw_ops.ResourceApplyAdagradV2(
        var=w.handle,
        accum=slots["accumulator"].handle,
        grad=gradient,
        lr=_double(hyper["lr"]),
        epsilon=_double(hyper["epsilon"]),
    )


def _sgd_kernel(w: Any, slots: dict[str, Any], gradient: Any, hyper: Hyper) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(
        var=w.handle, alpha=_double(hyper["lr"]), delta=gradient
    )


def _adam_kernel(w: Any, slots: dict[str, Any], gradient: Any, hyper: Hyper, *, step: int) -> None:
    tf.raw_ops.ResourceApplyAdam(
        var=w.handle,
        m=slots["first_moment"].handle,
        v=slots["second_moment"].handle,
        beta1_power=_double(hyper["beta1"] ** step),
        beta2_power=_double(hyper["beta2"] ** step),
        lr=_double(hyper["lr"]),
        beta1=_double(hyper["beta1"]),
        beta2=_double(hyper["beta2"]),
        epsilon=_double(hyper["epsilon"]),
        grad=gradient,
    )


def _double(value: Any) -> Any:
    return tf.constant(value, tf.float64)


def _dense_entry(
    name: str, optimizer: str, hyper: Hyper, start: Array, slots: dict[str, float]
) -> dict[str, Any]:
    """Run one kernel over the shared gradients, recording weights and slots after each step."""
    w = tf.Variable(start, dtype=tf.float64)
    variables = {
        slot: tf.Variable(np.full(start.shape, value), dtype=tf.float64)
        for slot, value in slots.items()
    }
    initial = {"weights": w.numpy(), **{slot: v.numpy() for slot, v in variables.items()}}
    after: dict[str, list[Array]] = {key: [] for key in initial}
    for step, gradient in enumerate(_dense_gradients(), start=1):
        if optimizer == "adam":
            _adam_kernel(w, variables, _double(gradient), hyper, step=step)
        else:
            KERNELS[optimizer](w, variables, _double(gradient), hyper)
        for key, variable in (("weights", w), *variables.items()):
            after[key].append(variable.numpy())
    return {
        "name": name,
        "optimizer": optimizer,
        "dtype": "float64",
        "hyper": hyper,
        "initial": initial,
        "gradients": "dense_gradients",
        "after": {key: np.array(values) for key, values in after.items()},
    }


KERNELS: dict[str, Any] = {"ftrl": _ftrl_kernel, "adagrad": _adagrad_kernel, "sgd": _sgd_kernel}


def _dense_entries() -> list[dict[str, Any]]:
    zeros = np.zeros_like(START)
    entries = []
    for name, (changes, warm) in FTRL_CASES.items():
        hyper = {**FTRL, **changes}
        slots = {"accumulator": hyper["initial_accumulator"], "linear": 0.0}
        entry = _dense_entry(f"ftrl: {name}", "ftrl", hyper, START if warm else zeros, slots)
        entries.append(entry)
    _expect_l1_crossings(entries)
    for name, hyper in {
        "v1, no epsilon": {"lr": 0.1, "epsilon": 0.0, "initial_accumulator": 0.1},
        "legacy Keras": {"lr": 0.05, "epsilon": 1e-7, "initial_accumulator": 0.1},
        "accumulator 0 with epsilon": {"lr": 0.05, "epsilon": 1e-3, "initial_accumulator": 0.0},
    }.items():
        slots = {"accumulator": hyper["initial_accumulator"]}
        entries.append(_dense_entry(f"adagrad: {name}", "adagrad", hyper, START, slots))
    entries.append(_dense_entry("sgd", "sgd", {"lr": 0.1}, START, {}))
    adam = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-3}
    moments = {"first_moment": 0.0, "second_moment": 0.0}
    entries.append(_dense_entry("adam: dense", "adam", adam, START, moments))
    return entries


def _expect_l1_crossings(entries: list[dict[str, Any]]) -> None:
    """The L1 cases are worth little unless weights leave zero and fall back to it."""
    after = next(entry for entry in entries if entry["name"] == "ftrl: l1")["after"]["weights"]
    zero = after.reshape(STEPS, -1) == 0.0
    left = (zero[:-1] & ~zero[1:]).any(axis=0)
    returned = (~zero[:-1] & zero[1:]).any(axis=0)
    signs = (after.reshape(STEPS, -1) > 0).any(axis=0) & (after.reshape(STEPS, -1) < 0).any(axis=0)
    if (left & returned).sum() < 2 or not signs.any():
        raise AssertionError(f"too few weights cross zero: {left=}, {returned=}, {signs=}")


def _sparse_batches() -> list[dict[str, Array]]:
    """Ids with duplicates; row 4 is never touched; the sum of a duplicate may be zero."""
    rng = np.random.default_rng(2)
    batches = []
    for step in range(SPARSE_STEPS):
        ids = rng.integers(0, SPARSE_ROWS - 1, size=int(rng.integers(1, 7)))
        gradients = rng.normal(size=(len(ids), CLASSES)).round(4)
        if step == 3:
            ids = np.array([2, 0, 2])
            gradients = np.array([[1.0, 0.5, -1.0], [0, 0, 0], [-1.0, 0.5, 2.0]])
        batches.append({"ids": ids, "gradients": gradients})
    return batches


def _sparse_entry(
    name: str, optimizer: str, hyper: Hyper, built: Any, slots: dict[str, str]
) -> dict[str, Any]:
    """Run one TensorFlow optimizer on IndexedSlices; ``slots`` maps our names to its names."""
    start = np.linspace(-0.4, 0.6, SPARSE_ROWS * CLASSES).reshape(SPARSE_ROWS, CLASSES)
    w = tf.Variable(start.astype(np.float32).round(4))
    start = w.numpy()
    steps = []
    for batch in _sparse_batches():
        ids = tf.constant(batch["ids"], tf.int64)
        slices = tf.IndexedSlices(tf.constant(batch["gradients"], tf.float32), ids, w.shape)
        built.apply_gradients([(slices, w)])
        state = {ours: built.get_slot(w, theirs).numpy() for ours, theirs in slots.items()}
        steps.append({**batch, "weights": w.numpy(), **state})
    return {
        "name": name,
        "optimizer": optimizer,
        "dtype": "float32",
        "hyper": hyper,
        "initial": {"weights": start},
        "steps": steps,
    }


def _sparse_entries() -> list[dict[str, Any]]:
    v1, legacy = tf.compat.v1.train, tf.keras.optimizers.legacy
    ftrl = {**FTRL, "l1": 0.2, "l2": 0.1}
    shrinking = {**FTRL, "lr": 0.2, "l1": 0.05, "l2_shrinkage": 0.1, "beta": 1.0, "lr_power": -0.4}
    ftrl_v1 = v1.FtrlOptimizer(0.1, l1_regularization_strength=0.2, l2_regularization_strength=0.1)
    ftrl_keras = legacy.Ftrl(
        0.2,
        learning_rate_power=-0.4,
        l1_regularization_strength=0.05,
        l2_shrinkage_regularization_strength=0.1,
        beta=1.0,
    )
    accumulator = {"accumulator": "accumulator"}
    adagrad = {"lr": 0.1, "epsilon": 0.0, "initial_accumulator": 0.1}
    keras_adagrad = {"lr": 0.05, "epsilon": 1e-7, "initial_accumulator": 0.1}
    return [
        _sparse_entry(
            "ftrl: v1", "ftrl", ftrl, ftrl_v1, {"accumulator": "accum", "linear": "linear"}
        ),
        _sparse_entry(
            "ftrl: legacy Keras", "ftrl", shrinking, ftrl_keras, {**accumulator, "linear": "linear"}
        ),
        _sparse_entry("adagrad: v1", "adagrad", adagrad, v1.AdagradOptimizer(0.1), accumulator),
        _sparse_entry(
            "adagrad: legacy Keras",
            "adagrad",
            keras_adagrad,
            legacy.Adagrad(0.05),
            accumulator,
        ),
        _sparse_entry("sgd: v1", "sgd", {"lr": 0.1}, v1.GradientDescentOptimizer(0.1), {}),
        _lazy_adam_entry(),
        *_momentum_entries(),
    ]


def _momentum_entries() -> list[dict[str, Any]]:
    """Momentum and RMSProp; Keras's momentum keeps -lr times ours, and is left out."""
    v1, legacy = tf.compat.v1.train, tf.keras.optimizers.legacy
    momentum = {"lr": 0.1, "momentum": 0.9}
    rms = {"lr": 0.05, "decay": 0.8, "momentum": 0.5, "epsilon": 1e-3}
    slots = {"square": "rms", "velocity": "momentum"}
    rms_v1 = v1.RMSPropOptimizer(0.05, decay=0.8, momentum=0.5, epsilon=1e-3)
    centered = v1.RMSPropOptimizer(0.05, decay=0.8, momentum=0.5, epsilon=1e-3, centered=True)
    keras = legacy.RMSprop(0.05, rho=0.8, momentum=0.5, epsilon=1e-3)
    return [
        *(
            _sparse_entry(
                f"momentum: v1{', nesterov' if nesterov else ''}",
                "momentum",
                {**momentum, "nesterov": nesterov},
                v1.MomentumOptimizer(0.1, 0.9, use_nesterov=nesterov),
                {"velocity": "momentum"},
            )
            for nesterov in (False, True)
        ),
        _sparse_entry("rmsprop: v1", "rmsprop", {**rms, "initial_accumulator": 1.0}, rms_v1, slots),
        _sparse_entry(
            "rmsprop: v1, centered",
            "centered rmsprop",
            {**rms, "initial_accumulator": 1.0, "centered": True},
            centered,
            {**slots, "mean": "mg"},
        ),
        _sparse_entry(
            "rmsprop: legacy Keras, momentum",
            "rmsprop",
            {**rms, "initial_accumulator": 0.0},
            keras,
            slots,
        ),
    ]


def _lazy_adam_entry() -> dict[str, Any]:
    """Adam's kernel on the touched rows alone, with the powers of the global step.

    TensorFlow's own Adam decays the moments of every row, touched or not; the lazy variant leaves
    the untouched rows alone, so it is the same kernel between a gather and a scatter.
    """
    hyper = {"lr": 0.05, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    start = np.linspace(-0.4, 0.6, SPARSE_ROWS * CLASSES).reshape(SPARSE_ROWS, CLASSES).round(4)
    zeros = np.zeros_like(start)
    tables = {"weights": start.copy(), "first_moment": zeros.copy(), "second_moment": zeros.copy()}
    steps: list[dict[str, Array]] = []
    for step, batch in enumerate(_sparse_batches(), start=1):
        ids, position = tf.unique(tf.constant(batch["ids"], tf.int64))
        summed = tf.math.unsorted_segment_sum(_double(batch["gradients"]), position, len(ids))
        rows = {key: tf.Variable(table[ids.numpy()]) for key, table in tables.items()}
        _adam_kernel(rows["weights"], rows, summed, hyper, step=step)
        for key, table in tables.items():
            table[ids.numpy()] = rows[key].numpy()
        steps.append({**batch, **{key: table.copy() for key, table in tables.items()}})
    return {
        "name": "adam: lazy",
        "optimizer": "adam",
        "dtype": "float64",
        "hyper": hyper,
        "initial": {"weights": start},
        "steps": steps,
    }


def optimizer_vectors() -> dict[str, Any]:
    """Everything that goes into ``tensorflow_optimizers.json``."""
    return {
        "dense_gradients": _dense_gradients(),
        "dense": _dense_entries(),
        "sparse": _sparse_entries(),
    }
