"""Losses: each example's loss and its gradient by the logits, in closed form.

Every function takes the logits of a head and its labels and returns losses (B,) and gradients of
the logits' shape, not weighted. The losses are torch operations, so that autograd can check the
gradients. σ is the logistic function, ζ(z) = log(1 + exp z) the softplus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from widedeep.errors import ConfigError, nearest

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
LossAndGradient: TypeAlias = tuple[Tensor, Tensor]

_registered: dict[str, LossFunction] = {}


def register_loss(name: str) -> Callable[[LossFunction], LossFunction]:
    """Make a loss known by a name, as a decorator of a function of logits and labels.

    A head then names it, in Python and in TOML, and so do its checkpoints:
    ``head = { kind = "regression", loss = "cauchy" }`` with ``imports = ["my_losses"]``.

    Args:
        name: Letters, digits and underscores.

    Shape:
        The function maps logits (B,) and labels (B,) to losses (B,); logits of several columns,
        as of a multi-class head, are (B, C).

    Raises:
        ConfigError: If the name is no identifier, or another loss's.

    Example:
        >>> import torch
        >>> from widedeep.models.heads import FunctionHead
        >>> from widedeep.models.losses import register_loss, unregister_loss
        >>> @register_loss("cauchy")
        ... def cauchy(logits, labels):
        ...     return torch.log1p((logits - labels) ** 2)
        >>> head = FunctionHead(kind="regression", loss="cauchy")
        >>> head.gradient(torch.ones(1, 1), torch.zeros(1)).item()
        1.0
        >>> unregister_loss("cauchy")
    """
    if not name.isidentifier():
        raise ConfigError(f"got a loss of the name {name!r}, expected letters, digits and _")

    def register(function: LossFunction) -> LossFunction:
        other = _registered.get(name)
        if other is not None and loss_path(other) != loss_path(function):
            raise ConfigError(f"loss {name!r} is registered already, as {loss_path(other)}")
        _registered[name] = function
        return function

    return register


def unregister_loss(name: str) -> None:
    """Forget a loss, such as one that a test registered."""
    _registered.pop(name, None)


def registered_losses() -> dict[str, LossFunction]:
    """Return the losses of one's own by name."""
    return dict(_registered)


def find_loss(name: str) -> LossFunction:
    """Return a registered loss, or raise a ConfigError."""
    if name not in _registered:
        known = nearest(name, _registered) if _registered else "none is registered"
        raise ConfigError(
            f"got a loss of the name {name!r}, which is not registered ({known}); name the module "
            "that registers it in imports, see widedeep.models.register_loss"
        )
    return _registered[name]


def loss_path(function: LossFunction) -> str:
    """Return where a loss function is defined."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def by_autograd(function: LossFunction, logits_BC: Tensor, labels: Tensor) -> LossAndGradient:
    """Evaluate a loss of one's own; logits of one column are passed as (B,)."""
    with torch.enable_grad():
        leaf = logits_BC.detach().requires_grad_()
        losses_B = function(leaf[:, 0] if leaf.shape[1] == 1 else leaf, labels)
        if not isinstance(losses_B, Tensor) or losses_B.shape != (len(logits_BC),):
            shape = tuple(losses_B.shape) if isinstance(losses_B, Tensor) else type(losses_B)
            raise ConfigError(
                f"loss {loss_path(function)}: returns {shape} for {len(logits_BC)} examples, "
                f"expected a tensor of one loss per example, ({len(logits_BC)},)"
            )
        (gradient,) = torch.autograd.grad(losses_B.sum(), leaf)
    return losses_B.detach(), gradient


# ---- classes ------------------------------------------------------------------------------------


