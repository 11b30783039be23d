"""Numbers as fields: bins, piecewise linear functions and sines, from TOML to the ranker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import widedeep as wd
from tests.ads import TOML, ads_table
from tests.command_line import Run
from widedeep.data.transform import Transform
from widedeep.features.numbers import bin_cuts, bin_medians
from widedeep.models import DeepFM

RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=2000), RNG.uniform(size=2000)
WAVES = pa.table(
    {"x": X, "z": Z, "c": list("abcd" * 500), "y": (np.sin(7 * X) > np.sin(9 * Z)).astype(float)}
)


def wave_model(embedding: str | None, **options: object) -> wd.WideDeep:
    numbers = wd.numeric("x", "z", embedding=embedding, **options)  # type: ignore[arg-type]
    spec = wd.FeatureSpec(label="y", features=[*numbers, *wd.categorical("c")])
    return wd.WideDeep(wd.fit_schema(spec, WAVES), hidden_units=[16], embedding_dim=8)


def test_medians_are_values_of_their_bins() -> None:
    ordered = np.sort(np.concatenate([np.zeros(40), RNG.normal(size=60).round(2)]))
    cuts, medians = bin_cuts(ordered, 12), bin_medians(ordered, 12)
    assert np.searchsorted(cuts, medians, "right").tolist() == list(range(len(cuts) + 1))
    assert set(medians) <= set(ordered)
    assert 0.0 in medians  # a heavy value has a point of its own


def test_a_piecewise_field_is_the_linear_interpolation_of_its_table() -> None:
    model = wave_model("piecewise", bins=9)
    cuts, table = model.schema.boundaries["x"], model.deep_tables[8].named_weights()["x"]
    middle = (cuts[3] + cuts[4]) / 2
    numbers = [-9e300, -9.0, cuts[0], middle, cuts[4], *X[:50], cuts[-1], 9.0, 9e300, 5e-324]
    rows = [{"x": value, "z": 0.5, "c": "a"} for value in [*numbers, None, float("nan")]]
    field_BD = model.gather(Transform(model.schema).rows(rows)).concat_BX[
        :, model.layout.columns["x"]
    ]
    weights = table.numpy().astype(np.float64)
    expected = np.stack([np.interp(numbers, cuts, column) for column in weights[2:].T], axis=1)
    np.testing.assert_allclose(field_BD[:-2], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(field_BD[-2:], weights[[1, 1]].astype(np.float32))


def test_columns_without_spread_have_at_most_one_cut_point() -> None:
    rows = [{"same": 3.0, "null": None, "y": i % 2} for i in range(6)]
    spec = wd.FeatureSpec(label="y", features=wd.numeric("same", "null", embedding="piecewise"))
    schema = wd.fit_schema(
        spec,
        pa.Table.from_pylist(
            rows, pa.schema({"same": pa.float64(), "null": pa.float64(), "y": pa.int64()})
        ),
    )
    batch = Transform(schema).rows([{"same": 99.0, "null": 1.0}, {"same": None, "null": None}])
    assert batch.ids_N.tolist() == [2, 0, 1, 1]  # the one value; a number where none was seen


@pytest.mark.parametrize("missing", ["mean", "indicator"])
@pytest.mark.parametrize("transform", ["quantile", "standard"])
def test_a_periodic_field_is_what_the_paper_says(missing: str, transform: str) -> None:
    model = wave_model("periodic", missing=missing, transform=transform, frequencies=5)
    assert model.numbers is not None
    rows = [{"x": x, "z": z, "c": "b"} for x, z in [(0.3, 0.1), (None, 0.9), (-2.0, 0.4)]]
    gathered = model.gather(Transform(model.schema).rows(rows))
    inputs = model.numbers(gathered)
    assert inputs.fields_BFD(8).shape == (3, 3, 8)  # c, then x and z; no plain number is left
    values = gathered.concat_BX[:, model.gathered.columns["x"]].double().numpy()
    if transform == "quantile":
        values[:, 0] = (values[:, 0] - 0.5) * np.sqrt(12)
    layer = model.numbers.layers["number x"]
    frequencies, weight, bias = (p.detach().double().numpy() for p in layer.parameters())
    phases = 2 * np.pi * values[:, :1] * frequencies
    waves = np.concatenate([np.sin(phases), np.cos(phases), values[:, 1:]], axis=1)
    expected = np.maximum(waves @ weight.T + bias, 0)
    field_BD = inputs.concat_BX[:, model.layout.columns["x"]].detach()
    np.testing.assert_allclose(field_BD, expected, atol=1e-5)


@pytest.mark.parametrize("embedding", ["bins", "piecewise", "periodic"])
def test_waves_are_learned_only_by_an_embedding(embedding: str) -> None:
    def auc(model: wd.WideDeep) -> float:
        trainer = wd.Trainer(model, batch_size=128, epochs=8, progress=False, threads=1)
        trainer.fit(WAVES)
        return trainer.evaluate(WAVES)["auc"]

    options = {"frequency_std": 1.0} if embedding == "periodic" else {}
    assert auc(wave_model(embedding, **options)) > 0.85 > 0.75 > auc(wave_model(None))


def test_numbers_with_names_that_torch_would_refuse() -> None:
    table = WAVES.rename_columns(["a.b", "type", "c", "y"])
    spec = wd.FeatureSpec(label="y", features=wd.numeric("a.b", "type", embedding="periodic"))
    model = wd.WideDeep(wd.fit_schema(spec, table), deep=DeepFM(hidden_units=(4,)))
    assert model.layout.fields == ("a.b", "type")
    again = wd.WideDeep(model.schema, deep=DeepFM(hidden_units=(4,)), seed=1)
    again.load_state_dict(model.state_dict())
    batch = Transform(model.schema).rows([{"a.b": 0.5, "type": 0.5}])
    assert torch.equal(again(batch), model(batch))


def test_extra_numbers_stay_numbers() -> None:
    numbers = wd.numeric("x", embedding="periodic")
    with pytest.raises(wd.errors.FeatureError, match="an extra number has no embedding"):
        wd.FeatureSpec(label="y", features=numbers + wd.numeric("z"), extra=["x"])


@pytest.mark.parametrize("deep", ['{ name = "deep_fm", hidden_units = [6] }', None])
def test_embedded_numbers_go_the_whole_way(
    deep: str | None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(ads_table(300, 1), tmp_path / "train.parquet", row_group_size=120)
    pq.write_table(ads_table(120, 2), tmp_path / "test.parquet")
    text = TOML if deep is None else TOML.replace("hidden_units = [8, 4]", f"deep = {deep}")
    options = {
        "age": '{ embedding = "piecewise", bins = 20 }',
        "price": '{ embedding = "bins", bins = 8 }',
        "wave": '{ source = "price", embedding = "periodic", missing = "indicator" }',
    }
    lines = "".join(f"options.{name} = {table}\n" for name, table in options.items())
    text = text.replace('numeric = ["age", "price"]', 'numeric = ["age", "price", "wave"]')
    text = text.replace("bucketized.", 'item = ["ad"]\nwide = ["age", "price", "job"]\nbucketized.')
    text = text.replace("\n[model]", f"{lines}\n[model]")
    (tmp_path / "run.toml").write_text(text)
    trained = run("train", "run.toml", "--out", "whole")
    assert trained.code == 0, trained.err
    assert run("train", "run.toml", "--out", "parts", "--set", "train.epochs=1").code == 0
    assert run("train", "run.toml", "--out", "parts", "--resume").code == 0
    bundle, resumed = (wd.Bundle.load(tmp_path / name / "bundle") for name in ("whole", "parts"))
    rows = [*ads_table(20, 3).to_pylist(), dict.fromkeys(ads_table(1, 3).column_names)]
    scores = np.asarray(bundle.score(rows))
    np.testing.assert_array_equal(scores, resumed.score(rows))

    warm = run(
        "train", "run.toml", "--out", "w", "--warm-start", "whole", "--set", "train.epochs=1"
    )
    assert warm.code == 0, warm.err
    assert " fresh " not in warm.err, warm.err

    user = {name: rows[0][name] for name in ("age", "price", "job", "tags")}
    items = {"ad": [row["ad"] for row in rows]}
    ranking = wd.Ranker(bundle).rank(user, {}, items)
    expected = bundle.score([{**user, "ad": ad} for ad in items["ad"]])
    np.testing.assert_array_equal(ranking.scores, np.sort(expected)[::-1])

    explained = bundle.explain(rows[0])
    total = sum(term.weights[0] for term in explained.wide) + explained.deep[0] + explained.bias[0]
    assert total == pytest.approx(explained.logits[0], abs=1e-5)
    assert {"age", "price"} < {term.feature for term in explained.wide}

    assert run("report", "whole", "-o", "report.json").code == 0
    assert "embeddings of numbers" in run("inspect", "whole/bundle").out
    inputs = wd.report.make_report(bundle, ads_table(300, 4)).inputs
    assert {one["feature"]: one["psi"] is None for one in inputs}["age"] is False
