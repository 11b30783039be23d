"""WideDeep: logits = wide + deep + bias, one loss over both (Cheng et al. 2016, equation 3)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from widedeep.data.batch import Batch
from widedeep.data.pretrained import PretrainedRows, match_rows
from widedeep.errors import ConfigError, SchemaError, nearest
from widedeep.kernels.torch_device import seeded
from widedeep.kernels.torch_ops import to_device
from widedeep.models.blocks import HiddenLayers
from widedeep.models.config import ModelConfig
from widedeep.models.head_base import Head, head_slices, registered_heads, start_bias
from widedeep.models.head_config import HeadChoice, head_table, is_head_table, make_heads
from widedeep.models.head_losses import HeadLosses
from widedeep.models.lr import NumbersTower
from widedeep.models.mlp import MLP, MLPTower
from widedeep.models.numbers import NumberFields
from widedeep.models.tower import (
    EMBEDDING_RATE,
    EMBEDDING_STD,
    DeepInput,
    DeepLayout,
    SequenceInput,
    TowerConfig,
    embedding_copies,
    empty_input,
    make_layout,
    shared_dim,
    tower_configs,
)
from widedeep.options import keyword_signature, with_options
from widedeep.page import bar_list, framed_page, subsection, tiles
from widedeep.ranks.launch import launched_size
from widedeep.schema import Schema, Slot
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.tables.storage import DeviceBatches, batch_rows


def make_wide_table(
    schema: Schema, n_logits: int, device: torch.device, batches: DeviceBatches | None = None
) -> EmbeddingTable | None:
    """Return the wide part's weights, or None if no feature is in it."""
    slots = [slot for slot in schema.slots if slot.wide]
    if not slots:
        return None
    return EmbeddingTable(
        {slot.name: slot.size for slot in slots},
        {slot.name: slot.name for slot in slots},
        dim=n_logits,
        seed=0,
        std=0.0,
        device=device,
        batches=batches,
    )


_SCHEMA = "schema"  # in a state dict: the schema's fingerprint, as bytes
JOIN = "join"  # the output layer over joined towers
NUMBERS = "numbers"  # what turns numbers into fields
WIDE_BIAS = "wide_bias"  # the parameter that the wide optimizer moves
LINEAR = "linear_numbers"  # the terms of numbers that no tower reads

Tower = nn.Module | Callable[[DeepLayout], nn.Module]


