"""Towers as programs: what torch computes, the native program computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from widedeep.bundle.program import Program
from widedeep.kernels import Scorer
from widedeep.models.dcn import CrossLayer, MatrixCrosses
from widedeep.training.trace_towers import NotExpressible, trace_towers

FIELDS, DIM = 4, 6
X = FIELDS * DIM
SIZES = (10, 8, 6)  # of the query, the item and the pair, in a mixed order of columns


class Module(nn.Module):
    """A function of the fields (B, F, D) with a few weights."""

    def __init__(self, function: Callable[[Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function = function
        self.linear = nn.Linear(DIM, 5)
        self.wide = nn.Linear(X, 7)
        self.norm = nn.LayerNorm(DIM)
        self.batch_norm = nn.BatchNorm1d(FIELDS)
        self.plain_norm = nn.BatchNorm1d(X, affine=False)
        for norm in (self.batch_norm, self.plain_norm):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self.prelu = nn.PReLU(FIELDS)
        self.parts_PE = nn.Parameter(torch.randn(4 * DIM, 5))
        self.weight_FDE = nn.Parameter(torch.randn(FIELDS, DIM, 3))
        self.kernel = nn.Conv2d(1, 3, (1, 3), padding=(0, 1))
        self.gru = nn.GRU(DIM, 4, batch_first=True)
        self.mask = torch.tensor([1.0, 0.0, 1.0, 1.0])

    def forward(self, x_BX: Tensor) -> Tensor:
        return self.function(self, x_BX.view(-1, FIELDS, DIM)).flatten(1)


def attention(m: Module, x: Tensor) -> Tensor:
    scores = torch.einsum("bfd,bgd->bfg", x, x) / DIM**0.5
    return torch.softmax(scores.masked_fill(m.mask == 0, -1e9), dim=-1) @ x


def in_place(m: Module, x: Tensor) -> Tensor:
    y = m.linear(x)
    y.relu_()
    y[:, 0] = 1.0
    y[:, 1] += y[:, 2]
    return y


def half_of(m: Module, x: Tensor) -> Tensor:
    first, second = m.wide(x.flatten(1)).sigmoid().split([3, 4], dim=1)
    return torch.cat([first * 2, torch.stack([second, second.flip(1)], 1).flatten(1)], 1)


FUNCTIONS: dict[str, Callable[[Module, Tensor], Tensor]] = {
    "linear of all": lambda m, x: torch.relu(m.wide(x.flatten(1))),
    "linear by field": lambda m, x: torch.tanh(m.linear(x)),
    "matrix by field": lambda m, x: torch.einsum("bfd,fde->bfe", x, m.weight_FDE),
    "experts": lambda m, x: torch.einsum("bd,fde->bfe", x[:, 0], m.weight_FDE),
    "pairs": lambda m, x: (x.sum(1).square() - x.square().sum(1)) * 0.5,
    "outer products": lambda m, x: torch.einsum("bfd,bgd->bfgd", x, x).sum(-1),
    "triangle": lambda m, x: (x @ x.transpose(1, 2))[:, *torch.triu_indices(FIELDS, FIELDS, 1)],
    "attention": attention,
    "layer norm": lambda m, x: m.norm(x) * m.mask[:, None],
    "batch norms": lambda m, x: m.plain_norm(m.batch_norm(x).flatten(1)),
    "extremes": lambda m, x: torch.cat(
        [x.amax(1), x.min(dim=2).values, x.mean((1, 2))[:, None]], 1
    ),
    "variance": lambda m, x: torch.cat([x.var(1), x.std(2, unbiased=False)], 1),
    "powers": lambda m, x: (x.abs() + 0.1) ** 1.5 + 2.0**x + x**2 - (x.abs() + 1) ** -0.5,
    "logarithms": lambda m, x: torch.exp(torch.log(x.abs().clamp(min=1e-4)).sum(1)) + x[:, 0].exp(),
    "comparisons": lambda m, x: torch.where(x > 0, x * 2, -x) * (x <= 0.5) + (x != 0).float(),
    "activations": lambda m, x: torch.cat([F.gelu(x), F.silu(x), F.elu(x), F.selu(x)], 1),
    "more activations": lambda m, x: torch.cat(
        [F.leaky_relu(x), m.prelu(x), F.softplus(x), F.hardtanh(x), F.gelu(x, approximate="tanh")],
        1,
    ),
    "log softmax": lambda m, x: F.log_softmax(x, 1) + torch.logsumexp(x, 2, keepdim=True),
    "convolution": lambda m, x: m.kernel(x.transpose(1, 2).unsqueeze(1)).topk(2, dim=3).values,
    "recurrence": lambda m, x: m.gru(x)[0],
    "pieces": half_of,
    "in place": in_place,
    "a constant beside": lambda m, x: torch.cat([x, torch.ones_like(x)], 1) @ m.linear.weight.t(),
    "places": lambda m, x: m.weight_FDE[:, 0][(x[:, :, 0] > 0).long().cumsum(1).clamp(max=3)],
    "waves": lambda m, x: torch.cat([torch.sin(x * 6), torch.cos(x * 6)], -1),
}


def traced(module: nn.Module, sizes: tuple[int, ...] = SIZES, *, mixed: bool = True) -> Program:
    """Trace a module, and check the program against it on rows."""
    # Column of the input for each of the program's
    order = np.random.default_rng(3).permutation(X) if mixed else np.arange(X)
    columns = np.argsort(order)
    program, tensors = trace_towers(module, [torch.zeros(2, X)], [columns], sizes)
    rows = torch.randn(50, X, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = module(rows).numpy()
    scorer = Scorer(0, X, expected.shape[1])
    scorer.add_dense(0, X)
    scorer.set_program(program.native(tensors))
    dense = np.ascontiguousarray(rows.numpy()[:, order])
    no_ids, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
    _, values = scorer.forward(no_ids, offsets, None, dense, threads=1)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-5)
    return program


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_program_computes_what_torch_does(name: str) -> None:
    traced(Module(FUNCTIONS[name]).eval())


def pair_matrices(program: Program) -> list[tuple[int, ...]]:
    """Return the shapes of the matrices that multiply what query and item decide together."""
    pair = [o for o in program.operations if o.kind == "linear" and o.stage == 2]
    return [program.tensors[o.tensors[0]] for o in pair]


def compared(m: Module, x: Tensor) -> Tensor:
    """Each field against the last one, as a history's events against a candidate."""
    query, keys = x[:, :3], x[:, 3:].expand(-1, 3, -1)
    pairs = torch.cat([query, keys, query - keys, query * keys], 2)
    return pairs @ m.parts_PE


