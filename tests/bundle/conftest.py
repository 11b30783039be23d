"""A written bundle, to be read, copied and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundle import models
from widedeep.bundle import Bundle, Platt, write_bundle


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every file that a native one can have."""
    schema = models.schema()
    model = models.model(schema)
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "żółw",
        schema=schema,
        weights=models.random_weights(schema, model),
        model=model,
        metrics={"auc": 0.75, "pr_auc": float("nan")},
        warmup_rows=models.rows(5),
        config={"train": {"epochs": 3}},
        calibration=Platt(slope=0.9, intercept=-0.2),
    )


@pytest.fixture
def copied(written: Bundle, tmp_path: Path) -> Path:
    """A copy of that bundle, to be damaged."""
    import shutil

    return Path(shutil.copytree(written.path, tmp_path / "copy"))
