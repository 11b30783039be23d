"""Planted interactions: what a model of pairs finds from few examples a pair, others do not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep import models


def auc(deep: models.TowerConfig, train: pa.Table, test: pa.Table, *, epochs: int = 4) -> float:
    """Train a tower alone, without a wide part, and evaluate it on other rows."""
    names = [name for name in train.column_names if name != "y"]
    numbers = train.schema.field(names[0]).type == pa.float64()
    features = wd.numeric(*names) if numbers else wd.categorical(*names)
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=features, wide=[]), train)
    model = wd.WideDeep(schema, deep=deep, embedding_dim=8, seed=0)
    adam = wd.Adam(lr=0.02)
    trainer = wd.Trainer(model, deep=adam, dense=adam, batch_size=128, threads=1, progress=False)
    trainer.fit(train, epochs=epochs)
    return trainer.evaluate(test)["auc"]


def product_of_two(rows: int, seed: int, *, n_ids: int = 160, n_others: int = 8) -> pa.Table:
    """Labels that are the product of two features' hidden signs, among others without a say."""
    signs_2I = np.random.default_rng(7).permuted(
        np.tile(np.repeat([-1, 1], n_ids // 2), (2, 1)), axis=1
    )
    ids_NF = np.random.default_rng(seed).integers(n_ids, size=(rows, 2 + n_others))
    columns = {f"f{i}": ids_NF[:, i] for i in range(2 + n_others)}
    return pa.table({**columns, "y": signs_2I[0][ids_NF[:, 0]] * signs_2I[1][ids_NF[:, 1]] > 0})


@pytest.fixture(scope="module")
def products() -> tuple[pa.Table, pa.Table]:
    """An example in eight pairs of values."""
    return product_of_two(3000, 3), product_of_two(2000, 13)


def test_a_perceptron_learns_a_product_of_two_by_heart(
    products: tuple[pa.Table, pa.Table],
) -> None:
    assert auc(models.MLP(hidden_units=(32, 16)), *products) < 0.6


@pytest.mark.parametrize(
    "deep",
    [models.FFM(), models.DeepFFM(hidden_units=(16,)), models.ONN(hidden_units=(16,))],
    ids=lambda deep: deep.name,
)
def test_field_aware_models_find_a_product_of_two(
    deep: models.TowerConfig, products: tuple[pa.Table, pa.Table]
) -> None:
    assert auc(deep, *products) > 0.75


def all_pairs(rows: int, seed: int) -> pa.Table:
    """Labels by the sum of the scalar products of all pairs of four hidden vectors."""
    vectors_FID = np.random.default_rng(7).normal(size=(4, 50, 2))
    ids_NF = np.random.default_rng(seed).integers(50, size=(rows, 4))
    v_NFD = vectors_FID[np.arange(4), ids_NF]
    sums_N = (v_NFD.sum(1) ** 2 - (v_NFD**2).sum(1)).sum(1)
    return pa.table({**{f"f{i}": ids_NF[:, i] for i in range(4)}, "y": sums_N > 0})


@pytest.mark.slow
def test_an_input_aware_machine_finds_all_pairs_sooner_than_a_perceptron() -> None:
    tables = all_pairs(3000, 1), all_pairs(2000, 2)
    perceptron = auc(models.MLP(hidden_units=(32, 16)), *tables)
    assert auc(models.IFM(hidden_units=(16,)), *tables) > perceptron + 0.04


def quadrants(rows: int, seed: int) -> pa.Table:
    """Labels that are linear in each half of the plane, and in no other way."""
    x, y = np.random.default_rng(seed).normal(size=(2, rows))
    return pa.table({"x": x, "z": y, "y": x * y > 0})


def test_a_mixture_of_linear_pieces_fits_what_one_piece_cannot() -> None:
    tables = quadrants(2000, 1), quadrants(2000, 2)
    assert auc(models.LR(), *tables) < 0.6
    assert auc(models.MLR(regions=8), *tables, epochs=8) > 0.85
