"""What columns are worth, and what features move: planted ones first, and noise at nothing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.importance import permutation_importance
from widedeep.models import DeepFM
from widedeep.report import RunRecord, make_report
from widedeep.training.attribution import integrated_gradients

RNG = np.random.default_rng(0)
ROWS = 1500


def make_rows(kind: str) -> pa.Table:
    strong, weak, noise = (RNG.integers(0, 4, ROWS) for _ in range(3))
    number = RNG.normal(size=ROWS)
    logit = 1.5 * strong - 2.2 + 0.4 * weak - 0.6 + 0.5 * number
    label: Any = (RNG.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    if kind == "regression":
        label = logit + RNG.normal(size=ROWS)
    elif kind == "multiclass":
        label = np.array(["low", "middle", "high"])[np.digitize(logit, [-1, 1])]
    columns = {"strong": strong, "weak": weak, "noise": noise}
    return pa.table(
        {
            **{name: [f"{name} {value}" for value in column] for name, column in columns.items()},
            "number": number,
            "tags": [[f"t{value}"] for value in noise],
            "share": [[1.0 + value] for value in weak],
            "user": RNG.integers(0, 60, ROWS),
            "y": label,
        }
    )


@functools.cache
def make_trainer(
    kind: str = "binary", *, group: str | None = None, **options: Any
) -> tuple[Any, pa.Table]:
    rows = make_rows(kind)
    spec = wd.FeatureSpec(
        label="y",
        group=group,
        features=[
            wd.numeric("number"),
            wd.categorical("strong", "weak", "noise"),
            wd.categorical("tags", weights="share"),
            wd.bucketized("number_bin", source="number", quantiles=4),
            wd.crossed("strong", "noise"),
        ],
    )
    options = {"hidden_units": [6], "embedding_dim": 4, **options}
    head = None if kind != "regression" else "regression"
    model = wd.WideDeep(wd.fit_schema(spec, rows), head=head, **options)  # type: ignore[arg-type]
    trainer = wd.Trainer(model, batch_size=64, epochs=3, progress=False, threads=1)
    trainer.fit(rows.slice(0, 1000))
    return trainer, rows.slice(1000)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("binary", "auc"), ("multiclass", "log_loss"), ("regression", "rmse")],
)
def test_planted_columns_are_found_and_noise_is_worth_nothing(
    kind: str, metric: str, tmp_path: Path
) -> None:
    trainer, held_out = make_trainer(kind)
    bundle = trainer.export(tmp_path / "bundle")
    (importance,) = permutation_importance(bundle, held_out).values()
    assert (importance.metric, importance.rows) == (metric, len(held_out))
    assert importance.value == pytest.approx(trainer.evaluate(held_out)[metric], rel=1e-5)
    by_column = {one.columns: one for one in importance.columns}
    assert importance.columns[0].columns == ("strong",)
    assert importance.columns[0].low > 0
    assert by_column["noise",].low < 0.01 and by_column["tags", "share"].low < 0.01
    assert by_column["number",].features == ("number", "number_bin")
    assert by_column["strong",].features == ("strong", "strong_x_noise")
    assert permutation_importance(bundle, held_out, threads=2)[""] == importance
    moved = trainer.attributions(held_out)[""]
    assert moved["strong"] > moved["noise"]
    assert set(moved) == {f.name for f in bundle.schema.spec.all_features}


def test_the_interval_is_that_of_the_paired_difference(tmp_path: Path) -> None:
    trainer, held_out = make_trainer()
    bundle = trainer.export(tmp_path / "bundle")
    (importance,) = permutation_importance(bundle, held_out, repeats=1, seed=3).values()
    strong = next(one for one in importance.columns if one.columns == ("strong",))
    index = bundle.schema.spec.columns().index("strong")
    order = np.random.default_rng([3, index, 0]).permutation(len(held_out))
    shuffled = held_out.set_column(0, "strong", held_out.column("strong").take(pa.array(order)))
    labels = held_out.column("y").to_numpy()
    before, after = (np.asarray(bundle.score(rows)) for rows in (held_out, shuffled))

    def auc(scores: Any, rows: Any) -> float:
        positive, negative = scores[rows][labels[rows] == 1], scores[rows][labels[rows] == 0]
        return float(np.mean(np.sign(positive[:, None] - negative) / 2 + 0.5))

    every = np.arange(len(labels))
    assert strong.worse == pytest.approx(auc(before, every) - auc(after, every), abs=1e-9)
    draws = [RNG.integers(0, len(labels), len(labels)) for _ in range(300)]
    spread = np.std([auc(before, rows) - auc(after, rows) for rows in draws])
    assert (strong.high - strong.low) / 2 == pytest.approx(1.96 * spread, rel=0.15)


def test_rows_of_a_group_are_resampled_together(tmp_path: Path) -> None:
    trainer, held_out = make_trainer(group="user")
    bundle = trainer.export(tmp_path / "bundle")
    same = pa.concat_tables([held_out.slice(0, 100)] * 4)  # four copies of each row say no more
    once = permutation_importance(bundle, held_out.slice(0, 100), repeats=40)[""]
    four = permutation_importance(bundle, same, repeats=40)[""]
    widths = [(one.columns[0].high - one.columns[0].low) for one in (once, four)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)


def test_columns_of_features_in_neither_part_are_not_read(tmp_path: Path) -> None:
    rows = pa.table({"a": ["x", "y"] * 20, "b": ["u", "v"] * 20, "label": [0, 1] * 20})
    spec = wd.FeatureSpec(label="label", features=wd.categorical("a", "b"), wide=["a"], deep=[])
    bundle = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows))).export(tmp_path / "bundle")
    (found,) = permutation_importance(bundle, rows, repeats=2).values()
    assert [one.columns for one in found.columns] == [("a",)]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    trainer, held_out = make_trainer()
    bundle = trainer.export(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="got repeats=0, expected an integer of at least 1"):
        permutation_importance(bundle, held_out, repeats=0)
    with pytest.raises(DataError, match="got no rows"):
        permutation_importance(bundle, held_out.slice(0, 0))
    ones = held_out.filter(pa.compute.equal(held_out.column("y"), 1))
    assert permutation_importance(bundle, ones)[""].metric == "log_loss"  # no AUC of one class


@pytest.mark.parametrize("deep", [None, DeepFM(hidden_units=(6,))])
def test_attributions_add_up_to_the_logit(deep: DeepFM | None) -> None:
    options: dict[str, Any] = {} if deep is None else {"deep": deep, "hidden_units": ()}
    trainer, held_out = make_trainer(wide_combiner="sqrtn", **options)
    batch = Transform(trainer.model.schema)(held_out.slice(0, 40))
    (parts,) = integrated_gradients(trainer.model, batch, steps=300).values()
    total_B = np.sum(list(parts.values()), axis=0)
    logits_B = trainer.model(batch)[:, 0].numpy()
    wide_B = trainer.model.wide_logits(batch)[:, 0].numpy()
    inputs = trainer.model.gather(batch)
    mean = inputs.concat_BX.mean(dim=0, keepdim=True)
    baseline = type(inputs)(mean, inputs.layout, mean[:, trainer.model.gathered.dense])
    with torch.no_grad():
        start = float(trainer.model.deep_logits(baseline)) + wide_B.mean()
    np.testing.assert_allclose(total_B, logits_B - start, atol=2e-3)


def test_the_report_shows_both(tmp_path: Path) -> None:
    trainer, held_out = make_trainer()
    bundle = trainer.export(tmp_path / "bundle")
    record = RunRecord(attributions=trainer.attributions(held_out))
    report = make_report(bundle, held_out, history=record)
    page = report.to_html()
    assert "Permutation importance" in page and "Attributions" in page
    assert report.importances[""]["columns"][0]["columns"] == ("strong",)
    bare = make_report(bundle, held_out, importance_rows=0)
    assert bare.importances == {} and "Permutation importance" not in bare.to_html()
