"""Whatever the model and the request: a ranker's scores are the bundle's, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.serving.random_models import (
    ITEM_COLUMNS,
    random_bundle,
    random_items,
    random_query,
)
from widedeep import _native
from widedeep.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]


def expected(bundle: Bundle, rows: list[dict[str, Any]]) -> Any:
    scores = bundle.score(rows)
    return scores["click"] if isinstance(scores, dict) else scores


def check_parity(seed: int, *, n_items: int = 9, requests: int = 3) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(rng, Path(folder) / "b")
        table = random_items(rng, n_items)
        rankers = [wd.Ranker(bundle, items=table, item_id="item", threads=t) for t in (1, 3)]
        assert rankers[0].engine == "factored"
        items = {row.pop("item"): row for row in table.to_pylist()}
        for _ in range(requests):
            query = random_query(rng)
            ids = [f"item{int(i)}" for i in rng.integers(n_items + 2, size=int(rng.integers(30)))]
            rows = [{**query, **items.get(id_, {})} for id_ in ids]
            scores = expected(bundle, rows) if rows else np.zeros(0)
            order = np.argsort(-scores, kind="stable")
            k = int(rng.integers(35)) if rng.random() < 0.5 else None
            inline = {c: [row.get(c) for row in rows] for c in ITEM_COLUMNS}
            for ranker in rankers:
                for ranking in (
                    ranker.rank(query, None, ids, k=k),
                    ranker.rank({}, query, inline, k=k),
                ):
                    assert np.array_equal(ranking.positions, order[:k])
                    assert np.array_equal(ranking.scores, scores[order][:k]), seed


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_scores_are_the_bundles(seed: int) -> None:
    check_parity(seed)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_scores_are_the_bundles_on_every_instruction_set(isa: str) -> None:
    code = (
        "from widedeep import _native; from tests.serving.test_ranker_parity import check_parity\n"
        f"assert _native.isa() == {isa!r}\n"
        "for seed in range(4): check_parity(seed, n_items=130, requests=1)\n"
    )
    environment = os.environ | {"WIDEDEEP_ISA": isa, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/src"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if "WIDEDEEP_ISA" in done.stderr and "avx" in isa and _native.isa() != isa:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr


def test_scores_are_near_those_of_the_reference_kernels() -> None:
    code = (
        "import numpy as np, tempfile, pathlib\n"
        "from tests.serving.random_models import *\n"
        "import widedeep as wd\n"
        "for seed in range(3):\n"
        "    rng = np.random.default_rng(seed)\n"
        "    with tempfile.TemporaryDirectory() as folder:\n"
        "        bundle = random_bundle(rng, pathlib.Path(folder) / 'b')\n"
        "        items = random_items(rng, 9)\n"
        "        ranker = wd.Ranker(bundle, items=items, item_id='item')\n"
        "        r = ranker.rank(random_query(rng), None, [f'item{i}' for i in range(9)])\n"
        "        print(*r.scores[np.argsort(r.positions)])\n"
    )
    found = []
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/src"}
    for kernels in ("", "from tests import reference; reference.install()\n"):
        done = subprocess.run(
            [sys.executable, "-c", kernels + code], cwd=ROOT, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(np.array(done.stdout.split(), np.float64))
    assert len(found[0]) == 27
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-6)