def test_what_is_linear_in_a_difference_is_taken_of_its_terms() -> None:
    program = traced(Module(compared).eval(), (18, 6, 0), mixed=False)
    assert pair_matrices(program) == [(5, DIM)]  # of the products alone
    traced(Module(compared).eval(), (10, 14, 0))


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("n_logits", [1, 2])
@pytest.mark.parametrize("beside", [True, False])
def test_the_first_and_the_last_cross_layer_cost_a_pair_no_matrix(
    rank: int | None, n_logits: int, beside: bool
) -> None:
    torch.manual_seed(2)
    crosses = MatrixCrosses(CrossLayer(X, rank) for _ in range(3))
    output = nn.Linear(X + DIM * beside, n_logits)

    def logits(m: Module, x: Tensor) -> Tensor:
        crossed = crosses(x.flatten(1))
        hidden = torch.relu(m.wide(x.flatten(1)))[:, :DIM]
        return output(torch.cat([crossed, hidden], 1) if beside else crossed)

    matrices = pair_matrices(traced(Module(logits).eval(), (14, 10, 0)))
    expected = [(X, X)] if rank is None else [(3, X), (X, 3)]
    assert matrices == expected + [(n_logits, DIM)] * beside


def test_cross_layers_over_a_pair_are_computed_as_they_are() -> None:
    torch.manual_seed(2)
    crosses, output = MatrixCrosses(CrossLayer(X, None) for _ in range(2)), nn.Linear(X, 1)
    matrices = pair_matrices(traced(Module(lambda m, x: output(crosses(x.flatten(1)))).eval()))
    assert (1, X) in matrices


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: x - x.mean(0), "several rows at once"),
        (lambda m, x: x @ x[0].t(), "several rows"),
        (lambda m, x: torch.cumprod(x, 1), "the operation"),
        (lambda m, x: x.flip(0), "several rows at once"),
        (lambda m, x: x if x.sum().item() > 0 else -x, "cannot be traced|several rows"),
        (lambda m, x: torch.ones(len(x), 1), "does not depend"),
    ],
)
def test_what_a_program_cannot_do_is_named(
    function: Callable[[Module, Tensor], Tensor], reason: str
) -> None:
    module = Module(function).eval()
    with pytest.raises(NotExpressible, match=reason):
        trace_towers(module, [torch.zeros(2, X)], [np.arange(X)], SIZES)
