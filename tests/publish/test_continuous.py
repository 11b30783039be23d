"""A model that goes on learning is published through the gate, and no fault stops its training."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.gate.market import market, with_column
from widedeep.bundle import Bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.gate import GateConfig, Verdict, verdict_path
from widedeep.publish import ContinuousPublisher, publish, read_lineage

ROWS = 2000
GATE = GateConfig(unit="user", slices=(), max_latency_ms=10_000.0, max_calibration_rise=1.0)
FIRST = market(6000, 1)


def shards(count: int, *, start: int = 0) -> list[tuple[str, pa.Table]]:
    return [(f"hour {i}", market(ROWS, 10 + i)) for i in range(start, start + count)]


def shuffled(table: pa.Table) -> pa.Table:
    labels = np.random.default_rng(0).permutation(table["click"].to_numpy())
    return with_column(table, "click", labels)


def make_trainer(checkpoints: Path | None = None, buckets: int | None = None) -> wd.Trainer:
    spec = wd.FeatureSpec(
        label="click",
        features=[
            *wd.numeric("price"),
            *wd.categorical("country", "item", "device"),
            wd.crossed("country", "item", hash_buckets=buckets),
        ],
    )
    model = wd.WideDeep(wd.fit_schema(spec, FIRST), hidden_units=[8], embedding_dim=4)
    trainer = wd.Trainer(model, batch_size=256, threads=1, progress=False, checkpoints=checkpoints)
    trainer.fit(FIRST)
    trainer.position.rows = 0
    return trainer


class Live:
    """A trainer with its publisher, and its messages."""

    def __init__(self, folder: Path, buckets: int | None = None, **options: Any) -> None:
        self.models = folder / "models"
        self.messages: list[str] = []
        self.trainer = make_trainer(buckets=buckets)
        options = {"every_rows": ROWS, "judge_rows": ROWS, "gate": GATE, **options}
        self.publisher = ContinuousPublisher(
            self.trainer,
            self.models,
            bundle=folder / "candidate",
            on_message=self.messages.append,
            **options,
        )

    def learn(self, coming: Any) -> list[str]:
        """Return the names of the shards that were learned."""
        self.trainer.fit_stream(self.publisher.shards(coming))
        return list(self.trainer.shards)

    @property
    def versions(self) -> list[str]:
        return [entry.version for entry in read_lineage(self.models) if entry.exists]


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


def test_patches_are_judged_and_published_between_whole_versions(tmp_path: Path) -> None:
    live = Live(tmp_path, buckets=20_000, full_every=9, patch_precision="bfloat16")
    live.learn(shards(2))
    records = [entry.record for entry in read_lineage(live.models)]
    assert [record and record.patches for record in records] == [0, 1]
    verdicts = [record and record.verdict for record in records]
    assert all(verdict is not None and verdict["passed"] for verdict in verdicts)
    with live.publisher.store.bundle("2") as path:
        patched, whole = Bundle.load(path), Bundle.load(live.models / "1")
    assert patched.weights.keys() == whole.weights.keys()


def test_what_passes_is_published_by_itself(live: Live) -> None:
    """The first at once, as nothing serves; then as often as was asked for."""
    assert live.learn(shards(4)) == [f"hour {i}" for i in range(4)]
    assert [candidate.rows for candidate in live.publisher.candidates] == [0, 2000, 4000, 6000]
    assert live.versions == ["1", "2", "3", "4"]
    assert "2,000 rows learned, judged on 2,000 newer ones: published as version 2" in live.messages
    record = read_lineage(live.models)[2].record
    assert record is not None and record.verdict is not None
    assert record.parent == "2"
    assert record.data["stream"] == {"rows": 4000, "shards": ["hour 0", "hour 1"]}
    # Judged on the shard that came next: what is stored of it says so.
    assert record.verdict["data"]["rows"] == ROWS
    (hour,) = [row for row in live.trainer.history if row.get("shard") == "hour 1"]
    assert record.metrics["log_loss"] == hour["before/log_loss"]
    second = Bundle.load(live.models / "2")
    hour = shards(2)[1][1]
    by_hand = make_trainer()
    by_hand.fit_stream(shards(1))
    np.testing.assert_allclose(second.score(hour), by_hand.predict(hour), atol=1e-6)


def test_it_waits_for_enough_rows_to_judge_by(tmp_path: Path) -> None:
    live = Live(tmp_path, judge_rows=3 * ROWS, every_rows=2 * ROWS)
    assert len(live.learn(shards(9))) == 9
    assert [(a.rows, a.judged) for a in live.publisher.candidates] == [
        (0, 6000),
        (6000, 6000),
        (12000, 6000),
    ]
    live.learn(shards(2, start=9))
    assert "got 4,000 new rows, too few to judge on" in live.messages[-1]
    assert len(live.trainer.shards) == 11
    assert live.versions == ["1", "2", "3"]


def test_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("widedeep.publish.continuous.time.monotonic", lambda: now[0])
    live = Live(tmp_path, every_rows=None, every_minutes=10.0)

    def minutes() -> Iterator[tuple[str, pa.Table]]:
        for shard in shards(6):
            now[0] += 240.0
            yield shard

    live.learn(minutes())
    assert [candidate.rows for candidate in live.publisher.candidates] == [0, 3 * ROWS]


def test_a_no_keeps_what_serves_and_training_goes_on(live: Live) -> None:
    live.learn(shards(1))
    bad = [(name, shuffled(table)) for name, table in shards(3, start=1)]
    names = live.learn([*bad, *shards(3, start=4)])
    assert names == [f"hour {i}" for i in range(7)]
    passed = [candidate.passed for candidate in live.publisher.candidates]
    assert passed[:2] == [True, True]
    assert False in passed[2:5], "what was learned of shuffled labels is stopped"
    stopped = next(a for a in live.publisher.candidates if not a.passed)
    assert stopped.version is None
    assert stopped.reasons
    (line,) = [line for line in live.messages if line.startswith(f"{stopped.rows:,} rows learned")]
    assert "not published; the serving version stays\n" in line
    assert all(reason in line for reason in stopped.reasons)
    versions = live.versions
    assert len(versions) == passed.count(True)
    log = json.loads(live.publisher.log.read_text())
    assert [row["passed"] for row in log] == passed


def test_one_class_in_the_newest_rows(live: Live) -> None:
    live.learn(shards(1))
    table = market(ROWS, 50)
    ones = with_column(table, "click", np.ones(ROWS, np.int8))
    live.learn([("ones", ones), *shards(2, start=2)])
    assert live.publisher.candidates[1].reasons[0].startswith("every label of the data is 1")
    assert live.trainer.shards == ["hour 0", "ones", "hour 2", "hour 3"]


@pytest.mark.parametrize("how", ["all of it", "its weights"])
def test_the_model_in_service_is_gone(live: Live, how: str) -> None:
    live.learn(shards(1))
    if how == "all of it":
        shutil.rmtree(live.models / "1")
        why = "the model in service is gone: versions 1 were published"
    else:
        (live.models / "1/weights.safetensors").unlink()
        why = "weights.safetensors"
    assert len(live.learn(shards(2, start=1))) == 3
    candidates = live.publisher.candidates[1:]
    assert [candidate.passed for candidate in candidates] == [None, None]
    assert why in candidates[0].reasons[0]
    assert not (live.models / "2").exists()
    # An operator restores it, and the next candidate is judged against it.
    shutil.rmtree(live.models / "1", ignore_errors=True)
    shutil.copytree(live.publisher.bundle, live.models / "1")
    live.learn(shards(1, start=3))
    assert live.publisher.candidates[-1].version == "2"


def test_shards_that_vanish(live: Live, tmp_path: Path) -> None:
    """Before they are read, and between the gate and the learning."""
    files = []
    for name, table in shards(5):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        files.append((name, tmp_path / f"{name}.parquet"))
    files[1][1].unlink()
    tell = live.publisher._on_message

    def vanish(line: str) -> None:
        tell(line)
        if "2,000 rows learned" in line:
            files[2][1].unlink()

    live.publisher._on_message = vanish
    assert live.learn(files) == ["hour 0", "hour 3", "hour 4"]
    assert [(a.rows, a.judged) for a in live.publisher.candidates] == [
        (0, 2000),
        (2000, 2000),
        (4000, 2000),
    ]
    assert live.publisher.candidates[1].version == "2"


def test_a_full_disk(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.learn(shards(1))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("widedeep.publish.storage.shutil.copyfile", full)
        live.learn(shards(1, start=1))
    assert live.publisher.candidates[-1].passed is None
    assert "No space left on device" in live.publisher.candidates[-1].reasons[0]
    assert live.versions == ["1"]
    live.learn(shards(1, start=2))
    assert live.versions == ["1", "2"]


def test_two_publishers_of_one_place(tmp_path: Path) -> None:
    """A verdict against a model that was replaced meanwhile lets nothing pass."""
    one = Live(tmp_path)
    one.learn(shards(1))
    assert one.versions == ["1"]
    other = tmp_path / "other"
    shutil.copytree(one.publisher.bundle, other)
    verdict = Verdict.load(verdict_path(one.publisher.bundle))
    one.learn(shards(2, start=1))
    two = [version for version in one.versions if version != "1"]
    assert two
    late = one.publisher.bundle  # the latest was judged against the version before it
    with pytest.raises(BundleError, match=r"compared the bundle with another model .* validate it"):
        publish(late, one.models)
    with pytest.raises(BundleError, match=r"compared the bundle with nothing; .*--against"):
        publish(other, one.models, verdict=verdict)
    forced = publish(late, one.models, force=True, reason="the other one is worse")
    assert (forced.forced, forced.parent) == ("the other one is worse", two[-1])


def test_stopped_between_publishing_and_saying_so(live: Live) -> None:
    """The log of candidates is behind: the same model is not published twice."""
    coming = shards(3)
    live.learn(coming[:1])
    live.publisher.log.unlink()
    again = Live(live.models.parent)
    again.publisher._is_time = lambda: not again.publisher.candidates  # type: ignore[method-assign]
    again.learn(coming[:1])
    assert [(a.rows, a.version) for a in again.publisher.candidates] == [(0, "1")]
    assert again.versions == ["1"]


def test_it_counts_on_from_its_log(live: Live) -> None:
    live.learn(shards(2))
    again = ContinuousPublisher(
        live.trainer, live.models, bundle=live.publisher.bundle, every_rows=ROWS, judge_rows=ROWS,
        gate=GATE,
    )  # fmt: skip
    assert again.candidates == live.publisher.candidates
    live.publisher.log.write_text("{}")
    with pytest.raises(BundleError, match="expected a log of candidates"):
        ContinuousPublisher(live.trainer, live.models, bundle=live.publisher.bundle, every_rows=1)


def test_behind_a_url(tmp_path: Path) -> None:
    trainer = make_trainer()
    live = ContinuousPublisher(
        trainer, f"memory://{tmp_path.name}/live", bundle=tmp_path / "candidate", every_rows=ROWS,
        judge_rows=ROWS, gate=GATE,
    )  # fmt: skip
    trainer.fit_stream(live.shards(shards(3)))
    assert [candidate.version for candidate in live.candidates] == ["1", "2", "3"]
    parents = [entry.record.parent for entry in read_lineage(live.store.name) if entry.record]
    assert parents == [None, "1", "2"]


def test_mistakes(live: Live, tmp_path: Path) -> None:
    trainer = live.trainer
    with pytest.raises(ConfigError, match="give every_rows or every_minutes"):
        ContinuousPublisher(trainer, tmp_path / "m", bundle=tmp_path / "b")
    with pytest.raises(ConfigError, match=r"judge_rows=10, .* at least 1,000 rows"):
        ContinuousPublisher(
            trainer, tmp_path / "m", bundle=tmp_path / "b", every_rows=1, judge_rows=10
        )
    trainer.export(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="is itself a bundle"):
        ContinuousPublisher(trainer, tmp_path / "bundle", bundle=tmp_path / "b", every_rows=1)


def test_what_nobody_foresaw_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(tmp_path)
    (tmp_path / "models").mkdir()
    state = tmp_path / "models" / "serving.json"
    state.write_text("{")
    assert live.learn(shards(1)) == ["hour 0"]
    assert "cannot be read" in live.messages[0]
    state.unlink()
    assert live.versions == []

    def bug(*given: object, **named: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr("widedeep.publish.continuous.validate", bug)
        assert len(live.learn(shards(2, start=1))) == 3
    assert "ZeroDivisionError: a bug" in live.messages[-1] and live.versions == []
    assert len(live.learn(shards(2, start=3))) == 5
    assert live.versions != []
