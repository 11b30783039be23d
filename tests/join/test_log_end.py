"""The log ends where both logs reach; strays do not decide, and what was not observed is said."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.join.oracle import log_end
from widedeep.cli.main import main
from widedeep.errors import ConfigError
from widedeep.join import (
    ActionLog,
    Attributes,
    JoinResult,
    Label,
    Split,
    load_join_config,
    run_join,
)
from widedeep.join.coverage import Bin, reach, silences, stops_before
from widedeep.join.times import moment_text

DAY, HOUR = 86_400, 3_600
T = 1_700_000_000
SECOND = 1_000_000
DAYS, ROWS = 14, 2_000


class Log:
    """Two weeks of impressions; a third of them is acted on after a minute."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.time = np.sort(draw.integers(0, DAYS * DAY, ROWS)) + T
        self.user = [f"u{k}" for k in draw.integers(0, 150, ROWS)]
        self.item = [f"i{k}" for k in draw.integers(0, 20, ROWS)]
        self.hit = np.flatnonzero(draw.random(ROWS) < 0.3)

    def impressions(self, kept: Any = None, extra: tuple[int, ...] = ()) -> pa.Table:
        rows = [(self.user[n], self.item[n], int(t)) for n, t in enumerate(self.time)]
        rows = [row for row in rows if kept is None or kept(row[2])]
        table = self._table(rows, extra)
        return table.append_column("request_id", pa.array(range(table.num_rows)))

    def actions(self, kept: Any = None, extra: tuple[int, ...] = (), kind: Any = None) -> pa.Table:
        rows = [(self.user[n], self.item[n], int(self.time[n]) + 60) for n in self.hit]
        rows = [row for row in rows if kept is None or kept(row[2])]
        table = self._table(rows, extra)
        kinds = [kind(n) if kind else "click" for n in range(table.num_rows)]
        return table.append_column("kind", pa.array(kinds))

    def _table(self, rows: Any, extra: tuple[int, ...]) -> pa.Table:
        rows = [*rows, *(("stranger", "i0", time) for time in extra)]
        names = ("user_id", "item_id", "event_time")
        return pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)})


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


def joined(folder: Path, impressions: Any, actions: Any, **options: Any) -> JoinResult:
    options.setdefault("split", Split(by="none"))
    if not isinstance(actions, ActionLog):
        actions = ActionLog(path=actions, kind="kind")
    if "labels" not in options:
        options.setdefault("window", "1d")
    return wd.join_actions(impressions, actions, output=folder / "out", **options)


def last_day(result: JoinResult) -> float:
    rows = pq.read_table(result.paths("train"))
    return (max(rows["event_time"].to_pylist()) / SECOND - T) / DAY


def days_of(result: JoinResult) -> float:
    return (result.manifest["log_end_us"] / SECOND - T) / DAY


def told(result: JoinResult, *words: str) -> bool:
    return any(all(word in note for word in words) for note in result.notes)


def test_two_logs_that_end_together_need_no_note(tmp_path: Path, log: Log) -> None:
    result = joined(tmp_path, log.impressions(), log.actions())
    assert days_of(result) == pytest.approx(DAYS, abs=0.1)
    assert last_day(result) == pytest.approx(DAYS - 1, abs=0.1)
    assert result.notes == ()


@pytest.mark.parametrize("end", [4, 10, 13])
def test_actions_that_stop(tmp_path: Path, log: Log, end: int) -> None:
    taken = log.actions(lambda t: t < T + end * DAY)
    result = joined(tmp_path, log.impressions(), taken)
    assert days_of(result) == pytest.approx(end, abs=0.1)
    assert last_day(result) <= end - 1
    assert told(result, "actions: none after 2023", "left out")
    rows = pq.read_table(result.paths("train"))
    day = np.array(rows["event_time"]) // (DAY * SECOND)
    label = np.array(rows["label"])
    # The last day may be of a few minutes.
    assert all(label[day == d].mean() > 0.15 for d in np.unique(day) if (day == d).sum() > 30)
    kept = joined(tmp_path, log.impressions(), taken, open_windows="keep")
    assert kept.manifest["counts"]["examples"] == ROWS
    assert told(kept, "actions: none after", "labels there are 0 because nothing was observed")


def test_impressions_that_stop(tmp_path: Path, log: Log) -> None:
    result = joined(tmp_path, log.impressions(lambda t: t < T + 8 * DAY), log.actions())
    assert days_of(result) == pytest.approx(8, abs=0.1)
    assert told(result, "impressions: none after", "set log_end to the end of the actions")


