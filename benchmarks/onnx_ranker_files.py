"""The model of bench_rank.py as files for peers/serving: a graph, and arrays of the catalogue."""

from __future__ import annotations

from pathlib import Path

import bench_rank
import numpy as np
import torch


def write(bench: bench_rank.Bench, folder: Path) -> None:
    """Write ``model.onnx`` and ``arrays.npz``.

    Args:
        bench: The model and its catalogue.
        folder: Where they go.
    """
    feed = bench.feed(bench.ids(200))
    (folder / "model.onnx").write_bytes(
        bench_rank.graph_of(bench.plain, tuple(torch.from_numpy(a) for a in feed.values()))
    )
    starts = np.array([*bench.starts().values()])
    n_query, n_deep = len(bench_rank.QUERY), len(bench_rank.QUERY) + len(bench_rank.ITEM)
    columns = bench.table.to_pydict()
    ids = np.stack([columns[name] for name in bench_rank.ITEM], axis=1).astype(np.int64) + 2
    keys = {}
    for number, parts in enumerate(bench_rank.CROSSES):
        pairs = np.asarray(bench.schema.vocabularies["_x_".join(parts)].values)
        keys[f"keys_{number}"] = pairs[:, 0] * 1_000_000 + pairs[:, 1]
    np.savez(
        folder / "arrays.npz",
        item_names=np.array(columns["item"]),
        item_ids=ids,
        item_rows=ids + starts[n_query:n_deep],
        item_dense=np.stack([columns[name] for name in bench_rank.ITEM_NUMBERS], axis=1),
        query_names=np.array(bench_rank.QUERY),
        number_names=np.array(bench_rank.QUERY_NUMBERS),
        starts=starts,
        crosses=np.array(
            [(bench_rank.QUERY.index(a), bench_rank.ITEM.index(b)) for a, b in bench_rank.CROSSES]
        ),
        **keys,
    )
