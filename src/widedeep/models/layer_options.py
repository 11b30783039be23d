"""Options of hidden layers, as TOML and Python give them: activation and batch norm."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from widedeep.errors import ConfigError, nearest, show_value
from widedeep.options import FractionBelow1, Positive, check_types, read_section

if TYPE_CHECKING:
    from torch import nn

Activation: TypeAlias = str | Mapping[str, Any]
"""A name of :data:`ACTIVATIONS`, or a table of it and options of torch's module."""

BatchNorm: TypeAlias = bool | Literal["tensorflow"] | Mapping[str, Any]
"""Whether to normalise; a table of :class:`BatchNormOptions`; or TensorFlow's options."""

ACTIVATIONS: Mapping[str, str] = {
    "relu": "ReLU",
    "gelu": "GELU",
    "tanh": "Tanh",
    "elu": "ELU",
    "leaky_relu": "LeakyReLU",
    "silu": "SiLU",
    "celu": "CELU",
    "hardshrink": "Hardshrink",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "identity": "Identity",
    "log_sigmoid": "LogSigmoid",
    "mish": "Mish",
    "none": "Identity",
    "prelu": "PReLU",
    "relu6": "ReLU6",
    "rrelu": "RReLU",
    "selu": "SELU",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softshrink": "Softshrink",
    "softsign": "Softsign",
    "tanhshrink": "Tanhshrink",
    "threshold": "Threshold",
}
"""Name to class of ``torch.nn``; those of numbers, each for itself."""

NATIVE_ACTIVATIONS = ("relu", "gelu", "tanh", "elu", "leaky_relu", "silu")
"""Those that our kernels compute, with torch's default options."""


def activation_options(value: Activation, owner: str) -> tuple[str, dict[str, Any]]:
    """Return an activation's name and the options of its module.

    Raises:
        ConfigError: If there is none of this name.
    """
    table = {"name": value} if isinstance(value, str) else value
    name = table.get("name")
    if not isinstance(name, str):
        raise ConfigError(
            f"{owner}: got activation={show_value(value)}, expected a name, or a table of it and "
            'options such as { name = "leaky_relu", negative_slope = 0.2 }'
        )
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"{owner}: got activation={show_value(value)}; {nearest(name, ACTIVATIONS)}"
        )
    return name, {key: option for key, option in table.items() if key != "name"}


def make_activation(value: Activation, owner: str = "the layers") -> nn.Module:
    """Return torch's module of an activation.

    Raises:
        ConfigError: If there is none of this name, or it does not take its options.

    Example:
        >>> make_activation({"name": "leaky_relu", "negative_slope": 0.2})
        LeakyReLU(negative_slope=0.2)
    """
    import torch

    name, options = activation_options(value, owner)
    kind = ACTIVATIONS[name]
    try:
        module: torch.nn.Module = getattr(torch.nn, kind)(**options)
        with torch.no_grad():
            module(torch.zeros(1, 1))
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{owner}: got activation={show_value(value)}, expected the options of torch.nn.{kind} "
            f"({reason})"
        ) from error
    return module


def checked_activation(value: Activation, owner: str) -> Activation:
    """Return an activation in its shortest form.

    Raises:
        ConfigError: If there is none of this name, or it does not take its options.
    """
    name, options = activation_options(value, owner)
    if importlib.util.find_spec("torch") is not None:
        make_activation(value, owner)
    return value if options else name


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchNormOptions:
    """How batch norms follow what they have seen."""

    # Share of the old moving mean and variance that a step keeps, 0 <= momentum < 1 (TensorFlow's
    # meaning; PyTorch's is 1 - momentum)
    momentum: FractionBelow1 = 0.9
    eps: Positive = 1e-5  # Added to the variance, > 0
    # The moving variance follows the batch's biased variance, divided by B (as TensorFlow's), not
    # by B - 1 (as PyTorch's)
    biased: bool = False

    def __post_init__(self) -> None:
        check_types(self, "batch_norm")


_TENSORFLOW = BatchNormOptions(momentum=0.999, eps=1e-3, biased=True)


def batch_norm_options(value: BatchNorm, owner: str = "the layers") -> BatchNormOptions | None:
    """Return what a value of the option ``batch_norm`` means; None: no norm.

    Raises:
        ConfigError: If a key is unknown, or a number outside its range.

    Example:
        >>> batch_norm_options({"momentum": 0.99})
        BatchNormOptions(momentum=0.99, eps=1e-05, biased=False)
    """
    if isinstance(value, bool):
        return BatchNormOptions() if value else None
    if value == "tensorflow":
        return _TENSORFLOW
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{owner}: got batch_norm={show_value(value)}, expected true, false, "
            '"tensorflow" or a table such as { momentum = 0.99, eps = 0.001 }'
        )
    return read_section(BatchNormOptions, value, f"{owner}: [batch_norm]")
