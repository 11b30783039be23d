"""SharedRows: made once for all processes, the same scores, and what happens without room."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.serving.versions import ITEMS, USER, publish, write_items
from widedeep.serving import catalogue as shared_rows
from widedeep.serving.catalogue import Catalogue, SharedRows
from widedeep.serving.ranker import Ranker
from widedeep.serving.registry import Registry


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rankers_that_share_rows_give_the_same_bits(tmp_path: Path, precision: str) -> None:
    bundle = publish(tmp_path, "1", seed=1)
    items = Catalogue.read(str(write_items(tmp_path / "items.parquet")), id_column="app")
    alone, first, second = (
        Ranker(bundle, items=items, precision=precision, shared_rows=rows)  # type: ignore[arg-type]
        for rows in (None, SharedRows(tmp_path / "rows"), SharedRows(tmp_path / "rows"))
    )
    assert len(list((tmp_path / "rows").glob("*.safetensors"))) == 1
    want = alone.rank(USER, candidates=ITEMS).scores.tolist()
    for ranker in (first, second):
        assert ranker.rank(USER, candidates=ITEMS).scores.tolist() == want
    # The second one computed nothing: it maps what the first one wrote.
    assert second.prepared is not None
    (place,) = (tmp_path / "rows").glob("*.safetensors")
    assert mapped_file(second.prepared.items.sums.wide) == str(place)


def mapped_file(array: NDArray[Any]) -> str | None:
    """The file that the array's memory is a mapping of."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        begin, end = (int(side, 16) for side in span.split("-"))
        if begin <= address < end:
            return path[0] if path else None
    return None


def test_another_model_catalogue_or_precision_has_other_rows(tmp_path: Path) -> None:
    rows = SharedRows(tmp_path / "rows")
    write_items(tmp_path / "items.parquet")
    items = Catalogue.read(str(tmp_path / "items.parquet"), id_column="app")
    dearer = Catalogue.read(str(write_items(tmp_path / "dear.parquet", price=9)), id_column="app")
    bundle, other = publish(tmp_path, "1", seed=1), publish(tmp_path, "2", seed=2)
    for number, (model, catalogue, precision) in enumerate(
        [
            (bundle, items, "float32"),
            (bundle, dearer, "float32"),
            (other, items, "float32"),
            (bundle, items, "bfloat16"),
        ]
    ):
        ranker = Ranker(
            model,
            items=catalogue,
            precision=precision,  # type: ignore[arg-type]
            shared_rows=rows,
        )
        alone = Ranker(model, items=catalogue, precision=precision)  # type: ignore[arg-type]
        got, want = (each.rank(USER, candidates=ITEMS).scores for each in (ranker, alone))
        assert got.tolist() == want.tolist()
        assert len(list((tmp_path / "rows").glob("*.safetensors"))) == number + 1


def test_those_that_ask_at_once_make_them_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        time.sleep(0.1)
        return {"wide": np.arange(6.0)}

    def ask() -> None:
        found.append(SharedRows(tmp_path).arrays(["key"], make)["wide"].tolist())

    found: list[list[float]] = []
    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(6))] * 5
    assert len(made) == 1


def test_old_files_are_deleted_and_stay_readable_where_they_are_mapped(tmp_path: Path) -> None:
    rows = SharedRows(tmp_path)
    old = rows.arrays(["old"], lambda: {"wide": np.arange(9.0)})["wide"]
    (file,) = tmp_path.glob("*.safetensors")
    os.utime(file, (0, time.time() - 2 * shared_rows._MAX_AGE_S))
    rows.arrays(["new"], lambda: {"wide": np.zeros(1)})
    assert not file.exists()
    assert old.tolist() == list(range(9))


def test_without_room_a_process_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_rows, "write_tensors", full)
    made = {"wide": np.ones(3)}
    assert SharedRows(tmp_path).arrays(["key"], lambda: made) is made


def test_a_registry_finds_the_directory_of_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "models", "1", seed=1)
    items = write_items(tmp_path / "items.parquet")
    monkeypatch.setenv(shared_rows.ROWS_DIRECTORY, str(tmp_path / "rows"))
    with Registry(tmp_path / "models", items=items, item_id="app") as registry:
        assert registry.wait_ready(50), registry.status()
    assert len(list((tmp_path / "rows").glob("*.safetensors"))) == 1
