"""Requests through two bundles: what ranks otherwise, and why."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import kendalltau

import widedeep as wd
from tests.command_line import Run
from tests.evaluation.explored import CANDIDATES, explored_log, train
from tests.gate.market import rewritten
from widedeep.errors import ConfigError, DataError
from widedeep.report.replay import replay

REQUESTS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles that differ in the weight of one item alone, and a log."""
    folder = tmp_path_factory.mktemp("replayed")
    bundle = train(explored_log(600, 0)[0], folder / "a")
    schema = bundle.schema
    row = next(id_ for id_ in range(2, 10) if schema.describe_id("item", id_) == "item 6")

    def lift(weights: dict[str, np.ndarray]) -> None:
        weights["wide/item"][row] += 2.0

    rewritten(bundle, folder / "b", lift)
    table, _ = explored_log(REQUESTS, 1)
    log = table.select(["request", "kind", "item"]).rename_columns(["request_id", "kind", "item"])
    log = log.set_column(0, "request_id", log["request_id"].cast(pa.string()).dictionary_encode())
    pq.write_table(log, folder / "log.parquet", row_group_size=333)
    return folder


def test_overlap_and_tau_are_those_of_a_loop_over_requests(folder: Path) -> None:
    a, b = wd.Bundle.load(folder / "a"), wd.Bundle.load(folder / "b")
    log = pq.read_table(folder / "log.parquet")
    result = replay(a, b, str(folder / "log.parquet"), k=2, explained=5)
    scores = [np.asarray(each.score(log)).reshape(-1, CANDIDATES) for each in (a, b)]
    items = log["item"].to_numpy().reshape(-1, CANDIDATES)
    overlaps, taus, firsts = [], [], []
    counts = [Counter[str](), Counter[str]()]
    for request in range(REQUESTS):
        orders = [sorted(range(CANDIDATES), key=lambda i, s=s: -s[request][i]) for s in scores]
        overlaps.append(len(set(orders[0][:2]) & set(orders[1][:2])) / 2)
        taus.append(kendalltau(*(np.argsort(order) for order in orders)).statistic)
        firsts.append(orders[0][0] != orders[1][0])
        for counter, order in zip(counts, orders, strict=True):
            counter.update(items[request][order[:2]].tolist())
    assert result.overlap == pytest.approx(np.mean(overlaps))
    assert result.tau == pytest.approx(np.mean(taus))
    assert result.first_changed == pytest.approx(np.mean(firsts))
    assert result.items[0] == {"item": "item 6", "a": counts[0]["item 6"], "b": counts[1]["item 6"]}
    assert sum(result.overlaps) == result.requests == REQUESTS


def test_the_reason_of_a_move_is_the_column_that_changed(folder: Path) -> None:
    a, b = wd.Bundle.load(folder / "a"), wd.Bundle.load(folder / "b")
    result = replay(a, b, str(folder / "log.parquet"), explained=10)
    assert len(result.moves) == 10
    assert {move["item"] for move in result.moves} == {"item 6"}
    for move in result.moves:
        assert move["b"] < move["a"]
        reason = move["why"][0]
        assert (reason["column"], reason["value"]) == ("item", "item 6")
        # Two more log odds for it, none for its four neighbours: 2 - 2 / 5 over the mean.
        assert reason["change"] == pytest.approx(1.6, abs=0.01)
    assert result.columns[0]["column"] == "item"
    assert result.columns[1]["size"] < 0.01


def test_json_lines_of_requests_say_what_the_table_says(folder: Path, run: Run) -> None:
    log = pq.read_table(folder / "log.parquet").to_pylist()
    by_id, inline = [], []
    for start in range(0, len(log), CANDIDATES):
        rows = log[start : start + CANDIDATES]
        lead = {"request_id": str(start), "user": {"kind": rows[0]["kind"]}}
        items = [row["item"] for row in rows]
        by_id.append({**lead, "candidates": items, "k": 2})
        inline.append({**lead, "items": {"item": items}})
    for name, bodies in (("by_id", by_id), ("inline", inline)):
        lines = "\n".join(json.dumps(body) for body in bodies)
        (folder / f"{name}.jsonl").write_text(lines + "\n")
    pq.write_table(pa.table({"item": [f"item {i}" for i in range(8)]}), folder / "items.parquet")
    words = ["replay", folder / "a", folder / "b", "-k", 2, "--json", "-o", folder / "r.json"]
    table = json.loads(run(*words, folder / "log.parquet").out)
    catalogue = ["--items", folder / "items.parquet", "--item-id", "item"]
    for options in ([folder / "by_id.jsonl", *catalogue], [folder / "inline.jsonl"]):
        ran = run(*words, *options)
        assert ran.code == 0, ran.err
        got = json.loads(ran.out)
        for name in ("requests", "candidates", "overlap", "tau", "first_changed", "overlaps"):
            assert got[name] == table[name], name
        changes = [[e["change"] for e in move["why"]] for move in got["moves"]]
        expected = [[e["change"] for e in move["why"]] for move in table["moves"]]
        assert changes == expected
        assert {move["item"] for move in got["moves"]} == {"item 6"}
    assert json.loads((folder / "r.json").read_text())["tau"] == table["tau"]
    twice = json.loads(run(*words, folder / "inline.jsonl", folder / "inline.jsonl").out)
    assert (twice["requests"], twice["tau"]) == (2 * table["requests"], pytest.approx(table["tau"]))
    refused = run(*words, folder / "by_id.jsonl")
    assert refused.code == 2
    assert "by_id.jsonl, line 1: got candidates by id; give the catalogue" in refused.err


