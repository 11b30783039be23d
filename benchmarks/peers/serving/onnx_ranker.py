"""Ranking with ONNX Runtime as one would write it by hand: ids to rows in NumPy, then the graph.

Items' rows of the tables and numbers are looked up in arrays made once; the user's are worked out
once a request; a cross is looked up by binary search in its sorted pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxRanker:
    """A model and its catalogue, as bench_serve.py wrote them.

    Args:
        folder: With ``model.onnx`` and ``arrays.npz``.
    """

    def __init__(self, folder: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        arrays = np.load(Path(folder) / "arrays.npz")
        self.places = {name: at for at, name in enumerate(arrays["item_names"].tolist())}
        self.query_names = arrays["query_names"].tolist()
        self.number_names = arrays["number_names"].tolist()
        self._item_rows, self._item_dense = arrays["item_rows"], arrays["item_dense"]
        self._item_ids = arrays["item_ids"]
        self._starts = arrays["starts"]
        self._crosses = arrays["crosses"].tolist()
        self._keys = [arrays[f"keys_{at}"] for at in range(len(self._crosses))]

    def rank(self, user: dict[str, Any], candidates: list[str]) -> tuple[list[str], list[float]]:
        """Return the candidates, best first, and their probabilities."""
        at = np.array([self.places[name] for name in candidates])
        n_query = len(self.query_names)
        user_ids = np.array([user[name] for name in self.query_names], np.int64) + 2
        n_deep = n_query + self._item_rows.shape[1]
        rows = np.empty((len(at), n_deep + len(self._crosses)), np.int64)
        rows[:, :n_query] = user_ids + self._starts[:n_query]
        rows[:, n_query:n_deep] = self._item_rows[at]
        for number, (query, item) in enumerate(self._crosses):
            keys = self._keys[number]
            wanted = user_ids[query] * 1_000_000 + self._item_ids[at, item]
            found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            ids = np.where(keys[found] == wanted, found + 2, 0)
            rows[:, n_deep + number] = ids + self._starts[n_deep + number]
        dense = np.empty((len(at), len(self.number_names) + self._item_dense.shape[1]), np.float32)
        dense[:, : len(self.number_names)] = [user[name] for name in self.number_names]
        dense[:, len(self.number_names) :] = self._item_dense[at]
        feed = {"deep_rows_BF": rows[:, :n_deep], "wide_rows_BF": rows, "dense_BK": dense}
        if "history" in user:  # values of the first of the item's features, one row for all
            history = np.array([user["history"]], np.int64) + (2 + self._starts[n_query])
            feed["history_rows_1T"] = history
            feed["history_mask_1T"] = np.ones(history.shape, np.bool_)
        logits = self._session.run(["logits"], feed)[0][:, 0]
        order = np.argsort(-logits, kind="stable")
        scores = 1 / (1 + np.exp(-logits[order]))
        return [candidates[place] for place in order], scores.tolist()
