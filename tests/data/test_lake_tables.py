"""Tables of Delta Lake and Iceberg: rows equal what their own libraries return."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from pyroaring import BitMap

from tests.data.test_remote import ROWS, rows_of
from tests.object_store import bucket, s3_endpoint  # noqa: F401
from widedeep.data.fragments import check_same_inputs
from widedeep.data.lake_tables import pinned
from widedeep.data.sources import open_source
from widedeep.errors import DataError, MissingPackageError

FIRST = pa.table({"age": list(range(20)), "day": ["a b"] * 10 + ["c"] * 10})
MORE = pa.table({"age": [100, 101, 102], "day": ["c", "d", None], "price": [1.5, None, 3.5]})


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "lake")
    return str(request.getfixturevalue("bucket"))


def by_age(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["age"])


def theirs(table: deltalake.DeltaTable) -> list[dict[str, Any]]:
    return by_age(pa.RecordBatchReader.from_stream(table.scan()).read_all().to_pylist())


def delta_table(place: str) -> str:
    path = f"{place}/clicks"
    options = {"AWS_ALLOW_HTTP": "true"}
    deltalake.write_deltalake(path, FIRST, partition_by=["day"], storage_options=options)
    deltalake.write_deltalake(
        path, MORE, mode="append", schema_mode="merge", storage_options=options
    )
    deltalake.DeltaTable(path, storage_options=options).delete("age = 3 or age = 101")
    return path


def test_versions_of_a_delta_table(place: str) -> None:
    path = delta_table(place)
    options = {"AWS_ALLOW_HTTP": "true"}
    for version in (0, 1, 2):
        table = deltalake.DeltaTable(path, version=version, storage_options=options)
        assert by_age(rows_of(f"{path}@v{version}")) == theirs(table)
        assert by_age(rows_of(f"{path}@{version}", ["day", "age"]))[0] == {"day": "a b", "age": 0}
        assert by_age(rows_of(table)) == theirs(table)
    assert by_age(rows_of(path)) == by_age(rows_of(f"{path}@2"))
    assert len(rows_of(path)) == 21
    assert pinned(path) == f"{path}@v2"
    assert pinned(f"{path}@v1") == f"{path}@v1"
    with open_source(path) as now, open_source(f"{path}@v1") as before:
        assert now.describe()[0]["name"] == "clicks@v2"
        with pytest.raises(DataError, match=r"name is 'clicks@v2', but was 'clicks@v1'"):
            check_same_inputs(before.describe(), now.describe())
    with pytest.raises(DataError, match="version 9 of the Delta table cannot be opened"):
        open_source(f"{path}@v9")
    with pytest.raises(DataError, match=r"clicks@v2: no column 'agf'.*age"):
        open_source(path, columns=["agf"])


_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def z85(data: bytes) -> str:
    data += b"\0" * (-len(data) % 4)
    numbers = struct.unpack(f">{len(data) // 4}I", data)
    return "".join(_Z85[n // 85**k % 85] for n in numbers for k in (4, 3, 2, 1, 0))


def delete_by_vector(table: Path, file: str, rows: Sequence[int]) -> None:
    """Delete rows of a file as Spark does: by a deletion vector in the log."""
    version = deltalake.DeltaTable(table).version() + 1
    logs = sorted((table / "_delta_log").glob("*.json"))
    entries = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    add = [e["add"] for e in entries if "add" in e and file in e["add"]["path"]][-1]
    bits = struct.pack("<IqI", 1681511377, 1, 0) + BitMap(rows).serialize()
    vector = {"storageType": "i", "pathOrInlineDv": z85(bits), "sizeInBytes": len(bits)}
    features = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    actions = [
        {"protocol": {**protocol, "readerFeatures": features, "writerFeatures": features}},
        {"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}},
        {"add": {**add, "deletionVector": {**vector, "cardinality": len(rows)}}},
    ]
    log = table / "_delta_log" / f"{version:020}.json"
    log.write_text("\n".join(map(json.dumps, actions)))


def test_deletion_vectors(tmp_path: Path) -> None:
    path = Path(delta_table(str(tmp_path)))
    big = pa.table({"age": list(range(1000, 9000)), "day": ["e"] * 8000})
    properties = deltalake.WriterProperties(max_row_group_size=1000)
    deltalake.write_deltalake(
        path, big, mode="append", schema_mode="merge", writer_properties=properties
    )
    before = rows_of(path)
    delete_by_vector(path, "day=a", [0, 4])
    delete_by_vector(path, "day=e", [0, *range(999, 2001), 7999])
    table = deltalake.DeltaTable(path)
    rows = rows_of(path)
    assert by_age(rows) == theirs(table)
    assert len(before) - len(rows) == 2 + 1004
    assert [row["age"] for row in rows_of(path, ["age"])] == [row["age"] for row in rows]
    assert len(rows_of(f"{path}@v2")) == 21


def test_a_table_that_was_vacuumed_under_the_reader(tmp_path: Path) -> None:
    path = Path(delta_table(str(tmp_path)))
    with open_source(path) as source:
        for file in path.glob("day=*/*.parquet"):
            file.unlink()
        with pytest.raises(DataError, match=r"clicks@v2: a file of this .* is gone.*vacuumed"):
            source.read(source.fragments[0])
    with pytest.raises(DataError, match=r"a file of this snapshot is gone"):
        open_source(f"{path}@v1")


@pytest.mark.parametrize("name", ["deltalake", "pyiceberg"])
def test_a_missing_package_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = "_delta_log/0.json" if name == "deltalake" else "metadata/v1.metadata.json"
    (tmp_path / mark).parent.mkdir()
    (tmp_path / mark).touch()
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.table", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'widedeep\[(delta|iceberg)\]'"):
        open_source(tmp_path)


def iceberg_table(place: str, tmp_path: Path) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.types import DoubleType

    warehouse = place if "://" in place else f"file://{place}"
    io = {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"} if "://" in place else {}
    catalog = SqlCatalog("lake", uri=f"sqlite:///{tmp_path}/c.db", warehouse=warehouse, **io)
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.clicks", FIRST.schema)
    table.append(FIRST)
    with table.update_schema() as update:
        update.add_column("price", DoubleType())
    table.append(MORE)
    table.delete("age = 3 or age = 101")
    with table.update_schema() as update:
        update.rename_column("day", "weekday")
    return table


def test_snapshots_of_an_iceberg_table(place: str, tmp_path: Path) -> None:
    table = iceberg_table(place, tmp_path)
    folder = table.location().removeprefix("file://")
    for snapshot in table.snapshots():
        expected = table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().to_pylist()
        assert rows_of(f"{folder}@{snapshot.snapshot_id}") == expected
    expected = table.scan().to_arrow()
    assert rows_of(folder) == rows_of(table) == expected.to_pylist()
    columns = ["weekday", "age"]
    assert rows_of(folder, columns) == expected.select(columns).to_pylist()
    current, pinned_path = table.current_snapshot().snapshot_id, pinned(folder)
    with open_source(folder) as source:
        assert source.describe()[0]["checksum"] == f"iceberg {current}"
    table.append(table.scan().to_arrow())
    assert rows_of(pinned_path) == expected.to_pylist()
    assert len(rows_of(folder)) == 2 * expected.num_rows
    with pytest.raises(DataError, match="@5: no such snapshot; the newest are"):
        open_source(f"{folder}@5")
    with pytest.raises(DataError, match="no column 'day'"):
        open_source(folder, columns=["day"])


def delete_by_file(table: Any, rows: Sequence[tuple[int, int]], *, equality: bool = False) -> None:
    """Delete rows (file, place in it) as Spark does: by a file of deletes in a manifest."""
    from pyiceberg import manifest
    from pyiceberg.table.snapshots import Operation, Snapshot, Summary
    from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate
    from pyiceberg.typedef import Record

    class DeleteManifestWriter(manifest.ManifestWriterV2):
        def content(self) -> manifest.ManifestContent:
            return manifest.ManifestContent.DELETES

    kinds, snapshot = manifest.DataFileContent, table.metadata.new_snapshot_id()
    files = [task.file.file_path for task in table.scan().plan_files()]
    # The columns' reserved numbers, by which readers know them
    fields = [
        pa.field(name, kind, False, {"PARQUET:field_id": number})
        for name, kind, number in (
            *(("file_path", pa.string(), "2147483546"), ("pos", pa.int64(), "2147483545")),
        )
    ]
    deletes = pa.table([[files[f] for f, _ in rows], [n for _, n in rows]], pa.schema(fields))
    root = table.location()
    path = f"{root}/data/deletes-{snapshot}.parquet"
    pq.write_table(deletes, path.removeprefix("file://"))
    file = manifest.DataFile.from_args(
        content=kinds.EQUALITY_DELETES if equality else kinds.POSITION_DELETES,
        file_path=path,
        file_format=manifest.FileFormat.PARQUET,
        partition=Record(),
        record_count=len(rows),
        file_size_in_bytes=Path(path.removeprefix("file://")).stat().st_size,
        equality_ids=[1] if equality else None,
    )
    file.spec_id = 0
    added = manifest.ManifestEntry.from_args(
        status=manifest.ManifestEntryStatus.ADDED, snapshot_id=snapshot, data_file=file
    )
    output = table.io.new_output(f"{root}/metadata/deletes-{snapshot}.avro")
    with DeleteManifestWriter(table.spec(), table.schema(), output, snapshot, "deflate") as writer:
        writer.add_entry(added)
    before, sequence = table.current_snapshot(), table.metadata.last_sequence_number + 1
    listed = f"{root}/metadata/snap-{snapshot}.avro"
    output = table.io.new_output(listed)
    with manifest.write_manifest_list(
        2, output, snapshot, before.snapshot_id, sequence, "deflate"
    ) as list_writer:
        list_writer.add_manifests([*before.manifests(table.io), writer.to_manifest_file()])
    new = Snapshot(
        snapshot_id=snapshot,
        parent_snapshot_id=before.snapshot_id,
        sequence_number=sequence,
        manifest_list=listed,
        timestamp_ms=before.timestamp_ms + 1,
        summary=Summary(Operation.DELETE),
        schema_id=table.schema().schema_id,
    )
    main = SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=snapshot)
    table.catalog.commit_table(table, (), (AddSnapshotUpdate(snapshot=new), main))
    table.refresh()


def test_files_of_deletes_of_an_iceberg_table(tmp_path: Path) -> None:
    from pyiceberg.types import DoubleType

    table = iceberg_table(str(tmp_path / "lake"), tmp_path)
    folder, before = table.location().removeprefix("file://"), table.scan().to_arrow()
    delete_by_file(table, [(0, 0), (0, 1), (1, 0), (1, 3)])
    delete_by_file(table, [(1, 0), (1, 18)])  # one of them again
    expected = table.scan().to_arrow()
    assert before.num_rows - expected.num_rows == 5
    assert rows_of(folder) == expected.to_pylist()
    assert rows_of(folder, ["age"]) == expected.select(["age"]).to_pylist()
    with table.update_schema() as update:  # another column of the same name
        update.delete_column("price")
    with table.update_schema() as update:
        update.add_column("price", DoubleType())
    assert rows_of(folder) == table.scan().to_arrow().to_pylist()
    assert {row["price"] for row in rows_of(folder)} == {None}
    for snapshot in table.snapshots():
        then = table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().to_pylist()
        assert rows_of(f"{folder}@{snapshot.snapshot_id}") == then
    delete_by_file(table, [(0, 0)], equality=True)
    with pytest.raises(DataError, match=r"cannot be read .* equality deletes"):
        rows_of(folder)


def test_datasets_of_pyarrow(tmp_path: Path) -> None:
    for form in ("parquet", "csv"):
        pa.dataset.write_dataset(
            ROWS, tmp_path / form, format=form, partitioning=["job"], partitioning_flavor="hive"
        )
        dataset = pa.dataset.dataset(tmp_path / form, format=form, partitioning="hive")
        for chosen in (dataset, dataset.filter(pc.field("age") > 20)):
            expected = chosen.to_table(columns=["job", "age"]).sort_by("age").to_pylist()
            assert by_age(rows_of(chosen, ["job", "age"])) == expected
        assert 0 < len(expected) < len(ROWS)
