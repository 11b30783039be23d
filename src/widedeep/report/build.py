"""make_report: quality, contents, inputs, sizes and history of a model, on one page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from widedeep._version import __version__
from widedeep.bundle import Bundle
from widedeep.bundle.plain_json import plain
from widedeep.data.sources import Data
from widedeep.errors import BundleError, DataError, FeatureError, SchemaError
from widedeep.evaluation.compare import check_comparable
from widedeep.evaluation.importance import IMPORTANCE_ROWS, permutation_importance
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.files import write_text_whole
from widedeep.gate.config import GateConfig
from widedeep.gate.verdict import Verdict, bundle_identity, verdict_path
from widedeep.metrics import registered
from widedeep.page import page_frame
from widedeep.publish.lineage import PublishedVersion, read_lineage
from widedeep.report.hash_bucket_values import HashBucketValues
from widedeep.report.inputs import input_statistics
from widedeep.report.inspection import (
    WideWeight,
    layer_sizes,
    logit_name,
    table_sizes,
    top_wide_weights,
    wide_zeros,
)
from widedeep.report.neighbours import embedded_features, nearest_values
from widedeep.report.page import report_page
from widedeep.report.quality import exported_metrics, measure_quality

__all__ = ["Report", "RunRecord", "make_report", "previous_version"]

_MAX_CLASSES = 4
_MAX_EMBEDDINGS = 2
_NO_ROWS = (
    "No labelled rows were given: the metrics are those that were kept at export, and there is "
    "nothing on calibration, slices, or how the inputs have moved."
)
_NO_COMPARISON = " Nor is there a comparison: what two models kept is of different rows."


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run tells of how a model was trained.

    Args:
        history: A row of figures for each epoch or evaluation.
        kept_step: The step whose parameters the model has; None: those of the last.
        warm_start: What was taken over from an older model, as ``WarmStart.to_json`` tells it.
        attributions: By head and feature, how much it moves the logits:
            ``Trainer.attributions``.
    """

    history: Sequence[Mapping[str, Any]] = ()
    kept_step: int | None = None
    warm_start: Mapping[str, Any] | None = None
    attributions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Quality, weights, inputs and lineage of a model. Made by :func:`make_report`.

    Args:
        name: Name of the model.
        created: When the report was made, as ISO 8601 in UTC.
        bundle: ``path``, ``sha256``, ``schema``, ``created_by``, ``bytes``.
        against: The same of the model that it is compared with; None without.
        data: ``rows``, ``unit`` and ``inputs`` of the rows it was judged on; None without.
        heads: By head: ``kind``, ``metrics`` by model, ``changes``, ``curve``, ``gain`` and
            ``classes``.
        importances: By head, how much worse it is when a column is shuffled; empty without data.
        slices: One entry a slice of the data and head.
        policy: By head, what the models' rankings would earn, where the data has propensities; see
            :func:`widedeep.evaluation.off_policy.estimate_policies`.
        run: How it was trained; empty if it is not known.
        verdict: Verdict of the gate on this very bundle; None without one.
        wide: By logit: the largest and smallest weights of crosses and of other features.
        neighbours: By feature: frequent values and those nearest to them.
        inputs: One entry a feature.
        tables: Size of each table of weights.
        zeros: By wide feature, how many weights of known values are zero, and of how many.
        layers: Name, shape and size of each layer.
        files: Bytes by file of the bundle.
        lineage: The published versions, oldest first; empty without a folder of versions.
        config: The run's configuration.
        notes: What a person should know of the report.
        fit_notes: What the schema's fit has to tell.
        widedeep: The version that wrote the report.
    """

    name: str
    created: str
    bundle: Mapping[str, Any]
    against: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    heads: Mapping[str, Mapping[str, Any]]
    importances: Mapping[str, Mapping[str, Any]]
    slices: Sequence[Mapping[str, Any]]
    policy: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    wide: Sequence[Mapping[str, Any]]
    neighbours: Mapping[str, Sequence[Mapping[str, Any]]]
    inputs: Sequence[Mapping[str, Any]]
    tables: Sequence[Mapping[str, Any]]
    zeros: Sequence[tuple[str, int, int]]
    layers: Sequence[Mapping[str, Any]]
    files: Mapping[str, int]
    lineage: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    notes: Sequence[str] = ()
    fit_notes: Sequence[str] = ()
    widedeep: str = field(default=__version__)

    def __repr__(self) -> str:
        """Return the measured quality, the parts' sizes and the notes, one line each."""
        lines = [f"Report of {self.name} ({self.bundle['bytes'] / 1e6:.1f} MB)"]
        for head, entry in self.heads.items():
            for model, metrics in entry["metrics"].items():
                values = ", ".join(
                    f"{metric.name} {metrics[metric.name]:.4f}"
                    for metric in registered(entry["kind"])
                    if metric.headline is not None and metric.name in metrics
                )
                lines.append(f"{head or entry['kind']}, {model}: {values or 'no metrics'}")
        rows = "no data" if self.data is None else f"{self.data['rows']:,} rows"
        lines.append(f"judged on {rows}; {len(self.inputs)} features, {len(self.slices)} slices")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, "save(path) writes the page"])

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; NaN becomes None."""
        value = plain(asdict(self), "report")
        assert isinstance(value, dict)
        return value

    def to_html(self) -> str:
        """Return the report as one page that needs nothing else: no script, no network."""
        return report_page(self.to_json())

    def _repr_html_(self) -> str:
        return page_frame(self.to_html())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; a name that ends in ``.json`` gets the figures instead.

        Args:
            path: The file.

        Returns:
            The file.

        Raises:
            OSError: If it cannot be written.
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        else:
            text = self.to_html()
        write_text_whole(file, text)
        return file


def make_report(
    bundle: Bundle | str | os.PathLike[str],
    data: Data | None = None,
    *,
    against: Bundle | str | os.PathLike[str] | None = None,
    history: Iterable[Mapping[str, Any]] | RunRecord = (),
    models: str | os.PathLike[str] | None = None,
    config: GateConfig | None = None,
    name: str | None = None,
    top: int = 12,
    importance_rows: int = IMPORTANCE_ROWS,
    threads: int = 1,
) -> Report:
    """Report on a model: quality, what it learned, its inputs, its sizes, where it comes from.

    Args:
        bundle: The model, or its bundle's folder.
        data: Labelled rows that it was not trained on; None: what the bundle says of itself.
        against: An older model to compare with; None: where ``models`` is given the version that
            this one followed, or that is in service.
        history: ``trainer.history``, or all that a run recorded.
        models: The folder of published versions, or its URL.
        config: Names the slices, and the unit that is resampled for intervals.
        name: Name of the model; None: name of its folder.
        top: Weights of each sign, at least 1.
        importance_rows: Rows of the data on which columns are shuffled, see
            :func:`widedeep.evaluation.importance.permutation_importance`; 0 leaves that out.
        threads: Threads to score with; the report does not depend on it.

    Raises:
        BundleError: If a model does not load.
        DataError: If the data has no rows or lacks a column.
        SchemaError: If the models predict different labels.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education"))
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.fit("train.parquet", valid="valid.parquet")
        >>> bundle = trainer.export("bundle")
        >>> report = make_report(bundle, "test.parquet", history=trainer.history)
        >>> report.heads[""]["metrics"]["model"]["rows"]
        4000.0
        >>> report.save("report.html").name
        'report.html'
    """
    model = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    identity = bundle_identity(model.path)
    versions = [] if models is None else read_lineage(models)
    notes: list[str] = []
    if data is None:
        notes.append(_NO_ROWS + ("" if against is None else _NO_COMPARISON))
    elif against is None and models is not None:
        against = _comparable(model, previous_version(models, versions, identity), notes)
    other = None
    if data is not None and against is not None:
        other = against if isinstance(against, Bundle) else Bundle.load(against)
    wide = _wide(model, top)
    bucket_values = HashBucketValues(model.schema, _hashed(model, wide))
    measured = None
    if data is not None:
        measured = measure_quality(
            model, other, data, config or GateConfig(), threads=threads, bucket_values=bucket_values
        )
        notes += measured.notes
    run = history if isinstance(history, RunRecord) else RunRecord(history=list(history))
    return Report(
        name=name or _name_of(model.path),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=_described(model),
        against=None if other is None else _described(other),
        data=None if measured is None else measured.data,
        heads=_exported(model) if measured is None else measured.heads,
        importances=_importances(model, data, importance_rows, threads, notes),
        slices=() if measured is None else measured.slices,
        policy={} if measured is None else measured.policy,
        run=asdict(run),
        verdict=_verdict(model, identity, versions, notes),
        wide=[_named(entry, bucket_values) for entry in wide],
        neighbours={
            feature: [asdict(one) for one in nearest_values(model, feature)]
            for feature in embedded_features(model)[:_MAX_EMBEDDINGS]
        },
        inputs=input_statistics(model.schema, measured.drift if measured else None),
        tables=[asdict(size) for size in table_sizes(model)],
        zeros=wide_zeros(model),
        layers=[
            {"name": layer, "shape": shape, "numbers": size}
            for layer, shape, size in layer_sizes(model)
        ],
        files={file: entry.size for file, entry in model.manifest.files.items()},
        lineage=[_version(one, identity) for one in versions],
        config=model.config,
        notes=notes,
        fit_notes=model.schema.notes,
    )


def _importances(
    model: Bundle, data: Data | None, rows: int, threads: int, notes: list[str]
) -> dict[str, dict[str, Any]]:
    """Return what each column is worth to each head; {} where that is not measured."""
    if data is None or not rows:
        return {}
    try:
        by_head = permutation_importance(model, data, rows=rows, threads=threads)
    except (DataError, FeatureError) as error:
        notes.append(f"What each column is worth was not measured: {error}")
        return {}
    return {head: asdict(importance) for head, importance in by_head.items()}


def previous_version(
    models: str | os.PathLike[str], versions: Sequence[PublishedVersion], identity: str
) -> Path | None:
    """Return the version that a model followed, or, if it is not published, that serves."""
    if "://" in os.fspath(models):
        return None
    own = next((one for one in versions if one.record and one.record.bundle == identity), None)
    if own is not None and own.record is not None:
        number = own.record.parent
    else:
        number = next((one.version for one in versions if one.serves), None)
    previous = next((one for one in versions if one.version == number and one.exists), None)
    return None if previous is None else Path(models) / previous.version


def _comparable(bundle: Bundle, previous: Path | None, notes: list[str]) -> Bundle | None:
    """Load the previous version if both predict the same labels; else add a note."""
    if previous is None:
        return None
    other = Bundle.load(previous)
    try:
        check_comparable(bundle, other)
    except SchemaError as error:
        notes.append(f"Not compared with version {previous.name}: {error}")
        return None
    return other


def _name_of(path: Path) -> str:
    """Return a bundle's name: of its run, or the number of a version with its folder."""
    folder = path.absolute()
    if folder.name == "bundle":
        folder = folder.parent
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdecimal() else folder.name


