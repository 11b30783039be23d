"""Two towers: their loss against a loop over pairs, what they learn, their way into a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from tests.two_tower_shop import CATALOGUE, ITEMS, shop, spec, trained
from widedeep import models
from widedeep.bundle.items import ItemVectors
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, ConfigError, DataError
from widedeep.models.tower import TrainingRows


@pytest.fixture(scope="module")
def trainer() -> wd.Trainer:
    return trained()


def reference_losses(
    tower: Any, u_BD: Any, v_BD: Any, ids: Any, labels: Any, chance: dict[int, float]
) -> Any:
    """The losses of a batch, positive by positive, item by item."""
    config, losses_B = tower.config, np.zeros(len(ids))
    items = {int(id_): row for row, id_ in reversed(list(enumerate(ids)))}  # its first row
    for row in np.flatnonzero(labels > 0):

        def logit(of: int, u_D: Any = u_BD[row]) -> float:
            product = float(u_D @ v_BD[of]) / config.temperature
            return float(product - config.log_q * np.log(chance[int(ids[of])]))

        own = logit(row)
        others = [logit(first) for id_, first in items.items() if id_ != ids[row]]
        loss = np.log(np.sum(np.exp([own, *others]))) - own
        if config.hard_negatives:
            hard = sorted(others)[-config.hard_negatives :]
            loss += np.log(np.sum(np.exp([own, *hard]))) - own
        losses_B[row] = loss
    return losses_B


@pytest.mark.parametrize("hard", [0, 3])
def test_the_loss_is_that_of_a_loop_over_pairs(hard: int) -> None:
    table = shop(60)
    schema = wd.fit_schema(spec(), table)
    options: dict[str, Any] = {"hard_negatives": hard, "temperature": 0.3, "log_q": 0.7}
    tower = models.TwoTower(dim=4, hidden_units=(5,), **options)
    model = wd.WideDeep(schema, deep=tower, embedding_std=0.5)
    batch = Transform(schema)(table)
    rows = TrainingRows(batch, schema)
    module: Any = model.towers["two_tower"]
    ids, labels = rows.single_ids("item"), rows.labels("")
    often = set(ids[:10].tolist())  # in four batches of four, the others in this one alone
    for _ in range(3):
        module._chances(torch.tensor(sorted(often)))
    chance = {int(id_): 1.0 if id_ in often else 0.25 for id_ in ids}
    with torch.no_grad():
        u_BD, v_BD = (t(model.gather(batch)) for t in (module.query_tower, module.item_tower))
        losses_B = module._losses(u_BD, v_BD, rows).numpy()
    assert len(often) < len(chance)
    u_D, v_D = u_BD.double().numpy(), v_BD.double().numpy()
    expected = reference_losses(module, u_D, v_D, ids, labels, chance)
    assert len(set(ids.tolist())) < 40  # some items are there more than once
    np.testing.assert_allclose(losses_B, expected, rtol=1e-3)


def test_the_correction_takes_what_is_often_in_a_batch_back() -> None:
    schema = wd.fit_schema(spec(), shop(60))
    model = wd.WideDeep(schema, deep=models.TwoTower(dim=4, hidden_units=(5,)))
    module: Any = model.towers["two_tower"]
    for ids in ([2, 3], [2, 4], [2, 5], [2, 3]):
        chances = module._chances(torch.tensor(ids))
    assert chances.tolist() == pytest.approx([1.0, 0.5], abs=1e-3)


def test_a_user_gets_what_he_likes_and_not_what_is_shown_most(
    trainer: wd.Trainer, tmp_path: Path
) -> None:
    bundle = trainer.export(tmp_path / "bundle")
    v_ND, share = bundle.item_vectors(CATALOGUE), []
    for user in range(6):
        best = np.argsort(-(v_ND @ bundle.query_vector({"user": f"u{user}"})))[: ITEMS // 3]
        share.append(np.mean([(user + item) % 3 == 0 for item in best]))
    assert np.mean(share) > 0.9  # a third by chance
    assert trainer.evaluate(shop(2000, 1))["auc"] > 0.8


def test_a_bundle_has_the_vectors_of_its_trainer(trainer: wd.Trainer, tmp_path: Path) -> None:
    bundle = trainer.export(tmp_path / "bundle", items=CATALOGUE)
    assert bundle.manifest.engine == "graph"
    rows = [{"user": f"u{u}", "item": f"i{u}", "price": 1.0 * u, "place": 7} for u in range(6)]
    batch = bundle.encode(rows)
    vectors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        inputs = trainer.model.gather(batch)
        object.__setattr__(inputs, "vectors", vectors)
        trainer.model.eval().deep_logits(inputs)
    query_D = bundle.query_vector({"user": "u3"})
    np.testing.assert_allclose(query_D, vectors["query"][3].numpy(), atol=1e-6)
    items = pa.table({"item": ["i3", "i5"], "price": [3.0, 5.0]})
    np.testing.assert_allclose(
        bundle.item_vectors(items), vectors["item"][[3, 5]].numpy(), atol=1e-6
    )
    assert np.linalg.norm(query_D) == pytest.approx(1.0, abs=1e-6)
    again = wd.Bundle.load(tmp_path / "bundle").items
    assert again is not None
    assert (again.column, again.rows["i7"], len(again)) == ("item", 7, ITEMS)
    assert (again.vectors_ND == bundle.item_vectors(CATALOGUE)).all()
    assert "vectors: 24 items by 'item', 6 wide" in repr(bundle)
    explained = bundle.explain(rows[0])  # vectors explain no logit
    assert not explained.towers


def test_a_catalogue_of_integers_is_kept_too(tmp_path: Path) -> None:
    ids = pa.array([7, 3, 1 << 40])
    vectors_ND = np.eye(3, dtype=np.float32)
    ItemVectors("item", ids, vectors_ND).write(tmp_path)
    kept = ItemVectors.read(tmp_path)
    assert kept is not None
    assert kept.rows == {7: 0, 3: 1, 1 << 40: 2}
    assert (kept.vectors_ND == vectors_ND).all()


def test_a_damaged_file_of_vectors_is_refused(trainer: wd.Trainer, tmp_path: Path) -> None:
    trainer.export(tmp_path / "bundle", items=CATALOGUE)
    file = tmp_path / "bundle" / "items.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BundleError, match=r"items\.safetensors: its SHA-256"):
        wd.Bundle.load(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle")


def test_towers_through_onnx_have_vectors_too(trainer: wd.Trainer, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    class Odd(torch.nn.Module):
        def forward(self, inputs: Any) -> Any:
            return torch.erf(inputs.concat_BX).cumsum(1)[:, :2].atan()

    model = wd.WideDeep(
        trainer.model.schema,
        deep=models.TwoTower(dim=6, hidden_units=(12,)),
        towers={"odd": Odd()},
    )
    bundle = wd.Trainer(model, progress=False).export(tmp_path / "bundle", items=CATALOGUE)
    assert bundle.manifest.engine == "onnx"
    query_D = bundle.query_vector({"user": "u1"})
    assert bundle.items is not None
    assert np.isfinite(bundle.items.vectors_ND @ query_D).all()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"item": ["price"]}, {}, "got 0 embedded features of the item"),
        (
            {"item": ["item", "price", "user", "age"]},
            {"item": "item"},
            "no feature of the query alone",
        ),
        ({}, {"item": "itm"}, "got item='itm'.*did you mean 'item'"),
        ({}, {"label": "sold"}, "got label='sold'"),
        ({}, {"temperature": 0.0}, "temperature=0.0"),
        ({}, {"log_q": 2.0}, "log_q=2.0"),
    ],
)
def test_what_cannot_be_two_towers(
    changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    schema = wd.fit_schema(spec(**changes), shop(60))
    with pytest.raises(ConfigError, match=message):
        wd.WideDeep(schema, deep=models.TwoTower(**options))


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (CATALOGUE.drop(["price"]), DataError, "price"),
        (pa.concat_tables([CATALOGUE, CATALOGUE.slice(3, 1)]), BundleError, "'i3' more than once"),
        (
            CATALOGUE.set_column(0, "item", pa.array([None, *["x"] * (ITEMS - 1)])),
            BundleError,
            r"row 0\): got null",
        ),
        (CATALOGUE.slice(0, 0), BundleError, "no rows"),
    ],
)
def test_items_that_a_bundle_cannot_keep(
    trainer: wd.Trainer, tmp_path: Path, items: pa.Table, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        trainer.export(tmp_path / "bundle", items=items)
    assert not (tmp_path / "bundle").exists()


def test_a_model_without_two_towers_has_no_vectors(tmp_path: Path) -> None:
    model = wd.WideDeep(wd.fit_schema(spec(), shop(60)), hidden_units=[4])
    plain = wd.Trainer(model, progress=False)
    with pytest.raises(BundleError, match="two_tower"):
        plain.export(tmp_path / "bundle", items=CATALOGUE)
    bundle = plain.export(tmp_path / "bundle")
    assert not bundle.has_vectors
    with pytest.raises(BundleError, match="without two towers"):
        bundle.query_vector({"user": "u1"})
