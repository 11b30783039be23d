"""Heads: what a slice of the logits means, its loss and its gradient.

A model owns a list of heads; each has its slice of the C logit columns. A head's loss is a plain
sum over examples of weight x loss; the trainer decides how it is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widedeep import kernels
from widedeep.bundle.layout import LINKS, Link
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.schema import Schema

__all__ = ["Binary", "Head", "HeadKind", "Link", "Multiclass", "Regression", "make_heads"]

HeadKind = Literal["binary", "multiclass", "regression"]
HEAD_KINDS = ("binary", "multiclass", "regression")


def _definer(cls: type, name: str) -> int:
    """Return how many bases stand between a class and the one that defines a method, itself 0."""
    return next(i for i, base in enumerate(cls.__mro__) if name in base.__dict__)


@dataclass(frozen=True, kw_only=True)
class Head:
    """One output of a model.

    A head of one's own is a subclass with :meth:`losses`. Its :meth:`gradient` is autograd's unless
    it defines one, and its :meth:`predictions` follow from :attr:`link`, which a bundle knows, so
    that it is served as it was trained. Predictions that no link gives train and evaluate, and are
    refused at export.

    Args:
        name: Prefix of its metrics; ``""`` for a model with one head.
        loss_weight: Factor of its loss in the sum over heads, greater than 0.
        kind: ``"binary"``, ``"multiclass"`` or ``"regression"``: its labels and metrics.

    Example:
        >>> import torch
        >>> class Poisson(Regression):
        ...     link = "exp"
        ...     def losses(self, logits_BC, labels_B):
        ...         return logits_BC[:, 0].exp() - labels_B * logits_BC[:, 0]
        >>> head = Poisson()
        >>> head.gradient(torch.zeros(1, 1), torch.tensor([3.0])).item()
        -2.0
        >>> head.predictions(torch.zeros(1, 1)).item()
        1.0
    """

    name: str = ""
    loss_weight: float = 1.0

    kind: HeadKind = "binary"

    link: ClassVar[Link | None] = None
    """From logits to predictions: ``"exp"`` or ``"sigmoid"`` of a regression's logit; None: the
    kind's, which is ``"sigmoid"``, ``"softmax"``, or ``"identity"`` for a regression."""

    def __init_subclass__(cls, **options: object) -> None:
        """Let no method of a base class stand in for what a subclass says otherwise."""
        super().__init_subclass__(**options)
        losses, gradient, both = (
            _definer(cls, name) for name in ("losses", "gradient", "losses_and_gradient")
        )
        if min(losses, both) < gradient:
            cls.gradient = Head.gradient  # type: ignore[method-assign]
        if min(losses, gradient) < both:
            cls.losses_and_gradient = Head.losses_and_gradient  # type: ignore[method-assign]

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
        return self.losses_and_gradient(logits_BC, labels_B)[1]

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Both of them: :meth:`losses`, and :meth:`gradient` or else autograd's."""
        if type(self).gradient is not Head.gradient:
            return self.losses(logits_BC, labels_B), self.gradient(logits_BC, labels_B)
        with torch.enable_grad():
            logits = logits_BC.detach().requires_grad_()
            losses_B = self.losses(logits, labels_B)
            (gradient,) = torch.autograd.grad(losses_B.sum(), logits)
        return losses_B.detach(), gradient

    def predictions(self, logits_BC: Tensor) -> Tensor:
        """What a user wants to see: probabilities (B,) or (B, classes), or values (B,)."""
        if self.link_in_use == "softmax":
            return torch.softmax(logits_BC, dim=1)
        if self.link_in_use == "sigmoid":
            return torch.sigmoid(logits_BC[:, 0])
        return logits_BC[:, 0].exp() if self.link_in_use == "exp" else logits_BC[:, 0]

    @property
    def link_in_use(self) -> Link:
        """:attr:`link`, or the kind's."""
        return self.link or LINKS[self.kind][0]

    @property
    def follows_link(self) -> bool:
        """False if the predictions are of its own making."""
        return type(self).predictions is Head.predictions


def _check_all(is_valid_B: Tensor, labels_B: Tensor, column: str, allowed: str) -> None:
    """Raise a DataError for the first label of a batch that is not valid."""
    if not bool(is_valid_B.all()):
        row = int((~is_valid_B).nonzero()[0])
        raise DataError(
            f"label {column!r} (example {row} of a batch): got {labels_B[row].item():g}, expected "
            f"{allowed}"
        )


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
        _check_all(
            (labels_B >= 0) & (labels_B <= 1), labels_B, column,
            "0 to 1 for a binary head; use head='multiclass' for classes or head='regression' for "
            "numbers",
        )  # fmt: skip

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        return F.binary_cross_entropy_with_logits(logits_BC[:, 0], labels_B, reduction="none")

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """P - y."""
        return torch.sigmoid(logits_BC) - labels_B[:, None]

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass, where the logits are on the CPU."""
        if logits_BC.device.type != "cpu":
            return self.losses(logits_BC, labels_B), self.gradient(logits_BC, labels_B)
        losses_B = torch.empty(len(logits_BC))
        grad_BC = torch.empty(len(logits_BC), 1)
        kernels.logistic_loss(
            logits_BC[:, 0].contiguous().numpy(),
            labels_B.numpy(),
            losses_B.numpy(),
            grad_BC[:, 0].numpy(),
        )
        return losses_B, grad_BC


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
        is_class = (labels_B >= 0) & (labels_B < self.classes) & (labels_B == labels_B.round())
        _check_all(is_class, labels_B, column, f"a class 0 to {self.classes - 1}")

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        return F.cross_entropy(logits_BC, labels_B.long(), reduction="none")

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """P - 1 for the label's class, p for the others."""
        gradient = torch.softmax(logits_BC, dim=1)
        gradient[torch.arange(len(gradient), device=gradient.device), labels_B.long()] -= 1.0
        return gradient


