"""What a warm start carries means the same; each change is held against every part it touches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import widedeep as wd
from widedeep.models.heads import Multiclass
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.warm_start import TransferredTensor, WarmStart

Rows = list[dict[str, Any]]


def rows_of(count: int = 160, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    made = []
    for at in range(count):
        made.append(
            {
                "age": float(rng.normal()) if at % 7 else None,
                "other_age": float(rng.normal()),
                "job": str(rng.choice(list("abcd"))) if at % 5 else "",
                "other_job": str(rng.choice(list("abcd"))),
                "code": int(rng.integers(0, 5)),
                "tags": [str(tag) for tag in rng.choice(list("tuv"), rng.integers(1, 3))],
                "y": int(rng.random() < 0.5),
            }
        )
        made[-1]["weights"] = [1.0 + at % 3] * len(made[-1]["tags"])
    return made


ROWS = rows_of()
AGE: dict[str, Any] = {"transform": "quantile", "quantiles": 8}


def features(**changes: Mapping[str, Any]) -> list[Any]:
    """One feature of each kind; a change replaces options of one of them."""
    options: dict[str, dict[str, Any]] = {
        "age": {"maker": wd.numeric, **AGE},
        "job": {"maker": wd.categorical},
        "code": {"maker": wd.categorical},
        "hashed": {"maker": wd.categorical, "source": "job", "hash_buckets": 8},
        "identity": {"maker": wd.categorical, "source": "code", "num_buckets": 6},
        "tags": {"maker": wd.categorical},
        "bucket": {"maker": wd.bucketized, "source": "age", "boundaries": [-0.5, 0.5]},
        "learned": {"maker": wd.crossed, "parts": ("job", "bucket")},
        "hash_cross": {"maker": wd.crossed, "parts": ("job", "tags"), "hash_buckets": 16},
    }
    made: list[Any] = []
    for name, values in options.items():
        values = {**values, **changes.get(name, {})}
        maker = values.pop("maker")
        if maker is wd.crossed:
            made.append(maker(*values.pop("parts"), name=name, **values))
        else:
            made.append(maker(name, **values))
    return made


DEEP = ["age", "job", "code", "hashed", "identity", "tags", "bucket", "learned", "hash_cross"]
WIDE = ["age", "job", "code", "hashed", "identity", "tags", "bucket", "learned", "hash_cross"]


def spec_of(**changes: Mapping[str, Any]) -> wd.FeatureSpec:
    # A number in the wide part beside one in the deep part: two names for one column.
    made = features(**changes)
    made.append(wd.numeric("wide_age", **{"source": "age", **AGE, **changes.get("wide_age", {})}))
    wide = [name for name in WIDE if name != "age"] + ["wide_age"]
    return wd.FeatureSpec(label="y", features=made, wide=wide, deep=DEEP)


def trainer_of(
    schema: wd.Schema,
    *,
    folder: Path | None = None,
    dense: Any = None,
    wide: Any = None,
    deep: Any = None,
    train: Mapping[str, Any] | None = None,
    **model: Any,
) -> wd.Trainer:
    options = {"hidden_units": [6, 4], "embedding_dim": 3, **model}
    return wd.Trainer(
        wd.WideDeep(schema, **options), progress=False, batch_size=32, threads=1,
        checkpoints=folder, dense=dense, wide=wide, deep=deep, **(train or {}),
    )  # fmt: skip


def trained(folder: Path, schema: wd.Schema, rows: Any = ROWS, **options: Any) -> Path:
    trainer = trainer_of(schema, folder=folder, seed=1, **options)
    trainer.fit(rows)
    latest = CheckpointDirectory(folder).latest()
    assert latest is not None
    return latest


@pytest.fixture(scope="module")
def schema() -> wd.Schema:
    return wd.fit_schema(spec_of(), ROWS)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, schema: wd.Schema) -> Path:
    return trained(tmp_path_factory.mktemp("old") / "checkpoints", schema)


def started(trainer: wd.Trainer, path: Path) -> tuple[WarmStart, dict[str, TransferredTensor]]:
    found = trainer.warm_start(path)
    return found, {entry.name: entry for entry in found.tensors}


def grown(schema: wd.Schema, rows: Rows = ROWS, **changes: Mapping[str, Any]) -> wd.Schema:
    return wd.fit_schema(spec_of(**changes), rows, grow=schema)


def test_nothing_changed(old: Path, schema: wd.Schema) -> None:
    _, entries = started(trainer_of(grown(schema)), old)
    assert {entry.state for entry in entries.values()} == {"carried"}
    assert {entry.optimizer for entry in entries.values()} == {"carried"}
    assert {entry.reason for entry in entries.values()} == {""}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("age", {"transform": "none"}, "transform 'quantile' became 'none'"),
        ("age", {"transform": "log1p"}, "transform 'quantile' became 'log1p'"),
        ("age", {"missing": 0.0}, "missing 'mean' became 0.0"),
        ("age", {"missing": "indicator"}, "missing 'mean' became 'indicator'"),
        ("age", {"quantiles": 4}, "the quantile transform was learned anew"),
        ("age", {"source": "other_age"}, "read from column 'other_age', before from 'age'"),
    ],
)
def test_a_number_read_otherwise(
    old: Path, schema: wd.Schema, name: str, change: dict[str, Any], why: str
) -> None:
    """Of the first layer its columns start anew, and so does its wide weight."""
    trainer = trainer_of(grown(schema, **{name: change, "wide_age": change}))
    before = trainer.model.state_dict()["towers.mlp.layers.0.weight"].clone()
    _, entries = started(trainer, old)
    first = entries["mlp/0/weight"]
    assert first.state == "remapped"
    assert f"{name} ({why}" in first.reason
    columns = trainer.model.layout.columns[name]
    after = trainer.model.state_dict()["towers.mlp.layers.0.weight"]
    torch.testing.assert_close(after[:, columns], before[:, columns], rtol=0, atol=0)
    others = [at for at in range(after.shape[1]) if not columns.start <= at < columns.stop]
    assert not torch.equal(after[:, others], before[:, others])
    wide = entries["wide/wide_age"]
    assert (wide.state, wide.transferred, wide.optimizer) == ("fresh", 0, "fresh")
    assert why in wide.reason
    assert trainer.model.wide_table is not None
    assert not trainer.model.wide_table.named_weights()["wide_age"].any()


def test_quantiles_learned_anew_are_others(old: Path, schema: wd.Schema) -> None:
    """Without grow= the same declaration reads another day's ranks."""
    apart = wd.fit_schema(spec_of(), rows_of(seed=7))
    _, entries = started(trainer_of(apart), old)
    assert "learned anew (grow= keeps the older one)" in entries["mlp/0/weight"].reason
    assert entries["wide/wide_age"].state == "fresh"
    assert entries["wide/job"].state in ("carried", "remapped")


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("job", {"source": "other_job"}, "read from column 'other_job', before from 'job'"),
        ("hashed", {"source": "other_job"}, "read from column 'other_job', before from 'job'"),
        ("hashed", {"hash_buckets": 9}, "8 hash buckets became 9"),
        ("hashed", {"hash_buckets": None}, "8 hash buckets became None"),
        ("hashed", {"empty_as_null": True}, 'missing: "" counts as null'),
        ("identity", {"num_buckets": None}, "integers are no longer ids"),
        ("bucket", {"source": "other_age"}, "read from column 'other_age', before from 'age'"),
        ("learned", {"parts": ("bucket", "job")}, "crossed from other parts"),
        ("hash_cross", {"parts": ("tags", "job")}, "crossed from other parts"),
        ("hash_cross", {"hash_buckets": 8}, "16 hash buckets became 8"),
        ("hash_cross", {"hash_buckets": None}, "16 hash buckets became None"),
    ],
)
def test_ids_that_mean_something_else(
    old: Path, schema: wd.Schema, name: str, change: dict[str, Any], why: str
) -> None:
    """Wide weights, embeddings and the first layer's columns all start anew, with one reason."""
    trainer = trainer_of(grown(schema, **{name: change}))
    before = copy.deepcopy(trainer.model.state_dict())["towers.mlp.layers.0.weight"]
    _, entries = started(trainer, old)
    for part in ("wide", "table"):
        entry = entries[f"{part}/{name}"]
        assert (entry.state, entry.transferred, entry.optimizer) == ("fresh", 0, "fresh")
        assert why in entry.reason
    assert f"{name} ({why}" in entries["mlp/0/weight"].reason
    columns = trainer.model.layout.columns[name]
    after = trainer.model.state_dict()["towers.mlp.layers.0.weight"]
    torch.testing.assert_close(after[:, columns], before[:, columns], rtol=0, atol=0)
    assert entries["table/code"].state == "carried"


