"""Tensor bundles: whole, sharded, partitioned and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.importing.write_bundle import write_bundle
from widedeep.errors import CheckpointError
from widedeep.importing.tensor_bundle import (
    TensorBundle,
    _ordered_signed,
    bundle_prefixes,
    find_bundle,
)
from widedeep.kernels import crc32c

RNG = np.random.default_rng(0)
TENSORS = {
    "global_step": np.int64(7),
    "linear/linear_model/job/weights": RNG.normal(size=(300, 1)).astype(np.float32),
    "dnn/hiddenlayer_0/kernel": RNG.normal(size=(5, 3)).astype(np.float32),
    "dnn/half": RNG.normal(size=(2, 2)).astype(np.float16),
    "empty": np.zeros((0, 4), np.float32),
}
JOB = "linear/linear_model/job/weights"


def equal(bundle: TensorBundle, name: str) -> bool:
    return np.array_equal(bundle.read(name), TENSORS[name])


@pytest.mark.parametrize(("shards", "parts"), [(1, {}), (3, {}), (2, {JOB: 7})])
def test_tensors_come_back(tmp_path: Path, shards: int, parts: dict[str, int]) -> None:
    bundle = TensorBundle(
        write_bundle(tmp_path / "model.ckpt-7", TENSORS, shards=shards, parts=parts)
    )
    assert list(bundle) == sorted(TENSORS)
    assert all(equal(bundle, name) for name in TENSORS)
    assert bundle.shape(JOB) == (300, 1)


def test_a_key_of_a_slice_is_ordered_as_its_number_is() -> None:
    numbers = [-(2**40), -8193, -8192, -65, -64, -1, 0, 1, 63, 64, 8191, 8192, 2**20, 2**40]
    codes = [_ordered_signed(value) for value in numbers]
    assert codes == sorted(codes)
    # As TensorFlow's ordered code has them.
    assert [c.hex() for c in codes[5:10]] == ["7f", "80", "81", "bf", "c040"]


def test_the_checksum_goes_on_from_a_part() -> None:
    data = np.frombuffer(b"123456789", np.uint8)
    assert crc32c(data) == 0xE3069283 == crc32c(data[4:], crc32c(data[:4]))


def test_the_newest_checkpoint_of_a_folder(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        write_bundle(tmp_path / f"model.ckpt-{step}", TENSORS)
    assert [p.name for p in bundle_prefixes(tmp_path)] == [f"model.ckpt-{i}" for i in (5, 9, 10)]
    assert find_bundle(tmp_path).name == "model.ckpt-10"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    assert find_bundle(tmp_path).name == "model.ckpt-9"
    assert find_bundle(tmp_path / "model.ckpt-5.index").name == "model.ckpt-5"
    with pytest.raises(CheckpointError, match="got no TensorFlow checkpoint"):
        find_bundle(Path(__file__).parent)


def test_a_wrong_byte_names_file_and_tensor(tmp_path: Path) -> None:
    prefix = write_bundle(tmp_path / "model.ckpt-7", TENSORS)
    data = tmp_path / "model.ckpt-7.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    bundle = TensorBundle(prefix)
    broken = []
    for name in TENSORS:
        try:
            assert equal(bundle, name)
        except CheckpointError as error:
            broken.append(str(error))
    assert len(broken) == 1
    assert "data-00000-of-00001: tensor 'linear/linear_model/job/weights'" in broken[0]
    assert "its checksum is wrong" in broken[0]


def test_a_file_that_is_cut_off_or_missing(tmp_path: Path) -> None:
    prefix = write_bundle(tmp_path / "model.ckpt-7", TENSORS, shards=2)
    data = tmp_path / "model.ckpt-7.data-00001-of-00002"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"00001-of-00002: tensor '.*': ends at byte"):
        [TensorBundle(prefix).read(name) for name in TENSORS]
    data.unlink()
    with pytest.raises(CheckpointError, match="got no such file, which holds tensor"):
        [TensorBundle(prefix).read(name) for name in TENSORS]


def test_every_wrong_byte_of_an_index_is_seen(tmp_path: Path) -> None:
    prefix = write_bundle(tmp_path / "model.ckpt-7", TENSORS, parts={JOB: 2})
    index = tmp_path / "model.ckpt-7.index"
    raw = index.read_bytes()
    for at in range(len(raw)):
        if len(raw) - 48 <= at < len(raw) - 8:
            continue  # the footer's numbers: what they point to is checked
        index.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        try:
            bundle = TensorBundle(prefix)
        except CheckpointError as error:
            assert "model.ckpt-7.index" in str(error)
        else:  # a byte of the index of meta blocks, which nobody reads
            assert all(equal(bundle, name) for name in TENSORS)
    for size in (0, 10, 47, 60, len(raw) - 1):
        index.write_bytes(raw[:size])
        with pytest.raises(CheckpointError, match=r"model\.ckpt-7\.index: .*damaged"):
            TensorBundle(prefix)


def test_other_checkpoints_and_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.index: got no such file"):
        TensorBundle(tmp_path / "nothing")
    prefix = write_bundle(tmp_path / "model.ckpt-7", TENSORS)
    with pytest.raises(CheckpointError, match="did you mean 'dnn/hiddenlayer_0/kernel'"):
        TensorBundle(prefix).read("dnn/hiddenlayer_0/kernels")
    big = write_bundle(tmp_path / "big", TENSORS, big_endian=True)
    with pytest.raises(CheckpointError, match="big-endian"):
        TensorBundle(big)