def logistic(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    pos_weight: float | Tensor = 1.0,
    gamma: float = 0.0,
) -> LossAndGradient:
    """Cross-entropy of a logit z and a label y in [0, 1], elementwise.

    ``loss = a y' (1 - p)^γ ζ(-z) + (1 - y') p^γ ζ(z)`` with p = σ(z), y' = y (1 - ε) + ε / 2, the
    weight of positives a, and the focus γ (focal loss, Lin et al. 2017, without its α, which a
    stands for). γ = 0 is cross-entropy, ε the label smoothing of Szegedy et al. 2016.
    """
    target = labels * (1.0 - smoothing) + 0.5 * smoothing if smoothing else labels
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    cost_1, cost_0 = F.softplus(-logits), F.softplus(logits)  # -log p, -log(1 - p)
    if gamma:
        slope_1 = -(q**gamma) * (gamma * p * cost_1 + q)
        slope_0 = p**gamma * (gamma * q * cost_0 + p)
        cost_1, cost_0 = q**gamma * cost_1, p**gamma * cost_0
    else:
        slope_1, slope_0 = -q, p
    weight_1 = pos_weight * target
    losses = weight_1 * cost_1 + (1.0 - target) * cost_0
    return losses, weight_1 * slope_1 + (1.0 - target) * slope_0


