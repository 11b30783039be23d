"""Bundle: a trained model, read from its directory, that scores raw rows."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle.explain import Explanation, explain_row
from widedeep.bundle.graph import Forward, TowerGraph
from widedeep.bundle.layout import (
    GRAPH,
    SCHEMA,
    WARMUP,
    BundleContents,
    BundleModel,
    read_contents,
)
from widedeep.bundle.manifest import Manifest, check_files, read_manifest
from widedeep.bundle.predictions import Predictions, named_predictions
from widedeep.bundle.program import TowerProgram
from widedeep.data.batch import Batch
from widedeep.data.fragments import row_chunks
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, DataError, WideDeepError, nearest
from widedeep.features.spec import item_columns
from widedeep.kernels import Scorer
from widedeep.schema import ColumnType

__all__ = ["Bundle", "Scores"]

Scores: TypeAlias = NDArray[np.float64] | dict[str, NDArray[np.float64]]

_CHUNK_ROWS = 16_384
_WARMUP_TOLERANCE = 1e-4
# Exceptions of values of a wrong kind that no check of ours names.
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
        metrics: Metrics stored at export.
        calibration: By head.
        warmup: Rows to score before the first request, with the scores they had at export.
        weights: By name, as :func:`widedeep.bundle.write_bundle` takes them; mapped, not copied.
        posterior: The posterior of the last layer's weights, by name
            (:func:`widedeep.bundle.posterior.fit_posterior`); empty if it was exported without one.
        program: The towers as native operations, for bundles of the engine ``"graph"``.
        items: Vectors of the items that it was exported with, of a model with two towers.
        rounding: How its tables of embeddings were rounded, and what that changed; None: they are
            float32. Rounded ones read like float32 arrays, row by row.

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

    def __init__(self, path: Path, manifest: Manifest, contents: BundleContents) -> None:
        self.path = path
        self.manifest = manifest
        self.schema = contents.schema
        self.model = contents.model
        self.weights = contents.weights
        self.config = contents.config
        self.metrics = contents.metrics
        self.calibration = contents.calibration
        self.warmup = contents.warmup
        self.posterior = contents.posterior
        self.items = contents.items
        self.rounding = contents.rounding
        self._misspelt: dict[str, str] = {}
        self._encoder = Transform(self.schema)
        graph = None if manifest.engine != "onnx" else self._read_graph()
        program = contents.program
        self.program = None if program is None else TowerProgram(program, self.weights)
        self._forward = Forward(self.schema, self.model, self.weights, graph, program=self.program)

    def _read_graph(self) -> TowerGraph:
        layout = self.schema.dense_layout
        widths = {name: layout[name].stop - layout[name].start for name in self.schema.spec.extra}
        return TowerGraph(
            self.path / GRAPH,
            width=self.model.width,
            n_logits=self.model.n_logits,
            extra=widths,
            sequences=self.model.sequences,
        )

    def derive(self, model: BundleModel, weights: Mapping[str, NDArray[np.float32]]) -> Bundle:
        """Return another model that reads the same rows, scored natively.

        Args:
            model: Its shape, with the standard tower or none.
            weights: By name, as :func:`widedeep.bundle.write_bundle` takes them.
        """
        other = copy.copy(self)
        other.model, other.weights, other.program = model, weights, None
        other.manifest = replace(self.manifest, engine="native")
        other._forward = Forward(self.schema, model, weights)
        return other

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
        bundle = open_bundle(path, manifest)
        if verify:
            bundle.check_warmup()
        return bundle

    def check_warmup(self) -> None:
        """Score the warm-up rows again.

        Raises:
            BundleError: If they get other scores than they had at export.
        """
        if not self.warmup.rows:
            return
        scores = self.scores_by_head(self.row_logits(self.warmup.rows))
        for head, stored in self.warmup.scores.items():
            got = scores.get(head, np.empty(0))
            lengths = {np.size(score) for score in stored}
            expected = np.array(stored, np.float64) if len(lengths) == 1 else np.empty(0)
            if expected.shape != got.shape or head not in scores:
                raise BundleError(
                    f"{self.path / WARMUP}: got {len(stored)} stored scores of head "
                    f"{head!r}, expected {got.shape} of one of {list(scores)}; export it again"
                )
            errors = np.abs(got - expected) / np.maximum(1.0, np.abs(expected))
            if not (errors <= _WARMUP_TOLERANCE).all():
                worst = int(np.nan_to_num(errors, nan=np.inf).argmax())
                index = np.unravel_index(worst, errors.shape)
                raise BundleError(
                    f"{self.path / WARMUP}: warm-up row {index[0]} scores {got[index]}, it scored "
                    f"{expected[index]} when the bundle was written; export it with this version"
                )

    def score(self, rows: object, *, threads: int = 1, strict: bool = False) -> Scores:
        """Score raw rows.

        Args:
            rows: A dict or a list of dicts (a request), or whatever :meth:`widedeep.Trainer.fit`
                reads: a path, a glob, a data frame, an Arrow table. Tables are read in chunks.
            threads: Threads to use; the scores do not depend on it.
            strict: Refuse a dict that lacks a column. Otherwise an absent key is a null, and
                counted in :attr:`absent`; one that looks misspelt stands in :attr:`misspelt`.

        Returns:
            float64: the probability of each row (B,) for a binary head, of each class (B, C) for a
            multi-class head, the value (B,) for a regression; a dict by head for several heads.
            Calibrated if the bundle has a calibration.

        Raises:
            DataError: If a table lacks a column, or a dict does and ``strict`` is set.
            FeatureError: If a value does not fit its feature.
        """
        return self.scores_of(self.row_logits(rows, threads=threads, strict=strict))

    def predictions(
        self, rows: object, keys: Iterable[str] | None = None, *, threads: int = 1
    ) -> Predictions:
        """Score raw rows, and name what comes out as ``tf.estimator`` does.

        Args:
            rows: As for :meth:`score`.
            keys: Names of the predictions wanted, or one of them (TensorFlow's
                ``predict_keys``); None: all.
            threads: Threads to use; the scores do not depend on it.

        Returns:
            Arrays of B rows by name: ``logits``, ``logistic``, ``probabilities``, ``class_ids``,
            ``classes``, ``all_class_ids`` and ``all_classes`` of a binary head, ``predictions`` of
            a regression; prefixed ``head/`` for several heads. All but the logits are calibrated if
            the bundle has a calibration; the logits have what it adds to single values.

        Raises:
            ConfigError: If the model has no prediction of such a name.
            DataError: If a table lacks a column.
            FeatureError: If a value does not fit its feature.

        Example:
            >>> import widedeep as wd
            >>> spec = wd.FeatureSpec(label="income", features=[wd.categorical("education")])
            >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
            >>> bundle = trainer.export("by_education")
            >>> sorted(bundle.predictions({"education": "Bachelors"}, ["logits", "class_ids"]))
            ['class_ids', 'logits']
        """
        return self.predictions_of(self.row_logits(rows, threads=threads), keys)

    def predictions_of(
        self, logits_BC: NDArray[np.float32], keys: Iterable[str] | None = None
    ) -> Predictions:
        """Return what :meth:`predictions` gives for logits."""
        scores = self.scores_by_head(logits_BC)
        return named_predictions(self.model.heads, logits_BC, scores, keys)

    @property
    def compat(self) -> str | None:
        """The library whose names the model goes by: ``"tensorflow"``, or None."""
        compat: str | None = self.config.get("model", {}).get("compat")
        return compat

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

    def row_logits(
        self, rows: object, *, threads: int = 1, strict: bool = False
    ) -> NDArray[np.float32]:
        """Return the logits of what :meth:`score` takes, (B, C), not calibrated."""
        batches = self.batches(rows, threads=threads, strict=strict)
        return np.concatenate([self.logits(batch, threads=threads) for batch in batches])

    @property
    def has_vectors(self) -> bool:
        """True for a model with two towers: :meth:`query_vector` and :meth:`item_vectors`."""
        return {"query", "item"} <= self._forward.vector_sides

    def query_vector(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        """Return the vector of a user and context: the best items have the largest product with it.

        Args:
            row: Values of the query by column; an absent one is a null.

        Shape:
            (D,), of length 1

        Raises:
            BundleError: If the model has no two towers.
            FeatureError: If a value does not fit its feature.
        """
        self._check_vectors()
        vector_D: NDArray[np.float32] = self._forward.vectors("query", self.encode([row]))[0]
        return vector_D

    def item_vectors(self, items: pa.Table, *, threads: int = 1) -> NDArray[np.float32]:
        """Return the vectors of items.

        Args:
            items: One row per item, with the columns that the model reads of one; others may be
                missing.
            threads: Threads to use; the vectors do not depend on it.

        Shape:
            (N, D), each of length 1

        Raises:
            BundleError: If the model has no two towers.
            DataError: If a column of the item is missing.
            FeatureError: If a value does not fit its feature.
        """
        self._check_vectors()
        own = [name for name in self.input_columns if name in item_columns(self.schema.spec)]
        for name in own:
            if name not in items.column_names:
                raise DataError(
                    f"the items: got no column {name!r}, which the model reads of an item; "
                    f"{nearest(name, items.column_names)}"
                )
        blocks = []
        for start in range(0, items.num_rows, _CHUNK_ROWS):
            rows = items.slice(start, _CHUNK_ROWS).select(own).to_pylist()
            blocks.append(self._forward.vectors("item", self.encode(rows), threads=threads))
        if not blocks:
            raise DataError("the items: got no rows, expected at least one")
        return np.concatenate(blocks)

    def _check_vectors(self) -> None:
        if not self.has_vectors:
            raise BundleError(
                f"{self.path}: got a model without two towers, which has no vectors of queries and "
                "items; train it with deep = ['mlp', { name = 'two_tower', item = 'ITEM_ID' }]"
            )

    def scores_of(self, logits_BC: NDArray[np.float32]) -> Scores:
        """Return what :meth:`score` gives for logits.

        Args:
            logits_BC: From :meth:`logits`.
        """
        scores = {
            head.name: head.scores(logits_BC, self.calibration.get(head.name))
            for head in self.model.heads
        }
        return next(iter(scores.values())) if len(scores) == 1 else scores

    def scores_by_head(self, logits_BC: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Return the scores of logits by head, also of a model with one head."""
        scores = self.scores_of(logits_BC)
        return scores if isinstance(scores, dict) else {self.model.heads[0].name: scores}

    def explain(self, row: Mapping[str, Any]) -> Explanation:
        """Explain one row's logits: its wide terms by name, the deep part, the bias.

        Args:
            row: Raw values by column.

        Raises:
            FeatureError: If a value does not fit its feature.
        """
        batch = self._encode_rows([row])
        _, deep_BC = self._forward.parts(batch)
        logits_BC = self.logits(batch)
        return explain_row(
            row,
            batch,
            schema=self.schema,
            model=self.model,
            weights=self.weights,
            encode=self.encode,
            deep_C=deep_BC[0],
            parts=self._forward.explain(batch),
            logits_C=logits_BC[0],
            scores=self.scores_by_head(logits_BC),
        )

    def batches(
        self, rows: object, *, threads: int = 1, strict: bool = False, targets: bool = False
    ) -> Iterator[Batch]:
        """Encode what :meth:`score` takes, chunk by chunk; with ``targets``, as in training."""
        if isinstance(rows, Mapping):
            rows = [rows]
        if not targets and isinstance(rows, Sequence) and rows and isinstance(rows[0], Mapping):
            total = 0
            for start in range(0, len(rows), _CHUNK_ROWS):
                chunk = rows[start : start + _CHUNK_ROWS]
                batch = self._encode_rows(chunk, threads=threads, strict=strict)
                total += batch.n_values
                self._encoder.check_values(total)
                yield batch
            return
        yield from self._encode_table(rows, threads=threads, targets=targets)

    def _encode_rows(
        self, rows: Sequence[Mapping[str, Any]], *, threads: int = 1, strict: bool = False
    ) -> Batch:
        transform = self._transform(threads)
        before = sum(transform.absent.values())
        batch = transform.rows(rows, strict=strict)
        if sum(transform.absent.values()) != before:
            self._misspelt |= transform.misspelt(rows)
        return batch

    def _encode_table(self, rows: object, *, threads: int, targets: bool) -> Iterator[Batch]:
        transform = self._transform(threads)
        types = self.schema.input_types()
        columns = transform.columns(targets=targets)
        with open_source(rows, columns=columns, column_types=types) as source:
            if not source.num_rows:
                raise DataError("got a table without rows to score; give at least one row")
            for chunk, origin, first_row in row_chunks(source, _CHUNK_ROWS):
                yield transform(chunk, targets=targets, origin=origin, first_row=first_row)

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
    def native_scorer(self) -> Scorer:
        """What computes the logits, for the native server; without towers of ONNX Runtime."""
        return self._forward.scorer

    @property
    def absent(self) -> dict[str, int]:
        """How often each column was absent from the dicts scored so far, and taken for null."""
        return dict(self._encoder.absent)

    @property
    def truncated(self) -> dict[str, int]:
        """How many lists scored so far were longer than their feature's ``maxlen``, by feature."""
        return self._encoder.truncated

    @property
    def misspelt(self) -> dict[str, str]:
        """Keys of the dicts scored so far that look like a column that was absent, with it."""
        return dict(self._misspelt)

    def __repr__(self) -> str:
        heads = ", ".join(f"{head.name} {head.kind}".strip() for head in self.model.heads)
        native = self.manifest.engine == "native"
        # Bundles of earlier versions do not list their towers.
        names = ", ".join(self.model.towers) or "of its own"
        towers = "no deep part" if native else f"towers {names}"
        if native and self.model.deep:
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
        if self.rounding is not None:
            lines.append(str(self.rounding))
        if self.items is not None:
            column, width = self.items.column, self.items.vectors_ND.shape[1]
            lines.append(f"vectors: {len(self.items):,} items by {column!r}, {width} wide")
        if self.calibration:
            kinds = (curve.kind for curve in self.calibration.values())
            lines.append(f"calibration: {', '.join(kinds)}")
        return "\n".join([*lines, f"metrics: {metrics}"] if metrics else lines)


def open_bundle(path: Path, manifest: Manifest) -> Bundle:
    """Read the files of a bundle; whatever they hold, errors name the bundle."""
    try:
        bundle = Bundle(path, manifest, read_contents(path, manifest))
        for column in bundle.encoder.columns(targets=False):
            if column not in bundle.schema.columns:
                raise BundleError(
                    f"{path / SCHEMA}: no type for the column {column!r}, which a feature "
                    "reads; export again"
                )
        return bundle
    except BundleError:
        raise
    except (WideDeepError, OSError, *_DAMAGED) as error:
        reason = error if isinstance(error, WideDeepError) else repr(error)
        raise BundleError(f"{path}: {reason}; copy the bundle again, or export it again") from error
