"""How small is a patch: an hour of clicks on a model that has learned the week before.

A model of the shape of Criteo's log (`criteo_like.py`) learns a week, and then hours, each 1/168 of
the week's rows. The first version is whole; each hour is published as a patch, exact and rounded to
bfloat16, and its size is compared with the whole bundle's. The bundle that a server makes of the
chain of patches is compared with the trainer's by bytes, and so are the scores.

    python benchmarks/bench_patches.py [--rows 3360000] [--hours 6] [--write]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from criteo_like import generate
from results_file import machine, write_section

import widedeep as wd
from widedeep.bundle import Bundle
from widedeep.publish import publish
from widedeep.publish.publishing import round_changes
from widedeep.serving.loading import PrivateCopies

HOURS_OF_A_WEEK = 168
FIELDS = [f"C{n}" for n in range(1, 27)]
NUMBERS = [f"I{n}" for n in range(1, 14)]


def main() -> None:
    """Learn, publish, apply, compare, and write the section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=3_360_000, help="rows of the week")
    parser.add_argument("--hours", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), arguments.rows, arguments.hours)
    print("\n".join(lines))
    if arguments.write:
        write_section("patches", "\n".join(lines))


def measure(folder: Path, rows: int, hours: int) -> list[str]:
    """Return the section's lines."""
    hour = rows // HOURS_OF_A_WEEK
    table = generate(rows + hours * hour, 1_000_000, 7)
    spec = wd.FeatureSpec(
        label="label", features=[*wd.numeric(*NUMBERS), *wd.categorical(*FIELDS, min_count=2)]
    )
    schema = wd.fit_schema(spec, table.slice(0, rows))
    model = wd.WideDeep(schema, hidden_units=[256, 128], embedding_dim=16)
    trainer = wd.Trainer(model, batch_size=4096, progress=False)
    trainer.fit(table.slice(0, rows))
    bundles = [trainer.export(folder / "bundle-0").path]
    for number in range(1, hours + 1):
        trainer.fit_stream([(f"hour {number}", table.slice(rows + (number - 1) * hour, hour))])
        bundles.append(trainer.export(folder / f"bundle-{number}").path)
    whole = sum(file.stat().st_size for file in bundles[-1].iterdir())
    table_rows = sum(len(array) for array in Bundle.load(bundles[0]).weights.values())
    lines = [
        "## Patches between whole versions",
        "",
        f"`bench_patches.py`, {machine()}: a model of 26 fields learned {rows:,} rows of a week, "
        f"then {hours} hours of {hour:,} rows each. The whole bundle has {whole / 1e6:,.0f} MB, "
        f"{table_rows:,} rows of tables.",
        "",
        "| numbers of changed rows | median patch | whole / patch | largest patch | seconds to "
        "write | seconds to apply all |",
        "|---|---|---|---|---|---|",
    ]
    sample = table.slice(rows, 2000).to_pylist()
    for precision in ("float32", "bfloat16"):
        sizes, seconds, applied = chain(folder / precision, bundles, precision, sample)
        lines.append(
            f"| {precision} | {median(sizes) / 1e6:.2f} MB | {whole / median(sizes):.0f} × | "
            f"{max(sizes) / 1e6:.2f} MB | {median(seconds):.2f} | {applied:.2f} |"
        )
    return [
        *lines,
        "",
        "What a server makes of the chain equals the published bundle by bytes, and so do its "
        "scores.",
    ]


def chain(
    folder: Path, bundles: list[Path], precision: str, sample: list[dict[str, object]]
) -> tuple[list[int], list[float], float]:
    """Publish whole, then patches; return sizes, seconds to write, and seconds to apply them."""
    sizes, seconds = [], []
    models, last = folder / "models", bundles[0]
    for number, bundle in enumerate(bundles):
        candidate = folder / "candidate" / str(number)
        shutil.copytree(bundle, candidate)
        if number and precision == "bfloat16":
            round_changes(last, candidate)
        started = time.perf_counter()
        record = publish(candidate, models, force=True, reason="measured", full_every=200)
        seconds.append(time.perf_counter() - started)
        assert record.patches == number
        sizes.append(record.size)
        last = candidate
    started = time.perf_counter()
    copy = PrivateCopies(folder / "cache").take(models / record.version)
    applied = time.perf_counter() - started
    for file in last.iterdir():
        assert (copy.path / file.name).read_bytes() == file.read_bytes()
    scores = [np.asarray(Bundle.load(path).score(sample)) for path in (copy.path, last)]
    assert scores[0].tobytes() == scores[1].tobytes()
    copy.close()
    return sizes[1:], seconds[1:], applied


if __name__ == "__main__":
    main()
