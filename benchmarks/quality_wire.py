"""Does bfloat16 on the wire between ranks cost quality? Mean progressive loss of one pass.

A lone process with lanes rounds what ranks would send, so that it has the losses of any number of
them. Each seed is that of initial weights and reading order; the same pass with the last bit of one
weight flipped says how far runs part by themselves. Differences are to the pass in float32.

    python benchmarks/quality_wire.py [--rows 2000000] [--seeds 3] [--lanes 6] [--write]
"""

from __future__ import annotations

import argparse
from statistics import mean

import pyarrow as pa
import torch
from criteo_like import MEMORISED, generate
from results_file import machine, write_section

import widedeep as wd
from widedeep.ranks.config import Wire

AIM = 1e-4
WAYS: tuple[tuple[str, Wire], ...] = (
    ("fp32", "fp32"),
    ("fp32, one bit flipped", "fp32"),
    ("bf16", "bf16"),
)


def make_spec() -> wd.FeatureSpec:
    """The log's 26 text columns, its numbers, and the crosses that it was made with."""
    return wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*(f"I{i}" for i in range(1, 14))),
            *wd.categorical(*(f"C{i}" for i in range(1, 27))),
            *(wd.crossed(f"C{a + 1}", f"C{b + 1}") for a, b in MEMORISED),
        ],
    )


def progressive_loss(
    schema: wd.Schema, rows: pa.Table, way: str, wire: Wire, seed: int, lanes: int
) -> float:
    """Return the mean loss of a pass, of each row before it was learned."""
    model = wd.WideDeep(schema, hidden_units=[64, 32], embedding_dim=8, seed=seed)
    if way.endswith("flipped"):
        weight = model.deep_tables[8].weight
        weight.view(torch.int32)[2, 0] ^= 1
    distributed = {"lanes": lanes, "wire": wire}
    trainer = wd.Trainer(
        model,
        batch_size=1024 * lanes,
        seed=seed,
        progress=False,
        threads=1,
        distributed=distributed,
    )
    return float(trainer.fit(rows)[-1]["loss"])


def main() -> None:
    """Measure all ways by seed, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--cap", type=int, default=100_000, help="most values of a field")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    arguments = parser.parse_args()
    table = generate(arguments.rows, arguments.cap, 7)
    schema = wd.fit_schema(make_spec(), table)
    lines = ["| seed | fp32 | one bit flipped | bf16 |", "|---|---|---|---|"]
    differences = []
    for seed in range(arguments.seeds):
        losses = []
        for way, wire in WAYS:
            losses.append(progressive_loss(schema, table, way, wire, seed, arguments.lanes))
            print(seed, way, losses[-1], flush=True)
        base = losses[0]
        differences.append(losses[2] - base)
        lines.append(f"| {seed} | {base:.6f} | {losses[1] - base:+.1e} | {losses[2] - base:+.1e} |")
        print(lines[-1], flush=True)
    lines.append(
        f"\nMean difference of bf16: {mean(differences):+.1e}; aim: {AIM:.0e}, "
        f"{'met' if abs(mean(differences)) <= AIM else 'missed'}."
    )
    text = (
        f"## bfloat16 between ranks\n\n`benchmarks/quality_wire.py` on {machine()}: mean "
        f"progressive loss of one pass over {arguments.rows:,} rows, {arguments.lanes} lanes of "
        "1,024 rows, and its difference to fp32.\n\n" + "\n".join(lines)
    )
    print(text)
    if arguments.write:
        write_section("quality:wire", text)


if __name__ == "__main__":
    main()
