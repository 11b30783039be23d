"""Members that train apart are models of their own, and one model of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

import widedeep as wd
from widedeep.errors import ConfigError
from widedeep.models.ensemble import Ensemble
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.members import member_seed

MEMBERS = 3
MLP = {"name": "mlp", "hidden_units": [8, 4], "batch_norm": True}
NUMBER = wd.numeric("x", transform="standard")


def table(count: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    code, x = rng.integers(0, 8, (count, 2)), rng.normal(size=count)
    y = rng.random(count) < 1 / (1 + np.exp(-np.sin(3 * code[:, 0]) - x))
    words = {f"c{i}": [f"v{value}" for value in code[:, i]] for i in range(2)}
    return pa.table({**words, "x": x, "y": y.astype(np.int8)})


TRAIN, VALID, TEST = table(600, 1), table(200, 2), table(100, 3)
SPEC = wd.FeatureSpec(
    label="y", features=[*wd.categorical("c0", "c1"), wd.crossed("c0", "c1"), *NUMBER]
)


def apart(of: Any = MLP, **options: Any) -> Ensemble:
    return Ensemble(of=of, members=MEMBERS, training="apart", **options)


def trainer_of(*towers: Any, spec: wd.FeatureSpec = SPEC, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(wd.fit_schema(spec, TRAIN), deep=[*towers], embedding_dim=4)
    fixed: Mapping[str, Any] = {"batch_size": 50, "threads": 1, "progress": False}
    return wd.Trainer(model, **fixed, **options)


def weights(model: wd.WideDeep) -> dict[str, NDArray[Any]]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("towers", "optimizers"),
    [([MLP], {}), (["fm", MLP], {"dense": "adam", "deep": {"row_wise": True}})],
)
def test_the_mean_of_models_trained_alone(towers: list[Any], optimizers: dict[str, Any]) -> None:
    joined = trainer_of(*(apart(of) for of in towers), **optimizers)
    start = weights(joined.model)
    joined.fit(TRAIN, valid=VALID, epochs=4)
    logits = []
    for member in range(MEMBERS):
        alone = trainer_of(*towers, seed=member_seed(0, member), **optimizers)
        own = weights(alone.model)
        for name, value in start.items():
            head, _, rest = name.partition(f".towers.{member}.")
            if rest:
                index = int(head.removeprefix("towers.ensemble").removeprefix("_") or 1) - 1
                own[f"towers.{[*alone.model.towers][index]}.{rest}"] = value
            head, _, rest = name.partition(f".outputs.{member}.")
            if rest:
                index = int(head.removeprefix("towers.ensemble").removeprefix("_") or 1) - 1
                own[f"outputs.{[*alone.model.towers][index]}.{rest}"] = value
            if name.startswith("table/"):
                own[name] = value[:, 4 * member : 4 * member + 4]
        as_tensors = {
            name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in own.items()
        }
        alone.model.load_state_dict(as_tensors)
        alone.fit(TRAIN, valid=VALID, epochs=4)
        logits.append(alone.logits(TEST))
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    np.testing.assert_allclose(joined.logits(TEST), np.mean(logits, axis=0), atol=2e-6)


def test_the_model_is_evaluated_exported_and_goes_on(tmp_path: Path) -> None:
    trainer = trainer_of(apart())
    history = trainer.fit(TRAIN, valid=VALID, epochs=3)
    assert [row.get("member") for row in history][-1] is None
    assert {row.get("member") for row in history} == {1, 2, 3, None}
    steps = [row["step"] for row in history]
    assert steps == sorted(steps) and steps[-1] == trainer.position.step
    assert trainer.valid_metrics == trainer.evaluate(VALID)
    bundle = trainer.export(tmp_path / "bundle")
    rows = TEST.to_pylist()
    np.testing.assert_allclose(bundle.score(rows), trainer.predict(TEST), atol=1e-6)
    before = trainer.evaluate(TRAIN)["log_loss"]
    trainer.fit(TRAIN, epochs=2)
    assert trainer.evaluate(TRAIN)["log_loss"] < before
    list(trainer.fit_stream([("hour", table(100, 4))]))
    assert np.isfinite(trainer.logits(TEST)).all()


@pytest.mark.parametrize("parted", [0, 2])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, parted: int) -> None:
    class Killed(BaseException):
        """Ends a run in the middle."""

    class Kill:
        left = 2 * parted + 1  # evaluations

        def on_evaluate(self, *_: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    whole = trainer_of(apart())
    whole.fit(TRAIN, valid=VALID, epochs=2)
    with pytest.raises(Killed):
        trainer_of(apart(), checkpoints=tmp_path, callbacks=[Kill()]).fit(
            TRAIN, valid=VALID, epochs=2
        )
    assert CheckpointDirectory(tmp_path).begun() is not None or parted == 0
    again = trainer_of(apart(), checkpoints=tmp_path)
    again.fit(TRAIN, valid=VALID, epochs=2, resume=True)
    assert (again.logits(TEST) == whole.logits(TEST)).all()
    assert again.position == whole.position and len(again.history) == len(whole.history)


@pytest.mark.parametrize(
    ("towers", "named"),
    [
        ([apart(), "dcn_v2"], "dcn_v2"),
        ([apart(), Ensemble(of="fm", members=2, training="apart")], "numbers of members"),
        ([apart(embeddings="shared")], "shared"),
    ],
)
def test_what_shares_a_layer_is_refused(towers: list[Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        trainer_of(*towers)
    assert "together" in str(caught.value) or "different numbers" in str(caught.value)


def test_numbers_that_members_would_share_are_refused() -> None:
    spec = SPEC.replace(features=[*wd.categorical("c0"), *wd.numeric("x", embedding="periodic")])
    with pytest.raises(ConfigError, match="periodic"):
        trainer_of(apart(), spec=spec)
