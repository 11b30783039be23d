"""Heads: what a slice of the logits means, its loss and its gradient.

A model owns a list of heads; each has its slice of the C logit columns. A head's loss is a plain
sum over examples of weight x loss; the trainer decides how it is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widedeep import kernels
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.schema import Schema

__all__ = ["Binary", "Head", "HeadKind", "Multiclass", "Regression", "make_heads"]

HeadKind = Literal["binary", "multiclass", "regression"]
HEAD_KINDS = ("binary", "multiclass", "regression")


@dataclass(frozen=True, kw_only=True)
class Head:
    """One output of a model.

    Args:
        name: Prefix of its metrics; ``""`` for a model with one head.
        loss_weight: Factor of its loss in the sum over heads, greater than 0.
    """

    name: str = ""
    loss_weight: float = 1.0

    kind: HeadKind = "binary"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loss_weight) and self.loss_weight > 0):
            raise ConfigError(
                f"head {self.name!r}: got loss_weight={self.loss_weight}, expected a number > 0"
            )

    @property
    def width(self) -> int:
        """Number of logit columns."""
        return 1

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The bias that a model without features would learn, one value a logit column."""
        return [0.0] * self.width

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for labels outside the head's range."""

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Loss of each example, not weighted. Shape: (B, c), (B,) -> (B,)."""
        raise NotImplementedError

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Derivative of each example's loss by its logits. Shape: (B, c), (B,) -> (B, c)."""
        raise NotImplementedError

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Both of them: :meth:`losses` and :meth:`gradient`."""
        return self.losses(logits_BC, labels_B), self.gradient(logits_BC, labels_B)

    def predictions(self, logits_BC: Tensor) -> Tensor:
        """What a user wants to see: probabilities, or the value of a regression."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Binary(Head):
    """Logistic regression on one logit; labels in [0, 1] (soft labels too).

    Loss: -y log(p) - (1 - y) log(1 - p) with p = sigmoid(logit).

    Example:
        >>> import torch
        >>> Binary().gradient(torch.zeros(1, 1), torch.ones(1)).item()
        -0.5
    """

    kind: HeadKind = "binary"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The logit of the label's mean, in a list."""
        if label_mean is None or not 0 < label_mean < 1:
            return [0.0]
        return [math.log(label_mean / (1 - label_mean))]

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label outside 0 to 1."""
        if len(labels_B):
            lowest, highest = torch.aminmax(labels_B)  # NaN if there is one
            if lowest >= 0 and highest <= 1:
                return
        bad = ~((labels_B >= 0) & (labels_B <= 1))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(
                f"label {column!r} (example {row} of a batch): got "
                f"{labels_B[row].item():g}, expected 0 to 1 "
                "for a binary head; use head='multiclass' for classes or head='regression' for "
                "numbers"
            )

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        return F.binary_cross_entropy_with_logits(logits_BC[:, 0], labels_B, reduction="none")

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """P - y."""
        return torch.sigmoid(logits_BC) - labels_B[:, None]

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass, where the logits are on the CPU."""
        if logits_BC.device.type != "cpu":
            return super().losses_and_gradient(logits_BC, labels_B)
        losses_B = torch.empty(len(logits_BC))
        grad_BC = torch.empty(len(logits_BC), 1)
        kernels.logistic_loss(
            logits_BC[:, 0].contiguous().numpy(),
            labels_B.numpy(),
            losses_B.numpy(),
            grad_BC[:, 0].numpy(),
        )
        return losses_B, grad_BC

    def predictions(self, logits_BC: Tensor) -> Tensor:
        """The probability of label 1, (B,)."""
        return torch.sigmoid(logits_BC[:, 0])