@pytest.mark.parametrize("extra", [(400 * DAY,), (-400 * DAY,), (20_000 * DAY,), (15 * DAY,)])
@pytest.mark.parametrize("stray_in", ["impressions", "actions", "both"])
def test_a_stray_does_not_decide(
    tmp_path: Path, log: Log, extra: tuple[int, ...], stray_in: str
) -> None:
    extra = tuple(T + time for time in extra)
    shown = log.impressions(extra=extra if stray_in != "actions" else ())
    # The log of actions ends a day before the impressions, but for the stray.
    taken = log.actions(
        lambda t: t < T + 13 * DAY, extra=extra if stray_in != "impressions" else ()
    )
    result = joined(tmp_path, shown, taken)
    assert days_of(result) == pytest.approx(13, abs=0.1)
    for name in ("impressions", "actions") if stray_in == "both" else (stray_in,):
        side = "last" if extra[0] > T else "first"
        when = moment_text(extra[0] * SECOND)
        assert told(result, f"{name}: 1 of the events lie far", f"the {side} one at {when}")
        first, last = result.manifest["reach_us"][name]
        assert 0 <= first / SECOND - T <= HOUR
        assert 12 * DAY < last / SECOND - T <= DAYS * DAY


def test_several_strays_on_both_sides(tmp_path: Path, log: Log) -> None:
    extra = (T - 900 * DAY, T - 30 * DAY, T + 60 * DAY, T + 61 * DAY, T + 3000 * DAY)
    result = joined(tmp_path, log.impressions(), log.actions(extra=extra))
    assert told(result, "actions: 2 of the events", "the first one")
    assert told(result, "actions: 3 of the events", "the last one")
    assert days_of(result) == pytest.approx(DAYS, abs=0.1)


def test_actions_that_trickle_at_the_end(tmp_path: Path, log: Log) -> None:
    late = tuple(T + 10 * DAY + n * 20 * HOUR for n in (1, 2, 3, 4))
    taken = log.actions(lambda t: t < T + 10 * DAY, extra=late)
    result = joined(tmp_path, log.impressions(), taken)
    assert days_of(result) == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(("low", "high"), [(5, 6), (2, 5), (11, 12)])
def test_a_missing_day_of_actions(tmp_path: Path, log: Log, low: int, high: int) -> None:
    taken = log.actions(lambda t: not T + low * DAY <= t < T + high * DAY)
    result = joined(tmp_path, log.impressions(), taken)
    assert days_of(result) == pytest.approx(DAYS, abs=0.1)
    note = next(note for note in result.notes if note.startswith("actions: none between"))
    begins, ends = (moment_text((T + day * DAY) * SECOND)[:11] for day in (low, high))
    assert begins in note
    assert ends in note


def test_a_missing_day_of_impressions(tmp_path: Path, log: Log) -> None:
    shown = log.impressions(lambda t: not T + 5 * DAY <= t < T + 6 * DAY)
    assert told(joined(tmp_path, shown, log.actions()), "impressions: none between")


