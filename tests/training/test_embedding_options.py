"""How embeddings start and move: against rules written out in NumPy and float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from tests.ads import ads_table, write_ads
from tests.command_line import Run
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError
from widedeep.training.config import TrainConfig
from widedeep.training.step import TrainStep

WORDS = list("abcdefgh")


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "x": WORDS[rng.integers(8)],
            "z": [WORDS[i] for i in rng.integers(8, size=rng.integers(4))],
            "y": int(rng.integers(2)),
        }
        for _ in range(count)
    ]


def make_schema(x: dict[str, Any] | None = None, z: dict[str, Any] | None = None) -> wd.Schema:
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("x", embedding_dim=3, embedding=x),
            wd.categorical("z", embedding_dim=3, embedding=z, combiner="sum"),
        ],
    )
    return wd.fit_schema(spec, rows_of(60))


def make_step(schema: wd.Schema, deep: Any, **options: Any) -> TrainStep:
    config = TrainConfig(loss_reduction="sum", **options)
    model = wd.WideDeep(schema, hidden_units=[4], embedding_std=0.5)
    return TrainStep(model, config, wide=wd.FTRL(), deep=deep, dense=wd.SGD(lr=0.1))


def batch_of(step: TrainStep, rows: list[dict[str, Any]]) -> Any:
    return Transform(step.model.schema)(pa.Table.from_pylist(rows))


def weights_of(step: TrainStep) -> dict[str, np.ndarray]:
    tables = step.model.embedding_tables
    return {n: w.numpy().copy() for t in tables for n, w in t.named_weights().items()}


def gradients(step: TrainStep, batch: Any) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, summed gradients and occurrences of each table, before anything moves."""
    gathered = step.group_and_gather(batch)
    result = step.dense_pass(batch, gathered)
    (deep,) = [g for g in step.reduce(batch, gathered, result) if g.name != "wide"]
    if step.fused is not None:
        step.fused.finish()
    table, by_table = deep.table, {}
    starts = deep.groups.table_starts[0]
    bases = np.cumsum([0, *table.sizes.values()])
    for t, name in enumerate(table.sizes):
        span = slice(starts[t], starts[t + 1])
        rows = deep.groups.rows.numpy()[span] - bases[t]
        counts = deep.groups.counts.numpy()[span]
        by_table[name] = rows, deep.grads_UD.numpy()[span].astype(np.float64), counts
    return by_table


# ---- l2, max_norm, rates -------------------------------------------------------------------------


def test_the_penalty_counts_occurrences_and_replaces_the_optimizers_decay() -> None:
    adagrad = wd.Adagrad(lr=0.3, initial_accumulator=0.1, l2=0.5)
    step = make_step(make_schema(z={"l2": 0.02}), adagrad)
    batch = batch_of(step, rows_of(16, 1))
    before, by_table = weights_of(step), gradients(step, batch)
    step(batch)
    after = weights_of(step)
    for name, (rows, grads, counts) in by_table.items():
        weight = before[name][rows].astype(np.float64)
        decay = 0.5 * weight if name == "x" else 0.02 * counts[:, None] * weight
        grads = grads + decay
        expected = before[name].astype(np.float64)
        expected[rows] -= 0.3 * grads / (np.sqrt(0.1 + grads**2) + 1e-7)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
        untouched = np.setdiff1d(np.arange(len(expected)), rows)
        np.testing.assert_array_equal(after[name][untouched], before[name][untouched])


@pytest.mark.parametrize("batch_size", [1, 5, 20])
def test_the_penalty_is_the_same_at_every_batch_size(batch_size: int) -> None:
    """With a rate so small that rows hardly move, a pass adds up to lr·l2·occurrences·w."""
    step = make_step(make_schema(z={"l2": 1.0}), wd.SGD(lr=1e-4))
    plain = make_step(make_schema(), wd.SGD(lr=1e-4))
    before, rows = weights_of(step), rows_of(20, 2)
    for begin in range(0, len(rows), batch_size):
        for each in (step, plain):
            each(batch_of(each, rows[begin : begin + batch_size]))
    shrunk = weights_of(plain)["z"] - weights_of(step)["z"]
    counts = np.zeros(len(shrunk))
    ids = batch_of(step, rows)
    np.add.at(counts, ids.ids_N[_cells(ids, 1)], 1)
    np.testing.assert_allclose(shrunk, 1e-4 * counts[:, None] * before["z"], rtol=0.02, atol=2e-7)


