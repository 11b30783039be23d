"""Estimates of what a ranking would earn, against loops over the log and a known truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_line import Run
from tests.evaluation.explored import SHOWN, explored_log, train, value_of
from widedeep.bundle import Bundle
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.compare import score_both
from widedeep.evaluation.logged_rankings import LogColumns, LoggedRankings
from widedeep.evaluation.off_policy import estimate_policies
from widedeep.gate import GateConfig, validate
from widedeep.report.replay import replay


def rankings(table: pa.Table) -> LoggedRankings:
    return LoggedRankings.of_columns(table["request"], table["place"], table["propensity"])


def test_the_estimates_are_those_of_a_loop_over_the_log() -> None:
    table, truth = explored_log(300, 0)
    rng = np.random.default_rng(1)
    scores, predicted = truth + rng.normal(0, 0.1, len(truth)), rng.uniform(0.1, 0.5, len(truth))
    shuffled = rng.permutation(len(truth))
    got = estimate_policies(
        rankings(table.take(shuffled)),
        table["click"].to_numpy()[shuffled],
        {"new": (scores[shuffled], predicted[shuffled])},
        clip=2.0,
    )["models"]["new"]

    places = [i or 0 for i in table["place"].to_pylist()]
    chance, click = table["propensity"].to_pylist(), table["click"].to_pylist()
    ratio = {
        place: sum(c for c, p in zip(click, places, strict=True) if p == place)
        / sum(q for q, p in zip(predicted, places, strict=True) if p == place)
        for place in (1, 2)
    }
    sums = dict.fromkeys(("ips", "clipped", "direct", "residual"), 0.0)
    of_place = {1: [0.0, 0.0], 2: [0.0, 0.0]}
    for start in range(0, len(truth), 5):
        best = sorted(range(start, start + 5), key=lambda row: -scores[row])
        for place in (1, 2):
            own = best[place - 1]
            sums["direct"] += ratio[place] * predicted[own]
            if places[own] == place:
                weight = 1 / chance[own]
                sums["ips"] += weight * click[own]
                sums["clipped"] += min(weight, 2.0) * click[own]
                sums["residual"] += weight * (click[own] - ratio[place] * predicted[own])
                of_place[place][0] += weight * click[own]
                of_place[place][1] += weight
    expected = {name: total / 300 for name, total in sums.items()}
    expected["dr"] = expected["direct"] + expected.pop("residual")
    expected["snips"] = sum(reward / weight for reward, weight in of_place.values())
    for name, value in expected.items():
        assert got[name]["value"] == pytest.approx(value, rel=1e-12), name


def test_the_intervals_hold_the_truth_of_a_policy_that_was_never_shown() -> None:
    covered = dict.fromkeys(("dr", "ips", "snips"), 0)
    width = dict.fromkeys(covered, 0.0)
    for seed in range(30):
        table, truth = explored_log(1000, seed)
        value = value_of(truth, truth)
        got = estimate_policies(
            rankings(table), table["click"], {"best": (truth, truth)}, resamples=200
        )["models"]["best"]
        assert got["problem"] is None
        for name in covered:
            covered[name] += got[name]["low"] <= value <= got[name]["high"]
            width[name] += got[name]["high"] - got[name]["low"]
    assert min(covered.values()) >= 26  # of 30: 95 % intervals
    assert width["dr"] < 0.9 * width["ips"]  # good predictions pay


def test_wrong_predictions_leave_the_doubly_robust_estimate_right() -> None:
    table, truth = explored_log(40_000, 3)
    got = estimate_policies(rankings(table), table["click"], {"m": (truth, 1 - truth)})
    value, model = value_of(truth, truth), got["models"]["m"]
    assert abs(model["direct"]["value"] - value) > 5 * abs(model["dr"]["value"] - value)
    assert model["dr"]["low"] < value < model["dr"]["high"]
    assert got["logged"]["value"] < value


def test_a_log_without_the_candidates_that_were_not_shown_is_called_so() -> None:
    table, truth = explored_log(3000, 4)
    shown = np.asarray(pa.compute.is_valid(table["place"]))
    got = estimate_policies(
        rankings(table.filter(pa.array(shown))),
        table["click"].to_numpy()[shown],
        {"m": (truth[shown], truth[shown])},
    )
    assert "the log lacks candidates" in got["models"]["m"]["problem"]


def test_a_policy_that_never_shows_what_the_model_would_is_called_so() -> None:
    table, truth = explored_log(3000, 5)
    never = np.asarray(pa.compute.equal(table["item"], "item 7"))
    place = table["place"].to_numpy(zero_copy_only=False)
    # Requests in which the item was shown are lost.
    lost = np.isin(table["request"], table["request"].to_numpy()[never & (place <= SHOWN)])
    kept = table.filter(pa.array(~lost))
    got = estimate_policies(
        rankings(kept), kept["click"], {"m": (never[~lost] + truth[~lost], truth[~lost])}
    )
    assert "never shows about" in got["models"]["m"]["problem"]


def test_requests_without_propensities_are_left_out() -> None:
    table, truth = explored_log(1000, 6)
    request = table["request"].to_numpy()
    masked = pa.array(
        table["propensity"].to_numpy(zero_copy_only=False),
        mask=np.asarray(pa.compute.is_null(table["propensity"])) | (request >= 600),
    )
    mixed = table.set_column(table.column_names.index("propensity"), "propensity", masked)
    got = estimate_policies(rankings(mixed), table["click"], {"m": (truth, truth)})
    alone = table.slice(0, 600 * 5)
    expected = estimate_policies(
        rankings(alone), alone["click"], {"m": (truth[:3000], truth[:3000])}
    )
    assert (got["requests"], got["explored"]) == (1000, 600)
    assert got["models"] == expected["models"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.5, 0.0], "row 1: got the propensity 0, expected 0 < propensity <= 1"),
        ([1.5, 0.5], "row 0: got the propensity 1.5"),
        ([0.5, float("nan")], "row 1: got the propensity nan"),
        ([1.0, 1.0], "never showed anything but its own choice"),
        ([None, None], "2 rows without a propensity"),
        (["high", "low"], "propensity: got string, expected numbers"),
    ],
)
def test_propensities_that_are_none(values: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        LoggedRankings.of_columns(
            pa.chunked_array([["a", "a"]]), pa.chunked_array([[1, 2]]), pa.chunked_array([values])
        )


def test_places_that_are_none() -> None:
    halves, request = pa.chunked_array([[0.5, 0.5]]), pa.chunked_array([["a", "a"]])
    with pytest.raises(DataError, match="row 1: got the position 0"):
        LoggedRankings.of_columns(request, pa.chunked_array([[1, 0]]), halves)
    with pytest.raises(DataError, match=r"row 1: got the position 2e\+09"):
        LoggedRankings.of_columns(request, pa.chunked_array([[1, 2_000_000_000]]), halves)
    with pytest.raises(DataError, match="request 'a': got two items at position 1"):
        LoggedRankings.of_columns(request, pa.chunked_array([[1, 1]]), halves)
    with pytest.raises(DataError, match="request 'a', row 1: got a position without a propensity"):
        LoggedRankings.of_columns(
            request, pa.chunked_array([[1, 2]]), pa.chunked_array([[0.5, None]])
        )


def test_requests_may_be_named_by_values_of_any_kind() -> None:
    table, _ = explored_log(50, 0)
    expected = rankings(table).request_B.tolist()
    ids = table["request"].combine_chunks()
    for named in (ids.cast(pa.string()), ids.cast(pa.string()).dictionary_encode()):
        of_parts = pa.chunked_array([named[:30], named[30:]])
        got = LoggedRankings.of_columns(of_parts, table["place"], table["propensity"])
        assert got.request_B.tolist() == expected


def test_equal_scores_do_not_agree_with_the_order_of_the_log() -> None:
    """Rows stand as they were ranked; a model that tells nothing apart must not seem to as well."""
    table, _ = explored_log(3000, 0)
    table = table.sort_by([("request", "ascending"), ("place", "ascending")])
    same = np.zeros(len(table))
    got = estimate_policies(rankings(table), table["click"], {"same": (same, same)}, resamples=200)
    assert got["models"]["same"]["weight_mean"]["value"] == pytest.approx(1, abs=0.05)


def test_rewards_that_are_not_all_above_0() -> None:
    """A drop relative to a loss is not told, and predictions around 0 are not scaled."""
    table, truth = explored_log(1000, 0)
    predicted = truth - truth[np.asarray(table["place"].is_valid())].mean()
    around = {"new": (truth, predicted), "old": (-truth, predicted)}
    rewards = table["click"].to_numpy() - table["click"].to_numpy().mean()
    got = estimate_policies(rankings(table), rewards, around, resamples=50)
    assert np.isnan(got["change"]["worse"])
    new = got["models"]["new"]
    assert new["dr"]["error"] < 1.1 * new["ips"]["error"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explored")
    table, _ = explored_log(1500, 10)
    train(table, folder / "good")
    wrong = pa.array(1 - table["click"].to_numpy())
    train(table.set_column(5, "click", wrong), folder / "plain", crossed=False)
    log, truth = explored_log(3000, 11)
    named = log.rename_columns(["position" if n == "place" else n for n in log.column_names])
    pq.write_table(named, folder / "log.parquet")
    np.save(folder / "truth.npy", truth)
    return folder


def test_evaluate_tells_what_a_models_rankings_would_earn(models: Path, run: Run) -> None:
    ran = run("evaluate", models / "good", models / "log.parquet", "--json")
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)
    estimate = printed["policy"][""]["models"]["candidate"]
    # Candidates that were not shown are ranked, but are no examples.
    shown = pq.read_table(models / "log.parquet", filters=[("position", ">", 0)])
    assert printed["metrics"]["label_mean"] == pytest.approx(shown["click"].to_numpy().mean())
    scores = train_scores(models / "good", models / "log.parquet")
    value = value_of(scores, np.load(models / "truth.npy"))
    assert estimate["dr"]["low"] < value < estimate["dr"]["high"]
    printed = run("evaluate", models / "good", models / "log.parquet").out
    assert "doubly robust" in printed
    assert "3,000 requests with propensities" in printed
    page = models / "report.html"
    report = run("report", models / "good", "--data", models / "log.parquet", "-o", page, "--json")
    dr = json.loads(report.out)["policy"][""]["models"]["candidate"]["dr"]
    assert dr["value"] == pytest.approx(estimate["dr"]["value"])
    assert "Rankings not shown" in page.read_text()
    wrong = run("evaluate", models / "good", models / "log.parquet", "--propensity", "chance")
    assert wrong.code == 2
    assert "no column 'chance'" in wrong.err


def test_a_model_is_judged_as_it_is_served_without_the_place(models: Path, run: Run) -> None:
    """With the logged place at hand a model would find what was shown there."""
    train(explored_log(1500, 10)[0], models / "placed", place=True)
    log, truth = explored_log(3000, 11)
    pq.write_table(log, models / "placed.parquet")
    words = [models / "placed.parquet", "--position", "place", "--propensity", "propensity"]
    ran = run("evaluate", models / "placed", *words, "--json")
    estimate = json.loads(ran.out)["policy"][""]["models"]["candidate"]
    scores = train_scores(models / "placed", models / "placed.parquet")
    expected = estimate_policies(rankings(log), log["click"], {"m": (scores, scores)})
    assert estimate["dr"]["value"] == pytest.approx(expected["models"]["m"]["dr"]["value"])
    assert estimate["dr"]["low"] < value_of(scores, truth) < estimate["dr"]["high"]


def train_scores(bundle: Path, data: Path) -> np.ndarray:
    import widedeep as wd

    return np.asarray(wd.Bundle.load(bundle).score(str(data)))


def test_the_gate_stops_a_model_whose_rankings_would_earn_less(models: Path) -> None:
    limits = {name: np.inf for name in ("max_log_loss_rise", "max_auc_drop", "max_gauc_drop")}
    config = GateConfig(slices=(), max_score_psi=np.inf, bootstrap=200, **limits)
    log = models / "log.parquet"
    verdict = validate(models / "plain", models / "good", log, config=config)
    assert [reason for reason in verdict.reasons if "would earn" in reason], verdict.reasons
    assert "Rankings not shown" in verdict.save(models / "verdict.json").read_text()
    verdict = validate(models / "good", models / "plain", log, config=config)
    assert verdict.passed, verdict.reasons
    # The same log, its propensities lost: nothing is said of rankings.
    plain = pq.read_table(log).drop_columns(["propensity"])
    assert LogColumns.find(plain, Bundle.load(models / "good")) is None
    with pytest.raises(DataError, match="no column"):
        validate(models / "good", None, plain, config=GateConfig(propensity="propensity"))


def test_a_prediction_that_is_no_number_is_a_verdict_of_no(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Bundle.scores_of

    def spoiled(self: Bundle, logits: Any) -> Any:
        scores = np.array(score(self, logits))
        scores[1000::1000] = np.nan  # none of the few warm-up rows
        return scores

    monkeypatch.setattr(Bundle, "scores_of", spoiled)
    verdict = validate(models / "good", None, models / "log.parquet")
    assert not verdict.passed
    assert "policy: candidate: a prediction is NaN or infinite" in "; ".join(verdict.reasons)


def test_propensities_that_cannot_be_read_are_told_of(models: Path, run: Run) -> None:
    log = pq.read_table(models / "log.parquet")
    shown = log.filter(pa.compute.is_valid(log["propensity"]))
    path = models / "placeless.parquet"
    pq.write_table(shown.drop_columns(["position"]), path)
    lacks = "column 'propensity' was not read: there is no column 'position' of places"
    assert lacks in run("evaluate", models / "good", path).out
    document = json.loads(run("evaluate", models / "good", path, "--json").out)
    assert document["policy"] == {}
    assert lacks in document["notes"][0]
    verdict = validate(models / "good", None, path)
    assert any(lacks in note for note in verdict.notes)
    bundle = Bundle.load(models / "good")
    columns = LogColumns.find(shown.drop_columns(["request"]), bundle)
    assert columns is not None
    assert "no column 'request' of requests' ids" in str(columns.lacks)


def test_requests_are_those_of_the_servers_log_else_the_group(models: Path) -> None:
    """Replay and the gate read one log the same way."""
    bundle, log = Bundle.load(models / "good"), pq.read_table(models / "log.parquet")
    columns = LogColumns.find(log, bundle)
    assert columns is not None and columns.request == "request"
    # A group of users: each request is half of what it was.
    halves = pa.array([f"{r} {n % 2}" for n, r in enumerate(log["request"].to_pylist())])
    log = log.append_column("request_id", halves)
    for options in ({}, {"propensity": "propensity"}):
        columns = LogColumns.find(log, bundle, **options)
        assert columns is not None and columns.request == "request_id"
    assert replay(bundle, bundle, log, item="item").requests == len(set(halves.to_pylist()))


def test_a_log_of_one_choice_is_a_note_unless_its_propensities_are_asked_for(models: Path) -> None:
    table = pq.read_table(models / "log.parquet")
    ones = pa.array(np.ones(len(table)), mask=np.asarray(pa.compute.is_null(table["propensity"])))
    log = table.set_column(table.column_names.index("propensity"), "propensity", ones)
    bundle = Bundle.load(models / "good")
    rows = score_both(bundle, None, log, log=LogColumns.find(log, bundle))
    assert rows.rankings is None
    assert any("never showed anything but its own choice" in note for note in rows.notes)
    with pytest.raises(DataError, match="its own choice"):
        score_both(bundle, None, log, log=LogColumns.find(log, bundle, propensity="propensity"))


def test_propensities_need_a_column_of_requests(models: Path) -> None:
    import widedeep as wd

    bundle = wd.Bundle.load(models / "good")
    columns = LogColumns.find(str(models / "log.parquet"), bundle)
    assert columns is not None
    assert columns.request == "request"
    with pytest.raises(ConfigError, match="no column of requests"):
        table = pq.read_table(models / "log.parquet")
        spec = wd.FeatureSpec(label="click", features=wd.categorical("kind"))
        trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, table)), progress=False)
        trainer.fit(table)
        LogColumns.find(table, trainer.export(models / "ungrouped"), propensity="propensity")
