"""Initial rows and the optimizers' equations, in place over the touched rows.

``weights`` and the state arrays are matrices whose rows may lie further apart than their width, so
that a row's weights and state can share cache lines. ``rows_U`` holds distinct rows (None: every
row, in order); ``grads_UD`` their gradients, summed over the batch. Each row moves once; the others
keep their bits. The gradient g of the equations is ``grad_scale * grads_UD``.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from widedeep import _native
from widedeep.kernels.checks import check_matrix, check_same_shape, check_vector

__all__ = ["adagrad_rows", "adam_rows", "ftrl_rows", "init_rows", "sgd_rows"]

# Standard deviation of the sum of four independent integers, uniform on 0 .. 2**16 - 1.
_SUM_STD = math.sqrt((2.0**32 - 1.0) / 3.0)


def init_rows(
    out_nD: NDArray[np.float32],
    seed: int,
    table_name: str,
    first_row: int,
    std: float,
    threads: int = 1,
) -> None:
    """Fill rows with their initial values, a function of (seed, table, row, column) alone.

    A row has the same bits whenever and wherever it is made: at the start, when a table grows, on
    any shard. A value is the centred sum of four 16-bit numbers from a mixed counter, times one
    float32: nearly normal, with the given deviation and never beyond 3.47 of them.

    Args:
        out_nD: float32 matrix of rows ``first_row``, ``first_row + 1``, ...; filled in place.
        seed: The run's seed.
        table_name: The logical table's name.
        first_row: Id of the first row within its logical table.
        std: Standard deviation, >= 0; 0 gives zeros.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If the matrix has another type or ``std`` is negative or not finite.

    Example:
        >>> import numpy as np
        >>> rows = np.empty((3, 4), np.float32)
        >>> init_rows(rows, 7, "genre", 0, 0.1)
        >>> later = np.empty((1, 4), np.float32)
        >>> init_rows(later, 7, "genre", 2, 0.1)
        >>> bool((later[0] == rows[2]).all())
        True
    """
    check_matrix("out_nD", out_nD)
    if not 0.0 <= std < math.inf:
        raise ValueError(f"std: got {std}, expected a finite number >= 0")
    digest = hashlib.blake2b(f"{seed}:{table_name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    _native.init_rows(out_nD, key, first_row, std / _SUM_STD, threads)


def sgd_rows(
    weights: NDArray[np.float32],
    rows_U: NDArray[np.int64] | None,
    grads_UD: NDArray[np.float32],
    *,
    lr: float,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Stochastic gradient descent: w -= lr * g.

    Args:
        weights: float32 (R, D), changed in place.
        rows_U: int64 distinct rows, or None for all.
        grads_UD: float32 gradient of each of them.
        lr: Learning rate.
        grad_scale: What gradients are multiplied by.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape, or a row lies outside.

    Example:
        >>> import numpy as np
        >>> weights = np.ones((2, 1), np.float32)
        >>> sgd_rows(weights, np.array([1]), np.ones((1, 1), np.float32), lr=0.5)
        >>> weights.ravel()
        array([1. , 0.5], dtype=float32)
    """
    _check_update(weights, {}, rows_U, grads_UD)
    _native.sgd_rows(weights, rows_U, grads_UD, lr, grad_scale, threads)


