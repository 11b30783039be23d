"""Registry: versions found, loaded, swapped and freed; failures; what operators ask for."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bundle import models
from tests.serving.http.calls import Local
from tests.serving.versions import ITEMS, USER, eventually, publish, whole_rows, write_items
from widedeep.bundle import Bundle, write_bundle
from widedeep.bundle.manifest import MANIFEST, read_manifest
from widedeep.errors import ConfigError
from widedeep.serving.http import Settings
from widedeep.serving.registry import Latest, NoVersion, Registry, Specific, VersionStatus

POLL_S = 0.02


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with the versions 9 and 10, and a catalogue beside it."""
    publish(tmp_path / "models", "9", seed=9)
    publish(tmp_path / "models", "10", seed=10)
    write_items(tmp_path / "items.parquet")
    return tmp_path / "models"


@pytest.fixture
def registry(root: Path) -> Iterator[Registry]:
    """A registry of that directory, ready."""
    with registry_of(root) as made:
        assert made.wait_ready(30)
        yield made


def registry_of(root: Path, **options: object) -> Registry:
    items = root.parent / "items.parquet"
    return Registry(root, items=items, item_id="app", poll_s=POLL_S, **options)  # type: ignore[arg-type]


def answer(registry: Registry, request_id: str = "r", **asked: str) -> tuple[str, list[float]]:
    """Rank the whole catalogue; return the version and the scores in the catalogue's order."""
    with registry.lease(request_id, **asked) as served:
        ranking = served.rank(USER, candidates=ITEMS)
        scores = np.empty(len(ITEMS))
        scores[ranking.positions] = ranking.scores
        return served.version, scores.tolist()


def serving(registry: Registry) -> str:
    return answer(registry)[0]


def status(registry: Registry, version: str) -> VersionStatus:
    return next(each for each in registry.status() if each.version == version)


def expected(root: Path, version: str) -> list[float]:
    scores = Bundle.load(root / version).score(whole_rows(ITEMS))
    assert not isinstance(scores, dict)
    return scores.tolist()


def test_the_newest_version_answers_with_the_scores_of_its_bundle(
    root: Path, registry: Registry
) -> None:
    assert answer(registry) == ("10", expected(root, "10"))
    assert [(each.version, each.state, each.labels) for each in registry.status()] == [
        ("9", "available", ()),
        ("10", "ready", ("stable",)),
    ]


def test_a_published_version_takes_the_traffic_and_the_old_one_is_freed(
    root: Path, registry: Registry
) -> None:
    with registry.lease("r") as served:
        old = weakref.ref(served.ranker)
        publish(root, "11", seed=11)
        eventually(lambda: serving(registry) == "11")
        # This request began before: it goes on with the version it was given.
        assert served.version == "10"
        assert served.ranker.rank(USER, candidates=ITEMS).scores.max() == max(expected(root, "10"))
        assert status_states(registry)["10"] == ["available", "unloading"]
        del served
    assert answer(registry) == ("11", expected(root, "11"))
    eventually(lambda: old() is None)
    eventually(lambda: status_states(registry)["10"] == ["available"])


def status_states(registry: Registry) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in registry.status():
        found.setdefault(each.version, []).append(each.state)
    return found


