"""Tables in bfloat16 with one sum of squares a row: trained, stopped, grown, taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import widedeep as wd
from tests.training.test_grow import SHARDS, SPEC, tensors
from widedeep.errors import CheckpointError, ConfigError

SCHEMA = wd.fit_schema(SPEC, SHARDS[0][1])
ROWS = [row for _, rows in SHARDS for row in rows]


def make_trainer(checkpoints: Path | None = None, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(SCHEMA, hidden_units=[6], table_dtype="bf16")
    options = {
        "batch_size": 16,
        "schedule": "constant",
        "deep": {"row_wise": True, "lr": 0.05},
        **options,
    }
    return wd.Trainer(model, progress=False, checkpoints=checkpoints, threads=1, **options)


def check_equal(one: wd.Trainer, other: wd.Trainer) -> None:
    expected, actual = tensors(one), tensors(other)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, name)


def test_it_learns_what_float32_learns() -> None:
    half, whole = make_trainer(), make_trainer()
    whole = wd.Trainer(
        wd.WideDeep(SCHEMA, hidden_units=[6]), batch_size=16, progress=False, threads=1
    )
    losses = []
    for trainer in (half, whole):
        trainer.fit(ROWS, epochs=5)
        losses.append(trainer.evaluate(ROWS)["log_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=0.02) and losses[0] < 0.2
    table = half.model.embedding_table("word")
    assert table.weight.dtype == torch.bfloat16
    assert table.state["accumulator"].shape == (table.n_rows, 1)


@pytest.mark.parametrize("steps", [1, 9, 20])
def test_resumed_it_is_what_it_would_have_been(tmp_path: Path, steps: int) -> None:
    whole, first, resumed = make_trainer(), make_trainer(tmp_path), make_trainer(tmp_path)
    whole.fit(ROWS, epochs=2)
    first.fit(ROWS, epochs=2, steps=steps)
    resumed.fit(ROWS, epochs=2, resume=True)
    check_equal(whole, resumed)
    assert tensors(whole)["deep/4/word.weight"].dtype == np.uint16


def test_threads_do_not_matter() -> None:
    one, two = make_trainer(), make_trainer()
    two.state.step.threads = 2
    for trainer in (one, two):
        trainer.fit(ROWS)
    check_equal(one, two)


def test_a_stream_grows_and_goes_on(tmp_path: Path) -> None:
    whole, first, resumed = make_trainer(), make_trainer(tmp_path), make_trainer(tmp_path)
    whole.fit_stream(SHARDS, grow=True, evict_after=2)
    first.fit_stream(SHARDS[:3], grow=True, evict_after=2)
    resumed.fit_stream(SHARDS, resume=True, grow=True, evict_after=2)
    check_equal(whole, resumed)


def test_a_bundle_scores_as_it_was_trained(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.fit(ROWS)
    bundle = trainer.export(tmp_path / "bundle")
    np.testing.assert_allclose(bundle.score(ROWS), trainer.predict(ROWS), atol=1e-6)
    half = trainer.export(tmp_path / "half", tables="bf16")
    np.testing.assert_array_equal(half.score(ROWS), bundle.score(ROWS))


def test_the_best_model_comes_back() -> None:
    trainer = make_trainer()
    step = trainer.state.step
    step.keep_best()
    trainer.fit(ROWS[:64])
    step.mark_best()
    before = tensors(trainer)
    trainer.fit(ROWS[64:])
    step.restore_best()
    for name, value in before.items():
        if name.startswith("deep/"):
            np.testing.assert_array_equal(tensors(trainer)[name], value, name)


@pytest.mark.parametrize("to_half", [True, False])
def test_another_model_starts_from_it(tmp_path: Path, to_half: bool) -> None:
    old = make_trainer(tmp_path / "old")
    old.fit(ROWS)
    new = make_trainer() if to_half else wd.Trainer(wd.WideDeep(SCHEMA, hidden_units=[6]))
    report = {t.name: t for t in new.warm_start(tmp_path / "old").tensors}
    weights = [t.model.embedding_table("word").named_weights()["word"].float() for t in (old, new)]
    assert torch.equal(*weights)
    table = report["table/word"]
    assert table.optimizer == ("carried" if to_half else "fresh")
    assert to_half or "row_wise True became False" in table.reason


def test_a_checkpoint_of_other_tables_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(ROWS)
    model = wd.WideDeep(SCHEMA, hidden_units=[6])
    other = wd.Trainer(
        model, batch_size=16, progress=False, checkpoints=tmp_path, deep={"row_wise": True}
    )
    with pytest.raises(CheckpointError, match="table_dtype"):
        other.fit(ROWS, epochs=2, resume=True)


def test_only_embeddings_go_by_row() -> None:
    model = wd.WideDeep(SCHEMA, hidden_units=[6])
    for part in ("wide", "dense"):
        with pytest.raises(ConfigError, match=f"{part}: got row_wise=true"):
            wd.Trainer(model, **{part: wd.Adagrad(row_wise=True)})
    trainer = wd.Trainer(model, deep=wd.Adagrad(row_wise=True, lr=0.5))
    assert trainer.state.step.dense.optimizer == wd.Adagrad(lr=0.5)