def _cells(batch: Any, slot: int) -> np.ndarray:
    """Positions of one feature's ids."""
    lengths = np.diff(batch.offsets_BF)
    return np.flatnonzero(np.repeat(np.arange(len(lengths)) % batch.n_slots, lengths) == slot)


def test_max_norm_scales_touched_rows_back() -> None:
    step = make_step(make_schema(x={"max_norm": 0.4}), wd.SGD(lr=0.2))
    free = make_step(make_schema(), wd.SGD(lr=0.2))
    batch = batch_of(step, rows_of(3, 3))
    touched = gradients(step, batch)["x"][0]
    before = weights_of(step)["x"]
    step(batch)
    free(batch)
    after, moved = weights_of(step)["x"], weights_of(free)["x"].astype(np.float64)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    expected = np.where(norms > 0.4, moved * 0.4 / norms, moved)
    assert (norms[touched] > 0.4).any()
    np.testing.assert_allclose(after[touched], expected[touched], rtol=1e-6)
    untouched = np.setdiff1d(np.arange(len(after)), touched)
    np.testing.assert_array_equal(after[untouched], before[untouched])


def test_rates_and_freezing_by_name() -> None:
    schema = make_schema()
    rates = {"table/z": 0.5, "towers.mlp.*": 0.25, "wide/*": 0.5}
    step = make_step(schema, wd.SGD(lr=0.2), freeze=["table/x", "wide/z", "bias"], rates=rates)
    plain = make_step(schema, wd.SGD(lr=0.2))
    assert step.fused is not None
    assert list(step.model.frozen_tables) == [3] and list(step.model.deep_tables[3].sizes) == ["z"]
    before = {n: t.detach().clone() for n, t in step.model.state_dict().items()}
    batch = batch_of(step, rows_of(12, 4))
    step(batch)
    plain(batch)
    after, whole = step.model.state_dict(), plain.model.state_dict()
    for name in ("table/x", "wide/z", "bias"):
        assert torch.equal(after[name], before[name])
    factors = {"table/z": 0.5, "towers.mlp.layers.0.weight": 0.25, "outputs.mlp.weight": 1.0}
    for name, factor in factors.items():
        moved = whole[name] - before[name]
        assert moved.abs().max() > 0
        torch.testing.assert_close(after[name] - before[name], factor * moved, rtol=1e-4, atol=1e-7)
    assert not torch.equal(after["wide/x"], before["wide/x"])  # FTRL's gradients are scaled
    assert not torch.equal(after["wide/x"], whole["wide/x"])


@pytest.mark.parametrize("dense", ["ours", "torch"])
@pytest.mark.parametrize("name", ["ours", "batch norm"])
def test_frozen_parts_of_a_tower_by_autograd(dense: str, name: str) -> None:
    schema = make_schema()
    options: dict[str, Any] = {"batch_norm": True} if name == "batch norm" else {"dropout": 0.1}
    model = wd.WideDeep(schema, hidden_units=[4], **options)
    optimizer: Any = wd.SGD(lr=0.2)
    if dense == "torch":
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.2)  # noqa: E731
    config = TrainConfig(freeze=["towers.*"], rates={"bias": 0.5}, clip_norm=100.0)
    step = TrainStep(model, config, wide=wd.FTRL(), deep=wd.SGD(lr=0.1), dense=optimizer)
    before = {n: t.detach().clone() for n, t in model.dense_state().items()}
    for seed in range(3):
        step(batch_of(step, rows_of(12, seed)))
    for key, tensor in model.dense_state().items():
        assert torch.equal(tensor, before[key]) == key.startswith("towers."), key
    assert not any(key.startswith("towers.") for key in step.dense.tensors())


