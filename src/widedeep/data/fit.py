"""fit_schema: vocabularies, quantiles and labels in bounded memory."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.data.column_values import Chunk, read_numbers
from widedeep.data.counting import ValueCounter
from widedeep.data.counts import CountsFolder, open_counts
from widedeep.data.extend_schema import extend_classes, keep_numbers
from widedeep.data.fit_scans import (
    FitPlan,
    FitResult,
    ScanContext,
    merge_summaries,
    plan_fit,
    scan_cross,
    scan_numbers,
    scan_plain,
    scan_value_weights,
    scan_values,
    scan_vocabulary,
    scan_weight,
)
from widedeep.data.fragments import Source
from widedeep.data.paths import input_paths, join_manifest
from widedeep.data.sources import Data, RowShare, open_on_ranks
from widedeep.data.spelling import spelt_alike
from widedeep.data.turns import Turns
from widedeep.errors import ConfigError, DataError, FeatureError
from widedeep.features import Feature, FeatureSpec
from widedeep.features.learned import ColumnType, ColumnTypes
from widedeep.features.numbers import NumberSummary
from widedeep.ranks.ranks import Ranks
from widedeep.remote import InputPath
from widedeep.schema import Schema

_DELAYS = {"action_delay": "actions", "impression_delay": "impressions"}


def history_columns(data: Data, columns: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the definition of each history column among ``columns``."""
    rows = data.data if isinstance(data, RowShare) else data
    return _history({path.parent.parent for path in input_paths(rows) or ()}, columns)


def _history(folders: Collection[InputPath], columns: Collection[str]) -> dict[str, dict[str, Any]]:
    definitions: dict[str, dict[str, Any]] = {}
    for folder in sorted(folders, key=str):
        for name, definition in _definitions(folder).items():
            if name not in columns:
                continue
            if definitions.setdefault(name, definition) != definition:
                raise DataError(
                    f"column {name!r}: {folder / 'manifest.json'} defines it as {definition}, "
                    f"another dataset of the same data as {definitions[name]}; train on datasets "
                    "of one definition"
                )
    return definitions


def _definitions(folder: InputPath) -> dict[str, dict[str, Any]]:
    content = join_manifest(folder)
    if content is None:
        return {}
    try:
        config = content["config"]
        delays = {
            key: (config[log] or {}).get("availability_delay", 0) for key, log in _DELAYS.items()
        }
        return {entry["name"]: {**entry, **delays} for entry in config["history"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / 'manifest.json'}: got a damaged manifest ({error!r}); run the join again"
        ) from error


_SHOWN_CLASSES = 10
_NUMBER = re.compile(r"[+-]?[0-9]+([.][0-9]*)?([eE][+-]?[0-9]+)?")

# Its square, summed over a batch, stays within float32.
LARGEST_LABEL = 1e17
MOST_CLASSES = 10_000
_SAMPLED_LABELS = 1 << 16
_LABEL_QUANTILES = 200


def scan_label(
    scan: ScanContext,
    head: str,
    column: str,
    kind: ColumnType,
    vocabulary: Sequence[str] | None,
    nullable: bool = False,
) -> FitResult:
    """Learn the classes of a text label or of lists, the mean of any other."""
    name = f"label {column!r}"
    if kind.nested:
        return _scan_lists(scan, head, column, name, vocabulary, nullable=nullable)
    if kind.kind == "string":
        return _scan_classes(scan, head, column, name, vocabulary, nullable=nullable)
    return _scan_mean(scan, head, column, name, nullable=nullable)


