"""write_bundle: writes a bundle's directory in one step (temporary name, fsync, rename)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep._version import __version__
from widedeep.bundle.bundle import Bundle, open_bundle
from widedeep.bundle.calibration import Calibration, Isotonic, Platt, PriorCorrection
from widedeep.bundle.items import ITEMS, ItemVectors, item_ids
from widedeep.bundle.layout import (
    CONFIG,
    GRAPH,
    POSTERIOR,
    WARMUP,
    BundleContents,
    BundleModel,
    Rounding,
    Warmup,
    check_finite,
    check_weights,
    write_calibration,
    write_contents,
    write_warmup,
)
from widedeep.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    PACKED_FORMAT,
    PARTS_FORMAT,
    Engine,
    Manifest,
    file_entries,
)
from widedeep.bundle.plain_json import plain, read_json, write_json
from widedeep.bundle.posterior import fit_posterior
from widedeep.bundle.program import Program
from widedeep.bundle.weights import SharedWeights, weight_files
from widedeep.errors import BundleError
from widedeep.files import atomic_directory, write_tensors
from widedeep.kernels.packed_rows import PackedKind
from widedeep.ranks.shared import shared_directory, shared_failures
from widedeep.remote import check_local
from widedeep.schema import Schema

__all__ = ["write_bundle"]

Weights = Mapping[str, NDArray[Any]]
_LEAST_PART = 1 << 20


def write_bundle(
    path: str | os.PathLike[str],
    *,
    schema: Schema,
    weights: Weights | SharedWeights,
    model: BundleModel,
    metrics: Mapping[str, Any],
    warmup_rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    calibration: Calibration | Mapping[str, Calibration] | None = None,
    engine: Engine = "native",
    onnx: bytes | None = None,
    program: Program | None = None,
    posterior_rows: object | None = None,
    items: pa.Table | None = None,
    item_id: str | None = None,
    overwrite: bool = False,
    part_bytes: int | None = None,
    check: Callable[[Bundle], None] = lambda bundle: None,
) -> Bundle:
    """Write a model as a bundle: under a temporary name first, renamed when all is on disk.

    Args:
        path: The bundle's directory.
        schema: The schema the model was trained with.
        weights: float32 arrays by name: ``bias`` (C,); ``wide/<feature>`` (size, C);
            ``table/<logical table>`` (size, D); ``mlp/<i>/weight`` (out, in), ``mlp/<i>/bias`` and
            ``head/weight`` (C, H) unless ``program`` or ``onnx`` computes the deep part; the
            tensors of ``program``. Without ``head/weight`` the deep part is left out, its tables
            with it. Those of several ranks are written by all of them, each of which calls this.
        model: The model's shape.
        metrics: Metrics to store.
        warmup_rows: Raw rows to be stored with their scores.
        config: The run's resolved configuration.
        calibration: Calibration of the one binary head, or by head.
        engine: What computes the deep part.
        onnx: The towers as an ONNX graph, for ``engine="onnx"``.
        program: The towers as native operations, for ``engine="graph"``.
        posterior_rows: Rows by which the posterior of the last layer is fitted and stored
            (:func:`widedeep.bundle.posterior.fit_posterior`); None: there is none.
        items: Items whose vectors are kept in the bundle, for a program with two towers.
        item_id: Column of the items' ids.
        overwrite: Replace an existing bundle, in one step.
        part_bytes: Most bytes of weights in a file, at least 1 MiB (1 << 20): what has more is
            written as ``weights-00001-of-00008.safetensors`` and so on; None: in one file. A bundle
            in parts is mapped and scored like any other.
        check: Called with the bundle as it reads from disk, before it is renamed to ``path``; an
            exception leaves ``path`` as it was.

    Returns:
        The bundle, loaded from ``path``.

    Raises:
        BundleError: If ``path`` exists, the weights do not fit, a value cannot be stored, or the
            disk is full; ``path`` is then as it was.

    Example:
        >>> import numpy as np
        >>> import widedeep as wd
        >>> from widedeep.bundle import BundleHead
        >>> spec = wd.FeatureSpec(features=wd.categorical("job", vocabulary=["cook", "nurse"]))
        >>> schema = wd.fit_schema(spec, [{"job": "cook"}])
        >>> bundle = write_bundle(
        ...     "nurses",
        ...     schema=schema,
        ...     weights={"bias": np.zeros(1, np.float32),
        ...              "wide/job": np.array([[0], [0], [-1], [1]], np.float32)},
        ...     model=BundleModel(heads=(BundleHead(name="", kind="binary", start=0, stop=1),),
        ...                       wide=("job",)),
        ...     metrics={},
        ...     warmup_rows=[{"job": "cook"}],
        ...     config={},
        ... )
        >>> bundle.score([{"job": "cook"}, {"job": "nurse"}]).round(3).tolist()
        [0.269, 0.731]
    """
    if not isinstance(weights, SharedWeights):
        weights = SharedWeights(weights=weights)
    ranks = weights.ranks
    with shared_failures(ranks):
        if ranks.is_first:
            check_path(path, overwrite)
    path = Path(path)
    if part_bytes is not None and part_bytes < _LEAST_PART:
        raise BundleError(f"got part_bytes={part_bytes}, expected at least {_LEAST_PART:,} (1 MiB)")
    if engine == "native" and "head/weight" not in weights.weights:
        model, used = _without_deep(model, weights.weights)
        weights = replace(weights, weights=used)
    check_weights(schema, model, weights.whole(), engine, program)
    with shared_failures(ranks):
        check_finite(weights.weights, weights.row_of)
    if (engine == "onnx") != (onnx is not None):
        raise BundleError(f"got engine={engine!r} {'without' if onnx is None else 'with'} a graph")
    contents = BundleContents(
        schema=schema,
        model=model,
        weights={},
        config=config,
        metrics=metrics,
        calibration=_calibration_by_head(model, calibration),
        program=program,
    )
    existed = path.exists()
    try:
        with shared_directory(ranks, path) as directory:
            weights.write(directory, part_bytes)
            with shared_failures(ranks):
                if ranks.is_first:
                    write_contents(directory, contents)
                    if onnx is not None:
                        (directory / GRAPH).write_bytes(onnx)
                    if items is not None and item_id is not None:
                        _write_items(directory, schema, engine, items, item_id)
                    _write_warmup(directory, schema, engine, warmup_rows)
                    _write_posterior(directory, schema, engine, posterior_rows)
                    manifest = _manifest(directory, schema, engine)
                    (directory / MANIFEST).write_text(manifest.to_text(), encoding="utf-8")
                    check(Bundle.load(directory, verify=False))
    except OSError as error:
        state = "the bundle that was there is unchanged" if existed else "nothing was left there"
        raise BundleError(
            f"{path}: the bundle could not be written ({error}); {state}; make room or name "
            "another place, and export again"
        ) from error
    return Bundle.load(path, verify=False)


def rewrite_bundle(
    bundle: Bundle,
    path: str | os.PathLike[str],
    *,
    weights: Weights,
    calibration: Mapping[str, Calibration],
    posterior_rows: object | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle again with other weights and calibration; all else is as it was.

    A posterior of its last layer was that of the older weights, and is left out. Packed tables stay
    packed.

    Args:
        bundle: The bundle.
        path: Directory of the new one.
        weights: As :func:`write_bundle` takes them.
        calibration: By binary head.
        posterior_rows: As :func:`write_bundle` takes them.
        overwrite: Replace an existing bundle, in one step.

    Raises:
        BundleError: If ``path`` exists, the weights do not fit, or the disk is full.
    """
    path = Path(path)
    check_path(path, overwrite)
    schema, engine = bundle.schema, bundle.manifest.engine
    check_finite(weights)
    curves = _calibration_by_head(bundle.model, calibration)
    with _rewritten(bundle, path, SharedWeights(weights=weights), (POSTERIOR,)) as directory:
        write_calibration(directory, curves)
        _write_warmup(directory, schema, engine, bundle.warmup.rows)
        _write_posterior(directory, schema, engine, posterior_rows)
    return Bundle.load(path, verify=False)


