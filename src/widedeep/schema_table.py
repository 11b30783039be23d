"""The table a person reads when a schema is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from widedeep.features import Bucketized, Categorical, Crossed, Feature, Numeric

if TYPE_CHECKING:
    from widedeep.schema import Schema

_HEADINGS = ("feature", "kind", "size", "missing", "placement")


def schema_table(schema: Schema) -> str:
    """Return a schema as text: a row a feature with kind, size, share of nulls, placement."""
    rows = [_row(schema, feature) for feature in schema.spec.all_features]
    widths = [max(len(row[i]) for row in [_HEADINGS, *rows]) for i in range(len(_HEADINGS))]
    quantiles = (
        "exact"
        if schema.quantile_rows >= schema.rows
        else f"exact on a sample of {schema.quantile_rows:,} rows"
    )
    head = (
        f"Schema of {len(rows)} features, fitted on {schema.rows:,} rows "
        f"(quantiles {quantiles}), fingerprint {schema.fingerprint[:12]}"
    )
    lines = [head, *(_line(row, widths) for row in [_HEADINGS, *rows])]
    lines += [f"label: {_label(schema)}"]
    if schema.history:
        lines.append(f"history, computed by the join: {', '.join(schema.history)}")
    lines += [f"note: {note}" for note in schema.notes]
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.rjust(width) if heading in ("size", "missing") else cell.ljust(width)
        for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _row(schema: Schema, feature: Feature) -> tuple[str, ...]:
    size = feature.width if isinstance(feature, Numeric) else schema.id_count(feature.name)
    missing = (
        "" if isinstance(feature, Crossed) else f"{schema.missing.get(feature.source, 0.0):.1%}"
    )
    return (
        feature.name,
        kind_text(feature),
        f"{size:,}",
        missing,
        place_text(schema, feature),
    )


def place_text(schema: Schema, feature: Feature) -> str:
    """Return which parts of the model a feature goes to, as text."""
    places = [
        place
        for place, names in (
            ("wide", schema.spec.wide_names),
            ("deep", schema.spec.deep_names),
            ("item", schema.spec.item),
            ("extra", schema.spec.extra),
            ("training only", tuple(schema.spec.training_only)),
        )
        if feature.name in names
    ]
    return " + ".join(places) or "part of crosses"


def kind_text(feature: Feature) -> str:
    """Return what kind of feature it is, as text."""
    if isinstance(feature, Numeric):
        return f"numeric, {feature.transform}"
    if isinstance(feature, Bucketized):
        if feature.boundaries is not None:
            return "bucketized"
        return "bucketized, " + ("quantiles" if feature.bins is None else "bins")
    if isinstance(feature, Crossed):
        return "crossed, hashed" if feature.hash_buckets else "crossed"
    if isinstance(feature, Categorical) and feature.hash_buckets:
        return "categorical, hashed"
    if isinstance(feature, Categorical) and feature.num_buckets:
        return "categorical, identity"
    return "categorical"


def _label(schema: Schema) -> str:
    parts = []
    for head, column in schema.spec.labels.items():
        if head in schema.classes:
            parts.append(f"{column} ({len(schema.classes[head])} classes)")
        elif head in schema.label_means:
            parts.append(f"{column} (mean {schema.label_means[head]:.4g})")
        else:
            parts.append(column)
    return ", ".join(parts) or "none"
