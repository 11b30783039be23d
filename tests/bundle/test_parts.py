"""Bundles whose weights are cut into parts: mapped as one, scored to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from widedeep.bundle import Bundle
from widedeep.bundle.write import rewrite_bundle
from widedeep.errors import BundleError, DataError
from widedeep.files import TensorFiles, map_tensors, write_tensors
from widedeep.publish import publish

PART = 1 << 20
ROWS: list[dict[str, Any]] = [
    {"user": f"u{i * 7}", "app": f"a{i % 13}", "clicked": i % 2} for i in range(400)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in one file (``whole``) and in parts of 1 MiB (``parts``)."""
    path = tmp_path_factory.mktemp("parts")
    features = [
        wd.categorical("user", hash_buckets=90_001),
        wd.categorical("app", hash_buckets=70_001),
        wd.crossed("user", "app", hash_buckets=30_000),
    ]
    spec = wd.FeatureSpec(label="clicked", features=features)
    model = wd.WideDeep(wd.fit_schema(spec, ROWS), hidden_units=[8], embedding_dim=5)
    trainer = wd.Trainer(model, batch_size=50)
    trainer.fit(ROWS)
    trainer.export(path / "whole")
    trainer.export(path / "parts", part_bytes=PART)
    return path


def test_parts_score_as_one_file_to_the_bit(folder: Path) -> None:
    whole, parts = Bundle.load(folder / "whole"), Bundle.load(folder / "parts")
    assert (whole.manifest.format_version, parts.manifest.format_version) == (1, 2)
    files = [name for name in parts.manifest.files if name.startswith("weights")]
    assert files[0] == f"weights-00001-of-{len(files):05}.safetensors"
    assert len(files) == 5 and "weights.safetensors" not in parts.manifest.files
    sizes = [parts.manifest.files[name].size for name in files]
    assert max(sizes) <= PART + (1 << 16) and sum(sizes[:-1]) > 0.9 * PART * (len(files) - 1)
    for name, array in whole.weights.items():
        assert np.array_equal(parts.weights[name], array)
        assert not parts.weights[name].flags.writeable
    assert np.array_equal(parts.score(ROWS), whole.score(ROWS))
    assert str(parts.explain(ROWS[0])) == str(whole.explain(ROWS[0]))


def test_a_ranker_serves_parts_as_one_file(folder: Path, tmp_path: Path) -> None:
    publish(folder / "parts", tmp_path / "models", force=True, reason="a test")
    items = {"app": [f"a{i}" for i in range(20)]}
    whole, parts = (
        wd.Ranker(path, item_id="app").rank({"user": "u7"}, candidates=items)
        for path in (folder / "whole", tmp_path / "models/1")
    )
    assert (parts.items, parts.scores.tolist()) == (whole.items, whole.scores.tolist())


@pytest.mark.parametrize("part", [0, 3])
def test_a_part_that_is_damaged_or_missing_is_named(folder: Path, part: int) -> None:
    file = sorted((folder / "parts").glob("weights-*"))[part]
    sound = file.read_bytes()
    try:
        file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(BundleError, match=rf"{file.name}: its SHA-256"):
            Bundle.load(folder / "parts")
        file.unlink()
        with pytest.raises(BundleError, match=rf"{file.name}: the file is missing"):
            Bundle.load(folder / "parts")
    finally:
        file.write_bytes(sound)


def test_a_bundle_in_parts_is_written_again_in_parts(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "parts")
    weights = {name: array * np.float32(0.5) for name, array in bundle.weights.items()}
    again = rewrite_bundle(bundle, tmp_path / "half", weights=weights, calibration={})
    assert again.manifest.format_version == 2
    assert len(list(again.path.glob("weights-*"))) == 5
    name = "table/app"
    assert np.array_equal(again.weights[name], weights[name])


def test_parts_too_small_are_refused(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "whole")
    with pytest.raises(BundleError, match=r"got part_bytes=1000, expected at least 1,048,576"):
        wd.bundle.write_bundle(
            tmp_path / "b",
            schema=bundle.schema,
            weights=bundle.weights,
            model=bundle.model,
            metrics={},
            warmup_rows=[],
            config={},
            part_bytes=1000,
        )


def test_rows_written_in_any_order_give_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"t": rng.random((40_000, 7), np.float32), "b": np.arange(3.0), "s": np.array(2)}
    write_tensors(tmp_path / "whole.safetensors", arrays)
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    for part_bytes, count in ((None, 1), (500_000, 3)):
        files = TensorFiles(tmp_path / "cut.safetensors", shapes, part_bytes=part_bytes)
        files.create()
        for first in (30_000, 0, 10_000, 20_000):
            files.write("t", arrays["t"][first : first + 10_000], first)
        files.write("b", arrays["b"])
        files.write("s", arrays["s"])
        assert len(files.paths) == count
        mapped = map_tensors(*files.paths)
        assert all(np.array_equal(mapped[name], arrays[name]) for name in arrays)
    cut = (tmp_path / "cut.safetensors").read_bytes()
    assert cut == (tmp_path / "whole.safetensors").read_bytes()


def test_pieces_that_do_not_join_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, rows in zip(paths, (1000, 500), strict=True):
        write_tensors(path, {"t": np.ones((rows, 3), np.float32)})
    with pytest.raises(DataError, match=r"a\.safetensors: tensor 't' is cut where it cannot go on"):
        map_tensors(*paths)
