"""Ranking by a formula: its values against Python's own arithmetic, its order, log and errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.bundle import models
from tests.command_line import Run
from tests.serving.http.calls import running
from tests.serving.versions import ITEMS, USER, eventually, publish, whole_rows, write_items
from widedeep.bundle import BundleHead
from widedeep.bundle.formula import Formula
from widedeep.errors import ConfigError, DataError, RequestError
from widedeep.serving.registry import Registry

HEADS = (
    BundleHead(name="click", kind="binary", start=0, stop=1),
    BundleHead(name="buy", kind="binary", start=1, stop=2),
    BundleHead(name="kind", kind="multiclass", start=2, stop=5, classes=("a", "b", "c")),
)
FORMULA = 'click * buy * log1p(price) - 0.5 * kind["b"]'
NUMBERS = st.floats(-50, 50, allow_subnormal=False)


@st.composite
def arithmetic(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["a", "b", "2", "0.25", "1e2"]))
    inner = arithmetic(depth - 1)
    kind = draw(st.sampled_from(["two", "sign", "call", "many"]))
    if kind == "two":
        sign = draw(st.sampled_from(["+", "-", "*", "/"]))
        return f"({draw(inner)} {sign} {draw(inner)})"
    if kind == "sign":
        return f"-{draw(inner)}"
    if kind == "call":
        return f"{draw(st.sampled_from(['abs', 'exp', 'log', 'log1p', 'sqrt']))}({draw(inner)})"
    return f"{draw(st.sampled_from(['min', 'max']))}({draw(inner)}, {draw(inner)})"


@settings(max_examples=150, deadline=None)
@given(arithmetic(), NUMBERS, NUMBERS)
def test_a_formula_is_pythons_arithmetic(text: str, a: float, b: float) -> None:
    text = f"a + {text}"
    names = {name: getattr(math, name) for name in ("exp", "log", "log1p", "sqrt")}
    try:
        expected = eval(
            text,
            {"__builtins__": {}},
            {**names, "abs": abs, "min": min, "max": max, "a": a, "b": b},
        )
    except (ValueError, ZeroDivisionError, OverflowError):
        expected = math.nan
    try:
        formula = Formula(text)
    except ConfigError as error:
        assert "divides by zero" in str(error)
        return
    (value,) = formula.values(lambda name, _: np.array([{"a": a, "b": b}[name]]))
    if not math.isfinite(expected):
        assert math.isnan(value)
    else:
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid syntax"),
        ("click *", "invalid syntax"),
        ("1 + 2", "names no head"),
        ("click / 0", "divides by zero"),
        ("click / 0.0", "divides by zero"),
        ("__import__('os')", "__import__"),
        ("click.real", "no arithmetic"),
        ("click if buy else 1", "no arithmetic"),
        ("[click]", "no arithmetic"),
        ("lambda: click", "no arithmetic"),
        ("click[0]", "no arithmetic"),
        ("click and buy", "no arithmetic"),
        ("True * click", "no arithmetic"),
        ("logg(click)", "did you mean 'log'?"),
        ("log(click, 2)", "log takes 1 argument"),
        ("min(click)", "min takes two or more"),
        ("max(click, default=1)", "no arithmetic"),
        ("(" * 300 + "click" + ")" * 300, "rank_by"),
        ("click" * 300, "at most 1,000"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Formula(text)
    assert str(caught.value).startswith("rank_by: got ") and reason in str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formula")
    publish(folder / "apps", "1", seed=1, heads=HEADS)
    write_items(folder / "items.parquet")
    return folder


def expected_values(bundle: wd.Bundle, prices: list[float]) -> np.ndarray[Any, Any]:
    scores = bundle.score(whole_rows(ITEMS))
    assert isinstance(scores, dict)
    return (
        scores["click"] * scores["buy"] * np.log1p(prices) - 0.5 * np.asarray(scores["kind"])[:, 1]
    )


def test_a_ranker_ranks_by_its_formula(folder: Path) -> None:
    bundle = wd.Bundle.load(folder / "apps" / "1")
    values = expected_values(bundle, [float(n) for n in range(len(ITEMS))])
    order = np.argsort(-values, kind="stable")
    items = str(folder / "items.parquet")
    ranker = wd.Ranker(bundle, items=items, item_id="app", rank_by=FORMULA)
    by_id = ranker.rank(USER, candidates=ITEMS)
    assert by_id.items == [ITEMS[at] for at in order] and by_id.rank_by == FORMULA
    np.testing.assert_allclose(by_id.scores, values[order], rtol=1e-12)
    assert list(by_id.terms) == ["click", "buy", "price", "kind['b']"]
    assert by_id.terms["price"].tolist() == [float(at) for at in order]
    columns = {"app": ITEMS, "price": [float(n) for n in range(len(ITEMS))]}
    inline = wd.Ranker(bundle, item_id="app", rank_by=FORMULA).rank(USER, candidates=columns, k=3)
    assert inline.items == by_id.items[:3] and len(inline.terms["buy"]) == 3
    # A head that a request names comes before the formula.
    assert ranker.rank(USER, candidates=ITEMS, head="buy").rank_by is None
    assert str(ranker.score_meaning()) == f"the value of {FORMULA!r}"


def test_items_without_a_value_rank_last_and_are_told(folder: Path) -> None:
    bundle = wd.Bundle.load(folder / "apps" / "1")
    prices = [2.0, 0.0, None, -1.0, 8.0]
    columns = {"app": ITEMS[:5], "price": prices}
    ranker = wd.Ranker(bundle, item_id="app", rank_by="click + log(price) / price")
    ranking = ranker.rank(USER, candidates=columns)
    assert ranking.items[2:] == [ITEMS[1], ITEMS[2], ITEMS[3]]  # in the order of the request
    assert ranking.undefined.tolist() == [2, 3, 4]
    assert np.isfinite(ranking.scores[:2]).all()
    # An id that the catalogue lacks has no price.
    items = str(folder / "items.parquet")
    known = wd.Ranker(bundle, items=items, item_id="app", rank_by="click * price")
    assert known.rank(USER, candidates=["nowhere", ITEMS[1]]).items == [ITEMS[1], "nowhere"]


def test_a_formula_that_fits_no_model_is_refused(folder: Path) -> None:
    bundle = wd.Bundle.load(folder / "apps" / "1")
    items = {"app": ITEMS[:2], "price": [1.0, 2.0], "name": ["x", "y"]}

    def ranker(formula: str, **options: Any) -> wd.Ranker:
        return wd.Ranker(bundle, item_id="app", rank_by=formula, **options)

    with pytest.raises(ConfigError, match="'price \\* 2', which names no head of the model"):
        ranker("price * 2")
    with pytest.raises(ConfigError, match=r"'kind', which gives a probability a class; name one"):
        ranker("click * kind")
    with pytest.raises(ConfigError, match=r"kind\['d'\], expected a class .* 'a', 'b', 'c'"):
        ranker('click * kind["d"]')
    with pytest.raises(DataError, match=r"'prise' .* no column of the catalogue; did you"):
        ranker("click * prise", items=items)
    with pytest.raises(DataError, match=r"column 'name' is string, expected numbers"):
        ranker("click * name", items=items)
    with pytest.raises(RequestError, match=r"got no column 'price', which the ranking's formula"):
        ranker("click * price").rank(USER, candidates={"app": ITEMS[:2]})
    with pytest.raises(RequestError, match=r"candidates.weight: got 'dear', expected a number"):
        ranker("click * weight").rank(USER, candidates={"app": ["x"], "weight": ["dear"]})


def test_the_bundles_own_formula_is_the_default(folder: Path, tmp_path: Path) -> None:
    bundle = wd.Bundle.load(folder / "apps" / "1")
    shape = dataclasses.replace(bundle.model, rank_by="click * buy")
    own = wd.bundle.write_bundle(
        tmp_path / "own", schema=bundle.schema, weights=dict(bundle.weights), model=shape,
        metrics={}, warmup_rows=models.rows(2), config={},
    )  # fmt: skip
    assert wd.Bundle.load(tmp_path / "own").model == shape
    columns = {"app": ITEMS, "price": [1.0] * len(ITEMS)}
    ranking = wd.Ranker(own, item_id="app").rank(USER, candidates=columns)
    np.testing.assert_allclose(ranking.scores, ranking.terms["click"] * ranking.terms["buy"])
    other = wd.Ranker(own, item_id="app", rank_by="buy").rank(USER, candidates=columns)
    assert other.rank_by == "buy"


def test_a_model_says_in_toml_what_it_ranks_by(run: Run, tmp_path: Path) -> None:
    rows = [{"job": "ab"[n % 2], "click": n % 2, "buy": n % 3 == 0, "price": n} for n in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    toml = tmp_path / "run.toml"
    toml.write_text(
        '[data]\ntrain = "train.parquet"\nlabel = ["click", "buy"]\n[features]\n'
        'categorical = ["job"]\n[model]\nrank_by = "click * buy * price"\n'
    )
    assert run("train", toml, "--out", tmp_path / "run").code == 0
    ranker = wd.Ranker(tmp_path / "run" / "bundle")
    ranking = ranker.rank({}, candidates={"job": ["a", "b"], "price": [1, 2]})
    assert ranking.rank_by == "click * buy * price"
    failed = run("train", toml, "--set", "model.rank_by=click *", "--out", tmp_path / "other")
    assert failed.code == 2 and "rank_by: got 'click *'" in failed.err


def test_a_server_ranks_explains_counts_and_logs_by_a_formula(folder: Path) -> None:
    bundle = wd.Bundle.load(folder / "apps" / "1")
    formula = "click * buy / price"  # the first item costs nothing
    scores = bundle.score(whole_rows(ITEMS))
    assert isinstance(scores, dict)
    with np.errstate(divide="ignore"):
        values = scores["click"] * scores["buy"] / np.arange(len(ITEMS))
    values[0] = np.nan
    order = np.argsort(-values, kind="stable")
    words = ("--items", folder / "items.parquet", "--item-id", "app", "--rank-by", formula)
    log = ("--log", folder / "log", "--log-user", "user")
    ask = {"user": USER, "candidates": ITEMS, "request_id": "one"}
    with running(folder / "apps", *words, *log) as server:
        server.wait_ready()
        plain = server.call("POST", "/v1/rank", ask).json
        explained = server.call("POST", "/v1/rank", ask | {"explain": True, "k": 2}).json
        by_head = server.call("POST", "/v1/rank", ask | {"head": "buy"}).json
        figures = server.call("GET", "/metrics").body.decode()
    assert plain["items"] == [ITEMS[at] for at in order]
    assert plain["scores"][:-1] == pytest.approx(values[order][:-1])
    assert plain["scores"][-1] is None and plain["undefined"] == [len(ITEMS) - 1]
    assert plain["rank_by"] == formula and "rank_by" not in by_head
    reason = explained["explanations"][0]["rank_by"]
    assert reason["formula"] == formula
    assert reason["terms"]["price"] == float(order[0])
    assert 'widedeep_undefined_scores_total{model="apps"} 1.0' in figures
    eventually(lambda: any((folder / "log").rglob("*.parquet")))
    tables = [pq.read_table(file) for file in (folder / "log").rglob("*.parquet")]
    logged = next(table for table in tables if "rank_by" in table.column_names).to_pylist()
    best = next(row for row in logged if row["position"] == 1 and row["request_id"] == "one")
    assert best["rank_by"] == formula and best["rank_by/price"] == float(order[0])
    assert best["score"] == pytest.approx(best["rank_by/click"] * best["rank_by/buy"] / order[0])


def test_a_server_that_cannot_use_its_formula_does_not_start(run: Run, folder: Path) -> None:
    words = ("--items", folder / "items.parquet", "--item-id", "app", "--http", ":0")
    ran = run("serve", folder / "apps" / "1", *words, "--rank-by", "click *")
    assert ran.code == 2 and "rank_by: got 'click *'" in ran.err
    for path in (folder / "apps", folder / "apps" / "1"):
        ran = run("serve", path, *words, "--rank-by", "clicks * 2")
        assert ran.code == 2 and "names no head of the model; did you mean 'click'?" in ran.err
        ran = run("serve", path, *words, "--rank-by", "click * prise")
        assert ran.code == 2 and "no column of the catalogue; did you mean 'price'?" in ran.err


def test_a_version_that_lacks_a_formulas_head_fails_with_the_reason(folder: Path) -> None:
    publish(folder / "two", "1", seed=1, heads=HEADS)
    publish(folder / "two", "2", seed=1, heads=HEADS[:1])
    options: dict[str, Any] = {"items": folder / "items.parquet", "item_id": "app"}
    with Registry(folder / "two", rank_by="click * buy", **options) as registry:
        assert registry.wait_ready(60)
        status = {each.version: each for each in registry.status()}
        assert (status["1"].state, status["2"].state) == ("ready", "failed")
        assert "got 'buy' in 'click * buy', which is no head" in str(status["2"].error)
    words = ("--items", options["items"], "--item-id", "app", "--rank-by", "click * buy")
    with running(folder / "two", *words) as server:  # the older one serves
        server.wait_ready()
