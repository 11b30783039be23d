"""Training through torch's index operations: on a GPU where there is one, and forced on the CPU."""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import widedeep as wd
from tests.training.test_trainer import assert_same_bits, make_spec, make_table, state_of
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError
from widedeep.kernels import torch_device
from widedeep.tables.embedding_table import EmbeddingTable, Groups

OPTIMIZERS = (wd.FTRL, wd.Adagrad)


def use_torch_operations(patch: pytest.MonkeyPatch) -> None:
    """Make tables and optimizers treat the CPU as a device without kernels of ours."""
    made = EmbeddingTable.__init__

    def init(self: EmbeddingTable, *given: Any, **options: Any) -> None:
        made(self, *given, **options)
        self._on_device = True

    patch.setattr(EmbeddingTable, "__init__", init)
    for optimizer in OPTIMIZERS:
        patch.setattr(optimizer, "_run_kernel", lambda *_: None)


@pytest.fixture(params=["torch", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            use_torch_operations(patch)
        yield "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(scope="module")
def schema() -> wd.Schema:
    return wd.fit_schema(make_spec(), make_table())


def make_trainer(schema: wd.Schema, device: str, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(schema, hidden_units=[16, 8], embedding_dim=4, device=device)
    settings = {"batch_size": 64, "pool_rows": 150, "threads": 1, "progress": False}
    return wd.Trainer(model, **{**settings, **options})


@pytest.fixture(scope="module")
def by_kernels(schema: wd.Schema) -> dict[str, np.ndarray]:
    trainer = make_trainer(schema, "cpu")
    trainer.fit(make_table(), epochs=2)
    return state_of(trainer)


def test_moves_the_model_as_the_kernels_do(
    schema: wd.Schema, device: str, by_kernels: dict[str, np.ndarray]
) -> None:
    trainer = make_trainer(schema, device)
    trainer.fit(make_table(), epochs=2)
    found = state_of(trainer)
    assert found.keys() - {"random/cuda"} == by_kernels.keys()
    for name in found:
        np.testing.assert_allclose(found[name], by_kernels[name], rtol=2e-3, atol=2e-4)
    assert trainer.model.wide_table is not None
    assert trainer.model.wide_table.nonzero == np.count_nonzero(
        np.concatenate(
            [v.ravel() for k, v in found.items() if k.endswith(".weight") and k[0] == "w"]
        )
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_resumes_and_exports(
    schema: wd.Schema, device: str, tmp_path: Path, precision: str
) -> None:
    def trainer(**options: Any) -> wd.Trainer:
        # At constant rates a run that `steps` cut short is the beginning of the whole one.
        return make_trainer(schema, device, precision=precision, schedule="constant", **options)

    whole = trainer()
    whole.fit(make_table(), epochs=6)
    test = make_table(seed=1)
    assert whole.evaluate(test)["auc"] > 0.75
    trainer(checkpoints=tmp_path / "run").fit(make_table(), epochs=6, steps=13)
    again = trainer(checkpoints=tmp_path / "run")
    again.fit(make_table(), epochs=6, resume=True)
    assert_same_bits(state_of(whole), state_of(again))
    bundle = whole.export(tmp_path / "bundle")
    rows = test.drop_columns(["y"])
    np.testing.assert_allclose(bundle.score(rows), whole.predict(rows), atol=1e-5)


def test_tables_grow_where_they_live(schema: wd.Schema, device: str) -> None:
    trainer = make_trainer(schema, device)
    trainer.fit(make_table(), steps=3)
    (table,) = trainer.model.deep_tables.values()
    before = {name: tensor.clone() for name, tensor in table.named_state().items()}
    name, size = next(iter(table.sizes.items()))
    table.grow(name, size + 5)
    for key, tensor in table.named_state().items():
        assert tensor.device.type == device
        assert torch.equal(tensor[: len(before[key])], before[key])
    assert len(table.named_weights()[name]) == size + 5


def test_stops_early_and_goes_back_to_the_best(schema: wd.Schema, device: str) -> None:
    trainer = make_trainer(schema, device)
    history = trainer.fit(
        make_table(), epochs=8, valid=make_table(seed=1), early_stopping=2, eval_every=2
    )
    best = min(row["valid/log_loss"] for row in history.rows)
    assert trainer.evaluate(make_table(seed=1))["log_loss"] == pytest.approx(best, rel=1e-6)


def occurrences(groups: Groups) -> torch.Tensor:
    first, last = groups.occurrences.bounds[0, [0, -1]]
    return groups.occurrences.order[first:last]


def test_the_wide_groups_serve_the_embeddings(schema: wd.Schema, device: str) -> None:
    model = make_trainer(schema, device).model
    batch = Transform(schema)(make_table())
    assert model.wide_table is not None
    groups = model.wide_table.group(batch, schema.slots)
    for table in model.deep_tables.values():
        shared, own = table.regroup(model.wide_table, groups), table.group(batch, schema.slots)
        assert shared is not None
        assert torch.equal(shared.rows, own.rows)
        assert torch.equal(shared.occurrences.starts_U.diff(), own.occurrences.starts_U.diff())
        assert torch.equal(occurrences(shared), occurrences(own))
        np.testing.assert_array_equal(shared.occurrences.table_starts, own.occurrences.table_starts)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_repeats_its_bits_with_triton_and_without(schema: wd.Schema, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    states = []
    for kernels in (nullcontext, nullcontext, torch_device.index_operations_alone):
        with kernels():
            trainer = make_trainer(schema, "cuda", precision=precision)
            trainer.fit(make_table(), epochs=2)
        states.append(state_of(trainer))
    assert_same_bits(states[0], states[1])
    # Only the float64 sums behind the features' rates have another order.
    rates = [name for name in states[0] if name.startswith("rates/")]
    for name in rates:
        np.testing.assert_allclose(states[0].pop(name), states[2].pop(name), rtol=1e-12)
    assert_same_bits(states[0], states[2])


def test_dropout_resumes_on_a_gpu(schema: wd.Schema, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")

    def trainer(folder: str) -> wd.Trainer:
        model = wd.WideDeep(schema, hidden_units=[16], dropout=0.5, device="cuda")
        return wd.Trainer(model, batch_size=64, progress=False, checkpoints=tmp_path / folder)

    whole = trainer("whole")
    whole.fit(make_table(), epochs=2)
    trainer("run").fit(make_table(), epochs=2, steps=7)
    again = trainer("run")
    again.fit(make_table(), epochs=2, resume=True)
    assert_same_bits(state_of(whole), state_of(again))


def test_a_step_on_a_gpu_waits_for_its_groups_alone(schema: wd.Schema) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    trainer = make_trainer(schema, "cuda")
    batches = [Transform(schema)(make_table(seed=seed)) for seed in range(4)]
    trainer.step(batches[0])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            for batch in batches[1:]:
                trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [str(wait.message) for wait in waits if "synchroniz" in str(wait.message)]
    assert len(told) <= len(batches) - 1, told


def test_a_gpu_that_is_not_there_is_told(schema: wd.Schema) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="got device='cuda', but PyTorch sees no GPU here"):
        wd.WideDeep(schema, device="cuda")
    with pytest.raises(ConfigError, match="got device='gpu', expected 'cpu' or 'cuda'"):
        wd.WideDeep(schema, device="gpu")
