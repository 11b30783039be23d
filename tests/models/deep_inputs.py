"""Towers over a made-up deep input, in float64, for golden tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from widedeep.models import DeepInput, DeepLayout, TowerConfig

ROWS = 5
N_NUMBERS = 2


def make_layout(
    dims: Mapping[str, int], heads: Mapping[str, slice], *, n_numbers: int = N_NUMBERS
) -> DeepLayout:
    columns, column = {}, 0
    for name, dim in dims.items():
        columns[name] = slice(column, column + dim)
        column += dim
    numbers = slice(column, column + n_numbers)
    return DeepLayout(
        width=numbers.stop,
        columns={**columns, "numbers": numbers} if n_numbers else columns,
        dense=numbers,
        dense_columns=tuple(range(n_numbers)),
        dims=dims,
        sequences=(),
        extra={},
        heads=heads,
    )


def make_tower(
    config: TowerConfig,
    *,
    n_fields: int = 4,
    dim: int = 3,
    n_logits: int = 1,
    heads: Mapping[str, slice] | None = None,
    n_numbers: int = N_NUMBERS,
) -> tuple[nn.Module, DeepInput]:
    """Return a tower with random weights, and an input that asks for a gradient."""
    width = config.embedding_dim(n_fields) or dim
    heads = heads or {f"y{c}": slice(c, c + 1) for c in range(n_logits)}
    layout = make_layout({f"f{i}": width for i in range(n_fields)}, heads, n_numbers=n_numbers)
    torch.manual_seed(1)
    tower = config.make(layout).double()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.5)
    concat_BX = torch.randn(ROWS, layout.width, dtype=torch.float64, requires_grad=True)
    return tower, DeepInput(concat_BX, layout.columns, concat_BX[:, layout.dense])


def assert_same_function(
    tower: nn.Module, inputs: DeepInput, expected: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Compare a tower, and all its gradients, with a function of one example at a time.

    ``expected`` takes an example's embeddings and numbers, (X - K,) and (K,), and returns (width,).
    """
    sources = [inputs.concat_BX, *tower.parameters()]
    result = tower(inputs)
    numbers = inputs.dense_BK.shape[1]
    columns = inputs.concat_BX.shape[1] - numbers
    rows = [expected(row[:columns], row[columns:]) for row in inputs.concat_BX]
    torch.testing.assert_close(result, torch.stack(rows))
    weight = torch.randn_like(result)
    found = torch.autograd.grad((result * weight).sum(), sources, retain_graph=True)
    right = torch.autograd.grad((torch.stack(rows) * weight).sum(), sources)
    for gradient, reference in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, reference)
        assert reference.abs().max() > 0  # every weight takes part


def pairs(n_fields: int = 4) -> list[tuple[int, int]]:
    return list(combinations(range(n_fields), 2))
