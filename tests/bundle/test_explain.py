"""Explanations add up, and name things as a person does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundle import models
from widedeep.bundle import Bundle, BundleHead, write_bundle

ROW = {"age": 30.0, "user": "Ἀριάδνη", "app": "maps", "tags": ["x", "unknown"], "seen": []}
SCHEMA = models.schema()


def bundle_of(path: Path, heads: tuple[BundleHead, ...], **changes: Any) -> Bundle:
    model = models.model(SCHEMA, heads=heads)
    return write_bundle(
        path / "b",
        schema=SCHEMA,
        weights=models.random_weights(SCHEMA, model) | changes,
        model=model,
        metrics={},
        warmup_rows=[],
        config={},
    )


@pytest.mark.parametrize("heads", [models.BINARY, models.MULTICLASS, models.THREE_HEADS])
def test_terms_add_up_to_the_logits(tmp_path: Path, heads: tuple[BundleHead, ...]) -> None:
    bundle = bundle_of(tmp_path, heads)
    found = bundle.explain(ROW)
    wide = np.sum([term.weights for term in found.wide], axis=0)
    np.testing.assert_allclose(wide + found.deep + found.bias, found.logits, atol=1e-5)
    batch = bundle._encode_rows([ROW])
    assert found.logits == tuple(bundle.logits(batch)[0].tolist())


def test_terms_have_names(tmp_path: Path) -> None:
    found = bundle_of(tmp_path, models.BINARY).explain(ROW)
    assert [(term.feature, term.value) for term in found.wide] == [
        ("age_bucket", "[20, 40)"),
        ("użytkownik 👤", "Ἀριάδνη"),
        ("tags", "x"),
        ("tags", "<unseen>"),
        ("app", "maps"),
        ("user/app", "<unseen>"),
    ]


def test_text_lists_the_heaviest_terms_first(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.BINARY)
    text = str(bundle.explain(ROW))
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    names = [name for name, _ in lines]
    assert names[-4:] == ["deep part", "bias", "logit", "probability"]
    weights = [abs(float(weight)) for _, weight in lines[:-4]]
    assert len(weights) == 6 and weights == sorted(weights, reverse=True)
    assert float(lines[-1][1]) == pytest.approx(float(bundle.score(ROW)[0]), abs=1e-4)


def test_text_has_a_block_for_each_head_and_class(tmp_path: Path) -> None:
    text = str(bundle_of(tmp_path, models.THREE_HEADS).explain(ROW))
    titles = [block.splitlines()[0] for block in text.split("\n\n")]
    classes = [f"head kind, class {number}" for number in range(3)]
    assert titles == ["head click", *classes, "head price"]
    assert text.splitlines()[-1].startswith("value ")
