"""A step over ranks: losses and every bit of tables and layers are those of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from tests.ranks.processes import run_ranks
from tests.ranks.threads import run_threads
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError
from widedeep.ranks.config import DistributedConfig, Wire
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.training.config import TrainConfig
from widedeep.training.exchange import Exchange
from widedeep.training.feature_rates import FeatureRates
from widedeep.training.step import TrainStep

LANES = 6
SIZES = (24, 24, 17, 24, 3)  # of global batches: lanes that differ, and empty ones


def make_rows(count: int, seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(40)]
    return [
        {
            "job": words[int(rng.zipf(1.5)) % 40],
            "city": int(rng.integers(9)),
            "seen": [words[i] for i in rng.integers(40, size=rng.integers(4))],
            "last": words[int(rng.integers(40))],
            "tags": ["pqr"[i] for i in rng.integers(3, size=rng.integers(3))],
            "age": float(rng.normal()),
            "weight": float(rng.random()),
            "y": int(rng.integers(2)),
        }
        for _ in range(count)
    ]


def make_schema(dropout: float = 0.2, *, history: bool = False) -> wd.Schema:
    seen = {"combiner": None, "maxlen": 3} if history else {}
    spec = wd.FeatureSpec(
        label="y",
        weight="weight" if history else None,
        features=[
            wd.categorical(
                "job", embedding_dim=4, embedding={"dropout": dropout, "max_norm": 0.02, "l2": 0.01}
            ),
            wd.categorical("city", embedding_dim=2, embedding={"frozen": True}),
            wd.categorical("seen", embedding_dim=4, table="words", **seen),
            wd.categorical("last", embedding_dim=4, table="words"),
            wd.categorical("tags", embedding_dim=4, combiner="max"),
            wd.numeric("age"),
            wd.crossed("job", "city", hash_buckets=5000),
        ],
    )
    return wd.fit_schema(spec, make_rows(200, 0))


def global_batches(schema: wd.Schema) -> list[Batch]:
    transform = Transform(schema)
    return [
        transform(pa.Table.from_pylist(make_rows(size, step + 1)))
        for step, size in enumerate(SIZES)
    ]


def own_part(batch: Batch, ranks: Ranks) -> Batch:
    edges = [len(batch) * lane // ranks.lanes for lane in range(ranks.lanes + 1)]
    lanes = ranks.lanes_of()
    own = batch.slice(edges[lanes.start], edges[lanes.stop])
    own.lane_starts = np.array(edges[lanes.start : lanes.stop + 1]) - edges[lanes.start]
    return own


def learn(wire: Wire = "fp32", tower: str = "mlp", ranks: Ranks | None = None) -> dict[str, Any]:
    """Learn the batches on this rank's lanes; return losses, rows with their ids, and layers."""
    ranks = ranks or ranks_of(DistributedConfig(lanes=LANES, wire=wire))
    schema = make_schema(0.0 if tower == "plain" else 0.2, history=tower == "bst")
    if tower == "bst":
        model = wd.WideDeep(schema, deep=wd.models.BST(hidden_units=[8, 4], dropout=0.1))
    else:
        # Without any dropout lanes are computed together.
        dropout = 0.0 if tower == "plain" else 0.1
        model = wd.WideDeep(schema, hidden_units=[8, 4], dropout=dropout)
    step = TrainStep(
        model,
        TrainConfig(clip_norm=0.5 if tower == "bst" else None),
        wide=wd.FTRL(lr=0.1, adapt=0.1),
        deep=wd.Adagrad(lr=0.05),
        dense=torch.optim.AdamW if tower == "bst" else wd.Adagrad(lr=0.05),
        ranks=ranks,
        wire=wire,
    )
    losses, logits = [], []
    for number, batch in enumerate(global_batches(schema)):
        losses.append(step(own_part(batch, ranks), step=number + 1).losses_B.numpy().copy())
    model.eval()
    assert step.exchange is not None
    batch = global_batches(schema)[0]
    with step.exchange.rows_for(batch if ranks.is_first else batch.slice(0, 5)) as own:
        logits = model(own)[:5].numpy()
    tables = {}
    for name, table in model.tables.items():
        for key, tensor in table.named_state().items():
            ids = table.layouts[key.rpartition(".")[0]].ids_of(ranks.rank)
            tables[f"{name}/{key}"] = (ids, tensor.numpy().copy())
    layers = {name: tensor.detach().numpy().copy() for name, tensor in model.dense_state().items()}
    layers |= {name: tensor.numpy().copy() for name, tensor in step.dense_tensors().items()}
    assert step.feature_rates is not None
    layers["rates"] = step.feature_rates.log_rates.numpy().copy()
    nonzero = sum(table.nonzero for name, table in model.tables.items() if name == "wide")
    return {
        "losses": losses, "tables": tables, "layers": layers, "logits": logits, "nonzero": nonzero
    }  # fmt: skip