def test_two_missing_days(tmp_path: Path, log: Log) -> None:
    taken = log.actions(lambda t: (t - T) // DAY not in (3, 9))
    result = joined(tmp_path, log.impressions(), taken)
    assert len([note for note in result.notes if note.startswith("actions: none")]) == 2


def test_actions_that_begin_late(tmp_path: Path, log: Log) -> None:
    result = joined(tmp_path, log.impressions(), log.actions(lambda t: t > T + 3 * DAY))
    assert told(result, "actions: none before 2023-11-17", "histories empty")


def test_a_kind_that_stops_and_one_that_never_occurs(tmp_path: Path, log: Log) -> None:
    labels = [
        Label(name="click", kinds=["click"]),
        Label(name="buy", kinds=["buy"]),
        Label(name="typo", kinds=["Buy", " click"]),
    ]
    half = len(log.hit) // 2
    taken = log.actions(kind=lambda n: "buy" if n < half and n % 2 else "click")
    result = joined(tmp_path, log.impressions(), taken, labels=labels)
    assert days_of(result) == pytest.approx(DAYS, abs=0.1)
    assert told(result, "actions of kind 'buy': none after", "2023-11-2")
    assert told(result, "'typo' counts actions of kind 'Buy'", "did you mean 'buy'")
    assert told(result, "'typo' counts actions of kind ' click'", "did you mean 'click'")
    assert told(result, "label 'typo' is 0 in all examples")
    assert not told(result, "kind 'click'")
    # Kinds that no label names are looked at where a label counts all of them.
    every = joined(tmp_path, log.impressions(), taken)
    assert told(every, "actions of kind 'buy': none after")


def test_versions_that_stop(tmp_path: Path, log: Log) -> None:
    versions = [
        {"user_id": f"u{user}", "from": T - DAY + day * DAY, "age": day}
        for user in range(150)
        for day in range(15)
    ]
    early = [row for row in versions if row["from"] < T + 6 * DAY]
    for rows, stop in ((versions, False), (early, True)):
        attributes = Attributes(path=rows, key="user_id", valid_from="from")
        result = joined(tmp_path, log.impressions(), log.actions(), user_attributes=attributes)
        assert told(result, "user_attributes: the last version is valid from") == stop


@pytest.mark.parametrize("end", ["2023-12-24T00:00:00Z", "2023-11-20T00:00:00Z"])
def test_an_explicit_end_wins(tmp_path: Path, log: Log, end: str) -> None:
    taken = log.actions(lambda t: t < T + 10 * DAY)
    (tmp_path / "join.toml").write_text(
        f'[join]\noutput = "out"\nlog_end = "{end}"\n[impressions]\npath = "i.parquet"\n'
        '[actions]\npath = "a.parquet"\n[split]\nby = "none"\n'
    )
    pq.write_table(log.impressions(), tmp_path / "i.parquet")
    pq.write_table(taken, tmp_path / "a.parquet")
    result = run_join(load_join_config(tmp_path / "join.toml"))
    assert moment_text(result.manifest["log_end_us"]).replace("+00:00", "Z") == end
    late = end > "2023-12"
    assert told(result, "log_end: 2023-12-24", "later than the actions reach") == late
    assert told(result, "log_end: 2023-12-24", "later than the impressions reach") == late


@pytest.mark.parametrize("verb", ["check", "join"])
def test_the_command_line_says_it(
    tmp_path: Path, log: Log, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(log.impressions(), tmp_path / "i.parquet")
    pq.write_table(log.actions(lambda t: t < T + 10 * DAY), tmp_path / "a.parquet")
    (tmp_path / "join.toml").write_text(
        '[join]\noutput = "out"\nopen_windows = "keep"\n[impressions]\npath = "i.parquet"\n'
        '[actions]\npath = "a.parquet"\n'
    )
    assert main([verb, str(tmp_path / "join.toml")]) == 0
    printed = capsys.readouterr().out
    assert "note: actions: none after 2023-11-24" in printed
    assert "note: label 'label' is 0 in all" in printed
    assert "examples of test" in printed
    assert main([verb, str(tmp_path / "join.toml"), "--json"]) == 0
    assert any("none after" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_actions_before_every_impression_are_refused(tmp_path: Path, log: Log) -> None:
    early = log.actions()
    early = early.set_column(
        2, "event_time", pa.array([t - 100 * DAY for t in early["event_time"].to_pylist()])
    )
    with pytest.raises(ConfigError, match="before the first impression"):
        joined(tmp_path, log.impressions(), early)


@pytest.mark.parametrize("column", ["user_id", "item_id"])
@pytest.mark.parametrize("change", [" {}", "{} ", "U{}", "0{}"])
def test_keys_written_otherwise_in_the_other_log(
    tmp_path: Path, log: Log, column: str, change: str
) -> None:
    taken = log.actions()
    place = taken.schema.get_field_index(column)
    values = [change.format(value) for value in taken[column].to_pylist()]
    result = joined(tmp_path, log.impressions(), taken.set_column(place, column, pa.array(values)))
    assert told(result, "no action of label 'label' follows an impression", change.format(""))
    assert result.manifest["splits"]["train"]["labels"]["label"] == 0


# ---- the rules themselves -----------------------------------------------------------------------


def bins(times: list[int]) -> list[Bin]:
    """Return events as bins of one time each."""
    groups = itertools.groupby(sorted(times))
    return [Bin(time, len(list(same)), time, time) for time, same in groups]


@settings(max_examples=200)
@given(seed=st.integers(0, 10_000), events=st.integers(30, 400), burst=st.sampled_from([1, 10]))
def test_a_steady_log_has_no_strays(seed: int, events: int, burst: int) -> None:
    draw = random.Random(seed)
    times = [int(draw.random() * 10**9) for _ in range(events)] * burst
    found = reach(bins(times))
    assert (found.first_us, found.last_us) == (min(times), max(times))


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    events=st.integers(100, 400),
    far=st.lists(
        st.integers(3 * 10**9, 10**15) | st.integers(-(10**15), -2 * 10**9), min_size=1, max_size=2
    ),
)
def test_far_events_are_strays(seed: int, events: int, far: list[int]) -> None:
    draw = random.Random(seed)
    times = [int(draw.random() * 10**9) for _ in range(events)]
    found = reach(bins([*times, *far]))
    assert (found.first_us, found.last_us) == (min(times), max(times))


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000))
def test_actions_that_lag_thin_out_and_are_no_strays(seed: int) -> None:
    draw = random.Random(seed)
    taken = [int(draw.uniform(0, 30 * DAY) + draw.uniform(0, 2 * DAY)) for _ in range(2_000)]
    found = reach(bins(taken))
    assert (found.first_us, found.last_us) == (min(taken), max(taken))


