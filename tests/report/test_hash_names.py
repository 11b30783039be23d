"""A bucket is called by the values that a look at every row puts into it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa

import widedeep as wd
from tests.report.models import rows_of
from tests.report.pages import read_page
from widedeep.data.transform import Transform
from widedeep.report.hash_bucket_values import HashBucketValues

ROWS = rows_of(600, 4).append_column(
    "tags", pa.array([[["a"], ["b", None], ["a", "b"], [], None][at % 5] for at in range(600)])
)
SPEC = wd.FeatureSpec(
    label="click",
    features=[
        wd.categorical("shop", hash_buckets=5),
        wd.bucketized("x_bucket", source="x", boundaries=[-0.5, 0.5]),
        wd.crossed("city", "x_bucket", hash_buckets=7),
        wd.crossed("tags", "city", hash_buckets=50),
    ],
)


def name_of(seen: Counter[str], bucket: int) -> str:
    most = min(seen, key=lambda value: (-seen[value], value))
    return most + (f" or {len(seen) - 1} more" if len(seen) > 1 else "") + f", bucket {bucket}"


def test_against_one_row_at_a_time() -> None:
    schema = wd.fit_schema(SPEC, ROWS)
    transform = Transform(schema)
    slots = [slot.name for slot in schema.slots]
    wanted = {name: range(2, 60) for name in ("shop", "city_x_x_bucket", "tags_x_city")}
    names = HashBucketValues(schema, wanted)
    for start in (0, 250):  # the second chunk is cut off another table
        chunk = ROWS.slice(start, 250 if not start else 350)
        names.add(chunk, transform(chunk, targets=True))
    seen: dict[tuple[str, int], Counter[str]] = {}
    for row in ROWS.to_pylist():
        (batch,) = [transform.rows([row])]
        tags = [tag for tag in row["tags"] or [] if tag is not None]
        x = row["x"]
        bucket = (
            None if x is None else "< -0.5" if x < -0.5 else ">= 0.5" if x >= 0.5 else "[-0.5, 0.5)"
        )
        texts = {
            "shop": row["shop"],
            "city_x_x_bucket": f"city={row['city']} & x_bucket={bucket}",
            "tags_x_city": f"tags={tags[0] if tags else None} & city={row['city']}",
        }
        for feature, text in texts.items():
            at = slots.index(feature)
            ids = batch.ids_N[batch.offsets_BF[at] : batch.offsets_BF[at + 1]]
            if len(ids) == 1:
                seen.setdefault((feature, int(ids[0])), Counter())[text] += 1
    assert {feature for feature, _ in seen} == set(wanted)
    for (feature, id_), counts in seen.items():
        assert names.name(feature, id_) == name_of(counts, id_ - 2)
    assert names.name("shop", 59) is None


def test_on_the_page(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label="click",
        features=[*wd.categorical("city", "shop"), wd.crossed("city", "shop", hash_buckets=10_000)],
    )
    data = rows_of(4000)
    model = wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[])
    trainer = wd.Trainer(model, wide=wd.FTRL(lr=0.1, l1=1.0), batch_size=128, progress=False)
    trainer.fit(data, epochs=3)
    bundle = trainer.export(tmp_path / "b")
    named = wd.make_report(bundle, rows_of(2000, 7))
    best = named.wide[0]["crosses"]["positive"][0]
    assert best["value"] == f"city=oslo & shop=shop 3, bucket {best['id'] - 2:,}"
    assert "city=oslo & shop=shop 3, bucket" in read_page(named.to_html()).text
    unnamed = wd.make_report(bundle).wide[0]["crosses"]["positive"][0]
    assert unnamed["value"] == f"<hash bucket {best['id'] - 2}>"
