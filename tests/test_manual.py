"""The manual tells every verb, option and key, and its defaults are the code's."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

from tests.command_line import VERBS, Run
from widedeep.config import DataConfig, ModelConfig, TrainConfig, config_from_tables
from widedeep.features.spec import DATA_KEYS
from widedeep.join import History, ImpressionLog, JoinConfig, Label, Negatives, Split
from widedeep.join.config import join_config_from_tables

MANUAL = Path(__file__).resolve().parent.parent / "docs" / "command_line.md"


def test_the_manual_tells_every_verb_and_option(run: Run) -> None:
    text = MANUAL.read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in text.split("\n### ")[1:]}
    assert list(sections) == VERBS
    for verb in VERBS:
        options = set(re.findall(r"--[a-z]+", run(verb, "--help").out.split("example:")[0]))
        for option in options - {"--json", "--help", "--set"}:
            assert option in sections[verb], (verb, option)
    assert "--json" in text
    assert "--set" in text


def test_the_manual_tells_every_key() -> None:
    block = MANUAL.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    tables = tomllib.loads(block)
    config = config_from_tables(tables)
    commented = re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE)
    told = {section: set(keys) for section, keys in tomllib.loads(commented).items()}
    assert told["model"] == {field.name for field in dataclasses.fields(ModelConfig)}
    assert told["train"] == {field.name for field in dataclasses.fields(TrainConfig)}
    places = {field.name for field in dataclasses.fields(DataConfig)} - {"valid_fraction"}
    assert told["data"] == places | set(DATA_KEYS)
    for key in ("numeric", "categorical", "crossed", "bucketized", "indicator", "options"):
        assert key in told["features"]
    # What it calls a default is one.
    for name in ("activation", "dropout", "batch_norm", "wide_combiner", "embedding_std", "seed"):
        assert getattr(config.model, name) == getattr(ModelConfig(), name)
    for name in ("batch_size", "shuffle", "grad_scale", "loss_reduction", "schedule", "pool_rows"):
        assert getattr(config.train, name) == getattr(TrainConfig(), name)


def test_the_page_on_joins_tells_every_key() -> None:
    text = (MANUAL.parent / "join.md").read_text(encoding="utf-8")
    block = text.split("```toml\n")[1].split("```")[0]
    commented = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE))
    join_config_from_tables(tomllib.loads(block))
    kinds = {
        "impressions": ImpressionLog,
        "split": Split,
        "negatives": Negatives,
        "labels": Label,
        "history": History,
    }
    for section, kind in kinds.items():
        table = commented[section]
        told = set(table[0] if isinstance(table, list) else table)
        assert told == {field.name for field in dataclasses.fields(kind)}, section
    nested = {field.name for field in dataclasses.fields(JoinConfig)} - set(commented["join"])
    assert nested == {"item_attributes", *(set(commented) - {"join"})}
    config = join_config_from_tables({k: v for k, v in commented.items() if k != "negatives"})
    for name in ("touch", "open_windows", "duplicates", "null_keys", "seed", "engine"):
        assert getattr(config, name) == getattr(JoinConfig, name)