@pytest.mark.parametrize(
    ("part", "change", "crosses"),
    [
        ("job", {"source": "other_job"}, {"learned": 0, "hash_cross": 0}),
        ("job", {"empty_as_null": True}, {"hash_cross": 0}),
        ("job", {"oov": "drop"}, {"hash_cross": 0}),
        ("job", {"vocabulary": ["a", "b", "c", "d"]}, {"hash_cross": 0}),
        ("job", {"oov_buckets": 3}, {"hash_cross": 0}),
        ("bucket", {"source": "other_age"}, {"learned": 0}),
    ],
)
def test_a_part_of_a_cross_changed(
    old: Path, schema: wd.Schema, part: str, change: dict[str, Any], crosses: dict[str, int]
) -> None:
    _, entries = started(trainer_of(grown(schema, **{part: change})), old)
    for name, known in crosses.items():
        for where in ("wide", "table"):
            entry = entries[f"{where}/{name}"]
            # Id 1 of a cross has no row; of what was learned none is left but that.
            assert entry.transferred <= known + 1, (name, entry)
            assert f"its part {part!r}" in entry.reason


@pytest.mark.parametrize(
    ("change", "gone", "why"),
    [
        ({"oov": "drop"}, [0], "unseen: 'id' became 'drop'"),
        ({"oov_buckets": 2}, [0, 2, 3], "unseen: 'id' became 2 buckets"),
        ({"empty_as_null": True}, [1], 'missing: ""'),
    ],
)
def test_ids_of_unseen_and_missing(
    old: Path, schema: wd.Schema, change: dict[str, Any], gone: list[int], why: str
) -> None:
    """Known values keep their rows; the reserved ones that mean something else do not."""
    trainer = trainer_of(grown(schema, job=change))
    table = trainer.model.wide_table
    assert table is not None
    trained_table = trainer_of(schema)
    trained_table.load_checkpoint(old)
    assert trained_table.model.wide_table is not None
    theirs = trained_table.model.wide_table.named_weights()["job"]
    _, entries = started(trainer, old)
    assert why in entries["wide/job"].reason and why in entries["table/job"].reason
    mine = table.named_weights()["job"]
    assert not mine[gone].any()
    shift = 2 + change.get("oov_buckets", 0)
    for value in "abcd":
        names = [trainer.model.schema, schema]
        at = [
            next(i for i in range(s.id_count("job")) if s.describe_id("job", i) == value)
            for s in names
        ]
        assert at[0] >= shift
        assert torch.equal(mine[at[0]], theirs[at[1]]), value


