"""A warm start moves parameters by what they stand for, with their optimizers' state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import widedeep as wd
from widedeep.errors import BundleError, CheckpointError, ConfigError, SchemaError
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.warm_start import WarmStart

Rows = list[dict[str, Any]]


def make_rows(jobs: str, count: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        job, town = rng.choice(list(jobs)), rng.choice(list("xyz"))
        age = float(rng.normal())
        made.append(
            {
                "age": age,
                "job": str(job),
                "towns": [str(town)],
                "y": int(rng.random() < (0.8 if (job == "a") == (town == "x") else 0.2)),
            }
        )
    return made


OLD = make_rows("abcd", 400, 0)
NEW = make_rows("dcbae", 400, 1)
# Of values that both know; "e" is new, and the order of the vocabularies differs.
SHARED = make_rows("abcd", 50, 2)


def make_spec(*, deep_dim: int = 4, more: Sequence[Any] = ()) -> wd.FeatureSpec:
    return wd.FeatureSpec(
        label="y",
        features=[
            wd.numeric("age", transform="none"),
            wd.categorical("job", "towns", embedding_dim=deep_dim),
            wd.crossed("job", "towns"),
            *more,
        ],
    )


def make_trainer(
    schema: wd.Schema,
    *,
    hidden: Sequence[int] = (8, 4),
    wide: Any = None,
    checkpoints: Path | None = None,
    **options: Any,
) -> wd.Trainer:
    model = wd.WideDeep(schema, hidden_units=hidden, embedding_dim=4, **options)
    return wd.Trainer(
        model, wide=wide, batch_size=32, progress=False, checkpoints=checkpoints, threads=1
    )


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[wd.Trainer, Path, Path]:
    """A trained model, its last checkpoint, and its bundle."""
    folder = tmp_path_factory.mktemp("old")
    trainer = make_trainer(wd.fit_schema(make_spec(), OLD), checkpoints=folder / "checkpoints")
    trainer.fit(OLD, epochs=3)
    trainer.export(folder / "bundle")
    latest = CheckpointDirectory(folder / "checkpoints").latest()
    assert latest is not None
    return trainer, latest, folder / "bundle"


def state_of(found: WarmStart) -> dict[str, tuple[str, int, str]]:
    return {
        entry.name: (entry.state, entry.transferred, entry.optimizer) for entry in found.tensors
    }


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
def test_shared_values_score_as_they_did(old: tuple[wd.Trainer, Path, Path], source: str) -> None:
    trainer, checkpoint, bundle = old
    schema = wd.fit_schema(make_spec(), NEW)
    assert schema.describe_id("job", 2) != trainer.model.schema.describe_id("job", 2)
    started = make_trainer(schema, seed=9)
    found = started.warm_start(checkpoint if source == "checkpoint" else bundle)
    np.testing.assert_array_equal(started.predict(SHARED), trainer.predict(SHARED))
    table = "carried" if source == "checkpoint" else "rebuilt"
    deep = "carried" if source == "checkpoint" else "fresh"
    states = state_of(found)
    assert states["wide/job"] == ("remapped", 6, table)  # two reserved ids and abcd, not e
    assert states["table/job"] == ("remapped", 6, deep)
    assert states["mlp/0/weight"] == ("carried", 9, deep)
    assert states["bias"][0] == "carried"
    assert not found.unused
    assert "wide/job" in repr(found)


def test_the_next_steps_are_the_old_models(old: tuple[wd.Trainer, Path, Path]) -> None:
    """With the same features, state and all move: going on warm is going on."""
    trainer, checkpoint, _ = old
    started = make_trainer(trainer.model.schema, seed=9)
    found = started.warm_start(checkpoint)
    assert {entry.state for entry in found.tensors} == {"carried"}
    on = make_trainer(trainer.model.schema)
    on.load_checkpoint(checkpoint)
    for one in (started, on):
        one.fit(NEW)
    for (name, mine), theirs in zip(
        started.model.state_dict().items(), on.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=name)
    np.testing.assert_array_equal(started.predict(SHARED), on.predict(SHARED))


def test_without_its_z_ftrl_forgets(old: tuple[wd.Trainer, Path, Path]) -> None:
    """FTRL's weight is a function of z and n: with z = 0 one step erases what was learned."""
    trainer, _, bundle = old
    rows = [{**row, "y": trainer.predict([row])[0]} for row in SHARED[:20]]
    after, touched = {}, None
    for kept in (False, True):
        started = make_trainer(trainer.model.schema, wide=wd.FTRL(lr=0.01, l1=0.3))
        started.warm_start(bundle)
        table = started.model.wide_table
        assert table is not None
        if not kept:
            table.state["z"].zero_()
        before = table.weight.clone()
        started.fit(rows, steps=1)
        touched = (table.weight != before) & (before != 0) if touched is None else touched
        after[kept] = (table.weight[touched].norm() / before[touched].norm()).item()
    assert after[True] > 0.95
    assert after[False] < 0.05


def test_another_rate_rebuilds_z(old: tuple[wd.Trainer, Path, Path]) -> None:
    trainer, checkpoint, _ = old
    ftrl = wd.FTRL(lr=0.05, l1=0.1)
    started = make_trainer(trainer.model.schema, wide=ftrl)
    states = state_of(started.warm_start(checkpoint))
    assert states["wide/job"] == ("carried", 6, "rebuilt")
    table = started.model.wide_table
    assert table is not None and trainer.model.wide_table is not None
    torch.testing.assert_close(table.state["n"], trainer.model.wide_table.state["n"])
    # Each feature's learned rate came over too, and z stands for it.
    rates = started.step.feature_rates
    assert rates is not None
    for feature, state in table.named_weights().items():
        factor = float(rates.factors[list(table.sizes).index(feature)])
        parts = table.named_state()
        z = ftrl.z_from_weights(state, parts[f"{feature}.n"], factor=factor)
        torch.testing.assert_close(parts[f"{feature}.z"], z)


