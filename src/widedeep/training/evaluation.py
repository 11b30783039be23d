"""Scores and metrics of a model over a dataset, and the parts that it lends to a bundle."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from widedeep.bundle import BundleHead, BundleModel, BundleSequence, DeepColumn
from widedeep.bundle.graph import TowerForward
from widedeep.bundle.layout import LINKS
from widedeep.data.batch import Batch
from widedeep.data.fragments import Source, origin_of
from widedeep.data.packed import PackedExamples
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.requests import RequestSource, request_encoder
from widedeep.data.sources import open_on_ranks
from widedeep.data.transform import Transform
from widedeep.errors import DataError, data_errors_of
from widedeep.metrics import MetricCollection, metrics_of
from widedeep.models.blocks import has_hooks
from widedeep.models.head_base import Head
from widedeep.models.layer_options import NATIVE_ACTIVATIONS
from widedeep.models.mlp import MLPTower
from widedeep.models.wide_deep import JOIN, NUMBERS, WideDeep
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first
from widedeep.training.exchange import Exchange


def bundle_model(model: WideDeep, sequences: Collection[str] = ()) -> BundleModel:
    """Return the description of a model that scoring needs; its towers read ``sequences``."""
    layout, slots = model.gathered, {slot.name: slot for slot in model.schema.slots if slot.deep}
    columns = [
        DeepColumn(
            name=name,
            source="table" if name in slots else "dense",
            start=span.start,
            stop=span.stop,
            combiner=slots[name].combiner if name in slots else None,
        )
        for name, span in layout.columns.items()
    ]
    starts = {h.name: span.start for h, span in zip(model.heads, model.head_slices, strict=True)}
    heads = [
        BundleHead(
            name=head.name,
            kind=head.kind,
            start=span.start,
            stop=span.stop,
            classes=tuple(model.schema.classes.get(head.name, ())),
            own_link=None if head.link_in_use == LINKS[head.kind][0] else head.link_in_use,
            through=starts.get(getattr(head, "through", None) or "\0"),
        )
        for head, span in zip(model.heads, model.head_slices, strict=True)
    ]
    tower = standard_tower(model)
    activation = model.config.activation if tower is None else tower.activation
    return BundleModel(
        heads=tuple(heads),
        # Of the standard tower; others have theirs in the program or graph
        activation=activation
        if isinstance(activation, str) and activation in NATIVE_ACTIVATIONS
        else "none",
        hidden_units=() if tower is None else tower.hidden_units,
        wide=tuple(slot.name for slot in model.schema.slots if slot.wide),
        wide_combiner=model.config.wide_combiner,
        deep=tuple(columns),
        towers={} if tower is not None else _tower_sizes(model),
        rank_by=model.config.rank_by,
        sequences=tuple(
            BundleSequence(name=name, width=layout.dims[name], maxlen=layout.maxlen[name])
            for name in layout.sequences
            if name in sequences
        ),
    )


def _tower_sizes(model: WideDeep) -> dict[str, int]:
    sizes: dict[str, int] = {}
    modules = {**model.towers, **({} if model.join is None else {JOIN: model.join})}
    if model.numbers is not None:
        modules[NUMBERS] = model.numbers
    for name, module in modules.items():
        layers = [module, *([model.outputs[name]] if name in model.outputs else [])]
        sizes[name] = sum(p.numel() for layer in layers for p in layer.parameters())
    return sizes


def bundle_weights(model: WideDeep, sequences: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Return a model's weights by their names in a bundle, batch norm folded into later layers."""
    weights: dict[str, NDArray[Any]] = {"bias": _array(model.logit_bias)}
    if model.wide_table is not None:
        weights.update(
            {f"wide/{name}": _array(w) for name, w in model.wide_table.named_weights().items()}
        )
    # The standard tower reads no sequence, and others may leave some out.
    read = {*model.layout.columns, *sequences}
    used = {slot.table for slot in model.schema.slots if slot.deep and slot.name in read}
    for table in model.embedding_tables:
        named = table.named_weights().items()
        weights.update({f"table/{name}": _array(w) for name, w in named if name in used})
    tower = standard_tower(model)
    if tower is not None:
        (output,) = model.outputs.values()
        assert isinstance(output, nn.Linear)
        weights.update(mlp_weights(tower, output, weights["bias"]))
    return weights


