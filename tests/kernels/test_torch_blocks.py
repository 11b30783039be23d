"""Blocks that compute natively in training, against the same modules of torch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from widedeep import kernels
from widedeep.kernels.torch_blocks import (
    aware_products,
    bilinear_products,
    field_convolution,
    mix_experts,
)
from widedeep.kernels.torch_layers import native_layers
from widedeep.models.afn import LogNeurons
from widedeep.models.blocks import FieldAttention, FieldAwarePairs, hadamard_pairs
from widedeep.models.ccpm import FieldConvolution
from widedeep.models.dien import DIEN, InterestEvolution
from widedeep.models.din import DIN, LocalActivation
from widedeep.models.fibinet import BilinearPairs
from widedeep.models.histories import Events, History
from widedeep.models.history_blocks import GRU, Dice

Run = Callable[..., Tensor]
LENGTHS = [0, 4, 1, 7, 0, 2, 7]


def gradients(module: nn.Module, run: Run, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output, the gradients of the inputs, and those of the parameters."""
    module.zero_grad()
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = run(module, *leaves)
    out.backward(torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out))
    found = [leaf.grad for leaf in leaves] + [p.grad for p in module.parameters()]
    return [out.detach(), *(grad for grad in found if grad is not None)]


def check(
    module: nn.Module,
    inputs: list[Tensor],
    run: Run,
    reference: Run | None = None,
    atol: float = 2e-6,
) -> None:
    """Hold the native computation to torch's in float64, and to itself on three threads."""
    doubles = [tensor.double() for tensor in inputs]
    expected = gradients(copy.deepcopy(module).double(), reference or run, doubles)
    results = []
    for threads in (1, 3):
        with native_layers(threads):
            results.append(gradients(module, run, inputs))
    assert len(results[0]) == len(expected)
    for one, other, right in zip(*results, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        scale = right.abs().numpy().max(initial=1.0)
        np.testing.assert_allclose(one, right, rtol=1e-5, atol=atol * scale)


def histories(width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return events (B, T, E), with zeros in padding, and their mask."""
    torch.manual_seed(seed)
    mask_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(*mask_BT.shape, width) * mask_BT[:, :, None], mask_BT


@pytest.mark.parametrize("width", [1, 5, 16, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_recurrent_unit_equals_its_equations(width: int, weighted: bool) -> None:
    events_BTE, mask_BT = histories(3)
    inputs = [events_BTE, *([torch.rand(mask_BT.shape)] if weighted else [])]
    inputs[0] = torch.where(mask_BT[:, :, None], inputs[0], 7.0)  # in padding: read by nobody
    check(GRU(3, width), inputs, lambda gru, x, *weights: gru(x, mask_BT, *weights))


def test_a_recurrent_unit_passes_over_gaps() -> None:
    events_BTE, mask_BT = histories(3)
    mask_BT = mask_BT & (torch.arange(mask_BT.shape[1]) % 3 != 1)
    check(GRU(3, 4), [events_BTE], lambda gru, x: gru(x, mask_BT))


def test_many_histories_equal_those_of_few() -> None:
    torch.manual_seed(1)
    events = torch.randn(200, 5, 3)
    mask = torch.arange(5) < torch.randint(0, 6, (200, 1))
    gru = GRU(3, 8)
    with native_layers(2):
        whole = gru(events, mask)
        pieces = [gru(events[i : i + 7], mask[i : i + 7]) for i in range(0, 200, 7)]
    np.testing.assert_array_equal(whole.detach(), torch.cat(pieces).detach())


@pytest.mark.parametrize("softmax", [False, True])
def test_interests_equal_those_over_padding(softmax: bool) -> None:
    history = History(sequences=("a", "b"), targets=("x",), width=5, matched=3, maxlen=None)
    config = DIN(attention_units=(6, 4), softmax=softmax)
    events_BTE, mask_BT = histories(5)
    torch.manual_seed(2)
    query_BM = torch.randn(len(LENGTHS), 3)
    for make in (
        lambda: LocalActivation(history, config),
        lambda: InterestEvolution(history, DIEN(state_width=6)),
    ):

        def run(module: nn.Module, x: Tensor, query: Tensor) -> Tensor:
            out: Tensor = module(Events(x, mask_BT, query))
            return out

        check(make(), [events_BTE, query_BM], run)


@pytest.mark.parametrize(
    ("fields", "units", "heads"), [(2, 1, 1), (5, 8, 2), (17, 5, 3), (33, 20, 1)]
)
def test_attention_between_fields_equals_torch(fields: int, units: int, heads: int) -> None:
    torch.manual_seed(fields)
    module = FieldAttention(7, units, heads, scaled=fields > 2)
    check(module, [torch.randn(21, fields, 7)], lambda m, x: m(x))


@pytest.mark.parametrize(
    ("maps", "width", "k", "dim"), [(1, 6, 3, 4), (3, 2, 9, 17), (2, 1, 1, 33)]
)
def test_convolutions_over_fields_equal_torch(maps: int, width: int, k: int, dim: int) -> None:
    torch.manual_seed(width)
    module = FieldConvolution(maps, 4, width, k)

    def native(m: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(m, FieldConvolution) and m.filters.bias is not None
        return field_convolution(x, m.filters.weight.squeeze(2), m.filters.bias, m.k)

    check(module, [torch.randn(70, maps, 9, dim)], native, lambda m, x: m(x.mT).mT)


def test_a_convolution_over_what_is_no_number_is_none() -> None:
    maps = torch.zeros(1, 1, 4, 2)
    maps[0, 0, 3, 1] = torch.nan
    out = field_convolution(maps, torch.ones(1, 1, 1), torch.zeros(1), 2)
    assert bool(out.isnan().any())


@pytest.mark.parametrize(("fields", "dim", "numbers"), [(2, 1, 0), (5, 4, 3)])
def test_field_aware_products_equal_torch(fields: int, dim: int, numbers: int) -> None:
    torch.manual_seed(0)
    input_BX = torch.randn(130, fields * fields * dim + numbers)

    def reference(pairs: nn.Module, x: Tensor) -> Tensor:
        by_operation = x[:, : fields * fields * dim].view(-1, fields, fields, dim)
        products = pairs(by_operation[:, :, 1:]).sum(2)
        return torch.cat(
            [by_operation[:, :, 0].flatten(1), products, x[:, fields * fields * dim :]], 1
        )

    check(
        FieldAwarePairs(fields), [input_BX], lambda _, x: aware_products(x, fields, dim), reference
    )


@pytest.mark.parametrize(("fields", "dim", "numbers"), [(2, 1, 0), (5, 9, 3)])
def test_bilinear_products_equal_torch(fields: int, dim: int, numbers: int) -> None:
    torch.manual_seed(dim)
    module = BilinearPairs(fields, dim, "interaction")

    def native(pairs: nn.Module, x: Tensor, gates: Tensor, further: Tensor) -> Tensor:
        assert isinstance(pairs, BilinearPairs)
        return bilinear_products(x, pairs.weight_DWD, gates, further)

    def plain(pairs: nn.Module, x: Tensor, gates: Tensor, further: Tensor) -> Tensor:
        products = pairs(x)
        weighed = products * hadamard_pairs(gates.unsqueeze(2))
        return torch.cat([weighed.flatten(1), products.flatten(1), further], dim=1)

    inputs = [torch.randn(30, fields, dim), torch.rand(30, fields), torch.randn(30, numbers)]
    check(module, inputs, native, plain)


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (2, 1), (700, 70)])
def test_dice_equals_torch(rows: int, width: int) -> None:
    torch.manual_seed(rows)
    module = Dice(width)
    nn.init.uniform_(module.alpha_H)
    sums = 2 * torch.randn(rows, width) + 1
    check(module, [sums], lambda m, x: m(x))
    native, plain = copy.deepcopy(module), copy.deepcopy(module)
    with native_layers(1):
        native(sums)
    plain(sums)
    np.testing.assert_allclose(native.mean_H, plain.mean_H, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(native.variance_H, plain.variance_H, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "dim", "neurons"), [(2, 1, 3), (21, 6, 5), (40, 8, 70)])
def test_logarithmic_neurons_equal_torch(rows: int, dim: int, neurons: int) -> None:
    torch.manual_seed(rows)
    module = LogNeurons(4, neurons)
    nn.init.uniform_(module.neuron_norm.weight)
    fields = torch.rand(rows, 4, dim) + 0.5
    native, plain = copy.deepcopy(module), copy.deepcopy(module)
    check(module, [fields], lambda m, x: m(x), atol=1e-4)  # norms take most of a bias's gradient
    with native_layers(1):
        native(fields)
    plain(fields)
    for (name, one), other in zip(native.named_buffers(), plain.buffers(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


def test_mixed_experts_equal_a_sum() -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(9, 3), *torch.randn(3, 9, 4)]
    check(
        nn.Identity(), inputs, lambda _, gates, *experts: mix_experts(gates, experts),
        lambda _, gates, *experts: (gates[:, :, None] * torch.stack(experts, 1)).sum(1),
    )  # fmt: skip


def test_blocks_refuse_arrays_of_other_shapes() -> None:
    mask, weight = np.ones(4, np.uint8), np.zeros((6, 2), np.float32)
    state, saved = np.zeros(8, np.float32), np.zeros(32, np.float32)
    with pytest.raises(ValueError, match="inputs: got length 23, expected 24"):
        kernels.gru(mask, 2, np.zeros(23, np.float32), weight, None, state, saved, 1)
    with pytest.raises(ValueError, match="mask: got a number above 1"):
        kernels.gru(2 * mask, 2, np.zeros(24, np.float32), weight, None, state, saved, 1)
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match="k: got 2 of 1 fields"):
        kernels.field_convolution(one, 1, one, one, 1, 1, 2, one, np.zeros(1, np.uint8), 1)
    with pytest.raises(ValueError, match="out: got length 1, expected 2"):
        kernels.field_attention(np.zeros(8, np.float32), 2, 1, 1, 1.0, one, 1)
    with pytest.raises(ValueError, match="input: got width 3, expected at least 4"):
        kernels.aware_products(np.zeros((1, 3), np.float32), 2, 1, np.zeros((1, 3), np.float32), 1)
