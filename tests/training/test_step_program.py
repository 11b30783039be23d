"""Runs of steps: the bits of one step after the other, whatever the batches, and the refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

import widedeep as wd
from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.models import heads
from widedeep.optim import RMSProp
from widedeep.training.config import TrainConfig
from widedeep.training.schedules import Rates
from widedeep.training.step import TrainStep


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "a": "uvwxyz"[int(rng.integers(6))],
            "b": int(rng.zipf(1.3)) % 300,
            "c": ["pqr"[i] for i in rng.integers(3, size=rng.integers(4))],
            "x": float(rng.normal()),
            "w": float(rng.integers(3)) + 0.1,
            "y": int(rng.integers(2)),
        }
        for _ in range(count)
    ]


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widedeep.training.step_program.MOST_SECONDS", np.inf)


SINGLE = [wd.categorical("a", embedding_dim=4), wd.categorical("b"), wd.crossed("a", "b")]
BAGS = [*SINGLE, wd.categorical("c", combiner="mean"), *wd.numeric("x")]


def make_step(
    features: list[Any] = BAGS,
    *,
    deep: list[str] | None = None,
    wide: list[str] | None = None,
    weight: str | None = None,
    threads: int = 1,
    optimizers: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> TrainStep:
    spec = wd.FeatureSpec(label="y", features=features, deep=deep, wide=wide, weight=weight)
    schema = wd.fit_schema(spec, make_rows(400))
    model = wd.WideDeep(schema, **({"hidden_units": [8, 5]} | options))
    chosen = {"wide": wd.FTRL(l1=0.01), "deep": wd.Adagrad(l2=0.01), "dense": wd.Adagrad()}
    chosen |= optimizers or {}
    return TrainStep(model, TrainConfig(**(config or {})), threads=threads, **chosen)


def encoded(step: TrainStep, count: int) -> Batch:
    return Transform(step.model.schema)(pa.Table.from_pylist(make_rows(count, seed=1)))


def state_of(step: TrainStep) -> dict[str, bytes]:
    tensors = {
        f"{k}/{n}": t for k, v in step.model.tables.items() for n, t in v.named_state().items()
    }
    tensors |= {f"dense/{k}": t for k, t in step.model.dense_state().items()}
    tensors |= {f"optimizer/{k}": t for k, t in step.dense_tensors().items()}
    if step.feature_rates is not None:
        tensors |= {f"rates/{k}": t for k, t in step.feature_rates.tensors().items()}
    found = {k: t.detach().numpy().tobytes() for k, t in tensors.items()}
    if step.model.wide_table is not None:
        found["nonzero"] = str(step.model.wide_table.nonzero).encode()
    return found


def rates_of(steps: int) -> NDArray[np.float64]:
    return np.linspace(1.0, 0.5, 3 * steps).reshape(-1, 3)


def by_parts(step: TrainStep, rows: Batch, batch_rows: int) -> tuple[list[bytes], dict[str, bytes]]:
    results = []
    rates_S3 = rates_of(-(-len(rows) // batch_rows))
    for i, rates in enumerate(rates_S3):
        batch = rows.slice(i * batch_rows, (i + 1) * batch_rows)
        result = step.by_parts(batch, Rates(*rates.tolist()), i + 1)
        losses_B = result.losses_B
        if batch.weight_B is not None:
            losses_B = losses_B * torch.from_numpy(batch.weight_B)
        parts = (result.logits_BC, result.losses_B, result.grad_BC, losses_B.sum())
        results += [part.clone().numpy().tobytes() for part in parts]
    return results, state_of(step)


def as_runs(step: TrainStep, rows: Batch, batch_rows: int) -> tuple[list[bytes], dict[str, bytes]]:
    rates_S3 = rates_of(-(-len(rows) // batch_rows))
    result = step.run(rows, batch_rows, rates_S3=rates_S3)
    assert result.totals_S is not None and result.steps == len(rates_S3)
    results = []
    for i, total in enumerate(result.totals_S):
        span = slice(i * batch_rows, (i + 1) * batch_rows)
        parts = (result.logits_BC[span], result.losses_B[span], result.grad_BC[span], total)
        results += [part.numpy().tobytes() for part in parts]
    return results, state_of(step)


MODELS: dict[str, Callable[..., TrainStep]] = {
    "wide": lambda **k: make_step(SINGLE, deep=[], **k),
    "wide of bags": lambda **k: make_step(deep=[], optimizers={"wide": wd.FTRL(adapt=0)}, **k),
    "wide and deep": lambda **k: make_step(SINGLE, hidden_units=[70, 40], **k),
    "bags and numbers": lambda **k: make_step(**k),
    "deep": lambda **k: make_step(wide=[], activation="gelu", **k),
    "weights": lambda **k: make_step(weight="w", config={"loss_reduction": "sum"}, **k),
    "dropout": lambda **k: make_step(dropout=0.3, **k),
    "frozen": lambda **k: make_step(config={"freeze": ["table/a"]}, **k),
    "part rates": lambda **k: make_step(config={"rates": {"towers.*": 0.5}}, **k),
    "sgd": lambda **k: make_step(optimizers={"deep": wd.SGD(), "dense": wd.SGD()}, **k),
    "adam": lambda **k: make_step(
        optimizers={"deep": wd.Adam(), "dense": wd.Adam(lr=0.003, weight_decay=3.0)}, **k
    ),
    "focal": lambda **k: make_step(head=heads.Binary(loss="focal"), weight="w", **k),
    "classes": lambda **k: make_step(head=heads.Multiclass(classes=3), **k),
    "weighed classes": lambda **k: make_step(
        SINGLE, deep=[], weight="w", head=heads.Multiclass(classes=2), **k
    ),
    "regression": lambda **k: make_step(head=heads.Regression(), **k),
    "numbers": lambda **k: make_step(
        wd.numeric("x", "b"), optimizers={"dense": wd.Adam()}, head=heads.Regression(), **k
    ),
}


@pytest.mark.parametrize("batch_rows", [1, 2, 16, 256])
@pytest.mark.parametrize("model", MODELS)
def test_a_run_has_the_bits_of_its_steps(model: str, batch_rows: int) -> None:
    count = {1: 20, 2: 21, 16: 90, 256: 700}[batch_rows]
    for threads in (1, 2):
        first, second = (MODELS[model](threads=threads) for _ in range(2))
        assert first.program.fits
        rows = encoded(first, count)
        wanted, found = by_parts(first, rows, batch_rows), as_runs(second, rows, batch_rows)
        assert found[0] == wanted[0]
        for name, tensor in wanted[1].items():
            assert found[1][name] == tensor, name


def test_batches_with_norms_are_counted() -> None:
    first, second = (make_step(batch_norm=True) for _ in range(2))
    rows = encoded(first, 90)
    assert as_runs(second, rows, 16) == by_parts(first, rows, 16)


@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 17, 63, 64, 65, 257, 1000, 2048, 9999])
def test_numbers_are_added_as_torch_adds_them(count: int) -> None:
    numbers = np.random.default_rng(count).normal(size=count).astype(np.float32)
    wanted = float(torch.from_numpy(numbers)[:, None].sum(dim=0))
    found = kernels.float_sum(numbers)
    if torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2"):
        assert found == wanted
    assert found == pytest.approx(float(numbers.astype(np.float64).sum()), abs=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizers": {"dense": RMSProp()}},
        {"config": {"clip_norm": 1.0}},
        {"optimizers": {"wide": wd.Adagrad()}},
    ],
    ids=["rmsprop", "clipping", "counts"],
)
def test_other_models_are_learned_step_by_step(change: dict[str, Any]) -> None:
    first, second = (make_step(**change) for _ in range(2))
    assert not first.program.fits
    rows = encoded(first, 20)
    by_parts(first, rows.slice(0, 16), 16)
    result = second.run(rows, 16, rates_S3=rates_of(2))
    assert result.steps == 1 and len(result.losses_B) == 16
    second.by_parts(rows.slice(16, 20), Rates(), 2)
    first.by_parts(rows.slice(16, 20), Rates(), 2)
    assert state_of(first).keys() == state_of(second).keys()


@pytest.mark.parametrize("head", [heads.Binary(), heads.Multiclass()], ids=["log", "classes"])
def test_a_run_stops_before_a_label_that_is_none(head: heads.Head) -> None:
    step, other = make_step(head=head), make_step(head=head)
    rows = encoded(step, 40)
    assert rows.labels_BL is not None
    rows.labels_BL[19, 0] = np.nan
    result = step.run(rows, 8, rates_S3=rates_of(5))
    assert result.steps == 2 and len(result.logits_BC) == 16
    by_parts(other, rows.slice(0, 16), 8)
    before = state_of(step)
    with pytest.raises(DataError, match="label"):
        step.run(rows.slice(16, 40), 8, rates_S3=rates_of(3))
    assert state_of(step) == before


@pytest.mark.parametrize("head", [heads.Binary(), heads.Regression()], ids=["log", "squared"])
def test_a_run_stops_before_a_loss_that_is_no_number(head: heads.Head) -> None:
    step = make_step(head=head)
    rows = encoded(step, 24)
    rows.dense_BK[17] = np.inf
    assert step.run(rows, 8, rates_S3=rates_of(3)).steps == 2
    before = state_of(step)
    with pytest.raises(DataError, match="nothing was learned from this batch") as caught:
        step.run(rows.slice(16, 24), 8, rates_S3=rates_of(1))
    assert caught.value.row == 1
    assert state_of(step) == before


def test_the_best_model_comes_back_after_runs() -> None:
    step = make_step()
    rows = encoded(step, 200)
    step.keep_best()
    step.run(rows.slice(0, 50), 5, rates_S3=rates_of(10))
    step.mark_best()
    best = state_of(step)
    step.run(rows.slice(50, 200), 1, rates_S3=rates_of(150))
    assert state_of(step) != best
    step.restore_best()
    assert state_of(step) == best


def test_a_model_without_towers_reads_no_table_of_embeddings(tmp_path: Path) -> None:
    kinds: list[Any] = ["fp32", "bf16"]
    steps = [make_step(SINGLE, hidden_units=[], table_dtype=kind) for kind in kinds]
    rows = encoded(steps[0], 100)
    for step in steps:
        assert step.model.deep_tables and step.program.fits
        assert step.run(rows, 1, rates_S3=np.ones((100, 3))).steps == 100
    one, other = (step.model.wide_table for step in steps)
    assert one is not None and other is not None and torch.equal(one.weight, other.weight)
    trainer = wd.Trainer(steps[1].model, bundle_tables="int4", progress=False)
    assert trainer.export(tmp_path / "bundle", warmup=False).rounding is None


def test_one_example_at_a_time_is_online_learning() -> None:
    step = make_step(SINGLE, deep=[], optimizers={"wide": wd.FTRL(l1=0.05, adapt=0, lr=0.2)})
    rows = encoded(step, 300)
    bias = float(step.model.bias.detach())
    step.run(rows, 1, rates_S3=np.ones((300, 3)))
    weights, z, n = ({}, {}, {})  # by slot and id, in float64
    accumulator = 1e-6
    for row in range(300):
        cells = list(enumerate(rows.ids_N[row * 3 : row * 3 + 3].tolist()))
        logit = bias + sum(weights.get(cell, 0.0) for cell in cells)
        assert rows.labels_BL is not None
        gradient = 1 / (1 + np.exp(-logit)) - float(rows.labels_BL[row, 0])
        for cell in cells:
            old = n.get(cell, 0.0)
            n[cell] = old + gradient**2
            sigma = (np.sqrt(n[cell]) - np.sqrt(old)) / 0.2
            z[cell] = z.get(cell, 0.0) + gradient - sigma * weights.get(cell, 0.0)
            moved = -(z[cell] - np.sign(z[cell]) * 0.05) / ((1 + np.sqrt(n[cell])) / 0.2)
            weights[cell] = 0.0 if abs(z[cell]) <= 0.05 else moved
        accumulator += gradient**2
        bias -= 0.02 * gradient / (np.sqrt(accumulator) + 1e-7)
    assert step.model.wide_table is not None
    tables = list(step.model.wide_table.named_weights().values())
    found = [float(tables[slot][id]) for slot, id in weights]
    np.testing.assert_allclose(found, list(weights.values()), rtol=1e-3, atol=1e-5)
    assert float(step.model.bias.detach()) == pytest.approx(bias, rel=1e-3)


def test_embeddings_and_layers_learn_online_as_float64_does() -> None:
    step = make_step(SINGLE, wide=[], optimizers={"deep": wd.Adagrad()}, hidden_units=[6, 3])
    rows, model = encoded(step, 200), step.model
    assert rows.labels_BL is not None
    tables = {}
    for table in model.deep_tables.values():
        tables |= {n: t.double().requires_grad_() for n, t in table.named_weights().items()}
    dense = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    names = [slot.table for slot in model.schema.slots]
    layers = [f"towers.mlp.layers.{i}" for i in range(2)]
    sums = {id(p): torch.full_like(p, 1e-6) for p in (*tables.values(), *dense.values())}
    for row in range(200):
        ids = rows.ids_N[row * len(names) :].tolist()
        h = torch.cat([tables[name][id] for name, id in zip(names, ids, strict=False)])
        for name in layers:
            h = torch.relu(dense[f"{name}.weight"] @ h + dense[f"{name}.bias"])
        logit = dense["outputs.mlp.weight"][0] @ h + dense["bias"][0]
        label = torch.tensor(float(rows.labels_BL[row, 0]), dtype=torch.float64)
        torch.nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
        with torch.no_grad():
            for parameter in (*tables.values(), *dense.values()):
                assert parameter.grad is not None
                sums[id(parameter)] += parameter.grad**2
                parameter -= 0.02 * parameter.grad / (sums[id(parameter)].sqrt() + 1e-7)
                parameter.grad = None
    result = step.run(rows, 1, rates_S3=np.ones((200, 3)))
    assert result.steps == 200
    for table in model.deep_tables.values():
        for name, found in table.named_weights().items():
            np.testing.assert_allclose(found, tables[name].detach(), rtol=1e-3, atol=1e-4)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach(), dense[name].detach(), rtol=1e-3, atol=1e-4)


def test_adam_moves_layers_as_float64_does() -> None:
    adam = wd.Adam(lr=0.01, weight_decay=0.5)
    head = heads.Multiclass(classes=3)
    step = make_step(wd.numeric("x", "b"), hidden_units=[4], optimizers={"dense": adam}, head=head)
    rows = encoded(step, 60)
    assert rows.labels_BL is not None
    rows.labels_BL[::7] = 2.0
    x = torch.from_numpy(rows.dense_BK).double()
    labels = torch.from_numpy(rows.labels_BL[:, 0]).long()
    dense = {n: p.detach().double().requires_grad_() for n, p in step.model.named_parameters()}
    reference = torch.optim.AdamW(dense.values(), lr=0.01, weight_decay=0.5, eps=1e-12)
    for rates, batch in zip(rates_of(12), torch.arange(60).split(5), strict=True):
        hidden = dense["towers.mlp.layers.0.weight"] @ x[batch].T
        hidden = torch.relu(hidden.T + dense["towers.mlp.layers.0.bias"])
        logits = hidden @ dense["outputs.mlp.weight"].T + dense["bias"]
        reference.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
        reference.param_groups[0]["lr"] = 0.01 * rates[2]
        reference.step()
    assert step.run(rows, 5, rates_S3=rates_of(12)).steps == 12
    for name, parameter in step.model.named_parameters():
        np.testing.assert_allclose(parameter.detach(), dense[name].detach(), rtol=1e-4, atol=1e-5)


def test_training_in_runs_is_training_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found = make_rows(500), []
    for at_once, seconds in ((4096, np.inf), (4096, 0.0), (1, np.inf)):
        monkeypatch.setattr("widedeep.training.run.BLOCK_ROWS", at_once)
        monkeypatch.setattr("widedeep.training.step_program.MOST_SECONDS", seconds)
        spec = wd.FeatureSpec(label="y", features=BAGS)
        model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[6])
        seen: list[tuple[int, float]] = []
        watch = wd.callbacks.LambdaCallback(
            on_step=lambda row, seen=seen: seen.append((row["step"], row["loss"])), step_interval=7
        )
        trainer = wd.Trainer(model, batch_size=3, callbacks=[watch], progress=False)
        history = trainer.fit(rows, valid=rows[:100], epochs=2, eval_every=50)
        figures = [{k: v for k, v in row.items() if k != "rows_per_s"} for row in history]
        found.append((figures, seen, state_of(trainer.step), trainer.position))
    assert found[0] == found[1] == found[2]


def test_a_run_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step()
    monkeypatch.setattr("widedeep.training.step_program.MOST_SECONDS", 0.0)
    result = step.run(encoded(step, 40), 8, rates_S3=rates_of(5))
    assert result.steps == 1 and len(result.logits_BC) == 8


def test_numbers_alone_are_learned() -> None:
    rows = make_rows(200)
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=wd.numeric("x")), rows)
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[4]), batch_size=8, progress=False)
    trainer.fit(rows)
    assert trainer.step.program.fits and trainer.position.step == 25


def test_the_row_that_cannot_be_learned_is_named(tmp_path: Any) -> None:
    rows = make_rows(60)
    model = wd.WideDeep(wd.fit_schema(wd.FeatureSpec(label="y", features=BAGS), rows))
    rows[33]["y"] = 7
    trainer = wd.Trainer(model, batch_size=2, shuffle=False, progress=False)
    with pytest.raises(DataError, match=r"row 33 of .*batch 17 of epoch 1, example 1"):
        trainer.fit(rows)
    assert trainer.position.step == 16
