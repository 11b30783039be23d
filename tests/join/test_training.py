"""From a join to a served bundle: the definitions of history columns travel with the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import Run, write_join
from tests.join.small_log import actions, config, impressions
from widedeep.data.fit import history_columns
from widedeep.data.sources import RowShare
from widedeep.errors import ConfigError, DataError
from widedeep.join import History, HistoryState, JoinResult, Negatives, Split, run_join

SECOND = 1_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> JoinResult:
    place = tmp_path_factory.mktemp("joined") / "examples"
    return run_join(config(place, negatives=Negatives(), split=Split(fractions=(0.5, 0.2, 0.3))))


def spec() -> wd.FeatureSpec:
    return wd.FeatureSpec(
        label="click",
        weight="weight",
        features=[
            *wd.numeric("item_rate", "shown_before"),
            *wd.numeric("pair_since", missing="indicator"),
            *wd.categorical("item_id", "device"),
            *wd.categorical("last_items", table="item_id"),
        ],
    )


@pytest.mark.parametrize("form", ["folder", "paths", "glob", "share"])
def test_the_schema_keeps_the_definitions(dataset: JoinResult, form: str) -> None:
    folder = dataset.output / "train"
    data = {
        "folder": str(folder),
        "paths": dataset.paths("train"),
        "glob": f"{folder}/*.parquet",
        "share": RowShare(data=str(folder), start=0.0, stop=0.5),
    }[form]
    schema = wd.fit_schema(spec(), data)
    assert list(schema.history) == ["last_items", "shown_before", "item_rate", "pair_since"]
    assert schema.history["item_rate"]["prior"] == 0.1
    assert schema.history["item_rate"]["action_delay"] == "0s"
    assert "history, computed by the join: last_items" in repr(schema)


def test_vocabularies_are_of_train_alone(dataset: JoinResult) -> None:
    schema = wd.fit_schema(spec(), dataset.output / "train")
    assert schema.rows == dataset.rows["train"] < sum(dataset.rows.values())
    items = pq.read_table(dataset.output / "train")["item_id"].value_counts().to_pylist()
    vocabulary = schema.vocabularies["item_id"]
    counted = {vocabulary.value(i): int(n) for i, n in enumerate(vocabulary.counts)}
    lists = pq.read_table(dataset.output / "train")["last_items"].to_pylist()
    for entry in items:
        in_lists = sum(row.count(entry["values"]) for row in lists)
        assert counted[entry["values"]] == entry["counts"] + in_lists


def test_a_schema_keeps_them_when_saved(dataset: JoinResult, tmp_path: Path) -> None:
    schema = wd.fit_schema(spec(), dataset.output / "train")
    schema.save(tmp_path / "schema.safetensors")
    loaded = wd.Schema.load(tmp_path / "schema.safetensors")
    assert loaded == schema
    assert loaded.history == json.loads(json.dumps(schema.history))
    # The same columns of rows that no join made are another thing.
    table = pq.read_table(dataset.output / "train")
    other = wd.fit_schema(spec(), table)
    assert (other.history, other == schema) == ({}, False)


def test_the_bundle_lists_what_a_request_must_bring(
    dataset: JoinResult, tmp_path: Path, run: Run
) -> None:
    schema = wd.fit_schema(spec(), dataset.output / "train")
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[8], embedding_dim=4), threads=1)
    trainer.fit(dataset.output / "train")
    trainer.export(tmp_path / "bundle")
    bundle = wd.Bundle.load(tmp_path / "bundle")
    assert bundle.manifest.history == tuple(bundle.history)
    assert list(bundle.history) == ["last_items", "shown_before", "item_rate", "pair_since"]
    out = run("inspect", tmp_path / "bundle").out
    assert "History columns, which a request must bring" in out
    assert "item_rate     rate of actions" in out
    document = json.loads(run("inspect", tmp_path / "bundle", "--json").out)
    assert document["history"]["pair_since"]["window"] == "1h"
    # A request whose history is computed event by event scores as the logged example does.
    state = replayed(bundle.history)
    rows = pq.read_table(dataset.output / "test").to_pylist()[:40]
    served = [
        {**row, **served_history(state, row, {"shown_before": row["shown_before"]})} for row in rows
    ]
    assert bundle.score(served).tolist() == bundle.score(rows).tolist()


def replayed(definitions: object) -> HistoryState:
    state = HistoryState.of_definitions(definitions)  # type: ignore[arg-type]
    for row in impressions():
        state.observe_impression(row["user_id"], row["item_id"], row["event_time"] * SECOND)
    for row in actions():
        state.observe_action(
            row["user_id"], row["item_id"], row["event_time"] * SECOND, row["kind"]
        )
    return state


def served_history(
    state: HistoryState, row: dict[str, object], logged: dict[str, object]
) -> dict[str, object]:
    user, item, time = row["user_id"], row["item_id"], row["event_time"]
    return {**state.features(user, item, time), **logged}  # type: ignore[arg-type]


def test_the_state_of_a_schema_equals_the_join(dataset: JoinResult) -> None:
    names = ["last_items", "item_rate", "pair_since"]
    schema = wd.fit_schema(spec(), dataset.output / "train")
    state = replayed(schema.history)
    rows = pq.read_table(dataset.output / "test").to_pylist()
    assert len(rows) > 50
    for row in rows:
        found = state.features(row["user_id"], row["item_id"], row["event_time"])
        assert {name: found[name] for name in names} == {name: row[name] for name in names}


def test_datasets_of_two_definitions_are_refused(dataset: JoinResult, tmp_path: Path) -> None:
    history = (History(name="item_rate", feature="rate", by="item", prior=0.5),)
    other = run_join(config(tmp_path / "other", history=history))
    paths = [*dataset.paths("train"), *other.paths("train")]
    with pytest.raises(DataError, match=r"column 'item_rate': .*; train on datasets of one"):
        history_columns(paths, ["item_rate"])
    assert history_columns(paths, ["device"]) == {}


def test_a_damaged_manifest_is_told(dataset: JoinResult, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    shard = tmp_path / "train" / "part.parquet"
    shard.write_bytes(Path(dataset.paths("train")[0]).read_bytes())
    for text, damaged in (
        ("{}", False),
        ("no JSON", False),
        ('{"kind": "widedeep examples"}', True),
    ):
        (tmp_path / "manifest.json").write_text(text)
        if damaged:
            with pytest.raises(DataError, match="damaged manifest"):
                history_columns(str(shard), ["item_rate"])
        else:
            assert history_columns(str(shard), ["item_rate"]) == {}


def test_definitions_of_two_joins_make_no_state() -> None:
    one = {"name": "a", "feature": "count", "action_delay": 0, "impression_delay": 0}
    with pytest.raises(ConfigError, match="several delays"):
        HistoryState.of_definitions({"a": one, "b": {**one, "name": "b", "action_delay": 5}})


def test_from_logs_to_a_trained_run(run: Run, ads: Path) -> None:
    write_join(ads)
    assert run("join", "join.toml").code == 0
    assert run("init", "examples/train", "--label", "click", "-o", "first.toml").code == 0
    code, _, err = run("train", "first.toml", "--set", "train.epochs=1")
    assert code == 0, err
    assert list(wd.Bundle.load("runs/first/bundle").history) == ["clicks"]
