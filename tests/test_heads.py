import numpy as np
import pytest
import torch

from widedeep.errors import ConfigError, DataError
from widedeep.heads import Binary, Head, Multiclass, Regression, head_slices

HEADS = [
    (Binary(), torch.tensor([0.0, 1.0, 0.3])),
    (Multiclass(classes=4), torch.tensor([0.0, 3.0, 2.0])),
    (Regression(), torch.tensor([-2.0, 0.5, 7.0])),
]


@pytest.mark.parametrize(("head", "labels"), HEADS, ids=lambda value: getattr(value, "kind", ""))
def test_gradient_is_the_derivative_of_the_loss(head: Head, labels: torch.Tensor) -> None:
    logits = torch.randn(
        3, head.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    logits.requires_grad_()
    head.losses(logits, labels.double()).sum().backward()
    torch.testing.assert_close(
        head.gradient(logits.detach(), labels.double()), logits.grad, rtol=1e-12, atol=1e-12
    )


def test_initial_bias_predicts_the_base_rate() -> None:
    bias = Binary().initial_bias(0.2)
    assert torch.sigmoid(torch.tensor(bias)).item() == pytest.approx(0.2)
    assert Binary().initial_bias(1.0) == [0.0]
    assert Regression().initial_bias(3.5) == [3.5]


@pytest.mark.parametrize(
    ("head", "label", "message"),
    [
        (Binary(), 2.0, "got 2, expected 0 to 1 for a binary head; use head='multiclass'"),
        (Binary(), float("nan"), "got nan, expected 0 to 1"),
        (Multiclass(classes=3), 3.0, "expected a class 0 to 2"),
        (Multiclass(classes=3), 0.5, "got 0.5, expected a class"),
        (Regression(), float("inf"), "expected a finite number"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_row(head: Head, label: float, message: str) -> None:
    with pytest.raises(DataError, match=r"example 1 of a batch") as caught:
        head.check_labels(torch.tensor([0.0, label]))
    assert message in str(caught.value)


def test_slices_follow_the_widths() -> None:
    assert head_slices([Binary(), Multiclass(classes=3), Regression()]) == (
        slice(0, 1),
        slice(1, 4),
        slice(4, 5),
    )


def test_predictions_are_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    np.testing.assert_allclose(Multiclass(classes=3).predictions(logits).sum(), 1.0, rtol=1e-6)
    assert Binary().predictions(torch.zeros(1, 1)).item() == 0.5


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_loss_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ConfigError, match="loss_weight"):
        Binary(loss_weight=weight)
