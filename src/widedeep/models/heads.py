"""Heads by name: binary, multi-class, multi-label, numbers, counts, amounts, rankings.

What a head is called in TOML, ``head = "poisson"`` or ``head = { kind = "poisson", loss_weight =
2.0 }``, is the name that it is registered by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widedeep import kernels
from widedeep.errors import nearest, show_value
from widedeep.models import losses
from widedeep.models.head_base import (
    HEAD_KINDS,
    FinitePositive,
    Head,
    HeadKind,
    Link,
    check_all,
    minimising_bias,
    register_head,
)
from widedeep.models.losses import LossFunction
from widedeep.options import Allowed, FractionBelow1, NotNegative
from widedeep.schema import Schema

__all__ = [
    "Binary",
    "FunctionHead",
    "Head",
    "HeadKind",
    "Link",
    "Multiclass",
    "Multilabel",
    "Poisson",
    "Ranking",
    "Regression",
    "Tweedie",
    "ZeroInflatedLognormal",
]


def within(labels_B: Tensor, lowest: float, highest: float = math.inf) -> bool:
    """Tell in one pass whether all labels are in a range; NaN is not."""
    if not len(labels_B):
        return True
    least, most = torch.aminmax(labels_B)  # NaN if there is one
    return bool(least >= lowest) and bool(most <= highest)


@register_head("binary")
class Binary(Head):
    """Logistic regression on one logit; labels in [0, 1] (soft labels too).

    Loss: -y log(p) - (1 - y) log(1 - p) with p = sigmoid(logit), or the focal loss, see
    :func:`widedeep.models.losses.logistic`. A weight of positives and a focus move the
    probabilities away from the rates in the data: calibrate them at export, or use the order alone.

    Args:
        loss: ``"log"``, or ``"focal"``: (1 - p)^gamma times the loss of a positive, p^gamma times
            that of a negative (Lin et al. 2017).
        gamma: Focus of the focal loss, at least 0.
        smoothing: Labels move by half of it towards 1/2; 0 <= smoothing < 1.
        pos_weight: Factor of the loss of positives, greater than 0.
        through: Name of another binary head of the model; this one's probability is
            sigmoid(logit) times that head's, for a conversion that needs a click first: pCTCVR =
            pCTR pCVR (ESMM, Ma et al. 2018). Its loss moves both logits.

    Example:
        >>> import torch
        >>> Binary().gradient(torch.zeros(1, 1), torch.ones(1)).item()
        -0.5
        >>> Binary(loss="focal", gamma=2.0).gradient(torch.zeros(1, 1), torch.ones(1)).item()
        -0.2982867...
    """

    kind: HeadKind = "binary"
    loss: Literal["log", "focal"] = "log"
    gamma: NotNegative = 2.0
    smoothing: FractionBelow1 = 0.0
    pos_weight: FinitePositive = 1.0
    through: str | None = None

    OPTIONS: ClassVar[Mapping[str, str]] = {"gamma": "focal"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("loss", self.loss in ("log", "focal"), "'log' or 'focal'")
        if self.through is not None and not self._is_plain:
            raise self.refusal(
                f"got through={self.through!r} with other options of the loss; leave them out"
            )

    @property
    def _is_plain(self) -> bool:
        return self.loss == "log" and self.smoothing == 0 and self.pos_weight == 1

    @property
    def is_log_loss(self) -> bool:
        """True without options of the loss, and in a subclass without equations of its own."""
        return type(self) is Binary and self._is_plain and self.through is None

    @property
    def loss_metric(self) -> str:
        """Cross-entropy, where that is the loss."""
        return "log_loss" if self._is_plain else "loss"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The logit of the label's mean, smoothed and weighted, in a list."""
        if label_mean is None or not 0 < label_mean < 1:
            return [0.0]
        mean = label_mean * (1 - self.smoothing) + 0.5 * self.smoothing
        return [math.log(self.pos_weight * mean / (1 - mean))]

    def fit_bias(self, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
        """Minimise the focal loss, which has no closed form."""
        return minimising_bias(self, labels_S, weight_S) if self.loss == "focal" else None

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label outside 0 to 1."""
        if within(labels_B, 0, 1):
            return
        check_all(
            (labels_B >= 0) & (labels_B <= 1), labels_B, column,
            "0 to 1 for a binary head; write two classes as 0 and 1 (of 1 and 2, subtract 1), or "
            "as text, whose order label_vocabulary=['1', '2'] declares; use head='multiclass' for "
            "more classes or head='regression' for numbers",
        )  # fmt: skip

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        if self._is_plain:
            return F.binary_cross_entropy_with_logits(logits_BC[:, 0], labels_B, reduction="none")
        return self._general(logits_BC, labels_B)[0]

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """P - y, where the loss is plain cross-entropy."""
        if self._is_plain:
            return torch.sigmoid(logits_BC) - labels_B[:, None]
        return self._general(logits_BC, labels_B)[1]

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass, where the logits are on the CPU."""
        if not self._is_plain:
            return self._general(logits_BC, labels_B)
        if logits_BC.device.type != "cpu" or logits_BC.dtype != torch.float32:
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

    def _general(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        losses_B, slopes_B = losses.logistic(
            logits_BC[:, 0],
            labels_B,
            smoothing=self.smoothing,
            pos_weight=self.pos_weight,
            gamma=self.gamma if self.loss == "focal" else 0.0,
        )
        return losses_B, slopes_B[:, None]


@register_head("multiclass")
class Multiclass(Head):
    """Softmax over ``classes`` logits; labels are class indices 0 to ``classes`` - 1.

    Args:
        classes: Number of classes, at least 2; None: those of the label's column of text. A column
            of integers needs it.
        class_weights: Factor of the loss of each class's examples, in order, or by the names of
            classes (1 where none is named).
        smoothing: Part of the target that is spread evenly over all classes; 0 <= smoothing < 1.
    """

    classes: Annotated[int, Allowed(lambda n: n >= 2, "at least 2")] = 2
    kind: HeadKind = "multiclass"
    class_weights: tuple[float, ...] | Mapping[str, float] = ()
    smoothing: FractionBelow1 = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self, "class_weights", self.class_weights)

    def for_schema(self, schema: Schema) -> Head:
        """Take the weights of classes by name in the schema's order."""
        weights = _in_order(self, "class_weights", self.class_weights, schema)
        if weights and len(weights) != self.classes:
            raise self.refusal(
                f"got {len(weights)} class_weights, expected one for each of {self.classes} classes"
            )
        return replace(self, class_weights=weights)

    @property
    def width(self) -> int:
        """One logit a class."""
        return self.classes

    @property
    def _is_plain(self) -> bool:
        return self.smoothing == 0 and not self.class_weights

    @property
    def loss_metric(self) -> str:
        """Cross-entropy, where that is the loss."""
        return "log_loss" if self._is_plain else "loss"

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label that is no class index."""
        if within(labels_B, 0, self.classes - 1) and torch.equal(labels_B, labels_B.round()):
            return
        is_class = (labels_B >= 0) & (labels_B < self.classes) & (labels_B == labels_B.round())
        allowed = (
            f"a class 0 to {self.classes - 1}; number the classes from 0, or write them as text"
        )
        check_all(is_class, labels_B, column, allowed)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        if self._is_plain:
            return F.cross_entropy(logits_BC, labels_B.long(), reduction="none")
        return self._general(logits_BC, labels_B)[0]

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """P - 1 for the label's class, p for the others."""
        if not self._is_plain:
            return self._general(logits_BC, labels_B)[1]
        gradient = torch.softmax(logits_BC, dim=1)
        minus_one_B1 = gradient.new_full((len(gradient), 1), -1.0)
        return gradient.scatter_add_(1, labels_B.long()[:, None], minus_one_B1)

    def _general(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.class_weights, tuple)
        return losses.softmax_cross_entropy(
            logits_BC, labels_B, class_weights=self.class_weights, smoothing=self.smoothing
        )


@register_head("multilabel")
class Multilabel(Head):
    """Any number of classes an example: one logit and one sigmoid each, for a column of lists.

    Loss: mean over classes of :func:`widedeep.models.losses.logistic`. An empty list is an example
    of no class; a null list is no example.

    Args:
        classes: Number of classes; the schema's.
        pos_weight: Factor of the loss of positives: one for all, a list in the order of the
            classes, or a table by class (1 where none is named).
        smoothing: Labels move by half of it towards 1/2; 0 <= smoothing < 1.
    """

    classes: Annotated[int, Allowed(lambda n: n >= 1, "at least 1")] = 1
    kind: HeadKind = "multilabel"
    pos_weight: float | tuple[float, ...] | Mapping[str, float] = 1.0
    smoothing: FractionBelow1 = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        single = isinstance(self.pos_weight, (int, float))
        _check_weights(self, "pos_weight", (self.pos_weight,) if single else self.pos_weight)  # type: ignore[arg-type]

    def for_schema(self, schema: Schema) -> Head:
        """Take the classes of the schema, and the weights in their order."""
        classes = len(schema.classes.get(self.name, ()))
        weights = self.pos_weight
        if not isinstance(weights, (int, float)):
            weights = _in_order(self, "pos_weight", weights, schema)
            if len(weights) != classes:
                raise self.refusal(
                    f"got {len(weights)} values of pos_weight, expected one for each of {classes} "
                    "classes"
                )
        return replace(self, classes=classes or self.classes, pos_weight=weights)

    @property
    def width(self) -> int:
        """One logit a class."""
        return self.classes

    @property
    def loss_metric(self) -> str:
        """Mean cross-entropy, where that is the loss."""
        return "log_loss" if self.pos_weight == 1 and self.smoothing == 0 else "loss"

    def fit_bias(self, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
        """The logit of each class's rate, smoothed and weighted; labels are the rates (1, C)."""
        rates_C = labels_S[0] * (1 - self.smoothing) + 0.5 * self.smoothing
        rates_C = rates_C.clamp(1e-6, 1 - 1e-6)
        odds_C = torch.as_tensor(self.pos_weight, dtype=torch.float64) * rates_C / (1 - rates_C)
        return [float(value) for value in odds_C.log()]

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over classes; labels are 0 or 1, (B, C)."""
        weight = self.pos_weight
        if isinstance(weight, tuple):
            weight = torch.tensor(weight, dtype=logits_BC.dtype).to(logits_BC.device)  # type: ignore[assignment]
        losses_BC, slopes_BC = losses.logistic(
            logits_BC,
            labels_B,
            smoothing=self.smoothing,
            pos_weight=weight,  # type: ignore[arg-type]
        )
        return losses_BC.mean(dim=1), slopes_BC / self.classes


_REGRESSION_LOSSES = ("squared", "absolute", "huber", "quantile", "log_cosh", "squared_log")


@register_head("regression")
class Regression(Head):
    """A number from one logit; the prediction is the logit, or what ``squared_log`` makes of it.

    Args:
        loss: ``"squared"``: (logit - y)^2; ``"absolute"`` (the median), ``"huber"``,
            ``"quantile"``, ``"log_cosh"``, or ``"squared_log"`` for labels above -1: the
            squared error of log(1 + y), whose prediction is exp(logit) - 1. Equations:
            :mod:`widedeep.models.losses`.
        delta: Error from which Huber's loss is linear, greater than 0.
        level: The quantile, 0 < level < 1.
    """

    kind: HeadKind = "regression"
    loss: Literal["squared", "absolute", "huber", "quantile", "log_cosh", "squared_log"] = "squared"
    delta: FinitePositive = 1.0
    level: Annotated[float, Allowed(lambda x: 0 < x < 1, "0 < level < 1")] = 0.5

    OPTIONS: ClassVar[Mapping[str, str]] = {"delta": "huber", "level": "quantile"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in _REGRESSION_LOSSES:
            raise self.refusal(f"got loss={self.loss!r}; {nearest(self.loss, _REGRESSION_LOSSES)}")

    @property
    def link_in_use(self) -> Link:
        """``"expm1"`` for the squared error of the logarithm."""
        return "expm1" if self.loss == "squared_log" and self.link is None else super().link_in_use

    @property
    def loss_metric(self) -> str:
        """Squared error, where that is the loss."""
        return "mse" if self.loss == "squared" else "loss"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The label's mean, in a list."""
        if label_mean is not None and self.loss == "squared_log":
            return [math.log1p(max(label_mean, -0.5))]
        return [0.0 if label_mean is None else label_mean]

    def fit_bias(self, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
        """A quantile, the mean of logarithms, or what minimises the loss."""
        if self.loss in ("squared", "absolute", "quantile"):
            level = self.level if self.loss == "quantile" else 0.5
            return None if self.loss == "squared" else [float(labels_S.quantile(level))]
        return minimising_bias(self, labels_S, weight_S)

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label that is not finite, or has no logarithm."""
        check_all(torch.isfinite(labels_B), labels_B, column, "a finite number")
        if self.loss == "squared_log":
            allowed = "a number above -1 for loss='squared_log'; correct it or drop the row"
            check_all(labels_B > -1, labels_B, column, allowed)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """(logit - y)^2, or the other loss."""
        if self.loss == "squared":
            return (logits_BC[:, 0] - labels_B) ** 2
        return self._general(logits_BC, labels_B)[0]

    def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """2 (logit - y), or that of the other loss."""
        if self.loss == "squared":
            return 2.0 * (logits_BC - labels_B[:, None])
        return self._general(logits_BC, labels_B)[1][:, None]

    def _general(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        logits_B = logits_BC[:, 0]
        if self.loss == "huber":
            return losses.huber(logits_B, labels_B, delta=self.delta)
        if self.loss == "quantile":
            return losses.quantile(logits_B, labels_B, level=self.level)
        functions = {
            "absolute": losses.absolute,
            "log_cosh": losses.log_cosh,
            "squared_log": losses.squared_log,
        }
        return functions[self.loss](logits_B, labels_B)


@dataclass(frozen=True, kw_only=True)
class _Amount(Head):
    """A number of at least 0 whose logarithm is the logit."""

    kind: HeadKind = "regression"
    link: ClassVar[Link | None] = "exp"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """The logarithm of the label's mean, in a list."""
        return [math.log(label_mean) if label_mean and label_mean > 0 else 0.0]

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label below 0."""
        if not within(labels_B, 0, torch.finfo(labels_B.dtype).max):
            valid_B = torch.isfinite(labels_B) & (labels_B >= 0)
            allowed = f"a number of at least 0 for a {type(self).__name__} head; correct it or "
            check_all(valid_B, labels_B, column, f"{allowed}use head='regression'")


@register_head("poisson")
class Poisson(_Amount):
    """Counts: the prediction is the rate exp(logit), the loss half the Poisson deviance.

    See :func:`widedeep.models.losses.poisson`.

    Example:
        >>> import torch
        >>> Poisson().gradient(torch.zeros(1, 1), torch.tensor([3.0])).item()
        -2.0
    """

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Half the deviance, and exp(logit) - y."""
        losses_B, slopes_B = losses.poisson(logits_BC[:, 0], labels_B)
        return losses_B, slopes_B[:, None]


@register_head("tweedie")
class Tweedie(_Amount):
    """Amounts with many zeros: the prediction is the mean exp(logit).

    See :func:`widedeep.models.losses.tweedie`.

    Args:
        power: Variance is proportional to the mean to this power, 1 < power < 2: near 1 for counts,
            near 2 for amounts.
    """

    power: Annotated[float, Allowed(lambda x: 1 < x < 2, "1 < power < 2")] = 1.5

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The negative log likelihood but for a constant."""
        losses_B, slopes_B = losses.tweedie(logits_BC[:, 0], labels_B, power=self.power)
        return losses_B, slopes_B[:, None]


@register_head("ziln")
class ZeroInflatedLognormal(_Amount):
    """Amounts that are 0 or log-normal, from three logits (Wang, Liu and Miao 2019).

    The prediction is the mean, p exp(mu + sigma² / 2), as of a customer's lifetime value. See
    :func:`widedeep.models.losses.zero_inflated_lognormal`.
    """

    link: ClassVar[Link | None] = "ziln"

    @property
    def width(self) -> int:
        """Logits of p, of mu, and of sigma before its softplus."""
        return 3

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """Half a chance of the mean; a sample of labels gives the better one."""
        (mean,) = super().initial_bias(label_mean)
        return [0.0, mean, math.log(math.e - 1)]

    def fit_bias(self, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
        """Rate of amounts above 0, mean and deviation of their logarithms."""
        logs = labels_S[labels_S > 0].log()
        if not len(logs) > 1:
            return None
        rate = min(len(logs) / len(labels_S), 1 - 0.5 / len(labels_S))
        sigma = max(float(logs.std(correction=0)), 0.01)
        return [math.log(rate / (1 - rate)), float(logs.mean()), math.log(math.expm1(sigma))]

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The negative log likelihood."""
        return losses.zero_inflated_lognormal(logits_BC, labels_B)


@register_head("ranking")
class Ranking(Head):
    """The order of a request's candidates; the score is the logit, of meaning within a request.

    ``FeatureSpec(group=...)`` names the request, whose rows a batch holds all or none of. Labels
    are relevances from 0 to 1: 1 for a click.

    Args:
        loss: ``"softmax"``: cross-entropy over the candidates
            (:func:`widedeep.models.losses.request_softmax`), or ``"pairs"``: BPR
            (:func:`widedeep.models.losses.request_pairs`).
    """

    kind: HeadKind = "ranking"
    loss: Literal["softmax", "pairs"] = "softmax"

    reads_requests: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("loss", self.loss in ("softmax", "pairs"), "'softmax' or 'pairs'")

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label outside 0 to 1."""
        if not within(labels_B, 0, 1):
            valid_B = (labels_B >= 0) & (labels_B <= 1)
            check_all(valid_B, labels_B, column, "a relevance from 0 to 1 for a ranking head")

    def request_losses_and_gradient(
        self, logits_BC: Tensor, labels_B: Tensor, weight_B: Tensor, requests_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of the candidates against others of their requests."""
        function = losses.request_softmax if self.loss == "softmax" else losses.request_pairs
        losses_B, slopes_B = function(logits_BC[:, 0], labels_B, weight_B, requests_B)
        return losses_B, slopes_B[:, None]


@dataclass(frozen=True, kw_only=True)
class FunctionHead(Head):
    """A loss of one's own: a function of logits and labels, whose gradient is autograd's.

    In TOML: ``head = { kind = "regression", loss = "NAME", link = "exp" }`` with a loss that is
    registered (:func:`widedeep.models.losses.register_loss`).

    Args:
        loss: The function, or the name that it is registered by. A function that is not registered
            trains and exports, but a checkpoint of it is read by Python code alone.
        link: From logits to predictions; None: the kind's.
        classes: Number of classes of a multi-class or multi-label head; None: the schema's.

    Shape:
        The loss maps logits (B,), or (B, C) for several columns, and labels (B,), or (B, C) for a
        multi-label head, to losses (B,).

    Example:
        >>> import torch
        >>> head = FunctionHead(
        ...     kind="regression", loss=lambda z, y: (z.exp() - y) ** 2, link="exp"
        ... )
        >>> head.gradient(torch.zeros(1, 1), torch.ones(1) * 2).item()
        -2.0
    """

    kind: HeadKind = "regression"
    loss: Any = None
    link: Link | None = None  # type: ignore[misc]
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss, str):
            losses.find_loss(self.loss)
        elif not callable(self.loss):
            raise self.refusal(
                f"got loss={show_value(self.loss)}, expected a function of logits and labels, or "
                "the name of a registered one"
            )
        self.check_range("kind", self.kind in HEAD_KINDS[:-1], f"one of {HEAD_KINDS[:-1]}")

    @property
    def function(self) -> LossFunction:
        """The loss."""
        return losses.find_loss(self.loss) if isinstance(self.loss, str) else self.loss

    def for_schema(self, schema: Schema) -> Head:
        """Take the number of classes from the schema."""
        return replace(self, classes=self.classes or len(schema.classes.get(self.name, ())) or None)

    @property
    def width(self) -> int:
        """One logit a class, three for the link ``"ziln"``, else one."""
        if self.kind in ("multiclass", "multilabel"):
            return self.classes or 2
        return 3 if self.link == "ziln" else 1

    @property
    def _range(self) -> Head:
        """A head of the kind, which checks the labels."""
        heads = {"binary": Binary, "multilabel": Multilabel, "regression": Regression}
        kind = heads.get(self.kind)
        return Multiclass(classes=self.width) if kind is None else kind()

    def check_labels(self, labels_B: Tensor, column: str = "label") -> None:
        """Raise a :class:`DataError` for a label outside the range of the kind."""
        self._range.check_labels(labels_B, column)

    def initial_bias(self, label_mean: float | None) -> list[float]:
        """What the link makes the label's mean of, where it can."""
        if self.width > 1 or label_mean is None:
            return [0.0] * self.width
        inverse: dict[str, Callable[[float], float]] = {
            "exp": math.log,
            "expm1": math.log1p,
            "identity": float,
        }
        inverse["sigmoid"] = lambda p: math.log(p / (1 - p))
        inverse["softplus"] = lambda y: y + math.log(-math.expm1(-y))
        try:
            return [inverse[self.link_in_use](label_mean)]
        except (ValueError, ZeroDivisionError):
            return [0.0]

    def fit_bias(self, labels_S: Tensor, weight_S: Tensor) -> list[float] | None:
        """Minimise the loss."""
        return None if self.width > 1 else minimising_bias(self, labels_S, weight_S)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Losses by the function."""
        return self.function(logits_BC[:, 0] if self.width == 1 else logits_BC, labels_B)

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Losses by the function, their gradient by autograd."""
        return losses.by_autograd(self.function, logits_BC, labels_B)


def _check_weights(
    head: Head, option: str, weights: tuple[float, ...] | Mapping[str, float]
) -> None:
    numbers = weights.values() if isinstance(weights, Mapping) else weights
    for number in numbers:
        valid = isinstance(number, (int, float)) and 0 < number < math.inf
        head.check_range(option, valid, "numbers > 0")


def _in_order(
    head: Head, option: str, weights: tuple[float, ...] | Mapping[str, float], schema: Schema
) -> tuple[float, ...]:
    """Return the weights of classes in the schema's order."""
    if not isinstance(weights, Mapping):
        return tuple(weights)
    classes = schema.classes.get(head.name, ())
    for name in weights:
        if name not in classes:
            raise head.refusal(f"got {option} for class {name!r}; {nearest(name, classes)}")
    return tuple(float(weights.get(name, 1.0)) for name in classes)
