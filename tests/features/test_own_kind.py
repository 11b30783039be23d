"""A kind of feature from outside is fitted, trained, exported, scored, judged and reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

import widedeep as wd
from widedeep.data.drift import DriftCounts
from widedeep.data.extend_schema import map_ids
from widedeep.data.fit import declared_types
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError
from widedeep.features import (
    Feature,
    Learned,
    NumberInput,
    NumberSummary,
    ValueInput,
    register_kind,
)
from widedeep.features.kind import KINDS
from widedeep.features.spec import feature_side
from widedeep.schema import ColumnType, NumericFit, Schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped(Feature):
    """A number rounded to a multiple of ``step``: buckets."""

    source: str
    step: float
    embedding_dim: int | None = None

    kind: ClassVar[str] = "stepped"
    order: ClassVar[int] = 1

    @property
    def kind_text(self) -> str:
        return f"stepped by {self.step:g}"

    def inputs(self) -> tuple[NumberInput, ...]:
        return (NumberInput(column=self.source),)

    def fit_boundaries(self, summary: NumberSummary, column: ColumnType) -> NDArray[np.float64]:
        low, high = np.round(np.array([summary.minimum, summary.maximum]) / self.step)
        return (np.arange(low, high) + 0.5) * self.step

    def describe(self, schema: Learned, position: int) -> str:
        return f"{schema.boundaries[self.name][0] + (position - 0.5) * self.step:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frequent(Feature):
    """The most frequent values: a vocabulary."""

    source: str
    most: int = 3

    kind: ClassVar[str] = "frequent"

    def inputs(self) -> tuple[ValueInput, ...]:
        return (ValueInput(column=self.source, vocabulary=self.name, max_size=self.most),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Halved(Feature):
    """Half a number: a dense column."""

    source: str

    kind: ClassVar[str] = "halved"
    order: ClassVar[int] = 0
    wide_by_default: ClassVar[bool] = False
    deep_by_default: ClassVar[bool] = True
    dense_width: ClassVar[int] = 1

    def inputs(self) -> tuple[NumberInput, ...]:
        return (NumberInput(column=self.source),)

    def fit_numbers(self, summaries: Sequence[NumberSummary], column: ColumnType) -> NumericFit:
        (summary,) = summaries
        return NumericFit(
            boundaries=(),
            shift=np.zeros(1),
            scale=np.full(1, 0.5),
            fill=np.zeros(1, np.float32),
            minimum=np.array([summary.minimum]),
            maximum=np.array([summary.maximum]),
            mean=np.array([summary.mean]),
        )


@pytest.fixture(scope="module", autouse=True)
def kinds() -> Iterator[None]:
    for kind in (Stepped, Frequent, Halved):
        register_kind(kind)
    yield
    for kind in (Stepped, Frequent, Halved):
        del KINDS[kind.kind]


SPEC = """[data]
label = "clicked"