def product_of_probabilities(
    own_B: Tensor, other_B: Tensor, labels_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of y and p = σ(z) σ(u): losses and the gradients by z and by u.

    The probability of a conversion of all impressions, pCTCVR = pCTR pCVR (Ma et al. 2018, ESMM).
    ``loss = y (ζ(-z) + ζ(-u)) - (1 - y) log(1 - p)``, and 1 - p = σ(-z) + σ(z) σ(-u); the
    derivative by z is σ(-z) (p - y) / (1 - p).
    """
    rest_B = torch.sigmoid(-own_B) + torch.sigmoid(own_B) * torch.sigmoid(-other_B)  # 1 - p
    rest_B = rest_B.clamp_min(torch.finfo(rest_B.dtype).tiny)
    cost_B = F.softplus(-own_B) + F.softplus(-other_B)
    losses_B = labels_B * cost_B - (1.0 - labels_B) * torch.log(rest_B)
    # (p - y) / (1 - p) = (1 - y) / (1 - p) - 1
    factor_B = (1.0 - labels_B) / rest_B - 1.0
    return losses_B, torch.sigmoid(-own_B) * factor_B, torch.sigmoid(-other_B) * factor_B


def softmax_cross_entropy(
    logits_BC: Tensor,
    labels_B: Tensor,
    *,
    class_weights: Sequence[float] = (),
    smoothing: float = 0.0,
) -> LossAndGradient:
    """Cross-entropy of the softmax p and class y: ``w_y (-Σ_c q_c log p_c)``.

    q = (1 - ε) 1[c = y] + ε / C with label smoothing ε (Szegedy et al. 2016); an example has the
    weight of its own class, for all of its terms.
    """
    classes_B = labels_B.long()
    logs_BC = torch.log_softmax(logits_BC, dim=1)
    n_classes = logits_BC.shape[1]
    target_BC = torch.full_like(logits_BC, smoothing / n_classes)
    target_BC[torch.arange(len(logits_BC), device=logits_BC.device), classes_B] += 1.0 - smoothing
    losses_B = -(target_BC * logs_BC).sum(dim=1)
    gradient_BC = torch.exp(logs_BC) - target_BC
    if class_weights:
        weight_B = torch.tensor(class_weights, dtype=logits_BC.dtype).to(logits_BC.device)
        weight_B = weight_B[classes_B]
        return weight_B * losses_B, weight_B[:, None] * gradient_BC
    return losses_B, gradient_BC


# ---- numbers ------------------------------------------------------------------------------------


def absolute(logits_B: Tensor, labels_B: Tensor) -> LossAndGradient:
    """``|z - y|``: the prediction is the median."""
    error_B = logits_B - labels_B
    return error_B.abs(), error_B.sign()


def huber(logits_B: Tensor, labels_B: Tensor, *, delta: float) -> LossAndGradient:
    """``e² / 2`` for |e| <= δ, else ``δ (|e| - δ / 2)``, with e = z - y (Huber 1964)."""
    error_B = logits_B - labels_B
    size_B = error_B.abs()
    losses_B = torch.where(size_B <= delta, 0.5 * error_B**2, delta * (size_B - 0.5 * delta))
    return losses_B, error_B.clamp(-delta, delta)


def quantile(logits_B: Tensor, labels_B: Tensor, *, level: float) -> LossAndGradient:
    """``max(τ (y - z), (τ - 1) (y - z))``: the τ-quantile (Koenker and Bassett 1978)."""
    error_B = labels_B - logits_B
    losses_B = torch.maximum(level * error_B, (level - 1.0) * error_B)
    low_B, any_B = (error_B < 0).to(logits_B.dtype), (error_B != 0).to(logits_B.dtype)
    return losses_B, low_B - level * any_B


def log_cosh(logits_B: Tensor, labels_B: Tensor) -> LossAndGradient:
    """``log cosh(z - y)``: squared for small errors, absolute for large ones; slope tanh(z - y)."""
    error_B = logits_B - labels_B
    return error_B.abs() + F.softplus(-2.0 * error_B.abs()) - math.log(2.0), error_B.tanh()


def squared_log(logits_B: Tensor, labels_B: Tensor) -> LossAndGradient:
    """``(z - log(1 + y))²`` for labels above -1; the prediction is exp(z) - 1."""
    error_B = logits_B - torch.log1p(labels_B)
    return error_B**2, 2.0 * error_B


def poisson(logits_B: Tensor, labels_B: Tensor) -> LossAndGradient:
    """Half the Poisson deviance of counts y and a rate exp(z): ``e^z - y z - y + y log y``.

    The negative log likelihood less that of the rate y (McCullagh and Nelder 1989, §2.3); the
    slope is ``e^z - y``.
    """
    rate_B = logits_B.exp()
    losses_B = rate_B - labels_B * logits_B - labels_B + torch.special.xlogy(labels_B, labels_B)
    return losses_B, rate_B - labels_B


def tweedie(logits_B: Tensor, labels_B: Tensor, *, power: float) -> LossAndGradient:
    """Negative Tweedie log likelihood of an amount y >= 0 of mean exp(z), 1 < ρ < 2.

    ``-y e^{(1 - ρ) z} / (1 - ρ) + e^{(2 - ρ) z} / (2 - ρ)``, without the term of y alone: a sum of
    a Poisson number of gamma variables (Yang, Qian and Zou 2018, equation 3).
    """
    first_B = labels_B * torch.exp((1.0 - power) * logits_B)
    second_B = torch.exp((2.0 - power) * logits_B)
    return second_B / (2.0 - power) - first_B / (1.0 - power), second_B - first_B


SMALLEST_SIGMA = 2.0**-12
"""The least σ of a log-normal, so that an exact fit has a finite likelihood."""


def zero_inflated_lognormal(logits_B3: Tensor, labels_B: Tensor) -> LossAndGradient:
    """Negative log likelihood of an amount that is 0, or log-normal (Wang, Liu and Miao 2019).

    The logits are (z, μ, s), with p = σ(z) the probability of an amount and σ = ζ(s):
    ``CE(1[y > 0], p) + 1[y > 0] (log y + log σ + log(2π) / 2 + (log y - μ)² / (2 σ²))``
    (their equation 4). Its mean, the prediction, is p exp(μ + σ² / 2).
    """
    logit_B, mean_B, raw_B = logits_B3.unbind(dim=1)
    positive_B = (labels_B > 0).to(logits_B3.dtype)
    log_B = torch.log(torch.where(labels_B > 0, labels_B, torch.ones_like(labels_B)))
    sigma_B = F.softplus(raw_B).clamp_min(SMALLEST_SIGMA)
    error_B = (log_B - mean_B) / sigma_B
    likelihood_B = log_B + sigma_B.log() + 0.5 * math.log(2.0 * math.pi) + 0.5 * error_B**2
    chance_B, slope_B = logistic(logit_B, positive_B)
    slopes = (
        slope_B,
        -positive_B * error_B / sigma_B,
        positive_B
        * (1.0 - error_B**2)
        / sigma_B
        * torch.where(sigma_B > SMALLEST_SIGMA, torch.sigmoid(raw_B), torch.zeros_like(raw_B)),
    )
    return chance_B + positive_B * likelihood_B, torch.stack(slopes, dim=1)


# ---- requests -----------------------------------------------------------------------------------


def request_softmax(
    logits_B: Tensor, labels_B: Tensor, weight_B: Tensor, requests_B: Tensor
) -> LossAndGradient:
    """Cross-entropy of the softmax over a request's candidates: ``y_i (log Σ_j e^{z_j} - z_i)``.

    Labels are relevances >= 0 (Cao et al. 2007; Bruch et al. 2019, equation 3). A request without a
    positive teaches nothing.

    Args:
        logits_B: One logit a candidate.
        labels_B: Relevance of each.
        weight_B: Weight of each candidate's loss.
        requests_B: Request of each candidate, 0 to R - 1.

    Returns:
        Losses, not weighted, and the gradient of their weighted sum.
    """
    count = int(requests_B.max()) + 1 if len(requests_B) else 0
    highest_R = logits_B.new_full((count,), -math.inf)
    highest_R = highest_R.scatter_reduce(0, requests_B, logits_B.detach(), "amax")
    powers_B = torch.exp(logits_B - highest_R[requests_B])
    total_R = logits_B.new_zeros(count).index_add(0, requests_B, powers_B)
    losses_B = labels_B * ((total_R.log() + highest_R)[requests_B] - logits_B)
    relevance_B = weight_B * labels_B
    relevance_R = logits_B.new_zeros(count).index_add(0, requests_B, relevance_B)
    share_B = powers_B / total_R[requests_B]
    return losses_B, relevance_R[requests_B] * share_B - relevance_B


_PAIRS_AT_ONCE = 1 << 20


def request_pairs(
    logits_B: Tensor, labels_B: Tensor, weight_B: Tensor, requests_B: Tensor
) -> LossAndGradient:
    """Bayesian personalised ranking within a request (Rendle et al. 2009, BPR-Opt).

    The loss of candidate i is the mean of ``ζ(z_j - z_i)`` over those of its request with a lower
    label, 0 if there are none. Arguments and result are those of :func:`request_softmax`.
    """
    order_B = torch.argsort(requests_B, stable=True)
    sizes_R = torch.bincount(requests_B)
    starts_R = torch.cumsum(sizes_R, 0) - sizes_R
    losses_B, gradient_B = torch.zeros_like(logits_B), torch.zeros_like(logits_B)
    pairs_B = torch.cumsum(sizes_R[requests_B], 0)  # pairs up to each candidate
    first = 0
    while first < len(logits_B):
        before = int(pairs_B[first - 1]) if first else 0
        stop = int(torch.searchsorted(pairs_B, before + _PAIRS_AT_ONCE, right=True))
        stop = max(stop, first + 1)
        anchors = torch.arange(first, stop, device=logits_B.device)
        sizes = sizes_R[requests_B[anchors]]
        i_P = torch.repeat_interleave(anchors, sizes)
        turn_P = torch.arange(len(i_P), device=logits_B.device)
        turn_P = turn_P - torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
        j_P = order_B[starts_R[requests_B[i_P]] + turn_P]
        lower_P = labels_B[j_P] < labels_B[i_P]
        i_P, j_P = i_P[lower_P], j_P[lower_P]
        count_B = torch.bincount(i_P, minlength=len(logits_B)).to(logits_B.dtype)
        margin_P = logits_B[j_P] - logits_B[i_P]
        losses_B = losses_B.index_add(0, i_P, F.softplus(margin_P) / count_B[i_P])
        slope_P = weight_B[i_P] * torch.sigmoid(margin_P) / count_B[i_P]
        gradient_B = gradient_B.index_add(0, j_P, slope_P).index_add(0, i_P, -slope_P)
        first = stop
    return losses_B, gradient_B
