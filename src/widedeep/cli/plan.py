"""The verb `plan`: memory, payload and rate of training on several machines."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

import numpy as np

from widedeep.cli.output import print_json, print_next, print_text
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser, positive, real
from widedeep.cli.runs import RunDirectory, train_command
from widedeep.config import load_config
from widedeep.errors import ConfigError
from widedeep.ranks.plan import COSTS, Cluster, Plan, Workload, make_plan
from widedeep.schema import Schema, Slot
from widedeep.training.config import RunConfig

EXAMPLE = (
    "  widedeep prepare ads.toml       # first: the sizes are those of the fitted schema\n"
    "  widedeep plan ads.toml --machines 4 --memory 64GB --network 25Gbit\n"
    "  widedeep plan ads.toml --machines 4 --examples 5e11 --set train.batch_size=131072\n\n"
    "Exit code 1 if the machines cannot hold the model."
)
NEXT = "widedeep train ads.toml"

_SIZES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def memory_size(text: str) -> float:
    """Read an amount of memory, such as 64GB or 48GiB, in bytes."""
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([KMGT]?I?)B\s*", text.upper())
    if not match or match[2] not in _SIZES or not float(match[1]):
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, expected a number with a unit, such as 64GB or 48GiB"
        )
    return float(match[1]) * _SIZES[match[2]]


def network_rate(text: str) -> float:
    """Read a network's rate, such as 25Gbit or 800Mbit, in Gbit/s."""
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([GM])BIT(/S)?\s*", text.upper())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, expected a rate in bits a second, such as 25Gbit or 800Mbit"
        )
    return float(match[1]) * {"G": 1.0, "M": 1e-3}[match[2]]


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("config RUN.toml", "configuration of the run")
    parser.option("-o --out RUN_DIR", "folder of the prepared run (default: runs/RUN)")
    parser.option("--machines N", "machines", type=positive, default=1)
    parser.option("--memory SIZE", "memory of each (default: 64GB)", type=memory_size, default=64e9)
    parser.option(
        "--network RATE", "network of each (default: 25Gbit)", type=network_rate, default=25.0
    )
    parser.option("--cores N", "cores of each", type=positive, default=16)
    parser.option(
        "--examples N",
        "examples of a pass (default: those that the schema was fitted on)",
        type=lambda text: round(real(text, 1.0, 1e18)),
    )
    parser.option(
        "--cpu-us US",
        "CPU microseconds that an example takes here, from a trial run: 1e6 x threads / examples a "
        "second (default: estimated from the model's size)",
        type=lambda text: real(text, 1e-3, 1e9),
    )
    parser.set_option()


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    config = load_config(arguments.config, arguments.set)
    directory = RunDirectory.of_config(arguments.config, arguments.out)
    if not directory.schema.exists():
        raise ConfigError(
            f"{directory.schema}: is not there, expected the fitted schema, whose sizes decide; "
            f"run: widedeep prepare {arguments.config}"
        )
    schema = Schema.load(directory.schema)
    if schema.spec != config.spec:
        raise ConfigError(
            f"{directory.schema}: was fitted for other features than those of {arguments.config}; "
            f"run: widedeep prepare {arguments.config}"
        )
    cluster = Cluster(
        machines=arguments.machines,
        memory_bytes=arguments.memory,
        network_gbit=arguments.network,
        cores=arguments.cores,
    )
    work = workload(
        config,
        schema,
        machines=arguments.machines,
        examples=arguments.examples,
        cpu_us=arguments.cpu_us,
        vocabulary_bytes=directory.schema.stat().st_size,
    )
    plan = make_plan(work, cluster, lanes=config.distributed.lanes)
    if arguments.json:
        print_json(_document(work, cluster, plan))
    else:
        print_text("\n".join(_lines(work, cluster, plan)))
        if plan.fits:
            print_next(*train_command(arguments))
    return EXIT_OK if plan.fits else EXIT_FAILED


def workload(
    config: RunConfig,
    schema: Schema,
    *,
    machines: int,
    examples: int | None = None,
    cpu_us: float | None = None,
    vocabulary_bytes: int = 0,
) -> Workload:
    """Return what a configuration asks for, by the sizes and counts of its schema."""
    from widedeep.models.wide_deep import WideDeep
    from widedeep.training.defaults import auto_batch_size, make_optimizers

    model = WideDeep(schema, config.model, pretrained=False)  # rows are made when they are read
    optimizers = make_optimizers(config.train)
    others = {"wide": optimizers.wide, "frozen": None}
    n_bytes = 0
    for name, table in model.tables.items():
        optimizer = others.get(name.partition("/")[0], optimizers.deep)
        n_bytes += table.n_rows * table.record_layout(optimizer).stride
    examples = examples or schema.rows
    batch = config.train.batch_size
    batch = auto_batch_size(examples) if batch == "auto" else batch
    batch_size = max(1, min(batch, examples))  # the last batch of a pass is what is left
    own = max(1.0, batch_size / machines)
    rows = {slot.name: distinct_rows(schema, slot, own) / own for slot in schema.slots}
    widths = {
        feature: table.dim
        for name, table in model.tables.items()
        if name != "wide"
        for feature in table.features
    }
    return Workload(
        examples=examples,
        batch_size=batch_size,
        table_rows=sum(table.n_rows for table in model.tables.values()),
        table_bytes=n_bytes,
        vocabulary_bytes=vocabulary_bytes,
        dense_parameters=sum(p.numel() for p in model.parameters()),
        ids=sum((slot.wide + slot.deep) * ids_of(schema, slot) for slot in schema.slots),
        wide_rows=sum(rows[slot.name] for slot in schema.slots if slot.wide),
        deep_floats=sum(rows[name] * width for name, width in widths.items()),
        wire=config.distributed.wire,
        cpu_us=cpu_us,
    )


