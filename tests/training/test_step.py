import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from tests.dense_reference import DenseReference
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.training.config import TrainConfig
from widedeep.training.step import TrainStep


def make_rows(count: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(count)
    return [
        {
            "a": "uvwxyz"[rng.integers(6)],
            "b": int(rng.integers(9)),
            "c": ["pqr"[i] for i in rng.integers(3, size=rng.integers(3))],
            "y": int(rng.integers(2)),
        }
        for _ in range(count)
    ]


def make_step(deep: list[str] | None = None) -> tuple[TrainStep, wd.Schema]:
    spec = wd.FeatureSpec(
        label="y",
        deep=deep,
        features=[
            wd.categorical("a", embedding_dim=4),
            wd.categorical("b", embedding_dim=2),
            wd.categorical("c", embedding_dim=4),
            wd.crossed("a", "b"),
        ],
    )
    schema = wd.fit_schema(spec, make_rows(120))
    sgd = wd.SGD(lr=0.25)
    model = wd.WideDeep(schema, hidden_units=[6])
    config = TrainConfig(loss_reduction="sum")
    return TrainStep(model, config, wide=sgd, deep=sgd, dense=sgd), schema


@pytest.mark.parametrize("deep", [None, ["a", "c"], ["b"]])
def test_ids_grouped_once_move_the_same_rows(deep: list[str] | None) -> None:
    step, schema = make_step(deep)
    transform = Transform(schema)
    for count in (20, 7):
        batch = transform(pa.Table.from_pylist(make_rows(count)))
        reference = DenseReference(step.model)
        reference.loss(batch).backward()
        wanted = {
            name: (weight - 0.25 * weight.grad).detach()
            for name, weight in reference.tables.items()
        }
        step(batch)
        for table in step.model.deep_tables.values():
            for name, weight in table.named_weights().items():
                torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("deep", "dim"), [(["b"], 2), (["a", "c"], 4)], ids=["beside", "apart"])
def test_the_wide_groups_serve_the_embeddings(deep: list[str], dim: int) -> None:
    step, schema = make_step(deep)
    batch = Transform(schema)(pa.Table.from_pylist(make_rows(20)))
    model = step.model
    assert model.wide_table is not None
    table = model.deep_tables[dim]
    shared = table.regroup(model.wide_table, model.wide_table.group(batch, schema.slots))
    assert shared is not None
    assert torch.equal(shared.rows, table.group(batch, schema.slots).rows)


def test_a_batch_without_labels_is_refused() -> None:
    step, schema = make_step()
    batch = Transform(schema)(pa.Table.from_pylist(make_rows(5)), targets=False)
    with pytest.raises(DataError, match="a batch without labels"):
        step(batch)
