"""Patches: applied, they are the newer bundle by bytes; of another base or damaged, refused."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import widedeep as wd
from widedeep.bundle import Bundle, BundleHead, BundleModel, DeepColumn, write_bundle
from widedeep.bundle.manifest import MANIFEST, PATCH, Manifest, file_entries
from widedeep.bundle.patch import BaseMissing, apply_patch, read_patch, write_patch
from widedeep.bundle.write import rewrite_bundle, round_bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.files import map_tensors, write_tensors
from widedeep.kernels.score import from_bfloat16, to_bfloat16
from widedeep.publish import publish
from widedeep.publish.publishing import round_changes
from widedeep.serving.loading import PrivateCopies
from widedeep.training.config import FollowConfig

WORDS = 3000


def first_bundle(path: Path, *, seed: int = 0, words: int = WORDS) -> Bundle:
    """Write a bundle with a table large enough for a patch of it to be small."""
    names = [f"word {number}" for number in range(words)]
    spec = wd.FeatureSpec(features=wd.categorical("word", vocabulary=names))
    schema = wd.fit_schema(spec, [{"word": "word 1"}])
    random = np.random.default_rng(seed)
    slot = schema.slots[0]
    return write_bundle(
        path,
        schema=schema,
        weights={
            "bias": np.ones(1, np.float32),
            "wide/word": random.normal(size=(slot.size, 1)).astype(np.float32),
            "table/word": random.normal(size=(slot.size, 32)).astype(np.float32),
            "head/weight": random.normal(size=(1, 32)).astype(np.float32),
        },
        model=BundleModel(
            heads=(BundleHead(name="", kind="binary", start=0, stop=1),),
            wide=("word",),
            deep=(DeepColumn(name="word", source="table", start=0, stop=32, combiner="sum"),),
        ),
        metrics={},
        warmup_rows=[{"word": "word 1"}],
        config={},
    )


def next_bundle(before: Bundle, path: Path, *, seed: int, rows: int = 30) -> Bundle:
    """Write a bundle in which a few rows, and all dense weights, moved."""
    random = np.random.default_rng(seed)
    weights = {name: array.copy() for name, array in before.weights.items()}
    for array in weights.values():
        moved = random.integers(0, len(array), rows)
        array[moved] += random.normal(0, 0.01, array[moved].shape).astype(np.float32)
    weights["bias"] += 1
    return rewrite_bundle(before, path, weights=weights, calibration={})


def versions(folder: Path, count: int, **options: Any) -> tuple[Path, list[Bundle]]:
    """Publish bundles that follow each other; return the models and the bundles."""
    bundles = [first_bundle(folder / "1")]
    for number in range(2, count + 1):
        bundles.append(next_bundle(bundles[-1], folder / str(number), seed=number))
    for bundle in bundles:
        publish(bundle.path, folder / "models", force=True, reason="a test", **options)
    return folder / "models", bundles


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Draw the tensors of two files: rows moved, added, taken away; types and names changed."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    old, new = {}, {}
    for number in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from([np.float32, np.int64, np.uint8, np.int8]))
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        array = random.integers(0, 255, shape).astype(dtype)
        other = array.copy()
        change = draw(st.sampled_from(["same", "rows", "longer", "shorter", "type", "new", "gone"]))
        if change == "rows" and array.size:
            other.reshape(-1)[random.integers(0, array.size, 2)] += 1
        elif change in ("longer", "shorter") and shape:
            other = np.resize(
                array, (max(0, shape[0] + (1 if change == "longer" else -1)), *shape[1:])
            )
        elif change == "type":
            other = other.astype(np.float32)
        if change != "new":
            old[f"table/{number}"] = array
        if change != "gone":
            new[f"table/{number}"] = other
    return old, new


@given(tensors())
@settings(max_examples=60, deadline=None)
def test_a_patch_makes_the_same_bytes(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, arrays in zip(("old", "new"), pair, strict=True):
            (folder / part).mkdir()
            write_tensors(folder / part / "weights.safetensors", arrays)
            (folder / part / "same.json").write_text("{}")
            (folder / part / f"{part}.json").write_text(f"{part} " * 100)
            _seal(folder / part)
        (folder / "patch").mkdir()
        write_patch(folder / "old", folder / "new", folder / "patch", version="1", depth=1)
        apply_patch(folder / "patch", folder / "old")
        assert contents(folder / "old") == contents(folder / "new")


def _seal(folder: Path) -> None:
    """Write the manifest of what is in a folder."""
    manifest = Manifest(
        format_version=1,
        engine="native",
        created_by="1.0",
        schema_fingerprint="0" * 64,
        files=file_entries(folder),
    )
    (folder / MANIFEST).write_text(manifest.to_text())


def test_a_chain_of_patches_is_the_last_bundle(tmp_path: Path) -> None:
    models, bundles = versions(tmp_path, 5, full_every=4)
    depths = [getattr(read_patch(models / str(n)), "depth", 0) for n in range(1, 6)]
    assert depths == [0, 1, 2, 3, 0]
    assert (models / "2" / PATCH).stat().st_size < 1 / 20 * sum(
        file.stat().st_size for file in (models / "1").iterdir()
    )
    copies = PrivateCopies(tmp_path / "cache")
    copy = copies.take(models / "4")
    assert contents(copy.path) == contents(bundles[3].path)
    scores = Bundle.load(copy.path).score([{"word": f"word {n}"} for n in range(WORDS)])
    expected = bundles[3].score([{"word": f"word {n}"} for n in range(WORDS)])
    assert np.asarray(scores).tobytes() == np.asarray(expected).tobytes()
    copy.close()
    assert not list(copies.directory.iterdir())


def test_a_copy_of_the_base_stands_for_a_version_that_is_gone(tmp_path: Path) -> None:
    models, bundles = versions(tmp_path, 3, full_every=9)
    copies = PrivateCopies(tmp_path / "cache")
    with_base = copies.take(models / "2")
    shutil.rmtree(models / "1")
    copy = copies.take(models / "3")
    assert contents(copy.path) == contents(bundles[2].path)
    copy.close()
    with_base.close()
    with pytest.raises(BaseMissing, match=r"patch of version 1, which is not in .*models; restore"):
        copies.take(models / "3")


def test_a_patch_of_another_version_is_refused(tmp_path: Path) -> None:
    models, _ = versions(tmp_path, 2, full_every=9)
    first_bundle(tmp_path / "other", seed=5)
    shutil.rmtree(models / "1")
    shutil.copytree(tmp_path / "other", models / "1")
    with pytest.raises(BundleError, match=r"it applies to [0-9a-f]{12}, and version 1 is"):
        PrivateCopies(tmp_path / "cache").take(models / "2")
    with pytest.raises(BundleError, match="got a patch of another version, expected a whole"):
        Bundle.load(models / "2")


def test_no_damaged_byte_of_a_patch_is_applied(tmp_path: Path) -> None:
    models, bundles = versions(tmp_path, 2, full_every=9)
    file, random = models / "2" / PATCH, np.random.default_rng(0)
    good = file.read_bytes()
    used = {i for array in map_tensors(file).values() for i in _span(file, array)}
    for offset in random.choice(sorted(used), 40, replace=False).tolist():
        file.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        copies = PrivateCopies(tmp_path / "cache")
        try:  # a few bits of a compressed block mean nothing
            assert contents(copies.take(models / "2").path) == contents(bundles[1].path)
        except BundleError as error:
            assert "damaged" in str(error)
            assert not list(copies.directory.iterdir())


def _span(file: Path, array: NDArray[Any]) -> range:
    start = file.read_bytes().find(array.tobytes())
    return range(start, start + array.nbytes)


def test_rows_that_all_move_are_published_whole(tmp_path: Path) -> None:
    first, second = first_bundle(tmp_path / "1"), first_bundle(tmp_path / "2", seed=7)
    for bundle in (first, second):
        record = publish(
            bundle.path, tmp_path / "models", force=True, reason="a test", full_every=9
        )
    assert record.patches == 0
    assert Bundle.load(tmp_path / "models" / "2").manifest == second.manifest


def test_packed_tables_are_patched_by_their_bytes(tmp_path: Path) -> None:
    first = first_bundle(tmp_path / "1")
    second = next_bundle(first, tmp_path / "2", seed=2)
    packed = [
        round_bundle(b, tmp_path / f"{b.path.name}-int8", tables="int8") for b in (first, second)
    ]
    for bundle in packed:
        publish(bundle.path, tmp_path / "models", force=True, reason="a test", full_every=9)
    copy = PrivateCopies(tmp_path / "cache").take(tmp_path / "models" / "2")
    assert read_patch(tmp_path / "models" / "2") is not None
    assert contents(copy.path) == contents(packed[1].path)
    before = packed[1].weights["table/word"]
    round_changes(packed[0].path, packed[1].path)
    assert type(Bundle.load(packed[1].path).weights["table/word"]) is type(before)


def test_rounding_moves_what_moved_and_does_not_add_up(tmp_path: Path) -> None:
    first = first_bundle(tmp_path / "1")
    exact = next_bundle(first, tmp_path / "2", seed=2)
    shutil.copytree(exact.path, tmp_path / "rounded")
    round_changes(first.path, tmp_path / "rounded")
    rounded = Bundle.load(tmp_path / "rounded")
    for name in ("wide/word", "table/word"):
        old, new, got = (b.weights[name] for b in (first, exact, rounded))
        assert np.array_equal(got[new == old], old[new == old])
        assert np.array_equal(got[new != old], from_bfloat16(to_bfloat16(new))[new != old])
    assert np.array_equal(rounded.weights["head/weight"], exact.weights["head/weight"])
    # The trainer's own numbers again, against those that are served: nothing moves but rounded
    # rows stay as they are.
    shutil.copytree(exact.path, tmp_path / "again")
    round_changes(rounded.path, tmp_path / "again")
    for name, array in Bundle.load(tmp_path / "again").weights.items():
        assert array.tobytes() == rounded.weights[name].tobytes()
    for bundle in (first, rounded):
        publish(bundle.path, tmp_path / "models", force=True, reason="a test", full_every=9)
    publish(first.path, tmp_path / "exact", force=True, reason="a test")
    publish(exact.path, tmp_path / "exact", force=True, reason="a test", full_every=9)
    sizes = [(tmp_path / name / "2" / PATCH).stat().st_size for name in ("models", "exact")]
    assert sizes[0] < sizes[1]


def test_what_does_not_go_together_is_told() -> None:
    with pytest.raises(ConfigError, match="patch_precision = 'bfloat16' without patches; give"):
        FollowConfig(patch_precision="bfloat16")
    with pytest.raises(ConfigError, match="got full_every=0, expected an integer from 1 to 200"):
        FollowConfig(full_every=0)
