"""Sparse optimizers in plain float64 NumPy, written from the equations.

Every step takes a table ``weights_RC`` (R rows, C classes or columns), its state of the same
shape, the ids of a batch and one gradient row an id. It changes table and state in place and
obeys the rules of sparse training:

- gradients of the same id are summed *before* anything is squared (:func:`sum_duplicates`);
- each touched row moves once, coordinate by coordinate;
- an untouched row keeps its weights and its state.

A dense step is a step whose ids are all the rows. ``g`` is the summed gradient, ``w`` the weight,
primes mark values after the step.

**FTRL-Proximal** (McMahan et al. 2013, *Ad Click Prediction: a View from the Trenches*,
Algorithm 1; n and z start at 0)::

    σ  = (√(n + g²) − √n) / α
    z' = z + g − σ·w
    n' = n + g²
    w' = 0                                            if |z'| ≤ λ1
    w' = −(z' − sign(z')·λ1) / ((β + √n')/α + λ2)     otherwise

**TensorFlow's Ftrl** puts n^(−p) in the place of √n (p = ``lr_power``, −1/2 by default), starts n
at 0.1, adds the gradient of a shrinkage that enters z alone, and counts λ2 twice::

    n' = n + g²
    σ  = (n'^(−p) − n^(−p)) / α
    z' = z + (g + 2·shrinkage·w) − σ·w
    w' = 0 if |z'| ≤ λ1, else (sign(z')·λ1 − z') / ((β + n'^(−p))/α + 2·λ2)

so the two agree when TensorFlow's λ2 is half of McMahan's, p = −1/2 and shrinkage = 0.

**Adagrad** (Duchi et al. 2011; ε outside the root, as in TensorFlow's kernel and in PyTorch)::

    n' = n + g²        w' = w − α·g / (√n' + ε)

**SGD**::

    w' = w − α·g

**Adam**, lazy (Kingma and Ba 2015, the form before section 2.1 with ε̂; t counts the steps of the
whole table, not those of the row)::

    m' = β1·m + (1 − β1)·g        v' = β2·v + (1 − β2)·g²
    w' = w − α·√(1 − β2ᵗ)/(1 − β1ᵗ) · m' / (√v' + ε̂)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "adagrad_step",
    "ftrl_linear_for",
    "ftrl_step",
    "lazy_adam_step",
    "momentum_step",
    "rmsprop_step",
    "sgd_step",
    "sum_duplicates",
]

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
L2Convention = Literal["mcmahan", "tensorflow"]


def sum_duplicates(ids_N: Ids, gradients_NC: Floats) -> tuple[Ids, Floats]:
    """The distinct ids in rising order, and for each the sum of its gradients in batch order."""
    rows_U, positions_N = np.unique(np.asarray(ids_N, dtype=np.int64), return_inverse=True)
    gradients_NC = np.asarray(gradients_NC, dtype=np.float64)
    summed_UC = np.zeros((len(rows_U), gradients_NC.shape[1]))
    np.add.at(summed_UC, positions_N.reshape(-1), gradients_NC)
    return rows_U, summed_UC


def _l2_factor(convention: L2Convention) -> float:
    return {"mcmahan": 1.0, "tensorflow": 2.0}[convention]


def ftrl_step(
    weights_RC: Floats,
    accumulator_RC: Floats,
    linear_RC: Floats,
    ids_N: Ids,
    gradients_NC: Floats,
    *,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 0.0,
    lr_power: float = -0.5,
    l2_shrinkage: float = 0.0,
    l2_convention: L2Convention = "tensorflow",
) -> None:
    """One FTRL-Proximal step in place; ``l2_convention`` says whether λ2 counts once or twice."""
    rows_U, g = sum_duplicates(ids_N, gradients_NC)
    w, n, z = weights_RC[rows_U], accumulator_RC[rows_U], linear_RC[rows_U]
    n_new = n + g * g
    root, root_new = n ** (-lr_power), n_new ** (-lr_power)
    z = z + g + 2.0 * l2_shrinkage * w - (root_new - root) / lr * w
    curvature = (beta + root_new) / lr + _l2_factor(l2_convention) * l2
    moved = np.abs(z) > l1  # Where nothing moved the curvature may be 0 (n' = β = λ2 = 0).
    w = np.zeros_like(w)
    w[moved] = (np.sign(z[moved]) * l1 - z[moved]) / curvature[moved]
    weights_RC[rows_U], accumulator_RC[rows_U], linear_RC[rows_U] = w, n_new, z


def ftrl_linear_for(
    weights_RC: Floats,
    accumulator_RC: Floats,
    *,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 0.0,
    lr_power: float = -0.5,
    l2_convention: L2Convention = "tensorflow",
) -> Floats:
    """The z that stands for given weights: the closed form for w', solved for z.

    With z = 0 instead, the first step would forget the weight. A weight of zero takes z = 0, one
    of the many that stand for it.
    """
    curvature = (beta + accumulator_RC ** (-lr_power)) / lr + _l2_factor(l2_convention) * l2
    return -weights_RC * curvature - np.sign(weights_RC) * l1


def adagrad_step(
    weights_RC: Floats,
    accumulator_RC: Floats,
    ids_N: Ids,
    gradients_NC: Floats,
    *,
    lr: float,
    epsilon: float = 0.0,
    l2: float = 0.0,
) -> None:
    """One Adagrad step in place; ``l2`` decays the touched rows, as PyTorch's weight decay."""
    rows_U, g = sum_duplicates(ids_N, gradients_NC)
    g = g + l2 * weights_RC[rows_U]
    accumulator_RC[rows_U] += g * g
    root = np.sqrt(accumulator_RC[rows_U]) + epsilon
    # Where nothing ever moved, 0/0 stands for "no step".
    weights_RC[rows_U] -= lr * np.divide(g, root, out=np.zeros_like(g), where=g != 0.0)