def _scan_lists(
    scan: ScanContext,
    head: str,
    column: str,
    name: str,
    vocabulary: Sequence[str] | None,
    *,
    nullable: bool,
) -> FitResult:
    """Count the rows that have each class."""
    rows, nulls, counts = 0, 0, Counter(dict.fromkeys(vocabulary or (), 0))
    for chunk in scan.chunks(column):
        missing = np.asarray(chunk.array.is_null())
        if missing.any() and not nullable:
            raise _missing_label(chunk, name, int(missing.argmax()))
        rows, nulls = rows + len(missing), nulls + int(missing.sum())
        counts.update(_rows_by_class(chunk, name, vocabulary))
        if len(counts) > MOST_CLASSES:
            raise _too_many_classes(name)
    ranks = scan.ranks()
    rows, nulls = ranks.sums(rows, nulls)
    for rank, others in enumerate(ranks.gather_json(counts)):
        if rank != ranks.rank:
            counts.update(others)
    if len(counts) > MOST_CLASSES:
        raise _too_many_classes(name)
    if not counts.total():
        raise FeatureError(f"{name}: got no class in any list; give rows that have some")
    classes = tuple(vocabulary or sorted(counts))
    fit = FitResult(nulls={column: nulls}, classes={head: classes})
    fit.class_rates[head] = [counts[value] / max(rows - nulls, 1) for value in classes]
    absent = [value for value in classes if not counts[value]]
    if absent:
        fit.notes.append(f"{name}: no row has {', '.join(map(repr, absent[:_SHOWN_CLASSES]))}")
    return fit


def _too_many_classes(name: str) -> FeatureError:
    return FeatureError(
        f"{name}: got more than {MOST_CLASSES:,} classes; keep the frequent ones alone"
    )


