"""Dense layers of torch modules in training, computed by the native tower, alone or in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from widedeep import kernels
from widedeep.kernels import Tower, TowerLayer, TowerNorm


class BiasedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose moving variance follows the batch's biased variance, as TensorFlow's.

    Shape:
        (B, H) -> (B, H)
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the normalised rows; in training, follow their mean and variance."""
        if not self.training:
            return super().forward(hidden)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            variance, mean = torch.var_mean(hidden.to(self.running_mean.dtype), dim=0, correction=0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
            self.num_batches_tracked += 1
        return nn.functional.batch_norm(
            hidden, None, None, self.weight, self.bias, training=True, eps=self.eps
        )


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer, then its activation, dropout and batch norm."""

    linear: nn.Linear  # Its weight, and its bias if it has one
    activation: str = "linear"  # As :class:`widedeep.kernels.TowerLayer` names it
    dropout: float = 0.0  # Probability to drop a unit, 0 <= dropout < 1
    norm: nn.BatchNorm1d | None = None  # Normalises the outputs, or None

    @property
    def parameters(self) -> list[Tensor]:
        """The weight, then bias, norm's weight and norm's bias, where there are any."""
        norm = [] if self.norm is None else [self.norm.weight, self.norm.bias]
        bias: Tensor | None = self.linear.bias
        return [self.linear.weight, *([] if bias is None else [bias]), *norm]

    @property
    def is_simple(self) -> bool:
        """True if its outputs tell their derivatives by the sums."""
        simple = self.activation == "linear" or (self.activation == "relu" and self.norm is None)
        return simple and self.dropout == 0

    @property
    def is_known(self) -> bool:
        """True if the native tower computes what the modules do in training."""
        norm = self.norm
        return norm is None or (
            norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
        )


@dataclass(slots=True)
class TowerRoom:
    """What the passes over a batch of B rows leave, by layer."""

    layers: Sequence[DenseLayer]  # The layers
    rows: int  # Most rows of a batch
    empty: Callable[[int, int], Tensor] = torch.empty  # Makes a matrix of float32 of this shape
    outputs: list[Tensor] = field(init=False)
    grads: list[Tensor] = field(init=False)
    slopes: list[Tensor | None] = field(init=False)
    normed: list[Tensor | None] = field(init=False)
    grad_input: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Make it."""

        def made(layer: DenseLayer) -> Tensor:
            return self.empty(self.rows, layer.linear.out_features)

        self.outputs = [made(layer) for layer in self.layers]
        self.grads = [made(layer) for layer in self.layers]
        self.slopes = [None if layer.is_simple else made(layer) for layer in self.layers]
        self.normed = [None if layer.norm is None else made(layer) for layer in self.layers]
        self.grad_input = self.empty(self.rows, self.layers[0].linear.in_features)


def make_tower(
    input_BX: Tensor, room: TowerRoom, gradients: Sequence[Tensor], *, bf16: bool = False
) -> Tower:
    """Bind layers, a batch's input and the room for it.

    Shape:
        input_BX (B, X)
    """
    rows, left = len(input_BX), list(gradients)

    def array(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach()[:rows].numpy()

    layers = []
    for i, layer in enumerate(room.layers):
        linear, norm = layer.linear, layer.norm
        weight_grad = left.pop(0)
        bias_grad = None if linear.bias is None else left.pop(0)
        layers.append(
            TowerLayer(
                weight=linear.weight.detach().numpy(),
                output=array(room.outputs[i]),
                grad=array(room.grads[i]),
                weight_grad=weight_grad.numpy(),
                bias=None if linear.bias is None else linear.bias.detach().numpy(),
                bias_grad=None if bias_grad is None else bias_grad.numpy(),
                slope=array(room.slopes[i]),
                activation=layer.activation,
                dropout=layer.dropout,
                norm=None if norm is None else _bound_norm(norm, left, array(room.normed[i])),
            )
        )
    return Tower(
        input_BX=input_BX.detach().numpy(),
        layers=layers,
        grad_input_BX=array(room.grad_input),
        bf16=bf16,
    )


def _bound_norm(norm: nn.BatchNorm1d, gradients: list[Tensor], normed: Any) -> TowerNorm:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None
    return TowerNorm(
        weight=norm.weight.detach().numpy(),
        bias=norm.bias.detach().numpy(),
        weight_grad=gradients.pop(0).numpy(),
        bias_grad=gradients.pop(0).numpy(),
        running_mean=norm.running_mean.numpy(),
        running_var=norm.running_var.numpy(),
        inverse=torch.empty(norm.num_features).numpy(),
        normed=normed,
        momentum=norm.momentum,
        eps=norm.eps,
        biased=isinstance(norm, BiasedBatchNorm),
    )


def count_batch(layers: Sequence[DenseLayer], batches: int = 1) -> None:
    """Do what a norm's forward pass in training does beside its running figures."""
    for layer in layers:
        if layer.norm is not None and layer.norm.num_batches_tracked is not None:
            layer.norm.num_batches_tracked += batches


# ---- in a graph of torch's -----------------------------------------------------------------------

_threads: ContextVar[int] = ContextVar("native_layers", default=0)


@contextmanager
def native_layers(threads: int) -> Iterator[None]:
    """Let hidden layers compute natively, with their gradients, while a training step runs.

    Elsewhere (a bundle's export, a loop of one's own) they are torch's operations.

    Example:
        >>> with native_layers(2):
        ...     runs_native(torch.zeros(3, 4))
        True
        >>> runs_native(torch.zeros(3, 4))
        False
    """
    before = _threads.set(threads)
    try:
        yield
    finally:
        _threads.reset(before)


def native_threads() -> int:
    """Return the threads of :func:`native_layers`, or 0 outside."""
    return _threads.get()


def runs_native(hidden: Tensor) -> bool:
    """Tell whether what is done with this input shall be computed natively."""
    return (
        _threads.get() > 0
        and hidden.dtype == torch.float32
        and hidden.device.type == "cpu"
        and torch.is_grad_enabled()
    )


def dense_layers(layers: Sequence[DenseLayer], hidden: Tensor) -> Tensor:
    """Return what the layers compute in training, as one operation of torch's graph.

    Units are dropped by a key from torch's generator: equal seeds drop equal units.

    Shape:
        (B, X) -> (B, H)

    Example:
        >>> linear = nn.Linear(4, 2)
        >>> hidden = torch.ones(3, 4, requires_grad=True)
        >>> with native_layers(1):
        ...     out = dense_layers([DenseLayer(linear, "relu")], hidden)
        >>> out.sum().backward()
        >>> bool((hidden.grad[0] == linear.weight[out[0] > 0].sum(0)).all())
        True
    """
    parameters = [parameter for layer in layers for parameter in layer.parameters]
    result: Tensor = _DenseLayers.apply(layers, hidden, *parameters)  # type: ignore[no-untyped-call]
    return result


class _DenseLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[DenseLayer], hidden: Tensor, *parameters: Tensor
    ) -> Tensor:
        input_BX = hidden if hidden.stride(1) == 1 else hidden.contiguous()
        room = TowerRoom(layers, len(hidden))
        ctx.room, ctx.threads = room, _threads.get()
        ctx.gradients = [torch.empty_like(parameter) for parameter in parameters]
        ctx.tower = make_tower(input_BX, room, ctx.gradients)
        drops = any(layer.dropout for layer in layers)
        ctx.tower.forward(ctx.threads, int(torch.randint(1 << 62, ())) if drops else 0)
        count_batch(layers)
        # Another tensor than the room's: it leads to this node, which holds the room, and a circle
        # would keep a step's memory until the interpreter looks for such.
        output = room.outputs[-1].data
        # Not read from there: a change in place is found there.
        ctx.save_for_backward(input_BX, output, *parameters)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BH: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.saved_tensors
        ctx.room.grads[-1].copy_(grad_BH)
        ctx.tower.backward(ctx.threads).wait()
        wanted = ctx.needs_input_grad[1:]
        found = [ctx.room.grad_input, *ctx.gradients]
        return None, *(grad if needed else None for grad, needed in zip(found, wanted, strict=True))


def pair_products(fields_BFD: Tensor) -> Tensor:
    """Return the sum over all pairs of fields of their elementwise products.

    Shape:
        (B, F, D) -> (B, D)

    Example:
        >>> pair_products(torch.tensor([[[1.0], [2.0], [3.0]]]))  # 1 * 2 + 1 * 3 + 2 * 3
        tensor([[11.]])
    """
    result: Tensor = _PairProducts.apply(fields_BFD)  # type: ignore[no-untyped-call]
    return result


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fields_BFD: Tensor) -> Tensor:
        rows, _, dim = fields_BFD.shape
        side_by_side = fields_BFD.stride(2) == 1 and fields_BFD.stride(1) == dim
        if not side_by_side:
            fields_BFD = fields_BFD.contiguous()
        ctx.threads = max(1, _threads.get())
        ctx.save_for_backward(fields_BFD)
        out_BD = torch.empty(rows, dim)
        kernels.pair_products(fields_BFD.flatten(1).numpy(), out_BD.numpy(), ctx.threads)
        return out_BD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> Tensor:
        (fields_BFD,) = ctx.saved_tensors
        grad_BFD = torch.empty(fields_BFD.shape)
        kernels.pair_products_grad(
            fields_BFD.detach().flatten(1).numpy(),
            grad_BD.contiguous().numpy(),
            grad_BFD.flatten(1).numpy(),
            ctx.threads,
        )
        return grad_BFD