def test_no_request_fails_while_versions_are_swapped_under_load(root: Path) -> None:
    scores = {}
    stop, failures, seen = threading.Event(), [], set()

    def ask(registry: Registry, thread: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            try:
                version, got = answer(registry, f"{thread}-{n}")
                seen.add(version)
                if got != scores[version]:
                    failures.append(f"{version}: other scores")
            except Exception as error:
                failures.append(repr(error))

    scores["10"] = expected(root, "10")
    with registry_of(root) as registry:
        assert registry.wait_ready(30)
        threads = [threading.Thread(target=ask, args=(registry, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for version in ("11", "12", "13"):
            scores[version] = expected_of(root, version)
            publish(root, version, seed=int(version))
            eventually(lambda version=version: version in seen)  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert seen == {"10", "11", "12", "13"}


def expected_of(root: Path, version: str) -> list[float]:
    """The scores of a version that is yet to be published."""
    publish(root.parent / "aside", version, seed=int(version))
    return expected(root.parent / "aside", version)


# ---- versions that do not load ------------------------------------------------------------------


def corrupt(path: Path) -> None:
    weights = path / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)


def half_copied(path: Path) -> None:
    (path / MANIFEST).unlink()


def cut_short(path: Path) -> None:
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])


def of_an_older_format(path: Path) -> None:
    from dataclasses import replace

    manifest = replace(read_manifest(path), format_version=0)
    (path / MANIFEST).write_text(manifest.to_text())


def with_the_schema_of_another_model(path: Path) -> None:
    from dataclasses import replace

    from widedeep.bundle.manifest import file_entries

    made = models.schema(item=())
    made.save(path / "schema.safetensors")
    manifest = replace(read_manifest(path), files=file_entries(path))
    (path / MANIFEST).write_text(manifest.to_text())


def with_other_stored_scores(path: Path) -> None:
    from dataclasses import replace

    from widedeep.bundle.manifest import file_entries

    stored = json.loads((path / "warmup.json").read_text())
    stored["scores"][""][2] += 0.25
    (path / "warmup.json").write_text(json.dumps(stored))
    manifest = replace(read_manifest(path), files=file_entries(path))
    (path / MANIFEST).write_text(manifest.to_text())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (corrupt, "weights.safetensors: its SHA-256 is not the manifest's"),
        (half_copied, "copied only in part"),
        (cut_short, r"weights.safetensors: got \d+ bytes, expected \d+"),
        (of_an_older_format, "got bundle format 0"),
        (with_the_schema_of_another_model, "schema"),
        (with_other_stored_scores, "warm-up row 2 scores"),
    ],
)
def test_a_version_that_does_not_load_changes_nothing_and_says_why(
    root: Path, registry: Registry, damage: object, told: str
) -> None:
    import re

    publish(root.parent / "aside", "11", seed=11)
    damage(root.parent / "aside" / "11")  # type: ignore[operator]
    (root.parent / "aside" / "11").rename(root / "11")
    eventually(lambda: status_states(registry).get("11") == ["failed"])
    assert re.search(told, status(registry, "11").error or "")
    assert answer(registry) == ("10", expected(root, "10"))
    assert status(registry, "10").labels == ("stable",)
    # Put right, it is taken up by itself.
    shutil.rmtree(root / "11")
    publish(root, "11", seed=11)
    eventually(lambda: serving(registry) == "11")
    assert status(registry, "11").error is None


def test_a_version_of_another_model_is_refused(root: Path, registry: Registry) -> None:
    publish(root, "11", seed=11, heads=models.THREE_HEADS)
    eventually(lambda: status_states(registry).get("11") == ["failed"])
    assert "click (binary), kind (multiclass of 3 classes)" in (status(registry, "11").error or "")
    assert serving(registry) == "10"


def test_a_version_whose_items_are_not_in_the_catalogue_is_refused(
    root: Path, registry: Registry
) -> None:
    schema = models.schema(item=("app", "price", "tags"))
    shape = models.model(schema)
    write_bundle(
        root / "11",
        schema=schema,
        weights=models.random_weights(schema, shape),
        model=shape,
        metrics={},
        warmup_rows=[],
        config={},
    )
    eventually(lambda: status_states(registry).get("11") == ["failed"])
    assert "no column 'tags'" in (status(registry, "11").error or "")
    assert serving(registry) == "10"


def test_at_the_start_the_newest_version_that_loads_serves(root: Path) -> None:
    half_copied(root / "10")
    with registry_of(root) as registry:
        assert registry.wait_ready(30)
        assert serving(registry) == "9"
        assert status(registry, "10").state == "failed"


def test_files_copied_one_after_the_other_are_taken_when_they_are_complete(
    root: Path, registry: Registry
) -> None:
    publish(root.parent / "aside", "11", seed=11)
    (root / "11").mkdir()
    source = root.parent / "aside" / "11"
    for file in sorted(source.iterdir(), key=lambda file: file.name == MANIFEST):
        assert serving(registry) == "10"
        shutil.copy(file, root / "11" / file.name)
    eventually(lambda: serving(registry) == "11")


def test_a_version_replaced_under_its_name_is_loaded_again(root: Path, registry: Registry) -> None:
    before = expected(root, "10")
    publish(root, "10", seed=77)
    assert expected(root, "10") != before
    eventually(lambda: answer(registry)[1] == expected(root, "10"))


