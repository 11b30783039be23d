from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

import widedeep as wd
from widedeep.training.rollback_log import RollbackLog

ROWS = 6
updates = st.lists(st.sets(st.integers(0, ROWS - 1), min_size=1), max_size=6)


@given(before=updates, after=updates, later=updates)
def test_undo_brings_back_the_mark(
    before: list[set[int]], after: list[set[int]], later: list[set[int]]
) -> None:
    weights, state, bias = torch.zeros(ROWS, 2), torch.ones(ROWS, 3), torch.zeros(2)
    log = RollbackLog()
    log.track("table", {"weight": weights, "state": state})
    log.track_small({"bias": bias})

    def run(steps: list[set[int]]) -> None:
        for rows in steps:
            chosen = torch.tensor(sorted(rows))
            log.before_update("table", chosen)
            weights[chosen] += torch.rand(len(rows), 2)
            state[chosen] *= 2
            bias.add_(1)

    run(before)
    log.restore()  # nothing was marked yet: nothing moves
    log.mark()
    held = weights.clone(), state.clone(), bias.clone()
    run(after)
    log.restore()
    assert torch.equal(weights, held[0])
    assert torch.equal(state, held[1])
    assert torch.equal(bias, held[2])
    run(later)
    log.restore()
    assert torch.equal(weights, held[0])


def test_remembers_only_touched_rows() -> None:
    weights = torch.zeros(1000, 2)
    log = RollbackLog()
    log.track("table", {"weight": weights})
    log.mark()
    for _ in range(5):
        log.before_update("table", torch.tensor([3, 5]))
    assert sum(len(rows) for rows in log._journals["table"].rows) == 2


def test_beyond_its_limit_it_keeps_nothing_until_the_next_mark() -> None:
    weights = torch.zeros(1000, 2)
    log = RollbackLog()
    log.track("table", {"weight": weights})
    log.limit_bytes = 10 * (8 + 2 * 4)  # numbers and rows
    log.mark()
    log.before_update("table", torch.arange(10))
    assert log.marked
    log.before_update("table", torch.arange(11))
    assert not log.marked
    assert not log._journals["table"].rows
    weights += 1
    log.restore()
    assert (weights == 1).all()
    log.mark()
    assert log.marked
    log.before_update("table", torch.arange(3))
    weights[:3] = 5
    log.restore()
    assert (weights == 1).all()


def test_the_best_model_comes_from_its_checkpoint_where_too_many_rows_moved(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(300, size=2000)
    table = pa.table({"word": words, "y": (rng.random(2000) < 0.2 + 0.6 * (words % 2)).astype(int)})
    schema = wd.fit_schema(
        wd.FeatureSpec(label="y", features=wd.categorical("word")), table.slice(0, 800)
    )

    def fit(path: Path | None, rollback_bytes: int) -> wd.Trainer:
        model = wd.WideDeep(schema, hidden_units=[8])
        trainer = wd.Trainer(
            model, epochs=8, batch_size=50, rollback_bytes=rollback_bytes, checkpoints=path
        )
        trainer.fit(table.slice(0, 800), valid=table.slice(800), early_stopping=2)
        return trainer

    kept = fit(None, 1)  # without checkpoints there is no limit
    read = fit(tmp_path, 1)
    assert kept.state.step.has_best and not read.state.step.rollback._journals["wide"].rows
    assert kept.history.rows[-1]["step"] == read.history.rows[-1]["step"]
    for name, layer in kept.model.state_dict().items():
        assert torch.equal(layer, read.model.state_dict()[name]), name
    best = read.evaluate(table.slice(800))["log_loss"]
    assert best == min(read.history.column("valid/log_loss"))
