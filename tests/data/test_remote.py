"""Files behind URLs, and partitions: what is read is what lies here, and faults are named."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.object_store import FaultyServer, bucket, faulty_server, s3_endpoint  # noqa: F401
from widedeep import remote
from widedeep.data import parquet_input
from widedeep.data.paths import TABLE_FORMATS, follow_folder, input_paths
from widedeep.data.sources import open_source
from widedeep.errors import ConfigError, DataError, MissingPackageError
from widedeep.join import ActionLog, ImpressionLog, JoinConfig, Label
from widedeep.remote import RemoteFile, RemoteUnavailable, output_folder

_NUMBERS = itertools.count()
ROWS = pa.table(
    {
        "job": [f"job {n % 7}" for n in range(3000)],
        "age": list(range(3000)),
        "click": [n % 3 == 0 for n in range(3000)],
        "text": [f"{n}" * 50 for n in range(3000)],
    }
)


@pytest.fixture
def memory() -> Iterator[str]:
    """Return the URL of an empty folder in fsspec's memory."""
    name = f"logs-{next(_NUMBERS)}"
    yield f"memory://{name}"
    fs = fsspec.filesystem("memory")
    if fs.exists(name):
        fs.rm(name, recursive=True)


def upload(url: str, table: pa.Table = ROWS, **options: Any) -> str:
    with fsspec.open(url, "wb") as file:
        pq.write_table(table, file, row_group_size=1000, **options)
    return url


