"""Tensor files: what is written is mapped, other readers open it, damage is told."""

from __future__ import annotations

import json
import os
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from widedeep.errors import DataError
from widedeep.files import map_tensors, read_metadata, write_tensors

DTYPES = ["f8", "f4", "i8", "i4", "u8", "u2", "u1", "i1", "?"]


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, NDArray[Any]]:
    names = draw(st.lists(st.text(max_size=8), max_size=6, unique=True))
    made = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 40), max_size=3))
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        size = int(np.prod(shape, dtype=np.int64))
        bits = np.random.default_rng(size).integers(0, 256, size * dtype.itemsize, np.uint8)
        values = bits % 2 == 1 if dtype.kind == "b" else bits.view(dtype)
        made[name] = values.reshape(shape)
    return made


def write(path: Path, arrays: dict[str, NDArray[Any]] | None = None) -> Path:
    write_tensors(path, arrays or {"a": np.arange(3), "b": np.ones((2, 5), np.float32)}, {"k": "v"})
    return path


@given(tensors())
def test_arrays_are_read_back_and_by_the_safetensors_library(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, NDArray[Any]]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    write_tensors(path, arrays, {"é": "ü", "empty": ""})
    mapped = map_tensors(path)
    library = safetensors.numpy.load_file(path)
    assert list(mapped) == list(arrays)
    for name, array in arrays.items():
        assert mapped[name].dtype == library[name].dtype == array.dtype
        assert mapped[name].shape == library[name].shape == array.shape
        assert mapped[name].tobytes() == library[name].tobytes() == array.tobytes()
    assert read_metadata(path) == {"é": "ü", "empty": ""}


def test_files_of_the_safetensors_library_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    safetensors.numpy.save_file({"a": np.arange(7, dtype=np.int8), "b": np.eye(3)}, path)
    mapped = map_tensors(path)
    assert mapped["a"].tolist() == list(range(7))
    assert mapped["b"].tolist() == np.eye(3).tolist()


def test_small_arrays_start_on_64_bytes_and_tables_on_pages(tmp_path: Path) -> None:
    arrays = {
        "one": np.arange(1, dtype=np.int8),
        "small": np.arange(9.0),
        "table": np.arange(1024, dtype=np.float32),
        "tail": np.arange(5, dtype=np.int8),
        "wide": np.arange(5000.0),
    }
    path = write(tmp_path / "t.safetensors", arrays)
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + length])
    starts = {name: 8 + length + header[name]["data_offsets"][0] for name in arrays}
    assert all(start % 64 == 0 for start in starts.values())
    assert starts["table"] % 4096 == 0 and starts["wide"] % 4096 == 0
    assert all(array.ctypes.data % 64 == 0 for array in map_tensors(path).values())


def test_mapped_arrays_cannot_be_changed(tmp_path: Path) -> None:
    mapped = map_tensors(write(tmp_path / "t.safetensors"))
    with pytest.raises(ValueError, match="read-only"):
        mapped["a"][0] = 1


def test_a_file_that_is_mapped_may_be_written_again(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors", {"a": np.arange(100_000)})
    before = map_tensors(path)["a"]
    write(path, {"a": np.zeros(3, np.int64)})
    assert before.sum() == 4_999_950_000
    assert map_tensors(path)["a"].tolist() == [0, 0, 0]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors")
    with pytest.raises(DataError, match=r"tensor 'x': got dtype complex128, expected one of"):
        write_tensors(path, {"a": np.zeros(2), "x": np.zeros(2, complex)})
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent" / "t.safetensors")
    assert map_tensors(path)["a"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = write(tmp_path / "t.safetensors")
    # The temporary file's name is taken by a link to a device that is always full.
    (tmp_path / f".t.safetensors.{os.getpid()}.{threading.get_ident()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write(path, {"a": np.zeros(99)})
    assert map_tensors(path)["a"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("name", ["__metadata__", "__pad.0"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="the name is reserved"):
        write_tensors(tmp_path / "t", {name: np.zeros(1)})


@pytest.mark.parametrize("kept", [0, 5, 100, 4095, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "t.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"damaged|incomplete") as caught:
        map_tensors(path)
    assert str(path) in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"PAR1" * 100)
    with pytest.raises(DataError, match="no safetensors header"):
        map_tensors(path)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]},
        {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "t.safetensors"
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(DataError, match="its safetensors header is damaged"):
        map_tensors(path)


def test_columns_of_rows_are_copied_one_at_a_time(tmp_path: Path) -> None:
    rows = np.ones((100_000, 30), np.float32)
    columns = {f"slot_{i}": rows[:, i : i + 3] for i in range(0, 30, 3)}
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "t.safetensors", columns)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * columns["slot_0"].nbytes
    assert all((column == 1).all() for column in map_tensors(tmp_path / "t.safetensors").values())


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    text = b'{"a":{"dtype":"F8_E5M2","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(DataError, match="tensor 'a' has dtype F8_E5M2, which is not known"):
        map_tensors(path)


def test_any_flipped_header_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path / "t.safetensors")
    good = path.read_bytes()
    end = good.index(b"}}}") if b"}}}" in good else good.index(b"  ")
    for position in range(end + 8):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        try:
            mapped = map_tensors(path)
        except DataError:
            continue
        assert sum(array.nbytes for array in mapped.values()) <= len(good)