@dataclass(frozen=True, kw_only=True)
class Regression(Head):
    """Squared error on one logit: (logit - y)^2."""

    kind: HeadKind = "regression"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The label's mean, in a list."""
        return [0.0 if label_mean is None else label_mean]

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label that is not finite."""
        _check_all(torch.isfinite(labels_B), labels_B, column, "a finite number")

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """(logit - y)^2."""
        return (logits_BC[:, 0] - labels_B) ** 2

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """2 (logit - y)."""
        return 2.0 * (logits_BC - labels_B[:, None])


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
        head_choice = choice.get(name) if isinstance(choice, Mapping) else choice
        heads.append(_make_head(schema, name, head_choice))
    return tuple(heads)


def _make_head(schema: Schema, name: str, choice: HeadKind | Head | None) -> Head:
    classes = schema.classes.get(name, ())
    if isinstance(choice, Head):
        head = replace(choice, name=name)
        if type(head) not in (Binary, Multiclass, Regression):
            _check_own(head, schema.label_means.get(name))
        return head
    if choice is None:
        choice = "multiclass" if len(classes) > 2 else "binary"
    if choice == "binary":
        if len(classes) > 2:
            raise ConfigError(
                f"label {name or schema.spec.label!r}: got head='binary' for {len(classes)} "
                "classes; use head='multiclass'"
            )
        return Binary(name=name)
    if choice == "multiclass":
        if not classes:
            raise ConfigError(
                f"label {name or schema.spec.label!r}: its classes are not known (numeric label); "
                "give head=widedeep.models.heads.Multiclass(classes=n), "
                "or make the label a string column"
            )
        return Multiclass(name=name, classes=len(classes))
    if choice == "regression":
        if classes:
            raise ConfigError(
                f"label {name or schema.spec.label!r}: got head='regression' for a label of "
                f"{len(classes)} classes; make the label a column of numbers, or leave head out"
            )
        return Regression(name=name)
    raise ConfigError(f"got head={choice!r}; {nearest(str(choice), HEAD_KINDS)}")


def _check_own(head: Head, label_mean: float | None) -> None:
    """Ask a head of one's own for two examples, so that what it lacks is said before training."""
    what = f"head {type(head).__name__}"
    if head.kind not in HEAD_KINDS:
        raise ConfigError(f"{what}: got kind={head.kind!r}; {nearest(str(head.kind), HEAD_KINDS)}")
    if head.link_in_use not in LINKS[head.kind]:
        raise ConfigError(
            f"{what}: got link={head.link!r}, expected {' or '.join(map(repr, LINKS[head.kind]))} "
            f"for a {head.kind} head"
        )
    cls = type(head)
    by_parts = cls.losses_and_gradient is Head.losses_and_gradient
    losses = _definer(cls, "losses")
    own_gradient = cls.gradient is not Head.gradient and _definer(cls, "gradient") < losses
    if by_parts and own_gradient:
        base = cls.__mro__[losses].__name__
        raise ConfigError(
            f"{what}: defines gradient() and leaves losses() to {base}; define losses() too, so "
            "that the loss that is shown is the one that is learned"
        )
    logits, labels = torch.zeros(2, head.width), torch.ones(2)
    calls: dict[str, Callable[[], Any]] = {
        "initial_bias": lambda: torch.tensor(head.initial_bias(label_mean)),
        "losses": lambda: head.losses_and_gradient(logits, labels)[0],
        "gradient": lambda: head.losses_and_gradient(logits, labels)[1],
        "predictions": lambda: head.predictions(logits.double()),
    }
    rows = (2, head.width) if head.kind == "multiclass" else (2,)
    shapes = {"initial_bias": (head.width,), "losses": (2,), "gradient": (2, head.width)}
    for name, call in calls.items():
        try:
            value = call()
        except Exception as error:
            raise ConfigError(
                f"{what}: {name}() fails for two examples of label 1 "
                f"({type(error).__name__}: {error}); define it for logits (B, {head.width}) and "
                "labels (B,)"
            ) from error
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != shapes.get(name, rows):
            raise ConfigError(
                f"{what}: {name}() returns {shape} for 2 examples and {head.width} logit(s), "
                f"expected a tensor of shape {shapes.get(name, rows)}"
            )
        if name == "initial_bias" and not bool(torch.isfinite(value).all()):
            raise ConfigError(f"{what}: initial_bias({label_mean}) returns {value.tolist()}")


def describe_head(head: Head) -> str:
    """Return what a checkpoint remembers of a head: its class, and the values of its fields."""
    own = [field for field in fields(head) if field.name != "name"]
    values = ", ".join(f"{field.name}={getattr(head, field.name)!r}" for field in own)
    return f"{type(head).__qualname__}({values})"


def head_slices(heads: Sequence[Head]) -> tuple[slice, ...]:
    """Return each head's columns among the C logits."""
    slices, start = [], 0
    for head in heads:
        slices.append(slice(start, start + head.width))
        start += head.width
    return tuple(slices)
