"""Heads: what they compute, and that one of one's own is used or refused, never passed over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import widedeep as wd
from widedeep.cli.export import export_checkpoint
from widedeep.errors import BundleError, CheckpointError, ConfigError, DataError
from widedeep.models.head_base import head_slices
from widedeep.models.heads import Binary, Head, Link, Multiclass, Regression

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
        (Binary(), 2.0, "got 2, expected 0 to 1 for a binary head; write two classes as 0 and 1"),
        (Binary(), float("nan"), "got nan, expected 0 to 1"),
        (Multiclass(classes=3), 3.0, "expected a class 0 to 2; number the classes from 0"),
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


# ---- heads of one's own -------------------------------------------------------------------------

RNG = np.random.default_rng(5)
ROWS = [
    {
        "job": "abcd"[i % 4],
        "age": float(RNG.normal()),
        "clicked": i % 2,
        "count": float(RNG.poisson(1 + i % 4)),
        "kind": "xyz"[i % 3],
    }
    for i in range(400)
]
FEATURES = [*wd.categorical("job"), *wd.numeric("age")]
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def fitted(label: str, head: Head | str, *, epochs: int = 2, **options: Any) -> wd.Trainer:
    schema = wd.fit_schema(wd.FeatureSpec(label=label, features=FEATURES), ROWS)
    model = wd.WideDeep(schema, embedding_dim=2, head=head, **{"hidden_units": [4], **options})
    trainer = wd.Trainer(model, batch_size=32, threads=1, progress=False)
    trainer.fit(ROWS, epochs=epochs)
    return trainer


class Focal(Binary):
    """Losses alone: autograd gives their gradient."""

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        sign = 2 * labels_B - 1
        return -((1 - torch.sigmoid(sign * logits_BC[:, 0])) ** 2) * F.logsigmoid(
            sign * logits_BC[:, 0]
        )


class DoubledMixin:
    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return 2 * Binary.losses(self, logits_BC, labels_B)  # type: ignore[arg-type]


class Doubled(DoubledMixin, Binary):  # type: ignore[misc]
    """What a class beside the head overrides counts as well."""


class FocalChild(Focal):
    """Inherits all of it."""


class Together(Binary):
    """Both in one method."""

    def losses_and_gradient(self, logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        return Binary.losses(self, logits_BC, labels_B), 2 * Binary.gradient(
            self, logits_BC, labels_B
        )


class Smoothed(Multiclass):
    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(logits_BC, labels_B.long(), reduction="none", label_smoothing=0.3)


class Huber(Regression):
    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return F.huber_loss(logits_BC[:, 0], labels_B, reduction="none")


class Poisson(Regression):
    link = "exp"

    def initial_bias(self, label_mean: float | None) -> list[float]:
        return [math.log(label_mean)] if label_mean else [0.0]

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return logits_BC[:, 0].exp() - labels_B * logits_BC[:, 0]


@dataclass(frozen=True, kw_only=True)
class Rate(Regression):
    """A declared field in place of a class attribute."""

    link: Link = "sigmoid"  # type: ignore[misc]
    scale: float = 0.1

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return self.scale * (torch.sigmoid(logits_BC[:, 0]) - labels_B / 10) ** 2


OWN = [
    ("clicked", Focal(), "binary"),
    ("clicked", Doubled(), "binary"),
    ("clicked", FocalChild(), "binary"),
    ("clicked", Together(), "binary"),
    ("kind", Smoothed(classes=3), "multiclass"),
    ("count", Huber(), "regression"),
    ("count", Poisson(), "regression"),
    ("count", Rate(), "regression"),
]


@pytest.mark.parametrize("hidden", [[4], []], ids=["deep", "wide"])
@pytest.mark.parametrize(("label", "head", "plain"), OWN, ids=lambda v: type(v).__name__)
def test_a_head_of_ones_own_trains_and_is_served_by_its_own_methods(
    label: str, head: Head, plain: str, hidden: list[int], tmp_path: Path
) -> None:
    trainer = fitted(label, head, hidden_units=hidden)
    base = fitted(label, plain, hidden_units=hidden)
    assert np.abs(trainer.logits(ROWS) - base.logits(ROWS)).max() > 1e-3
    bundle = trainer.export(tmp_path / "b")
    np.testing.assert_allclose(bundle.score(ROWS), trainer.predict(ROWS), **TIGHT)
    predictions = np.asarray(trainer.predict(ROWS))
    if plain != "multiclass":
        assert trainer.evaluate(ROWS)["prediction_mean"] == pytest.approx(predictions.mean())
    loaded = wd.Bundle.load(tmp_path / "b")
    np.testing.assert_array_equal(loaded.score(ROWS), bundle.score(ROWS))


@pytest.mark.parametrize(("label", "head", "plain"), OWN, ids=lambda v: type(v).__name__)
def test_a_step_follows_the_derivative_of_its_own_loss(label: str, head: Head, plain: str) -> None:
    logits = torch.randn(6, head.width, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    losses, gradient = head.losses_and_gradient(logits, labels)
    torch.testing.assert_close(gradient, head.gradient(logits, labels))
    if not isinstance(head, Together):
        leaf = logits.clone().requires_grad_()
        head.losses(leaf, labels).sum().backward()
        torch.testing.assert_close(gradient, leaf.grad)
        torch.testing.assert_close(losses, head.losses(logits, labels))


def test_predictions_that_no_link_gives_are_evaluated_and_not_served(tmp_path: Path) -> None:
    class Sharp(Binary):
        def predictions(self, logits_BC: Tensor) -> Tensor:
            return torch.sigmoid(3 * logits_BC[:, 0])

    class Flat(Multiclass):
        def predictions(self, logits_BC: Tensor) -> Tensor:
            return torch.softmax(logits_BC / 2, dim=1)

    class Squared(Regression):
        def predictions(self, logits_BC: Tensor) -> Tensor:
            return logits_BC[:, 0] ** 2

    for label, head in (("clicked", Sharp()), ("kind", Flat(classes=3)), ("count", Squared())):
        trainer = fitted(label, head)
        with pytest.raises(BundleError, match=f"{type(head).__name__}.*link"):
            trainer.export(tmp_path / label)
        assert not list(tmp_path.iterdir())
    sharp = fitted("clicked", Sharp())
    mean = float(np.mean(sharp.predict(ROWS)))
    assert sharp.evaluate(ROWS)["prediction_mean"] == pytest.approx(mean)


def test_halves_and_other_shapes_are_refused_by_name() -> None:
    class GradientAlone(Binary):
        def gradient(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
            return torch.zeros_like(logits_BC)

    class Nothing(Head):
        pass

    class Sum(Regression):
        def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
            return (logits_BC[:, 0] - labels_B).sum()

    class Flat(Regression):
        def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
            return torch.from_numpy(np.abs(labels_B.numpy()))

    class Column(Binary):
        def predictions(self, logits_BC: Tensor) -> Tensor:
            return torch.sigmoid(logits_BC)

    class Probit(Binary):
        link = "probit"  # type: ignore[assignment]

    class TwoBiases(Binary):
        def initial_bias(self, label_mean: float | None) -> list[float]:
            return [0.0, 0.0]

    class Nowhere(Regression):
        def initial_bias(self, label_mean: float | None) -> list[float]:
            return [float("nan")]

    refused = [
        (GradientAlone(), "GradientAlone: defines gradient.*define losses"),
        (Nothing(), "Nothing: losses.. fails.*NotImplementedError"),
        (Sum(), r"Sum: losses.. returns \(\) for 2 examples"),
        (Flat(), "Flat: losses.. fails .*grad"),
        (Column(), r"Column: predictions.. returns \(2, 1\)"),
        (Probit(), "Probit: got link='probit', expected 'sigmoid'"),
        (TwoBiases(), r"TwoBiases: initial_bias.. returns \(2,\)"),
        (Nowhere(), "Nowhere: initial_bias.*nan"),
        (Binary(kind="ranking"), "'ranking'"),  # type: ignore[arg-type]
    ]
    for head, message in refused:
        with pytest.raises(ConfigError, match=message):
            fitted("clicked", head)


def test_a_head_of_ones_own_beside_another_and_with_weights(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label={"click": "clicked", "n": "count"}, weight="weight", features=FEATURES
    )
    data = [{**row, "weight": 1.0 + i % 3} for i, row in enumerate(ROWS)]
    schema = wd.fit_schema(spec, data)
    heads = {"click": Focal(), "n": Poisson(loss_weight=0.5)}
    trainer = wd.Trainer(wd.WideDeep(schema, head=heads, hidden_units=[4]), progress=False)
    trainer.fit(data, epochs=3)
    scores = trainer.export(tmp_path / "b").score(data)
    predicted = trainer.predict(data)
    assert isinstance(scores, dict) and isinstance(predicted, dict)
    for name in ("click", "n"):
        np.testing.assert_allclose(scores[name], predicted[name], **TIGHT)
    assert predicted["n"].min() > 0


def test_a_checkpoint_remembers_the_heads(tmp_path: Path) -> None:
    trainer = wd.Trainer(
        fitted("count", Poisson()).model, checkpoints=tmp_path / "c", progress=False
    )
    trainer.fit(ROWS)
    assert trainer.directory is not None
    place = trainer.directory.latest()
    assert place is not None
    with pytest.raises(CheckpointError, match=r"Poisson.*Regression"):
        fitted("count", "regression", epochs=1).load_parameters(place)
    with pytest.raises(CheckpointError, match="Poisson"):
        export_checkpoint(tmp_path / "c", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    fitted("count", Poisson(), epochs=1).load_parameters(place)
