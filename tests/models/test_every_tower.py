"""Every registered tower goes the whole way, from TOML to a bundle that ranks and explains."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import widedeep as wd
from tests.ads import TOML, history_table
from tests.command_line import Run
from widedeep.features.toml import toml_text
from widedeep.models import registered_towers
from widedeep.models.histories import HistoryConfig
from widedeep.models.tasks import TasksConfig

# Options that make a tower small, where it has them; further ones by tower.
SMALL = {"hidden_units": [6, 4]}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "afn": [{"log_neurons": 5, "beside_units": [3]}],
    "autoint": [{"layers": 2}],
    "bst": [{"activation": "tanh"}],
    "ccpm": [{"kernel_widths": [3, 2], "filters": [2, 2]}],
    "dcn_mix": [{"experts": 2, "rank": 3}],
    "dcn_v2": [{}, {"rank": 3, "structure": "stacked"}],
    "deep_ffm": [{"dim": 2}],
    "dien": [{"state_width": 3, "next_event_weight": 0.5}],
    "difm": [{"attention_units": 2, "heads": 2}],
    "din": [{"attention_units": [3]}],
    "dlrm": [{"bottom_units": [4]}],
    "ensemble": [
        {"of": {"name": "dcn_v2", "hidden_units": [6, 4]}, "members": 2},
        {"of": {"name": "din", "hidden_units": [6], "attention_units": [3]}, "members": 2},
    ],
    "fibinet": [{"bilinear": "each"}],
    "finalmlp": [{"heads": 2, "gate_units": [3]}],
    "history_pooling": [{"pooling": "attention", "activation": "tanh"}],
    "history_transformer": [{"activation": "tanh"}],
    "masknet": [{"block_units": 3}],
    "mmoe": [{"experts": 2}],
    "nfm": [{"activation": "tanh"}],
    "onn": [{"dim": 2, "activation": "tanh"}],
    "pnn": [{"product": "both"}],
    "tabm": [{"members": 3}],
    "two_tower": [{"item": "ad", "dim": 3, "hard_negatives": 2}],
    "wukong": [{"fm_vectors": 2, "linear_vectors": 2, "rank": 2, "fm_units": [4]}],
    "xdeepfm": [{"cin_units": [4, 3]}],
}
USER = ("age", "price", "job", "tags", "clicked_ads", "clicked_jobs", "clicked_seconds")
HISTORY = """
options.ad = { table = "ad" }
options.clicked_ads = { table = "ad", combiner = "none", maxlen = 3 }
options.clicked_jobs = { combiner = "none", maxlen = 3, parallel = "clicked_ads" }
options.clicked_seconds = { transform = "log1p", maxlen = 3, parallel = "clicked_ads" }
"""


def is_over_histories(name: str) -> bool:
    return issubclass(registered_towers()[name], HistoryConfig)


# The whole way of these is always gone, of the others by `make test-slow`.
FAST = ("deep_fm", "dcn_v2", "din", "mmoe")


def cases(fast: tuple[str, ...] | None = FAST) -> list[Any]:
    marked = []
    for name, config in registered_towers().items():
        known = {field.name for field in fields(config)}
        small = {key: value for key, value in SMALL.items() if key in known}
        for index, options in enumerate(OPTIONS.get(name, [{}])):
            table = {"name": name, **small, **options}
            marks = () if fast is None or (name in fast and not index) else pytest.mark.slow
            case = name if index == 0 else f"{name}-{index}"
            marked.append(pytest.param(table, id=case, marks=marks))
    return marked


def bought(table: pa.Table) -> pa.Table:
    """Add a second label, which few rows have and no row without a click."""
    buys = pc.and_(pc.equal(table["click"], 1), pc.equal(table["job"], "nurse"))
    return table.append_column("buy", buys.cast(pa.int8()))


def labels_of(tower: dict[str, Any]) -> list[str]:
    """The labels that a tower is trained on: two if it is for several."""
    tasks = issubclass(registered_towers()[tower["name"]], TasksConfig)
    return ["click", "buy"] if tasks else ["click"]


@pytest.fixture(scope="module")
def coded() -> tuple[wd.Schema, pa.Table]:
    """26 columns of ten values, and a label that they do not tell."""
    rng = np.random.default_rng(0)
    columns = {f"f{i}": rng.integers(0, 10, 512).astype(str) for i in range(26)}
    table = pa.table({**columns, "y": rng.integers(0, 2, 512)})
    spec = wd.FeatureSpec(label="y", features=wd.categorical(*columns), wide=[])
    return wd.fit_schema(spec, table), table


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, config in registered_towers().items()
        if not issubclass(config, HistoryConfig | TasksConfig)
        and name not in ("ensemble", "two_tower")
    ],
)
def test_embeddings_leave_their_start(name: str, coded: tuple[wd.Schema, pa.Table]) -> None:
    schema, table = coded
    model = wd.WideDeep(schema, deep=name, embedding_dim=8)
    (embeddings,) = model.deep_tables.values()
    initial = embeddings.weight.detach().clone()
    adagrad = wd.Adagrad(lr=model.embedding_rate, initial_accumulator=0.1)  # without a decay
    wd.Trainer(model, batch_size=64, threads=1, progress=False, deep=adagrad).fit(table, epochs=1)
    assert (embeddings.weight - initial).square().mean().sqrt() > 0.003


def write_run(folder: Path, tower: dict[str, Any]) -> Path:
    labels = labels_of(tower)
    train, test = bought(history_table(300, 1)), bought(history_table(120, 2))
    pq.write_table(train, folder / "train.parquet", row_group_size=120)
    pq.write_table(test, folder / "test.parquet")
    deep = toml_text({"model": {"deep": tower}}).splitlines()[1]
    text = TOML.replace("hidden_units = [8, 4]\n", f"{deep}\n")
    text = text.replace("crossed = ", 'item = ["ad"]\ncrossed = ')
    text = text.replace('label = "click"', f"label = {labels if len(labels) > 1 else labels[0]!r}")
    if is_over_histories(tower.get("of", tower)["name"]):
        text = text.replace('"tags"]', '"tags", "clicked_ads", "clicked_jobs"]')
        text = text.replace('"price"]', '"price", "clicked_seconds"]')
        text = text.replace("bucketized.age", f"{HISTORY}bucketized.age")
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


def by_head(bundle: wd.Bundle, rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores = bundle.score(rows)
    return scores if isinstance(scores, dict) else {"": scores}


@pytest.mark.parametrize("tower", cases())
def test_a_tower_goes_the_whole_way(
    tower: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = labels_of(tower)
    toml = write_run(tmp_path, tower)
    trained = run("train", toml, "--out", "whole")
    assert trained.code == 0, trained.err
    if is_over_histories(tower["name"]):
        assert "lists are longer than maxlen = 3; their last 3 values are read" in trained.err
    assert run("train", toml, "--out", "parts", "--set", "train.epochs=1").code == 0
    assert run("train", toml, "--out", "parts", "--resume").code == 0
    bundle, resumed = (wd.Bundle.load(tmp_path / name / "bundle") for name in ("whole", "parts"))
    # No tower needs ONNX Runtime: what has no native operations is a lapse.
    assert bundle.manifest.engine == ("native" if tower["name"] == "mlp" else "graph")
    rows = history_table(20, 3).to_pylist()
    scores = by_head(bundle, rows)
    assert list(scores) == (labels if len(labels) > 1 else [""])
    for head, again in by_head(resumed, rows).items():  # a resumed run is the whole one
        np.testing.assert_array_equal(scores[head], again)

    warm = run("train", toml, "--out", "warm", "--warm-start", "whole", "--set", "train.epochs=1")
    assert warm.code == 0, warm.err
    assert " fresh " not in warm.err, warm.err

    judged = run("validate", "whole", "--against", "parts", "--data", "test.parquet", "--json")
    assert judged.code in (0, 1), judged.err
    assert "auc" in judged.out

    user = {name: rows[0][name] for name in USER}
    items = {"ad": [row["ad"] for row in rows]}
    ranker = wd.Ranker(bundle)
    assert ranker.engine == "factored"
    ranking = ranker.rank(user, {}, items, head=list(scores)[-1])
    expected = by_head(bundle, [{**user, "ad": ad} for ad in items["ad"]])
    np.testing.assert_array_equal(ranking.scores, np.sort(expected[list(scores)[-1]])[::-1])

    explained = bundle.explain(rows[0])
    for c, logit in enumerate(explained.logits):
        wide = sum(term.weights[c] for term in explained.wide)
        assert wide + explained.deep[c] + explained.bias[c] == pytest.approx(logit, abs=1e-5)
        assert explained.deep[c] != 0

    reported = run("report", "whole", "-o", "report.html")
    assert reported.code == 0, reported.err
    listed = run("inspect", "whole/bundle").out
    assert f"tower {tower['name']}" in listed or tower["name"] == "mlp"


@pytest.mark.parametrize("tower", cases(fast=None))
def test_a_tower_reads_all_of_its_input_and_learns(tower: dict[str, Any], tmp_path: Path) -> None:
    """No column of the deep input is left unread in silence, and a step moves every parameter."""
    config = wd.load_config(write_run(tmp_path, tower))
    table = bought(history_table(200, 1))
    schema = wd.fit_schema(config.spec, table)
    model = wd.WideDeep(schema, config.model, embedding_std=0.3, seed=1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = wd.Trainer(model, batch_size=50, threads=1, progress=False)
    trainer.fit(table, epochs=2)
    assert trainer.history[-1]["loss"] < 0.8 * len(labels_of(tower))
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still
    model.eval()
    inputs = model.gather(trainer.evaluator.transform(table))
    leaf = inputs.concat_BX.detach().requires_grad_()
    dense_BK = leaf[:, model.layout.dense]
    logits_BC = model.deep_logits(dataclasses.replace(inputs, concat_BX=leaf, dense_BK=dense_BK))
    assert logits_BC is not None and torch.isfinite(logits_BC).all()
    (gradient,) = torch.autograd.grad(logits_BC.sum(), leaf)
    columns = model.layout.columns.items()
    assert not [name for name, span in columns if not gradient[:, span].abs().sum()]


def test_the_documentation_names_every_model() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    missing = [
        name
        for name, config in registered_towers().items()
        if f"`{name}` ({config.__name__}" not in text
    ]
    assert not missing
