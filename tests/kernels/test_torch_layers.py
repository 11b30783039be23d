"""Hidden layers in torch's graph: the native tower against torch's own operations in float64."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn

from widedeep.kernels.torch_device import seeded
from widedeep.kernels.torch_layers import TowerRoom, native_layers
from widedeep.models.blocks import HiddenLayers, linear, pair_products

CPU = torch.device("cpu")


def made(**options: object) -> HiddenLayers:
    generator = torch.Generator().manual_seed(3)
    layers = HiddenLayers(10, [16, 7], generator=generator, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return layers


def passed(layers: nn.Module, hidden: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return output, input's gradient, then every gradient and buffer."""
    layers.zero_grad()
    leaf = hidden.detach().clone().requires_grad_()
    out = layers(leaf)
    out.backward(grad)
    assert leaf.grad is not None
    found = [out.detach(), leaf.grad, *(p.grad for p in layers.parameters()), *layers.buffers()]
    return tuple(t.clone() for t in found if t is not None)


def is_native(layers: nn.Module, hidden: Tensor) -> bool:
    return "DenseLayers" in type(layers(hidden.clone().requires_grad_()).grad_fn).__name__


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "elu", "leaky_relu", "silu"])
@pytest.mark.parametrize("batch_norm", [False, True, "tensorflow"])
def test_equals_torch_in_float64(activation: str, batch_norm: bool | str) -> None:
    layers = made(activation=activation, batch_norm=batch_norm)
    hidden, grad = torch.randn(40, 10), torch.randn(40, 7)
    exact = passed(copy.deepcopy(layers).double(), hidden.double(), grad.double())
    with native_layers(2):
        assert is_native(copy.deepcopy(layers), hidden)
        got = passed(layers, hidden, grad)
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-5, atol=2e-5)


def test_two_calls_add_their_gradients_and_a_frozen_layer_has_none() -> None:
    layers = made(activation="tanh")
    layers.layers[0].weight.requires_grad_(False)
    hidden, other = torch.randn(9, 10), torch.randn(5, 10)

    def gradients() -> list[Tensor | None]:
        layers.zero_grad()
        (layers(hidden).sum() + layers(other).square().sum()).backward()
        return [p.grad for p in layers.parameters()]

    expected = [None if g is None else g.clone() for g in gradients()]
    with native_layers(1):
        got = gradients()
    assert got[0] is None and expected[0] is None
    for one, wanted in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, wanted)


def test_dropout_is_a_function_of_torchs_seed_alone() -> None:
    layers, hidden = made(dropout=0.5), torch.randn(64, 10)

    def drawn(threads: int, seed: int) -> Tensor:
        with native_layers(threads), seeded(CPU, seed):
            return torch.stack([layers(hidden), layers(hidden)]).detach()

    first = drawn(1, 7)
    assert torch.equal(first, drawn(3, 7))
    assert not torch.equal(first, drawn(1, 8))
    assert not torch.equal(first[0], first[1])
    assert 0.4 < (first == 0).float().mean() < 0.95


def test_torch_computes_what_the_tower_does_not_know() -> None:
    hidden = torch.randn(6, 10)
    with native_layers(1):
        assert is_native(made(), hidden)
        assert not is_native(made().eval(), hidden)
        assert not is_native(made().double(), hidden.double())
        hooked = made()
        hooked.layers[0].register_forward_hook(lambda module, inputs, out: 2 * out)
        assert not is_native(hooked, hidden)
        frozen = made(batch_norm=True)
        frozen.norms[0].eval()  # type: ignore[index]
        assert not is_native(frozen, hidden)
        with torch.no_grad():
            assert made()(hidden).grad_fn is None
    assert not is_native(made(), hidden)


def test_a_weight_changed_between_the_passes_is_found() -> None:
    layers = made()
    with native_layers(1):
        out = layers(torch.randn(4, 10))
    with torch.no_grad():
        layers.layers[0].weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_second_backward_pass_gives_the_same() -> None:
    layers, hidden = made(dropout=0.3, batch_norm=True), torch.randn(8, 10, requires_grad=True)
    with native_layers(2):
        out = layers(hidden)
    first = torch.autograd.grad(out.sum() * 3, hidden, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(out.sum() * 3, hidden)[0], first)


def test_layers_that_ran_natively_are_copied_and_pickled() -> None:
    layers, hidden = made(batch_norm=True), torch.randn(6, 10)
    with native_layers(1):
        layers(hidden).sum().backward()
    for other in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        torch.testing.assert_close(other.eval()(hidden), layers.eval()(hidden))


def test_an_input_whose_numbers_lie_apart_or_that_is_empty() -> None:
    layers = made()
    apart = torch.randn(10, 6).t()
    with native_layers(1):
        torch.testing.assert_close(layers(apart), layers(apart.contiguous()))
        out = layers(torch.zeros(0, 10))
        out.sum().backward()
    assert out.shape == (0, 7)
    assert all((p.grad == 0).all() for p in layers.parameters())


def test_a_batch_of_one_example_is_normalised_by_the_running_figures() -> None:
    layers, hidden = made(batch_norm=True), torch.randn(1, 10)
    with native_layers(1):
        torch.testing.assert_close(layers(hidden), layers.eval()(hidden))
        layers.train()(torch.randn(8, 10))
        assert not torch.allclose(layers.train()(hidden), made(batch_norm=True)(hidden))


def test_products_of_pairs_equal_torchs_from_any_memory() -> None:
    buffer = torch.randn(12, 40)
    apart = buffer[:, 2:32].view(12, 5, 6)
    for fields in (apart, apart.contiguous(), torch.randn(6, 12, 5).permute(1, 2, 0)):
        exact = fields.double().detach().requires_grad_()
        leaf, grad = fields.detach().requires_grad_(), torch.randn(12, 6)
        pair_products(exact).backward(grad.double())
        with native_layers(2):
            out = pair_products(leaf)
            assert "PairProducts" in type(out.grad_fn).__name__
            out.backward(grad)
        torch.testing.assert_close(out.double(), pair_products(exact), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_a_wide_linear_layer_equals_torchs_and_a_hook_is_heard() -> None:
    layer, hidden = nn.Linear(130, 128), torch.randn(9, 130)
    expected = passed(layer, hidden, torch.ones(9, 128))
    with native_layers(2):
        assert "DenseLayers" in type(linear(layer, hidden).grad_fn).__name__
        wrapped = _Linear(layer)
        for one, other in zip(passed(wrapped, hidden, torch.ones(9, 128)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        layer.register_forward_hook(lambda module, inputs, out: out + 1)
        torch.testing.assert_close(linear(layer, hidden), expected[0] + 1)


class _Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(self.layer, hidden)


def test_a_step_leaves_its_memory_at_once() -> None:
    def rooms() -> set[int]:
        return {id(thing) for thing in gc.get_objects() if type(thing) is TowerRoom}

    gc.collect()
    gc.disable()
    try:
        others = rooms()
        with native_layers(1):
            made()(torch.ones(3, 10, requires_grad=True)).sum().backward()
        assert rooms() <= others
    finally:
        gc.enable()
