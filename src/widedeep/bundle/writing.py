"""write_bundle: a bundle's directory, there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep import __version__
from widedeep.bundle import files
from widedeep.bundle.calibration import Calibration, Isotonic, Platt, PriorCorrection
from widedeep.bundle.layout import BundleModel, Engine, check_finite, check_weights
from widedeep.bundle.manifest import FORMAT_VERSION, MANIFEST, Manifest, file_entries
from widedeep.bundle.plain_json import plain, write_json
from widedeep.bundle.scoring import Bundle
from widedeep.errors import BundleError
from widedeep.files import atomic_directory, write_tensors
from widedeep.schema import Schema

__all__ = ["write_bundle"]

Weights = Mapping[str, NDArray[Any]]


def write_bundle(
    path: str | os.PathLike[str],
    *,
    schema: Schema,
    weights: Weights,
    model: BundleModel,
    metrics: Mapping[str, Any],
    warmup_rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    calibration: Calibration | Mapping[str, Calibration] | None = None,
    engine: Engine = "native",
    onnx: bytes | None = None,
    overwrite: bool = False,
    check: Callable[[Bundle], None] = lambda bundle: None,
) -> Bundle:
    """Write a model as a bundle, beside its place first; it is renamed when all of it is on disk.

    Args:
        path: The bundle's directory.
        schema: The schema the model was trained with.
        weights: float32 arrays by name: ``bias`` (C,); ``wide/<feature>`` (size, C);
            ``table/<logical table>`` (size, D); ``mlp/<i>/weight`` (out, in), ``mlp/<i>/bias`` and
            ``head/weight`` (C, H) unless ``onnx`` computes the deep part. Without ``head/weight``
            the deep part is left out, its tables with it.
        model: The model's shape.
        metrics: Kept for the reader.
        warmup_rows: Raw rows to be stored with their scores.
        config: The run's resolved configuration.
        calibration: Of the one binary head, or by head.
        engine: What computes the deep part.
        onnx: The towers as an ONNX graph, for ``engine="onnx"``.
        overwrite: Replace a bundle that is already there, in one step.
        check: Called with the bundle as it reads from disk, before it takes its place; what it
            raises leaves that as it was.

    Returns:
        The bundle, loaded from ``path``.

    Raises:
        BundleError: If something is there already, the weights do not fit, a value cannot be
            stored, or the disk is full; whatever was at ``path`` is then as it was.

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
    place = Path(path)
    _check_place(place, overwrite)
    if engine == "native" and "head/weight" not in weights:
        model, weights = _wide_only(model, weights)
    check_weights(schema, model, weights, engine)
    check_finite(weights)
    if (engine == "onnx") != (onnx is not None):
        raise BundleError(f"got engine={engine!r} {'without' if onnx is None else 'with'} a graph")
    by_head = _by_head(model, calibration)
    was_there = place.exists()
    try:
        with atomic_directory(place) as made:
            # A served model has no use for values that its vocabularies leave out.
            schema.without_tails().write(made / files.SCHEMA)
            write_tensors(made / files.WEIGHTS, weights)
            files.write_config(made, config, model)
            write_json(made / files.METRICS, metrics, "metrics")
            files.write_calibration(made, by_head)
            if onnx is not None:
                (made / files.GRAPH).write_bytes(onnx)
            _write_warmup(made, schema, engine, warmup_rows)
            _write_manifest(made, schema, engine)
            check(Bundle.load(made, verify=False))
    except OSError as error:
        stays = "the bundle that was there is unchanged" if was_there else "nothing was left there"
        raise BundleError(
            f"{place}: the bundle could not be written ({error}); {stays}; make room or name "
            "another place, and export again"
        ) from error
    return Bundle.load(place, verify=False)


def _check_place(place: Path, overwrite: bool) -> None:
    if not place.exists() and not place.is_symlink():
        return
    if not overwrite:
        raise BundleError(
            f"{place}: something is there already; name another place, or pass overwrite=True to "
            "replace it"
        )
    if place.is_symlink() or not place.is_dir():
        raise BundleError(f"{place}: got a file or a link, expected a bundle; name another place")
    if any(place.iterdir()) and not (place / MANIFEST).exists():
        raise BundleError(
            f"{place}: got a directory that is no bundle (it has no {MANIFEST}); overwrite=True "
            "replaces bundles only: name another place"
        )


def _wide_only(model: BundleModel, weights: Weights) -> tuple[BundleModel, Weights]:
    if model.hidden_units:
        raise BundleError("tensor 'head/weight' is missing from the weights; export again")
    kept = {name: array for name, array in weights.items() if not name.startswith("table/")}
    return replace(model, deep=()), kept


def _by_head(
    model: BundleModel, calibration: Calibration | Mapping[str, Calibration] | None
) -> dict[str, Calibration]:
    if calibration is None:
        return {}
    binary = [head.name for head in model.heads if head.kind == "binary"]
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


def _write_warmup(
    made: Path, schema: Schema, engine: Engine, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Score the rows with what has been written so far: the bundle's own dry run."""
    stored = [plain(dict(row), f"warmup_rows[{index}]") for index, row in enumerate(rows)]
    scores: dict[str, Any] = {}
    if stored:
        bundle = Bundle._open(made, _manifest(made, schema, engine))
        scores = bundle._by_head(bundle.score(stored))
        for head, found in scores.items():
            if not np.isfinite(found).all():
                row = int(
                    np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(axis=1))[0]
                )
                raise BundleError(
                    f"warmup_rows[{row}]: scores {found[row]} {f'(head {head})' if head else ''}, "
                    "expected a finite number; the model cannot be served"
                )
    files.write_warmup(made, files.Warmup(rows=stored, scores=scores))


def _manifest(made: Path, schema: Schema, engine: Engine) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        engine=engine,
        created_by=__version__,
        schema_fingerprint=schema.fingerprint,
        files=file_entries(made),
        history=tuple(schema.history),
    )


def _write_manifest(made: Path, schema: Schema, engine: Engine) -> None:
    (made / MANIFEST).write_text(_manifest(made, schema, engine).to_text(), encoding="utf-8")
