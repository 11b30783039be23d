"""Ranking speed against ONNX Runtime, in one run.

A request names 200 (or 1000) candidates by id; user and context bring 20 categorical values and 7
numbers, items 6 and 6, and 8 crosses of user and item have wide weights: 26 + 13 features and 8
crosses. ONNX Runtime gets the same weights and ready-made ids, one row a candidate, so its figure
is the model's arithmetic alone. Of `Ranker` two figures are told: the arithmetic alone, crosses
looked up and all, and the whole `rank()` from a dict to sorted probabilities. The engines agree on
the scores, take turns on the same threads; the median and the best of the repeats are printed.

    python benchmarks/bench_rank.py [--repeats 200] [--items 2000]

The last table is that of Cheng et al. 2016, section 4.3: 200 candidates in one, two and four
batches side by side, on as many threads.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import torch
from bench_score import timed
from numpy.typing import NDArray
from torch import Tensor, nn

import widedeep as wd
from widedeep import _native
from widedeep.models import DeepInput
from widedeep.models.tower import PaddedSequence
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary
from widedeep.serving.scorers import QuerySums

VALUES = 10_000
QUERY, ITEM = [f"q{i}" for i in range(20)], [f"i{i}" for i in range(6)]
QUERY_NUMBERS, ITEM_NUMBERS = [f"qn{i}" for i in range(7)], [f"in{i}" for i in range(6)]
CROSSES = [(f"q{i}", f"i{i % 6}") for i in range(8)]
PAIRS = 50_000
MODELS = {"S": ((256, 128), 16), "B": ((1024, 512, 256), 32)}
HISTORY = "history"


def make_schema(events: int = 0, labels: int = 1) -> Schema:
    """Identity categories, numbers as they are, learned crosses, and a history of items' values."""
    rng = np.random.default_rng(0)
    history = wd.categorical(
        HISTORY, num_buckets=VALUES, table=ITEM[0], combiner=None, maxlen=max(1, events)
    )
    names = ["_x_".join(parts) for parts in CROSSES]
    spec = wd.FeatureSpec(
        label=None if labels == 1 else [f"y{i}" for i in range(labels)],
        features=[
            *wd.numeric(*QUERY_NUMBERS, *ITEM_NUMBERS, transform="none"),
            *wd.categorical(*QUERY, *ITEM, num_buckets=VALUES),
            *([history] if events else []),
            *(wd.crossed(*parts) for parts in CROSSES),
        ],
        wide=[*QUERY, *ITEM, *names],
        item=[*ITEM, *ITEM_NUMBERS],
    )
    zero, one = np.zeros(1), np.ones(1)
    fit = NumericFit(
        boundaries=(),
        shift=zero,
        scale=one,
        fill=zero.astype(np.float32),
        minimum=zero,
        maximum=one,
        mean=zero,
    )
    pairs = {
        "_x_".join(parts): np.unique(rng.integers(2, 102, (PAIRS, 2)), axis=0) for parts in CROSSES
    }
    return Schema(
        spec=spec,
        columns={
            **{name: ColumnType(kind="int") for name in [*QUERY, *ITEM]},
            **{name: ColumnType(kind="float") for name in [*QUERY_NUMBERS, *ITEM_NUMBERS]},
            **({HISTORY: ColumnType(kind="int", nested=True)} if events else {}),
        },
        vocabularies={
            name: Vocabulary(values=rows, counts=np.ones(len(rows), np.int64))
            for name, rows in pairs.items()
        },
        boundaries={},
        numerics=dict.fromkeys([*QUERY_NUMBERS, *ITEM_NUMBERS], fit),
    )


def make_items(n: int) -> pa.Table:
    """A catalogue; half of the items' crosses are known."""
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {"item": [f"item{i}" for i in range(n)]}
    columns |= {name: rng.integers(0, 200, n) for name in ITEM}
    columns |= {name: rng.random(n) for name in ITEM_NUMBERS}
    return pa.table(columns)


def make_query() -> dict[str, Any]:
    """One user in one context."""
    rng = np.random.default_rng(2)
    values = dict(zip(QUERY, rng.integers(0, 100, len(QUERY)).tolist(), strict=True))
    return values | dict(zip(QUERY_NUMBERS, rng.random(len(QUERY_NUMBERS)).tolist(), strict=True))