def standard_tower(model: WideDeep) -> MLPTower | None:
    """Return the standard tower if it is the only one; other models keep theirs in a graph."""
    towers, outputs = list(model.towers.values()), list(model.outputs.values())
    if (
        model.numbers is not None
        or len(towers) != 1
        or type(towers[0]) is not MLPTower
        or not towers[0].is_standard
    ):
        return None
    return towers[0] if type(outputs[0]) is nn.Linear and not has_hooks(outputs[0]) else None


def mlp_weights(
    tower: MLPTower, output: nn.Linear, bias_C: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Fold each layer's norm, a * h + c, into the layer that reads h: W (a * h + c) + b."""
    weights: dict[str, NDArray[Any]] = {}
    scale: NDArray[np.float64] | None = None
    shift: NDArray[np.float64] | None = None
    for i, layer in enumerate(tower.layers):
        assert isinstance(layer, nn.Linear)
        weight, bias = (
            _array(layer.weight).astype(np.float64),
            _array(layer.bias).astype(np.float64),
        )
        if scale is not None and shift is not None:
            weight, bias = weight * scale, bias + weight @ shift
        weights[f"mlp/{i}/weight"], weights[f"mlp/{i}/bias"] = (
            weight.astype(np.float32),
            bias.astype(np.float32),
        )
        if tower.norms is not None:
            norm = tower.norms[i]
            assert isinstance(norm, nn.BatchNorm1d)
            assert norm.running_mean is not None and norm.running_var is not None
            scale = _array(norm.weight) / np.sqrt(
                _array(norm.running_var).astype(np.float64) + norm.eps
            )
            shift = _array(norm.bias) - _array(norm.running_mean) * scale
    head = _array(output.weight).astype(np.float64)
    if scale is not None and shift is not None:
        weights["bias"] = (bias_C + head @ shift).astype(np.float32)
        head = head * scale
    weights["head/weight"] = head.astype(np.float32)
    return weights


class _HalfTable:
    """A table in bfloat16 that reads like a float32 matrix: only the rows asked for are copied."""

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, rows_RD: torch.Tensor) -> None:
        self._rows_RD = rows_RD
        self.shape = tuple(rows_RD.shape)

    def __len__(self) -> int:
        return len(self._rows_RD)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        floats: NDArray[np.float32] = self._rows_RD[rows].float().numpy()
        return floats


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return cast("NDArray[np.float32]", _HalfTable(tensor))
    array: NDArray[Any] = tensor.numpy()
    return array


EVALUATION_ROWS = 8192


class Metrics(dict[str, float]):
    """Metrics by name."""

    reasons: dict[str, str]


Logits = Callable[[Batch], NDArray[np.float32]]


@contextlib.contextmanager
def evaluating(
    model: WideDeep,
    *,
    threads: int = 1,
    by_modules: bool = False,
    exchange: Exchange | None = None,
) -> Iterator[Logits]:
    """Switch dropout off and batch norm to its running figures, and back.

    With ``exchange`` lanes are scored one by one, with rows of all ranks, which compute as many
    batches together.
    """
    was_training = model.training
    model.eval()
    try:
        tower = standard_tower(model) if not by_modules and model.device.type == "cpu" else None
        if tower is None:
            logits: Logits = lambda batch: model(batch, threads=threads).cpu().numpy()  # noqa: E731
        else:
            logits = _as_served(model, tower, threads)
        yield logits if exchange is None else _by_lanes(model, logits, exchange)
    finally:
        model.train(was_training)


def _by_lanes(model: WideDeep, logits: Logits, exchange: Exchange) -> Logits:
    """Score each lane by itself: a product may round a row otherwise among other rows."""
    ranks = exchange.ranks

    def own_logits(batch: Batch) -> NDArray[np.float32]:
        # Without rows too: others have some, and this rank may own what theirs ask for.
        rows = exchange.ask([batch], [1] * ranks.size, exact=True) if ranks.size > 1 else None
        logits_BC = np.zeros((len(batch), model.n_logits), np.float32)
        start = first_id = 0
        for lane in batch.lanes():
            stop = start + len(lane)
            with nullcontext() if rows is None else exchange.reading(rows, 0, lane, first_id):
                if len(lane):
                    logits_BC[start:stop] = logits(lane)
            start, first_id = stop, first_id + len(lane.ids_N)
        return logits_BC

    return own_logits