def test_patterns_are_checked() -> None:
    schema = make_schema()
    with pytest.raises(ConfigError, match=r"freeze: got 'table/w', .*did you mean 'table/"):
        make_step(schema, wd.SGD(), freeze=["table/w"])
    with pytest.raises(ConfigError, match="leave nothing to train"):
        make_step(schema, wd.SGD(), freeze=["*"])
    with pytest.raises(ConfigError, match="rates: got 'table/x'=0, expected a number > 0"):
        make_step(schema, wd.SGD(), rates={"table/x": 0})


def test_frozen_rows_cost_nothing() -> None:
    step = make_step(make_schema(x={"frozen": True}), wd.Adagrad())
    (frozen,) = step.model.frozen_tables.values()
    before = frozen.weight.clone()
    gathered = step.group_and_gather(batch := batch_of(step, rows_of(9, 5)))
    assert set(gathered.deep_groups) == {3}
    assert set(step.model.deep_tables[3].sizes) == {"z"}
    step(batch)
    assert torch.equal(frozen.weight, before) and not frozen.state


# ---- initial rows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "std", "bound"),
    [
        ({"init": "uniform"}, 0.5, 0.5 * np.sqrt(3)),
        ({"init": "uniform", "init_std": 0.01}, 0.01, 0.01 * np.sqrt(3)),
        ({"init_std": 0.03}, 0.03, 0.03 * 3.47),
        ({"init": "xavier"}, np.sqrt(6 / 4 / 3), np.sqrt(6 / 4)),
        ({"init": "truncated_normal"}, 0.88 / np.sqrt(3), 2 / np.sqrt(3)),
        ({"init": "truncated_normal", "init_std": 0.1}, 0.088, 0.2),
        ({"init": "zeros"}, 0.0, 0.0),
    ],
)
def test_initial_rows(options: dict[str, Any], std: float, bound: float) -> None:
    spec = wd.FeatureSpec(
        features=[wd.categorical("x", num_buckets=4000, embedding_dim=3, embedding=options)]
    )
    schema = wd.fit_schema(spec, [{"x": 1}])
    first, second = (wd.WideDeep(schema, hidden_units=[2], embedding_std=0.5) for _ in range(2))
    rows = first.embedding_table("x").weight.numpy()
    np.testing.assert_array_equal(rows, second.embedding_table("x").weight.numpy())
    assert rows.std() == pytest.approx(std, rel=0.02)
    assert np.abs(rows).max() <= bound * (1 + 1e-6)
    assert abs(rows.mean()) <= 0.05 * std
    grown = wd.WideDeep(schema, hidden_units=[2], embedding_std=0.5).embedding_table("x")
    grown.grow("x", 5000)
    np.testing.assert_array_equal(grown.weight.numpy()[:4002], rows)


# ---- pretrained ----------------------------------------------------------------------------------


def vectors_of(values: list[Any]) -> np.ndarray:
    return np.arange(3 * len(values), dtype=np.float32).reshape(-1, 3) + 100


def write_vectors(folder: Path, form: str, values: list[Any]) -> Path:
    vectors = vectors_of(values)
    path = folder / f"vectors.{form}"
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float64()), 3)
    table = pa.table({"word": pa.array(values).dictionary_encode(), "numbers": fixed})
    if form == "parquet":
        pa.parquet.write_table(table, path)
    elif form == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    elif form == "npz":
        np.savez(path, values=np.array(values), vectors=vectors)
    else:
        from safetensors.numpy import save_file

        save_file({"vectors": vectors}, path)
        path.with_suffix(".txt").write_text("".join(f"{value}\n" for value in values))
    return path