def round_bundle(
    bundle: Bundle,
    path: str | os.PathLike[str],
    tables: PackedKind,
    *,
    rows: Iterable[Any] = (),
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle again with its tables of embeddings rounded; all else is as it was.

    Wide weights, layers, vectors of items and the posterior stay float32: one number a row would
    gain nothing, the others are few.

    Args:
        bundle: A bundle with tables in float32.
        path: Directory of the new one.
        tables: ``"bf16"``, ``"int8"`` or ``"int4"``.
        rows: Data that :meth:`Bundle.score` takes, to be scored before and after; the change is
            stored in the bundle (:attr:`Bundle.rounding`). None: its stored rows.
        overwrite: Replace an existing bundle, in one step.

    Raises:
        BundleError: If its tables are rounded already, it has none, ``path`` exists, or the disk is
            full.
    """
    path = Path(path)
    check_path(path, overwrite)
    if tables not in get_args(PackedKind):
        raise BundleError(f"got tables={tables!r}, expected one of {get_args(PackedKind)}")
    if bundle.rounding is not None:
        raise BundleError(
            f"{bundle.path}: its tables are in {bundle.rounding.tables} already, and rounding them "
            "twice adds up; round the bundle that has float32, or export the run again"
        )
    if not any(name.startswith("table/") for name in bundle.weights):
        raise BundleError(
            f"{bundle.path}: has no tables of embeddings, and wide weights stay float32: there is "
            f"nothing to keep in {tables}; leave it out"
        )
    schema, engine = bundle.schema, bundle.manifest.engine
    weights = SharedWeights(weights=bundle.weights, tables=tables)
    with _rewritten(bundle, path, weights) as directory:
        config = read_json(directory / CONFIG)
        for rounding in (Rounding(tables=tables), None):
            if rounding is None:
                rounded = open_bundle(directory, _manifest(directory, schema, engine))
                rounding = _measure_rounding(bundle, rounded, rows or [bundle.warmup.rows], tables)
            config["rounding"] = asdict(rounding)
            write_json(directory / CONFIG, config, "config")
        _write_warmup(directory, schema, engine, bundle.warmup.rows)
    return Bundle.load(path, verify=False)


def _measure_rounding(
    exact: Bundle, rounded: Bundle, rows: Iterable[Any], tables: PackedKind
) -> Rounding:
    """Score rows with both, and tell by how much their scores differ."""
    changes_B = [np.zeros(0)]
    for data in rows:
        for batch in exact.batches(data) if len(data) else ():
            before, after = (one.scores_by_head(one.logits(batch)) for one in (exact, rounded))
            relative = [
                np.abs(after[head] - score) / np.maximum(1.0, np.abs(score))
                for head, score in before.items()
            ]
            changes_B.append(np.max([r.reshape(len(batch), -1).max(axis=1) for r in relative], 0))
    change_B = np.concatenate(changes_B)
    if not len(change_B):
        return Rounding(tables=tables)
    mean, worst = float(change_B.mean()), float(change_B.max())
    return Rounding(tables=tables, rows=len(change_B), mean=mean, worst=worst)


@contextlib.contextmanager
def _rewritten(
    bundle: Bundle, path: Path, weights: SharedWeights, others: Sequence[str] = ()
) -> Iterator[Path]:
    """Give a directory with a bundle's files and these weights, and name it ``path`` at the end.

    Its warm-up rows and ``others`` are left out; the block writes them.
    """
    parts = {file.name: file for file in weight_files(bundle.path)}
    part_bytes = max(file.stat().st_size for file in parts.values()) if len(parts) > 1 else None
    try:
        with atomic_directory(path) as directory:
            for name in bundle.manifest.files:
                if name not in (WARMUP, *others, *parts):
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.path / name, directory / name)
            weights.write(directory, part_bytes)
            yield directory
            manifest = _manifest(directory, bundle.schema, bundle.manifest.engine)
            (directory / MANIFEST).write_text(manifest.to_text(), encoding="utf-8")
            Bundle.load(directory)
    except OSError as error:
        raise BundleError(
            f"{path}: the bundle could not be written ({error}); make room or name another place"
        ) from error


def check_path(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise a :class:`BundleError` unless a bundle may be written there."""
    check_local(path, "bundle", "or write it by widedeep export RUN -o URL")
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise BundleError(
            f"{path}: already exists; choose another path, or pass overwrite=True to replace it"
        )
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"{path}: got a file or a link, expected a bundle; choose another path")
    if any(path.iterdir()) and not (path / MANIFEST).exists():
        raise BundleError(
            f"{path}: got a directory that is no bundle (it has no {MANIFEST}); overwrite=True "
            "replaces bundles only: choose another path"
        )


