"""The ids of a carried-over estimator are those of TensorFlow's columns."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from tests.importing.test_estimator_steps import carry_over, fitting, rows_of
from tests.oracles.models import MODEL_NAMES
from widedeep.data.transform import Transform
from widedeep.importing import ImportedModel
from widedeep.importing.columns import IdColumn

INDICATED = {"age_bucketized", "genre", "slot", "pair_bucketized"}  # counts, not ids
FIRST_ID = 2  # 0 and 1 stand for unseen and missing values


def unseen_buckets(imported: ImportedModel) -> dict[str, int]:
    """The buckets of unseen values of each of our features: before the vocabulary here."""
    wide = [(feature, entry.column) for feature, entry in imported.source.wide]
    ids = [(f, getattr(c, "column", None)) for f, c in [*wide, *imported.source.inputs]]
    return {f: c.buckets for f, c in ids if isinstance(c, IdColumn) and c.kind == "vocabulary"}


def own_ids(rows: list[list[int]], id_count: int, buckets: int) -> list[list[int]]:
    """TensorFlow's ids as ours: dropped ones left out, buckets of unseen values in front."""
    known = id_count - FIRST_ID - buckets
    moved = {i: FIRST_ID + (i + buckets if i < known else i - known) for i in range(id_count)}
    return [[moved[i] for i in row if i >= 0] for row in rows]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_ids_equal_tensorflows(name: str, tmp_path: Path) -> None:
    answers, imported = carry_over(name, tmp_path)
    schema = imported.trainer.model.schema
    rows = fitting(rows_of(answers, answers["rows"]), imported)
    batch = Transform(schema)(pa.Table.from_pylist(rows), targets=False)
    buckets, columns = unseen_buckets(imported), dict(answers["rows"]["ids"])
    for k, slot in enumerate(schema.slots):
        source = getattr(schema.spec.by_name[slot.name], "source", slot.name)
        for column in {slot.name, source} & columns.keys():
            cells = batch.cells(k)
            ids = [cells.ids_N[a:b].tolist() for a, b in itertools.pairwise(cells.offsets)]
            count = schema.id_count(slot.name)
            expected = own_ids(columns.pop(column), count, buckets.get(slot.name, 0))
            assert [[i for i in row if i >= FIRST_ID] for row in ids] == expected, column
    assert columns.keys() <= {"age_bucketized", "genre", "slot"}, (
        "sources of indicators have no ids"
    )
