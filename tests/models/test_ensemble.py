"""An ensemble's members are the towers that they would be alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from widedeep import models
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError

RNG = np.random.default_rng(0)
A, B = RNG.integers(0, 5, 160), RNG.integers(0, 3, 160)
ROWS = pa.table(
    {
        "a": [f"a{i}" for i in A],
        "b": [[f"b{i}", f"b{j}"] for i, j in zip(B, A % 3, strict=True)],
        "x": RNG.normal(size=160),
        "click": ((A + B) % 2).astype(np.int64),
    }
)


def make_model(deep: Any, *, seed: int = 0, history: bool = False) -> wd.WideDeep:
    b = wd.categorical("b", combiner=None, maxlen=2) if history else wd.categorical("b")
    item = "b" if history else "a"
    features = [wd.categorical("a", table=item), b, *wd.numeric("x")]
    spec = wd.FeatureSpec(label="click", features=features, wide=[], item=["a"])
    schema = wd.fit_schema(spec, ROWS)
    return wd.WideDeep(schema, deep=deep, embedding_dim=4, embedding_std=0.3, seed=seed)


def train(model: wd.WideDeep, dense_lr: float) -> None:
    wd.Trainer(
        model,
        batch_size=20,
        deep=wd.SGD(lr=0.1),
        dense=wd.SGD(lr=dense_lr),
        schedule="constant",
        freeze=["bias"],
        threads=1,
        progress=False,
    ).fit(ROWS, epochs=5)


DIEN = {"name": "dien", "hidden_units": [6], "state_width": 3, "dice": False}
MEMBERS = [
    {"name": "mlp", "hidden_units": [6]},
    {"name": "deep_fm", "hidden_units": [6]},
    {"name": "din", "hidden_units": [6], "attention_units": [3]},
]


@pytest.mark.parametrize("of", MEMBERS, ids=lambda of: of["name"])
def test_each_member_learns_what_it_would_learn_alone(of: dict[str, Any]) -> None:
    history = of["name"] == "din"
    ensemble = make_model({"name": "ensemble", "of": of, "members": 3}, history=history)
    tower: Any = ensemble.towers["ensemble"]
    singles = [make_model(of, seed=seed, history=history) for seed in (1, 2, 3)]
    for m, single in enumerate(singles):
        own: Any = single.towers[of["name"]]
        own.load_state_dict(tower.towers[m].state_dict())
        if len(tower.outputs):
            single.outputs[of["name"]].load_state_dict(tower.outputs[m].state_dict())
        for name, weight in single.embedding_tables[0].named_weights().items():
            wide = ensemble.embedding_tables[0].named_weights()[name]
            wide[:, 4 * m : 4 * m + 4] = weight
    train(ensemble, dense_lr=0.3)  # dense gradients are of the members' mean
    for single in singles:
        train(single, dense_lr=0.1)
    for m, single in enumerate(singles):
        for name, weight in single.embedding_tables[0].named_weights().items():
            wide = ensemble.embedding_tables[0].named_weights()[name]
            torch.testing.assert_close(wide[:, 4 * m : 4 * m + 4], weight, rtol=1e-4, atol=1e-5)
    batch = Transform(ensemble.schema)(ROWS)
    alone = torch.stack([single.eval()(batch) for single in singles])
    torch.testing.assert_close(ensemble.eval()(batch), alone.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert float((alone[0] - alone[1]).abs().max()) > 0.05  # they differ


@pytest.mark.parametrize("embeddings", ["own", "shared"])
def test_losses_of_members_own_are_their_mean(embeddings: str) -> None:
    of = {**DIEN, "next_event_weight": 1.0}
    table = {"name": "ensemble", "of": of, "members": 3, "embeddings": embeddings}
    losses = []
    for deep in (of, table):
        model = make_model(deep, history=True)
        found = dataclasses.replace(model.gather(Transform(model.schema)(ROWS)), own_losses=[])
        (tower,) = model.towers.values()
        tower(found)
        assert found.own_losses is not None
        losses.append(sum(loss_B.detach().sum().item() for loss_B in found.own_losses))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_members_may_share_embeddings() -> None:
    of = {"name": "mlp", "hidden_units": [6]}
    deep = {"name": "ensemble", "of": of, "members": 3, "embeddings": "shared"}
    model = make_model(deep)
    assert model.layout.dims == {"a": 4, "b": 4}
    tower: Any = model.towers["ensemble"]
    assert [t.layers[0].in_features for t in tower.towers] == [9, 9, 9]


def test_each_member_starts_with_pretrained_vectors() -> None:
    vectors = {"a0": [1.0, 2.0, 3.0, 4.0], "a3": [5.0, 6.0, 7.0, 8.0]}
    schema = make_model("mlp").schema
    deep = models.Ensemble(of=models.MLP(hidden_units=(4,)), members=2)
    model = wd.WideDeep(schema, deep=deep, embedding_dim=4, pretrained={"a": vectors})
    weights = model.embedding_tables[0].named_weights()["a"].numpy()
    starts = {tuple(row) for row in weights.tolist()}
    assert {tuple(vector * 2) for vector in vectors.values()} <= starts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members=0"),
        ({"of": "mpl"}, "tower of the name 'mpl'; did you mean"),
        ({"of": 3}, "of = 3, expected a tower"),
        ({"of": {"name": "mlp", "dropout": 1.0}}, "dropout=1.0"),
        ({"embeddings": "both"}, "embeddings = 'both'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.Ensemble(**options)


def test_an_ensemble_of_ensembles_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tabm', which has members itself"):
        make_model({"name": "ensemble", "of": "tabm"})


def test_an_ensemble_of_two_towers_is_refused() -> None:
    with pytest.raises(ConfigError, match="vectors for retrieval are those of one model"):
        models.Ensemble(of="two_tower")


def test_its_bundle_is_one_native_model(tmp_path: Any) -> None:
    deep = models.Ensemble(of=models.DCNv2(layers=1, hidden_units=(6,)), members=3)
    model = make_model(deep)
    trainer = wd.Trainer(model, batch_size=20, threads=1, progress=False)
    trainer.fit(ROWS, epochs=2)
    bundle = trainer.export(tmp_path / "bundle")
    assert bundle.manifest.engine == "graph"  # its operations, without ONNX Runtime
    rows = ROWS.slice(0, 30).to_pylist()
    np.testing.assert_allclose(bundle.score(rows), trainer.predict(rows), atol=1e-6)
    ranker = wd.Ranker(bundle)
    assert ranker.engine == "factored"
    ranking = ranker.rank({"b": rows[0]["b"], "x": rows[0]["x"]}, {}, {"a": ["a0", "a1", "a2"]})
    expected = bundle.score([{**rows[0], "a": a} for a in ("a0", "a1", "a2")])
    np.testing.assert_array_equal(ranking.scores, np.sort(expected)[::-1])
