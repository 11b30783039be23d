"""Whatever value a user writes for whatever key: it works, or one line names the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from widedeep.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    load_config,
    load_follow_config,
    load_tune_config,
)
from widedeep.errors import ConfigError, WideDeepError
from widedeep.features import Bucketized, Categorical, Crossed, Numeric
from widedeep.gate.config import GateConfig, load_gate_config
from widedeep.join import (
    ActionLog,
    Attributes,
    History,
    ImpressionLog,
    JoinConfig,
    Label,
    Negatives,
    Split,
    load_join_config,
)
from widedeep.optim import FTRL, SGD, Adagrad, Adam, make_optimizer
from widedeep.serving.config import Settings
from widedeep.simulate import StoreConfig
from widedeep.training.config import FollowConfig, TuneConfig
from widedeep.training.early_stopping import EarlyStopping

NASTY: list[Any] = [
    *(0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**70), 10**400),
    *(0.5, -0.5, 1e39, 1e308, float("nan"), float("inf"), -float("inf")),
    *(True, False, "", "x", "auto", "1", "\ud83d", "a\nb", b"x", None),
    *([], [1], [1.5, -2], ["x"], ["x", "x"], [None], [[1]], [2**62], [float("nan")]),
    *({}, {"x": 1}, {1: 2}, {"x": {"y": []}}, (1, 2, 3), (0.2, 0.9), {3, 4}),
    *(np.float32(2), np.int64(-3), np.array([1, 2]), Path("p"), object()),
]

RUN = """
[data]
train = "train.parquet"
label = "y"
[features]
numeric = ["a"]
categorical = ["b", "c"]
bucketized.d = { source = "a", boundaries = [1, 2] }
crossed = [["b", "c"], { parts = ["b", "d"], hash_buckets = 10 }]
[model]
[train]
[gate]
[follow]
"""
JOIN = """
join.output = "out"
impressions = { path = "shown.parquet" }
actions = { path = "taken.parquet", kind = "kind", value = "price" }
user_attributes = { path = "users.parquet", key = "user_id" }
item_attributes = { path = "items.parquet", key = "item_id" }
[split]
[negatives]
"""
NEEDED: dict[type, dict[str, Any]] = {
    ImpressionLog: {"path": "a"},
    ActionLog: {"path": "a"},
    Attributes: {"path": "a", "key": "id"},
    History: {"name": "h", "feature": "count"},
    JoinConfig: {
        "output": "o",
        "actions": ActionLog(path="a"),
        "impressions": ImpressionLog(path="i"),
    },
    Numeric: {"name": "n", "source": "n"},
    Categorical: {"name": "n", "source": "n"},
    Bucketized: {"name": "n", "source": "n", "boundaries": (1.0,)},
    Crossed: {"name": "n", "parts": ("a", "b")},
}
CLASSES: list[type] = [
    *(DataConfig, ModelConfig, TrainConfig, GateConfig, FollowConfig, TuneConfig),
    *(StoreConfig, Settings),
    *(ImpressionLog, ActionLog, Attributes, Label, History, Split, Negatives, JoinConfig),
    *(Numeric, Categorical, Bucketized, Crossed, FTRL, Adagrad, SGD, Adam),
]


def names(kind: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(kind)]


FIELDS = [(kind, name) for kind in CLASSES for name in names(kind)]


@pytest.mark.parametrize(
    ("kind", "name"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name in FIELDS]
)
def test_a_constructor_takes_or_refuses_every_value(kind: type, name: str) -> None:
    for value in NASTY:
        try:
            kind(**{**NEEDED.get(kind, {}), name: value})
        except WideDeepError as error:
            assert "got" in str(error) or "expected" in str(error), value


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(value)
    return repr(value).replace("'", '"') if not isinstance(value, int) else hex_or_plain(value)


def hex_or_plain(value: int) -> str:
    return str(value) if abs(value) < 10**400 else (f"0x{value:x}" if value > 0 else "0")


WRITTEN = [
    *("0", "-1", "2147483648", "9223372036854775808", "1" + "0" * 400, "9" * 5000),
    *("0x" + "f" * 6000, "0.5", "-0.5", "1e39", "1e400", "nan", "inf", "-inf", "true", "false"),
    *('""', '"x"', "x", "", "[]", "[1]", "[1.5, -2]", '["x"]', '["x", "x"]', "[[1]]", "[true]"),
    *("[4611686018427387904]", "{}", "{ x = 1 }", '{ "a.b" = [{}] }', "2024-01-01", "12:00:00"),
    *("[" * 2000 + "]" * 2000, "\ud83d", "a\nb = 1", "3 # a remark", "]", '"', "\x00"),
]


def run_keys() -> Iterator[tuple[str, Callable[..., Any]]]:
    yield from section_keys()
    for key in feature_keys():
        yield key, load_config
    for part, optimizer in (("wide", FTRL), ("deep", Adagrad), ("dense", Adam)):
        for name in ("optimizer", *names(optimizer)):
            yield f"train.{part}.{name}", load_config


def section_keys() -> Iterator[tuple[str, Callable[..., Any]]]:
    sections: list[tuple[str, type, Callable[..., Any]]] = [
        ("data", DataConfig, load_config),
        ("model", ModelConfig, load_config),
        ("train", TrainConfig, load_config),
        ("gate", GateConfig, lambda path, sets: load_gate_config(path, sets)),
        ("follow", FollowConfig, load_follow_config),
        ("tune", TuneConfig, load_tune_config),
    ]
    for section, kind, load in sections:
        for name in names(kind):
            yield f"{section}.{name}", load
    for key in ("label", "weight", "group", "label_vocabulary", "null_values"):
        yield f"data.{key}", load_config


def feature_keys() -> Iterator[str]:
    for kind, feature in ((Numeric, "a"), (Categorical, "b")):
        for name in names(kind):
            yield f"features.options.{feature}.{name}"
    for name in names(Bucketized):
        yield f"features.bucketized.d.{name}"
    for key in ("numeric", "categorical", "crossed", "wide", "deep", "item", "extra", "options"):
        yield f"features.{key}"
    for key in ("training_only", "bucketized", "training_only.a", "training_only.b"):
        yield f"features.{key}"


@pytest.mark.parametrize(("key", "load"), [*run_keys()], ids=[key for key, _ in run_keys()])
def test_a_run_s_key_takes_or_refuses_every_text(
    tmp_path: Path, key: str, load: Callable[..., Any]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    for text in WRITTEN:
        try:
            config = load(path, [f"{key}={text}"])
            for part in ("wide", "deep", "dense") if isinstance(config, RunConfig) else ():
                make_optimizer(getattr(config.train, part) or {"optimizer": "sgd"})
        except WideDeepError as error:
            assert str(path) in str(error) or "got" in str(error), text


def join_keys() -> Iterator[str]:
    for section, kind in (
        ("join", JoinConfig),
        ("impressions", ImpressionLog),
        ("actions", ActionLog),
        ("user_attributes", Attributes),
        ("split", Split),
        ("negatives", Negatives),
    ):
        for name in names(kind):
            yield f"{section}.{name}"


@pytest.mark.parametrize("key", [*join_keys()])
def test_a_join_s_key_takes_or_refuses_every_text(tmp_path: Path, key: str) -> None:
    path = tmp_path / "join.toml"
    path.write_text(JOIN)
    for text in WRITTEN:
        try:
            load_join_config(path, [f"{key}={text}"])
        except WideDeepError as error:
            assert str(path) in str(error) or "got" in str(error), text


@pytest.mark.parametrize("load", [load_config, load_join_config, load_gate_config])
def test_a_section_that_is_no_table_is_refused(tmp_path: Path, load: Any) -> None:
    sections = ("data", "features", "model", "train", "gate", "follow", "join", "impressions")
    for section in (*sections, "actions", "split", "negatives", "labels", "history"):
        for text in ("5", '"x"', "[]", "[1]", "[{}]", '["x"]', "true", "[[]]", "{ x = 1 }"):
            path = tmp_path / "run.toml"
            path.write_text(f"{section} = {text}\n")
            try:
                load(path)
            except WideDeepError as error:
                assert str(error)


@pytest.mark.parametrize("option", ["monitor", "patience", "min_delta"])
def test_early_stopping_takes_or_refuses_every_value(option: str) -> None:
    for value in NASTY:
        try:
            EarlyStopping(**{option: value})
        except WideDeepError as error:
            assert option in str(error)


SPEC_OPTIONS = [field.name for field in dataclasses.fields(wd.FeatureSpec)]


@pytest.mark.parametrize("option", SPEC_OPTIONS)
def test_a_spec_takes_or_refuses_every_value(option: str) -> None:
    for value in NASTY:
        try:
            wd.FeatureSpec(**{"features": wd.categorical("x", "b"), option: value})
        except WideDeepError as error:
            assert option in str(error) or "feature" in str(error)


def test_the_line_names_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    for override, said in {
        "train.seed=99999999999999999999": "got seed = 99999999999999999999 (int), expected an "
        "integer of 64 bits",
        "model.seed=-1": "got seed=-1, expected an integer, 0 <= seed < 2**63",
        "train.threads=5000": "got threads=5000, expected an integer of at least 1, at most 1,024",
        "train.clip_norm=nan": "got clip_norm = nan (float), expected a number that is finite",
        "train.clip_norm=inf": "got clip_norm = inf (float), expected a number that is finite",
        "model.hidden_units=[4611686018427387904]": "expected widths: an integer of at least 1, at "
        "most 2,147,483,647 each",
        "model.dropout=true": "got dropout = True (bool), expected a number",
        "data.valid_fraction=1": "got valid_fraction=1, expected 0 <= share < 1",
        "data.train=[]": "got train=[], expected a path, a glob or a list of paths",
        "data.weight=y": "got weight='y', which is the label",
        "data.group=y": "got group='y', which is the label",
        "features.item=y": "got item='y', expected a list: item=['y']",
        "features.item=['y']": "got 'y' in item, which is no feature's name",
        "features.numeric=['y']": "its column 'y' is the label",
        "features.options.b.min_count=0": "got min_count=0, expected an integer of at least 1",
        "features.options.b.hash_buckets=4611686018427387904": "at most 281,474,976,710,656",
        "features.training_only.a=[1]": "got [1] for 'a' in training_only",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_config(path, [override])
        assert said in str(caught.value), override


def test_a_model_beyond_the_memory_is_refused_before_it_is_made() -> None:
    rows = [{"a": i, "b": "pq"[i % 2], "y": i % 2} for i in range(8)]
    spec = wd.FeatureSpec(label="y", features=[wd.numeric("a"), wd.categorical("b")])
    schema = wd.fit_schema(spec, rows)
    with pytest.raises(ConfigError, match=r"would take .* GiB, most of it for hidden layers"):
        wd.WideDeep(schema, hidden_units=[2**30, 2**30])
    with pytest.raises(ConfigError, match=r"most of it for embeddings"):
        wd.WideDeep(schema, embedding_dim=2**31 - 1, hidden_units=[1])
    hashed = wd.FeatureSpec(label="y", features=wd.categorical("b", hash_buckets=2**45), deep=[])
    with pytest.raises(ConfigError, match=r"most of it for wide weights"):
        wd.WideDeep(wd.fit_schema(hashed, rows))


@pytest.mark.parametrize(
    ("part", "override", "table"),
    [
        ("wide", "train.wide.lr=0.05", {"optimizer": "ftrl", "lr": 0.05}),
        ("deep", "train.deep.lr=0.02", {"optimizer": "adagrad", "lr": 0.02}),
        ("dense", "train.dense.lr=0.02", {"optimizer": "adagrad", "lr": 0.02}),
        ("wide", "train.wide={ l1 = 2.0 }", {"optimizer": "ftrl", "l1": 2.0}),
        ("wide", "train.wide.optimizer=sgd", {"optimizer": "sgd"}),
        ("wide", 'train."wide"."lr" = 0.05', {"optimizer": "ftrl", "lr": 0.05}),
    ],
)
def test_a_rate_alone_keeps_the_part_s_optimizer(
    tmp_path: Path, part: str, override: str, table: dict[str, Any]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    assert getattr(load_config(path, [override]).train, part) == table


def test_names_in_quotes_hold_dots_and_signs(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[data]\nlabel = "y"\n[features]\ncategorical = ["a.b", "c=d", "é", "q\\"r", "p q"]\n'
    )
    sets = [
        'features.options."a.b".min_count=2',
        "features.options.'c=d'.min_count=3",
        "features.options.é.min_count=4",
        'features.options."q\\"r" . min_count = 5',
        'features.options."p q"={ min_count = 6 }',
    ]
    spec = load_config(path, sets).spec
    counts = {f.name: f.min_count for f in spec.all_features if isinstance(f, Categorical)}
    assert counts == {"a.b": 2, "c=d": 3, "é": 4, 'q"r': 5, "p q": 6}


@pytest.mark.parametrize(
    "override",
    ["", "=", "train", "train.epochs", ".epochs=3", "train.=3", 'train."epochs=3', "a..b=1"],
)
def test_an_override_that_is_no_assignment(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    with pytest.raises(ConfigError, match=r"SECTION\.KEY=VALUE"):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xef\xbb\xbf" + RUN.encode(), None),
        (RUN.replace("\n", "\r\n").encode(), None),
        (RUN.encode("utf-16"), "(line 1): got text in UTF-16; save the file as UTF-8"),
        (RUN.replace("train.p", "tr\u00e4in.p").encode("latin-1"), "(line 3): got byte 0xe4"),
        (b"", "got no [features] section"),
        (b"\x00\x01", "got text that is no TOML"),
        (b"[data]\nlabel = 'y'\nlabel = 'z'\n", "got text that is no TOML: Cannot overwrite"),
        (b"[data]\nlabel = " + b"[" * 5000, "nested too deeply"),
        (b"[train]\nseed = " + b"9" * 5000, "got text that is no TOML"),
        (None, "is a folder, expected a TOML file"),
    ],
)
def test_files_as_editors_leave_them(tmp_path: Path, data: bytes | None, said: str | None) -> None:
    path = tmp_path / "run.toml"
    path.mkdir() if data is None else path.write_bytes(data)
    if said is None:
        assert load_config(path).spec.labels == {"": "y"}
        return
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
