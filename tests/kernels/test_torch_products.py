"""A linear layer over outer products, and its gradients, equal torch's."""

from __future__ import annotations

import pytest
import torch

from widedeep.kernels import torch_products
from widedeep.kernels.torch_products import outer_linear


@pytest.mark.parametrize("lines", [1, 4, 9])
def test_outer_linear(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_products, "_LINES", 4)
    shapes = [(lines, 3), (lines, 2), (5, 6), (5,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    maps, fields, weight, bias = inputs
    expected = torch.einsum("nh,nf,ohf->no", maps, fields, weight.view(5, 3, 2)) + bias
    result = outer_linear(*inputs)
    torch.testing.assert_close(result, expected)
    factor = torch.randn_like(expected)
    gradients = torch.autograd.grad((result * factor).sum(), inputs)
    right = torch.autograd.grad((expected * factor).sum(), inputs)
    for gradient, reference in zip(gradients, right, strict=True):
        torch.testing.assert_close(gradient, reference)