@pytest.mark.parametrize("form", ["parquet", "arrow", "npz", "safetensors"])
def test_pretrained_rows_are_found_by_value(form: str, tmp_path: Path) -> None:
    values = ["h", "nobody", "b", "a"]
    path = write_vectors(tmp_path, form, values)
    schema = make_schema(x={"pretrained": str(path)})
    model = wd.WideDeep(schema, hidden_units=[4])
    plain = wd.WideDeep(make_schema(), hidden_units=[4])
    weight, usual = model.embedding_table("x").named_weights()["x"], plain.embedding_table("x")
    for id_ in range(schema.id_count("x")):
        value = schema.describe_id("x", id_)
        expected = usual.weight[id_]
        if value in values:
            expected = torch.from_numpy(vectors_of(values)[values.index(value)])
        assert torch.equal(weight[id_], expected)
    assert f"3 of 8 values found in {path}; 5 start as others do, 1 of the file" in repr(model)
    restored = wd.WideDeep(schema, hidden_units=[4], pretrained=False)
    assert torch.equal(restored.embedding_table("x").weight, usual.weight)


def test_pretrained_rows_of_a_shared_table_from_memory() -> None:
    spec = wd.FeatureSpec(
        features=[
            wd.categorical("x", embedding_dim=3, table="words", oov_buckets=2),
            wd.categorical("z", embedding_dim=3, table="words", oov_buckets=2),
            wd.categorical("n", embedding_dim=3, num_buckets=4),
        ],
    )
    schema = wd.fit_schema(spec, [{**row, "n": 3} for row in rows_of(60)])
    sources = {"z": {"a": [1, 2, 3], "q": [4, 5, 6]}, "n": (np.array([9, 2]), np.ones((2, 3)))}
    model = wd.WideDeep(schema, hidden_units=[4], pretrained=sources)
    weights = model.embedding_table("x").named_weights()
    a = next(i for i in range(12) if schema.describe_id("x", i) == "a")
    assert weights["words"][a].tolist() == [1, 2, 3]
    assert weights["n"][2 + 2].tolist() == [1, 1, 1] and weights["n"][2 + 1].abs().max() < 1
    assert model.pretrained["n"].unused == 1 and model.pretrained["words"].known == 8
    with pytest.raises(ConfigError, match="got 'w', which is no embedded feature"):
        wd.WideDeep(schema, pretrained={"w": {}})


BAD: list[tuple[Any, str]] = [
    (
        {"a": [1, 2, 3], "b": [1, 2], "c": [1, 2, 3]},
        r"row 1 \(value 'b'\): got a vector of width 2, expected",
    ),
    ({"a": [1, 2, 3], "b": [1, np.nan, 2]}, r"row 1 \(value 'b'\): got nan in place 1"),
    ({"a": [1, 2], "b": [1, 2]}, "vectors of width 2, but the embedding's width is 3; .*dim = 2"),
    ((["a", "c", "a"], np.ones((3, 3))), r"row 2 \(value 'a'\): got the value again, first in row"),
    ((["a", None], np.ones((2, 3))), "row 1: got no value"),
    ((["a"], np.ones((2, 3))), r"vectors of shape \(2, 3\) for 1 values"),
    (([1, 2], np.ones((2, 3))), "values that are integers, but the feature's values are text"),
    (([0.5], np.ones((1, 3))), "values of the type double, expected text or integers"),
    ({}, "got no vectors"),
    (pa.table({"v": ["a", "b"], "w": [[1.0, 2, 3], None]}), r"row 1 \(value 'b'\): got no vector"),
    (pa.table({"v": ["a"], "w": [[1.0, None, 3]]}), r"row 0 \(value 'a'\): got nan"),
    (pa.table({"v": ["a"], "w": ["b"]}), r"got the columns \['v', 'w'\]"),
    ("vectors.csv", "in no form that is read"),
    ("none.npz", "cannot read the pretrained vectors"),
    (7, "got int, expected a"),
]


@pytest.mark.parametrize(("source", "message"), BAD)
def test_bad_vectors_are_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        wd.WideDeep(make_schema(), hidden_units=[4], pretrained={"x": source})


# ---- the whole way -------------------------------------------------------------------------------

OPTIONS = (
    'options.job = { embedding = { pretrained = "jobs.npz", frozen = true } }\n'
    'options.ad = { embedding = { init = "uniform", l2 = 1e-3, max_norm = 0.5, dropout = 0.3 } }\n'
    'options.tags = { embedding = { init = "xavier", dropout = 0.2 } }\n'
)