def test_buckets_keep_those_of_the_same_ends(old: Path, schema: wd.Schema) -> None:
    _, entries = started(trainer_of(grown(schema, bucket={"boundaries": [-0.5, 0.0, 0.5]})), old)
    for part in ("wide", "table"):
        assert (entries[f"{part}/bucket"].transferred, entries[f"{part}/bucket"].total) == (4, 6)


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"combiner": "sum"}, "combiner 'mean' became 'sum'"),
        ({"combiner": "sqrtn"}, "combiner 'mean' became 'sqrtn'"),
        ({"weights": "weights"}, "weights None became 'weights'"),
        ({"oov": "drop"}, "unseen values of a list: 'id' became 'drop'"),
    ],
)
def test_lists_that_add_up_otherwise(
    old: Path, schema: wd.Schema, tmp_path: Path, source: str, change: dict[str, Any], why: str
) -> None:
    path = old
    if source == "bundle":
        whole = trainer_of(schema)
        whole.load_checkpoint(old)
        path = tmp_path / "bundle"
        whole.export(path)
    _, entries = started(trainer_of(grown(schema, tags=change)), path)
    assert (entries["table/tags"].state, entries["table/tags"].reason) == ("fresh", why)
    assert f"tags ({why})" in entries["mlp/0/weight"].reason
    # The wide part sums ids whatever the embeddings' combiner is; weights and drops it feels.
    assert entries["wide/tags"].state == ("carried" if "combiner" in change else "fresh")
    # Of one value a row every combiner gives that value.
    _, entries = started(trainer_of(grown(schema, job={"combiner": "sum"})), path)
    assert entries["table/job"].state == "carried"