class PlainModel(nn.Module):
    """The same model as one torch module over one row of ids a candidate.

    A history is one row of ids, which all candidates share, and True where a place holds an event.
    """

    def __init__(self, model: wd.WideDeep) -> None:
        super().__init__()
        (table,) = model.deep_tables.values()
        assert model.wide_table is not None
        self.embedding = nn.Embedding.from_pretrained(table.weight.detach().clone())
        self.wide = nn.Embedding.from_pretrained(model.wide_table.weight.detach().clone())
        self.towers, self.outputs = model.towers, model.outputs
        self.bias = model.bias
        self._model = [model]  # in a list: not a submodule

    def forward(
        self,
        deep_rows_BF: Tensor,
        wide_rows_BF: Tensor,
        dense_BK: Tensor,
        history_rows_1T: Tensor | None = None,
        history_mask_1T: Tensor | None = None,
    ) -> Tensor:
        """Return the logits, (B, C)."""
        layout = self._model[0].layout
        sequences = {}
        if history_rows_1T is not None and history_mask_1T is not None:
            rows = deep_rows_BF.shape[0]
            events_BTD = self.embedding(history_rows_1T).expand(rows, -1, -1)
            mask_BT = history_mask_1T.expand(rows, -1)
            sequences[HISTORY] = PaddedSequence(
                HISTORY, events_BTD, mask_BT, mask_BT.to(torch.float32), set()
            )
        inputs = DeepInput(
            concat_BX=torch.cat([self.embedding(deep_rows_BF).flatten(1), dense_BK], dim=1),
            layout=layout.columns,
            dense_BK=dense_BK,
            sequences=sequences,
        )
        deep_BC = self._model[0].deep_logits(inputs)
        assert deep_BC is not None
        logits: Tensor = self.wide(wide_rows_BF).sum(dim=1) + deep_BC + self.bias
        return logits


def graph_of(plain: PlainModel, arguments: tuple[Tensor, ...]) -> bytes:
    """The torch module as an ONNX graph, for any number of candidates."""
    names = ["deep_rows_BF", "wide_rows_BF", "dense_BK"]
    history = ["history_rows_1T", "history_mask_1T"][: len(arguments) - len(names)]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(  # type: ignore[arg-type]
            plain,
            arguments,
            buffer,
            input_names=[*names, *history],
            output_names=["logits"],
            dynamic_axes={name: {0: "batch"} for name in [*names, "logits"]},
            dynamo=False,
        )
    return buffer.getvalue()


def session_of(
    plain: PlainModel, arguments: tuple[Tensor, ...], threads: int
) -> onnxruntime.InferenceSession:
    """The torch module in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        graph_of(plain, arguments), options, providers=["CPUExecutionProvider"]
    )


class Bench:
    """One model in both engines, with a catalogue and a query.

    Args:
        name: Of the model; one that is not in MODELS has the widths of S.
        n_items: In the catalogue.
        folder: Where its bundle goes.
        tower: Configuration of another tower than the standard one.
        events: Events of each history; 0: no history.
        labels: Number of binary labels.
    """

    def __init__(
        self,
        name: str,
        n_items: int,
        folder: Path,
        tower: dict[str, Any] | None = None,
        *,
        events: int = 0,
        labels: int = 1,
    ) -> None:
        hidden, dim = MODELS.get(name, MODELS["S"])
        self.name = name
        self.schema = make_schema(events, labels)
        if tower is None:
            self.model = wd.WideDeep(self.schema, hidden_units=hidden, embedding_dim=dim)
        else:
            deep = {"hidden_units": hidden, **tower}
            self.model = wd.WideDeep(self.schema, deep=deep, embedding_dim=dim)
        assert self.model.wide_table is not None
        torch.manual_seed(0)
        self.model.wide_table.weight.normal_(std=0.1)
        for numbers in (*self.model.towers.parameters(), *self.model.towers.buffers()):
            if numbers.dim() == 1:  # biases, slopes and moments: those of a new model are all alike
                numbers.data.add_(torch.rand_like(numbers), alpha=0.1)
        self.bundle = wd.Trainer(self.model).export(folder / name)
        self.table = make_items(n_items)
        self.catalogue = wd.Catalogue.read(self.table, id_column="item")
        self.rows = {row["item"]: row for row in self.table.to_pylist()}
        self.query = make_query()
        if events:
            rng = np.random.default_rng(4)
            self.query[HISTORY] = rng.integers(0, 200, events).tolist()
        self.plain = PlainModel(self.model).eval()

    def ids(self, n: int) -> list[str]:
        """Candidates, anywhere in the catalogue."""
        return [f"item{i}" for i in np.random.default_rng(n).integers(0, len(self.rows), n)]

    def ranker(self, threads: int = 1, **options: Any) -> wd.Ranker:
        """The bundle with its catalogue."""
        return wd.Ranker(self.bundle, items=self.catalogue, threads=threads, **options)

    def feed(self, ids: list[str]) -> dict[str, NDArray[Any]]:
        """What ONNX Runtime takes: rows of its tables; a missing cross has a row of zeros."""
        batch = self.bundle.encoder.rows([{**self.query, **self.rows[id_]} for id_ in ids])
        names = [slot.name for slot in self.schema.slots]
        starts = self.starts()
        ids_BF = np.stack(
            [batch.cells(names.index(name)).ids_N + start for name, start in starts.items()], axis=1
        )
        feed = {
            "deep_rows_BF": ids_BF[:, : len(QUERY) + len(ITEM)],
            "wide_rows_BF": ids_BF,
            "dense_BK": batch.dense_BK,
        }
        if HISTORY in self.query:
            row_T = batch.cells(names.index(HISTORY)).ids_N[: len(self.query[HISTORY])]
            feed["history_rows_1T"] = row_T[None] + starts[ITEM[0]]
            feed["history_mask_1T"] = np.ones((1, len(row_T)), np.bool_)
        return feed

    def starts(self) -> dict[str, int]:
        """Return the first row of each feature in ONNX Runtime's tables."""
        sizes = {slot.name: slot.size for slot in self.schema.slots if slot.name != HISTORY}
        return dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))

    def session(self, ids: list[str], threads: int = 1) -> onnxruntime.InferenceSession:
        """ONNX Runtime with the model."""
        return session_of(
            self.plain, tuple(torch.from_numpy(a) for a in self.feed(ids).values()), threads
        )