def test_options_from_toml_to_a_bundle(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ads(tmp_path)
    monkeypatch.chdir(tmp_path)
    vectors = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    np.savez("jobs.npz", values=np.array(["cook", "pilot", "baker"]), vectors=vectors)
    text = (tmp_path / "ads.toml").read_text().replace("[model]", f"{OPTIONS}\n[model]")
    (tmp_path / "ads.toml").write_text(text)
    whole = run("train", "ads.toml", "--out", "whole", "--set", 'train.rates={"wide/*" = 0.5}')
    assert whole.code == 0, whole.err
    assert "pretrained job: 2 of 4 values found in jobs.npz" in whole.err
    same = ("--set", 'train.rates={"wide/*" = 0.5}')
    assert run("train", "ads.toml", "--out", "parts", "--set", "train.epochs=1", *same).code == 0
    (tmp_path / "jobs.npz").unlink()  # what goes on needs no file
    resumed = run("train", "ads.toml", "--out", "parts", "--resume", *same)
    assert resumed.code == 0, resumed.err
    bundle, parts = (wd.Bundle.load(tmp_path / name / "bundle") for name in ("whole", "parts"))
    rows = ads_table(30, 3).to_pylist()
    np.testing.assert_array_equal(bundle.score(rows), parts.score(rows))
    jobs = [bundle.schema.describe_id("job", i) for i in range(bundle.schema.id_count("job"))]
    np.testing.assert_array_equal(bundle.weights["table/job"][jobs.index("pilot")], vectors[1])
    assert np.linalg.norm(bundle.weights["table/ad"], axis=1).max() <= 0.5 * (1 + 1e-6)

    frozen = 'train.freeze=["table/*", "mlp/*"]'
    np.savez("jobs.npz", values=np.array(["cook"]), vectors=vectors[:1])
    tuned = run(
        "train", "ads.toml", "--out", "tuned", "--warm-start", "whole", "--set", frozen,
        "--set", "train.epochs=1",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert " fresh " not in tuned.err.partition("warm start from")[2].partition("epoch")[0]
    weights = wd.Bundle.load(tmp_path / "tuned" / "bundle").weights
    for name, before in bundle.weights.items():
        moves = not name.startswith(("table/", "mlp/"))
        assert np.array_equal(weights[name], before) != moves, name


def test_dropout_of_embeddings_is_of_whole_ones() -> None:
    step = make_step(make_schema(x={"dropout": 0.5}), wd.SGD(lr=0.1))
    batch = batch_of(step, rows_of(400, 6))
    plain = step.model.gather(batch).concat_BX.clone()
    first = step.group_and_gather(batch, step=3)
    assert first.inputs is not None
    seen = first.inputs.concat_BX.clone()
    x, z = (step.model.layout.columns[name] for name in "xz")
    assert torch.equal(seen[:, z], plain[:, z])
    is_kept = (seen[:, x] != 0).all(dim=1)
    torch.testing.assert_close(seen[is_kept, x], 2 * plain[is_kept, x])
    assert (seen[~is_kept, x] == 0).all() and 150 < int(is_kept.sum()) < 250
    again, other = (step.group_and_gather(batch, step=n).inputs for n in (3, 4))
    assert again is not None and other is not None
    assert not torch.equal(other.concat_BX[:, x], seen[:, x])


def test_the_gradient_of_a_dropped_embedding_is_zero() -> None:
    schema = make_schema(x={"dropout": 0.5})
    step = make_step(schema, wd.SGD(lr=0.1))
    row = {"x": "a", "z": [], "y": 1}
    before = weights_of(step)["x"]
    a = next(i for i in range(schema.id_count("x")) if schema.describe_id("x", i) == "a")
    for number in range(8):
        kept = step.group_and_gather(batch_of(step, [row]), step=number).factors_BF
        assert kept is not None
        step(batch_of(step, [row]), step=number)
        after = weights_of(step)["x"]
        assert np.array_equal(after[a], before[a]) == (float(kept[0, 0]) == 0.0)
        before = after