def test_the_wide_combiner(old: Path, schema: wd.Schema) -> None:
    _, entries = started(trainer_of(grown(schema), wide_combiner="mean"), old)
    for name in ("tags", "hash_cross", "wide_age"):
        assert entries[f"wide/{name}"].reason == "combiner 'sum' became 'mean'"
    for name in ("job", "code", "bucket", "learned"):
        assert entries[f"wide/{name}"].state == "carried"


def test_text_that_became_numbers(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label="y", features=[*wd.categorical("c"), wd.categorical("h", source="c", hash_buckets=4)]
    )
    text = [{"c": str(i % 4), "y": i % 2} for i in range(40)]
    numbers = [{"c": i % 4, "y": i % 2} for i in range(40)]
    path = trained(tmp_path / "old", wd.fit_schema(spec, text), text)
    _, entries = started(trainer_of(wd.fit_schema(spec, numbers)), path)
    for name in ("c", "h"):
        for part in ("wide", "table"):
            assert entries[f"{part}/{name}"].transferred == 0
            assert "held string and holds int" in entries[f"{part}/{name}"].reason


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"activation": "tanh"}, "activation 'relu' became 'tanh'"),
        ({"batch_norm": True}, "batch_norm False became True"),
    ],
)
def test_layers_that_compute_something_else(
    old: Path, schema: wd.Schema, option: dict[str, Any], why: str
) -> None:
    _, entries = started(trainer_of(grown(schema), **option), old)
    layers = [e for n, e in entries.items() if n.startswith(("mlp/", "head/", "tower/"))]
    assert len(layers) >= 5
    assert {(entry.state, entry.reason) for entry in layers} == {("fresh", why)}
    assert entries["wide/job"].state == entries["table/job"].state == "carried"


def test_statistics_of_batch_norm(tmp_path: Path, schema: wd.Schema) -> None:
    """They come with the layers before them, and start anew with them."""
    path = trained(tmp_path / "old", schema, batch_norm=True)
    trainer = trainer_of(grown(schema), batch_norm=True)
    _, entries = started(trainer, path)
    norms = [name for name in entries if "norms" in name]
    assert len(norms) == 10
    assert {entries[name].state for name in norms} == {"carried"}
    assert trainer.model.state_dict()["towers.mlp.norms.0.running_mean"].any()
    _, entries = started(trainer_of(grown(schema), batch_norm=True, hidden_units=[6, 5]), path)
    states = {name: entry.state for name, entry in entries.items()}
    assert states["tower/towers.mlp.norms.0.running_mean"] == "carried"
    assert states["tower/towers.mlp.norms.1.running_mean"] == states["mlp/1/weight"] == "fresh"
    path = trained(tmp_path / "plain", schema)
    _, entries = started(trainer_of(grown(schema), batch_norm=True), path)
    assert entries["mlp/0/weight"].reason == "batch_norm False became True"


class Own(nn.Module):
    """A tower that reads all columns by their places."""

    def __init__(self, layout: Any) -> None:
        super().__init__()
        self.first = nn.Linear(layout.width, 3)

    def forward(self, inputs: Any) -> torch.Tensor:
        return torch.relu(self.first(inputs.concat_BX))


def test_a_tower_of_ones_own(tmp_path: Path, schema: wd.Schema) -> None:
    """Its columns have no names: it comes over whole, or not at all."""
    options: dict[str, Any] = {"hidden_units": [], "towers": {"own": Own}}
    path = trained(tmp_path / "old", schema, **options)
    names = ["tower/towers.own.first.weight", "tower/towers.own.first.bias"]
    names.append("tower/outputs.own.weight")
    _, entries = started(trainer_of(grown(schema), **options), path)
    assert {entries[name].state for name in names} == {"carried"}
    for change, why in (
        ({"age": {"transform": "none"}}, "its input 'age' starts anew: transform"),
        ({"tags": {"combiner": "sum"}}, "its input 'tags' starts anew: combiner"),
        ({"hashed": {"hash_buckets": 9}}, "its input 'hashed' starts anew: 8 hash"),
        ({"age": {"missing": "indicator"}}, "the columns of its input are others"),
    ):
        _, entries = started(trainer_of(grown(schema, **change), **options), path)
        for name in names:
            assert entries[name].state == "fresh"
            assert why in entries[name].reason
    # The same columns in another order are of the same shape, and read other features.
    order = list(reversed(features()))
    made = [*order, wd.numeric("wide_age", source="age", **AGE)]
    turned = wd.FeatureSpec(label="y", features=made, wide=["job"], deep=DEEP)
    _, entries = started(trainer_of(wd.fit_schema(turned, ROWS, grow=schema), **options), path)
    assert {entries[name].state for name in names} == {"fresh"}