def test_actions_that_come_days_later_are_no_silence(tmp_path: Path, log: Log) -> None:
    taken = log.actions()
    place = taken.schema.get_field_index("event_time")
    draw = np.random.default_rng(1)
    times = np.array(taken["event_time"]) + draw.integers(0, 2 * DAY, taken.num_rows)
    taken = taken.set_column(place, "event_time", pa.array(times))
    result = joined(tmp_path, log.impressions(), taken, window="2d")
    assert not told(result, "actions:")
    assert told(result, "impressions: none after")
    assert last_day(result) == pytest.approx(DAYS - 2, abs=0.2)


def test_nights_and_few_events_are_no_strays() -> None:
    nights = [day * DAY + hour * HOUR for day in range(10) for hour in range(9, 18)]
    assert reach(bins([*nights, 10 * DAY + 9 * HOUR])).last_us == 10 * DAY + 9 * HOUR
    assert reach(bins([1, 2, 3, 10**9])).last_us == 10**9
    assert reach(bins([5] * 100)).last_us == 5


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    rate=st.sampled_from([0.01, 0.05, 0.3, 2.0]),
    listed=st.sampled_from([1, 10]),
)
def test_steady_actions_have_no_silence(seed: int, rate: float, listed: int) -> None:
    draw = random.Random(seed)
    shown = sorted(int(draw.random() * 10**6) for _ in range(1_000)) * listed
    taken = [time for time in shown for _ in range(3) if draw.random() < rate / 3] or [5]
    assert silences(bins(taken), bins(shown)) == []
    assert silences(bins(shown), bins(taken)) == []
    assert not stops_before(bins(shown), 10**6)
    assert stops_before(bins(shown), 2 * 10**6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), events=st.integers(1, 15))
def test_the_end_of_small_logs_is_the_earlier_of_their_last_events(seed: int, events: int) -> None:
    draw = random.Random(seed)
    logs = [
        [{"event_time": draw.randrange(10**6)} for _ in range(events + extra)] for extra in (0, 3)
    ]
    ends = [reach(bins([row["event_time"] for row in rows])).last_us for rows in logs]
    assert min(ends) == log_end(*logs)


def test_many_silences_are_counted(tmp_path: Path, log: Log) -> None:
    taken = pa.concat_tables([log.actions(lambda t: (t - T) // DAY % 2 == 0)] * 3)
    shown = pa.concat_tables([log.impressions()] * 3)
    shown = shown.set_column(3, "request_id", pa.array(range(shown.num_rows)))
    notes = joined(tmp_path, shown, taken).notes
    assert sum(note.startswith("actions: none") for note in notes) == 6
    assert "actions: 1 more such stretches" in notes


def test_times_that_are_plausible_in_no_unit(tmp_path: Path, log: Log) -> None:
    def early(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("event_time")
        times = pa.array([t * 1_000 for t in table["event_time"].to_pylist()], pa.timestamp("us"))
        return table.set_column(place, "event_time", times.cast(pa.timestamp("us", "UTC")))

    result = joined(tmp_path, early(log.impressions()), early(log.actions()), window="60s")
    assert told(result, "impressions: column 'event_time' has times from 1970", "another unit")


def test_actions_without_a_kind(tmp_path: Path, log: Log) -> None:
    taken = log.actions(kind=lambda n: None if n % 50 == 0 else "click")
    result = joined(tmp_path, log.impressions(), taken, kinds=["click"])
    assert told(result, f"actions: {-(-len(log.hit) // 50)} have no kind ('kind' is null)")