def test_the_verb_writes_a_page_and_ends_with_1_where_too_little_agrees(
    folder: Path, run: Run
) -> None:
    words = ["replay", folder / "a", folder / "b", folder / "log.parquet", "-k", 1]
    ran = run(*words, "-o", folder / "page.html")
    assert ran.code == 0, ran.err
    assert f"{REQUESTS} requests, {REQUESTS * CANDIDATES:,} candidates" in ran.out
    assert ran.out.splitlines()[-1].startswith("next: widedeep validate")
    page = (folder / "page.html").read_text()
    assert "Largest moves" in page
    assert "item = item 6 (+1.60)" in page
    assert run(*words, "-o", folder / "page.html", "--min-overlap", "0.99").code == 1
    same = ["replay", folder / "a", folder / "a", folder / "log.parquet", "--min-overlap", "1"]
    assert run(*same, "-o", folder / "same.html").code == 0


def test_models_of_classes_in_another_order_are_told_apart(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    log = pq.read_table(folder / "log.parquet")
    answers = ["no", "yes"] * (len(log) // 2)
    for name, classes in {"a": ("no", "yes"), "b": ("yes", "no")}.items():
        spec = wd.FeatureSpec(
            label="y", features=wd.categorical("item"), item=["item"], label_vocabulary=classes
        )
        data = log.append_column("y", pa.array(answers))
        trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, data)), progress=False)
        trainer.fit(data)
        trainer.export(tmp_path / name)
    page = tmp_path / "page.html"
    ran = run("replay", tmp_path / "a", tmp_path / "b", folder / "log.parquet", "-o", page)
    assert ran.code == 0, ran.err
    assert "b: predicts label 'y' as 'yes', 'no' (in this order), the model in service" in ran.out
    assert "each ranks by what it predicts" in page.read_text()
    assert "--against" not in ran.out.splitlines()[-1]


def test_logs_that_cannot_be_replayed(folder: Path) -> None:
    a = wd.Bundle.load(folder / "a")
    log = pq.read_table(folder / "log.parquet")
    with pytest.raises(DataError, match="no column 'kind', which a bundle reads"):
        replay(a, a, log.drop_columns(["kind"]))
    with pytest.raises(DataError, match="cannot tell its column of the request"):
        replay(a, a, log.rename_columns(["visit", "kind", "item"]))
    with pytest.raises(DataError, match="no request of the log has two candidates"):
        replay(a, a, log.set_column(0, "request_id", pa.array(np.arange(len(log)))))
    with pytest.raises(DataError, match="column 'item_id' holds list"):
        replay(a, a, log.append_column("item_id", pa.array([[1]] * len(log))))
    with pytest.raises(ConfigError, match="got k=0, expected at least 1"):
        replay(a, a, log, k=0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"user": {}, "candidates": 7}', "line 1: got neither candidates"),
        (b'{"user": 5, "items": {"item": ["a", "b"]}}', "line 1: user: got 5, expected an object"),
        (b'{"candidates": [["a"], "b"]}', "line 1: candidates: got a list or object"),
        (b'{"items": {"item": []}}', "got no requests with candidates"),
        (b"\xff", "no UTF-8"),
    ],
)
def test_json_lines_that_are_no_requests(folder: Path, line: bytes, words: str) -> None:
    a = wd.Bundle.load(folder / "a")
    (folder / "bad.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DataError, match=words):
        replay(a, a, str(folder / "bad.jsonl"))


def test_requests_that_show_an_item_twice_are_told(folder: Path) -> None:
    a, log = wd.Bundle.load(folder / "a"), pq.read_table(folder / "log.parquet")
    assert not [note for note in replay(a, a, log).notes if "more than once" in note]
    (note,) = [
        note
        for note in replay(a, a, pa.concat_tables([log, log])).notes
        if "more than once" in note
    ]
    assert "requests show an item more than once" in note
