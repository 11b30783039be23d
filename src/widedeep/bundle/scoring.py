"""Bundle: a trained model, read from its directory, that scores raw rows."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import files
from widedeep.bundle.calibration import Calibration
from widedeep.bundle.explain import Explanation, WideTerm, name_ids
from widedeep.bundle.files import Warmup
from widedeep.bundle.forward import Forward
from widedeep.bundle.graph import TowerGraph
from widedeep.bundle.layout import BundleHead, BundleModel, check_weights
from widedeep.bundle.manifest import Manifest, check_files, read_manifest
from widedeep.data.batch import Batch
from widedeep.data.fragments import column_stream, origin_of
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, DataError, WideDeepError
from widedeep.files import map_tensors
from widedeep.kernels.sigmoid import sigmoid
from widedeep.schema import ColumnType, Schema

__all__ = ["Bundle", "Scores"]

Scores: TypeAlias = NDArray[np.float64] | dict[str, NDArray[np.float64]]

_CHUNK_ROWS = 16_384
_WARMUP_TOLERANCE = 1e-4
# What reading values of a wrong kind raises, where no check of its own names them.
_DAMAGED = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class Bundle:
    """A trained model that scores raw rows without torch. Made by :meth:`load`.

    Any number of threads may score with one bundle. Its weights are mapped from the file: they take
    memory as they are used, and processes on one machine share it. After the directory has been
    replaced or deleted, the bundle scores as before.

    Attributes:
        path: The directory it was read from.
        manifest: Format, engine, files with their checksums.
        schema: Turns rows into ids; its fingerprint is the manifest's.
        model: Heads, layers, and which feature goes where.
        config: The run's configuration.
        metrics: As given at export.
        calibration: By head.
        warmup: Rows to score before the first request, with the scores they had at export.
        weights: By name, as :func:`widedeep.bundle.write_bundle` takes them; mapped, not copied.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=[wd.numeric("age"),
        ...                                                 wd.categorical("education")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, "train.parquet"), hidden_units=[8])
        >>> trainer = wd.Trainer(model)
        >>> _ = trainer.fit("train.parquet")
        >>> _ = trainer.export("bundle")
        >>> bundle = wd.Bundle.load("bundle")
        >>> bundle.score([{"age": 39, "education": "Bachelors"}]).shape
        (1,)
        >>> print(bundle.explain({"age": 39, "education": "Bachelors"}))
        education = Bachelors  ...
        deep part              ...
        bias                   ...
        logit                  ...
        probability            ...
    """

    def __init__(
        self,
        *,
        path: Path,
        manifest: Manifest,
        schema: Schema,
        model: BundleModel,
        weights: Mapping[str, NDArray[np.float32]],
        config: Mapping[str, Any],
        metrics: Mapping[str, Any],
        calibration: Mapping[str, Calibration],
        warmup: Warmup,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.schema = schema
        self.model = model
        self.config = config
        self.metrics = metrics
        self.calibration = calibration
        self.warmup = warmup
        self._misspelt: dict[str, str] = {}
        self.weights = weights
        self._encoder = Transform(schema)
        self._forward = Forward(schema, model, weights, _tower_graph(path, manifest, schema, model))

    @property
    def history(self) -> Mapping[str, Mapping[str, Any]]:
        """The columns that a request must bring from earlier events, and how each is computed.

        :meth:`widedeep.join.HistoryState.of_definitions` computes them event by event.
        """
        return self.schema.history

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Read a bundle, without torch and without pickle.

        Args:
            path: Its directory.
            verify: Compare every file with its checksum and score the warm-up rows again. Names and
                sizes of the files are checked in any case.

        Raises:
            BundleError: If a file is missing, left over, incomplete or changed, the format is of
                another version, or the warm-up rows get other scores than they had.
        """
        path = Path(path)
        manifest = read_manifest(path)
        check_files(path, manifest, verify=verify)
        bundle = cls._open(path, manifest)
        if verify:
            bundle._check_warmup()
        return bundle

    @classmethod
    def _open(cls, path: Path, manifest: Manifest) -> Bundle:
        """Read the files; whoever wrote them, what they hold is refused by name or scores."""
        try:
            return cls._read(path, manifest)
        except BundleError:
            raise
        except (WideDeepError, OSError, *_DAMAGED) as error:
            reason = error if isinstance(error, WideDeepError) else repr(error)
            raise BundleError(
                f"{path}: {reason}; copy the bundle again, or export it again"
            ) from error

    @classmethod
    def _read(cls, path: Path, manifest: Manifest) -> Bundle:
        schema = Schema.load(path / files.SCHEMA)
        config, model = files.read_config(path)
        weights = map_tensors(path / files.WEIGHTS)
        metrics = files.read_metrics(path)
        calibration = files.read_calibration(path)
        warmup = files.read_warmup(path)
        if schema.fingerprint != manifest.schema_fingerprint:
            raise BundleError(
                f"{path / files.SCHEMA}: got the schema {schema.fingerprint[:12]}, the manifest "
                f"names {manifest.schema_fingerprint[:12]}: it is another model's; export again"
            )
        check_weights(schema, model, weights, manifest.engine)
        bundle = cls(
            path=path,
            manifest=manifest,
            schema=schema,
            model=model,
            weights=weights,
            config=config,
            metrics=metrics,
            calibration=calibration,
            warmup=warmup,
        )
        for column in bundle.encoder.columns(targets=False):
            if column not in schema.columns:
                raise BundleError(
                    f"{path / files.SCHEMA}: no type for the column {column!r}, which a feature "
                    "reads; export again"
                )
        return bundle

    def _check_warmup(self) -> None:
        if not self.warmup.rows:
            return
        found = self._by_head(self.score(self.warmup.rows))
        for head, expected in self.warmup.scores.items():
            got = found.get(head, np.empty(0))
            lengths = {np.size(score) for score in expected}
            want = np.array(expected, np.float64) if len(lengths) == 1 else np.empty(0)
            if want.shape != got.shape or head not in found:
                raise BundleError(
                    f"{self.path / files.WARMUP}: got {len(expected)} stored scores of head "
                    f"{head!r}, expected {got.shape} of one of {list(found)}; export it again"
                )
            worst = np.abs(got - want) / np.maximum(1.0, np.abs(want))
            if not (worst <= _WARMUP_TOLERANCE).all():
                at = np.unravel_index(int(np.nan_to_num(worst, nan=np.inf).argmax()), worst.shape)
                raise BundleError(
                    f"{self.path / files.WARMUP}: warm-up row {at[0]} scores {got[at]}, it scored "
                    f"{want[at]} when the bundle was written; export it with this version"
                )

    def score(self, rows: object, *, threads: int = 1, strict: bool = False) -> Scores:
        """Score raw rows.

        Args:
            rows: A dict or a list of dicts (a request), or whatever :meth:`widedeep.Trainer.fit`
                reads: a path, a glob, a data frame, an Arrow table. Tables are read in chunks.
            threads: Threads to use; the scores do not depend on it.
            strict: Refuse a dict that lacks a column. Otherwise an absent key is a null, and
                counted in :attr:`absent`; one that looks misspelt is told in :attr:`misspelt`.

        Returns:
            float64: the probability of each row (B,) for a binary head, of each class (B, C) for a
            multi-class head, the value (B,) for a regression; a dict by head for several heads.
            Calibrated if the bundle holds a calibration.

        Raises:
            DataError: If a table lacks a column, or a dict does and ``strict`` is set.
            FeatureError: If a value does not fit its feature.
        """
        found = [
            self._by_head(self.scores_of(self.logits(batch, threads=threads)))
            for batch in self.batches(rows, threads=threads, strict=strict)
        ]
        heads = {head: np.concatenate([part[head] for part in found]) for head in found[0]}
        return next(iter(heads.values())) if len(heads) == 1 else heads

    def limit_values(self, most: int) -> None:
        """Refuse requests of more values from now on, as a server does.

        Args:
            most: Ids, combinations of crosses and numbers, over all rows of a request.
        """
        self._encoder.plan.native.max_values = most

    @property
    def input_columns(self) -> dict[str, ColumnType]:
        """The columns that a row may bring to be scored, with their logical types."""
        columns = self.schema.columns
        return {name: columns[name] for name in self._encoder.columns(targets=False)}

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return rows as ids and numbers; an absent key is a null, and counted nowhere.

        Args:
            rows: One mapping a row, from column to value.

        Raises:
            FeatureError: If a value does not fit its feature.
        """
        encoder = copy.copy(self._encoder)
        encoder.absent = {}
        return encoder.rows(rows)

    def logits(self, batch: Batch, *, threads: int = 1) -> NDArray[np.float32]:
        """Return the logits of an encoded batch, (B, C), not calibrated.

        Args:
            batch: B examples, encoded with :attr:`schema`.
            threads: Threads to use; the logits do not depend on it.

        Raises:
            SchemaError: If the batch was made with another schema.
        """
        return self._forward.logits(batch, threads=threads)

    def scores_of(self, logits_BC: NDArray[np.float32]) -> Scores:
        """Return what :meth:`score` gives for logits.

        Args:
            logits_BC: From :meth:`logits`.
        """
        scores = {
            head.name: head_scores(
                head,
                np.ascontiguousarray(logits_BC[:, head.start : head.stop], dtype=np.float64),
                self.calibration.get(head.name),
            )
            for head in self.model.heads
        }
        return next(iter(scores.values())) if len(scores) == 1 else scores

    def explain(self, row: Mapping[str, Any]) -> Explanation:
        """Take one row's logits apart: its wide terms by name, the deep part, the bias.

        Args:
            row: Raw values by column.

        Raises:
            FeatureError: If a value does not fit its feature.
        """
        batch = self._encode_rows([row])
        _, deep_BC = self._forward.parts(batch)
        logits_BC = self.logits(batch)
        scores = self._by_head(self.scores_of(logits_BC))
        return Explanation(
            model=self.model,
            wide=tuple(self._wide_terms(row, batch)),
            deep=tuple(deep_BC[0].tolist()),
            bias=tuple(self.weights["bias"].tolist()),
            logits=tuple(logits_BC[0].tolist()),
            score={head: _plain_score(found[0]) for head, found in scores.items()},
        )

    def _wide_terms(self, row: Mapping[str, Any], batch: Batch) -> Iterator[WideTerm]:
        for index, slot in enumerate(self.schema.slots):
            if slot.name not in self.model.wide:
                continue
            cell = slice(*batch.offsets_BF[index : index + 2].tolist())
            ids = batch.ids_N[cell]
            values = np.ones(len(ids)) if batch.values_N is None else batch.values_N[cell]
            scale = _combiner_scale(values, slot.wide_combiner(self.model.wide_combiner))
            names = name_ids(self.schema, self.encode, slot.name, row, ids.tolist())
            for id_, value, (text, row_value) in zip(ids, values.tolist(), names, strict=True):
                weights = self.weights[f"wide/{slot.name}"][id_].astype(np.float64) * value * scale
                yield WideTerm(
                    feature=slot.name,
                    value=text,
                    row_value=row_value,
                    weights=tuple(weights.tolist()),
                )

    def _by_head(self, scores: Scores) -> dict[str, NDArray[np.float64]]:
        return scores if isinstance(scores, dict) else {self.model.heads[0].name: scores}

    def batches(self, rows: object, *, threads: int = 1, strict: bool = False) -> Iterator[Batch]:
        """Encode what :meth:`score` takes, chunk by chunk."""
        if isinstance(rows, Mapping):
            rows = [rows]
        if isinstance(rows, Sequence) and rows and isinstance(rows[0], Mapping):
            total = 0
            for start in range(0, len(rows), _CHUNK_ROWS):
                chunk = rows[start : start + _CHUNK_ROWS]
                batch = self._encode_rows(chunk, threads=threads, strict=strict)
                total += batch.n_values
                self._encoder.check_values(total)
                yield batch
            return
        yield from self._encode_table(rows, threads=threads)

    def _encode_rows(
        self, rows: Sequence[Mapping[str, Any]], *, threads: int = 1, strict: bool = False
    ) -> Batch:
        transform = self._transform(threads)
        before = sum(transform.absent.values())
        batch = transform.rows(rows, strict=strict)
        if sum(transform.absent.values()) != before:
            self._misspelt |= transform.misspelt(rows)
        return batch

    def _encode_table(self, rows: object, *, threads: int) -> Iterator[Batch]:
        transform = self._transform(threads)
        types = self.schema.input_types()
        with open_source(
            rows, columns=transform.columns(targets=False), column_types=types
        ) as source:
            if not source.num_rows:
                raise DataError("got a table without rows to score; give at least one row")
            for table in column_stream(source):
                origin, first_row = origin_of(table) or ("", 0)
                for start in range(0, table.num_rows, _CHUNK_ROWS):
                    yield transform(
                        table.slice(start, _CHUNK_ROWS),
                        targets=False,
                        origin=origin,
                        first_row=first_row + start,
                    )

    def _transform(self, threads: int) -> Transform:
        if threads == self._encoder.threads:
            return self._encoder
        # Shares the look-up tables and the counts; only the number of threads is its own.
        encoder = copy.copy(self._encoder)
        encoder.threads = threads
        return encoder

    @property
    def encoder(self) -> Transform:
        """Turns rows into batches, as :meth:`score` does."""
        return self._encoder

    @property
    def absent(self) -> dict[str, int]:
        """How often each column was absent from the dicts scored so far, and taken for null."""
        return dict(self._encoder.absent)

    @property
    def misspelt(self) -> dict[str, str]:
        """Keys of the dicts scored so far that look like a column that was absent, with it."""
        return dict(self._misspelt)

    def __repr__(self) -> str:
        heads = ", ".join(f"{head.name} {head.kind}".strip() for head in self.model.heads)
        towers = "towers of its own" if self.manifest.engine == "onnx" else "no deep part"
        if self.manifest.engine == "native" and self.model.deep:
            towers = f"hidden units {list(self.model.hidden_units)}, {self.model.activation}"
        size = sum(entry.size for entry in self.manifest.files.values())
        metrics = ", ".join(
            f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}"
            for name, value in self.metrics.items()
            if isinstance(value, (int, float))
        )
        lines = [
            f"Bundle at {self.path} ({size / 1e6:.1f} MB, written by widedeep "
            f"{self.manifest.created_by})",
            f"heads: {heads}",
            f"wide: {len(self.model.wide)} features; deep: {len(self.model.deep)} features, "
            f"{self.model.width} columns, {towers}",
            f"schema: {self.schema.fingerprint[:12]}",
        ]
        if self.calibration:
            kinds = (curve.kind for curve in self.calibration.values())
            lines.append(f"calibration: {', '.join(kinds)}")
        return "\n".join([*lines, f"metrics: {metrics}"] if metrics else lines)


def _tower_graph(
    path: Path, manifest: Manifest, schema: Schema, model: BundleModel
) -> TowerGraph | None:
    if manifest.engine != "onnx":
        return None
    extra = {name: schema.dense_layout[name] for name in schema.spec.extra}
    return TowerGraph(
        path / files.GRAPH,
        width=model.width,
        n_logits=model.n_logits,
        extra={name: at.stop - at.start for name, at in extra.items()},
    )


def head_scores(
    head: BundleHead, logits: NDArray[np.float64], calibration: Calibration | None
) -> NDArray[np.float64]:
    """Return a head's scores: its link of its logits (B, c), or its calibration of them."""
    if calibration is not None:
        return calibration.probabilities(logits[:, 0])
    if head.link == "identity":
        return logits[:, 0]
    if head.link == "exp":
        return np.exp(logits[:, 0])
    if head.link == "sigmoid":
        return sigmoid(logits[:, 0])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    # Class after class: an order that does not depend on the number of rows.
    total = np.zeros(len(powers))
    for column in powers.T:
        total += column
    probabilities: NDArray[np.float64] = powers / total[:, None]
    return probabilities


def _combiner_scale(values: NDArray[Any], combiner: str) -> float:
    if combiner == "sum":
        return 1.0
    divisor = float(np.sqrt((values**2).sum()) if combiner == "sqrtn" else values.sum())
    return 1.0 / divisor if divisor else 0.0


def _plain_score(score: Any) -> float | tuple[float, ...]:
    return tuple(score.tolist()) if np.ndim(score) else float(score)