def merged(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the ranks' results together, each row where its id says."""
    losses = [np.concatenate(parts) for parts in zip(*(r["losses"] for r in results), strict=True)]
    tables = {}
    for name in results[0]["tables"]:
        parts = [result["tables"][name] for result in results]
        rows = np.full((sum(len(ids) for ids, _ in parts), parts[0][1].shape[1]), np.nan)
        for ids, values in parts:
            rows[ids] = values
        tables[name] = rows
    for result in results[1:]:
        for name, values in results[0]["layers"].items():
            np.testing.assert_array_equal(result["layers"][name], values, err_msg=name)
        np.testing.assert_array_equal(result["logits"], results[0]["logits"])
    nonzero = sum(result["nonzero"] for result in results)
    return {**results[0], "losses": losses, "tables": tables, "nonzero": nonzero}


def check_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    for step, (left, right) in enumerate(zip(one["losses"], other["losses"], strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"losses of step {step}")
    for group in ("tables", "layers"):
        assert one[group].keys() == other[group].keys()
        for name, values in one[group].items():
            np.testing.assert_array_equal(values, other[group][name], err_msg=name)
    np.testing.assert_array_equal(one["logits"], other["logits"])
    assert one["nonzero"] == other["nonzero"] > 0


def test_lanes_change_results_by_the_order_of_sums_alone() -> None:
    schema = make_schema(dropout=0.0)
    steps = []
    for lanes in (1, LANES):
        model = wd.WideDeep(schema, hidden_units=[8, 4])
        steps.append(
            TrainStep(
                model,
                TrainConfig(),
                wide=wd.FTRL(lr=0.1, adapt=0.1),
                deep=wd.Adagrad(lr=0.05),
                dense=wd.Adagrad(lr=0.05),
                ranks=Ranks(lanes=lanes),
            )
        )
    for number, batch in enumerate(global_batches(schema)):
        one, lanes = (
            step(own_part(batch, step.ranks) if step.exchange else batch, step=number + 1)
            for step in steps
        )
        torch.testing.assert_close(lanes.losses_B, one.losses_B, rtol=1e-5, atol=1e-6)
    for name, table in steps[0].model.tables.items():
        for key, values in table.named_state().items():
            other = steps[1].model.tables[name].named_state()[key]
            torch.testing.assert_close(other, values, rtol=1e-4, atol=1e-6, msg=key)


def test_a_model_too_large_for_one_machine_fits_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = make_schema()
    monkeypatch.setattr("widedeep.models.wide_deep._memory_bytes", lambda device: 16_000)
    with pytest.raises(ConfigError, match=r"would take 0\.0 GiB, most of it for wide weights"):
        wd.WideDeep(schema, hidden_units=[4])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "wide: 6 features, " in repr(wd.WideDeep(schema, hidden_units=[4]))
    with pytest.raises(ConfigError, match="GiB on each of 4 ranks, most of it for hidden layers"):
        wd.WideDeep(schema, hidden_units=[100_000])


@pytest.mark.parametrize(
    ("size", "wire", "tower"),
    [
        pytest.param(3, "bf16", "mlp", marks=pytest.mark.slow),
        pytest.param(3, "fp32", "bst", marks=pytest.mark.slow),
    ],
)
def test_processes_learn_what_one_of_them_learns(size: int, wire: Wire, tower: str) -> None:
    check_equal(merged([learn(wire, tower)]), merged(run_ranks(size, learn, wire, tower)))


@pytest.mark.parametrize(
    ("wire", "tower", "sizes"),
    [("fp32", "mlp", [5]), ("fp32", "plain", [2, 5]), ("bf16", "plain", [4])],
)
def test_any_number_of_ranks_learns_what_one_process_learns(
    wire: Wire, tower: str, sizes: list[int]
) -> None:
    alone = merged([learn(wire, tower)])
    for size in sizes:
        results = run_threads(size, lambda ranks: learn(wire, tower, ranks), lanes=LANES)
        check_equal(alone, merged(results))


@pytest.mark.parametrize("narrow_rows", [1 << 30, 0])
def test_scores_are_of_the_rows_as_they_are_whatever_the_wire(
    narrow_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widedeep.training.exchange._NARROW_ROWS", narrow_rows)
    schema = make_schema()
    (batch, *_) = global_batches(schema)

    def scores(ranks: Ranks) -> Any:
        model = wd.WideDeep(schema, hidden_units=[]).eval()
        model.set_shard(ranks.rank, ranks.size)
        with Exchange(model, ranks, wire="bf16").rows_for(batch):
            return model.gather(batch).concat_BX.numpy()

    alone = wd.WideDeep(schema, hidden_units=[]).gather(batch).concat_BX.numpy()
    for found in run_threads(2, scores, lanes=LANES):
        np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e5])
def test_rates_of_features_do_not_depend_on_where_rows_lie(magnitude: float) -> None:
    random = np.random.default_rng(0)
    products = random.normal(0, magnitude, (2, 300)).astype(np.float32)
    owner = random.integers(0, 3, 300)

    def learned(ranks: Ranks) -> Any:
        rates = FeatureRates(2, step=0.1)
        own = products[:, owner == ranks.rank] if ranks.size > 1 else products
        starts = np.arange(3) * own.shape[1]
        rates.learn_over(ranks, torch.from_numpy(own.reshape(-1)), starts)
        return rates.log_rates.numpy()

    alone = learned(Ranks(lanes=LANES))
    assert (alone != 0).all()
    for found in run_threads(3, learned, lanes=LANES):
        np.testing.assert_array_equal(found, alone)


def test_no_rows_are_made_before_the_ranks_divide_them() -> None:
    model = wd.WideDeep(make_schema(), hidden_units=[8, 4])
    wd.Trainer(model, batch_size=LANES, distributed=DistributedConfig(lanes=LANES))
    assert repr(model) and model.n_parameters > 5000
    assert not any(table.is_filled for table in model.tables.values())