def _without_deep(model: BundleModel, weights: Weights) -> tuple[BundleModel, Weights]:
    if model.hidden_units:
        raise BundleError("tensor 'head/weight' is missing from the weights; export again")
    wide = {name: array for name, array in weights.items() if not name.startswith("table/")}
    return replace(model, deep=()), wide


def _calibration_by_head(
    model: BundleModel, calibration: Calibration | Mapping[str, Calibration] | None
) -> dict[str, Calibration]:
    if calibration is None:
        return {}
    binary = [head.name for head in model.heads if head.kind == "binary" and head.through is None]
    if isinstance(calibration, (PriorCorrection, Platt, Isotonic)):
        if len(model.heads) != 1 or not binary:
            raise BundleError(
                "got one calibration for a model whose heads are "
                f"{[head.kind for head in model.heads]}; name the binary heads it is for"
            )
        return {binary[0]: calibration}
    for name in calibration:
        if name not in binary:
            raise BundleError(
                f"got a calibration for {name!r}, expected a binary head: {binary or 'none'}"
            )
    return dict(calibration)


def _write_items(path: Path, schema: Schema, engine: Engine, items: pa.Table, column: str) -> None:
    """Compute the vectors of items with the files written so far, and write them."""
    bundle = open_bundle(path, _manifest(path, schema, engine))
    vectors_ND = bundle.item_vectors(items)
    ids = item_ids(items, column)
    check_finite({ITEMS: vectors_ND})
    ItemVectors(column, ids, vectors_ND).write(path)