def adagrad_rows(
    weights: NDArray[np.float32],
    accumulator: NDArray[np.float32],
    rows_U: NDArray[np.int64] | None,
    grads_UD: NDArray[np.float32],
    *,
    lr: float,
    eps: float,
    l2: float = 0.0,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Adagrad (Duchi et al. 2011): g += l2 * w; acc += g**2; w -= lr * g / (sqrt(acc) + eps).

    Args:
        weights: float32 (R, D), changed in place.
        accumulator: float32 (R, D), changed in place.
        rows_U: int64 distinct rows, or None for all.
        grads_UD: float32 gradient of each of them.
        lr: Learning rate.
        eps: Added to the root.
        l2: Factor of the weight that is added to the gradient.
        grad_scale: What gradients are multiplied by.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape, or a row lies outside.
    """
    _check_update(weights, {"accumulator": accumulator}, rows_U, grads_UD)
    _native.adagrad_rows(weights, accumulator, rows_U, grads_UD, lr, eps, l2, grad_scale, threads)


def adam_rows(
    weights: NDArray[np.float32],
    mean: NDArray[np.float32],
    square: NDArray[np.float32],
    rows_U: NDArray[np.int64] | None,
    grads_UD: NDArray[np.float32],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Adam (Kingma & Ba 2015, the form before section 2.1), lazy: untouched moments do not decay.

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g**2;
    w -= lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps). The correction uses the
    step ``t`` of the whole table, whenever a row was first touched. Before it, touched weights are
    decayed: w *= 1 - lr * weight_decay (Loshchilov & Hutter 2019).

    Args:
        weights: float32 (R, D), changed in place.
        mean: float32 (R, D), m, changed in place.
        square: float32 (R, D), v, changed in place.
        rows_U: int64 distinct rows, or None for all.
        grads_UD: float32 gradient of each of them.
        lr: Learning rate.
        beta1: Decay of m, 0 <= beta1 < 1.
        beta2: Decay of v, 0 <= beta2 < 1.
        eps: Added to the root.
        step: t, the number of this update, from 1.
        weight_decay: Decay of the weights in units of the learning rate.
        grad_scale: What gradients are multiplied by.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape, or a row lies outside.
    """
    _check_update(weights, {"mean": mean, "square": square}, rows_U, grads_UD)
    step_size = lr * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
    _native.adam_rows(
        weights, mean, square, rows_U, grads_UD, step_size, beta1, beta2, eps,
        1.0 - lr * weight_decay, grad_scale, threads,
    )  # fmt: skip


def ftrl_rows(
    weights: NDArray[np.float32],
    z: NDArray[np.float32],
    n: NDArray[np.float32],
    rows_U: NDArray[np.int64] | None,
    grads_UD: NDArray[np.float32],
    *,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 0.0,
    lr_power: float = -0.5,
    shrinkage: float = 0.0,
    grad_scale: float = 1.0,
    rates_U: NDArray[np.float32] | None = None,
    products_U: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> int:
    """FTRL-Proximal (McMahan et al. 2013, Algorithm 1) and return the change of the non-zeros.

    With p = -lr_power: sigma = ((n + g**2)**p - n**p) / lr; z += g + shrinkage * w - sigma * w;
    n += g**2; w = 0 where abs(z) <= l1, else -(z - sign(z) l1) / ((beta + n**p) / lr + l2).

    Args:
        weights: float32 (R, C), changed in place.
        z: float32 (R, C), changed in place.
        n: float32 (R, C), changed in place.
        rows_U: int64 distinct rows, or None for all.
        grads_UD: float32 gradient of each of them.
        lr: Learning rate, alpha.
        l1: Weights whose abs(z) stays within it are exactly 0.
        l2: Added to the denominator. TensorFlow's penalty is 2 l2 of this one.
        beta: Added to the root.
        lr_power: Exponent of the learning rate's decay, <= 0; -0.5 is the paper's and fast.
        shrinkage: Times the weight, added to the gradient in z alone.
        grad_scale: What gradients are multiplied by.
        rates_U: float32 factor of the learning rate of each touched row; None: 1.
        products_U: float32, filled with each touched row's sum of gradient times weight before it
            moved.
        threads: Threads to use; the result does not depend on it.

    Returns:
        Non-zero weights after the update less those before it.

    Raises:
        ValueError: If an array has another type or shape, or a row lies outside.
    """
    _check_update(weights, {"z": z, "n": n}, rows_U, grads_UD)
    for name, array in (("rates_U", rates_U), ("products_U", products_U)):
        if array is not None:
            check_vector(name, array, np.float32, len(grads_UD))
    change = _native.ftrl_rows(
        weights, z, n, rows_U, grads_UD, lr, l1, l2, beta, lr_power, shrinkage, grad_scale,
        rates_U, products_U, threads,
    )  # fmt: skip
    return int(change)


def _check_update(
    weights: NDArray[np.float32],
    state: dict[str, NDArray[np.float32]],
    rows_U: NDArray[np.int64] | None,
    grads_UD: NDArray[np.float32],
) -> None:
    check_matrix("weights", weights)
    for name, array in state.items():
        check_matrix(name, array)
        check_same_shape(name, array, "weights", weights)
    check_matrix("grads_UD", grads_UD, width=weights.shape[1])
    if rows_U is None:
        check_same_shape("grads_UD", grads_UD, "weights", weights)
        return
    check_vector("rows_U", rows_U, np.int64, len(grads_UD))
    if len(rows_U) and not 0 <= int(rows_U.min()) <= int(rows_U.max()) < len(weights):
        raise ValueError(
            f"rows_U: got rows {int(rows_U.min())} to {int(rows_U.max())}, expected them in "
            f"[0, {len(weights)})"
        )
