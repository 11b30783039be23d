"""Training over ranks: results are those of one process, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.ranks.processes import run_ranks
from widedeep.callbacks import Callback, ModelCheckpoint
from widedeep.config import DistributedConfig
from widedeep.errors import CheckpointError, ConfigError

LANES = 6


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    jobs, ages, noise = random.integers(0, 40, n), random.normal(40, 9, n), random.random(n)
    return [
        {"job": f"job {job}", "age": float(age), "y": int(0.03 * job + 0.01 * age > 0.6 + one)}
        for job, age, one in zip(jobs, ages, noise, strict=True)
    ]


def make_trainer(*, deep: Any = None, **options: Any) -> wd.Trainer:
    features = [
        wd.categorical("job"),
        wd.numeric("age"),
        wd.bucketized("age_bin", source="age", quantiles=5),
    ]
    spec = wd.FeatureSpec(label="y", features=features)
    tower: dict[str, Any] = {"deep": deep} if deep else {"hidden_units": [8], "dropout": 0.1}
    model = wd.WideDeep(wd.fit_schema(spec, rows(500, 0)), **tower)
    distributed = DistributedConfig(lanes=LANES, timeout="60s")
    return wd.Trainer(
        model, batch_size=48, progress=False, threads=1, distributed=distributed, **options
    )


class StopsAfter:
    """Ends the training, which the first rank alone is asked for."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, metrics: dict[str, Any]) -> bool:
        return bool(metrics["step"] == self.step)


class Predicts(Callback):
    """Predicts at each evaluation, which the ranks do together."""

    every_rank = True

    def on_begin(self, trainer: Any) -> None:
        self.trainer, self.means = trainer, []

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        self.means.append(float(np.mean(self.trainer.predict(rows(20, 4)))))


def train(folder: Path) -> dict[str, Any]:
    """Train with validation and early stopping; then until a callback stops; evaluate, predict."""
    predictions = Predicts()
    best = ModelCheckpoint(folder / "best", monitor="auc")
    trainer = make_trainer(eval_every=4, callbacks=[predictions, best])
    trainer.fit(rows(200, 0), epochs=3, valid=rows(101, 1), early_stopping=2)
    stopped = make_trainer(callbacks=[StopsAfter(7)])
    stopped.fit(rows(400, 0))
    scores = trainer.predict(rows(50, 2))
    by_torch = make_trainer(deep=["dcn_v2"])  # whose products round by how many rows there are
    by_torch.fit(rows(200, 0))
    return {
        "history": [{k: v for k, v in row.items() if k != "rows_per_s"} for row in trainer.history],
        "position": (trainer.position.step, trainer.position.rows),
        "called": (predictions.means, best.best),
        "evaluated": trainer.evaluate(rows(101, 2)),
        "scores": np.asarray(scores),
        "by_torch": by_torch.evaluate(rows(101, 2)),
        "stopped": (stopped.position.step, stopped.history[-1]["loss"]),
        "attributions": trainer.attributions(rows(60, 3), rows=60, steps=4),
    }


def test_two_ranks_compute_the_bits_of_one_process(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone")
    assert alone["stopped"][0] == 7
    for together in run_ranks(2, train, tmp_path / "together"):
        scores = together.pop("scores")
        np.testing.assert_array_equal(scores, alone["scores"])
        assert together == {key: value for key, value in alone.items() if key != "scores"}
    one, two = (wd.Bundle.load(tmp_path / name / "best") for name in ("alone", "together"))
    assert one.metrics["auc"] == two.metrics["auc"] == alone["called"][1]
    np.testing.assert_array_equal(one.score(rows(50, 2)), two.score(rows(50, 2)))


def test_a_batch_is_cut_into_equal_lanes() -> None:
    trainer = make_trainer()
    with pytest.raises(ConfigError, match=r"batch_size = 50 with distributed.lanes = 6.* as 54"):
        wd.Trainer(trainer.model, batch_size=50, distributed=DistributedConfig(lanes=6))


def test_rows_may_be_fewer_than_lanes(tmp_path: Any) -> None:
    trainer = make_trainer()
    trainer.fit(rows(LANES - 1, 0))  # the first lane has none
    assert trainer.position.rows == LANES - 1
    assert len(trainer.export(tmp_path / "bundle").warmup.rows) > 0


def test_options_of_ranks_may_be_a_table() -> None:
    model = make_trainer().model
    trainer = wd.Trainer(model, batch_size=48, distributed={"lanes": LANES})
    assert trainer.state.distributed == DistributedConfig(lanes=LANES)
    for wrong, message in (({"lane": 6}, "unknown key 'lane'; did you mean 'lanes'"), (6, "got d")):
        with pytest.raises(ConfigError, match=message):
            wd.Trainer(model, distributed=wrong)  # type: ignore[arg-type]


def test_what_reads_other_rows_of_a_batch_is_refused() -> None:
    schema = make_trainer().model.schema
    model = wd.WideDeep(schema, hidden_units=[4], batch_norm=True)
    with pytest.raises(ConfigError, match=r"running_mean follows the statistics of whole batches"):
        wd.Trainer(model, distributed=DistributedConfig(lanes=2))


def test_a_checkpoint_of_other_lanes_is_refused(tmp_path: Any) -> None:
    trainer = make_trainer(checkpoints=tmp_path)
    trainer.fit(rows(100, 0))
    path = trainer.save_checkpoint()
    other = wd.Trainer(trainer.model, batch_size=48, progress=False)
    with pytest.raises(CheckpointError, match=r"lanes = 6, but this trainer has 1"):
        other.load_checkpoint(path)
