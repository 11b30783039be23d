"""Retrieval: recall and latency of each engine, and of a whole retrieve() with its rules.

Clustered vectors of unit length, 64 wide; queries lie beside items. Recall is the share of the true
200 nearest, by inner product in float32, that is found. The engines take turns; medians are told.

    python benchmarks/bench_retrieval.py [--items 100000 400000] [--queries 50] [--write]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from results_file import machine, write_section

from widedeep.serving.retrieval import EmbeddingIndex, Retriever

WIDTH, K = 64, 200


def vectors(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Items around 1000 centres."""
    centres = rng.normal(size=(1000, WIDTH))
    found = centres[rng.integers(0, 1000, n)] + 0.7 * rng.normal(size=(n, WIDTH))
    unit: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype("f4")
    return unit


def timed_ms(run: Any) -> tuple[float, Any]:
    """Call once."""
    begun = time.perf_counter()
    found = run()
    return 1e3 * (time.perf_counter() - begun), found


def engines(n: int, queries: int) -> list[str]:
    """Compare the engines on n items."""
    rng = np.random.default_rng(0)
    vectors_ND = vectors(n, rng)
    indexes = {}
    built = {}
    for engine in ("numpy", "faiss"):
        built[engine], indexes[engine] = timed_ms(
            lambda engine=engine: EmbeddingIndex(vectors_ND, engine=engine)
        )
    times: dict[str, list[float]] = {engine: [] for engine in indexes}
    recalls: dict[str, list[float]] = {engine: [] for engine in indexes}
    for _ in range(queries):
        query_D = vectors_ND[rng.integers(n)] + 0.05 * rng.normal(size=WIDTH).astype("f4")
        true = set(indexes["numpy"].search(query_D, K).tolist())
        for engine, index in indexes.items():
            took, found = timed_ms(lambda index=index, query_D=query_D: index.search(query_D, K))
            times[engine].append(took)
            recalls[engine].append(len(true & set(found.tolist())) / K)
    return [
        f"| {n:,} | {index.engine} | {np.mean(recalls[engine]):.4f} | "
        f"{np.median(times[engine]):.2f} | {np.percentile(times[engine], 99):.2f} | "
        f"{built[engine] / 1e3:.1f} |"
        for engine, index in indexes.items()
    ]


def whole(n: int, queries: int) -> list[str]:
    """Time retrieve() with its rules."""
    rng = np.random.default_rng(1)
    items = pa.table(
        {
            "item": np.arange(n),
            "installs": rng.integers(0, 1 << 30, n),
            "kind": rng.integers(0, 40, n).astype("U"),
            "price": rng.random(n),
        }
    )
    apps = Retriever(
        items,
        id_column="item",
        popularity="installs",
        category="kind",
        vectors_ND=vectors(n, rng),
    )
    liked = rng.integers(0, n, 5).tolist()
    asked: dict[str, dict[str, Any]] = {
        "popular": {},
        "popular, 100 left out, a filter": {
            "exclude": rng.integers(0, n, 100).tolist(),
            "where": {"price": {"max": 0.5}},
        },
        "near five items, and popular": {"like": liked, "exclude": liked},
        "the same, a filter, 20 of each kind": {
            "like": liked,
            "exclude": liked,
            "where": {"price": {"max": 0.5}},
            "most_of_each": 20,
        },
    }
    lines = []
    for name, options in asked.items():
        times = [
            timed_ms(lambda options=options: apps.retrieve(K, **options))[0] for _ in range(queries)
        ]
        lines.append(f"| {name} | {np.median(times):.2f} | {np.percentile(times, 99):.2f} |")
    return lines


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    rows = [row for n in arguments.items for row in engines(n, arguments.queries)]
    head = (
        "| items | engine | recall of 200 | median ms | p99 ms | built in s |\n" + "|---" * 6 + "|"
    )
    small = min(arguments.items)
    text = "\n".join(
        [
            "## Retrieval\n",
            f"`benchmarks/bench_retrieval.py` on {machine()}; vectors {WIDTH} wide.\n",
            head,
            *rows,
            f"\n| retrieve() of 200, {small:,} items | median ms | p99 ms |\n|---|---|---|",
            *whole(small, arguments.queries),
        ]
    )
    print(text)
    if arguments.write:
        write_section("retrieval", text)


if __name__ == "__main__":
    main()
