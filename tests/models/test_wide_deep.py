"""What torch asks of a module: a model's state goes through whole, or is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from widedeep.errors import ConfigError
from widedeep.models.tower import DeepInput, DeepLayout

RNG = np.random.default_rng(2)
ROWS = [
    {"job": "abcdef"[i % 6], "tags": ["p", "q"][: i % 3], "x": float(RNG.normal()), "y": i % 2}
    for i in range(240)
]


class Tower(nn.Module):
    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.linear = nn.Linear(layout.width, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, inputs: DeepInput) -> Tensor:
        out: Tensor = self.norm(self.linear(inputs.concat_BX))
        return out


def schema(rows: list[dict[str, Any]] = ROWS) -> wd.Schema:
    features = [*wd.categorical("job", "tags"), *wd.numeric("x")]
    return wd.fit_schema(wd.FeatureSpec(label="y", features=features), rows)


MODELS: dict[str, dict[str, Any]] = {
    "standard": {"hidden_units": [6]},
    "norms": {"hidden_units": [6, 4], "batch_norm": True, "activation": "gelu"},
    "wide": {"hidden_units": []},
    "own": {"towers": {"t": Tower}},
}


def trained(name: str, *, seed: int = 1, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(schema(), embedding_dim=3, seed=seed, **MODELS[name])
    trainer = wd.Trainer(model, batch_size=32, threads=1, progress=False, **options)
    trainer.fit(ROWS, epochs=3)
    return trainer


def logits(model: wd.WideDeep) -> np.ndarray:
    return wd.Trainer(model, threads=1, progress=False).logits(ROWS)


def by_torch(model: wd.WideDeep) -> wd.WideDeep:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = wd.WideDeep(model.schema, embedding_dim=3, seed=9, **MODELS[name_of(model)])
    assert str(other.load_state_dict(torch.load(buffer))) == "<All keys matched successfully>"
    return other


def name_of(model: wd.WideDeep) -> str:
    if "t" in model.towers:
        return "own"
    if not model.towers:
        return "wide"
    return "norms" if model.config.batch_norm else "standard"


def by_pickle(model: wd.WideDeep) -> wd.WideDeep:
    made: wd.WideDeep = pickle.loads(pickle.dumps(model))
    return made


def by_torch_save(model: wd.WideDeep) -> wd.WideDeep:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    made: wd.WideDeep = torch.load(buffer, weights_only=False)
    return made


@pytest.mark.parametrize("way", [by_torch, by_pickle, by_torch_save, copy.deepcopy])
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_scores_alike_and_learns_apart(name: str, way: Callable[..., wd.WideDeep]) -> None:
    trainer = trained(name)
    expected = trainer.logits(ROWS)
    other = way(trainer.model)
    np.testing.assert_array_equal(logits(other), expected)
    wd.Trainer(other, progress=False).fit(ROWS[:50])
    np.testing.assert_array_equal(trainer.logits(ROWS), expected)
    assert np.abs(logits(other) - expected).max() > 0


def test_a_state_dict_holds_every_number() -> None:
    for name in MODELS:
        model = trained(name).model
        state = model.state_dict()
        learned = {k: t for k, t in state.items() if "running" not in k and t.is_floating_point()}
        assert sum(tensor.numel() for tensor in learned.values()) == model.n_parameters
        assert {"wide/job", "wide/tags", "bias"} <= state.keys()


@pytest.mark.parametrize(
    "gone", ["wide/job", "table/tags", "bias", "schema", "towers.mlp.layers.0.weight"]
)
def test_what_is_missing_or_unexpected_is_named(gone: str) -> None:
    state = trained("standard").model.state_dict()
    model = trained("standard", seed=4).model
    with pytest.raises(RuntimeError, match=f"Missing key.*{gone}"):
        model.load_state_dict({k: v for k, v in state.items() if k != gone})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*wide/other"):
        model.load_state_dict({**state, "wide/other": torch.zeros(3, 1)})
    loose = model.load_state_dict({k: v for k, v in state.items() if k != gone}, strict=False)
    assert loose.missing_keys == [gone]


def test_weights_of_another_schema_are_refused() -> None:
    state = trained("standard").model.state_dict()
    others = {
        "wide/job.*got .8, 1., the model has .7, 1.": [r for r in ROWS if r["job"] != "f"],
        "schema .*warm_start": [{**r, "job": "z" if r["job"] == "a" else r["job"]} for r in ROWS],
    }
    for message, rows in others.items():
        model = wd.WideDeep(schema(rows), embedding_dim=3, hidden_units=[6])
        for strict in (True, False):
            with pytest.raises(RuntimeError, match=message):
                model.load_state_dict(state, strict=strict)
    rest = {k: v for k, v in state.items() if not k.startswith("towers")}
    model = wd.WideDeep(schema(), embedding_dim=3, hidden_units=[6])
    with pytest.raises(RuntimeError, match=r"Missing key.*towers\.mlp"):
        model.load_state_dict(rest)


@pytest.mark.parametrize("optimizer", [wd.FTRL(), wd.Adagrad(), wd.Adam(), None])
def test_loading_into_a_trainer_starts_its_optimizers_anew(optimizer: Any) -> None:
    """FTRL's weights are made of its state: with the old one the next step would undo the load."""
    dense = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    first = trained("standard", dense=dense)
    state = copy.deepcopy(first.model.state_dict())
    used = trained("standard", seed=5, dense=dense)
    used.model.load_state_dict(state)
    np.testing.assert_array_equal(used.logits(ROWS), first.logits(ROWS))
    model = wd.WideDeep(schema(), embedding_dim=3, **MODELS["standard"])
    model.load_state_dict(state)
    new = wd.Trainer(model, batch_size=32, threads=1, progress=False, dense=dense)
    used.position.updates = 0
    for trainer in (used, new):
        trainer.fit(ROWS, steps=3)
    np.testing.assert_allclose(used.logits(ROWS), new.logits(ROWS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("meta"),
        lambda m: m.share_memory(),
    ],
)
def test_what_would_leave_the_tables_behind_is_refused(change: Any) -> None:
    trainer = trained("standard")
    before = trainer.logits(ROWS)
    with pytest.raises(ConfigError, match="which its tables, float32 on cpu, do not make"):
        change(trainer.model)
    np.testing.assert_array_equal(trainer.logits(ROWS), before)


