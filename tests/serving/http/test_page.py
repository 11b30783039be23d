"""The page at /, its figures, and what a person sees of it in a browser."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.serving.http.browser import CHROMIUM, Browser
from tests.serving.http.calls import Local, Running, running
from tests.serving.versions import ITEMS, USER, publish, whole_rows, write_items
from widedeep.bundle import Bundle
from widedeep.serving.http import Settings, page
from widedeep.serving.metrics import SCORE_EDGES, ScoreBins
from widedeep.serving.registry import Registry


def test_every_file_is_served_and_needs_no_other_host(local: Local) -> None:
    folder = resources.files("widedeep.serving.http") / "page"
    assert {each.name for each in folder.iterdir()} == set(page.FILES.values())
    for path, name in page.FILES.items():
        answer = local.get(path)
        assert (answer.status, answer.body) == (200, (folder / name).read_bytes())
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        named = set(re.findall(r"https?://[^\"'\s]+", answer.body.decode()))
        assert named <= {"http://www.w3.org/2000/svg"}, "a name of a standard, nothing to load"
    linked = re.findall(r'(?:src|href)="(page/[^"]+)"', local.get("/").body.decode())
    assert linked == ["page/page.css", "page/page.js"]
    assert local.get("/page/none.js").status == 404


def test_what_there_is_to_pick_from(local: Local, bundle: Bundle) -> None:
    found = local.get("/v1/page/choices").json
    (model,) = found["models"]
    assert model["name"] == "apps"
    assert [(each["version"], each["state"]) for each in model["versions"]] == [("1", "ready")]
    assert {each["name"] for each in model["columns"]} == set(bundle.input_columns)
    rows = [{**each["user"], **each["item"]} for each in model["stored"]]
    assert rows == bundle.warmup.rows
    assert model["catalogue"]["ids"] == ITEMS
    assert model["catalogue"]["items"] == len(ITEMS)


def test_the_figures_are_those_of_the_requests(registry: Registry) -> None:
    local = Local({"apps": registry})
    before = local.get("/v1/page/live").json
    scores = []
    for _ in range(3):
        scores += local.post("/v1/rank", {"user": USER, "candidates": ITEMS[:4]}).json["scores"]
    assert local.post("/v1/rank", {"user": 3, "candidates": []}).status == 400
    now = local.get("/v1/page/live").json
    assert now["requests"] == {"200": 3, "400": 1}
    assert sum(now["latency"]) - sum(before["latency"]) == 4
    expected = np.bincount(np.searchsorted(SCORE_EDGES, scores), minlength=len(SCORE_EDGES) + 1)
    assert now["scores"] == {"apps": {"1": expected.tolist()}}
    assert now["in_flight"] == 0


def test_without_the_page(registry: Registry) -> None:
    local = Local({"apps": registry}, settings=Settings(request_log="none", page=False))
    assert {local.get(path).status for path in [*page.FILES, "/v1/page/live"]} == {404}
    assert "/v1/page/live" not in local.get("/openapi.json").json["paths"]


def test_scores_are_counted_once_whenever_they_are_published() -> None:
    clock = [0.0]
    registry = CollectorRegistry()
    bins = ScoreBins(registry, now=lambda: clock[0])

    def counted(up_to: str) -> float:
        labels = {"model": "m", "version": "1", "up_to": up_to}
        return registry.get_sample_value("widedeep_scores_binned_total", labels) or 0.0

    bins.add("m", "1", np.array([0.0, 0.3, 0.31, 1.0, 7.0]))
    bins.publish()
    bins.add("m", "1", np.array([0.3]))
    assert counted("0.3") == 1.0, "the second waits for its turn"
    clock[0] = 5.0
    bins.add("m", "1", np.array([np.nan]))
    found = {up_to: counted(up_to) for up_to in ("0.0001", "0.3", "0.4", "1", "+Inf")}
    assert found == {"0.0001": 1.0, "0.3": 2.0, "0.4": 1.0, "1": 1.0, "+Inf": 2.0}


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: the page is not looked at in a browser"
)


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    """Two versions that order the items differently, and their catalogue beside them."""
    publish(tmp_path / "apps", "1", seed=1)
    publish(tmp_path / "apps", "2", seed=2)
    write_items(tmp_path / "items.parquet")
    return tmp_path / "apps"


def serve(folder: Path) -> Any:
    items = folder.parent / "items.parquet"
    return running(folder, "--items", items, "--item-id", "app", "--latest", 2)


def shown(browser: Browser, column: str) -> list[str]:
    """What stands in a column of the ranking."""
    cells = f"#ranking > table > tbody > tr:not(.why) > {column}"
    found: list[str] = browser.run(
        f"[...document.querySelectorAll({cells!r})].map((cell) => cell.innerText.trim())"
    )
    return found


def ask(browser: Browser, user: str, candidates: list[str]) -> None:
    """Fill in the form and rank."""
    text = "\\n".join(candidates)
    browser.run(f"document.getElementById('user').value = {user!r}")
    browser.run(f"document.getElementById('candidates').value = '{text}'")
    browser.run("document.getElementById('ranking').replaceChildren()")
    browser.run("document.getElementById('rank').click()")


_WHY = "document.querySelector('.why tfoot') !== null"


@pytest.mark.slow
@needs_chromium
def test_a_person_ranks_asks_why_and_compares(two_versions: Path, tmp_path: Path) -> None:
    user = '{"age": 31, "user": "bo", "tags": ["x"], "seen": ["mail"]}'
    with serve(two_versions) as server, Browser(tmp_path / "profile") as browser:
        server.wait_ready()
        browser.size(1280, 900)
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.wait_for(_WHY)  # a stored request is ranked by itself
        ask(browser, user, ITEMS)
        browser.wait_for(_WHY)
        ranked_as_the_server_does(browser, server, two_versions)
        browser.run("document.getElementById('compare').value = '1'")
        ask(browser, user, ITEMS)
        browser.wait_for("!!document.querySelector('.two .why tfoot')")
        compared_as_the_versions_do(browser, two_versions)
        fits_a_phone(browser)
        ask(browser, '{"age": "old"}', ITEMS)
        browser.wait_for("!document.getElementById('problem').hidden")
        assert browser.run("document.activeElement.id") == "user"
        assert "/user/age" in browser.run("document.getElementById('problem').innerText")
        complaints = [each for each in browser.complaints if "400" not in each]
        assert complaints == []
        assert browser.nameless() == []


def ranked_as_the_server_does(browser: Browser, server: Running, root: Path) -> None:
    reply = server.call("POST", "/v1/rank", {"user": USER, "candidates": ITEMS}).json
    names = [name.removeprefix("▾ ").removeprefix("▸ ") for name in shown(browser, ".item")]
    assert names == reply["items"]
    assert shown(browser, ".score") == [f"{score:.4f}" for score in reply["scores"]]
    logit = browser.run("document.querySelector('.why tfoot tr:last-child td').innerText")
    parts = browser.run(
        "[...document.querySelectorAll('.why tbody td, .why tfoot tr:not(:last-child) td')]"
        ".map((cell) => cell.innerText)"
    )
    total = sum(float(part.replace("−", "-")) for part in parts)
    assert total == pytest.approx(float(logit.replace("−", "-")), abs=1e-3)
    best = Bundle.load(root / "2").score(whole_rows(reply["items"][:1]))[0]
    assert reply["scores"][0] == best


def compared_as_the_versions_do(browser: Browser, root: Path) -> None:
    names = [name.removeprefix("▾ ").removeprefix("▸ ") for name in shown(browser, ".item")]
    there = Bundle.load(root / "1").score(whole_rows(names))
    assert shown(browser, ".second") == [f"{score:.4f}" for score in there]
    places = (np.argsort(np.argsort(-there, kind="stable")) + 1).tolist()
    told = [int(text.split()[0]) for text in shown(browser, ".number:nth-child(2)")]
    assert told == places
    assert browser.run("location.search") == "?compare=1"


def fits_a_phone(browser: Browser) -> None:
    browser.size(375, 800, phone=True)
    wide, window = browser.run("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window, "it scrolls sideways"
    narrowest = browser.run(
        "Math.min(...[...document.querySelectorAll('#ranking > table > tbody > tr > .item')]"
        ".map((cell) => cell.getBoundingClientRect().width))"
    )
    assert narrowest > 200, "names have no room"
    assert browser.picture().startswith(b"\x89PNG")
    browser.size(1280, 900)


@pytest.mark.slow
@needs_chromium
def test_what_a_model_says_is_never_run(two_versions: Path, tmp_path: Path) -> None:
    with serve(two_versions) as server, Browser(tmp_path / "profile") as browser:
        server.wait_ready()
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.wait_for(_WHY)
        evil = "<img src=x onerror=window.run=1>"
        ask(browser, "{}", [evil, *ITEMS])
        browser.wait_for(_WHY)
        assert any(evil in name for name in shown(browser, ".item"))
        assert browser.run("document.querySelectorAll('main img').length") == 0
        assert browser.run("window.run") is None
        assert browser.complaints == []
        allowed = browser.run(
            "fetch('http://127.0.0.1:1/').then(() => '', (error) => error.message)"
        )
        assert "fetch" in allowed.lower()
        assert any("Content Security Policy" in each for each in browser.complaints)
