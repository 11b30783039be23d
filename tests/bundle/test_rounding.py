"""Bundles with tables in fewer bytes: what they hold, and that they score alike everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from tests import two_tower_shop
from tests.bundle import models
from widedeep.bundle import Bundle, Platt, manifest, write_bundle
from widedeep.bundle.write import rewrite_bundle, round_bundle
from widedeep.errors import BundleError
from widedeep.files import map_tensors, write_tensors
from widedeep.kernels.packed_rows import PackedKind, PackedTable
from widedeep.models import DeepInput

KINDS: tuple[PackedKind, ...] = ("bf16", "int8", "int4")
ROWS: list[dict[str, Any]] = [
    {"user": f"u{i * 7}", "app": f"a{i % 13}", "tags": [f"t{i % 5}", "t1"], "clicked": i % 2}
    for i in range(200)
]


@pytest.fixture(scope="module")
def trainer() -> wd.Trainer:
    features = [
        wd.categorical("user", hash_buckets=40_001),
        wd.categorical("app", hash_buckets=1_001),
        wd.categorical("tags", combiner="max"),
    ]
    spec = wd.FeatureSpec(label="clicked", features=features, item=["app"])
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), hidden_units=[8], embedding_dim=16)
    trainer = wd.Trainer(model, batch_size=50, bundle_tables="int8")
    trainer.fit(ROWS)
    return trainer


@pytest.fixture(scope="module")
def bundles(
    trainer: wd.Trainer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Bundle]]:
    path = tmp_path_factory.mktemp("rounded")
    yield {
        kind: trainer.export(path / kind, tables=kind, part_bytes=1 << 20)
        for kind in ("fp32", *KINDS)
    }
    assert sorted(file.name for file in path.iterdir()) == sorted(("fp32", *KINDS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_bundle_scores_as_its_numbers_in_float32(
    bundles: dict[str, Bundle], kind: PackedKind
) -> None:
    exact, rounded = bundles["fp32"], Bundle.load(bundles[kind].path)
    plain = rounded.derive(rounded.model, {n: np.asarray(a) for n, a in rounded.weights.items()})
    scores_B = rounded.score(ROWS)
    assert np.array_equal(scores_B, plain.score(ROWS))
    assert np.array_equal(scores_B, rounded.score(ROWS, threads=3))
    assert (rounded.manifest.format_version, exact.manifest.format_version) == (3, 2)
    for name, array in exact.weights.items():
        table = rounded.weights[name]
        assert table.shape == array.shape
        assert isinstance(table, PackedTable) == name.startswith("table/")
        if isinstance(table, PackedTable):
            expected = np.asarray(PackedTable.pack(array, kind))
            np.testing.assert_array_equal(np.asarray(table), expected)
            assert table.nbytes <= {"bf16": 0.5, "int8": 0.27, "int4": 0.15}[kind] * array.nbytes
            assert not table.bytes_RB.flags.writeable
        else:
            np.testing.assert_array_equal(table, array)


@pytest.mark.parametrize("kind", KINDS)
def test_it_tells_how_much_rounding_changed(bundles: dict[str, Bundle], kind: PackedKind) -> None:
    rounding = bundles[kind].rounding
    assert rounding is not None and rounding.tables == kind
    assert rounding.rows > len(bundles[kind].warmup.rows) and 0 < rounding.mean <= rounding.worst
    assert rounding.worst < {"bf16": 1e-3, "int8": 1e-3, "int4": 2e-2}[kind]
    change_B = np.abs(bundles[kind].score(ROWS) - bundles["fp32"].score(ROWS))
    assert rounding.mean == pytest.approx(change_B.mean(), rel=0.5)
    assert f"tables in {kind}: of" in repr(bundles[kind])
    assert bundles["fp32"].rounding is None


def test_the_run_says_which_numbers(trainer: wd.Trainer, tmp_path: Path) -> None:
    rounding = trainer.export(tmp_path / "own").rounding
    assert rounding is not None and rounding.tables == "int8"
    with pytest.raises(BundleError, match=r"own: already exists"):
        trainer.export(tmp_path / "own")
    assert [file.name for file in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_and_explanations_read_packed_rows(
    bundles: dict[str, Bundle], kind: PackedKind
) -> None:
    bundle, items = bundles[kind], {"app": [f"a{i}" for i in range(13)]}
    user = {"user": "u7", "tags": ["t1", "t3"]}
    ranked = wd.Ranker(bundle).rank(user, candidates=items)
    rows = [user | {"app": items["app"][i]} for i in ranked.positions]
    expected_B = bundle.score(rows)
    np.testing.assert_allclose(ranked.scores, expected_B, rtol=0, atol=1e-6)
    assert bundle.explain(rows[0]).score[""] == pytest.approx(expected_B[0], abs=1e-6)


def test_a_packed_bundle_written_again_stays_packed(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    before = bundles["int4"]
    curve = {"": Platt(slope=0.5, intercept=0.1)}
    after = rewrite_bundle(before, tmp_path / "b", weights=before.weights, calibration=curve)
    assert after.rounding == before.rounding and after.manifest.format_version == 3
    np.testing.assert_array_equal(
        np.asarray(after.weights["table/user"]), np.asarray(before.weights["table/user"])
    )


def test_a_warm_start_takes_the_rounded_rows(bundles: dict[str, Bundle]) -> None:
    model = wd.WideDeep(bundles["int8"].schema, hidden_units=[8], embedding_dim=16)
    wd.Trainer(model).warm_start(bundles["int8"].path)
    (table,) = (t for t in model.embedding_tables)
    np.testing.assert_array_equal(
        table.named_weights()["user"].detach().numpy(),
        np.asarray(bundles["int8"].weights["table/user"]),
    )


def test_what_cannot_be_rounded_is_refused(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"its tables are in int8 already.*export the run again"):
        round_bundle(bundles["int8"], tmp_path / "b", "int4")
    with pytest.raises(BundleError, match=r"got tables='int2', expected one of \('bf16'"):
        round_bundle(bundles["fp32"], tmp_path / "b", "int2")  # type: ignore[arg-type]
    schema = models.schema()
    model = models.model(schema)
    weights = models.random_weights(schema, model)
    large = {**weights, "table/apps": weights["table/apps"] * 1e6}
    parts = {"schema": schema, "model": model, "metrics": {}, "warmup_rows": [], "config": {}}
    bundle = write_bundle(tmp_path / "large", weights=large, **parts)
    with pytest.raises(BundleError, match=r"tensor 'table/apps' \(row \d\): got .*, int4 holds"):
        round_bundle(bundle, tmp_path / "b", "int4")
    no_rows = round_bundle(bundle, tmp_path / "bf16", "bf16")
    assert no_rows.rounding is not None and no_rows.rounding.rows == 0
    wide = {name: a for name, a in weights.items() if name.startswith(("wide/", "bias"))}
    plain = {**parts, "model": replace(model, hidden_units=(), deep=())}
    with pytest.raises(BundleError, match="has no tables of embeddings"):
        round_bundle(write_bundle(tmp_path / "wide", weights=wide, **plain), tmp_path / "b", "int8")
    assert not (tmp_path / "b").exists()


def test_rows_of_another_width_are_refused(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    whole = round_bundle(bundles["fp32"], tmp_path / "b", "int8")
    tensors = {
        n: np.array(a) for f in whole.path.glob("weights*") for n, a in map_tensors(f).items()
    }
    for file in whole.path.glob("weights*"):
        file.unlink()
    tensors["table/user"] = np.zeros((40_003, 9), np.uint8)
    write_tensors(whole.path / "weights.safetensors", tensors)
    entries = manifest.file_entries(whole.path)
    text = replace(whole.manifest, files=entries).to_text()
    (whole.path / manifest.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"'table/user': got rows of 9 bytes, expected 17"):
        Bundle.load(whole.path)


class Ceilings(nn.Module):
    """A tower of what no native operation says: it goes through ONNX."""

    def forward(self, inputs: DeepInput) -> Tensor:
        sum_BD = inputs.sequences["seen"].padded()[0].sum(1)
        return sum_BD * torch.ceil(sum_BD.abs())


@pytest.mark.parametrize(("tower", "engine"), [("din", "graph"), (Ceilings, "onnx")])
def test_sequences_are_read_from_packed_rows(tower: Any, engine: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"ad": f"a{i % 5}", "seen": [f"a{a}" for a in rng.integers(0, 7, i % 4)], "y": i % 2}
        for i in range(40)
    ]
    seen = wd.categorical("seen", table="ad", combiner=None, maxlen=3)
    features = [wd.categorical("ad", table="ad"), seen]
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=features, item=["ad"]), rows)
    towers: Any = {"deep": "din"} if tower == "din" else {"towers": {"own": tower()}}
    trainer = wd.Trainer(wd.WideDeep(schema, embedding_dim=5, hidden_units=[], **towers))
    exact = trainer.export(tmp_path / "fp32", tables="fp32")
    assert exact.manifest.engine == engine
    for kind in KINDS:
        rounded = trainer.export(tmp_path / kind, tables=kind)
        table = np.asarray(PackedTable.pack(exact.weights["table/ad"], kind))
        np.testing.assert_array_equal(np.asarray(rounded.weights["table/ad"]), table)
        with_floats = rewrite_bundle(
            exact,
            tmp_path / "floats",
            weights={**exact.weights, "table/ad": table},
            calibration={},
            overwrite=True,
        )
        np.testing.assert_array_equal(rounded.score(rows), with_floats.score(rows))


def test_two_towers_keep_their_items_vectors(tmp_path: Path) -> None:
    table = two_tower_shop.shop(300)
    schema = wd.fit_schema(two_tower_shop.spec(), table)
    tower = wd.models.TwoTower(dim=6, hidden_units=(8,))
    trainer = wd.Trainer(wd.WideDeep(schema, deep=tower, embedding_dim=6), progress=False)
    items = two_tower_shop.CATALOGUE
    exact = trainer.export(tmp_path / "fp32", items=items, tables="fp32")
    rounded = trainer.export(tmp_path / "int8", items=items, tables="int8")
    assert exact.items is not None and rounded.items is not None
    np.testing.assert_array_equal(rounded.items.vectors_ND, exact.items.vectors_ND)
    np.testing.assert_allclose(rounded.item_vectors(items), exact.items.vectors_ND, atol=0.02)
    query = {"user": "u1", "age": 30}
    np.testing.assert_allclose(rounded.query_vector(query), exact.query_vector(query), atol=0.02)