def test_the_whole_model_is_frozen_by_the_trainer_alone() -> None:
    model = trained("standard").model
    with pytest.raises(ConfigError, match="tables and bias would learn on; give freeze= to Tr"):
        model.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in model.towers.parameters())
    assert model.requires_grad_() is model


def test_what_changes_nothing_passes() -> None:
    trainer = trained("norms")
    before = trainer.logits(ROWS)
    model = trainer.model
    for same in (model.float(), model.cpu(), model.to("cpu"), model.eval(), model.train()):
        assert same is model
    np.testing.assert_array_equal(trainer.logits(ROWS), before)
    model.eval()
    trainer.predict(ROWS)
    assert not model.training


def test_a_tower_of_another_width_is_refused_by_name() -> None:
    model = wd.WideDeep(schema(), embedding_dim=3, hidden_units=[6])
    model.towers.double()
    with pytest.raises(ConfigError, match=r"towers\.mlp\.layers\.0\.weight.*float64"):
        wd.Trainer(model)


def test_a_best_model_is_kept_as_before(tmp_path: Path) -> None:
    """The undo log and checkpoints hold each table once, not in the dense state too."""
    trainer = trained("standard", checkpoints=tmp_path)
    assert not any("/" in name for name in trainer.model.dense_state())
    trainer.fit(ROWS, epochs=4, valid=ROWS[:60], early_stopping=1)
    again = trained("standard", checkpoints=None)
    assert trainer.directory is not None
    latest = trainer.directory.latest()
    assert latest is not None
    again.load_parameters(latest)
    assert np.isfinite(again.logits(ROWS)).all()


def test_the_dense_state_is_the_rest_of_the_state_dict_and_makes_no_rows() -> None:
    model = wd.WideDeep(schema(), embedding_dim=3, hidden_units=[6], batch_norm=True)
    dense = model.dense_state()
    trainer = wd.Trainer(model, batch_size=20, progress=False)
    assert not any(table.is_filled for table in model.tables.values())
    whole = model.state_dict(keep_vars=True)
    assert list(dense) == [name for name in whole if "/" not in name and name != "schema"]
    assert all(dense[name] is whole[name] for name in dense)
    assert trainer.step.is_current


def test_a_model_prints_its_parts() -> None:
    model = wd.WideDeep(schema(), embedding_dim=3, hidden_units=[6])
    lines = repr(model).splitlines()
    assert lines[0] == "WideDeep (binary; cpu)"
    wide = sum(slot.size for slot in model.schema.slots if slot.wide)
    assert lines[1] == f"wide: {len(model.schema.spec.wide_names)} features, {wide} weights"
    assert "towers mlp, hidden units [6]" in lines[2]
    assert lines[4] == f"schema: {model.schema.fingerprint[:12]}"
    assert len(lines) == 5