def test_a_version_whose_directory_is_gone_serves_until_another_does(tmp_path: Path) -> None:
    root = tmp_path / "models"
    publish(root, "1", seed=1)
    with Registry(root, poll_s=POLL_S) as registry:
        assert registry.wait_ready(30)
        shutil.rmtree(root / "1")
        eventually(lambda: status_states(registry)["1"] == ["ready"])
        with registry.lease("r") as served:
            assert len(served.rank(USER, candidates={"app": ["mail"]})) == 1
        publish(root, "2", seed=2)
        eventually(lambda: status_states(registry) == {"2": ["ready"]})


def test_a_version_whose_directory_is_gone_can_be_withdrawn(root: Path, registry: Registry) -> None:
    for version in ("10", "9"):
        shutil.rmtree(root / version)
    eventually(lambda: "10" not in registry._watcher.versions)
    registry.unload("10")
    assert not registry.ready()
    with pytest.raises(NoVersion, match="got version '10'"):
        registry.unload("10")


def test_the_newest_version_is_loaded_and_not_one_that_is_freed(
    root: Path, registry: Registry
) -> None:
    local = Local({"models": registry}, settings=Settings(admin=True, keys="none"))
    with registry.lease("r"):
        publish(root, "11", seed=11)
        eventually(lambda: serving(registry) == "11")
        assert [each.version for each in registry.status()] == ["9", "10", "11", "10"]
        order = "/v2/repository/models/models"
        headers = {"host": "localhost"}
        assert local.post(f"{order}/load", {}, headers).status == 200
        assert registry.state.loaded == ("11",)
        shutil.rmtree(root / "11")
        eventually(lambda: "11" not in registry._watcher.versions)
        assert local.post(f"{order}/unload", {}, headers).status == 200
    assert registry.state.withdrawn == ("9", "10", "11")
    assert not registry.ready()


def test_without_a_version_nothing_is_ready(tmp_path: Path) -> None:
    with Registry(tmp_path, poll_s=POLL_S) as registry:
        assert not registry.ready()
        with pytest.raises(NoVersion, match="there is none to be served"), registry.lease("r"):
            pass
        publish(tmp_path, "1", seed=1)
        assert registry.wait_ready(30)


def test_a_directory_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no readable directory"):
        Registry(tmp_path / "nowhere").start()


def test_one_bundle_may_stand_for_a_directory(root: Path) -> None:
    with Registry(root / "9", poll_s=POLL_S) as registry:
        assert registry.wait_ready(30)
        assert status_states(registry) == {"9": ["ready"]}
        registry.set_label("blue", "9")
        with registry.lease("r", label="blue") as served:
            assert served.version == "9"
    Bundle.load(root / "9")  # the state does not lie among its files


# ---- what is asked for --------------------------------------------------------------------------


def test_policies(root: Path) -> None:
    publish(root, "8", seed=8)
    with registry_of(root, policy=Latest(2)) as registry:
        eventually(lambda: [each.state for each in registry.status()].count("ready") == 2)
        assert serving(registry) == "10"
        assert answer(registry, version="9") == ("9", expected(root, "9"))
        with pytest.raises(NoVersion, match="got version '8'"), registry.lease("r", version="8"):
            pass
    with registry_of(root, policy=Specific(["8", "9"])) as registry:
        assert registry.wait_ready(30)
        eventually(lambda: [each.state for each in registry.status()].count("ready") == 2)
        assert serving(registry) == "9"
        assert status(registry, "10").state == "available"


def test_rollback_withdraws_the_version_until_it_is_loaded_again(
    root: Path, registry: Registry
) -> None:
    assert registry.rollback() == "9"
    eventually(lambda: serving(registry) == "9")
    assert status(registry, "10").state == "available"
    with pytest.raises(NoVersion, match="no version before '9'"):
        registry.rollback()
    publish(root, "11", seed=11)
    eventually(lambda: serving(registry) == "11")
    assert registry.rollback() == "9"
    eventually(lambda: serving(registry) == "9")
    registry.load("10", wait_s=30)
    assert serving(registry) == "10"


