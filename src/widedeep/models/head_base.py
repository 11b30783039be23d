"""The contract of heads: what a slice of the logits means, its loss and its gradient.

A model owns a list of heads; each has its slice of the C logit columns. A head's loss is a plain
sum over examples of weight x loss; the trainer decides how it is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

import torch
import torch.nn.functional as F
from torch import Tensor

from widedeep.bundle.layout import AMOUNT_LINKS, LINKS, HeadKind, Link
from widedeep.errors import ConfigError, RowError, show_value
from widedeep.metrics import LabelKind
from widedeep.models.losses import SMALLEST_SIGMA
from widedeep.options import Allowed, check_ranges
from widedeep.schema import Schema

__all__ = ["Head", "HeadKind", "Link", "register_head", "registered_heads", "unregister_head"]

FinitePositive = Annotated[float, Allowed(lambda x: 0 < x < math.inf, "a number > 0")]
HEAD_KINDS: tuple[HeadKind, ...] = ("binary", "multiclass", "multilabel", "regression", "ranking")


def definer(cls: type, name: str) -> int:
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
        kind: ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"regression"`` or ``"ranking"``:
            its labels and metrics.

    Example:
        >>> import torch
        >>> from widedeep.models.heads import Regression
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
    loss_weight: FinitePositive = 1.0

    kind: HeadKind = "binary"

    link: ClassVar[Link | None] = None
    """From logits to predictions: for a regression ``"exp"``, ``"expm1"``, ``"softplus"``,
    ``"sigmoid"`` or ``"ziln"``; None: the kind's, which is ``"sigmoid"``, ``"softmax"``, or
    ``"identity"`` for numbers and rankings."""

    reads_requests: ClassVar[bool] = False
    """True for a loss over the candidates of a request (:meth:`request_losses_and_gradient`)."""

    OPTIONS: ClassVar[Mapping[str, str]] = {}
    """By option, the ``loss`` that it is an option of."""

    def __init_subclass__(cls, **options: object) -> None:
        """Let no method of a base class stand in for what a subclass says otherwise."""
        super().__init_subclass__(**options)
        losses, gradient, both = (
            definer(cls, name) for name in ("losses", "gradient", "losses_and_gradient")
        )
        if min(losses, both) < gradient:
            cls.gradient = Head.gradient  # type: ignore[method-assign]
        if min(losses, gradient) < both:
            cls.losses_and_gradient = Head.losses_and_gradient  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_ranges(self, self._owner)
        for option, loss in self.OPTIONS.items():
            default = next(f.default for f in fields(self) if f.name == option)
            if getattr(self, option) != default and getattr(self, "loss", None) != loss:
                raise self.refusal(f"got {option}, which is an option of loss={loss!r}")

    def refusal(self, problem: str) -> ConfigError:
        """Return the error about an option."""
        return ConfigError(f"{self._owner}: {problem}")

    @property
    def _owner(self) -> str:
        return f"head {self.name or type(self).__name__!r}"

    def check_range(self, option: str, valid: bool, allowed: str) -> None:
        """Raise a ConfigError unless an option is within its range."""
        if not valid:
            got = show_value(getattr(self, option))
            raise self.refusal(f"got {option}={got}, expected {allowed}")

    @property
    def width(self) -> int:
        """Number of logit columns."""
        return 1

    def for_schema(self, schema: Schema) -> Head:
        """Return the head with what the schema knows of its label, such as the classes."""
        return self

    @property
    def label_kind(self) -> LabelKind:
        """Kind of labels whose metrics apply: the head's, or ``"amount"`` by its link."""
        return "amount" if self.link_in_use in AMOUNT_LINKS else self.kind

    @property
    def is_log_loss(self) -> bool:
        """True if loss and gradient are those of :func:`widedeep.kernels.logistic_loss`."""
        return False

    @property
    def loss_metric(self) -> str:
        """Metric that is the mean of the losses: ``"log_loss"``, ``"mse"``, or ``"loss"``."""
        return "loss"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The bias that a model without features would learn, one value a logit column."""
        return [0.0] * self.width

    def fit_bias(self, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
        """Return that bias for a sample of labels; None: :meth:`initial_bias` is exact."""
        return None

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for labels outside the head's range."""

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Loss of each example, not weighted. Shape: (B, c), (B,) -> (B,)."""
        if type(self).losses_and_gradient is Head.losses_and_gradient:
            raise NotImplementedError
        return self.losses_and_gradient(logits_BC, labels_B)[0]

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

    def request_losses_and_gradient(
        self, logits_BC: Tensor, labels_B: Tensor, weight_B: Tensor, requests_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses over the candidates of requests, and the gradient of their weighted sum.

        Shape: (B, c), (B,), (B,), request of each candidate from 0 (B,) -> (B,), (B, c).
        """
        raise NotImplementedError

    def predictions(self, logits_BC: Tensor) -> Tensor:
        """What a user wants to see: probabilities (B,) or (B, classes), or values (B,)."""
        link = self.link_in_use
        if link == "softmax":
            return torch.softmax(logits_BC, dim=1)
        if link == "sigmoid":
            return torch.sigmoid(logits_BC if self.kind == "multilabel" else logits_BC[:, 0])
        if link == "ziln":
            sigma_B = F.softplus(logits_BC[:, 2]).clamp_min(SMALLEST_SIGMA)
            amount_B = torch.exp(logits_BC[:, 1] + 0.5 * sigma_B**2)
            return torch.sigmoid(logits_BC[:, 0]) * amount_B
        functions: Mapping[Link, Callable[[Tensor], Tensor]] = {
            "exp": torch.exp,
            "expm1": torch.expm1,
            "softplus": F.softplus,
        }
        return functions[link](logits_BC[:, 0]) if link in functions else logits_BC[:, 0]

    @property
    def link_in_use(self) -> Link:
        """:attr:`link`, or the kind's."""
        return self.link or LINKS[self.kind][0]

    @property
    def follows_link(self) -> bool:
        """False if the predictions are of its own making."""
        return type(self).predictions is Head.predictions