def arithmetic_of(ranker: wd.Ranker, query: dict[str, Any], ids: list[str]) -> Callable[[], Any]:
    """The ranker's arithmetic and cross look-ups alone: no dict of the query, no sorting."""
    scorer, prepared = ranker.scorer, ranker.prepared
    assert prepared is not None
    items, rows = prepared.items, prepared.catalogue.positions(ids)
    encoded, _ = scorer.transform.encode_rows(False, [query], lambda value: value, "")

    def run() -> Any:
        sums = scorer.kernel.sums_of("query", encoded, threads=1)
        return scorer.logits(QuerySums(sums, ()), items, rows)

    return run


def check_scores(
    query: dict[str, Any], ids: list[str], ranker: wd.Ranker, logits_BC: NDArray[Any]
) -> None:
    """Stop where ONNX Runtime's logits give other scores."""
    ranking = ranker.rank(query, None, ids)
    expected = 1 / (1 + np.exp(-logits_BC[ranking.positions, 0]))
    worst = np.abs(expected - ranking.scores).max()
    if worst > 1e-5:
        raise SystemExit(f"ONNX Runtime differs from widedeep by {worst:.1e}")


def compare(bench: Bench, n: int, repeats: int) -> None:
    """Time one thread of each engine on one request."""
    ids = bench.ids(n)
    session, feed = bench.session(ids), bench.feed(ids)
    ranker = bench.ranker()
    half = bench.ranker(precision="bfloat16")
    check_scores(bench.query, ids, ranker, session.run(["logits"], feed)[0])
    engines: dict[str, Callable[[], object]] = {
        "onnxruntime, arithmetic": lambda: session.run(["logits"], feed),
        "widedeep, arithmetic": arithmetic_of(ranker, bench.query, ids),
        "  in bfloat16": arithmetic_of(half, bench.query, ids),
        "widedeep, whole rank()": lambda: ranker.rank(bench.query, None, ids),
    }
    found = timed(engines, repeats)
    print(f"\n{bench.name}, {n} candidates, 1 thread, {_native.isa()}")
    onnx = found["onnxruntime, arithmetic"][0]
    for engine, (middle, best) in found.items():
        print(f"  {engine:24} {middle:7.3f} ms (best {best:6.3f})  {onnx / middle:5.2f}x")


def paper_table(bench: Bench, repeats: int) -> None:
    """Split 200 candidates into batches, each on a thread of its own."""
    ids = bench.ids(200)
    ranker = bench.ranker()
    engines: dict[str, Callable[[], object]] = {}
    with ThreadPoolExecutor(4) as pool:
        for name, parts in _splits(ids):
            session = bench.session(parts[0])
            engines[f"{name} onnxruntime"] = _spread(
                pool, [partial(session.run, ["logits"], bench.feed(part)) for part in parts]
            )
            engines[f"{name} widedeep"] = _spread(
                pool, [partial(ranker.rank, bench.query, None, part) for part in parts]
            )
        native = bench.ranker(threads=2)
        engines["200, native threads: 2"] = lambda: native.rank(bench.query, None, ids)
        found = timed(engines, repeats)
    print(f"\n{bench.name}, batch x threads, whole requests, {os.cpu_count()} processors")
    for name, (middle, best) in found.items():
        print(f"  {name:24} {middle:7.3f} ms (best {best:6.3f})")


def _splits(ids: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
    for threads in (1, 2, 4):
        size = len(ids) // threads
        yield f"{size} x {threads}", [ids[i : i + size] for i in range(0, len(ids), size)]


def _spread(pool: ThreadPoolExecutor, tasks: list[Callable[[], object]]) -> Callable[[], object]:
    if len(tasks) == 1:
        return tasks[0]
    return lambda: [future.result() for future in [pool.submit(task) for task in tasks]]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--items", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            bench = Bench(name, arguments.items, Path(folder))
            for n in (200, 1000):
                compare(bench, n, arguments.repeats if n == 200 else arguments.repeats // 4)
        paper_table(bench, arguments.repeats // 2)


if __name__ == "__main__":
    main()
