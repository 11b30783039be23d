"""Live drift: requests like the training data are near 0, others are not; items are left out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.live_drift import LiveDrift

Figures = dict[str, tuple[float | None, float]]


def rows(rng: np.random.Generator, count: int, *, moved: bool = False) -> list[dict[str, Any]]:
    chances = [0.1, 0.2, 0.7] if moved else [0.6, 0.3, 0.1]
    colors = rng.choice(["red", "green", "blue"], count, p=chances).tolist()
    ages = rng.normal(60 if moved else 40, 10, count)
    seen = [["maps", "mail"][: int(n)] for n in rng.integers(0, 3, count)]
    return [
        {"color": color, "age": None if moved and at % 2 else float(age), "seen": apps}
        for at, (color, age, apps) in enumerate(zip(colors, ages, seen, strict=True))
    ]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> wd.Bundle:
    rng = np.random.default_rng(0)
    examples = [
        {**row, "app": "maps", "place": 1, "click": at % 2}
        for at, row in enumerate(rows(rng, 4000))
    ]
    spec = wd.FeatureSpec(
        label="click",
        features=[
            *wd.numeric("age"), *wd.categorical("color", "seen", "app", "place"),
            wd.crossed("color", "app"),
        ],
        item=["app"],
        training_only={"place": 1},
    )  # fmt: skip
    table = pa.Table.from_pylist(examples)
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[4]), progress=False)
    return trainer.export(tmp_path_factory.mktemp("drift") / "b", warmup=False)


def figures(drift: LiveDrift, found: Figures, given: list[dict[str, Any]], bundle: Any) -> Figures:
    """Offer rows until a window is measured."""
    deadline = time.monotonic() + 60
    for start in range(0, len(given), 64):
        for row in given[start : start + 64]:
            drift.offer("apps", bundle, row)
        while drift._queue.qsize() > 512 and time.monotonic() < deadline:
            time.sleep(0.01)
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    told = dict(found)
    found.clear()
    return told


def test_rows_that_fit_no_column_are_left_out_alone(bundle: wd.Bundle) -> None:
    found: Figures = {}
    monitor = ThreadMonitor()

    def report(model: str, feature: str, values: float | None, missing: float) -> None:
        found[feature] = (values, missing)

    drift = LiveDrift(report, monitor, window_rows=512)
    rng = np.random.default_rng(1)
    odd = [{"place": 2**64 - 1}, {"place": [1]}, {"color": "red", "place": 1e300}]
    given = [row for each in rows(rng, 560) for row in (each, odd[int(rng.integers(3))])]
    told = figures(drift, found, given, bundle)
    assert told["color"][0] is not None and told["color"][0] < 0.1
    assert [each.errors for each in monitor.status()] == [0]


def test_requests_like_those_of_training_and_others(bundle: wd.Bundle) -> None:
    found: Figures = {}
    rng = np.random.default_rng(1)

    def report(model: str, feature: str, values: float | None, missing: float) -> None:
        assert model == "apps"
        found[feature] = values, missing

    drift = LiveDrift(report, ThreadMonitor(), window_rows=512)
    near = figures(drift, found, rows(rng, 640), bundle)
    assert near.keys() == {"age", "color", "seen"}
    assert all(values is not None and values < 0.1 for values, _ in near.values()), near
    assert all(missing < 0.01 for _, missing in near.values()), near
    figures(drift, found, rows(rng, 640, moved=True), bundle)  # partly of the window before
    far = figures(drift, found, rows(rng, 640, moved=True), bundle)
    assert far["age"][0] is not None and far["age"][0] > 0.25, far
    assert far["color"][0] is not None and far["color"][0] > 0.25, far
    assert far["age"][1] > 0.25, far
    assert far["seen"][0] is not None and far["seen"][0] < 0.1, far


def test_a_full_queue_leaves_rows_out(bundle: wd.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    drift = LiveDrift(lambda *_: None, ThreadMonitor())
    monkeypatch.setattr(drift, "_thread", object())  # nobody takes them
    for row in rows(np.random.default_rng(2), 2000):
        drift.offer("apps", bundle, row)
    assert drift._queue.qsize() == 1024