def _as_served(model: WideDeep, tower: MLPTower, threads: int) -> Logits:
    (output,) = model.outputs.values()
    assert isinstance(output, nn.Linear)
    bias_C = model.logit_bias.detach().numpy()
    weights = {"bias": bias_C, **mlp_weights(tower, output, bias_C)}
    forward = TowerForward(model.schema, bundle_model(model), weights)

    def logits(batch: Batch) -> NDArray[np.float32]:
        model.check_batch(batch)
        logits_BC: NDArray[np.float32] = model.wide_logits(
            batch, threads=threads, bias=False
        ).numpy()
        concat_BX = model.gather(batch, threads=threads).concat_BX.numpy()
        logits_BC += forward.logits(concat_BX, threads=threads)
        logits_BC += weights["bias"]
        return logits_BC

    return logits


def make_metrics(head: Head, *, groups: bool) -> MetricCollection:
    """Return the collection of metrics for a head."""
    score_kind: Literal["logit", "probability"] = "logit" if _by_logits(head) else "probability"
    return metrics_of(head.label_kind, classes=head.width, score_kind=score_kind, groups=groups)


def evaluate_batches(model: WideDeep, logits: Logits, batches: Iterable[Batch]) -> Metrics:
    """Return a model's metrics over labelled batches."""
    groups = model.schema.spec.group is not None
    collections = [make_metrics(head, groups=groups) for head in model.heads]
    means = [MeanLoss(model, index) for index in range(len(model.heads))]
    columns = [*model.schema.spec.labels.values()]
    weighed = False
    for batch in batches:
        weighed = weighed or batch.weight_B is None or bool(batch.weight_B.any())
        logits_BC = logits(batch)
        for index, collection in enumerate(collections):
            scores = _scores(model, index, logits_BC)
            labels, weight_B = model.losses.labels(batch, index), model.losses.weights(batch, index)
            with data_errors_of(f"label {columns[index]!r}"):
                collection.update(*labelled_rows(scores, labels, weight_B, batch.group_B))
            means[index].add(logits_BC, batch)
    if not weighed:
        raise DataError(
            f"weight {model.schema.spec.weight!r}: got 0 in every row of the data to evaluate, so "
            "no metric is defined; give some rows a weight above 0"
        )
    return _named(model, collections, means)


def labelled_rows(
    scores: NDArray[Any],
    labels: NDArray[np.float32],
    weight_B: NDArray[np.float32] | None,
    group_B: NDArray[np.int64] | None,
) -> tuple[NDArray[Any], NDArray[np.float32], Any, Any]:
    """Return the rows that have a label for a head."""
    observed_B = ~np.isnan(labels[:, 0] if labels.ndim == 2 else labels)
    if observed_B.all():
        return scores, labels, weight_B, group_B
    weight_O, group_O = (None if a is None else a[observed_B] for a in (weight_B, group_B))
    return scores[observed_B], labels[observed_B], weight_O, group_O


class MeanLoss:
    """The mean of a head's losses over rows, where no metric of its labels is that."""

    def __init__(self, model: WideDeep, index: int) -> None:
        self._model, self._index = model, index
        self._needed = model.heads[index].loss_metric == "loss"
        self._total = self._weight = 0.0

    def add(self, logits_BC: NDArray[np.float32], batch: Batch) -> None:
        """Add the rows of a batch that have a label."""
        if not self._needed:
            return
        losses_O, weight_O = self._model.losses.of_head(self._index, logits_BC, batch)
        self._total += float((losses_O * weight_O).sum())
        self._weight += float(weight_O.sum())

    def by_name(self) -> dict[str, float]:
        """Return the mean as the metric ``loss``; nothing where another metric is that."""
        if not self._needed:
            return {}
        return {"loss": self._total / self._weight if self._weight else math.nan}


def _named(
    model: WideDeep, collections: Sequence[MetricCollection], means: Sequence[MeanLoss]
) -> Metrics:
    """The metrics of all heads, prefixed where there are several."""
    metrics = Metrics()
    metrics.reasons = {}
    loss = 0.0
    for head, collection, mean in zip(model.heads, collections, means, strict=True):
        prefix = f"{head.name}/" if len(collections) > 1 else ""
        values = {**mean.by_name(), **collection.compute()}
        metrics |= {f"{prefix}{name}": value for name, value in values.items()}
        metrics.reasons |= {f"{prefix}{name}": why for name, why in collection.reasons.items()}
        loss += head.loss_weight * metrics[f"{prefix}{head.loss_metric}"]
    if len(collections) > 1:
        metrics["loss"] = loss
    return metrics


def metric_names(model: WideDeep) -> list[str]:
    """Return the names of the metrics that :func:`evaluate_batches` gives for a model."""
    groups = model.schema.spec.group is not None
    collections = [make_metrics(head, groups=groups) for head in model.heads]
    return [*_named(model, collections, [MeanLoss(model, i) for i in range(len(collections))])]


