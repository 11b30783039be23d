"""What training on several machines takes: memory, payload and rate, by measured costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from widedeep.errors import ConfigError
from widedeep.ranks.config import Wire

COSTS: Mapping[str, tuple[float, str]] = MappingProxyType(
    {
        "parameter_us": (
            2.743e-5,
            "CPU of a step for each parameter of the layers; a tower of "
            "1024-512-256 units trains at 44 us an example, one of 256-128 at 6.2",
        ),
        "id_us": (0.0414, "CPU of a step for each id of an example; the same two models"),
        "sharding_us": (0.8, "CPU of packing and dealing rows, an example; estimated"),
        "byte_us": (5e-4, "CPU of gloo for each byte sent; 0.5 ms a MB, measured over loopback"),
        "latency_us": (100.0, "of one collective; measured on 2 and 3 processes"),
        "latency_rank_us": (50.0, "of one collective, for each rank; the same"),
        "scaling": (0.85, "speed of 16 cores, as a part of 16 times one; estimated"),
        "line": (0.85, "payload of a network, as a part of its rate; estimated"),
        "process_bytes": (2e9, "of a process, beside tables: libraries, batches, buffers"),
        "disk": (0.25e9, "bytes a second that a process writes of a checkpoint; measured"),
    }
)
"""Each cost with its source, measured on one machine with two processors unless it says more."""

_CORES_A_RANK = 8  # gloo moves 16 Gbit/s a core
_RANKS = np.log([1, 2, 4, 8, 16, 32, 64])
# Part of a rank's next rows that the present step moves, which cannot be fetched ahead; 64: guessed
_MOVED = [0.29, 0.38, 0.47, 0.56, 0.64, 0.71, 0.76]
_LEAST_ROWS = 2048  # Of a machine in a step: with fewer most of it is exchange
_LEAST_STEPS = 500  # fewer steps a pass cost quality: AUC .7199 at 976 steps, .7183 at 62
_USABLE = 0.9  # of a machine's memory


def cost(name: str) -> float:
    """Return a number of :data:`COSTS`."""
    return COSTS[name][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One model and its data."""

    examples: int  # Examples per pass
    batch_size: int  # Examples of a step, over all machines; at most those of a pass
    table_rows: int  # Rows of all tables
    table_bytes: int  # Weights and optimizer state of all tables
    vocabulary_bytes: int  # The schema's file, mapped once a machine
    dense_parameters: int  # Numbers of the layers, which every process holds
    ids: float  # Ids of an example, wide and deep
    wide_rows: float  # Different rows of the wide part that a machine's batch asks for, an example
    deep_floats: float  # Numbers of the embeddings' different rows, an example
    wire: Wire = "fp32"
    cpu_us: float | None = None  # CPU of a step per example on one process; None: by COSTS

    @property
    def steps(self) -> int:
        """Steps of a pass."""
        return math.ceil(self.examples / self.batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Machines of one kind."""

    machines: int
    memory_bytes: float  # Memory of each machine
    network_gbit: float  # Network of each machine, Gbit/s
    cores: int = 16  # Cores of each machine

    def __post_init__(self) -> None:
        for name in ("machines", "memory_bytes", "network_gbit", "cores"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected more than 0")

    @property
    def ranks(self) -> int:
        """Processes on each machine: one for eight cores."""
        return max(1, self.cores // _CORES_A_RANK)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a workload takes on a cluster; bytes are those of one machine."""

    tables: float  # Its part of the tables, with optimizer state
    vocabularies: float  # Mapped once
    processes: float  # Libraries, batches, layers
    memory: float  # Memory of the machine
    least_machines: int | None  # Machines that hold the workload; None: no number of them does
    payload: Mapping[str, float]  # Bytes sent an example: ids, rows, gradients, dense
    examples_per_s: float  # Rate of all machines, exchanges after computing
    overlapped_per_s: float  # The same if what can be hidden behind computing were
    alone_per_s: float  # Rate of one machine that holds everything
    pass_s: float
    checkpoint_s: float  # Time to write a checkpoint
    notes: tuple[str, ...]

    @property
    def needed(self) -> float:
        """Bytes that a machine needs."""
        return self.tables + self.vocabularies + self.processes

    @property
    def fits(self) -> bool:
        """Whether a machine holds it, a tenth of its memory left."""
        return self.needed <= _USABLE * self.memory


def step_cpu(work: Workload) -> float:
    """Return the CPU microseconds of a step on one process, an example."""
    if work.cpu_us is not None:
        return work.cpu_us
    return cost("parameter_us") * work.dense_parameters + cost("id_us") * work.ids


def payload(work: Workload, machines: int) -> dict[str, float]:
    """Return the bytes that a machine sends for each of its examples, by what they are.

    Ids go to the owners of their rows, rows come back, gradients follow; the layers' gradients are
    summed by a ring. Weights of the wide part always travel as float32.
    """
    width = 4 if work.wire == "fp32" else 2
    others = (machines - 1) / machines
    rows = (width * work.deep_floats + 4 * work.wide_rows) * others
    dense = 2 * work.dense_parameters * width * machines / work.batch_size * others
    return {"ids": 4 * work.wide_rows * others, "rows": rows, "gradients": rows, "dense": dense}


def example_us(work: Workload, cluster: Cluster, *, overlapped: bool) -> float:
    """Return the microseconds of an example of a machine's own."""
    speed = cluster.cores * (cost("scaling") if cluster.cores > 1 else 1.0)
    if cluster.machines == 1:
        return step_cpu(work) / speed
    sent = payload(work, cluster.machines)
    total = sum(sent.values())
    byte_us = 1 / (cluster.network_gbit / 8 * 1e3 * cost("line"))
    own_rows = work.batch_size / cluster.machines
    latency = (cost("latency_us") + cost("latency_rank_us") * cluster.machines) / own_rows
    compute = (step_cpu(work) + cost("sharding_us") + cost("byte_us") * total) / speed
    if not overlapped:
        return compute + byte_us * total + 5 * latency
    moved = sent["rows"] * float(np.interp(math.log(cluster.machines), _RANKS, _MOVED))
    # Rows that no rank moves are fetched ahead; gradients travel beside the layers' own, a third.
    ahead = max(0.0, byte_us * (sent["ids"] + sent["rows"] - moved) - compute * 2 / 3)
    behind = byte_us * (sent["gradients"] + sent["dense"] + moved) + 3 * latency
    return compute * 2 / 3 + ahead + max(compute / 3, behind)


def make_plan(work: Workload, cluster: Cluster, *, lanes: int | None = None) -> Plan:
    """Return what a workload takes on a cluster.

    Args:
        work: The model and its data.
        cluster: The machines.
        lanes: ``distributed.lanes`` of the configuration, to be compared with the ranks.

    Example:
        >>> work = Workload(examples=10**9, batch_size=131_072, table_rows=367_647_059,
        ...     table_bytes=100 * 10**9, vocabulary_bytes=0, dense_parameters=1_522_689, ids=55,
        ...     wide_rows=4.7, deep_floats=121.6)
        >>> plan = make_plan(work, Cluster(machines=4, memory_bytes=64e9, network_gbit=25))
        >>> plan.fits, round(plan.tables / 1e9), round(plan.examples_per_s / 1e6, 1)
        (True, 25, 1.1)
    """
    layers = 4 * 4.0 * work.dense_parameters  # weights, gradients, and up to two tensors of state
    processes = cluster.ranks * (cost("process_bytes") + layers)
    room = _USABLE * cluster.memory_bytes - work.vocabulary_bytes - processes
    own = example_us(work, cluster, overlapped=False)
    rate = cluster.machines / own * 1e6
    tables = work.table_bytes / cluster.machines
    alone = Cluster(machines=1, memory_bytes=1, network_gbit=1, cores=cluster.cores)
    return Plan(
        tables=tables,
        vocabularies=work.vocabulary_bytes,
        processes=processes,
        memory=cluster.memory_bytes,
        least_machines=math.ceil(work.table_bytes / room) if room > 0 else None,
        payload=payload(work, cluster.machines),
        examples_per_s=rate,
        overlapped_per_s=cluster.machines / example_us(work, cluster, overlapped=True) * 1e6,
        alone_per_s=1e6 / example_us(work, alone, overlapped=False),
        pass_s=work.examples / rate,
        checkpoint_s=tables / (cost("disk") * cluster.ranks),
        notes=tuple(_notes(work, cluster, lanes)),
    )


def _notes(work: Workload, cluster: Cluster, lanes: int | None) -> list[str]:
    notes = []
    ranks = cluster.machines * cluster.ranks
    own = work.batch_size / cluster.machines
    mostly_exchanges = cluster.machines > 1 and own < _LEAST_ROWS
    steps = f"a pass has {work.steps:,} step{'s' if work.steps > 1 else ''}"
    if work.steps < _LEAST_STEPS and mostly_exchanges:
        notes.append(
            f"{steps} of {own:,.0f} examples a machine, expected at least "
            f"{_LEAST_STEPS} of {_LEAST_ROWS:,}: the data is too little for {cluster.machines} "
            "machines; use fewer"
        )
    elif work.steps < _LEAST_STEPS:
        notes.append(
            f"{steps}, expected at least {_LEAST_STEPS}: fewer cost quality; lower "
            "train.batch_size, or use fewer machines"
        )
    if lanes is not None and lanes < ranks:
        notes.append(
            f"distributed.lanes = {lanes}, expected at least {ranks}, one for each process; set it "
            "once to the most that will ever be used"
        )
    if mostly_exchanges and work.steps >= _LEAST_STEPS:
        notes.append(
            f"{own:,.0f} examples a machine and step: most of a step is exchange; raise "
            "train.batch_size to 8,192 a machine or more"
        )
    return notes