def test_rollback_passes_over_a_version_that_does_not_load(root: Path, registry: Registry) -> None:
    half_copied(Path(shutil.copytree(root / "10", root / "11")))
    publish(root, "12", seed=12)
    eventually(lambda: serving(registry) == "12")
    registry.load("11")
    eventually(lambda: status_states(registry)["11"] == ["failed"])
    assert registry.rollback() == "10"
    eventually(lambda: serving(registry) == "10")


def test_the_stable_label_holds_the_traffic_and_rollback_moves_it(
    root: Path, registry: Registry
) -> None:
    registry.set_label("stable", "10")
    publish(root, "11", seed=11)
    registry.load("11", wait_s=30)
    assert serving(registry) == "10"
    assert answer(registry, version="11")[0] == "11"
    registry.set_label("stable", "11")
    assert serving(registry) == "11"
    assert registry.rollback("9") == "9"
    eventually(lambda: serving(registry) == "9")
    assert registry.state.labels == {"stable": "9"}


def test_labels_keep_a_version_loaded(root: Path, registry: Registry) -> None:
    registry.set_label("blue", "9")
    eventually(lambda: status(registry, "9").labels == ("blue",))
    assert answer(registry, label="blue") == ("9", expected(root, "9"))
    registry.set_label("blue", None)
    eventually(lambda: status(registry, "9").state == "available")
    with pytest.raises(NoVersion, match="got label 'blue'"), registry.lease("r", label="blue"):
        pass
    with pytest.raises(NoVersion, match=r"got version '99'"):
        registry.set_label("blue", "99")


def test_unload_withdraws_even_the_last_version(root: Path, registry: Registry) -> None:
    registry.unload("10")
    eventually(lambda: serving(registry) == "9")
    registry.unload("9")
    assert not registry.ready()
    with pytest.raises(NoVersion), registry.lease("r"):
        pass
    registry.load("9", wait_s=30)
    assert serving(registry) == "9"


def test_load_tells_why_a_version_does_not_load(root: Path, registry: Registry) -> None:
    half_copied(root / "9")
    with pytest.raises(NoVersion, match="copied only in part"):
        registry.load("9", wait_s=30)


def test_the_canary_answers_its_share_of_the_request_ids(root: Path, registry: Registry) -> None:
    registry.set_label("stable", "9")
    registry.set_canary("10", 0.2)
    eventually(lambda: "canary" in status(registry, "10").labels)
    eventually(lambda: "stable" in status(registry, "9").labels)
    ids = [f"request {n}" for n in range(2_000)]

    def of_canary() -> set[str]:
        found = set()
        for request in ids:
            with registry.lease(request) as served:
                assert served.version == {"canary": "10", "stable": "9"}[str(served.label)]
                if served.label == "canary":
                    found.add(request)
        return found

    first = of_canary()
    # Four standard deviations of a fair draw.
    assert abs(len(first) / len(ids) - 0.2) < 4 * (0.2 * 0.8 / len(ids)) ** 0.5
    assert of_canary() == first
    registry.set_canary("10", 0.5)
    assert first < of_canary()
    assert answer(registry, label="canary")[0] == "10"
    registry.set_canary(None)
    assert of_canary() == set()
    with pytest.raises(ConfigError, match=r"share=1\.5"):
        registry.set_canary("10", 1.5)


def test_the_newest_version_under_trial_does_not_take_the_traffic(
    root: Path, registry: Registry
) -> None:
    registry.set_canary("10", 0.1)
    eventually(lambda: "stable" in status(registry, "9").labels)
    registry.set_label("stable", "10")
    assert "stable" in status(registry, "10").labels


def test_the_shadow_scores_what_was_answered_and_reports_the_differences(
    root: Path, registry: Registry
) -> None:
    registry.set_shadow("9")
    eventually(lambda: registry.shadow_report() is not None)
    asked = 30
    for n in range(asked):
        with registry.lease(f"r{n}") as served:
            assert served.version == "10"
            served.rank(USER, candidates=ITEMS, k=4)

    def compared() -> int:
        report = registry.shadow_report()
        assert report is not None
        return report.requests + report.dropped

    eventually(lambda: compared() == asked)
    report = registry.shadow_report()
    assert report is not None
    assert (report.version, report.failed, report.dropped) == ("9", 0, 0)
    new, old = np.array(expected(root, "10")), np.array(expected(root, "9"))
    best = np.argsort(-new, kind="stable")[:4]
    differences = (old - new)[best]
    assert report.scores == asked * 4 == sum(report.counts)
    assert report.mean == pytest.approx(differences.mean(), rel=1e-9)
    assert report.mean_absolute == pytest.approx(np.abs(differences).mean(), rel=1e-9)
    assert report.largest == pytest.approx(np.abs(differences).max(), rel=1e-9)
    assert report.same_first == float(new.argmax() == old.argmax())
    bins = np.searchsorted(report.edges, np.abs(differences))
    assert report.counts == tuple(np.bincount(bins, minlength=len(report.edges) + 1) * asked)
    registry.set_shadow(None)
    assert registry.shadow_report() is None


