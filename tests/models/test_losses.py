"""Losses against their published equations, and their gradients against autograd in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from widedeep.errors import ConfigError
from widedeep.models import losses
from widedeep.models.head_base import minimising_bias
from widedeep.models.heads import (
    Binary,
    FunctionHead,
    Head,
    Multiclass,
    Multilabel,
    Poisson,
    Regression,
    Tweedie,
    ZeroInflatedLognormal,
)

RANDOM = torch.Generator().manual_seed(3)
REAL = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0, 40.0], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 1.0, 3.0, 0.0, 12.0, 2.0], dtype=torch.float64)
AMOUNTS = torch.tensor([0.0, 0.3, 7.0, 0.0, 120.0, 1.0], dtype=torch.float64)
BITS = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.3], dtype=torch.float64)
CLASSES = torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0, 2.0], dtype=torch.float64)
LISTS = (torch.rand(6, 4, generator=RANDOM) > 0.5).double()


def focal(z: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(z)
    return -y * (1 - p) ** 1.5 * torch.log(p) - (1 - y) * p**1.5 * torch.log(1 - p)


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    target = 0.8 * y + 0.1
    return F.binary_cross_entropy_with_logits(
        z, target, pos_weight=torch.tensor(3.0), reduction="none"
    )


def weighted_classes(z: Tensor, y: Tensor) -> Tensor:
    plain = F.cross_entropy(z, y.long(), reduction="none", label_smoothing=0.2)
    return torch.tensor([1.0, 2.0, 0.5])[y.long()] * plain


def deviance(z: Tensor, y: Tensor) -> Tensor:
    return torch.exp(z) - y + torch.where(y > 0, y * torch.log(y.clamp_min(1e-9)), 0.0) - y * z


def tweedie(z: Tensor, y: Tensor) -> Tensor:
    mean = torch.exp(z)
    return -y * mean ** (1 - 1.3) / (1 - 1.3) + mean ** (2 - 1.3) / (2 - 1.3)


def lognormal(z: Tensor, y: Tensor) -> Tensor:
    bought = (y > 0).double()
    amount = torch.distributions.LogNormal(z[:, 1], F.softplus(z[:, 2]))
    chance = F.binary_cross_entropy_with_logits(z[:, 0], bought, reduction="none")
    return chance - bought * amount.log_prob(torch.where(y > 0, y, torch.ones_like(y)))


CASES: list[tuple[Head, Tensor, Callable[[Tensor, Tensor], Tensor]]] = [
    (Binary(loss="focal", gamma=1.5), BITS, focal),
    (Binary(smoothing=0.2, pos_weight=3.0), BITS, smoothed),
    (
        Multiclass(classes=3, class_weights=(1.0, 2.0, 0.5), smoothing=0.2),
        CLASSES,
        weighted_classes,
    ),
    (
        Multilabel(classes=4),
        LISTS,
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1),
    ),
    (Regression(loss="absolute"), REAL, lambda z, y: (z - y).abs()),
    (Regression(loss="huber", delta=0.5), REAL, lambda z, y: F.huber_loss(z, y, "none", delta=0.5)),
    (
        Regression(loss="quantile", level=0.9),
        REAL,
        lambda z, y: torch.where(y > z, 0.9 * (y - z), 0.1 * (z - y)),
    ),
    (Regression(loss="log_cosh"), REAL, lambda z, y: torch.log(torch.cosh(z - y))),
    (Regression(loss="squared_log"), COUNTS, lambda z, y: (z - torch.log(1 + y)) ** 2),
    (Poisson(), COUNTS, deviance),
    (Tweedie(power=1.3), AMOUNTS, tweedie),
    (ZeroInflatedLognormal(), AMOUNTS, lognormal),
]


@pytest.mark.parametrize(
    ("head", "labels", "equation"),
    CASES,
    ids=[f"{type(c[0]).__name__}-{i}" for i, c in enumerate(CASES)],
)
def test_a_loss_is_its_equation_and_its_gradient_the_derivative(
    head: Head, labels: Tensor, equation: Callable[[Tensor, Tensor], Tensor]
) -> None:
    logits = torch.randn(6, head.width, dtype=torch.float64, generator=RANDOM).requires_grad_()
    expected = equation(logits if head.width > 1 else logits[:, 0], labels)
    values, gradient = head.losses_and_gradient(logits.detach(), labels)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-10, atol=1e-10)
    (slopes,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, slopes, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(head.losses(logits.detach(), labels), values)
    torch.testing.assert_close(head.gradient(logits.detach(), labels), gradient)
    single = head.losses_and_gradient(logits.detach().float(), labels.float())[1]
    torch.testing.assert_close(single.double(), slopes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [50.0, 400.0])
def test_far_logits_stay_finite(size: float) -> None:
    for sign in (-size, size):
        logits = torch.full((2,), sign)
        for gamma in (0.0, 2.0):
            values, slopes = losses.logistic(logits, torch.tensor([0.0, 1.0]), gamma=gamma)
            assert torch.isfinite(values).all() and torch.isfinite(slopes).all()
        product = losses.product_of_probabilities(logits, logits, torch.tensor([0.0, 1.0]))
        assert all(bool(torch.isfinite(part).all()) for part in product)


def test_the_product_of_two_heads() -> None:
    own, other = torch.randn(2, 5, dtype=torch.float64, generator=RANDOM).requires_grad_().unbind()
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    p = torch.sigmoid(own) * torch.sigmoid(other)
    expected = F.binary_cross_entropy(p, labels, reduction="none")
    values, *slopes = losses.product_of_probabilities(own.detach(), other.detach(), labels)
    torch.testing.assert_close(values, expected.detach())
    for slope, leaf in zip(slopes, (own, other), strict=True):
        (derivative,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
        torch.testing.assert_close(slope, derivative)


def plain_softmax(z: Tensor, y: Tensor) -> Tensor:
    return -y * torch.log_softmax(z, dim=0)


def plain_pairs(z: Tensor, y: Tensor) -> Tensor:
    rows = []
    for i in range(len(z)):
        lower = [j for j in range(len(z)) if y[j] < y[i]]
        total = sum((F.softplus(z[j] - z[i]) for j in lower), torch.zeros((), dtype=z.dtype))
        rows.append(total / max(len(lower), 1))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("function", "plain"),
    [(losses.request_softmax, plain_softmax), (losses.request_pairs, plain_pairs)],
)
def test_losses_within_requests(
    function: Callable[..., tuple[Tensor, Tensor]],
    plain: Callable[[Tensor, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_PAIRS_AT_ONCE", 7)
    requests = torch.tensor([2, 0, 1, 0, 2, 2, 0, 3, 3])
    labels = torch.tensor([1, 0, 1, 1, 0, 0.5, 0, 0, 0], dtype=torch.float64)
    weight = torch.rand(9, dtype=torch.float64, generator=RANDOM)
    logits = torch.randn(9, dtype=torch.float64, generator=RANDOM).requires_grad_()
    expected = torch.zeros(9, dtype=torch.float64)
    for request in range(4):
        rows = torch.nonzero(requests == request)[:, 0]
        expected = expected.index_put((rows,), plain(logits[rows], labels[rows]))
    values, slopes = function(logits.detach(), labels, weight, requests)
    torch.testing.assert_close(values, expected.detach())
    (derivative,) = torch.autograd.grad((weight * expected).sum(), logits)
    torch.testing.assert_close(slopes, derivative)


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        (Binary(loss="focal", gamma=2.0), torch.tensor([0.0, 0, 0, 1])),
        (Regression(loss="huber"), torch.tensor([0.0, 1, 2, 50])),
        (Regression(loss="log_cosh"), torch.tensor([0.0, 1, 2, 50])),
        (Regression(loss="squared_log"), torch.tensor([0.0, 1, 2, 50])),
        (FunctionHead(loss=lambda z, y: (z.exp() - y) ** 2, link="exp"), torch.tensor([1.0, 5])),
    ],
    ids=lambda value: getattr(value, "loss", "") if isinstance(value, Head) else "",
)
def test_the_first_bias_minimises_the_loss(head: Head, labels: Tensor) -> None:
    labels = labels.double()
    bias = minimising_bias(head, labels, torch.ones_like(labels))
    assert bias is not None
    logits = torch.tensor(bias, dtype=torch.float64).expand(len(labels), -1)
    assert head.gradient(logits, labels).mean(0).abs().max() < 1e-5
    if type(head) is not FunctionHead and head.kind != "binary":
        fitted = head.fit_bias(labels, torch.ones_like(labels))
        assert fitted == pytest.approx(bias)


def test_closed_biases() -> None:
    ones = torch.ones(5, dtype=torch.float64)
    amounts = torch.tensor([0.0, 0, 0, math.e, math.e**3], dtype=torch.float64)
    assert Poisson().initial_bias(3.0) == [math.log(3.0)]
    assert Regression(loss="absolute").fit_bias(amounts, ones) == [0.0]
    rate, mean, raw = ZeroInflatedLognormal().fit_bias(amounts, ones) or []
    assert 1 / (1 + math.exp(-rate)) == pytest.approx(0.4) and mean == pytest.approx(2.0)
    assert np.logaddexp(0, raw) == pytest.approx(1.0)
    bias = Binary(smoothing=0.1, pos_weight=2.0).initial_bias(0.2)
    gradient = Binary(smoothing=0.1, pos_weight=2.0).gradient(
        torch.tensor(bias).expand(5, 1), torch.tensor([1.0, 0, 0, 0, 0])
    )
    assert gradient.sum().abs() < 1e-5


def test_losses_are_registered_once() -> None:
    @losses.register_loss("quartic")
    def quartic(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels) ** 4

    try:
        assert FunctionHead(loss="quartic").gradient(torch.ones(1, 1), torch.zeros(1)).item() == 4
        with pytest.raises(ConfigError, match="registered already"):
            losses.register_loss("quartic")(lambda logits, labels: logits)
        with pytest.raises(ConfigError, match="did you mean 'quartic'"):
            FunctionHead(loss="quartik")
    finally:
        losses.unregister_loss("quartic")
    with pytest.raises(ConfigError, match="not registered"):
        FunctionHead(loss="quartic")
    with pytest.raises(ConfigError, match="one loss per example"):
        FunctionHead(loss=lambda z, y: z.sum()).gradient(torch.ones(2, 1), torch.ones(2))