def classed(classes: Sequence[str]) -> Rows:
    return [{**row, "y": classes[at % len(classes)]} for at, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("abc", "acb"),
        ("abc", "abx"),
        ("abc", "abcd"),
        ("abcd", "abc"),
        ("ab", "ba"),
        ("ab", "abc"),
    ],
)
def test_other_classes(tmp_path: Path, before: str, after: str) -> None:
    def made(classes: str) -> wd.Schema:
        spec = wd.FeatureSpec(
            label="y", features=[*wd.categorical("job"), wd.numeric("age", transform="none")],
            label_vocabulary=list(classes),
        )  # fmt: skip
        return wd.fit_schema(spec, classed(classes))

    path = trained(tmp_path / "old", made(before), classed(before))
    _, entries = started(trainer_of(made(after)), path)
    for name in ("wide/job", "head/weight", "bias"):
        assert entries[name].state == "fresh"
        assert f"of {', '.join(map(repr, before))} became" in entries[name].reason
        assert f"of {', '.join(map(repr, after))}" in entries[name].reason
    assert entries["table/job"].state == entries["mlp/1/weight"].state == "carried"


def test_numbered_classes_and_other_labels(tmp_path: Path) -> None:
    """Three numbered classes against four; a head behind another one keeps no place either."""
    rows = [{**row, "y": at % 3, "z": at % 2} for at, row in enumerate(ROWS)]
    spec = wd.FeatureSpec(label="y", features=wd.categorical("job"))
    fitted = wd.fit_schema(spec, rows)
    path = trained(tmp_path / "three", fitted, rows, head=Multiclass(classes=3))
    _, entries = started(trainer_of(fitted, head=Multiclass(classes=4)), path)
    assert entries["wide/job"].state == entries["bias"].state == "fresh"
    assert "of 3 classes became multiclass 'y' of 4 classes" in entries["bias"].reason
    _, entries = started(trainer_of(fitted, head=Multiclass(classes=3)), path)
    assert entries["wide/job"].state == entries["bias"].state == "carried"
    other = wd.fit_schema(wd.FeatureSpec(label="z", features=wd.categorical("job")), rows)
    binary = trained(tmp_path / "z", other, rows)
    again = [{**row, "clicked": row["z"]} for row in rows]
    renamed = wd.fit_schema(wd.FeatureSpec(label="clicked", features=wd.categorical("job")), again)
    _, entries = started(trainer_of(renamed), binary)
    assert "binary 'z' became binary 'clicked'" in entries["wide/job"].reason
    assert entries["table/job"].state == "carried"


