"""Planted interactions: what a model multiplies it finds from rows too few for a perceptron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.deep_inputs import make_layout
from widedeep import models

F, D = 6, 4
TRAIN, TEST = 2000, 1000

Task = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products take longer by several threads than by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def auc(logits_B: Tensor, labels_B: Tensor) -> float:
    """Return the fraction of pairs that are in the right order; there are no ties."""
    ranks_B = logits_B.argsort().argsort().double() + 1
    positives = float(labels_B.sum())
    above = float(ranks_B[labels_B > 0].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(labels_B) - positives))


def fit(config: models.TowerConfig, task: Task, rows: int = TRAIN) -> float:
    """Train a tower on rows of random embeddings; return its AUC on others."""
    layout = make_layout({f"f{i}": D for i in range(F)}, {"": slice(0, 1)}, n_numbers=0)
    torch.manual_seed(0)
    tower: Any = config.make(layout)
    rows_BX = torch.randn(TRAIN + TEST, F * D)
    labels_B = (task(rows_BX.view(-1, F, D)) > 0).float()

    def features(rows: Tensor) -> Tensor:
        output: Tensor = tower(models.DeepInput(rows, layout.columns, rows[:, layout.dense]))
        return output

    output: Any = nn.Identity()
    if getattr(tower, "returns", "features") == "features":
        output = nn.Linear(features(rows_BX[:2]).shape[1], 1)
    adam = torch.optim.Adam([*tower.parameters(), *output.parameters()], lr=0.01)
    for _ in range(12 * TRAIN // rows):
        for batch in torch.randperm(rows).split(100):
            logits_B = output(features(rows_BX[batch])).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits_B, labels_B[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()
    tower.eval()
    with torch.no_grad():
        return auc(output(features(rows_BX[TRAIN:])).squeeze(1), labels_B[TRAIN:])


def scalar_products(v: Tensor) -> Tensor:
    return (v[:, 0] * v[:, 1]).sum(1) + (v[:, 2] * v[:, 3]).sum(1)


def third_order(v: Tensor) -> Tensor:
    return (v[:, 0] * v[:, 1] * v[:, 2]).sum(1)


def mapped_product(v: Tensor) -> Tensor:
    """The product of a field and another one, whose dimensions are turned."""
    return (v[:, 0] * v[:, 1].roll(1, 1)).sum(1)


def product_of_powers(v: Tensor) -> Tensor:
    magnitudes = v.abs().log()
    return (magnitudes[:, 0] + magnitudes[:, 1] - 2 * magnitudes[:, 2]).sum(1)


def best_match(v: Tensor) -> Tensor:
    """The first dimension of the field that is most like the first field."""
    best_B = (v[:, 1:] @ v[:, 0].unsqueeze(2)).squeeze(2).argmax(1)
    return v[torch.arange(len(v)), 1 + best_B, 0]


def all_pairs(v: Tensor) -> Tensor:
    return (v.sum(1) ** 2 - (v**2).sum(1)).sum(1)


def sharpest_edge(v: Tensor) -> Tensor:
    """The largest fall from a field to its neighbour, in each dimension."""
    falls_B = (v[:, :-1] - v[:, 1:]).amax(1).sum(1)
    return falls_B - falls_B.median()


@cache
def perceptron(task: Task, rows: int = TRAIN) -> float:
    return fit(models.MLP(hidden_units=(32, 16)), task, rows)


@pytest.mark.parametrize(
    ("config", "task", "rows", "gain"),
    [
        (models.DCNv2(layers=2, hidden_units=()), third_order, TRAIN, 0.3),
        (models.XDeepFM(cin_units=(16, 16), hidden_units=()), third_order, TRAIN, 0.4),
        (models.AFN(log_neurons=16, hidden_units=(16,)), product_of_powers, TRAIN, 0.2),
        (models.DLRM(hidden_units=(16,)), scalar_products, 500, 0.2),
        (models.NFM(hidden_units=(16,)), all_pairs, 500, 0.1),
        pytest.param(models.AFM(), all_pairs, 500, 0.04, marks=pytest.mark.slow),
        (models.PNN(hidden_units=(16,)), scalar_products, 500, 0.15),
        pytest.param(
            models.PNN(product="outer", hidden_units=(16,)),
            *(mapped_product, 500, 0.1),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            models.CCPM(kernel_widths=(2,), filters=(4,), hidden_units=(16,)),
            *(sharpest_edge, 500, 0.05),
            marks=pytest.mark.slow,
        ),
        pytest.param(models.DIFM(hidden_units=(16,)), all_pairs, 500, 0.1, marks=pytest.mark.slow),
        pytest.param(
            models.MaskNet(hidden_units=(16,)), third_order, TRAIN, 0.1, marks=pytest.mark.slow
        ),
        pytest.param(
            models.FinalMLP(hidden_units=(32, 16)), third_order, TRAIN, 0.1, marks=pytest.mark.slow
        ),
        pytest.param(
            models.WuKong(layers=1, fm_units=(16,), rank=6, hidden_units=(16,)),
            *(scalar_products, 500, 0.2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            models.FiBiNET(hidden_units=(16,)),
            *(mapped_product, 500, 0.05),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            models.GDCN(layers=2, hidden_units=()), third_order, TRAIN, 0.1, marks=pytest.mark.slow
        ),
        pytest.param(
            models.AutoInt(layers=2, head_width=8, hidden_units=()),
            *(best_match, TRAIN, 0.04),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", str(value))),
)
def test_a_model_finds_what_a_perceptron_does_not(
    config: models.TowerConfig, task: Task, rows: int, gain: float
) -> None:
    assert fit(config, task, rows) > perceptron(task, rows) + gain