def _rows_by_class(chunk: Chunk, name: str, vocabulary: Sequence[str] | None) -> dict[str, int]:
    """Return the number of rows whose list holds each class."""
    elements, rows = pc.list_flatten(chunk.array), pc.list_parent_indices(chunk.array)
    if pa.types.is_dictionary(elements.type):
        elements = elements.dictionary_decode()
    if elements.null_count:
        row = int(rows[int(np.asarray(elements.is_null()).argmax())].as_py())
        raise chunk.refuse(name, row, "got null in a list of classes; leave it out of the list")
    if not pa.types.is_string(elements.type):
        elements = elements.cast(pa.string())
    if vocabulary is not None:
        unknown = ~np.asarray(pc.is_in(elements, pa.array(vocabulary, pa.string())))
        if unknown.any():
            element = int(unknown.argmax())
            allowed = list(vocabulary[:_SHOWN_CLASSES])
            raise chunk.refuse(
                name,
                int(rows[element].as_py()),
                f"got {elements[element].as_py()!r} in a list, expected classes of {allowed}; add "
                "it to label_vocabulary, or drop the row",
            )
    pairs = pa.table({"row": rows, "class": elements}).group_by(["row", "class"]).aggregate([])
    counted = pc.value_counts(pairs["class"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def _scan_mean(
    scan: ScanContext, head: str, column: str, name: str, *, nullable: bool
) -> FitResult:
    summary, sample = NumberSummary(()), scan.sample(_SAMPLED_LABELS)
    nulls = 0
    for chunk in scan.chunks(column):
        values = read_numbers(chunk, name)
        missing = np.isnan(values)
        if missing.any():
            if not nullable:
                raise _missing_label(chunk, name, int(missing.argmax()))
            nulls += int(missing.sum())
        sample.add(values, ~missing)
        values = values[~missing]
        beyond = np.abs(values) > LARGEST_LABEL
        if beyond.any():
            row = int(beyond.argmax())
            raise chunk.refuse(
                name,
                row,
                f"got {values[row]:g}, expected a finite number of at most 1e17; correct it or "
                "drop the row",
            )
        summary.add(values)
    ranks = scan.ranks()
    merge_summaries(ranks, [summary])
    (nulls,) = ranks.sums(nulls)
    if not summary.count:
        raise FeatureError(
            f"{name}: got null in every row; give some rows a label, or leave it out"
        )
    notes = []
    if summary.minimum == summary.maximum:
        notes.append(f"{name}: {summary.minimum:g} in every row, so there is nothing to tell apart")
    fit = FitResult(nulls={column: nulls}, label_means={head: summary.mean}, notes=notes)
    if summary.minimum < 0 or summary.maximum > 1:
        sample.exchange(ranks)
        levels = (np.arange(_LABEL_QUANTILES) + 0.5) / _LABEL_QUANTILES
        quantiles = np.quantile(sample.values(), levels)
        fit.label_quantiles[head] = [float(value) for value in quantiles]
    return fit


def _missing_label(chunk: Chunk, name: str, row: int) -> FeatureError:
    got = chunk.array[row].as_py()
    text = "null" if got is None else repr(got)
    return chunk.refuse(name, row, f"got {text}, expected a label in every row; drop the row")


def _scan_classes(
    scan: ScanContext,
    head: str,
    column: str,
    name: str,
    vocabulary: Sequence[str] | None,
    *,
    nullable: bool,
) -> FitResult:
    allowed = pa.array(vocabulary, pa.string()) if vocabulary else None
    nulls = 0
    with ValueCounter("bytes", memory_limit_bytes=scan.counter_bytes) as counter:
        for chunk in scan.chunks(column):
            texts = chunk.array
            if pa.types.is_dictionary(texts.type):
                texts = texts.dictionary_decode()
            if texts.null_count and not nullable:
                raise _missing_label(chunk, name, int(np.asarray(texts.is_null()).argmax()))
            nulls += texts.null_count
            texts = texts.drop_null()
            if allowed is not None:
                _check_classes(chunk, texts, allowed, name)
            counter.add(texts)
        ranks = scan.ranks()
        (nulls,) = ranks.sums(nulls)
        counter.exchange(ranks)
        values, _ = counter.result()
    seen = sorted(value.as_py() for value in values)
    classes = tuple(value.decode("utf-8", "replace") for value in seen)
    if vocabulary is None:
        _check_no_numbers(classes, name)
    fit = FitResult(nulls={column: nulls}, classes={head: tuple(vocabulary or classes)})
    if len(classes) == 1:
        fit.notes.append(f"{name}: {classes[0]!r} in every row, so there is nothing to tell apart")
    absent = sorted(set(vocabulary or ()) - set(classes))
    if absent:
        fit.notes.append(f"{name}: no row has {', '.join(map(repr, absent[:_SHOWN_CLASSES]))}")
    return fit


def _check_no_numbers(classes: Sequence[str], name: str) -> None:
    """Refuse classes that are numbers but for some: a mark such as NA is no class of its own."""
    numbers = [text for text in classes if _NUMBER.fullmatch(text)]
    if 0 < len(numbers) < len(classes):
        others = [text for text in classes if text not in numbers]
        raise FeatureError(
            f"{name}: got numbers such as {numbers[0]!r}, and {others[0]!r}, which is none; "
            "correct or drop the rows that hold it; if these are names of classes, list them in "
            "label_vocabulary"
        )
    if alike := spelt_alike(classes, numbers=True):
        one, other, _ = alike
        raise FeatureError(
            f"{name}: got the classes {one} and {other}, which differ in case, blanks, Unicode "
            "form or how a number is written alone; write them alike, or list them in "
            "label_vocabulary if they are two classes"
        )


def _check_classes(chunk: Chunk, texts: pa.Array, classes: pa.Array, name: str) -> None:
    unknown = ~np.asarray(pc.is_in(texts.cast(pa.string()), classes))
    if unknown.any():
        row = int(unknown.argmax())
        allowed = classes.to_pylist()[:_SHOWN_CLASSES]
        raise chunk.refuse(
            name,
            row,
            f"got {texts[row].as_py()!r}, expected one of {allowed}; "
            "add it to label_vocabulary, or drop the row",
        )


DEFAULT_MEMORY = 1 << 30
LEAST_MEMORY = 16 << 20
# A scan holds a fragment of one column beside its counts.
_MEMORY_PER_SCAN = 256 << 20

_Scan = Callable[[ScanContext], FitResult]


def fit_schema(
    spec: FeatureSpec,
    data: Data | None = None,
    *,
    counts: str | os.PathLike[str] | None = None,
    memory_limit: int | None = None,
    sample_rows: int = 262_144,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
    grow: Schema | None = None,
    ranks: Ranks | None = None,
) -> Schema:
    """Learn vocabularies, quantiles and column types from data of any size.

    Columns are read one at a time and counts that do not fit go to disk, so memory does not grow
    with the rows. Vocabularies and learned crosses are exact, the most frequent value first and
    equally frequent ones by value; numbers are summed exactly. The result does not depend on how
    the rows are cut into files, nor, but for sampled quantiles, on their order.

    Of the examples of a join (its ``train`` folder, or :meth:`JoinResult.paths`), the definitions
    of the history columns that the spec reads are kept in :attr:`Schema.history`.

    Args:
        spec: The declaration.
        data: A path, a glob, a list of paths, a data frame, an Arrow table or reader, or a list of
            dicts.
        counts: In place of ``data`` the folder ``counts/`` that a join on Spark writes beside its
            examples. The schema is that of a fit on its ``train`` folder, to the byte, and no
            example is read. Crosses that learn combinations, and numbers in lists, need the
            examples.
        memory_limit: Bytes for reading and counting, at least 16 MiB, beside what the schema itself
            takes; 1 GiB if not given.
        sample_rows: Quantiles and bins are exact on all rows up to this number, and exact on a
            seeded sample of so many rows beyond it. They count rows, whatever their weights.
        seed: Seed of that sample, 0 <= seed < 2**64.
        threads: Columns read at the same time, at least 1, fewer where the memory limit is small;
            the number of processors, up to 8, if not given.
        progress: Show a progress bar on standard error.
        grow: An older schema. Its vocabularies, crosses and classes keep their order and new values
            come behind them. Counts add up before ``min_count`` and ``max_size`` leave anything
            out: the values are those of a fit on both at once, as long as the older schema keeps
            the counts of what it left out (262,144 values and 16 MiB a vocabulary; the notes tell
            of more). Numbers declared as before keep their quantiles and boundaries.
            A warm start moves parameters by value, so it needs this only to keep what the new data
            alone does not show.
        ranks: The processes that fit together (:class:`widedeep.ranks.ranks.Ranks`): each reads its
            part of the rows, all of them return the schema that one process alone would. Every rank
            passes the same arguments.

    Returns:
        The schema; its ``notes`` say what a person should know, and printing it shows a table.

    Raises:
        FeatureError: If a value does not fit its feature, or a label is null; says the row.
        DataError: If there is no row, a column is missing, a weight is negative, or an input cannot
            be read.
        ConfigError: If a number is outside its range.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education"))
        >>> schema = wd.fit_schema(spec, "train.parquet")
        >>> schema.rows, schema.id_count("education"), schema.describe_id("education", 2)
        (4000, 18, 'HS-grad')
    """
    limit, ranks = DEFAULT_MEMORY if memory_limit is None else memory_limit, ranks or Ranks()
    _check_options(spec, limit, sample_rows, threads, grow)
    workers = min(threads or _processors(), max(1, limit // _MEMORY_PER_SCAN))
    columns = _columns(spec)
    with _open(spec, data, counts, columns, ranks) as source:
        plan = plan_fit(spec, source.arrow_schema)
        if counts is None:
            history = history_columns(data, columns)
        else:
            _check_counts(CountsFolder.open(counts), spec, plan, sample_rows, seed)
            history = _history([Path(counts).absolute().parent], columns)
        scans = _first_scans(spec, plan, grow)
        crosses = [f for f in spec.all_features if f.part_names and not f.is_hashed]
        shared = sum(len(columns) - 1 for columns in plan.learned)
        n_reads = len(scans) + shared + len(crosses)
        first_row, fragments = source.fragments_of(ranks.rank, ranks.size)
        own_rows = sum(fragment.num_rows for fragment in fragments)
        with _progress(progress, own_rows * n_reads) as on_rows:
            stop = threading.Event()
            scan = ScanContext(
                source=source,
                fragments=fragments,
                first_row=first_row,
                counter_bytes=limit // (2 * workers),
                sample_rows=sample_rows,
                seed=seed,
                on_rows=on_rows,
                stop=stop,
                turns=Turns(ranks, stop),
            )
            fit = FitResult(vocabularies=dict(plan.vocabularies))
            _run(scans, scan, workers, fit)
            if grow is not None:
                fit.classes = extend_classes(fit.classes, spec, grow, fit.notes)
                keep_numbers(
                    fit.numerics, fit.boundaries, spec, plan.types, grow, history, fit.notes
                )
                fit.notes.append(f"grown from a schema of {grow.rows:,} rows")
            cross_scans: list[_Scan] = [
                partial(
                    scan_cross,
                    cross=cross,
                    parts=_parts_schema(spec, plan, fit, cross),
                    previous=grow,
                )
                for cross in crosses
            ]
            _run(cross_scans, scan, workers, fit)
            return _schema(spec, plan, scan, fit, history)


def _open(
    spec: FeatureSpec,
    data: Data | None,
    counts: str | os.PathLike[str] | None,
    columns: list[str],
    ranks: Ranks,
) -> Source:
    if (data is None) == (counts is None):
        got = "neither data nor" if data is None else "both data and"
        raise ConfigError(f"got {got} counts, expected one of them")
    if counts is not None:
        return open_counts(counts, columns)
    return open_on_ranks(
        data,
        ranks,
        "data",
        columns=columns,
        column_types=declared_types(spec),
        empty="data: got no rows, expected at least one; check the path or the query",
    )


def _check_counts(
    counts: CountsFolder, spec: FeatureSpec, plan: FitPlan, sample_rows: int, seed: int
) -> None:
    """Refuse what counts of single columns cannot teach."""
    for feature in spec.all_features:
        reader = f"feature {feature.name!r}"
        if feature.part_names and not feature.is_hashed:
            raise ConfigError(
                f"{reader}: learns which values occur together, and counts of single columns do "
                "not say it; hash the cross (hash_buckets=), or fit on the examples"
            )
        if (numbers := feature.number_input) is not None:
            if plan.types[numbers.column].nested:
                raise ConfigError(
                    f"{reader}: column {numbers.column!r} holds lists of numbers, whose order "
                    "counts do not keep; fit on the examples"
                )
            counts.check_counted(numbers.column, reader)
    counts.check_sample(sample_rows, seed)
    for use in [use for columns in plan.learned for use in columns]:
        counts.check_counted(use.name, use.reader)
    for column in [*spec.labels.values(), *spec.weights]:
        counts.check_counted(column, f"column {column!r}")
        if plan.types[column].nested:
            raise ConfigError(
                f"label {column!r}: counts of lists do not say which classes a row has; fit on the "
                "examples"
            )


def _schema(
    spec: FeatureSpec,
    plan: FitPlan,
    scan: ScanContext,
    fit: FitResult,
    history: Mapping[str, Mapping[str, Any]],
) -> Schema:
    rows = scan.source.num_rows
    schema = Schema(
        spec=spec,
        columns=plan.types,
        vocabularies=fit.vocabularies,
        boundaries=fit.boundaries,
        numerics=fit.numerics,
        classes=fit.classes,
        rows=rows,
        missing={column: fit.nulls[column] / rows for column in plan.types},
        label_means=fit.label_means,
        label_quantiles=fit.label_quantiles,
        class_rates=fit.class_rates,
        quantile_rows=min(rows, scan.sample_rows),
        notes=tuple(fit.notes),
        history=history,
    )
    for feature in spec.all_features:
        feature.check_fit(schema)
    return schema


def _check_options(
    spec: object, memory_limit: int, sample_rows: int, threads: int | None, grow: object
) -> None:
    if not isinstance(spec, FeatureSpec):
        raise ConfigError(
            f"spec: got {spec!r} ({type(spec).__name__}), expected wd.FeatureSpec(features=[...])"
        )
    if grow is not None and not isinstance(grow, Schema):
        raise ConfigError(f"grow: got {type(grow).__name__}, expected a wd.Schema")
    for name, got, least in (
        ("memory_limit", memory_limit, LEAST_MEMORY),
        ("sample_rows", sample_rows, 2),
        ("threads", 1 if threads is None else threads, 1),
    ):
        if got < least:
            raise ConfigError(f"{name}: got {got}, expected at least {least}")


def _processors() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, 8)


def _columns(spec: FeatureSpec) -> list[str]:
    others = [*spec.labels.values(), *spec.weights, spec.group]
    return list(dict.fromkeys([*spec.columns(), *(name for name in others if name is not None)]))


def declared_types(spec: FeatureSpec) -> ColumnTypes:
    """Return what a spec declares its columns to be, for files that do not say it (CSV).

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(features=[*wd.numeric("age"), *wd.categorical("zip")])
        >>> declared_types(spec)
        {'age': DataType(double), 'zip': 'category'}
    """
    types = ColumnTypes(null_values=spec.null_values)
    features = spec.all_features
    numbers = [f.number_input.column for f in features if f.number_input is not None]
    types.update(dict.fromkeys(numbers, pa.float64()))
    types.update(dict.fromkeys(_category_columns(spec), "category"))
    texts = [f.value_input for f in features if f.value_input is not None and f.value_input.is_text]
    types.update({values.column: pa.string() for values in texts})
    types.update(dict.fromkeys(spec.weights, pa.float64()))
    if spec.group is not None:
        types.setdefault(spec.group, "category")
    if spec.label_vocabulary is not None:
        types.update(dict.fromkeys(spec.labels.values(), pa.string()))
    return types


def _category_columns(spec: FeatureSpec) -> Iterator[str]:
    for feature in spec.all_features:
        if feature.value_input is not None:
            yield feature.value_input.column
        yield from (part_name for part_name in feature.part_names if part_name not in spec.by_name)


def _first_scans(spec: FeatureSpec, plan: FitPlan, grow: Schema | None) -> list[_Scan]:
    scans: list[_Scan] = [
        partial(
            scan_label,
            head=head,
            column=column,
            kind=plan.types[column],
            vocabulary=spec.label_vocabulary,
            nullable=len(spec.labels) > 1,
        )
        for head, column in spec.labels.items()
    ]
    if spec.weight is not None:
        scans.append(partial(scan_weight, column=spec.weight, kind=plan.types[spec.weight]))
    for column in spec.head_weights.values():
        if column != spec.weight:
            kind = plan.types[column]
            scans.append(partial(scan_weight, column=column, kind=kind, nullable=True))
    seen = {*spec.weights, *spec.labels.values()}
    for features in plan.numbers:
        column = features[0].input_columns[0]
        scans.append(partial(scan_numbers, features=features, type=plan.types[column]))
        seen.add(column)
    for columns in plan.learned:
        scans.append(partial(scan_vocabulary, columns=columns, previous=grow))
        seen.update(use.name for use in columns)
    for use in plan.checked:
        scans.append(partial(scan_values, column=use))
        seen.add(use.name)
    weights = {f.weight_column: f.name for f in spec.all_features}
    for column, kind in plan.types.items():
        if column in seen:
            continue
        feature = weights.get(column)
        scans.append(
            partial(scan_plain, column=column)
            if feature is None
            else partial(scan_value_weights, column=column, kind=kind, feature=feature)
        )
    return scans


def _parts_schema(spec: FeatureSpec, plan: FitPlan, fit: FitResult, cross: Feature) -> Schema:
    """Return a schema of a cross's parts alone, so that other vocabularies are not indexed."""
    parts = [spec.by_name[part_name] for part_name in cross.part_names if part_name in spec.by_name]
    part_spec = FeatureSpec(features=[*parts, cross], wide=[cross.name], deep=[])
    keys = {feature.table_name for feature in parts} | set(cross.part_names)
    return Schema(
        spec=part_spec,
        columns={column: plan.types[column] for column in part_spec.columns()},
        vocabularies={key: fit.vocabularies[key] for key in keys if key in fit.vocabularies},
        boundaries=fit.boundaries,
        numerics={},
    )


def _run(scans: Sequence[_Scan], scan: ScanContext, workers: int, fit: FitResult) -> None:
    """Run scans side by side and add up what they find, in their order."""
    with ThreadPoolExecutor(workers, thread_name_prefix="widedeep-fit") as pool:
        turns = Turns(scan.turns.ranks, scan.stop)
        futures = [
            pool.submit(_run_one, one, replace(scan, turns=turns, number=number))
            for number, one in enumerate(scans)
        ]
        try:
            for future in futures:
                fit.include(future.result())
        except BaseException:
            scan.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(one: _Scan, scan: ScanContext) -> FitResult:
    """Run a scan and let the next one speak to the other ranks; tell them if it fails."""
    try:
        result = one(scan)
    except BaseException as error:
        try:
            scan.turns.agree(scan.number, error)
        finally:
            scan.turns.end(scan.number, failed=True)
        raise
    scan.turns.end(scan.number, failed=False)
    return result


@contextmanager
def _progress(enabled: bool, total: int) -> Iterator[Callable[[int], None]]:
    if not enabled:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("fit_schema"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} values"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda rows: bar.advance(task, rows)
