"""An export compares the bundle with the trainer, and writes nothing where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from widedeep.bundle import Bundle
from widedeep.bundle.graph import Forward
from widedeep.data.made_up_rows import made_up_rows
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, ConfigError
from widedeep.models.mlp import MLPTower
from widedeep.models.tower import DeepInput, DeepLayout
from widedeep.training import export
from widedeep.training import export as agreement

RNG = np.random.default_rng(3)
ROWS: list[dict[str, Any]] = [
    {
        "age": float(RNG.normal(40, 10)) if i % 11 else None,
        "pair": [float(RNG.normal()), float(i % 5)],
        "hour": i % 24,
        "job": "abcdef"[i % 6] if i % 7 else None,
        "tags": [f"t{j}" for j in range(i % 4)],
        "strength": [1.0 + j for j in range(i % 4)],
        "code": i % 50,
        "y": i % 2,
        "kind": "pqr"[i % 3],
        "price": float(i % 17),
    }
    for i in range(300)
]
KINDS: dict[str, list[Any]] = {
    "age": wd.numeric("age"),
    "plain": wd.numeric("plain", source="age", transform="none"),
    "flagged": wd.numeric("flagged", source="age", missing="indicator"),
    "pair": wd.numeric("pair", size=2, transform="standard"),
    "hours": [wd.bucketized("hours", source="hour", boundaries=[6, 12, 18])],
    "job": wd.categorical("job"),
    "hashed": wd.categorical("hashed", source="job", hash_buckets=7),
    "oov": wd.categorical("oov", source="job", max_size=3, oov_buckets=2),
    "code": wd.categorical("code", num_buckets=60),
    "tags": wd.categorical("tags", weights="strength"),
    "cross": [wd.crossed("job", "hours", name="cross")],
    "hashed_cross": [wd.crossed("job", "code", name="hashed_cross", hash_buckets=11)],
}


def fitted(
    features: list[Any], label: str = "y", *, spec: Any = None, fit: bool = True, **options: Any
) -> wd.Trainer:
    made = wd.FeatureSpec(label=label, features=features, **(spec or {}))
    model = wd.WideDeep(
        wd.fit_schema(made, ROWS), embedding_dim=3, **{"hidden_units": [6], **options}
    )
    trainer = wd.Trainer(model, batch_size=64, threads=1, progress=False)
    if fit:
        trainer.fit(ROWS, epochs=2)
    return trainer


def agrees(trainer: wd.Trainer, path: Path, **options: Any) -> Bundle:
    bundle = trainer.export(path, **options)
    np.testing.assert_allclose(bundle.score(ROWS), trainer.predict(ROWS), rtol=1e-6, atol=1e-6)
    return bundle


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("parts", ["wide", "deep", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_feature_in_every_part(
    kind: str, parts: str, combiner: Any, tmp_path: Path
) -> None:
    features = [
        *KINDS["job"],
        *KINDS["hours"],
        *(KINDS[kind] if kind not in ("job", "hours") else []),
    ]
    spec = {
        "wide": [kind] if parts != "deep" else ["job"],
        "deep": [kind] if parts != "wide" else ["job"],
    }
    trainer = fitted(features, spec=spec, wide_combiner=combiner)
    bundle = agrees(trainer, tmp_path / "b")
    terms = bundle.explain(ROWS[1])
    logit = np.sum([term.weights for term in terms.wide], axis=0) + terms.deep + terms.bias
    np.testing.assert_allclose(logit, terms.logits, atol=1e-5)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_a_wide_combiner_leaves_numbers_as_they_are(combiner: Any, tmp_path: Path) -> None:
    spec = {"wide": ["plain", "pair", "flagged", "tags"], "deep": []}
    names = ("plain", "pair", "flagged", "tags")
    trainer = fitted([*(f for n in names for f in KINDS[n])], spec=spec, wide_combiner=combiner)
    model = trainer.model
    assert model.wide_table is not None
    weights = model.wide_table.named_weights()
    with torch.no_grad():
        for name, value in zip(names, (2.0, 3.0, 5.0, 0.0), strict=True):
            weights[name][:] = value
        model.bias.zero_()
    row = {**ROWS[9], "age": -4.0, "pair": [1.0, 2.0]}
    batch = trainer.evaluator.transform.rows([row])
    dense = {name: batch.dense_BK[0, s] for name, s in model.schema.dense_layout.items()}
    expected = 2 * -4.0 + 3 * dense["pair"].sum() + 5 * dense["flagged"].sum()
    bundle = trainer.export(tmp_path / "b")
    assert trainer.logits([row])[0, 0] == pytest.approx(expected, rel=1e-5)
    assert bundle.explain(row).logits[0] == pytest.approx(expected, rel=1e-5)
    # One step moves a number's weight by the number itself, whatever the combiner.
    gradients = {}
    for name in ("sum", combiner):
        other = fitted(
            list(KINDS["plain"]), spec={"wide": ["plain"], "deep": []}, wide_combiner=name
        )
        assert other.model.wide_table is not None
        gradients[name] = other.model.wide_table.weight.numpy().copy()
    np.testing.assert_array_equal(gradients[combiner], gradients["sum"])


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("y", {}),
        ("kind", {}),
        ("price", {"head": "regression"}),
        ("y", {"hidden_units": []}),
        ("y", {"activation": "gelu", "batch_norm": True, "dropout": 0.3}),
    ],
)
def test_every_head_and_optimizer(label: str, options: Any, tmp_path: Path) -> None:
    trainer = fitted([f for kind in KINDS.values() for f in kind], label, **options)
    agrees(trainer, tmp_path / "b")
    for number, deep in enumerate((wd.FTRL(), wd.SGD(lr=1e-3), wd.Adam(), torch.optim.AdamW)):
        own = isinstance(deep, type)
        other = wd.Trainer(
            trainer.model, progress=False, **({"dense": deep} if own else {"deep": deep})
        )
        other.fit(ROWS)
        agrees(other, tmp_path / str(number))


@pytest.mark.parametrize("calibration", ["platt", "isotonic", None])
def test_a_calibrated_model_is_compared_too(calibration: Any, tmp_path: Path) -> None:
    trainer = fitted(list(KINDS["job"]))
    rate = (
        {"negative_rate": 0.2}
        if calibration is None
        else {"calibration": calibration, "calibrate_on": ROWS}
    )
    bundle = trainer.export(tmp_path / "b", **rate)
    curve = bundle.calibration[""]
    expected = curve.probabilities(trainer.logits(ROWS)[:, 0])
    np.testing.assert_allclose(bundle.score(ROWS), expected, atol=1e-6)


class Noisy(nn.Module):
    """Draws numbers although it is evaluated."""

    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.linear = nn.Linear(layout.width, 4)

    def forward(self, inputs: DeepInput) -> Tensor:
        out: Tensor = self.linear(inputs.concat_BX)
        return out + torch.rand_like(out)


class Branching(Noisy):
    """Takes another way by what is in the batch, which a traced graph does not."""

    def forward(self, inputs: DeepInput) -> Tensor:
        out: Tensor = self.linear(inputs.concat_BX)
        return out * 3 if bool((inputs.concat_BX != 0).any()) else out


@pytest.mark.parametrize("tower", [Noisy, Branching])
@pytest.mark.parametrize("fit", [True, False], ids=["trained", "never saw data"])
def test_a_tower_that_a_graph_does_not_carry_is_refused(
    tower: Any, fit: bool, tmp_path: Path
) -> None:
    trainer = fitted(list(KINDS["job"]), towers={"own": tower}, fit=fit)
    with pytest.raises(BundleError, match=r"row \d+ and \d+ more of \d+ score otherwise"):
        trainer.export(tmp_path / "b", warmup=False)
    assert not list(tmp_path.iterdir())


class AcrossRows(Noisy):
    """Gives a row less where others have more."""

    def forward(self, inputs: DeepInput) -> Tensor:
        out: Tensor = self.linear(inputs.concat_BX)
        return out - out.mean(dim=0)


def test_a_tower_that_looks_across_rows_is_refused(tmp_path: Path) -> None:
    # Scores would depend on how many candidates a request has.
    trainer = fitted(list(KINDS["job"]), towers={"own": AcrossRows})
    with pytest.raises(BundleError, match=r"row \d has the logits .* alone and .* beside others"):
        trainer.export(tmp_path / "b", warmup=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x.concat_BX.double(), "torch.float64"),
        (lambda x: x.concat_BX.numpy(), "ndarray"),
        (lambda x: x, "DeepInput"),
    ],
)
def test_a_tower_that_returns_something_else_is_refused(returned: Any, message: str) -> None:
    class Other(Noisy):
        def forward(self, inputs: DeepInput) -> Tensor:
            out: Tensor = returned(inputs)
            return out

    with pytest.raises(ConfigError, match=f"returned {message}, expected a tensor of float32"):
        fitted(list(KINDS["job"]), towers={"own": Other}, fit=False)


@pytest.mark.parametrize("change", ["activation", "hook", "layer", "dropout", "subclass"])
def test_a_standard_tower_changed_by_hand_trains_and_serves_as_it_is(
    change: str, tmp_path: Path
) -> None:
    class Doubled(MLPTower):
        def forward(self, inputs: DeepInput) -> Tensor:
            return 2 * super().forward(inputs)

    model = fitted(list(KINDS["job"]), fit=False).model
    tower = model.towers["mlp"]
    assert isinstance(tower, MLPTower)
    if change == "activation":
        tower.act = nn.Tanh()
    elif change == "hook":
        tower.register_forward_hook(lambda module, inputs, out: out * 0.5)
    elif change == "layer":
        tower.layers[0] = nn.Sequential(tower.layers[0], nn.Tanh())
    elif change == "dropout":
        tower.drop.p = 0.5
    else:
        tower.__class__ = Doubled
    trainer = wd.Trainer(model, progress=False, batch_size=64)
    assert (trainer.step.fused is not None) == (change == "dropout")
    trainer.fit(ROWS, epochs=2)
    bundle = agrees(trainer, tmp_path / "b")
    assert bundle.manifest.engine == ("native" if change == "dropout" else "graph")


def test_frozen_parameters_stay_on_every_path(tmp_path: Path) -> None:
    for options in ({}, {"activation": "gelu"}, {"towers": {"own": Noisy}}):
        model = fitted(list(KINDS["job"]), fit=False, **options).model
        frozen = dict(model.towers.named_parameters())
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        before = {name: parameter.clone() for name, parameter in frozen.items()}
        bias = model.bias.clone()
        for dense in (wd.Adagrad(), wd.FTRL(l1=1.0), torch.optim.AdamW):
            wd.Trainer(model, progress=False, dense=dense).fit(ROWS)  # type: ignore[arg-type]
        assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.items())
        assert not torch.equal(model.bias, bias)


def test_a_refusal_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fitted(list(KINDS["job"]))
    before = trainer.export(tmp_path / "b").score(ROWS)
    honest = export.bundle_weights
    monkeypatch.setattr(
        export, "bundle_weights", lambda *m: {**honest(*m), "bias": np.ones(1, np.float32)}
    )
    with pytest.raises(BundleError, match=r"the trainer predicts .*, the bundle scores"):
        trainer.export(tmp_path / "b", overwrite=True)
    np.testing.assert_array_equal(Bundle.load(tmp_path / "b").score(ROWS), before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("tensor", ["bias", "wide/job", "table/job", "mlp/0/weight", "head/weight"])
def test_a_tensor_that_differs_is_seen(
    tensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fitted(list(KINDS["job"]))
    honest = export.bundle_weights

    def moved(*model: Any) -> dict[str, Any]:
        weights = honest(*model)
        return {**weights, tensor: weights[tensor] * np.float32(1.01) + np.float32(1e-3)}

    monkeypatch.setattr(export, "bundle_weights", moved)
    with pytest.raises(BundleError, match="score otherwise"):
        trainer.export(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_what_reads_otherwise_from_disk_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fitted(list(KINDS["job"]))
    monkeypatch.setattr(
        Forward, "logits", lambda self, batch, threads=1: np.zeros((len(batch), 1), np.float32)
    )
    with pytest.raises(BundleError, match="score otherwise"):
        trainer.export(tmp_path / "b")


def test_rounding_of_large_numbers_is_no_difference(tmp_path: Path) -> None:
    """Two huge terms that cancel leave float32 no six digits, in the trainer or the bundle."""
    features = [
        *wd.numeric("price", transform="none"),
        *wd.numeric("pair", size=2, transform="none"),
    ]
    spec = wd.FeatureSpec(
        label="y", features=features, wide=["price", "pair"], deep=["price", "pair"]
    )
    rows = [{"price": 1e6 + i, "pair": [1e6 - i, float(i)], "y": i % 2} for i in range(200)]
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[16], head="regression"), progress=False
    )
    trainer.fit(rows, epochs=2)
    assert len(trainer.export(tmp_path / "b").score(rows)) == 200


def test_made_up_rows_hold_what_a_schema_knows_and_what_it_does_not() -> None:
    trainer = fitted([f for kind in KINDS.values() for f in kind], fit=False)
    rows = made_up_rows(Transform(trainer.model.schema))
    assert len(rows) == 32
    jobs = {row["job"] for row in rows}
    known = trainer.model.schema.vocabularies["job"]
    assert {None, known.value(0), known.value(len(known) - 1), "an unseen value"} <= jobs
    assert {len(row["tags"]) for row in rows if row["tags"] is not None} >= {0, 1, 2}
    ages = [row["age"] for row in ROWS if row["age"] is not None]
    assert {min(ages), max(ages), None} <= {row["age"] for row in rows}
    assert all(row["strength"] is None or len(row["strength"]) == len(row["tags"]) for row in rows)


def test_a_checkpoint_is_compared_when_it_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fitted(list(KINDS["job"]), fit=False)
    rows: list[str] = []
    honest = agreement._check_logits
    monkeypatch.setattr(agreement, "_check_logits", lambda *a: (rows.append(a[-1]), honest(*a))[0])
    trainer.export(tmp_path / "b", warmup=False)
    assert [row.rpartition(" of ")[2] for row in rows] == ["the rows made up from the schema"]


@pytest.mark.parametrize("item", [(), ("job",), ("age", "tags")])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_norms_that_multiply_rounding_keep_the_tolerance(
    activation: str, item: tuple[str, ...], tmp_path: Path
) -> None:
    """A unit that hardly varies is divided by next to nothing, and so is its rounding."""
    trainer = fitted(
        [*KINDS["age"], *KINDS["job"], *KINDS["tags"], *KINDS["pair"]], "price", head="regression",
        spec={"item": item}, hidden_units=[32, 16], activation=activation, batch_norm=True,
    )  # fmt: skip
    tower = trainer.model.towers["mlp"]
    assert isinstance(tower, MLPTower) and tower.norms is not None
    for norm in tower.norms:
        assert isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None
        norm.running_var /= 1e4
    predicted = np.asarray(trainer.predict(ROWS))
    scores = trainer.export(tmp_path / "b").score(ROWS)
    apart = np.abs(scores - predicted) / np.maximum(1, np.abs(predicted))
    assert apart.max() <= 1e-6
    modules = trainer.logits(ROWS, by_modules=True)[:, 0]
    np.testing.assert_allclose(predicted, modules, rtol=1e-2, atol=1e-2)
