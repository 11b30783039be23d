"""Texts that a person would take for one value, or for numbers or dates."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.data.profile import profile_columns
from widedeep.data.spelling import looks_like, spelt_alike
from widedeep.errors import FeatureError


@pytest.mark.parametrize(
    ("texts", "one", "other"),
    [
        (["Paris", "Rome", "paris"], "'Paris'", "'paris'"),
        (["a", "a "], "'a'", "'a '"),
        (["Z\u00fcrich", "Zu\u0308rich"], r"'Z\xfcrich'", r"'Zu\u0308rich'"),
        (["a b", "a\u00a0b"], "'a b'", r"'a\xa0b'"),
    ],
)
def test_texts_that_look_alike(texts: list[str], one: str, other: str) -> None:
    alike = spelt_alike(texts)
    assert alike is not None
    assert (alike.one, alike.other, alike.n_alike) == (one, other, 1)
    (profile,) = profile_columns(pa.table({"city": [*texts, *texts]}))
    assert "city: 1 value differs from another" in profile.spelling_note


@pytest.mark.parametrize("texts", [["007", "7"], ["1.0", "1"], ["a", "b"], [], ["\u0131", "i"]])
def test_texts_that_do_not(texts: list[str]) -> None:
    assert spelt_alike(texts) is None


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["1,000", "22"], "numbers"),
        (["1.234,5", "3,5"], "numbers"),
        (["5 %", "12%"], "numbers"),
        (["$4.00", "\u20ac5"], "numbers"),
        (["1 000", "2\u00a0000 000"], "numbers"),
        (["02134", "2134"], ""),
        (["1.10", "2.3"], ""),
        (["1,000", "many"], ""),
        (["12/31/2024", "1/1/24"], "dates"),
        (["31.12.2024"], "dates"),
        (["2024/12/31"], "dates"),
        (["10-20", "20-30"], ""),
        ([], ""),
    ],
)
def test_what_texts_look_like(texts: list[str], what: str) -> None:
    assert looks_like(texts) == what


@pytest.mark.parametrize(
    "labels", [["True", "true"], ["yes", "Yes"], ["0", "0.0", "1", "1.0"], ["a", "a "]]
)
def test_classes_that_look_alike_are_refused(tmp_path: Path, labels: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,y\n" + "".join(f"{i},{labels[i % len(labels)]}\n" for i in range(20)))
    spec = wd.FeatureSpec(label="y", features=wd.numeric("n"))
    with pytest.raises(FeatureError, match=r"label 'y': got the classes .* write them alike"):
        wd.fit_schema(spec, path)
    given = spec.replace(label_vocabulary=sorted(labels))
    assert wd.fit_schema(given, path).classes[""] == tuple(sorted(labels))
