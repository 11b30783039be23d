import copy
from typing import Any

import pytest
import torch
from torch import nn

from widedeep.models.mlp import MLPTower
from widedeep.models.tower import DeepInput
from widedeep.training.dense import NativeMLP, TorchMLP


def make(width: int, hidden: list[int], logits: int) -> tuple[MLPTower, nn.Linear]:
    generator = torch.Generator().manual_seed(3)
    tower = MLPTower(width, hidden, generator=generator)
    output = nn.Linear(hidden[-1], logits, bias=False)
    with torch.no_grad():
        for layer in tower.layers:
            layer.bias.uniform_(-0.5, 0.5, generator=generator)
    return tower, output


ENGINES = pytest.mark.parametrize("engine", [TorchMLP, NativeMLP])


@ENGINES
@pytest.mark.parametrize("hidden", [[8], [16, 8], [5, 7, 3]])
@pytest.mark.parametrize("logits", [1, 3])
def test_equals_autograd(
    hidden: list[int], logits: int, engine: type[TorchMLP] | type[NativeMLP]
) -> None:
    tower, output = make(10, hidden, logits)
    fused = engine(tower, output)
    for rows in (6, 2, 9):  # buffers are used again, grown and shrunk
        concat = torch.randn(rows, 10, requires_grad=True)
        grad = torch.randn(rows, logits)
        expected = output(tower(DeepInput(concat, {}, concat[:, :0])))
        expected.backward(grad)
        wanted = {
            name: p.grad.clone()
            for name, p in [*tower.named_parameters(), *output.named_parameters()]
        }
        got = fused.forward(concat.detach())
        torch.testing.assert_close(got, expected.detach())
        torch.testing.assert_close(fused.backward(grad), concat.grad)
        fused.finish()
        for name, parameter in [*tower.named_parameters(), *output.named_parameters()]:
            torch.testing.assert_close(parameter.grad, wanted[name])
            parameter.grad = None


@ENGINES
def test_reads_a_buffer_with_a_stride(engine: type[TorchMLP] | type[NativeMLP]) -> None:
    tower, output = make(10, [4], 1)
    buffer = torch.randn(5, 16)
    inside = buffer[:, :10]
    fused = engine(tower, output)
    torch.testing.assert_close(fused.forward(inside).clone(), fused.forward(inside.contiguous()))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("logits", "norm"), [(1, True), (3, {"momentum": 0.7, "biased": True})])
def test_norms_and_activations_equal_autograd(activation: str, logits: int, norm: Any) -> None:
    tower = MLPTower(10, [16, 8], activation=activation, batch_norm=norm)
    output = nn.Linear(8, logits, bias=False)
    other, other_output = copy.deepcopy(tower), copy.deepcopy(output)
    fused = NativeMLP(tower, output, threads=2)
    for rows in (16, 5, 40):
        concat, grad = torch.randn(rows, 10, requires_grad=True), torch.randn(rows, logits)
        for module in (other, other_output):
            module.zero_grad()
        expected = other_output(other(concat))
        expected.backward(grad)
        torch.testing.assert_close(fused.forward(concat.detach()), expected.detach())
        torch.testing.assert_close(fused.backward(grad), concat.grad, rtol=1e-4, atol=1e-5)
        fused.finish()
        for one, same in zip(tower.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, same.grad, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(output.weight.grad, other_output.weight.grad)
        for one, same in zip(tower.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, same)


def test_dropout_follows_the_key_and_needs_modules_in_training() -> None:
    tower = MLPTower(10, [64, 32], dropout=0.5)
    fused, concat = NativeMLP(tower, nn.Linear(32, 1, bias=False)), torch.randn(20, 10)
    first = fused.forward(concat, ("step", 0, 1)).clone()
    assert not torch.equal(first, fused.forward(concat, ("step", 0, 2)))
    assert torch.equal(first, fused.forward(concat, ("step", 0, 1)))
    assert fused.takes(20)
    tower.eval()
    assert not fused.takes(20)
