"""Native forward passes (a batch; a ranking's sides), functions of scores, and bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep import _native

ACTIVATIONS = ("none", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh")
"""What a dense layer may do to its sums; the slope of ``leaky_relu`` is 0.01."""

Side = Literal["query", "item", "pair"]
"""Owner of a feature: the query, the item, or (for a cross of both) the pair."""


def score_function(
    name: Literal["sigmoid", "softplus", "exp", "expm1", "log", "log1p"], x: Any
) -> NDArray[np.float64]:
    """Return a function of each number, by its bits the one that native servers take.

    Args:
        name: Name of the function.
        x: Numbers of any shape.

    Example:
        >>> import numpy as np
        >>> score_function("log1p", np.array([[0.0], [1.0]])).round(4).tolist()
        [[0.0], [0.6931]]
    """
    return _native.score_function(name, _flat(x)).reshape(np.shape(x))


sigmoid = partial(_native.score_function, "sigmoid")
"""1 / (1 + exp(-x)) of each number of a contiguous (B,) array; see :func:`score_function`."""


def power(x: Any, y: Any) -> NDArray[np.float64]:
    """Return each number to its exponent, by its bits the one that native servers take.

    Args:
        x: Numbers of any shape.
        y: Exponents; they are broadcast against the numbers.

    Example:
        >>> import numpy as np
        >>> power(np.array([2.0, 3.0]), 2.0).tolist()
        [4.0, 9.0]
    """
    x, y = np.broadcast_arrays(x, y)
    return _native.power(_flat(x), _flat(y)).reshape(x.shape)


def _flat(values: Any) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype=np.float64).ravel()


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the nearest bfloat16 of each number, as its bits; ties go to the even one.

    Example:
        >>> import numpy as np
        >>> bits = to_bfloat16(np.array([1.0, 3.14159], np.float32))
        >>> from_bfloat16(bits).tolist()
        [1.0, 3.140625]
    """
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding up the bits of a NaN could make an infinity of it.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers that these bits stand for.

    Example:
        >>> import numpy as np
        >>> from_bfloat16(np.array([0x3F80], np.uint16)).tolist()
        [1.0]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)