[features]
categorical = ["color"]
crossed = [["age_step", "color"]]
deep = ["age_half", "age_step", "color"]
item = ["shop_top"]
halved.age_half = { source = "age" }
stepped.age_step = { source = "age", step = 10, embedding_dim = 2 }
frequent.shop_top = { source = "shop", most = 2 }
"""


def rows_of(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    ages, colors = rng.integers(15, 66, n), rng.choice(["red", "blue"], n)
    shops = rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])
    clicked = (rng.random(n) < np.where(ages > 35, 0.8, 0.2)).astype(int)
    return [
        {"age": int(age), "color": str(color), "shop": str(shop), "clicked": int(click)}
        for age, color, shop, click in zip(ages, colors, shops, clicked, strict=True)
    ]


@pytest.fixture(scope="module")
def schema(kinds: None) -> Schema:
    return wd.fit_schema(wd.FeatureSpec.from_toml(SPEC), rows_of(2000))


def test_python_and_toml_declare_the_same(schema: Schema) -> None:
    spec = wd.FeatureSpec(
        label="clicked",
        features=[
            Stepped(name="age_step", source="age", step=10, embedding_dim=2),
            wd.crossed("age_step", "color"),
            wd.categorical("color"),
            Frequent(name="shop_top", source="shop", most=2),
            Halved(name="age_half", source="age"),
        ],
        item=["shop_top"],
        deep=["age_half", "age_step", "color"],
    )
    assert spec == schema.spec
    assert wd.FeatureSpec.from_toml(spec.to_toml()) == spec
    assert [feature_side(spec, name) for name in ("shop_top", "age_step")] == ["item", "query"]
    assert declared_types(spec)["shop"] == "category"


def test_it_is_fitted_saved_and_loaded(schema: Schema, tmp_path: Path) -> None:
    assert schema.boundaries["age_step"].tolist() == [25, 35, 45, 55]
    ages = [schema.describe_id("age_step", id_) for id_ in range(2, 7)]
    assert ages == ["20", "30", "40", "50", "60"]
    assert [schema.describe_id("shop_top", i) for i in (2, 3)] == ["a", "b"]
    assert schema.dense_layout == {"age_half": slice(0, 1)}
    schema.save(tmp_path / "schema.safetensors")
    assert Schema.load(tmp_path / "schema.safetensors") == schema
    assert "stepped by 10" in repr(schema)


def test_rows_become_ids_and_numbers(schema: Schema) -> None:
    batch = Transform(schema).rows(
        [{"age": 33, "color": "red", "shop": "c"}, {"age": None, "color": "red", "shop": "a"}]
    )
    assert [slot.name for slot in schema.slots][:3] == ["age_step", "color", "shop_top"]
    cells = np.split(batch.ids_N, batch.offsets_BF[1:-1])
    assert [cell.tolist() for cell in cells[:1] + cells[2:3] + cells[4:5] + cells[6:7]] == [
        [3],
        [0],
        [1],
        [2],
    ]
    assert batch.dense_BK.tolist() == [[16.5], [0.0]]


def test_a_warm_start_carries_its_ids(schema: Schema) -> None:
    older = [row for row in rows_of(2000) if row["age"] < 45]
    old = wd.fit_schema(schema.spec, older)
    assert map_ids(schema, old, "age_step").old_of_N.tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert map_ids(schema, old, "shop_top").is_identity
    assert map_ids(schema, old, "age_half").is_identity
    other = wd.fit_schema(wd.FeatureSpec.from_toml(SPEC.replace("most = 2", "most = 1")), older)
    assert map_ids(other, old, "shop_top").why == "frequent with other options"


def test_it_is_trained_exported_scored_and_reported(schema: Schema, tmp_path: Path) -> None:
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[8]))
    trainer.fit(rows_of(2000), epochs=5)
    bundle = trainer.export(tmp_path / "bundle")
    test = rows_of(500, seed=1)
    assert trainer.evaluate(test)["auc"] > 0.75
    np.testing.assert_allclose(bundle.score(test), trainer.predict(test), atol=1e-6)
    terms = {term.feature: term.value for term in bundle.explain(test[0]).wide}
    assert terms["age_step"] == f"{10 * round(test[0]['age'] / 10)}"
    report = wd.make_report(bundle, test)
    inputs = {entry["feature"]: entry for entry in report.inputs}
    assert (inputs["age_step"]["kind"], inputs["age_step"]["values"]) == ("stepped by 10", 5)
    assert inputs["shop_top"]["top"][0][0] == "a"
    assert inputs["shop_top"]["psi"] is not None
    assert "stepped by 10" in report.save(tmp_path / "report.html").read_text()


def test_drift_compares_what_the_kind_says(schema: Schema) -> None:
    counts = DriftCounts(schema)
    assert [one.feature for one in counts.features()] == ["age_half", "color", "shop_top"]


def test_an_unregistered_kind_and_a_taken_name_are_refused() -> None:
    with pytest.raises(FeatureError, match=r"got the unknown key 'steps' in \[features\]"):
        wd.FeatureSpec.from_toml("[features]\nsteps.age = { step = 10 }\n")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Other(Feature):
        kind: ClassVar[str] = "numeric"

    with pytest.raises(FeatureError, match=r"Other'?: got kind='numeric', which .* has"):
        register_kind(Other)


def test_an_installed_package_offers_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, "stepped")
    offered = SimpleNamespace(load=lambda: register_kind(Stepped))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [offered])
    assert wd.FeatureSpec.from_toml(SPEC).by_name["age_step"].kind == "stepped"
