"""A stream whose model grows: values admitted after so many occurrences, evicted when unused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from widedeep.errors import ConfigError, DataError
from widedeep.training.grow import grow


def shard(words: str, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one word each, in turn; a vowel is clicked."""
    rng = np.random.default_rng(seed)
    return [
        {"word": w, "kind": "xy"[rng.integers(2)], "n": float(i), "y": int(w in "aeiou")}
        for i, w in enumerate(words * 8)
    ]


SPEC = wd.FeatureSpec(
    label="y",
    features=[
        wd.numeric("n")[0],
        wd.categorical("word", embedding_dim=4, min_count=12),
        wd.categorical("kind", embedding_dim=4),
        wd.crossed("word", "kind"),
    ],
)
SHARDS = [
    ("0", shard("abcd" * 2, 0)),
    ("1", shard("abcde", 1)),  # e: 8 times
    ("2", shard("abcf" + "e", 2)),  # e: 16 times
    ("3", shard("abce", 3)),  # d was not seen for three shards
    ("4", shard("abce", 4)),
    ("5", shard("abde" * 2, 5)),
]


def make_trainer(checkpoints: Path | None = None, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(wd.fit_schema(SPEC, SHARDS[0][1]), hidden_units=[6])
    return wd.Trainer(
        model, batch_size=16, progress=False, checkpoints=checkpoints, threads=1, **options
    )


def words(trainer: wd.Trainer) -> list[str]:
    schema = trainer.model.schema
    return [schema.describe_id("word", i) for i in range(2, schema.id_count("word"))]


def tensors(trainer: wd.Trainer) -> dict[str, np.ndarray[Any, Any]]:
    return {k: np.array(v) for k, v in trainer.state.checkpoint().tensors.items()}


def row_of(trainer: wd.Trainer, word: str) -> np.ndarray[Any, Any]:
    state = trainer.model.embedding_table("word").named_state()
    number = 2 + words(trainer).index(word)
    return np.concatenate([state[f"word.{s}"][number].numpy() for s in ("weight", "accumulator")])


def test_values_are_admitted_after_min_count_and_evicted_when_unused(tmp_path: Path) -> None:
    trainer, known = make_trainer(), []
    trainer.fit_stream(
        SHARDS, grow=True, evict_after=2, on_shard=lambda row: known.append(words(trainer))
    )
    assert known[0] == list("abcd")
    assert known[1] == list("abcd")  # e came 8 times, f never
    assert known[2] == list("abcde")  # and 8 times more
    assert known[3] == list("abcde")
    assert known[4] == list("abce")  # d was not in the two shards before
    assert known[5] == list("abced")  # 16 times in one shard: admitted anew
    assert trainer.model.wide_table is not None
    assert trainer.model.wide_table.sizes["word_x_kind"] == trainer.model.schema.id_count(
        "word_x_kind"
    )
    scores = np.asarray(trainer.predict([{"word": w, "kind": "x", "n": 1.0} for w in "eb"]))
    assert scores[0] > 0.5 > scores[1]
    bundle = trainer.export(tmp_path / "bundle")
    np.testing.assert_allclose(bundle.score(SHARDS[5][1]), trainer.predict(SHARDS[5][1]), atol=1e-6)


def test_rows_move_with_their_values_and_state() -> None:
    trainer = make_trainer()
    trainer.fit_stream(SHARDS[:4], grow=True, evict_after=2)
    before = {word: row_of(trainer, word) for word in "abce"}
    logits = trainer.logits(SHARDS[3][1])
    nonzero = trainer.model.wide_table.nonzero if trainer.model.wide_table else 0
    grow(trainer.state, trainer.evaluator, SHARDS[4][1], 2)
    assert words(trainer) == list("abce")
    for word, row in before.items():
        np.testing.assert_array_equal(row_of(trainer, word), row)
    np.testing.assert_array_equal(trainer.logits(SHARDS[3][1]), logits)
    assert trainer.model.wide_table is not None
    assert trainer.model.wide_table.nonzero <= nonzero  # those of d are gone


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_resumed_it_is_what_it_would_have_been(tmp_path: Path, stop_after: int) -> None:
    whole = make_trainer()
    whole.fit_stream(SHARDS, grow=True, evict_after=2)
    first = make_trainer(tmp_path)
    first.fit_stream(itertools.islice(SHARDS, stop_after), grow=True, evict_after=2)
    resumed = make_trainer(tmp_path)
    resumed.fit_stream(SHARDS, resume=True, grow=True, evict_after=2)
    assert words(resumed) == words(whole) and resumed.model.schema == whole.model.schema
    expected, actual = tensors(whole), tensors(resumed)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, name)


def test_without_new_values_it_is_a_stream_as_before() -> None:
    grown, plain = make_trainer(), make_trainer()
    shards = [(name, shard("abcd" * 2, 7)) for name in "01"]
    grown.fit_stream(shards, grow=True)
    plain.fit_stream(shards)
    expected = tensors(plain)
    for name, value in tensors(grown).items():
        np.testing.assert_array_equal(value, expected[name], name)


def test_bad_options_and_values() -> None:
    trainer = make_trainer()
    with pytest.raises(ConfigError, match="evict_after=2 without grow=True"):
        trainer.fit_stream(SHARDS, evict_after=2)
    with pytest.raises(ConfigError, match="evict_after=0, expected an integer of at least 1"):
        trainer.fit_stream(SHARDS, grow=True, evict_after=0)
    bad = [{**row, "word": i} for i, row in enumerate(SHARDS[1][1])]
    before = trainer.model.schema
    with pytest.raises(DataError, match="'word': got integers, and the model knows text"):
        trainer.fit_stream([("bad", bad)], grow=True)
    assert trainer.model.schema is before
    empty = [{**row, "word": None, "kind": None} for row in SHARDS[1][1]]
    trainer.fit_stream([("empty", empty)], grow=True)
    assert words(trainer) == list("abcd")
