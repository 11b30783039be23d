"""The wide part's own bias: trained by the wide optimizer, kept, folded into bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import widedeep as wd
from widedeep.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {"job": "abc"[i % 3], "x": (i * 7 % 11) / 11, "y": int(i % 3 == 0 or i % 5 == 0)}
    for i in range(96)
]


def trainer_of(features: list[Any] | None = None, **options: Any) -> wd.Trainer:
    spec = wd.FeatureSpec(label="y", features=features or [wd.categorical("job"), wd.numeric("x")])
    trained = {
        name: options.pop(name)
        for name in ("dense", "checkpoints", "wide", "freeze")
        if name in options
    }
    options = {"hidden_units": [4], "wide_bias": True, **options}
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), **options)
    return wd.Trainer(
        model, batch_size=16, schedule="constant", threads=1, progress=False, **trained
    )


def both(trainer: wd.Trainer) -> np.ndarray:
    return trainer.model.logit_bias.detach().numpy()


def test_it_moves_as_a_wide_weight_that_every_row_has() -> None:
    ftrl = wd.FTRL(lr=0.3, l1=0.7, adapt=0.0)
    features = [wd.categorical("job"), wd.categorical("all", source="one"), wd.numeric("x")]
    rows = [{**row, "one": "same"} for row in ROWS]
    spec = wd.FeatureSpec(label="y", features=features, deep=["job", "x"])
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4], wide_bias=True)
    trainer = wd.Trainer(model, wide=ftrl, batch_size=16, threads=1, progress=False)
    trainer.fit(rows, epochs=4)
    weight = model.state_dict()["wide/all"][-1:].view(-1)
    assert float(weight.abs()) > 0.01
    torch.testing.assert_close(model.state_dict()["wide_bias"], weight, rtol=1e-6, atol=1e-7)


def test_l1_keeps_it_at_zero_while_the_other_bias_moves() -> None:
    trainer = trainer_of(wide=wd.FTRL(l1=1e6))
    start = trainer.model.bias.item()
    trainer.fit(ROWS)
    assert trainer.model.state_dict()["wide_bias"].item() == 0.0
    assert trainer.model.bias.item() != start


def test_without_towers_it_is_the_only_bias_that_moves() -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), wide_bias=True, bias_init="zeros")
    trainer = wd.Trainer(model, batch_size=16, threads=1, progress=False)
    trainer.fit(ROWS, epochs=3)
    assert model.bias.item() == 0.0
    assert model.state_dict()["wide_bias"].item() != 0.0


@pytest.mark.parametrize("dense", ["adagrad", torch.optim.Adam])
def test_resume_equals_uninterrupted(tmp_path: Path, dense: Any) -> None:
    whole = trainer_of(dense=dense)
    whole.fit(ROWS, epochs=2)
    for epochs in (1, 2):
        part = trainer_of(dense=dense, checkpoints=tmp_path)
        part.fit(ROWS, epochs=2, steps=6 * epochs, resume=epochs > 1)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, part.model.state_dict()[name]), name
    slots = part.step.dense_tensors()
    assert {"wide_bias/z", "wide_bias/n"} <= slots.keys()
    assert torch.equal(slots["wide_bias/n"], whole.step.dense_tensors()["wide_bias/n"])


def test_a_bundle_holds_the_sum(tmp_path: Path) -> None:
    trainer = trainer_of()
    trainer.fit(ROWS, epochs=2)
    bundle = trainer.export(tmp_path / "bundle")
    np.testing.assert_array_equal(bundle.weights["bias"], both(trainer))
    np.testing.assert_allclose(bundle.score(ROWS), trainer.predict(ROWS), atol=1e-6)


def test_a_warm_start_moves_it_with_its_state_or_adds_it_up(tmp_path: Path) -> None:
    old = trainer_of(checkpoints=tmp_path)
    old.fit(ROWS, epochs=2)
    same = trainer_of()
    moved = {t.name: t for t in same.warm_start(tmp_path).tensors}
    assert (moved["wide_bias"].state, moved["wide_bias"].optimizer) == ("carried", "carried")
    assert torch.equal(
        same.step.dense_tensors()["wide_bias/z"], old.step.dense_tensors()["wide_bias/z"]
    )
    without = trainer_of(wide_bias=False)
    without.warm_start(tmp_path)
    np.testing.assert_array_equal(both(without), both(old))
    without = trainer_of(wide_bias=False, checkpoints=tmp_path / "without")
    without.fit(ROWS)
    again = trainer_of()
    again.warm_start(tmp_path / "without")
    np.testing.assert_array_equal(both(again), both(without))


def test_it_can_be_frozen() -> None:
    trainer = trainer_of(freeze=["wide_bias"])
    trainer.fit(ROWS)
    assert trainer.model.state_dict()["wide_bias"].item() == 0.0


def test_a_model_without_a_wide_part_has_none() -> None:
    spec = wd.FeatureSpec(label="y", features=[wd.numeric("x")])
    with pytest.raises(ConfigError, match="wide_bias = true, but no feature is in the wide part"):
        wd.WideDeep(wd.fit_schema(spec, ROWS), wide_bias=True)
