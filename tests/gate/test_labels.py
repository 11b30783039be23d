"""Two models' labels side by side: heads and classes are matched by name, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.bundle import Bundle
from widedeep.errors import DataError, SchemaError
from widedeep.evaluation.compare import ComparedRows, score_both
from widedeep.gate import GateConfig
from widedeep.gate.quality import Quality, judge_quality
from widedeep.report.quality import measure_quality
from widedeep.report.replay import replay

LIMITS = GateConfig(slices=("k",), bootstrap=200, min_rows=100, min_positives=10)
NAMES = ("a", "b", "c", "d")


def data(rows: int, seed: int, names: tuple[str, ...] = NAMES) -> pa.Table:
    rng = np.random.default_rng(seed)
    k, x = rng.choice(list("uvwxyz"), rows), rng.normal(size=rows)
    place = np.array([ord(v) - ord("u") for v in k]) / 2 + x + rng.normal(size=rows) * 0.5
    y = np.array(names)[np.clip(np.round(place), 0, len(names) - 1).astype(int)]
    return pa.table({"k": k, "x": x, "y": y, "z": (x > 0).astype(np.int64)})


def train(
    table: pa.Table, path: Path, *, label: Any = "y", head: Any = None, **spec: Any
) -> Bundle:
    features = [*wd.categorical("k"), *wd.numeric("x")]
    schema = wd.fit_schema(wd.FeatureSpec(label=label, features=features, **spec), table)
    model = wd.WideDeep(schema, hidden_units=[8], embedding_dim=4, head=head)
    trainer = wd.Trainer(model, progress=False, batch_size=64, threads=1)
    trainer.fit(table, epochs=2)
    return trainer.export(path)


def both(
    candidate: Bundle, serving: Bundle | None, table: pa.Table
) -> tuple[ComparedRows, Quality]:
    scored = score_both(candidate, serving, table, slices=LIMITS.slices, unit=LIMITS.unit)
    return scored, judge_quality(scored, LIMITS)


def loss_by_name(bundle: Bundle, table: pa.Table, names: tuple[str, ...]) -> float:
    """By scikit-learn's definition, the columns looked up by the classes' names."""
    scores = np.asarray(bundle.score(table.select(["k", "x"])))
    own = [names.index(name) for name in table["y"].to_pylist()]
    return float(-np.log(scores[np.arange(len(own)), own]).mean())


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(data(3000, 1), tmp_path_factory.mktemp("serving") / "bundle")


@pytest.mark.parametrize(
    "order", [("d", "c", "b", "a"), ("b", "a", "c", "d"), ("c", "a", "d", "b")]
)
def test_classes_in_another_order(serving: Bundle, tmp_path: Path, order: tuple[str, ...]) -> None:
    candidate = train(data(3000, 2), tmp_path / "b", label_vocabulary=order)
    recent = data(2000, 3)
    scored, quality = both(candidate, serving, recent)
    entry = quality.heads[""]
    for who, bundle, names in (("candidate", candidate, order), ("serving", serving, NAMES)):
        assert entry[who]["log_loss"] == pytest.approx(loss_by_name(bundle, recent, names))
    assert any("classes in another order" in note for note in scored.notes)
    for value in (e for e in quality.slices if e["value"] == "u"):
        part = recent.filter(pa.array([k == "u" for k in recent["k"].to_pylist()]))
        assert value["serving"]["log_loss"] == pytest.approx(loss_by_name(serving, part, NAMES))
    assert not any("spread" in reason for reason in quality.reasons)


def test_models_that_rank_by_another_head_are_told_apart(tmp_path: Path) -> None:
    table = data(600, 1, ("0", "1"))
    table = table.set_column(2, "y", table["y"].cast(pa.int64()))
    table = table.append_column("request_id", pa.array(np.arange(600) // 6))
    first, second = (
        train(table, tmp_path / str(label), label=label) for label in (["y", "z"], ["z", "y"])
    )
    for candidate, told in ((first, False), (second, True)):
        said = "ranks by its label 'z', the model in service"
        notes = [
            *both(candidate, first, table)[0].notes,
            *replay(first, candidate, table, item="k").notes,
        ]
        assert sum(said in note for note in notes) == 2 * told, notes


def test_a_report_compares_by_name_too(serving: Bundle, tmp_path: Path) -> None:
    candidate = train(data(3000, 2), tmp_path / "b", label_vocabulary=NAMES[::-1])
    recent = data(2000, 3)
    metrics = measure_quality(candidate, serving, recent, LIMITS).heads[""]["metrics"]
    scores = np.asarray(serving.score(recent.select(["k", "x"])))
    right = np.array(NAMES)[scores.argmax(axis=1)] == np.array(recent["y"].to_pylist())
    assert metrics["against"]["accuracy"] == pytest.approx(right.mean())
    assert metrics["against"]["log_loss"] == pytest.approx(loss_by_name(serving, recent, NAMES))


def test_a_class_less_that_no_row_has(serving: Bundle, tmp_path: Path) -> None:
    three, recent = data(3000, 2, NAMES[1:]), data(2000, 3, NAMES[1:])
    candidate = train(three, tmp_path / "b")
    scored, quality = both(candidate, serving, recent)
    wanted = loss_by_name(serving, recent, NAMES)
    assert quality.heads[""]["serving"]["log_loss"] == pytest.approx(wanted)
    assert scored.reasons == []
    assert any("does not know 'a', which the model in service" in note for note in scored.notes)
    # The scores' spread is compared among the classes that both know: each sums to 1 there.
    (head,) = scored.heads
    assert head.common is not None
    scores = np.asarray(serving.score(recent.select(["k", "x"])))[:, 1:]
    own = [NAMES[1:].index(name) for name in recent["y"].to_pylist()]
    shares = scores[np.arange(len(own)), own] / scores.sum(axis=1)
    np.testing.assert_allclose(head.common[1], shares)


def test_a_class_that_the_candidate_lost(serving: Bundle, tmp_path: Path) -> None:
    """The data holds it: the candidate has never heard of it, and is stopped for that."""
    candidate = train(data(3000, 2, NAMES[1:]), tmp_path / "b")
    recent = data(2000, 3)
    scored, quality = both(candidate, serving, recent)
    count = recent["y"].to_pylist().count("a")
    told = f"label 'y': {count:,} rows hold 'a' ({count:,}), which the candidate does not know"
    assert quality.reasons[0].startswith(told)
    assert len(scored) == 2000 - count
    # Alone it is stopped as well.
    assert both(candidate, None, recent)[1].reasons[0].startswith(told)


def test_a_class_that_the_serving_model_never_knew(tmp_path: Path) -> None:
    old = train(data(3000, 1, NAMES[:3]), tmp_path / "old")
    candidate = train(data(3000, 2), tmp_path / "new")
    recent = data(2000, 3)
    scored, quality = both(candidate, old, recent)
    count = recent["y"].to_pylist().count("d")
    assert scored.reasons == []
    assert f"label 'y': {count:,} rows hold 'd' ({count:,}), which the model in" in quality.notes[0]
    assert len(scored) == 2000 - count
    known = recent.filter(pa.array([y != "d" for y in recent["y"].to_pylist()]))
    wanted = loss_by_name(old, known, NAMES[:3])
    assert quality.heads[""]["serving"]["log_loss"] == pytest.approx(wanted)


@pytest.mark.parametrize("alone", [True, False])
def test_a_label_that_nobody_knows(serving: Bundle, alone: bool) -> None:
    labels = data(2000, 3)["y"].to_pylist()
    labels[5] = labels[6] = "misspelt"
    recent = data(2000, 3).set_column(2, "y", pa.array(labels))
    scored, _ = both(serving, None if alone else serving, recent)
    assert "2 rows hold 'misspelt' (2), which the candidate does not know" in scored.reasons[0]
    assert len(scored) == 1998
    nobody = recent.set_column(2, "y", pa.array(["?"] * 2000))
    with pytest.raises(DataError, match=r"no row has a label that can be judged.* '\?' \(2,000\)"):
        both(serving, None if alone else serving, nobody)


def binary(path: Path, order: tuple[str, str], names: tuple[str, str] = ("no", "yes")) -> Bundle:
    return train(data(2000, 1, names), path, label_vocabulary=order)


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        (("yes", "no"), ("no", "yes"), r"'yes', 'no' \(in this order\).*'no', 'yes'"),
        (("bad", "good"), ("no", "yes"), r"'bad', 'good' \(in this order\).*'no', 'yes'"),
    ],
)
def test_another_positive_class(
    tmp_path: Path, mine: tuple[str, str], theirs: tuple[str, str], told: str
) -> None:
    """A binary score is the probability of the second class: it would mean something else."""
    names = tuple(sorted(mine))
    candidate = binary(tmp_path / "mine", mine, (names[0], names[1]))
    old = binary(tmp_path / "theirs", theirs)
    with pytest.raises(SchemaError, match=told):
        both(candidate, old, data(500, 3, ("no", "yes")))
    with pytest.raises(SchemaError, match=told):
        measure_quality(candidate, old, data(500, 3, ("no", "yes")), LIMITS)


def test_other_kinds_of_labels(serving: Bundle, tmp_path: Path) -> None:
    two = train(data(2000, 1, ("c", "d")), tmp_path / "two")
    with pytest.raises(SchemaError, match=r"binary of 'c', 'd'.*multiclass of 'a', 'b', 'c', 'd'"):
        both(two, serving, data(500, 3))
    others = train(data(2000, 1, ("e", "f", "g")), tmp_path / "others")
    with pytest.raises(SchemaError, match=r"'e', 'f', 'g' \(in this order\).*'a', 'b', 'c', 'd'"):
        both(others, serving, data(500, 3))
    numbers = data(2000, 1).set_column(2, "y", data(2000, 1)["z"])
    numeric = train(numbers, tmp_path / "numeric", head="binary")
    text = binary(tmp_path / "text", ("no", "yes"))
    with pytest.raises(SchemaError, match=r"label 'y' as numbers.*'no', 'yes'"):
        both(numeric, text, numbers)


def test_heads_in_another_order(tmp_path: Path) -> None:
    table, recent = data(3000, 1), data(2000, 3)
    old = train(table, tmp_path / "old", label={"kind": "y", "sign": "z"})
    new = train(table, tmp_path / "new", label={"sign": "z", "kind": "y"})
    assert [head.name for head in new.model.heads] != [head.name for head in old.model.heads]
    scored, quality = both(new, old, recent)
    assert scored.reasons == []
    scores = old.score(recent.select(["k", "x"]))
    assert isinstance(scores, dict)
    own = [NAMES.index(name) for name in recent["y"].to_pylist()]
    kind = -np.log(scores["kind"][np.arange(2000), own]).mean()
    sign = np.where(recent["z"].to_numpy() == 1, scores["sign"], 1 - scores["sign"])
    assert quality.heads["kind"]["serving"]["log_loss"] == pytest.approx(kind)
    assert quality.heads["sign"]["serving"]["log_loss"] == pytest.approx(-np.log(sign).mean())
    with pytest.raises(SchemaError, match="'sign': 'z'"):
        both(train(table, tmp_path / "one", label={"kind": "y"}), old, recent)


@pytest.mark.parametrize("value", [7, -1, 1.5])
def test_numeric_classes(tmp_path: Path, value: float) -> None:
    """Numbers name themselves: a model of 4 classes against one of 3 is compared on three."""
    from widedeep.models.heads import Multiclass

    def numbered(rows: int, seed: int, most: int) -> pa.Table:
        table = data(rows, seed)
        codes = np.minimum([NAMES.index(name) for name in table["y"].to_pylist()], most)
        return table.set_column(2, "y", pa.array(codes))

    old = train(numbered(2000, 1, 2), tmp_path / "old", head=Multiclass(classes=3))
    new = train(numbered(2000, 2, 3), tmp_path / "new", head=Multiclass(classes=4))
    recent = numbered(1000, 3, 3)
    scored, quality = both(new, old, recent)
    gone = int((recent["y"].to_numpy() == 3).sum())
    assert len(scored) == 1000 - gone
    assert f"{gone} rows hold '3' ({gone}), which the model in service" in quality.notes[0]
    reasons = both(old, new, recent)[0].reasons
    assert f"{gone} rows hold '3' ({gone}), which the candidate does not know" in reasons[0]
    labels = recent["y"].to_numpy().astype(np.float64)
    labels[3] = value
    wrong = recent.set_column(2, "y", pa.array(labels))
    if value == 7:
        assert "'7' (1)" in both(new, None, wrong)[0].reasons[0]
    else:
        with pytest.raises(DataError, match=rf"label 'y': got {value:g}, expected a class"):
            both(new, None, wrong)
