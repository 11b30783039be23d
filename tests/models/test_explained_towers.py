"""Explanations say what each tower adds, and what attention looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.models import DIEN, DIN, DeepFM, HistoryPooling

RNG = np.random.default_rng(0)
SEEN = [[f"i{i}" for i in RNG.integers(0, 6, size)] for size in RNG.integers(0, 5, 200)]
ROWS = pa.table(
    {
        "item": [f"i{i}" for i in RNG.integers(0, 6, 200)],
        "user": [f"u{i}" for i in RNG.integers(0, 4, 200)],
        "seen": pa.array(SEEN, pa.list_(pa.string())),
        "y": RNG.integers(0, 2, 200),
    }
)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"deep": [DeepFM(hidden_units=(4,))]}, set()),
        ({"deep": ["fm", {"name": "tabm", "members": 2, "hidden_units": [4]}]}, {"fm", "tabm"}),
        (
            {
                "deep": ["fm", {"name": "mlp", "hidden_units": [4]}, "dcn_v2"],
                "join": {"hidden_units": [3]},
            },
            {"fm", "join"},
        ),
    ],
)
def test_an_explanation_lists_what_each_tower_adds(
    options: dict[str, Any], names: set[str], tmp_path: Path
) -> None:
    spec = wd.FeatureSpec(label="y", features=wd.categorical("item", "user"))
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), embedding_dim=4, **options)
    trainer = wd.Trainer(model, batch_size=64, epochs=1, progress=False, threads=1)
    trainer.fit(ROWS)
    explained = trainer.export(tmp_path / "bundle").explain(ROWS.slice(0, 1).to_pylist()[0])
    assert set(explained.towers) == names
    if names:
        total = sum(logits[0] for logits in explained.towers.values())
        assert total == pytest.approx(explained.deep[0], abs=1e-5)
        inputs = model.gather(Transform(model.schema)(ROWS.slice(0, 1)))
        own = model.towers["fm"].eval()(inputs)
        assert explained.towers["fm"][0] == pytest.approx(float(own), abs=1e-5)
        assert f"  of it fm {explained.towers['fm'][0]:+.4f}".split() == next(
            line.split() for line in str(explained).splitlines() if "of it fm" in line
        )


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (DIN(hidden_units=(4,), softmax=True), True),
        (DIEN(hidden_units=(4,), state_width=3), True),
        (HistoryPooling(hidden_units=(4,), pooling="attention"), True),
        (HistoryPooling(hidden_units=(4,), pooling="mean"), False),
    ],
)
def test_an_explanation_shows_what_attention_looks_at(
    config: Any, own: bool, tmp_path: Path
) -> None:
    seen = wd.categorical("seen", combiner=None, table="item", embedding_dim=4, maxlen=3)
    item = wd.categorical("item", table="item", embedding_dim=4)
    spec = wd.FeatureSpec(label="y", features=[*item, *seen], wide=["item"])
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), deep=config)
    trainer = wd.Trainer(model, batch_size=64, epochs=1, progress=False, threads=1)
    trainer.fit(ROWS)
    bundle = trainer.export(tmp_path / "bundle")
    explained = bundle.explain({"item": "i1", "seen": ["i2", "never seen", "i2", "i3"]})
    if not own:
        assert explained.attention == {}
        return
    (events,) = explained.attention.values()
    assert list(explained.attention) == [f"{config.name}/seen"]
    kept = spec.by_name["seen"]
    assert len(events) == 3 and kept.maxlen == 3  # type: ignore[attr-defined]
    assert sum(weight for _, weight in events) == pytest.approx(1.0, abs=1e-5)
    values = [value for value, _ in events]
    assert "<unseen> (never seen)" in values and values.count("i2") == 1
    weights = dict(events)
    assert weights["i2"] != pytest.approx(weights["i3"], abs=1e-9)
    assert f"attention of {config.name} to seen" in str(explained)
    assert bundle.explain({"item": "i1", "seen": []}).attention == {f"{config.name}/seen": ()}