def ids_of(schema: Schema, slot: Slot) -> float:
    """Return the mean number of a feature's ids in an example, as far as the schema tells."""
    counts = _counts(schema, slot)
    return 1.0 if counts is None else max(1.0, float(counts.sum()) / max(schema.rows, 1))


def distinct_rows(schema: Schema, slot: Slot, examples: float) -> float:
    """Return how many different ids of a feature so many examples hold, on average."""
    counts = _counts(schema, slot)
    if counts is None:  # hashed, cut into buckets or a number: as if all ids were equally frequent
        return float(slot.size * -np.expm1(-examples / slot.size))
    shares = np.minimum(counts / max(schema.rows, 1), 1 - 1e-12)
    return float(-np.expm1(examples * np.log1p(-shares)).sum()) + 1.0  # and unseen or missing


def _counts(schema: Schema, slot: Slot) -> Any:
    key = schema.vocabulary_key(slot.name)
    vocabulary = schema.vocabularies.get(key)
    if vocabulary is None or not len(vocabulary) or not np.any(vocabulary.counts):
        return None
    users = sum(schema.vocabulary_key(other.name) == key for other in schema.slots)
    return np.asarray(vocabulary.counts) / max(users, 1)


def _document(work: Workload, cluster: Cluster, plan: Plan) -> dict[str, Any]:
    constants = {name: {"value": value, "source": text} for name, (value, text) in COSTS.items()}
    return {
        "fits": plan.fits,
        "workload": dataclasses.asdict(work),
        "cluster": {**dataclasses.asdict(cluster), "ranks": cluster.machines * cluster.ranks},
        **dataclasses.asdict(plan),
        "needed": plan.needed,
        "constants": constants,
    }


def _lines(work: Workload, cluster: Cluster, plan: Plan) -> list[str]:
    own = work.batch_size / cluster.machines
    machines = f"{cluster.machines} machine" + ("s" if cluster.machines > 1 else "")
    parts = ", ".join(f"{name} {size:,.0f}" for name, size in plan.payload.items())
    efficiency = plan.examples_per_s / (cluster.machines * plan.alone_per_s)
    lines = [
        f"{machines} of {cluster.cores} cores, {_size(cluster.memory_bytes)} and "
        f"{cluster.network_gbit:g} Gbit/s, {cluster.ranks} processes each; "
        f"{work.table_rows:,} rows of tables, {work.dense_parameters:,} numbers of layers",
        f"memory      {_size(plan.needed)} a machine: tables with optimizer state "
        f"{_size(plan.tables)}, vocabularies (mapped once) {_size(plan.vocabularies)}, processes "
        f"{_size(plan.processes)}",
        f"batch       {work.batch_size:,} examples, {own:,.0f} a machine: "
        f"{work.steps:,} step{'s' if work.steps > 1 else ''} a pass",
        f"payload     {sum(plan.payload.values()):,.0f} bytes sent an example ({parts})",
        f"rate        {plan.examples_per_s:,.0f} examples/s, {efficiency:.0%} of {machines} by "
        f"themselves; {plan.overlapped_per_s:,.0f} if exchanges hid behind computing",
        f"a pass      {work.examples:,} examples in {_duration(plan.pass_s)}",
        f"checkpoint  {_size(plan.tables)} a machine in {_duration(plan.checkpoint_s)}",
    ]
    if not plan.fits:
        enough = (
            "no number of such machines holds the vocabularies and the processes; take larger ones"
            if plan.least_machines is None
            else f"{plan.least_machines} such machines would"
        )
        lines.append(
            f"does not fit: a machine needs {_size(plan.needed)} and a tenth to spare, of "
            f"{_size(plan.memory)}; {enough}. Smaller tables do too: max_size or hash_buckets of "
            "large features, a smaller embedding_dim, an optimizer with less state; [model] "
            'table_dtype = "bf16" and deep = { row_wise = true } take a third or less'
        )
    return [*lines, *(f"note: {note}" for note in plan.notes)]


def _size(n_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.1f} kB"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
