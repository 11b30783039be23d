"""How likely places are looked at: learned in worlds where it is known; and what weights do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import Run
from tests.evaluation.explored import SEEN, explored_log
from widedeep.errors import DataError
from widedeep.evaluation.position_bias import PositionBias, fit_position_bias, write_weights

PLACES = np.array([1.0, 0.7, 0.45, 0.3])


def listed(requests: int, seed: int, noise: float) -> tuple[pa.Table, np.ndarray]:
    """Lists of four of twenty items, the best first but for noise; and the items' true chances."""
    rng = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(-np.random.default_rng(9).normal(-1.5, 1.0, 20)))
    items = np.argsort(rng.random((requests, 20)), axis=1)[:, :4]
    order = np.argsort(-(np.log(chance[items]) + rng.normal(0, noise, items.shape)), axis=1)
    items = np.take_along_axis(items, order, axis=1)
    click = rng.random(items.shape) < chance[items] * PLACES
    table = pa.table(
        {
            "item": pa.array([f"i{i}" for i in items.ravel()]),
            "position": np.tile(np.arange(1, 5), requests),
            "click": click.ravel().astype(np.int8),
        }
    )
    return table, chance


def train(table: pa.Table, folder: Path, **spec: object) -> wd.Bundle:
    features = (
        wd.categorical("item", "position") if "training_only" in spec else wd.categorical("item")
    )
    declared = wd.FeatureSpec(label="click", features=features, **spec)  # type: ignore[arg-type]
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(declared, table), hidden_units=[]),
        wide=wd.FTRL(lr=0.3, l1=0.0),
        batch_size=128,
        progress=False,
        threads=1,
    )
    trainer.fit(table, epochs=3)
    return trainer.export(folder)


def test_propensities_say_how_likely_a_place_is_looked_at() -> None:
    log, _ = explored_log(40_000, 0)
    bias = fit_position_bias(log, label="click", position="place")
    assert bias.method == "randomised"
    assert bias.examination == pytest.approx(SEEN / SEEN[0], abs=0.06)
    place, click = log["place"].to_numpy(zero_copy_only=False), log["click"].to_numpy()
    naive = click[place == 2].mean() / click[place == 1].mean()
    assert abs(naive - SEEN[1]) > 2 * abs(bias.examination[1] - SEEN[1])


def test_a_model_that_knows_places_apart_says_it_without_propensities(tmp_path: Path) -> None:
    log, _ = listed(12_000, 0, noise=0.7)
    bundle = train(log.slice(0, 24_000), tmp_path / "b", training_only={"position": 1})
    bias = fit_position_bias(log.slice(24_000), label="click", bundle=bundle)
    assert bias.method == "em"
    assert bias.examination == pytest.approx(PLACES, abs=0.08)
    click = log["click"].to_numpy().reshape(-1, 4).mean(axis=0)
    assert (click[1:] / click[0] < PLACES[1:] - 0.1).all()  # the best stand first


def test_weights_give_back_what_places_hid(tmp_path: Path) -> None:
    log, chance = listed(12_000, 1, noise=0.3)
    bias = PositionBias(examination=tuple(PLACES.tolist()))
    path = tmp_path / "weighted.parquet"
    assert write_weights(log, bias, path, label="click", position="position") == len(log)
    weighted = pq.read_table(path)
    plain = train(log, tmp_path / "plain")
    fair = train(weighted, tmp_path / "fair", weight="weight")
    items = [{"item": f"i{i}"} for i in range(20)]
    errors = [np.abs(np.asarray(b.score(items)) / chance - 1).mean() for b in (plain, fair)]
    assert errors[1] < 0.4 * errors[0], errors


def test_the_verb_learns_writes_and_tells(tmp_path: Path, run: Run) -> None:
    log, _ = explored_log(4000, 3)
    pq.write_table(log, tmp_path / "log.parquet")
    words = ["debias", tmp_path / "log.parquet", "--label", "click", "--position", "place"]
    ran = run(*words)
    assert ran.code == 0, ran.err
    following = ran.out.splitlines()[-1]
    assert "--examination 1,0." in following
    ran = run(*words, "-o", tmp_path / "out.parquet", "--json")
    printed = json.loads(ran.out)
    assert (printed["method"], printed["rows"]) == ("randomised", len(log))
    out = pq.read_table(tmp_path / "out.parquet")
    weight = out["weight"].to_numpy()
    hidden = np.asarray(pa.compute.is_null(out["place"]))
    click, place = out["click"].to_numpy(), out["place"].to_numpy(zero_copy_only=False)
    assert (weight[hidden] == 0).all()
    assert (weight[~hidden & (click == 0)] == 1).all()
    second = ~hidden & (click == 1) & (place == 2)
    assert weight[second] == pytest.approx(1 / printed["examination"][1])
    refused = run(*words, "-o", tmp_path / "log.parquet")
    assert refused.code == 2
    assert "is an input too, whose rows would be lost" in refused.err
    refused = run(*words, "--examination", "0.9,0.5")
    assert refused.code == 2
    assert "the first of them 1" in refused.err
    refused = run("debias", tmp_path / "log.parquet", "--label", "click", "--propensity", "chance")
    assert refused.code == 2


def test_logs_that_say_nothing_of_places() -> None:
    log, _ = listed(100, 0, noise=1.0)
    with pytest.raises(DataError, match="propensity"):
        fit_position_bias(log, label="click")
    halves = log.append_column("propensity", pa.array(np.full(len(log), 0.5)))
    with pytest.raises(DataError, match="positive labels, expected at least 20 at every place"):
        fit_position_bias(halves, label="click")
    longer, _ = listed(1000, 0, noise=1.0)
    last_B = longer["position"].to_numpy() == 4
    unknown = longer.append_column("propensity", pa.array(np.full(len(last_B), 0.5), mask=last_B))
    with pytest.raises(DataError, match="position 4: no row has a propensity"):
        fit_position_bias(unknown, label="click")
    with pytest.raises(DataError, match="got position 4, but the examination of 2 places"):
        PositionBias(examination=(1.0, 0.5)).weights([4], [1])


@pytest.mark.parametrize(
    ("label", "column", "words"),
    [
        ("kind", "kind", "label 'kind': got string, expected numbers"),
        ("clicks", "kind", "no column 'clicks'; did you mean 'click'"),
        ("click", "weight", "column 'weight': got string, expected numbers"),
        ("click", "position_", "got position 4, but the examination of 3 places"),
    ],
)
def test_rows_that_cannot_be_weighed(tmp_path: Path, label: str, column: str, words: str) -> None:
    log = listed(5, 0, noise=1.0)[0].append_column(column, pa.array(["a"] * 20))
    bias = PositionBias(
        examination=(1.0, 0.5, 0.3) if column == "position_" else (1, 0.5, 0.4, 0.3)
    )
    with pytest.raises(DataError, match=words):
        write_weights(log, bias, tmp_path / "never.parquet", label=label, position="position")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_null(tmp_path: Path) -> None:
    log = listed(5, 0, noise=1.0)[0].append_column("weight", pa.nulls(20, pa.float64()))
    bias = PositionBias(examination=(1, 0.5, 0.4, 0.3))
    with pytest.raises(DataError, match="column 'weight': got a value below 0 or null"):
        write_weights(log, bias, tmp_path / "never.parquet", label="click", position="position")
