"""State of a run over ranks: saved by some, restored by others, grown and taken over by all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

import widedeep as wd
from tests.ranks.test_step import LANES, make_rows, own_part
from tests.ranks.threads import run_threads
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError
from widedeep.ranks.ranks import Ranks
from widedeep.training.checkpoint import read_checkpoint, write_checkpoint
from widedeep.training.config import TrainConfig, WarmStartConfig
from widedeep.training.evaluation import Evaluator
from widedeep.training.grow import grow
from widedeep.training.schedules import RateSchedules
from widedeep.training.state import Position, TrainState, WarmupSample
from widedeep.training.step import TrainStep
from widedeep.training.warm_start import warm_start

Arrays = dict[str, NDArray[Any]]


def make_spec() -> wd.FeatureSpec:
    return wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("job", embedding_dim=4),
            wd.categorical("seen", "last", embedding_dim=4, table="words"),
            wd.numeric("age"),
            wd.crossed("job", "city", hash_buckets=5000),
        ],
    )


SCHEMA = wd.fit_schema(make_spec(), make_rows(150, 0))


def make_state(ranks: Ranks, schema: wd.Schema = SCHEMA, *, small: bool = False) -> TrainState:
    model = wd.WideDeep(schema, hidden_units=[8, 4], table_dtype="bf16" if small else "fp32")
    config = TrainConfig(batch_size=24, schedule="constant")
    step = TrainStep(
        model,
        config,
        wide=wd.FTRL(lr=0.1, adapt=0.1),
        deep=wd.Adagrad(lr=0.05, row_wise=small),
        dense=wd.Adagrad(lr=0.05),
        ranks=ranks,
    )
    return TrainState(
        model=model,
        step=step,
        config=config,
        warmup=WarmupSample({}, 0),
        schedules=RateSchedules(config.part_schedules()),
        position=Position(),
    )


def learn(state: TrainState, first: int, stop: int) -> None:
    transform = Transform(state.model.schema)
    for number in range(first, stop):
        batch = transform(pa.Table.from_pylist(make_rows(24, number + 1)))
        state.step(own_part(batch, state.step.ranks), step=number + 1)
        state.position.updates = number + 1


def whole(parts: list[TrainState]) -> Arrays:
    """Put the ranks' rows together by their ids; layers are equal on all of them."""
    arrays: Arrays = {}
    for name, table in parts[0].model.tables.items():
        for key, tensor in table.named_state().items():
            logical = key.rpartition(".")[0]
            rows = np.full((table.sizes[logical], tensor.shape[1]), np.nan, np.float32)
            for rank, state in enumerate(parts):
                own = state.model.tables[name]
                rows[own.layouts[logical].ids_of(rank)] = own.named_state()[key].float().numpy()
            arrays[f"{name}/{key}"] = rows
    for state in parts:
        layers = {**state.model.dense_state(), **state.step.dense_tensors()}
        assert state.step.feature_rates is not None
        layers |= state.step.feature_rates.tensors()
        for name, tensor in layers.items():
            array = tensor.detach().numpy().copy()
            np.testing.assert_array_equal(arrays.setdefault(name, array), array, err_msg=name)
    return arrays


def check_equal(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[bool, Arrays]:
    arrays = {}
    for small in (False, True):
        state = make_state(Ranks(lanes=LANES), small=small)
        learn(state, 0, 6)
        arrays[small] = whole([state])
    return arrays


@pytest.mark.parametrize("small", [False, True])
def test_a_run_goes_on_with_two_three_and_one_ranks(
    tmp_path: Path, uninterrupted: dict[bool, Arrays], small: bool
) -> None:
    def go_on(ranks: Ranks) -> TrainState:
        state = make_state(ranks, small=small)
        newest = max(tmp_path.glob("step-*"), default=None)
        first = 0
        if newest is not None:
            checkpoint = read_checkpoint(newest, ranks=ranks)
            state.restore(checkpoint)
            first = checkpoint.step
        learn(state, first, first + 2)
        write_checkpoint(tmp_path / f"step-{first + 2}", state.checkpoint())
        return state

    for size in (2, 3, 1):
        parts = run_threads(size, go_on, lanes=LANES)
    check_equal(uninterrupted[small], whole(parts))
    # A checkpoint of one process, in the format that it always had, is read by several.
    again = run_threads(3, lambda ranks: _restored(tmp_path / "step-6", ranks, small), lanes=LANES)
    check_equal(uninterrupted[small], whole(again))


def _restored(path: Path, ranks: Ranks, small: bool) -> TrainState:
    state = make_state(ranks, small=small)
    state.restore(read_checkpoint(path, ranks=ranks))
    return state


def test_ranks_start_from_an_older_model_as_one_process_does(tmp_path: Path) -> None:
    old_schema = wd.fit_schema(make_spec(), make_rows(60, 5))

    def write(ranks: Ranks) -> None:
        state = make_state(ranks, old_schema)
        learn(state, 0, 3)
        write_checkpoint(tmp_path / "old", state.checkpoint())

    run_threads(2, write, lanes=LANES)

    def start(ranks: Ranks) -> TrainState:
        state = make_state(ranks)
        transfer = warm_start(state, WarmStartConfig(path=str(tmp_path / "old")))
        assert any(tensor.state == "remapped" for tensor in transfer.tensors)
        return state

    check_equal(whole([start(Ranks(lanes=LANES))]), whole(run_threads(3, start, lanes=LANES)))


@pytest.mark.parametrize("small", [False, True])
def test_ranks_grow_and_forget_as_one_process_does(small: bool) -> None:
    rows = [{**row, "job": f"new{i % 7}"} for i, row in enumerate(make_rows(80, 9))]

    def grown(ranks: Ranks) -> TrainState:
        state = make_state(ranks, small=small)
        learn(state, 0, 2)
        size = state.model.schema.id_count("job")
        evaluator = Evaluator(state.model)
        for _ in range(2):
            grow(state, evaluator, pa.Table.from_pylist(rows), evict_after=1)
        assert state.model.schema.id_count("job") != size
        learn(state, 2, 4)
        return state

    check_equal(whole([grown(Ranks(lanes=LANES))]), whole(run_threads(3, grown, lanes=LANES)))


def test_ranks_that_differ_in_data_or_configuration_are_refused() -> None:
    def begin(
        ranks: Ranks, *, n_rows: Sequence[int] = (30, 30), seeds: Sequence[int] = (0, 0)
    ) -> None:
        state, seed = make_state(ranks), seeds[ranks.rank]
        state.config = dataclasses.replace(state.config, seed=seed, threads=ranks.rank + 1)
        evaluator = Evaluator(state.model, exchange=state.step.exchange)
        with evaluator.open(make_rows(n_rows[ranks.rank], 0), "training data") as source:
            state.begin(source)

    assert run_threads(2, begin, lanes=LANES) == [None, None]
    for error in run_threads(2, partial(begin, n_rows=(30, 29)), lanes=LANES):
        assert isinstance(error, ConfigError)
        assert "rank 1" in str(error) and "training data of 29 rows in 1 parts" in str(error)
    for error in run_threads(2, partial(begin, seeds=(0, 1)), lanes=LANES):
        assert isinstance(error, ConfigError) and "got train.seed 1, but 0 on rank 0" in str(error)
    for error in run_threads(2, partial(begin, n_rows=(30, 0)), lanes=LANES):
        assert isinstance(error, DataError) and "got an empty list" in str(error)