def sgd_step(weights_RC: Floats, ids_N: Ids, gradients_NC: Floats, *, lr: float) -> None:
    """One step of stochastic gradient descent in place."""
    rows_U, g = sum_duplicates(ids_N, gradients_NC)
    weights_RC[rows_U] -= lr * g


def momentum_step(
    weights_RC: Floats,
    velocity_RC: Floats,
    ids_N: Ids,
    gradients_NC: Floats,
    *,
    lr: float,
    momentum: float,
    nesterov: bool = False,
) -> None:
    """One lazy step with momentum in place; nesterov adds the step to come."""
    rows_U, g = sum_duplicates(ids_N, gradients_NC)
    velocity = momentum * velocity_RC[rows_U] + g
    velocity_RC[rows_U] = velocity
    weights_RC[rows_U] -= lr * (g + momentum * velocity if nesterov else velocity)


def rmsprop_step(
    weights_RC: Floats,
    slots: dict[str, Floats],
    ids_N: Ids,
    gradients_NC: Floats,
    *,
    lr: float,
    decay: float,
    momentum: float,
    epsilon: float,
    centered: bool = False,
    epsilon_inside: bool = True,
) -> None:
    """One lazy RMSProp step in place; inside the root, epsilon goes with steps of ``lr`` summed."""
    rows_U, g = sum_duplicates(ids_N, gradients_NC)
    square = decay * slots["square"][rows_U] + (1.0 - decay) * g * g
    slots["square"][rows_U] = square
    if centered:
        mean = decay * slots["mean"][rows_U] + (1.0 - decay) * g
        slots["mean"][rows_U] = mean
        square = np.maximum(square - mean * mean, 0.0)
    root = np.sqrt(square + epsilon) if epsilon_inside else np.sqrt(square) + epsilon
    velocity = g / root * (lr if epsilon_inside else 1.0)
    if momentum:
        velocity = momentum * slots["velocity"][rows_U] + velocity
        slots["velocity"][rows_U] = velocity
    weights_RC[rows_U] -= velocity * (1.0 if epsilon_inside else lr)


def lazy_adam_step(
    weights_RC: Floats,
    first_moment_RC: Floats,
    second_moment_RC: Floats,
    ids_N: Ids,
    gradients_NC: Floats,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One lazy Adam step in place; ``step`` counts from 1 over the whole table."""
    rows_U, g = sum_duplicates(ids_N, gradients_NC)
    m = beta1 * first_moment_RC[rows_U] + (1.0 - beta1) * g
    v = beta2 * second_moment_RC[rows_U] + (1.0 - beta2) * g * g
    rate = lr * np.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
    weights_RC[rows_U] *= 1.0 - lr * weight_decay
    weights_RC[rows_U] -= rate * m / (np.sqrt(v) + epsilon)
    first_moment_RC[rows_U], second_moment_RC[rows_U] = m, v