Config = TypeVar("Config", bound=type[Head])
_registered: dict[str, type[Head]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def register_head(name: str) -> Callable[[Config], Config]:
    """Make a head known by a name, as a decorator of its class: a frozen dataclass from then on.

    Its fields are its options, in Python, in TOML and in checkpoints:
    ``head = { kind = "cauchy", scale = 2.0 }`` with ``imports = ["my_heads"]``.

    Raises:
        ConfigError: If the name is no identifier, or another head's.
    """
    if not name.isidentifier():
        raise ConfigError(f"got a head of the name {name!r}, expected letters, digits and _")

    def register(head: Config) -> Config:
        other = _registered.get(name)
        if other is not None and other.__qualname__ != head.__qualname__:
            raise ConfigError(f"head {name!r} is registered already, as {other.__qualname__}")
        if "__dataclass_params__" not in vars(head):
            dataclass(frozen=True, kw_only=True)(head)
        _registered[name] = head
        return head

    return register


def unregister_head(name: str) -> None:
    """Forget a head, such as one that a test registered."""
    _registered.pop(name, None)


def registered_heads() -> dict[str, type[Head]]:
    """Return the classes of heads by the names that TOML calls them.

    Example:
        >>> "poisson" in registered_heads()
        True
    """
    return dict(_registered)


def check_all(is_valid_B: Tensor, labels_B: Tensor, column: str, allowed: str) -> None:
    """Raise a RowError for the first label of a batch that is not valid."""
    if not bool(is_valid_B.all()):
        row = int((~is_valid_B).nonzero()[0])
        got = f"{labels_B[row].item():g}"
        raise RowError(f"label {column!r}", row, f"got {got}, expected {allowed}")


_STEPS = 100


def minimising_bias(head: Head, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
    """Return the logits that minimise a head's mean loss over a sample of labels, by L-BFGS."""
    mean = float((labels_S * weight_S).sum() / weight_S.sum())
    bias_c = torch.tensor(head.initial_bias(mean), dtype=torch.float64)
    optimizer = torch.optim.LBFGS([bias_c], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def mean_loss() -> Tensor:
        logits_Sc = bias_c.detach().expand(len(labels_S), -1)
        losses_S, slopes_Sc = head.losses_and_gradient(logits_Sc, labels_S)
        bias_c.grad = (weight_S[:, None] * slopes_Sc).sum(dim=0) / weight_S.sum()
        return (weight_S * losses_S).sum() / weight_S.sum()

    try:
        optimizer.step(mean_loss)  # type: ignore[no-untyped-call]
    except IndexError:  # what its line search makes of a loss that is no number
        return None
    return bias_c.tolist() if bool(torch.isfinite(bias_c).all()) else None


def start_bias(head: Head, schema: Schema) -> list[float]:
    """Return the bias of a head before training, fitted on the labels that the schema knows."""
    mean = schema.label_means.get(head.name)
    bias = head.initial_bias(mean)
    labels, weights = _label_sample(head, schema)
    fitted = None
    if len(labels):
        sample = torch.tensor(labels, dtype=torch.float64)
        fitted = head.fit_bias(sample, torch.tensor(weights, dtype=torch.float64))
    return bias if fitted is None else fitted


def _label_sample(head: Head, schema: Schema) -> tuple[list[Any], list[float]]:
    """Return labels, or the rates of classes, with weights."""
    mean = schema.label_means.get(head.name)
    if head.name in schema.class_rates:
        return [list(schema.class_rates[head.name])], [1.0]
    if head.kind == "binary":
        return ([], []) if mean is None or not 0 < mean < 1 else ([0.0, 1.0], [1.0 - mean, mean])
    sample = list(schema.label_quantiles.get(head.name, ()))
    return sample, [1.0] * len(sample)


def head_slices(heads: Sequence[Head]) -> tuple[slice, ...]:
    """Return each head's columns among the C logits."""
    slices, start = [], 0
    for head in heads:
        slices.append(slice(start, start + head.width))
        start += head.width
    return tuple(slices)
