"""Optimizers as tables of plain values, for configuration files and checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from widedeep.errors import ConfigError, nearest, show_value
from widedeep.optim.adagrad import Adagrad
from widedeep.optim.adam import Adam
from widedeep.optim.contract import Optimizer
from widedeep.optim.ftrl import FTRL
from widedeep.optim.sgd import SGD

__all__ = ["describe_optimizer", "make_optimizer"]

_CLASSES: Final[dict[str, type[Optimizer]]] = {
    "ftrl": FTRL,
    "adagrad": Adagrad,
    "sgd": SGD,
    "adam": Adam,
}


def describe_optimizer(optimizer: object) -> dict[str, Any]:
    """Return an optimizer's name and hyper-parameters.

    Args:
        optimizer: One of ours, or a function that makes a torch optimizer, which is described by
            its name alone and cannot be made again by :func:`make_optimizer`.

    Example:
        >>> describe_optimizer(SGD(lr=0.5))
        {'optimizer': 'sgd', 'lr': 0.5}
    """
    for name, kind in _CLASSES.items():
        if type(optimizer) is kind:
            fields = dataclasses.fields(kind)  # type: ignore[arg-type]
            values = {field.name: getattr(optimizer, field.name) for field in fields}
            plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
            return {"optimizer": name, **plain}
    if isinstance(optimizer, Optimizer):
        return {"optimizer": type(optimizer).__qualname__}
    return {"optimizer": f"torch: {getattr(optimizer, '__qualname__', type(optimizer).__name__)}"}


def make_optimizer(table: Mapping[str, Any]) -> Optimizer:
    """Make the optimizer that a table describes.

    Args:
        table: ``optimizer`` (``"ftrl"``, ``"adagrad"``, ``"sgd"`` or ``"adam"``) and
            hyper-parameters; those not named keep their defaults.

    Raises:
        ConfigError: If the name or a key is unknown, or a value is outside its range.

    Example:
        >>> make_optimizer({"optimizer": "sgd", "lr": 0.5})
        SGD(lr=0.5)
    """
    name = table.get("optimizer")
    if not isinstance(name, str) or name not in _CLASSES:
        raise ConfigError(
            f"got optimizer={show_value(name)}; {nearest(show_value(name), _CLASSES)}"
        )
    kind = _CLASSES[name]
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key != "optimizer" and key not in known:
            raise ConfigError(
                f"optimizer {name!r}: got the unknown key {show_value(key)}; "
                f"{nearest(str(key), known)}"
            )
    return kind(**{key: value for key, value in table.items() if key != "optimizer"})