# ---- one state, several registries --------------------------------------------------------------


def test_registries_of_one_directory_follow_one_state(root: Path, registry: Registry) -> None:
    with registry_of(root) as other:
        assert other.wait_ready(30)
        registry.rollback()
        eventually(lambda: serving(other) == "9")
        other.load("10", wait_s=30)
        eventually(lambda: serving(registry) == "10")
        other.set_canary("9", 0.5)
        eventually(lambda: "canary" in status(registry, "9").labels)
        ids = [f"request {n}" for n in range(200)]
        eventually(lambda: "canary" in status(other, "9").labels)
        assert [answer(registry, each)[0] for each in ids] == [
            answer(other, each)[0] for each in ids
        ]
        registry.set_label("blue", "9")
        eventually(lambda: "blue" in status(other, "9").labels)


def test_orders_given_at_once_are_all_kept(root: Path, registry: Registry) -> None:
    with registry_of(root) as other:
        threads = [
            threading.Thread(target=which.set_label, args=(f"label {n}", "10"))
            for n in range(10)
            for which in (registry, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: registry.state.changes == 20)
        assert set(registry.state.labels) == {f"label {n}" for n in range(10)}


def test_a_damaged_state_changes_nothing_and_is_told(root: Path, registry: Registry) -> None:
    registry.set_label("blue", "9")
    eventually(lambda: "blue" in status(registry, "9").labels)
    (root / "serving.json").write_text('{"format": 1')
    eventually(lambda: registry.problem is not None)
    assert "serving.json: got a state that cannot be read" in str(registry.problem)
    assert answer(registry, label="blue")[0] == "9"
    (root / "serving.json").unlink()
    eventually(lambda: registry.problem is None)
    eventually(lambda: status(registry, "9").state == "available")


# ---- the catalogue ------------------------------------------------------------------------------


def test_a_new_catalogue_is_taken_without_a_new_version(root: Path, registry: Registry) -> None:
    before = status(registry, "10").catalogue_version
    write_items(root.parent / "items.parquet", price=-2.0)
    eventually(lambda: status(registry, "10").catalogue_version != before)
    scores = Bundle.load(root / "10").score(whole_rows(ITEMS, price=-2.0))
    assert not isinstance(scores, dict)
    assert answer(registry) == ("10", scores.tolist())
    # The next version serves the same catalogue.
    publish(root, "11", seed=11)
    eventually(lambda: serving(registry) == "11")
    now = status(registry, "11").catalogue_version
    assert now not in (None, before)


def test_a_damaged_catalogue_changes_nothing_and_is_told(root: Path, registry: Registry) -> None:
    items = root.parent / "items.parquet"
    items.write_bytes(items.read_bytes()[:100])
    eventually(lambda: status(registry, "10").catalogue_error is not None)
    assert answer(registry) == ("10", expected(root, "10"))
    write_items(items)
    eventually(lambda: status(registry, "10").catalogue_error is None)


def test_close_waits_for_the_last_request(root: Path) -> None:
    registry = registry_of(root)
    registry.start()
    assert registry.wait_ready(30)
    entered, leave, scores = threading.Event(), threading.Event(), []

    def ask() -> None:
        with registry.lease("r") as served:
            entered.set()
            leave.wait(10)
            scores.extend(served.rank(USER, candidates=ITEMS).scores.tolist())

    thread = threading.Thread(target=ask)
    thread.start()
    entered.wait(10)
    closing = threading.Thread(target=registry.close)
    closing.start()
    eventually(lambda: not registry.ready())
    leave.set()
    closing.join(10)
    thread.join(10)
    assert not closing.is_alive()
    assert sorted(scores) == sorted(expected(root, "10"))