def _by_logits(head: Head) -> bool:
    """Tell whether a head's metrics read its logits, which say more than probabilities."""
    if not head.follows_link or getattr(head, "through", None) is not None:
        return False
    return head.kind != "regression" or head.link_in_use == "identity"


def _scores(model: WideDeep, index: int, logits_BC: NDArray[np.float32]) -> NDArray[Any]:
    """Return what a head's metrics read: logits, values, or predictions of its own making."""
    head = model.heads[index]
    if _by_logits(head):
        return logits_BC[:, model.head_slices[index]]
    values = model.losses.predictions(index, torch.from_numpy(logits_BC).double()).numpy()
    return values if values.ndim == 2 else values[:, None]


class Evaluator:
    """Opens, encodes, scores and evaluates data for one model."""

    def __init__(
        self,
        model: WideDeep,
        *,
        threads: int = 1,
        observe: Callable[[pa.Table], None] = lambda table: None,
        exchange: Exchange | None = None,
    ) -> None:
        self.model = model
        self.exchange = exchange
        self.threads = threads
        self.transform = Transform(model.schema)
        self._requests: list[tuple[Source, RequestSource]] = []  # of training, and of validation
        self._observe = observe  # Called with each table before it is encoded

    @property
    def ranks(self) -> Ranks:
        """The processes that score together."""
        return Ranks() if self.exchange is None else self.exchange.ranks

    def rows_for(self, batch: Batch) -> AbstractContextManager[object]:
        """Let the model read the rows of a batch, whichever ranks own them."""
        return nullcontext() if self.exchange is None else self.exchange.rows_for(batch)

    def open(self, data: object, role: str, *, targets: bool = True) -> Source:
        """Open data with the columns this model needs; ``role`` names it in an error."""
        return open_on_ranks(
            data,
            self.ranks,
            role,
            columns=self.transform.columns(targets=targets),
            column_types=self.model.schema.input_types(),
            empty=f"got {role} without rows; give at least one example",
        )

    def encoder(self, *, targets: bool = True) -> Callable[..., Batch]:
        """Return the function that turns a table into a Batch."""

        def encode(table: pa.Table) -> Batch:
            self._observe(table)
            origin, first_row = origin_of(table) or ("the data", 0)
            return self.transform(table, targets=targets, origin=origin, first_row=first_row)

        return encode

    def packer(self, sizes: Sequence[int]) -> Callable[[pa.Table], PackedExamples]:
        """Return the function that packs a table: ids of each slot are below a size."""

        def pack(table: pa.Table) -> PackedExamples:
            self._observe(table)
            return self.transform.pack(table, sizes)

        return pack

    def batches(
        self,
        source: Source,
        *,
        targets: bool,
        batch_size: int = EVALUATION_ROWS,
        fragments: dict[int, Any] | None = None,
    ) -> Iterator[Batch]:
        """Encode an open source in its own order, batch by batch; with lanes, in that of each."""
        encode = self.encoder(targets=targets)
        rows = self.by_requests(source) if targets else source
        if isinstance(rows, RequestSource):
            size = rows.requests_of(batch_size)
            plan = EpochPlan(rows, batch_size=size, seed=0, epoch=0, shuffle=False)
            reader = BatchReader(rows, request_encoder(encode), plan)
        else:
            ranks = self.ranks
            plan = EpochPlan(
                source,
                batch_size=-(-batch_size // ranks.lanes) * ranks.lanes,
                seed=0,
                epoch=0,
                shuffle=False,
                lanes=ranks.lanes,
            )
            reader = BatchReader(source, encode, plan, lanes=ranks.lanes_of(), fragments=fragments)
        with reader:
            yield from reader

    def by_requests(self, source: Source) -> Source | RequestSource:
        """Return a source of whole requests for a model whose loss reads these, or the source."""
        group = self.model.schema.spec.group
        if group is None or not any(head.reads_requests for head in self.model.heads):
            return source
        for opened, requests in self._requests:
            if opened is source:
                return requests
        requests = RequestSource(source, group)
        self._requests = [*self._requests[-1:], (source, requests)]
        return requests

    def logits(self, data: object, *, by_modules: bool = False) -> NDArray[np.float32]:
        """Return the logits of every row, (rows, C), in the data's order."""
        with (
            self.open(data, "data to score", targets=False) as source,
            self._evaluating(by_modules=by_modules) as logits,
        ):
            batches = self.batches(source, targets=False)
            (logits_BC,) = self._columns(batches, lambda batch: (logits(batch),))
        return logits_BC

    def labelled_logits(
        self, data: object
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the first logit, the first label and the weight of every row."""
        weighs = False

        def columns(batch: Batch) -> tuple[NDArray[np.float32], ...]:
            nonlocal weighs
            weight_B = self.model.losses.weights(batch, 0)
            weighs = weighs or weight_B is not None
            weight_B = np.ones(len(batch), np.float32) if weight_B is None else weight_B
            assert batch.labels_BL is not None
            return logits(batch)[:, 0], batch.labels_BL[:, 0], weight_B

        with self.open(data, "labelled data") as source, self._evaluating() as logits:
            batches = self.batches(source, targets=True)
            logits_B, labels_B, weight_B = self._columns(batches, columns)
        return logits_B, labels_B, weight_B if self.ranks.any(weighs) else None

    def evaluate(self, source: Source, fragments: dict[int, Any] | None = None) -> Metrics:
        """Return metrics on an open source, which stays open; the same on every rank.

        Args:
            source: What to score.
            fragments: What was encoded of it before, by fragment; filled. None: nothing is kept.
        """
        ranks = self.ranks
        with self._evaluating() as logits:
            batches = self.batches(source, targets=True, fragments=fragments)
            if ranks.size == 1:
                return evaluate_batches(self.model, logits, batches)
            scored = _Scored(_gathered(ranks, logits, batches))
            measure = partial(evaluate_batches, self.model, scored.logits, scored)
            measured = scored.to_the_end(measure if ranks.is_first else lambda: Metrics())

            def told() -> dict[str, Any]:
                metrics = measured()
                return {"metrics": metrics, "reasons": metrics.reasons}

            answer = on_first(ranks, told, "metrics")
            metrics = Metrics(answer["metrics"])
            metrics.reasons = answer["reasons"]
            return metrics

    def _columns(
        self, batches: Iterable[Batch], columns: Callable[[Batch], Sequence[NDArray[Any]]]
    ) -> list[NDArray[Any]]:
        """Return columns of all rows in the data's order, on every rank."""
        lanes: list[list[list[NDArray[Any]]]] = [[] for _ in self.ranks.lanes_of()]
        for batch in batches:
            arrays = columns(batch)
            starts = [0, len(batch)] if batch.lane_starts is None else batch.lane_starts.tolist()
            for lane, (start, stop) in zip(lanes, itertools.pairwise(starts), strict=True):
                lane.append([array[start:stop] for array in arrays])
        own = [np.concatenate(pieces) for pieces in zip(*itertools.chain(*lanes), strict=True)]
        if self.ranks.size == 1:
            return own
        return [np.concatenate(self.ranks.gather(column)) for column in own]

    def _evaluating(self, *, by_modules: bool = False) -> AbstractContextManager[Logits]:
        return evaluating(
            self.model,
            threads=self.threads,
            by_modules=by_modules,
            exchange=self.exchange,
        )


def _gathered(
    ranks: Ranks, logits: Logits, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Yield on rank 0 what metrics read of the rows of all ranks, and their logits."""
    for batch in batches:
        received = ranks.columns_to_first([logits(batch), *batch.target_columns()])
        if received is not None:
            yield batch.of_targets(received[1:]), received[0]


class _Scored:
    """Batches that all ranks score together, and the logits of the one at hand."""

    def __init__(self, scored: Iterator[tuple[Batch, NDArray[np.float32]]]) -> None:
        self._scored = scored
        self._logits_BC = np.empty((0, 0), np.float32)
        self._is_scoring = False

    def __iter__(self) -> Iterator[Batch]:
        self._is_scoring = True
        for batch, logits_BC in self._scored:
            self._logits_BC = logits_BC
            self._is_scoring = False
            yield batch
            self._is_scoring = True
        self._is_scoring = False

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Return the logits of the batch that came last."""
        return self._logits_BC

    def to_the_end(self, measure: Callable[[], Metrics]) -> Callable[[], Metrics]:
        """Return a function that returns, or raises, what ``measure`` did.

        Where metrics fail, which are the first rank's alone, the batches behind are scored
        nevertheless: the other ranks do so, and are told why then.
        """
        try:
            metrics = measure()
        except Exception as error:
            if self._is_scoring:  # all ranks fail then
                raise
            failure = error
            for _ in self:
                pass

            def fail() -> Metrics:
                raise failure

            return fail
        for _ in self:
            pass
        return lambda: metrics