def rows_of(data: Any, columns: list[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    with open_source(data, columns=columns, **options) as source:
        return [row for part in source.fragments for row in source.read(part).to_pylist()]


def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of ranges that are read from now on."""
    fs, sizes = type(fsspec.filesystem("memory")), []
    cat_file = fs.cat_file

    def counted(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        block = cat_file(self, path, start, end, **options)
        sizes.append(len(block))
        return bytes(block)

    monkeypatch.setattr(fs, "cat_file", counted)
    return sizes


def test_parquet_behind_a_url_is_read_by_the_columns_that_are_asked_for(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(f"{memory}/rows.parquet", compression="none", use_dictionary=["job"])
    assert rows_of(url) == ROWS.to_pylist()
    sizes = fetched(monkeypatch)
    expected = ROWS.select(["click", "job"]).to_pylist()
    assert rows_of(url, ["click", "job"]) == expected
    size = fsspec.filesystem("memory").size(url)
    # The footer is in the cache; "text" is nine tenths of the file.
    assert sum(sizes) < size / 5
    with open_source(url) as source:
        (record,) = source.describe()
    assert record["bytes"] == size
    assert record["checksum"]


def test_row_groups_are_fetched_ahead_as_far_as_there_is_room(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, start_ranges = [], RemoteFile.start_ranges

    def counted(self: RemoteFile, ranges: Any) -> Any:
        begun.append(ranges)
        return start_ranges(self, ranges)

    monkeypatch.setattr(RemoteFile, "start_ranges", counted)
    with open_source(upload(f"{memory}/rows.parquet")) as source:
        assert len(source.fragments) > 2
        for most, expected in ((1 << 30, len(source.fragments)), (1, 1)):
            monkeypatch.setattr(parquet_input, "AHEAD_BYTES", most)
            begun.clear()
            for _ in range(2):
                for fragment in source.fragments:
                    source.start(fragment)
            assert len(begun) == expected
            rows = [row for part in source.fragments for row in source.read(part).to_pylist()]
            assert rows == ROWS.to_pylist()
            assert len(begun) == len(source.fragments)


def test_a_long_footer_is_fetched_whole(memory: str) -> None:
    wide = pa.table({f"column {n:05}": [n] for n in range(900)})
    url = upload(f"{memory}/wide.parquet", wide)
    assert rows_of(url) == wide.to_pylist()


def test_formats_behind_urls(memory: str) -> None:
    small = ROWS.slice(0, 40).select(["job", "age"])
    with fsspec.open(f"{memory}/a.csv", "wb") as file:
        pa.csv.write_csv(small, file)
    with fsspec.open(f"{memory}/b.csv.gz", "wb", compression="gzip") as file:
        pa.csv.write_csv(small, file)
    with fsspec.open(f"{memory}/c.arrow", "wb") as file:
        pa.feather.write_feather(small, file)
    assert rows_of(f"{memory}/*.*") == small.to_pylist() * 3


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    return str(tmp_path / "logs") if request.param == "local" else f"{memory}/logs"


def test_names_with_dots_are_fetched(memory: str) -> None:
    rows = pa.table({"a.b": [[1, 2], None, [3]], "a": [1, 2, 3], "a.bc": ["x", "y", "z"]})
    url = upload(f"{memory}/dots.parquet", rows)
    for name in rows.column_names:
        assert rows_of(url, [name]) == rows.select([name]).to_pylist()


def put(folder: str, name: str, first: int = 0, n: int = 10) -> None:
    rows = ROWS.slice(first, n).select(["job", "age"])
    with fsspec.open(f"{folder}/{name}", "wb", auto_mkdir=True) as file:
        pq.write_table(rows, file)


def test_folders_and_patterns_here_and_there_open_the_same_files(folder: str) -> None:
    for number, name in enumerate(("part-0.parquet", "deep/part-1.parquet", "deep/er/2.PQ")):
        put(folder, name, number * 10)
    for name in ("_temporary/0/a.parquet", ".b.parquet", "c.parquet.tmp", "deep/_d.parquet"):
        put(folder, name)
    assert [row["age"] for row in rows_of(folder)] == [*range(20, 30), *range(10, 20), *range(10)]

    def names(pattern: str) -> list[str]:
        files = input_paths(f"{folder}/{pattern}") or []
        return [str(file)[len(folder) + 1 :] for file in files]

    assert names("*.parquet") == ["part-0.parquet"]
    assert names("*/*.parquet") == ["deep/part-1.parquet"]
    assert names("**/*.parquet") == ["deep/part-1.parquet", "part-0.parquet"]
    assert names("d*") == ["deep/er/2.PQ", "deep/part-1.parquet"]
    assert names("_temp*/*/*.parquet") == ["_temporary/0/a.parquet"]
    with pytest.raises(DataError, match=r"no file matches \(1 hidden or unfinished are left out"):
        input_paths(f"{folder}/*b.parquet")
    followed = dict(follow_folder(folder, idle_s=0, poll_s=0.01))
    assert sorted(followed) == ["deep/er/2.PQ", "deep/part-1.parquet", "part-0.parquet"]
    assert all(rows_of(data, ["job"]) for data in followed.values())  # a shard is data
    put(folder, "_delta_log/0.json")
    assert input_paths(folder) is None  # a table: its log says which files count
    for data in (f"{folder}/*.parquet", f"{folder}/deep"):
        with pytest.raises(DataError, match="Delta Lake table, whose log says which"):
            input_paths(data)


def test_partitions_are_columns(folder: str) -> None:
    put(folder, "day=7/lang=de%2FAT/part.parquet", 0)
    put(folder, "day=-8/lang=__HIVE_DEFAULT_PARTITION__/part.parquet", 10)
    rows = rows_of(folder)
    assert {row["age"]: (row["day"], row["lang"]) for row in rows} == {
        **dict.fromkeys(range(10), (7, "de/AT")),
        **dict.fromkeys(range(10, 20), (-8, None)),
    }
    assert rows_of(f"{folder}/day=7/*/*.parquet", ["lang"]) == [{"lang": "de/AT"}] * 10
    assert rows_of(f"{folder}/d*", ["lang", "age", "day"])[-1] == {
        "lang": "de/AT", "age": 9, "day": 7
    }  # fmt: skip
    assert "day" not in rows_of(f"{folder}/day=7/lang=de%2FAT")[0]
    assert rows_of(folder, ["day"], column_types={"day": pa.string()})[0] == {"day": "-8"}
    put(folder, "day=08/lang=fr/part.parquet", 20)
    assert {row["day"] for row in rows_of(folder)} == {"7", "-8", "08"}
    with pytest.raises(DataError, match=r"got day=-8.*expected a value of type bool"):
        rows_of(folder, ["day"], column_types={"day": pa.bool_()})
    theirs = pa.dataset.dataset(
        folder.replace("memory://", "/"),
        filesystem=fsspec.filesystem("memory") if "://" in folder else None,
        partitioning=pa.dataset.HivePartitioning(
            pa.schema([("day", "string"), ("lang", "string")])
        ),
    )
    key = "age"
    assert sorted(rows_of(folder), key=lambda row: row[key]) == sorted(
        theirs.to_table().to_pylist(), key=lambda row: row[key]
    )


def test_a_partition_that_is_a_column_too_is_refused(folder: str) -> None:
    put(folder, "age=7/part.parquet")
    with pytest.raises(DataError, match=r"the column 'age' is in the file, and the folder age=7"):
        rows_of(folder)
    assert rows_of(folder, ["job"])  # nobody asked for it
    put(folder, "age=7/age=8/part.parquet")
    with pytest.raises(DataError, match="two folders above it state the same column"):
        rows_of(folder)


def test_a_schema_and_a_follower_take_partitions(folder: str) -> None:
    for day in range(4):
        rows = pa.table({"click": [day % 2, day % 2], "job": ["a", "b"]})
        with fsspec.open(f"{folder}/day={day}/part.parquet", "wb", auto_mkdir=True) as file:
            pq.write_table(rows, file)
    spec = wd.FeatureSpec(label="click", features=wd.categorical("day", "job", min_count=1))
    assert wd.fit_schema(spec, folder).rows == 8
    shards = list(follow_folder(folder, idle_s=0, poll_s=0.01))
    assert [rows_of(data, ["day"])[0]["day"] for _, data in shards] == [0, 1, 2, 3]


def test_a_follower_asks_once_for_tables_and_then_lists(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, globs = type(fsspec.filesystem("memory")), []
    glob = fs.glob

    def counted(self: Any, path: str, **options: Any) -> Any:
        globs.append(path)
        return glob(self, path, **options)

    monkeypatch.setattr(fs, "glob", counted)
    shards = follow_folder(f"{memory}/in/new", idle_s=30, poll_s=0.001)
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        upload(f"{memory}/in/new/{name}")
        assert next(shards)[0] == name
        assert len(globs) == len(set(globs)) == 9  # three formats, in three folders
    upload(f"{memory}/in/new/_delta_log/0.parquet")
    with pytest.raises(DataError, match="the folder of a Delta Lake table"):
        next(shards)


def test_a_follower_of_a_folder_here_lists_it_and_asks_for_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    globs, glob = [], Path.glob

    def counted(self: Path, pattern: str) -> Any:
        globs.append(self)
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", counted)
    shards = follow_folder(str(tmp_path / "in"), idle_s=30, poll_s=0.001)
    for name in ("a.parquet", "deep/b.parquet", "c.parquet"):
        put(str(tmp_path / "in"), name)
        assert next(shards)[0] == name
        assert len(globs) == len(TABLE_FORMATS) * len((tmp_path / "in").parents)
    put(str(tmp_path / "in"), "deep/metadata/v1.metadata.json")
    with pytest.raises(DataError, match="deep: the folder of an Iceberg table"):
        next(shards)


def test_a_file_that_changes_behind_a_url_is_an_error(memory: str) -> None:
    url = upload(f"{memory}/rows.parquet")
    with open_source(url) as source:
        source.read(source.fragments[0])
        upload(url, ROWS.slice(1))
        with pytest.raises(DataError, match="changed while being read"):
            source.read(source.fragments[1])
        fsspec.filesystem("memory").rm(url)
        with pytest.raises(DataError, match="no such file, folder or bucket"):
            source.read(source.fragments[1])


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://nothing/rows.parquet", DataError, "no such file, folder or bucket"),
        ("memory://nothing/*.parquet", DataError, "no file matches; check the pattern"),
        ("hdf5://rows.parquet", DataError, "got the protocol 'hdf5', which nothing opens"),
        ("gs://rows/a.parquet", MissingPackageError, r"pip install 'widedeep\[gs\]'"),
    ],
)
def test_urls_that_do_not_open(url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(url)


def test_a_folder_behind_a_url_is_written_with_its_manifest_last(memory: str) -> None:
    url = f"{memory}/bundles/1"

    def write(text: str, *, overwrite: bool) -> None:
        with output_folder(url, last="manifest.json", overwrite=overwrite) as folder:
            folder.mkdir()
            for name in ("manifest.json", f"{text}.bin"):
                (folder / name).write_text(text)

    fs = fsspec.filesystem("memory")
    write("one", overwrite=False)
    with pytest.raises(DataError, match="already exists; choose another"):
        write("two", overwrite=False)
    write("two", overwrite=True)
    path = f"/{url.removeprefix('memory://')}"
    assert sorted(fs.find(path)) == [f"{path}/manifest.json", f"{path}/two.bin"]
    assert fs.created(f"{path}/two.bin") < fs.created(f"{path}/manifest.json")
    with (
        pytest.raises(RuntimeError),
        output_folder(url, last="manifest.json", overwrite=True) as folder,
    ):
        raise RuntimeError(folder)
    above = f"{memory}/bundles"
    refused = pytest.raises(DataError, match=r"got 2 files and no manifest\.json there, expected")
    with refused, output_folder(above, last="manifest.json", overwrite=True):
        raise AssertionError
    assert fs.cat_file(f"{path}/manifest.json") == b"two"


def test_what_is_written_here_takes_no_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"job": "ab"[n % 2], "y": n % 2} for n in range(64)]
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
    model = wd.WideDeep(wd.fit_schema(spec, rows))
    impressions = ImpressionLog(path="shown.parquet")
    actions, labels = ActionLog(path="taken.parquet"), [Label(name="click", window="1h")]
    for write in (
        lambda url: wd.Trainer(model, checkpoints=url),
        lambda url: wd.Trainer(model, progress=False).export(url),
        lambda url: JoinConfig(output=url, impressions=impressions, actions=actions, labels=labels),
    ):
        with pytest.raises(ConfigError, match="got the URL s3://b/x, expected a local path; "):
            write("s3://b/x")
    assert not any(tmp_path.iterdir())


def test_file_urls_are_paths(tmp_path: Path) -> None:
    put(str(tmp_path), "a b.parquet")
    assert input_paths(f"file://{tmp_path}/a%20b.parquet") == [tmp_path / "a b.parquet"]


def test_an_object_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import s3fs

    upload(f"{bucket}/logs/day=1/a.parquet")
    upload(f"{bucket}/logs/day=2/b.parquet")
    rows = rows_of(f"{bucket}/logs", ["age", "day"])
    assert rows == [{"age": row["age"], "day": day} for day in (1, 2) for row in ROWS.to_pylist()]
    with open_source(f"{bucket}/logs/*/b.parquet") as source:
        (record,) = source.describe()
        assert record["checksum"] == s3fs.S3FileSystem().info(record["path"])["ETag"].strip('"')
        upload(f"{bucket}/logs/day=2/b.parquet", ROWS.slice(5))
        with pytest.raises(DataError, match="changed while being read"):
            source.read(source.fragments[0])
    with pytest.raises(DataError, match="no such file, folder or bucket"):
        open_source("s3://no-such-bucket/logs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"access is refused.*give credentials: AWS_ACCESS_KEY_ID"):
        open_source(f"{bucket}/logs")


# ---- servers that are slow to answer well --------------------------------------------------------


@pytest.fixture(params=["http", "s3"])
def served(
    request: pytest.FixtureRequest,
    faulty_server: FaultyServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Return the URL of ROWS, of row groups of 75 kB and more, by HTTP and from a store."""
    file = io.BytesIO()
    pq.write_table(ROWS, file, row_group_size=500, compression="none", use_dictionary=False)
    faulty_server.files["/bucket/rows.parquet"] = file.getvalue()
    monkeypatch.setattr(remote, "_PAUSES_S", (0.01, 0.01))
    if request.param == "http":
        return f"{faulty_server.url}/bucket/rows.parquet"
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": faulty_server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    s3fs.S3FileSystem.clear_instance_cache()
    return "s3://bucket/rows.parquet"


def test_each_range_is_one_request(served: str, faulty_server: FaultyServer) -> None:  # noqa: F811
    assert rows_of(served) == ROWS.to_pylist()
    with open_source(served, columns=["age", "text"]) as source:
        faulty_server.requests.clear()
        for part in source.fragments:
            source.start(part)
        tables = [source.read(part) for part in source.fragments]
    assert pa.concat_tables(tables).to_pylist() == ROWS.select(["age", "text"]).to_pylist()
    assert [method for method, _ in faulty_server.requests] == ["GET"] * len(tables)
    assert len(tables) == 6


def test_a_lost_connection_is_tried_again(served: str, faulty_server: FaultyServer) -> None:  # noqa: F811
    for n_lost in (1, 2, 4):  # the connection's, a new one's, the library's
        faulty_server.n_lost = n_lost
        remote._avoided.clear()
        assert rows_of(served) == ROWS.to_pylist()
        assert faulty_server.n_lost < n_lost


def test_a_library_tries_where_plain_answers_take_long(
    served: str,
    faulty_server: FaultyServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.0)
    faulty_server.n_lost = 2
    assert rows_of(served) == ROWS.to_pylist()


def test_a_connection_that_stays_lost_is_an_error(
    served: str,
    faulty_server: FaultyServer,  # noqa: F811
) -> None:
    with open_source(served) as source:
        faulty_server.n_lost = 1_000_000
        message = r"rows\.parquet: cannot be read \(.*check the connection"
        with pytest.raises(RemoteUnavailable, match=message):
            source.read(source.fragments[0])


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_another_version_is_told_by_the_answer(
    served: str,
    faulty_server: FaultyServer,  # noqa: F811
    header: str,
) -> None:
    faulty_server.tags = {header: "Sun, 29 Nov 2026 10:00:00 GMT"}
    with open_source(served) as source:
        source.read(source.fragments[0])
        faulty_server.tags = {header: "Sun, 29 Nov 2026 10:00:01 GMT"}
        with pytest.raises(DataError, match="changed while being read"):
            source.read(source.fragments[1])


def test_a_server_that_ignores_ranges_is_read_once_whole(faulty_server: FaultyServer) -> None:  # noqa: F811
    file = io.BytesIO()
    pq.write_table(ROWS, file, row_group_size=500)
    faulty_server.files = {"/rows.parquet": file.getvalue()}
    faulty_server.has_ranges = False
    for avoided in (0.0, float("inf")):
        remote._avoided[f"127.0.0.1:{faulty_server.server_port}"] = avoided
        with open_source(f"{faulty_server.url}/rows.parquet", columns=["text"]) as source:
            faulty_server.requests.clear()
            tables = [source.read(part) for part in source.fragments * 2]
            (record,) = source.describe()
        assert pa.concat_tables(tables).to_pylist() == ROWS.select(["text"]).to_pylist() * 2
        assert not faulty_server.requests
        assert (record["bytes"], record["checksum"]) == (len(file.getvalue()), "1")


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "access is refused .*a URL that this machine may read"), (401, "access is refused"),
     (404, "no such file, folder or bucket"), (503, "cannot be read .*Service Unavailable")],
)  # fmt: skip
def test_what_a_server_refuses(
    faulty_server: FaultyServer,  # noqa: F811
    status: int,
    message: str,
) -> None:
    faulty_server.files, faulty_server.status = {"/rows.parquet": b"PAR1"}, status
    with pytest.raises(DataError, match=message):
        open_source(f"{faulty_server.url}/rows.parquet")


def test_a_store_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ValueError("Must provide either a connection_string or account_name!")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refused)
    message = r"cannot be opened \(Must .*credentials: AZURE_STORAGE_CONNECTION_STRING"
    with pytest.raises(DataError, match=message):
        open_source("abfs://logs/rows.parquet")


def test_nobody_listens() -> None:
    with pytest.raises(RemoteUnavailable, match=r"cannot be read .*Cannot connect to host"):
        open_source("http://127.0.0.1:1/rows.parquet")