@pytest.mark.parametrize(
    ("now", "then", "optimizer"),
    [
        ({"wide": wd.FTRL(lr=0.05)}, {}, {"wide/job": "rebuilt", "mlp/0/weight": "carried"}),
        ({"wide": wd.Adagrad()}, {}, {"wide/job": "fresh"}),
        ({"deep": wd.Adagrad(lr=0.05)}, {"deep": wd.Adagrad()}, {"table/job": "carried"}),
        ({"deep": wd.Adagrad(l2=0.1)}, {}, {"table/job": "carried", "mlp/0/weight": "carried"}),
        ({"deep": wd.Adam()}, {}, {"table/job": "fresh", "mlp/0/weight": "fresh"}),
        ({"deep": wd.FTRL()}, {}, {"table/job": "rebuilt", "mlp/0/weight": "rebuilt"}),
        ({"dense": wd.FTRL(lr=0.3)}, {"dense": wd.FTRL(lr=0.1)}, {"mlp/0/weight": "rebuilt"}),
        (
            {"deep": wd.Adam(betas=(0.5, 0.9))},
            {"deep": wd.Adam()},
            {"table/job": "fresh", "mlp/0/weight": "fresh"},
        ),
        ({"deep": wd.Adam(lr=0.1)}, {"deep": wd.Adam()}, {"table/job": "carried"}),
        (
            {"train": {"grad_scale": 0.5}},
            {},
            {"wide/job": "rebuilt", "table/job": "fresh", "mlp/0/weight": "carried"},
        ),
        (
            {"train": {"loss_reduction": "sum"}},
            {},
            {"table/job": "carried", "mlp/0/weight": "fresh"},
        ),
    ],
)
def test_states_of_optimizers(
    tmp_path: Path,
    schema: wd.Schema,
    now: dict[str, Any],
    then: dict[str, Any],
    optimizer: dict[str, str],
) -> None:
    path = trained(tmp_path / "old", schema, **then)
    trainer = trainer_of(grown(schema), **now)
    _, entries = started(trainer, path)
    for name, state in optimizer.items():
        assert (entries[name].state, entries[name].optimizer) == ("carried", state)
        if state == "fresh":
            assert "optimizer: " in entries[name].reason
    # What was carried stays when the first step moves it: no state forgets the weights.
    before = trainer.predict(ROWS)
    trainer.fit(ROWS[:32], steps=1)
    assert np.abs(trainer.predict(ROWS) - before).max() < 0.25


@pytest.mark.parametrize("name", ["SGD", "momentum", "AdamW", "Adam", "RMSprop"])
@pytest.mark.parametrize("deeper", [False, True])
def test_torch_optimizers(tmp_path: Path, schema: wd.Schema, name: str, deeper: bool) -> None:
    """Their state has shapes of its own, a scalar count of steps among it: it starts anew."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        if name == "momentum":
            return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)
        return getattr(torch.optim, name)(parameters, lr=1e-2)  # type: ignore[no-any-return]

    path = trained(tmp_path / "old", schema, dense=make)
    changed = grown(schema, age={"missing": "indicator"}) if deeper else grown(schema)
    trainer = trainer_of(changed, dense=make)
    _, entries = started(trainer, path)
    assert entries["mlp/1/weight"].state == "carried"
    assert entries["mlp/1/weight"].optimizer == "fresh"
    assert "the state of a torch optimizer starts anew" in entries["mlp/1/weight"].reason
    trainer.fit(ROWS)


def test_adam_without_its_moments_begins_at_its_first_step(
    tmp_path: Path, schema: wd.Schema
) -> None:
    """Its correction of the first steps goes by their number: it is not that of another's state."""
    path = trained(tmp_path / "old", schema)
    trainer = trainer_of(grown(schema), dense=wd.Adam())
    started(trainer, path)
    assert trainer.position.updates == 0
    path = trained(tmp_path / "adam", schema, dense=wd.Adam())
    trainer = trainer_of(grown(schema), dense=wd.Adam())
    started(trainer, path)
    assert trainer.position.updates == 5


def test_columns_computed_otherwise(tmp_path: Path, schema: wd.Schema) -> None:
    """A count of 7 days is no count of 14, whatever its column is called."""
    import dataclasses

    def with_days(days: int) -> wd.Schema:
        history = {"age": {"kind": "count", "days": days}, "tags": {"kind": "last", "n": days}}
        return dataclasses.replace(schema, history=history)

    path = trained(tmp_path / "old", with_days(7))
    _, entries = started(trainer_of(with_days(7)), path)
    assert entries["table/tags"].state == "carried"
    _, entries = started(trainer_of(with_days(14)), path)
    for name in ("wide/tags", "table/tags", "wide/hash_cross", "wide/wide_age", "wide/bucket"):
        assert entries[name].state == "fresh"
        assert "is computed from other events than it was" in entries[name].reason
    assert "age (column 'age' is computed" in entries["mlp/0/weight"].reason
    assert entries["wide/code"].state == "carried"


def test_a_layer_whose_table_is_not_asked_for(old: Path, schema: wd.Schema) -> None:
    trainer = trainer_of(grown(schema))
    found = trainer.warm_start(old, transfer=["mlp/*", "table/job"])
    entries = {entry.name: entry for entry in found.tensors}
    assert "code (not asked for)" in entries["mlp/0/weight"].reason
    assert entries["mlp/0/weight"].transferred == 3 + 1  # job's columns, and age itself
    assert entries["mlp/1/weight"].state == "carried"