def test_features_come_and_go(old: tuple[wd.Trainer, Path, Path]) -> None:
    _, checkpoint, _ = old
    rows = [{**row, "day": "mo"} for row in NEW]
    spec = wd.FeatureSpec(
        label="y",
        features=[
            *wd.categorical("day", "job", embedding_dim=4),
            wd.numeric("age", transform="none"),
        ],
    )
    started = make_trainer(wd.fit_schema(spec, rows))
    found = started.warm_start(checkpoint)
    states = state_of(found)
    assert states["wide/day"] == ("fresh", 0, "fresh")
    assert states["table/job"][0] == "remapped"
    # Of the first layer's inputs those of job (4) and age came, at other columns.
    assert states["mlp/0/weight"] == ("remapped", 5, "carried")
    assert states["mlp/1/weight"][0] == "carried"
    assert set(found.unused) == {"wide/towns", "wide/job_x_towns", "table/towns"}


def test_layers_that_fit(old: tuple[wd.Trainer, Path, Path]) -> None:
    trainer, checkpoint, _ = old
    deeper = make_trainer(trainer.model.schema, hidden=(8, 4, 3))
    states = state_of(deeper.warm_start(checkpoint))
    assert states["mlp/1/weight"][0] == "carried"
    assert states["mlp/2/weight"][0] == "fresh"
    assert states["head/weight"][0] == "fresh"
    wider = make_trainer(trainer.model.schema, hidden=(16, 4))
    found = wider.warm_start(checkpoint)
    why = {entry.name: entry.reason for entry in found.tensors}
    assert why["mlp/0/weight"] == "8 units became 16"
    assert why["mlp/1/weight"] == "mlp/0/weight before it is fresh"
    assert state_of(found)["table/job"][0] == "carried"


@pytest.mark.parametrize("dim", [3, 6])
def test_another_width(old: tuple[wd.Trainer, Path, Path], dim: int) -> None:
    trainer, checkpoint, _ = old
    schema = wd.fit_schema(make_spec(deep_dim=dim), OLD)
    fresh = make_trainer(schema)
    assert state_of(fresh.warm_start(checkpoint))["table/job"] == ("fresh", 0, "fresh")
    wanted = trainer.predict(SHARED)
    projected = make_trainer(schema)
    projected.warm_start(checkpoint, widths="project")
    far = np.abs(make_trainer(schema).predict(SHARED) - wanted).mean()
    near = np.abs(projected.predict(SHARED) - wanted).mean()
    # Wider tables hold all that was there; narrower ones lose their weakest direction.
    assert near < (0.01 if dim == 6 else 0.5 * far)


def test_only_what_is_asked_for(old: tuple[wd.Trainer, Path, Path]) -> None:
    trainer, checkpoint, _ = old
    started = make_trainer(trainer.model.schema)
    before = started.model.bias.detach().clone()
    states = state_of(started.warm_start(checkpoint, transfer=["table/*"]))
    assert {name for name, (state, *_) in states.items() if state == "carried"} == {
        "table/job",
        "table/towns",
    }
    assert started.model.wide_table is not None and started.model.wide_table.nonzero == 0
    torch.testing.assert_close(started.model.bias, before)


def test_other_heads_share_embeddings_alone(old: tuple[wd.Trainer, Path, Path]) -> None:
    _, checkpoint, _ = old
    rows = [{**row, "y": "abc"[i % 3]} for i, row in enumerate(NEW)]
    started = make_trainer(wd.fit_schema(make_spec(), rows))
    states = state_of(started.warm_start(checkpoint))
    assert states["wide/job"][0] == states["head/weight"][0] == states["bias"][0] == "fresh"
    assert states["table/job"][0] == "remapped"
    assert states["mlp/1/weight"][0] == "carried"


def test_mistakes(old: tuple[wd.Trainer, Path, Path], tmp_path: Path) -> None:
    trainer, checkpoint, _ = old
    other = wd.fit_schema(
        wd.FeatureSpec(label="y", features=wd.categorical("colour")),
        [{"colour": "red", "y": 1}, {"colour": "blue", "y": 0}],
    )
    with pytest.raises(SchemaError, match=r"'job'.*none.*'colour'.*train without"):
        make_trainer(other).warm_start(checkpoint)
    with pytest.raises(CheckpointError, match="got no checkpoint"):
        make_trainer(other).warm_start(tmp_path)
    with pytest.raises(ConfigError, match="widths='wide'"):
        make_trainer(other).warm_start(checkpoint, widths="wide")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a list"):
        make_trainer(other).warm_start(checkpoint, transfer="wide/*")
    busy = make_trainer(trainer.model.schema)
    busy.fit(OLD)
    with pytest.raises(ConfigError, match="has done 13 steps"):
        busy.warm_start(checkpoint)


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
def test_a_flipped_byte(old: tuple[wd.Trainer, Path, Path], tmp_path: Path, source: str) -> None:
    import shutil

    trainer, checkpoint, bundle = old
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint if source == "checkpoint" else bundle, copy)
    file = max(copy.glob("*.safetensors"), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises((CheckpointError, BundleError), match=file.name):
        make_trainer(trainer.model.schema).warm_start(copy)