@dataclass(frozen=True, kw_only=True)
class Multiclass(Head):
    """Softmax over ``classes`` logits; labels are class indices 0 to ``classes`` - 1.

    Args:
        classes: Number of classes, at least 2.
    """

    classes: int = 2
    kind: HeadKind = "multiclass"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise ConfigError(
                f"head {self.name!r}: got classes={self.classes}, expected at least 2"
            )

    @property
    def width(self) -> int:
        """One logit a class."""
        return self.classes

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label that is no class index."""
        bad = ~((labels_B >= 0) & (labels_B < self.classes) & (labels_B == labels_B.round()))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(
                f"label {column!r} (example {row} of a batch): got "
                f"{labels_B[row].item():g}, expected a class "
                f"0 to {self.classes - 1}"
            )

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        return F.cross_entropy(logits_BC, labels_B.long(), reduction="none")

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """P - 1 for the label's class, p for the others."""
        gradient = torch.softmax(logits_BC, dim=1)
        gradient[torch.arange(len(gradient), device=gradient.device), labels_B.long()] -= 1.0
        return gradient

    def predictions(self, logits_BC: Tensor) -> Tensor:
        """The probability of each class, (B, classes)."""
        return torch.softmax(logits_BC, dim=1)


@dataclass(frozen=True, kw_only=True)
class Regression(Head):
    """Squared error on one logit: (logit - y)^2."""

    kind: HeadKind = "regression"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The label's mean, in a list."""
        return [0.0 if label_mean is None else label_mean]

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label that is not finite."""
        if not bool(torch.isfinite(labels_B).all()):
            row = int((~torch.isfinite(labels_B)).nonzero()[0])
            raise DataError(
                f"label {column!r} (example {row} of a batch): got "
                f"{labels_B[row].item()}, "
                "expected a finite number"
            )

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """(logit - y)^2."""
        return (logits_BC[:, 0] - labels_B) ** 2

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """2 (logit - y)."""
        return 2.0 * (logits_BC - labels_B[:, None])

    def predictions(self, logits_BC: Tensor) -> Tensor:
        """The value, (B,)."""
        return logits_BC[:, 0]


HeadChoice = HeadKind | Head | Mapping[str, HeadKind | Head] | None


def make_heads(schema: Schema, choice: HeadChoice) -> tuple[Head, ...]:
    """Return the heads of a model, in the order of the schema's labels.

    Args:
        schema: Gives the labels' names and classes.
        choice: A kind or head for every label, one for each by name, or None: binary for numbers
            and two classes, multi-class for more.

    Raises:
        ConfigError: For an unknown kind, or a name that is no label's.
    """
    labels = schema.spec.labels or {"": "label"}
    if isinstance(choice, Mapping):
        for name in choice:
            if name not in labels:
                raise ConfigError(
                    f"got a head for {name!r}, which is no label; {nearest(name, labels)}"
                )
    heads = []
    for name in labels:
        wanted = choice.get(name) if isinstance(choice, Mapping) else choice
        heads.append(_make_head(schema, name, wanted))
    return tuple(heads)


def _make_head(schema: Schema, name: str, wanted: HeadKind | Head | None) -> Head:
    classes = schema.classes.get(name, ())
    if isinstance(wanted, Head):
        return _renamed(wanted, name)
    if wanted is None:
        wanted = "multiclass" if len(classes) > 2 else "binary"
    if wanted == "binary":
        if len(classes) > 2:
            raise ConfigError(
                f"label {name or schema.spec.label!r}: got head='binary' for {len(classes)} "
                "classes; use head='multiclass'"
            )
        return Binary(name=name)
    if wanted == "multiclass":
        if not classes:
            raise ConfigError(
                f"label {name or schema.spec.label!r}: its classes are not known (numeric label); "
                "give head=widedeep.heads.Multiclass(classes=n), or make the label a string column"
            )
        return Multiclass(name=name, classes=len(classes))
    if wanted == "regression":
        if classes:
            raise ConfigError(
                f"label {name or schema.spec.label!r}: got head='regression' for a label of "
                f"{len(classes)} classes; make the label a column of numbers, or leave head out"
            )
        return Regression(name=name)
    raise ConfigError(f"got head={wanted!r}; {nearest(str(wanted), HEAD_KINDS)}")


def _renamed(head: Head, name: str) -> Head:
    from dataclasses import replace

    return replace(head, name=name)


def head_slices(heads: Sequence[Head]) -> tuple[slice, ...]:
    """Return each head's columns among the C logits."""
    slices, at = [], 0
    for head in heads:
        slices.append(slice(at, at + head.width))
        at += head.width
    return tuple(slices)