def _described(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": _name_of(bundle.path),
        "path": os.fspath(bundle.path),
        "sha256": bundle_identity(bundle.path),
        "schema": bundle.schema.fingerprint,
        "created_by": bundle.manifest.created_by,
        "bytes": sum(entry.size for entry in bundle.manifest.files.values()),
        "rows": bundle.schema.rows,
        "labels": dict(bundle.schema.spec.labels),
    }


def _exported(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return the heads with the metrics of the export, where there are no rows to judge by."""
    metrics = exported_metrics(bundle)
    return {
        head.name: {
            "kind": head.kind,
            "metrics": {"model": metrics[head.name]},
            "changes": {},
            "curve": {},
            "gain": {},
            "classes": [],
        }
        for head in bundle.model.heads
    }


def _verdict(
    bundle: Bundle, identity: str, versions: Sequence[PublishedVersion], notes: list[str]
) -> Mapping[str, Any] | None:
    """Return the verdict on this very bundle: beside it, or in its publishing record."""
    file = verdict_path(bundle.path)
    if file.is_file():
        try:
            verdict = Verdict.load(file)
        except BundleError as error:
            notes.append(f"The verdict beside the bundle is left out: {error}")
        else:
            if verdict.candidate["sha256"] == identity:
                return verdict.to_json()
            notes.append("The verdict beside the bundle is of another bundle, and is left out.")
    for one in versions:
        if one.record and one.record.bundle == identity:
            return one.record.verdict
    return None


@dataclass(frozen=True, slots=True)
class _TopWeights:
    """Largest wide weights of a logit, by part (crosses or others) and sign."""

    logit: str
    parts: Mapping[str, Mapping[str, list[WideWeight]]]


def _wide(bundle: Bundle, top: int) -> list[_TopWeights]:
    """Return the largest weights of the first logits, those of crosses apart."""
    by_name = bundle.schema.spec.by_name
    crosses = {name for name in bundle.model.wide if by_name[name].part_names}
    features = {"crosses": crosses, "others": set(bundle.model.wide) - crosses}
    by_logit = []
    for column in range(min(bundle.model.n_logits, _MAX_CLASSES)):
        parts = {
            kind: dict(
                zip(
                    ("positive", "negative"),
                    top_wide_weights(bundle, top=top, column=column, features=names),
                    strict=True,
                )
            )
            for kind, names in features.items()
        }
        by_logit.append(_TopWeights(logit_name(bundle, column), parts))
    return by_logit if bundle.model.wide else []


def _weights(entry: _TopWeights) -> Iterable[WideWeight]:
    for signs in entry.parts.values():
        for weights in signs.values():
            yield from weights


def _hashed(bundle: Bundle, wide: Sequence[_TopWeights]) -> dict[str, set[int]]:
    """Return the hash buckets among the largest weights, by feature."""
    buckets: dict[str, set[int]] = {}
    for weight in (weight for entry in wide for weight in _weights(entry)):
        feature = bundle.schema.spec.by_name[weight.feature]
        if feature.is_hashed and weight.id >= FIRST_KNOWN_ID:
            buckets.setdefault(weight.feature, set()).add(weight.id)
    return buckets


def _named(entry: _TopWeights, bucket_values: HashBucketValues) -> dict[str, Any]:
    """Return a logit's largest weights as plain values, hash buckets with the rows' values."""
    return {
        "logit": entry.logit,
        **{
            kind: {
                sign: [
                    {**asdict(one), "value": bucket_values.name(one.feature, one.id) or one.value}
                    for one in weights
                ]
                for sign, weights in signs.items()
            }
            for kind, signs in entry.parts.items()
        },
    }


def _version(one: PublishedVersion, identity: str) -> dict[str, Any]:
    record = one.record
    entry = {**one.to_json(), "this": record is not None and record.bundle == identity}
    if record is not None:
        verdict = record.verdict or {}
        entry |= {
            "parent": record.parent,
            "published": record.published,
            "bytes": record.size,
            "rows": record.data.get("rows"),
            "metrics": dict(record.metrics),
            "passed": verdict.get("passed"),
            "forced": record.forced,
        }
    return entry
