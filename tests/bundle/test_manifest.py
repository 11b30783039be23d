"""A bundle that is not byte for byte what was written is refused, and the file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.bundle.test_write import write
from widedeep.bundle import Bundle, manifest
from widedeep.bundle import write as bundle_write
from widedeep.errors import BundleError

FILES = [
    "manifest.json",
    "schema.safetensors",
    "weights.safetensors",
    "config.json",
    "metrics.json",
    "warmup.json",
    "calibration.json",
]


def flip(file: Path, position: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1
    file.write_bytes(raw)


def test_a_bundle_has_these_files(written: Bundle) -> None:
    assert {file.name for file in written.path.iterdir()} == set(FILES)
    assert written.manifest.files.keys() == set(FILES) - {"manifest.json"}
    assert written.manifest.engine == "native"
    assert written.manifest.schema_fingerprint == written.schema.fingerprint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_a_flipped_byte_is_found(copied: Path, name: str, share: float) -> None:
    file = copied / name
    flip(file, int(share * (file.stat().st_size - 1)))
    with pytest.raises(BundleError, match=rf"{name}: .*copy the bundle again, or export it again"):
        Bundle.load(copied)


def test_every_byte_of_the_manifest_counts(copied: Path) -> None:
    file = copied / "manifest.json"
    whole = file.read_bytes()
    for position in range(len(whole)):
        flip(file, position)
        with pytest.raises(BundleError, match=r"manifest\.json: "):
            manifest.read_manifest(copied)
        file.write_bytes(whole)
    assert manifest.read_manifest(copied) == Bundle.load(copied).manifest


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_named(copied: Path, name: str, verify: bool) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}\b.*copy the bundle again"):
        Bundle.load(copied, verify=verify)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_named(copied: Path, name: str, verify: bool) -> None:
    file = copied / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BundleError, match=rf"{name}: got .*copy the bundle again"):
        Bundle.load(copied, verify=verify)


@pytest.mark.parametrize("n_copied", range(7))
def test_a_directory_copied_halfway_is_refused(
    written: Bundle, tmp_path: Path, n_copied: int
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    for file in sorted(written.path.iterdir())[:n_copied]:
        (half / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BundleError, match=r"half.*copy the bundle again, or export it again"):
        Bundle.load(half)


def test_a_left_over_file_is_named(copied: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt: got a file that .* does not know; move it"):
        Bundle.load(copied)


def test_a_path_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="got no directory, expected a bundle"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"without manifest\.json: it is no bundle"):
        Bundle.load(tmp_path)


def resealed(file: Path, **changes: object) -> None:
    """Write the manifest as another version would: sound, but with other contents."""
    body = json.loads(file.read_text())
    body |= changes
    body.pop("sha256")
    body["sha256"] = manifest._seal(body)
    file.write_text(json.dumps(body, indent=1) + "\n")


def test_a_folder_of_versions_is_told_from_a_bundle(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied, tmp_path / "models" / "7")
    with pytest.raises(BundleError, match=r"versions .7.*name one of them: .*/models/7"):
        Bundle.load(tmp_path / "models")


def test_another_format_version_says_what_to_do(copied: Path) -> None:
    resealed(copied / "manifest.json", format_version=4, created_by="9.0", layout="new")
    with pytest.raises(
        BundleError,
        match=r"bundle format 4, .* reads formats 1 to 3; export .*or install .*\(9\.0\)",
    ):
        Bundle.load(copied)


def test_a_newer_version_writes_its_format_and_reads_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(tmp_path / "before")
    monkeypatch.setattr(manifest, "READABLE_FORMATS", (1, 2, 3, 4))
    monkeypatch.setattr(bundle_write, "FORMAT_VERSION", 4)
    after = write(tmp_path / "after")
    bundles = [Bundle.load(bundle.path) for bundle in (before, after)]
    assert [bundle.manifest.format_version for bundle in bundles] == [1, 4]
    scores = [bundle.score(bundle.warmup.rows) for bundle in bundles]
    assert np.array_equal(*scores)


def test_the_schema_of_another_model_is_refused(copied: Path) -> None:
    resealed(copied / "manifest.json", schema_fingerprint="0" * 64)
    with pytest.raises(BundleError, match=r"schema\.safetensors: .* it is another model's"):
        Bundle.load(copied, verify=False)