class WideDeep(nn.Module):
    """A wide linear model and a deep network that are trained jointly.

    Either part alone is legal: ``FeatureSpec(wide=[])`` is deep only, ``FeatureSpec(deep=[])`` wide
    only.

    ``state_dict()`` holds the tables too, and the fingerprint of the schema; weights of another
    schema are refused. ``parameters()`` gives the towers' and the bias, which any optimizer may
    move: the rows of tables are moved by a trainer's sparse optimizers, and are no parameters.
    The tables stay float32 where they were made: ``half()`` or ``to("cuda")`` is refused.

    Args:
        schema: From :func:`widedeep.fit_schema`.
        config: Its shape; None: :class:`widedeep.models.config.ModelConfig` with its defaults.
        head: A head of :mod:`widedeep.models.heads`, its name (``"binary"``, ``"poisson"``), a
            table ``{"kind": "binary", "loss": "focal"}``, one of these by label, or None: the
            configuration's, or else by the label.
        towers: Towers without a configuration, by name: modules called with a
            :class:`widedeep.models.DeepInput`, or functions that make one from a
            :class:`widedeep.models.DeepLayout`, called with torch's, NumPy's and Python's
            generators started from ``seed``. The standard tower is made if ``hidden_units`` is
            given, or neither ``deep`` nor ``towers`` is.
        pretrained: Vectors that rows start with, by the name of a feature or shared table: what
            :func:`widedeep.data.pretrained.read_vectors` takes. They come before the files that
            features declare. False reads none, for a model whose weights are restored.
        device: Where tables and towers live.
        options: Fields of :class:`widedeep.models.config.ModelConfig` by keyword, such as
            ``hidden_units=[100, 50]`` or ``deep=models.DCNv2(layers=3)``; they come before those of
            ``config``. Equal seeds give equal models; a tower that was made before it is given here
            is as it is.

    Shape:
        Batch of B examples -> logits (B, C), C the sum of the heads' widths

    Raises:
        ConfigError: If an option is outside its range.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"age": 20 + i, "job": "ab"[i % 2], "y": i % 2} for i in range(8)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.numeric("age"), wd.categorical("job")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4], embedding_dim=2)
        >>> model.n_logits
        1
    """

    def __init__(
        self,
        schema: Schema,
        config: ModelConfig | None = None,
        *,
        head: HeadChoice = None,
        towers: Mapping[str, Tower] | None = None,
        pretrained: Mapping[str, object] | Literal[False] | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("hidden_units") is None:
            options.pop("hidden_units", None)
            if "deep" in options or (towers and config is None):
                options["hidden_units"] = ()
        _check_arguments(schema, options.get("hidden_units", ()))
        if "hidden_units" in options:
            options["hidden_units"] = tuple(options["hidden_units"])
        self.config = with_options(config or ModelConfig(), options, "WideDeep")
        if head is not None:
            self.config = with_head(self.config, head, schema.spec.labels)
        self.schema = schema
        self.device = checked_device(device)
        if self.config.table_dtype == "bf16" and self.device.type != "cpu":
            raise ConfigError(
                f"[model]: got table_dtype = 'bf16' on {self.device}, expected the CPU, whose "
                "kernels round such tables; drop it, or train with device='cpu'"
            )
        self.heads = make_heads(schema, self.config.head_choice if head is None else head)
        configs = tower_configs(self.config.deep)
        for tower in configs.values():
            self.heads = tower.link_heads(self.heads)
        self.embedding_rate = min(
            (tower.embedding_rate for tower in configs.values()), default=EMBEDDING_RATE
        )
        deviations = [tower.embedding_std for tower in configs.values()]
        if self.config.hidden_units or towers or not deviations:
            deviations.append(EMBEDDING_STD)
        configured = self.config.embedding_std
        self.embedding_std = min(deviations) if configured is None else configured
        self.head_slices = head_slices(self.heads)
        self.n_logits = sum(head.width for head in self.heads)
        heads_columns = {h.name: span for h, span in zip(self.heads, self.head_slices, strict=True)}
        dim = shared_dim(schema, self.config.embedding_dim, configs)
        self.copies = embedding_copies(configs)  # of each id's embedding, side by side
        self.layout = make_layout(schema, dim, heads_columns, copies=self.copies)
        self.gathered = make_layout(schema, dim, heads_columns, copies=self.copies, gathered=True)
        self._check_size()
        self.batches = DeviceBatches(self.device)
        self.shard = (0, 1)  # This process among those that divide the tables' rows
        self.wide_table = make_wide_table(schema, self.n_logits, self.device, self.batches)
        self.pretrained = {} if pretrained is False else self._read_pretrained(pretrained or {})
        declared = {slot.table for slot in schema.slots if slot.deep and slot.embedding.frozen}
        self.declared_frozen = frozenset(declared)
        self._frozen = self.declared_frozen
        self.deep_tables, self.frozen_tables = self._make_deep_tables()
        self.numbers = self._make_numbers()
        self._make_towers(configs, towers or {})
        self.losses = HeadLosses(self.heads, self.head_slices, schema)
        self.bias = nn.Parameter(self._start_bias())
        self.wide_bias = nn.Parameter(torch.zeros(self.n_logits)) if self._has_wide_bias() else None
        self.loads = 0  # of state dicts, after which a trainer's optimizers start anew
        self.to(self.device)

    def __repr__(self) -> str:
        """Return heads, parts, tables and the number of weights, one line each."""
        heads = ", ".join(f"{head.name} {head.kind}".strip() for head in self.heads)
        spec, size = self.schema.spec, {slot.name: slot.size for slot in self.schema.slots}
        tables = ", ".join(
            f"{name} {size[name]:,} x {dim}" for name, dim in self.gathered.dims.items()
        )
        dense = sum(parameter.numel() for parameter in self.parameters())
        wide = self.n_logits * sum(slot.size for slot in self.schema.slots if slot.wide)
        embeddings = sum(table.n_rows * table.dim for table in self.embedding_tables)
        found = "".join(f"pretrained {name}: {rows}\n" for name, rows in self.pretrained.items())
        return (
            f"WideDeep ({heads}; {self.device})\n"
            f"wide: {len(spec.wide_names)} features, {wide:,} weights\n"
            f"deep: {len(spec.deep_names)} features, {self.layout.width:,} columns, "
            f"towers {', '.join(self.towers) or 'none'}, hidden units "
            f"{list(self.config.hidden_units or ())}, {dense:,} weights\n"
            f"embeddings: {tables or 'none'}; {embeddings:,} weights\n"
            f"{found}schema: {self.schema.fingerprint[:12]}"
        )

    def _repr_html_(self) -> str:
        sizes = {slot.name: slot.size for slot in self.schema.slots}
        wide = {slot.name: self.n_logits * slot.size for slot in self.schema.slots if slot.wide}
        tables = {name: sizes[name] * dim for name, dim in self.gathered.dims.items()}
        towers = {
            f"tower {name}": sum(p.numel() for p in tower.parameters())
            for name, tower in self.towers.items()
        }
        counts = {"wide": sum(wide.values()), "embeddings": sum(tables.values()), **towers}
        entries = [(name, f"{count:,}", "weights") for name, count in counts.items()]
        features = [
            (name, float(wide.get(name, 0) + tables.get(name, 0)), f"{wide.get(name, 0):,}",
             f"{sizes[name]:,} x {self.gathered.dims[name]}" if name in tables else "")
            for name in sorted({*wide, *tables}, key=lambda n: -wide.get(n, 0) - tables.get(n, 0))
        ]  # fmt: skip
        headings = ("feature", "wide weights", "embedding")
        heads = ", ".join(f"{head.name} {head.kind}".strip() for head in self.heads)
        subtitle = f"{heads}; hidden units {list(self.config.hidden_units or ())}; {self.device}"
        parts = [tiles(entries), subsection("Weights", bar_list(features, headings=headings))]
        height = min(280 + 32 * len(features), 640)
        return framed_page("WideDeep", parts, subtitle=subtitle, height=height)

    def _start_bias(self) -> Tensor:
        start = self.config.bias_init or ("prior" if self.config.compat is None else "zeros")
        if start == "zeros":
            return torch.zeros(self.n_logits)
        biases = [value for head in self.heads for value in start_bias(head, self.schema)]
        return torch.tensor(biases, dtype=torch.float32)

    def _has_wide_bias(self) -> bool:
        if self.config.wide_bias and self.wide_table is None:
            raise ConfigError(
                "[model]: got wide_bias = true, but no feature is in the wide part; name some in "
                "wide=[...], or drop wide_bias"
            )
        wanted = self.config.wide_bias
        return self.wide_table is not None and (
            self.config.compat is not None if wanted is None else wanted
        )

    @property
    def logit_bias(self) -> Tensor:
        """The biases of both parts, (C,): what a bundle holds as one."""
        return self.bias if self.wide_bias is None else self.bias + self.wide_bias

    def _check_size(self) -> None:
        """Refuse a model that this machine cannot hold, before anything is allocated."""
        tables = {
            slot.table: slot.size * self.layout.dims[slot.name]
            for slot in self.schema.slots
            if slot.deep
        }
        widths = [self.layout.width, *(self.config.hidden_units or ())]
        ranks = launched_size()  # which divide the rows of tables
        wide = self.n_logits * sum(slot.size for slot in self.schema.slots if slot.wide)
        embedded = sum(tables.values()) * self._table_dtype.itemsize
        n_bytes = {
            "wide weights": 4 * wide // ranks,
            "embeddings": embedded // ranks,
            "hidden layers": 4 * sum(a * b for a, b in itertools.pairwise(widths)),
        }
        limit = _memory_bytes(self.device)
        if sum(n_bytes.values()) > limit:
            name = max(n_bytes, key=lambda part: n_bytes[part])
            where = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise ConfigError(
                f"the model would take {sum(n_bytes.values()) / 2**30:,.1f} GiB{where}, most of "
                f"it for {name}, and {limit / 2**30:,.1f} GiB are here; lower embedding_dim, "
                "hidden_units or hash_buckets, or bound vocabularies (min_count, max_size)"
            )

    def _read_pretrained(self, sources: Mapping[str, object]) -> dict[str, PretrainedRows]:
        """Match pretrained vectors with the tables' rows, by table."""
        slots = {slot.name: slot for slot in self.schema.slots if slot.deep}
        names = {**{slot.table: slot for slot in reversed(slots.values())}, **slots}
        for name in sources:
            if name not in names:
                raise ConfigError(
                    f"pretrained: got {name!r}, which is no embedded feature; "
                    f"{nearest(name, names)}"
                )
        by_table = {
            slot.table: slot.embedding.pretrained
            for slot in slots.values()
            if slot.embedding.pretrained is not None
        } | {names[name].table: source for name, source in sources.items()}
        features = {slot.table: self.schema.spec.by_name[slot.name] for slot in slots.values()}
        return {
            table: match_rows(
                self.schema,
                features[table],
                source,
                self.gathered.dims[features[table].name] // self.copies,
                copies=self.copies,
            )
            for table, source in by_table.items()
        }

    def _make_deep_tables(self) -> tuple[dict[int, EmbeddingTable], dict[int, EmbeddingTable]]:
        """Make a fused table a width of the rows that are trained, and one of the frozen ones."""
        trained: dict[int, EmbeddingTable] = {}
        frozen: dict[int, EmbeddingTable] = {}
        dims = self.gathered.dims
        for dim in sorted(set(dims.values())):
            slots = [slot for slot in self.schema.slots if dims.get(slot.name) == dim]
            for tables, is_frozen in ((trained, False), (frozen, True)):
                own = [slot for slot in slots if (slot.table in self._frozen) == is_frozen]
                if own:
                    tables[dim] = self._make_table(own, dim)
        return trained, frozen

    def _make_table(self, slots: Sequence[Slot], dim: int) -> EmbeddingTable:
        names = {slot.table for slot in slots}
        options = {slot.table: self.config.row_options(slot.embedding) for slot in slots}
        return EmbeddingTable(
            {slot.table: slot.size for slot in slots},
            {slot.name: slot.table for slot in slots},
            dim=dim,
            seed=self.config.seed,
            std=self.embedding_std,
            options={table: own for table, own in options.items() if own.changes_init},
            vectors={
                table: (rows.ids_M, torch.from_numpy(rows.vectors_MD))
                for table, rows in self.pretrained.items()
                if table in names
            },
            device=self.device,
            batches=self.batches,
            shard=self.shard,
            dtype=self._table_dtype,
        )

    @property
    def _table_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.table_dtype == "bf16" else torch.float32

    def set_shard(self, rank: int, world: int) -> None:
        """Keep the tables' rows of one rank of ``world`` alone, from now on."""
        self.shard = (rank, world)
        for table in self.tables.values():
            table.set_shard(rank, world)

    def freeze_tables(self, names: Iterable[str]) -> None:
        """Keep the rows of these tables, and of those declared frozen, apart from trained ones.

        No ids are grouped for them, no gradient is summed and no optimizer state is kept. Trainers
        that were made before no longer fit the model.

        Args:
            names: Logical tables; others are trained from now on.
        """
        frozen = self.declared_frozen | set(names)
        if frozen == self._frozen:
            return
        before = [table for table in self.embedding_tables if table.is_filled]
        self._frozen = frozen
        self.deep_tables, self.frozen_tables = self._make_deep_tables()
        weights = {name: rows for table in before for name, rows in table.named_weights().items()}
        for table in self.embedding_tables if weights else ():
            table.load_weights(weights)

    @property
    def embedding_tables(self) -> tuple[EmbeddingTable, ...]:
        """The tables of embeddings, those that are trained first."""
        return (*self.deep_tables.values(), *self.frozen_tables.values())

    def embedding_table(self, feature: str) -> EmbeddingTable:
        """Return the table that holds a feature's embeddings."""
        return next(table for table in self.embedding_tables if feature in table.features)

    def _make_numbers(self) -> NumberFields | None:
        """What turns gathered numbers into fields, None where all stay numbers."""
        if self.gathered.columns == self.layout.columns:
            return None
        with seeded(self.device, NUMBERS, self.config.seed):
            return NumberFields(self.schema, self.gathered, self.layout)

    def _make_towers(self, configs: Mapping[str, TowerConfig], custom: Mapping[str, Tower]) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        towers: dict[str, nn.Module] = {}
        if self.config.hidden_units and self.layout.width > 0:
            with seeded(self.device, "mlp", self.config.seed):
                towers["mlp"] = MLPTower(
                    self.layout.width,
                    self.config.hidden_units,
                    activation=self.config.activation,
                    dropout=self.config.dropout,
                    batch_norm=self.config.norm,
                    generator=generator,
                )
        for name, tower in {**{n: c.make for n, c in configs.items()}, **custom}.items():
            self._check_tower(name, towers)
            with seeded(self.device, "tower", name, self.config.seed):
                towers[name] = tower if isinstance(tower, nn.Module) else tower(self.layout)
        if towers and self.layout.numbers and not any(map(reads_numbers, towers.values())):
            towers[LINEAR] = NumbersTower(self.layout)
        self.towers = nn.ModuleDict(towers)
        self._make_outputs(generator)

    def _check_tower(self, name: str, towers: Mapping[str, nn.Module]) -> None:
        if not (self.layout.width > 0 or self.layout.sequences or self.layout.extra):
            raise ConfigError(
                f"got tower {name!r}, but no feature is in the deep part; name some in deep=[...]"
            )
        if name in (*towers, JOIN, NUMBERS, LINEAR):
            raise ConfigError(f"got two towers of the name {name!r}; rename one")

    def _make_outputs(self, generator: torch.Generator) -> None:
        """Make the linear layers from what towers return to logits, and what joins the towers."""
        widths: dict[str, int] = {}
        members: dict[str, int] = {}
        for name, tower in self.towers.items():
            with seeded(self.device, "forward", name, self.config.seed):
                width = self._tower_width(name, tower)
            if not gives_logits(tower):
                widths[name] = width
            elif getattr(tower, "returns", "") == "members":
                members[name] = width
        if len(set(members.values())) > 1:
            raise ConfigError(
                f"got towers of different numbers of members, {members}, expected one number; "
                "their members are trained together"
            )
        self.join: HiddenLayers | None = None
        if self.config.join is not None and len(widths) > 1:
            with seeded(self.device, JOIN, self.config.seed):
                self.join = MLP(**self.config.join).hidden_layers(sum(widths.values()))
            widths = {JOIN: self.join.out_features}
        elif self.config.join is not None:
            raise ConfigError(
                f"[model]: got join={dict(self.config.join)} and {len(widths)} tower(s) that "
                "return features, expected at least two; name more in deep, or drop join"
            )
        self.outputs = nn.ModuleDict()
        for name, width in widths.items():
            output = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Linear, width, self.n_logits, bias=False
            )
            nn.init.xavier_uniform_(output.weight, generator=generator)
            self.outputs[name] = output

    def _tower_width(self, name: str, tower: nn.Module) -> int:
        if type(tower) is MLPTower and tower.is_standard:
            return tower.out_features
        with torch.no_grad():
            was_training = tower.training
            out = tower.eval()(empty_input(2, self.layout))
            tower.train(was_training)
        if getattr(out, "dtype", None) != torch.float32:
            got = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise ConfigError(f"tower {name!r}: returned {got}, expected a tensor of float32")
        shape, form = tuple(out.shape), getattr(tower, "returns", "features")
        expected = {"members": "(2, M, C)", "logits": "(2, C)"}.get(form, "(2, width)")
        fits_logits = not gives_logits(tower) or shape[-1:] == (self.n_logits,)
        if shape[:1] != (2,) or len(shape) != expected.count(",") + 1 or not fits_logits:
            raise ConfigError(
                f"tower {name!r}: got an output of shape {shape} for 2 examples, expected "
                f"{expected}{f' with C = {self.n_logits}' if gives_logits(tower) else ''}"
            )
        return int(shape[1])

    def check_batch(self, batch: Batch) -> None:
        """Raise a :class:`SchemaError` if a batch was made with another schema's shape."""
        slots = len(self.schema.slots)
        if len(batch) and (
            batch.n_slots != slots or batch.dense_BK.shape[1] != self.schema.n_dense
        ):
            raise SchemaError(
                f"got a batch of {batch.n_slots} id features and {batch.dense_BK.shape[1]} dense "
                "columns, the model's schema "
                f"has {slots} and {self.schema.n_dense}; encode the rows with the model's own "
                "schema"
            )

    def gather(self, batch: Batch, *, threads: int = 1, out: Tensor | None = None) -> DeepInput:
        """Look up a batch's embeddings and lay out the deep input, numbers as numbers.

        Args:
            batch: B examples.
            threads: Threads of the lookup.
            out: Buffer of at least B rows to write ``concat_BX`` into.
        """
        rows, layout = len(batch), self.gathered
        if out is None:
            out = self.concat_buffer(rows)
        concat = out[:rows, : layout.width]
        for table in self.embedding_tables:
            table.gather(batch, self.schema.slots, layout.columns, concat, threads=threads)
        if layout.dense_columns:
            if len(layout.dense_columns) == batch.dense_BK.shape[1]:
                dense = self.batch_tensor(batch, "dense_BK")
            else:
                dense = to_device(batch.dense_BK[:, list(layout.dense_columns)], self.device)
            concat[:, layout.dense] = dense
        return DeepInput(
            concat_BX=concat,
            layout=layout.columns,
            dense_BK=concat[:, layout.dense],
            sequences=self._sequences(batch),
            extra={
                name: to_device(batch.dense_BK[:, s], self.device)
                for name, s in layout.extra.items()
            },
        )

    def batch_tensor(self, batch: Batch, name: str) -> Tensor:
        """Return one of a batch's arrays where the tables are."""
        if self.device.type == "cpu":
            return torch.from_numpy(getattr(batch, name))
        return self.batches.array(batch, name)

    def concat_buffer(self, rows: int) -> Tensor:
        """Return a new buffer for ``concat_BX``."""
        return batch_rows(rows, self.gathered.width, self.device)

    def _sequences(self, batch: Batch) -> dict[str, SequenceInput]:
        sequences = {}
        for name in self.layout.sequences:
            cells = batch.cells(self.slot_index(name))
            rows_ND, _ = self.embedding_table(name).rows_of_slot(
                batch, self.schema.slots, self.slot_index(name)
            )
            weights = cells.values_N
            sequences[name] = SequenceInput(
                rows_ND,
                to_device(cells.offsets, self.device),
                ids_N=to_device(cells.ids_N, self.device),
                weights_N=None if weights is None else to_device(weights, self.device),
                longest=cells.longest,
            )
        return sequences

    def slot_index(self, name: str) -> int:
        """Position of a feature among the schema's slots."""
        return next(i for i, slot in enumerate(self.schema.slots) if slot.name == name)

    def wide_logits(self, batch: Batch, *, threads: int = 1, bias: bool = True) -> Tensor:
        """Return the biases, or zeros, plus the wide part, (B, C)."""
        logits_BC = torch.zeros(len(batch), self.n_logits, device=self.device)
        if bias:
            logits_BC += self.logit_bias.detach()
        if self.wide_table is not None:
            self.wide_table.add_wide(
                batch, self.schema.slots, self.config.wide_combiner, logits_BC, threads=threads
            )
        return logits_BC

    def deep_logits(self, inputs: DeepInput) -> Tensor | None:
        """Return the towers' part of the logits, (B, C), or None without towers.

        Args:
            inputs: What :meth:`gather` returns.
        """
        total = self.member_logits(inputs)
        return total if total is None or total.dim() == 2 else total.mean(dim=1)

    def member_logits(self, inputs: DeepInput) -> Tensor | None:
        """Return the towers' part of the logits, (B, M, C) where a tower has M members."""
        return add_logits(list(self.tower_logits(inputs).values()))

    @property
    def shares(self) -> list[str]:
        """Names of what :meth:`tower_logits` returns where it is several, else none."""
        names = [n for n, t in self.towers.items() if gives_logits(t) or self.join is None]
        names += [] if self.join is None else [JOIN]
        return names if len(names) > 1 else []

    def tower_logits(self, inputs: DeepInput) -> dict[str, Tensor]:
        """Return what each tower adds to the logits, joined ones as ``"join"``.

        (B, C), or (B, M, C) from a tower of M members.
        """
        if self.numbers is not None:
            inputs = self.numbers(inputs)
        parts: dict[str, Tensor] = {}
        joined: list[Tensor] = []
        for name, tower in self.towers.items():
            out = _call_tower(name, tower, inputs)
            if gives_logits(tower):
                parts[name] = out
            elif self.join is not None:
                joined.append(out)
            else:
                parts[name] = self.outputs[name](out)
        if self.join is not None:
            parts[JOIN] = self.outputs[JOIN](self.join(torch.cat(joined, dim=1)))
        return parts

    @torch.no_grad()
    def forward(self, batch: Batch, threads: int = 1) -> Tensor:
        """Return a batch's logits (B, C), without a graph: :class:`widedeep.Trainer` trains."""
        self.check_batch(batch)
        logits_BC = self.wide_logits(batch, threads=threads)
        if self.towers:
            deep = self.deep_logits(self.gather(batch, threads=threads))
            if deep is not None:
                logits_BC += deep
        return logits_BC

    def recount(self) -> None:
        """Count the wide part's non-zero weights anew, after they were changed from outside."""
        if self.wide_table is not None:
            self.wide_table.recount_nonzero()

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """The wide weights (``"wide"``), embeddings by width (``"deep/8"``), and frozen ones."""
        tables = {f"deep/{dim}": table for dim, table in self.deep_tables.items()}
        tables |= {f"frozen/{dim}": table for dim, table in self.frozen_tables.items()}
        return tables if self.wide_table is None else {"wide": self.wide_table, **tables}

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, tables and towers together; ``parameters()`` gives the towers'."""
        in_tables = sum(table.n_rows * table.dim for table in self.tables.values())
        return in_tables + sum(p.numel() for p in self.parameters())

    # ---- what torch asks of a module ------------------------------------------------------------

    def dense_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that are no tables, as they are: every step moves all.

        They have the names that ``state_dict()`` gives them. Rows of tables are not made for it.
        """
        state: dict[str, Tensor] = {}
        super()._save_to_state_dict(state, "", keep_vars=True)
        for name, child in self.named_children():
            child.state_dict(destination=state, prefix=f"{name}.", keep_vars=True)
        return state

    def _table_state(self) -> dict[str, Tensor]:
        """The tables' weights by their names in a bundle, and the schema they belong to."""
        state = {
            f"{'wide' if name == 'wide' else 'table'}/{logical}": weight
            for name, table in self.tables.items()
            for logical, weight in table.named_weights().items()
        }
        digest = torch.frombuffer(bytearray.fromhex(self.schema.fingerprint), dtype=torch.uint8)
        return {**state, _SCHEMA: digest.clone()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self._table_state().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        own = self._table_state()
        tables = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        others = {
            key: value for key, value in state_dict.items() if key[len(prefix) :] not in tables
        }
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing_keys += [prefix + name for name in own if name not in tables]
        for name, tensor in tables.items():
            if tuple(tensor.shape) != tuple(own[name].shape):
                error_msgs.append(
                    f"size mismatch for {prefix}{name}: got {tuple(tensor.shape)}, the model has "
                    f"{tuple(own[name].shape)}; make the model with the schema of its run"
                )
        if _SCHEMA in tables and not torch.equal(tables[_SCHEMA].cpu(), own[_SCHEMA]):
            stored = bytes(tables[_SCHEMA].tolist()).hex()
            error_msgs.append(
                f"got the weights of the schema {stored[:12]}, the model's is "
                f"{self.schema.fingerprint[:12]}: its ids stand for other values; make the model "
                "with the schema of its run, or use Trainer.warm_start, which moves rows by value"
            )
        self.loads += 1
        if not error_msgs:
            for name, table in self.tables.items():
                lead = "wide/" if name == "wide" else "table/"
                table.load_weights(
                    {n.removeprefix(lead): t for n, t in tables.items() if n.startswith(lead)}
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideDeep:
        """Refuse what would move the towers and leave the tables behind."""
        probe = torch.zeros(1, device=self.device)
        moved = fn(probe)
        shared = bool(moved.is_shared())  # type: ignore[no-untyped-call]
        if moved.dtype != probe.dtype or moved.device != probe.device or shared:
            change = "shared memory" if shared else f"{moved.dtype} on {moved.device}"
            raise ConfigError(
                f"got a change of the model to {change}, which its tables, float32 on "
                f"{self.device}, do not make; give device= to WideDeep, precision= to Trainer, and "
                "export for serving"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def requires_grad_(self, requires_grad: bool = True) -> WideDeep:
        """Refuse to freeze the towers alone."""
        if not requires_grad:
            raise ConfigError(
                "got requires_grad_(False) of the whole model, whose tables and bias would learn "
                'on; give freeze= to Trainer, such as ["table/*", "towers.*"]'
            )
        super().requires_grad_()
        return self


def _call_tower(name: str, tower: nn.Module, inputs: DeepInput) -> Tensor:
    """Call a tower; its weights of sequences get names that begin with the tower's."""
    if inputs.attention is None:
        out: Tensor = tower(inputs)
        return out
    own: dict[str, Tensor] = {}
    out = tower(dataclasses.replace(inputs, attention=own))
    inputs.attention.update({f"{name}/{sequence}": weights for sequence, weights in own.items()})
    return out


def add_logits(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the sum of towers' logits, (B, M, C) where one has M members, None of none."""
    if any(part.dim() == 3 for part in parts):
        parts = [part if part.dim() == 3 else part.unsqueeze(1) for part in parts]
    total = None
    for logits in parts:
        total = logits if total is None else total + logits
    return total


def with_head(config: ModelConfig, head: HeadChoice, labels: Collection[str]) -> ModelConfig:
    """Return a configuration that names heads, as far as names stand for them."""
    if isinstance(head, Mapping) and not is_head_table(head, labels):
        tables = {n: head_table(h) if isinstance(h, Head) else h for n, h in head.items()}
        named = {n: table for n, table in tables.items() if table is not None}
        return dataclasses.replace(config, head=None, heads=named)
    table = head_table(head) if isinstance(head, Head) else head
    if table is None and isinstance(head, Head):
        table = head.kind if head.kind in registered_heads() else None
    return dataclasses.replace(config, head=table, heads={})


def gives_logits(tower: nn.Module) -> bool:
    """Tell whether a tower returns what it adds to the logits, rather than features."""
    return getattr(tower, "returns", "features") in ("logits", "members")


def reads_numbers(tower: nn.Module) -> bool:
    """Tell whether a tower reads the dense numbers, as all do that do not say otherwise."""
    return bool(getattr(tower, "reads_numbers", True))


WideDeep.__signature__ = keyword_signature(WideDeep, ModelConfig)  # type: ignore[attr-defined]


def checked_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, which must be here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"got device={name!r}, expected 'cpu' or 'cuda'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"got device={str(name)!r}, expected 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"got device={str(name)!r}, but PyTorch sees no GPU here; train with device='cpu', "
            "or install PyTorch's CUDA build and the driver"
        )
    return device


def _memory_bytes(device: torch.device) -> int:
    """Memory of the device, or what this process may take of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)


def _check_arguments(schema: object, hidden_units: object) -> None:
    if not isinstance(schema, Schema):
        raise ConfigError(
            f"got {type(schema).__name__} as the schema, expected what wd.fit_schema(spec, data) "
            "or wd.Schema.load(path) returns"
        )
    if isinstance(hidden_units, str) or not isinstance(hidden_units, Iterable):
        raise ConfigError(
            f"got hidden_units={hidden_units!r}, expected a list of widths, such as [100, 50]"
        )