def _write_posterior(path: Path, schema: Schema, engine: Engine, rows: object | None) -> None:
    """Fit the posterior of the files written so far by rows, where there are any, and write it."""
    if rows is not None:
        written = open_bundle(path, _manifest(path, schema, engine))
        write_tensors(path / POSTERIOR, fit_posterior(written, rows))


def _write_warmup(
    path: Path, schema: Schema, engine: Engine, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Score the rows with the files written so far: the bundle's own dry run."""
    stored = [plain(dict(row), f"warmup_rows[{index}]") for index, row in enumerate(rows)]
    scores: dict[str, Any] = {}
    if stored:
        bundle = open_bundle(path, _manifest(path, schema, engine))
        scores = bundle.scores_by_head(bundle.row_logits(stored))
    for head, values in scores.items():
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)  # (B,)
        if not finite.all():
            row = int(finite.argmin())
            raise BundleError(
                f"warmup_rows[{row}]: scores {values[row]} {f'(head {head})' if head else ''}, "
                "expected a finite number; the model cannot be served"
            )
    write_warmup(path, Warmup(rows=stored, scores=scores))


def _manifest(path: Path, schema: Schema, engine: Engine) -> Manifest:
    return Manifest(
        format_version=_format(path),
        engine=engine,
        created_by=__version__,
        schema_fingerprint=schema.fingerprint,
        files=file_entries(path),
        history=tuple(schema.history),
    )


def _format(path: Path) -> int:
    if "rounding" in read_json(path / CONFIG):
        return PACKED_FORMAT
    return FORMAT_VERSION if len(weight_files(path)) == 1 else PARTS_FORMAT
