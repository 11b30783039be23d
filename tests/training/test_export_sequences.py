"""Models that read sequences, from training to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from widedeep.errors import BundleError, FeatureError
from widedeep.models import DeepInput
from widedeep.training import export

RNG = np.random.default_rng(5)
N = 60
ROWS: list[dict[str, Any]] = [
    {
        "ad": f"a{RNG.integers(5)}",
        "seen": [f"a{a}" for a in RNG.integers(0, 7, RNG.integers(0, 6))],
        "age": int(RNG.integers(18, 60)),
        "y": int(RNG.integers(2)),
    }
    for _ in range(N)
]
for row in ROWS:
    row["seconds"] = RNG.exponential(9.0, len(row["seen"])).round(1).tolist()


def trained(tower: Any, **options: Any) -> wd.Trainer:
    spec = wd.FeatureSpec(
        label="y",
        item=["ad"],
        features=[
            wd.numeric("age"),
            wd.categorical("ad", table="ad"),
            wd.categorical("seen", table="ad", combiner=None, weights="seconds", **options),
        ],
    )
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), embedding_dim=4, hidden_units=[], **tower)
    trainer = wd.Trainer(model, progress=False, batch_size=16)
    trainer.fit(ROWS, epochs=2)
    return trainer


class WeighedSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: DeepInput) -> Tensor:
        sequence = inputs.sequences["seen"]
        values_BTD, mask_BT = sequence.padded()
        weighed = (values_BTD * sequence.padded_weights()[:, :, None]).sum(1)
        sums: Tensor = self.layer(weighed) / (1 + sequence.lengths_B[:, None])
        return sums + mask_BT.sum(1, keepdim=True)


class ByOffsets(nn.Module):
    def forward(self, inputs: DeepInput) -> Tensor:
        sequence = inputs.sequences["seen"]
        examples = torch.arange(len(inputs.concat_BX)).repeat_interleave(sequence.offsets.diff())
        return torch.zeros(len(inputs.concat_BX), 4).index_add(0, examples, sequence.values_ND)


@pytest.mark.parametrize("tower", [{"deep": "din"}, {"towers": {"own": WeighedSum()}}])
def test_a_bundle_scores_sequences_as_the_trainer_does(tower: Any, tmp_path: Path) -> None:
    trainer = trained(tower, maxlen=3)
    bundle = trainer.export(tmp_path / "b")
    assert [(s.name, s.maxlen, s.width) for s in bundle.model.sequences] == [("seen", 3, 4)]
    rows = [{**row, "seen": row["seen"] + ["?"], "seconds": [*row["seconds"], 2.0]} for row in ROWS]
    rows += [{**rows[0], "seen": [], "seconds": []}, {**rows[0], "seen": None, "seconds": None}]
    loaded = wd.Bundle.load(tmp_path / "b")
    np.testing.assert_allclose(loaded.score(rows), trainer.predict(rows), rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.score(pa.Table.from_pylist(rows)), loaded.score(rows))
    alone = np.concatenate([loaded.score([row]) for row in rows])
    np.testing.assert_allclose(loaded.score(rows), alone, rtol=0, atol=1e-6)
    assert loaded.truncated["seen"] >= sum(len(row["seen"] or []) > 3 for row in rows)

    user = {name: rows[0][name] for name in ("age", "seen", "seconds")}
    ads = {"ad": [f"a{i}" for i in range(5)]}
    ranking = wd.Ranker(loaded).rank(user, {}, ads)
    expected = loaded.score([{**user, "ad": ad} for ad in ads["ad"]])
    np.testing.assert_allclose(ranking.scores, np.sort(expected)[::-1], rtol=0, atol=1e-7)
    assert loaded.explain(rows[0]).deep[0] != 0


@pytest.mark.parametrize("deep", ["din", "dien"])
def test_rounding_is_told_from_a_difference_by_float64(
    deep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = export._float64_logits
    compared: list[int] = []

    def counted(model: wd.WideDeep, bundle: wd.Bundle, batch: wd.Batch) -> Any:
        compared.append(len(batch))
        return exact(model, bundle, batch)

    monkeypatch.setattr(export, "_float64_logits", counted)
    monkeypatch.setattr(export, "_TOLERANCE", 1e-12)
    trained({"deep": deep}, maxlen=3).export(tmp_path / "b")
    assert sum(compared) > 0


def test_a_maximum_is_trained_exported_and_ranked(tmp_path: Path) -> None:
    features = [wd.categorical("ad", table="ad")]
    features.append(wd.categorical("seen", table="ad", combiner="max", maxlen=4))
    spec = wd.FeatureSpec(label="y", item=["ad"], features=features)
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, ROWS), hidden_units=[6]), progress=False)
    trainer.fit(ROWS, epochs=2)
    bundle = trainer.export(tmp_path / "b")
    assert bundle.manifest.engine == "native"
    rows = [*ROWS, {**ROWS[0], "seen": []}, {**ROWS[0], "seen": ["?", None]}]
    np.testing.assert_allclose(bundle.score(rows), trainer.predict(rows), rtol=0, atol=1e-6)
    ads = {"ad": [f"a{i}" for i in range(5)]}
    ranking = wd.Ranker(bundle).rank({"seen": rows[0]["seen"]}, {}, ads)
    expected = bundle.score([{"seen": rows[0]["seen"], "ad": ad} for ad in ads["ad"]])
    np.testing.assert_array_equal(ranking.scores, np.sort(expected)[::-1])
    with pytest.raises(FeatureError, match="a maximum has no use for"):
        wd.categorical("seen", combiner="max", weights="seconds")


def test_a_sequence_without_a_bound_is_trained_and_not_exported(tmp_path: Path) -> None:
    trainer = trained({"deep": {"name": "din", "hidden_units": [4]}})
    with pytest.raises(BundleError, match=r"'seen' of any length.*give the feature a bound"):
        trainer.export(tmp_path / "b")


def test_a_sequence_that_no_tower_reads_needs_no_bound(tmp_path: Path) -> None:
    trainer = trained({"deep": {"name": "dcn_v2", "hidden_units": [4]}})
    bundle = trainer.export(tmp_path / "b")
    assert bundle.model.sequences == ()
    np.testing.assert_allclose(bundle.score(ROWS), trainer.predict(ROWS), rtol=0, atol=1e-6)


def test_a_tower_that_reads_offsets_is_told_what_to_read(tmp_path: Path) -> None:
    trainer = trained({"towers": {"own": ByOffsets()}}, maxlen=3)
    with pytest.raises(BundleError, match=r"'seen': got a tower that reads offsets.*padded\(\)"):
        trainer.export(tmp_path / "b")
