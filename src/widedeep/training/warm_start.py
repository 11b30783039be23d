"""Moves an older model's parameters into a trainer's: by feature value, never by row number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.data.extend_schema import map_ids
from widedeep.errors import ConfigError, SchemaError, nearest
from widedeep.features import IdMap
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.models.numbers import number_of_parameter
from widedeep.models.wide_deep import JOIN, WIDE_BIAS, WideDeep
from widedeep.optim import FTRL, Adam, describe_optimizer
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.training.config import WarmStartConfig
from widedeep.training.previous_model import (
    PreviousModel,
    as_floats,
    head_meaning,
    layer_change,
    model_options,
    name_of_module,
    pooling_change,
    read_previous_model,
    state_change,
    tower_inputs,
)
from widedeep.training.state import TrainState

State = Literal["carried", "remapped", "fresh"]
OptimizerState = Literal["carried", "rebuilt", "fresh"]
_NO_LAYER = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferredTensor:
    """What became of one tensor of the new model."""

    name: str  # ``wide/FEATURE``, ``table/TABLE``, ``mlp/LAYER/weight``, ``head/weight``, ``bias``
    # ``"carried"`` whole, ``"remapped"`` (rows by their values, columns by their features), or
    # ``"fresh"``: initialised as without a warm start
    state: State
    transferred: int  # Rows of a table, or inputs of a layer, that came over
    total: int  # Rows, or inputs, of the new model
    # The optimizer's state: ``"carried"``, ``"rebuilt"`` from the weights, or ``"fresh"``
    optimizer: OptimizerState = "fresh"
    reason: str = ""  # Why something is fresh: all of it, or the columns, ids or state named here


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a warm start did."""

    path: str  # The older model
    tensors: tuple[TransferredTensor, ...]  # One entry per tensor of the new model
    unused: tuple[str, ...]  # Tensors of the older model that the new one does not have

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        moved = [
            {
                "name": tensor.name,
                "state": tensor.state,
                "found": tensor.transferred,
                "of": tensor.total,
                "optimizer": tensor.optimizer,
                "reason": tensor.reason,
            }
            for tensor in self.tensors
        ]
        return {"path": self.path, "moved": moved, "left": list(self.unused)}

    def __repr__(self) -> str:
        width = max([len(tensor.name) for tensor in self.tensors], default=0)
        lines = [f"warm start from {self.path}"]
        for tensor in self.tensors:
            rows = f"{tensor.transferred:,} of {tensor.total:,}"
            notes = f"optimizer {tensor.optimizer}" + (
                f"; {tensor.reason}" if tensor.reason else ""
            )
            lines.append(f"{tensor.name:{width}}  {tensor.state:8}  {rows:>23}  {notes}")
        lines += [f"{name:{width}}  not in the new model" for name in self.unused]
        return "\n".join(lines)


def warm_start(state: TrainState, config: WarmStartConfig) -> WarmStart:
    """Take over what an older model learned; see :meth:`widedeep.Trainer.warm_start`."""
    previous = read_previous_model(config.path)
    new, old = (
        {slot.name for slot in schema.slots} | set(schema.dense_layout)
        for schema in (state.model.schema, previous.schema)
    )
    if not new & old:
        raise SchemaError(
            f"{config.path}: got a model of the features {sorted(old)}, of which the new one has "
            f"none ({sorted(new)}); start from a model of the same data, or train without a warm "
            "start"
        )
    started = _Transfer(state, previous, config).run()
    names = sorted({tensor.name for tensor in started.tensors})
    for pattern in config.transfer:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"warm start: got the pattern {pattern!r} of tensors to transfer, which matches "
                f"none; {nearest(pattern, names)}"
            )
    return started


class _Transfer:
    """Moves parameters of an older model into a run's state."""

    def __init__(self, state: TrainState, previous: PreviousModel, config: WarmStartConfig) -> None:
        self.state, self.model, self.previous = state, state.model, previous
        self.config = config
        step, scales = state.step, ("grad_scale", "loss_reduction")
        self.optimizers: dict[str, Any] = {
            "wide": step.wide,
            "deep": step.deep,
            "dense": step.dense.optimizer,
        }
        self.scales = {name: getattr(state.config, name) for name in scales}, previous.scales
        self.heads_change = _heads_change(state.model, previous)
        self.options = model_options(state.model.config)
        self.layers_change = layer_change(self.options, previous.options)
        # Feature to reason the columns that read it start anew.
        self.inputs_anew: dict[str, str] = {}
        # Feature to the matrix by which its embeddings came to their new width.
        self.projected: dict[str, NDArray[np.float32]] = {}
        self.tensors: list[TransferredTensor] = []
        self._maps: dict[str, IdMap] = {}

    @torch.no_grad()
    def run(self) -> WarmStart:
        model, previous = self.model, self.previous
        if model.wide_table is not None:
            for name in model.wide_table.sizes:
                self._wide(model.wide_table, name)
            model.recount()
        for table in model.embedding_tables:
            for name in table.sizes:
                self._embeddings(table, name, table.dim)
        self._dense()
        if self._counts_on():
            position = self.state.position
            position.updates = max(position.updates, previous.updates)
        names = {tensor.name for tensor in self.tensors}
        unused = tuple(name for name in (*previous.rows, *previous.dense) if name not in names)
        return WarmStart(path=str(previous.path), tensors=tuple(self.tensors), unused=unused)

    def _counts_on(self) -> bool:
        """Whether updates are numbered on: where state came, and no Adam begins without its own."""
        by_part: dict[str, list[str]] = {}
        for tensor in self.tensors:
            prefix = tensor.name.partition("/")[0]
            group = {"wide": "wide", WIDE_BIAS: "wide", "table": "deep"}.get(prefix, "dense")
            by_part.setdefault(group, []).append(tensor.optimizer)
        anew = any(
            isinstance(self.optimizers[group], Adam) and "carried" not in states
            for group, states in by_part.items()
        )
        return not anew and any("carried" in states for states in by_part.values())

    def _is_requested(self, name: str, size: int) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.config.transfer):
            return True
        self._initialised(name, size, "not asked for")
        return False

    def _ids(self, feature: str) -> IdMap:
        """Map a feature's ids once for its wide weights and its embeddings."""
        if feature not in self._maps:
            self._maps[feature] = map_ids(self.model.schema, self.previous.schema, feature)
        return self._maps[feature]

    def _initialised(self, name: str, size: int, reason: str) -> None:
        self.tensors.append(
            TransferredTensor(name=name, state="fresh", transferred=0, total=size, reason=reason)
        )

    # ---- tables ------------------------------------------------------------------------------

    def _wide(self, table: EmbeddingTable, feature: str) -> None:
        name, size = f"wide/{feature}", table.sizes[feature]
        if not self._is_requested(name, size):
            return
        if self.heads_change:
            self._initialised(name, size, self.heads_change)
        elif name not in self.previous.rows:
            self._initialised(name, size, "not in the old model's wide part")
        elif reason := self._wide_change(feature):
            self._initialised(name, size, reason)
        else:
            ids = self._ids(feature)
            factor = self._rate(feature) if ids.matched else 1.0
            self._rows(table, feature, name, ids, self.previous.rows[name], "wide", factor=factor)

    def _wide_change(self, feature: str) -> str:
        if feature not in self.previous.schema.spec.by_name:
            return ""
        combiners = self.model.config.wide_combiner, self.previous.options["wide_combiner"]
        return pooling_change(self.model.schema, self.previous.schema, feature, combiners)

    def _embeddings(self, table: EmbeddingTable, logical: str, dim: int) -> None:
        name, size = f"table/{logical}", table.sizes[logical]
        features = [f for f, t in table.features.items() if t == logical]
        stored = self.previous.rows.get(name)
        if not self._is_requested(name, size):
            reason = "not asked for"
        elif stored is None:
            reason = "not in the old model's deep part"
        elif stored["weight"].shape[1] != dim and self.config.widths == "fresh":
            reason = f"width {stored['weight'].shape[1]} became {dim}"
        else:
            reason = self._table_change(features)
        if reason or stored is None:
            self.inputs_anew.update(dict.fromkeys(features, reason))
            if reason != "not asked for":
                self._initialised(name, size, reason)
            return
        ids, width = self._ids(self._known(features)), stored["weight"].shape[1]
        if not ids.matched:
            self.inputs_anew.update(dict.fromkeys(features, ids.why or "none of its values"))
        if width == dim:
            self._rows(table, logical, name, ids, stored, "deep")
        else:
            basis = _basis(stored["weight"], dim)
            self.projected.update(dict.fromkeys(features, basis))
            weight = as_floats(stored["weight"]) @ basis
            reason = f"width {width} projected to {dim}"
            self._rows(table, logical, name, ids, {"weight": weight}, "deep", reason=reason)

    def _known(self, features: Sequence[str]) -> str:
        """The first of the features of a table that the old model has too, else the first."""
        previous_features = self.previous.schema.spec.by_name
        return next((feature for feature in features if feature in previous_features), features[0])

    def _table_change(self, features: Sequence[str]) -> str:
        """Why a table's rows mean something else, by any of the features that share it."""
        new, old = self.model.schema, self.previous.schema
        for feature in features:
            if feature in old.spec.by_name:
                ids = self._ids(feature)
                reason = pooling_change(new, old, feature) or ("" if ids.matched else ids.why)
                if reason:
                    return reason if len(features) == 1 else f"{feature}: {reason}"
        return ""

    def _rows(
        self,
        table: EmbeddingTable,
        logical: str,
        name: str,
        ids: IdMap,
        stored: Mapping[str, NDArray[Any]],
        group: Literal["wide", "deep"],
        *,
        factor: float = 1.0,
        reason: str = "",
    ) -> None:
        optimizer = self.optimizers[group]
        views = table.named_state()
        table_state = {
            slot: views[f"{logical}.{slot}"]
            for slot in ("weight", *optimizer.state_names)
            if f"{logical}.{slot}" in views  # frozen rows have no state
        }
        before, after = self.previous.optimizers.get(group), describe_optimizer(optimizer)
        change = state_change(group, after, before or None, self.scales)
        copied = [
            slot
            for slot in optimizer.state_names
            if not change and slot in stored and slot in table_state
        ]
        layout, (rank, _) = table.layouts[logical], table.shard
        old_of_own = ids.old_of_N[layout.ids_of(rank)]
        for slot in ("weight", *copied):
            _copy_rows(table_state[slot], stored[slot], old_of_own)
        optimizer_state: OptimizerState = "carried" if copied else "fresh"
        if change and before and ids.matched:
            reason = "; ".join(filter(None, (reason, ids.why, f"optimizer: {change}")))
        if isinstance(optimizer, FTRL) and "z" in table_state:
            optimizer_state = self._ftrl_state(
                optimizer, table_state, before, name, optimizer_state, factor
            )
        self.tensors.append(
            TransferredTensor(
                name=name,
                state="fresh" if not ids.matched else "carried" if ids.is_identity else "remapped",
                transferred=ids.matched,
                total=len(ids.old_of_N),
                optimizer=optimizer_state if ids.matched else "fresh",
                reason=reason or ids.why,
            )
        )

    def _ftrl_state(
        self,
        ftrl: FTRL,
        table_state: Mapping[str, Tensor],
        before: Mapping[str, Any] | None,
        name: str,
        optimizer_state: OptimizerState,
        factor: float,
    ) -> OptimizerState:
        """Rebuild z where the one that came, if any, stands for another rate or penalty."""
        rate = self.previous.rates.get(name.removeprefix("wide/"))
        old_factor = 1.0 if rate is None else float(np.exp(rate[0]))
        if optimizer_state == "carried" and before is not None and old_factor == factor:
            now = {**describe_optimizer(ftrl), "adapt": None}
            if {**describe_optimizer(FTRL()), **before, "adapt": None} == now:
                return "carried"
        table_state["z"].copy_(
            ftrl.z_from_weights(table_state["weight"], table_state["n"], factor=factor)
        )
        return "rebuilt"

    def _rate(self, feature: str) -> float:
        """Take over what is known of a wide feature's rate; return its factor."""
        rates, table = self.state.step.feature_rates, self.model.wide_table
        if rates is None or table is None or feature not in self.previous.rates:
            return 1.0
        index = list(table.sizes).index(feature)
        rates.log_rates[index], rates.evidence[index] = self.previous.rates[feature].tolist()
        return float(np.exp(rates.log_rates[index].item()))

    # ---- layers ------------------------------------------------------------------------------

    def _dense(self) -> None:
        """Carry layers and towers, each up to the first that does not fit."""
        parameters = self.model.dense_state()
        # Tower to its first layer that starts anew, and the reason
        anew: dict[str, tuple[int, str]] = {}
        for tower in self.model.towers:
            reason = self.previous.mlp or (self.layers_change if tower == "mlp" else "")
            reason = reason or self._options_change(tower)
            reason = reason or ("" if tower == "mlp" else self._tower_change(tower, parameters))
            if reason:
                anew[tower] = -1, reason
        if self.model.join is not None and (reason := self._join_change(anew)):
            anew[JOIN] = -1, reason
        for key, value in parameters.items():
            name, inputs = name_of_module(key), value.shape[-1] if value.ndim else 1
            tower, layer = _tower_and_layer(key)
            first, first_reason = anew.get(tower, (_NO_LAYER, ""))
            stored = self.previous.dense.get(name)
            reason = first_reason if layer >= first else ""
            if (number := number_of_parameter(key)) is not None:
                reason = self._input_change(number)
            if not self._is_requested(name, inputs):
                reason = "not asked for"
            elif reason:
                self._initialised(name, inputs, reason)
            else:
                reason = self._layer(key, value, stored)
                if reason:
                    self._initialised(name, inputs, reason)
            if reason and tower and key.endswith("weight") and layer < first:
                # What stands behind a layer that starts anew would read other things than it did.
                anew[tower] = layer, f"{name} before it is fresh"

    def _layer(self, key: str, value: Tensor, stored: Mapping[str, NDArray[Any]] | None) -> str:
        """Carry one parameter, or return reason it starts anew."""
        name = name_of_module(key)
        if stored is None:
            return "not in the old model"
        if self.heads_change and (name in ("bias", WIDE_BIAS) or key.startswith("outputs.")):
            return self.heads_change
        if name == "bias" and self.model.wide_bias is None and WIDE_BIAS in self.previous.dense:
            both = stored["weight"] + self.previous.dense[WIDE_BIAS]["weight"]
            stored = {**stored, "weight": both}
        if name == "mlp/0/weight":
            return self._first_layer(key, value, stored)
        if tuple(stored["weight"].shape) != tuple(value.shape):
            return f"shape {tuple(stored['weight'].shape)} became {tuple(value.shape)}"
        self._parameter(key, value, stored, [(slice(None), stored)])
        return ""

    def _tower_change(self, tower: str, parameters: Mapping[str, Tensor]) -> str:
        """Why a tower of one's own would read, or be, something else; its columns have no names."""
        layout = self.model.layout
        if dict(layout.columns) != dict(self.previous.columns):
            return "the columns of its input are others"
        for feature in layout.columns:
            if (ids := self._moved_columns(feature)) is not None:
                return f"the values of {feature!r} are others ({ids.matched:,} of them are not)"
        if tower_inputs(layout) != self.previous.inputs:
            return "its sequences or extra inputs are others"
        for feature in (*layout.columns, *layout.sequences, *layout.extra):
            reason = self._input_change(feature)
            if reason:
                return f"its input {feature!r} starts anew: {reason}"
        for key, value in parameters.items():
            stored = self.previous.dense.get(name_of_module(key))
            if key.startswith(f"towers.{tower}.") and (
                stored is None or tuple(stored["weight"].shape) != tuple(value.shape)
            ):
                return f"{key} is not in the old model in this shape"
        return ""

    def _options_change(self, tower: str) -> str:
        """Why a tower's configuration makes it compute something else, or "" if it does not."""
        new, old = (_tower_options(every, tower) for every in (self.options, self.previous.options))
        for option in sorted(new.keys() | old.keys()) if new and old else ():
            if new.get(option) != old.get(option):
                return f"{option} {old.get(option)!r} became {new.get(option)!r}"
        return ""

    def _join_change(self, anew: Mapping[str, tuple[int, str]]) -> str:
        """Why the layers over all towers would read, or be, something else."""
        before, now = self.previous.options.get("join"), self.options["join"]
        if before != now:
            return f"join {before!r} became {now!r}"
        return "".join(f"tower {tower} is fresh" for tower in list(anew)[:1])

    def _input_change(self, feature: str) -> str:
        """Why the deep input of a feature means something else, or "" if it does not."""
        if feature in self.inputs_anew:
            return self.inputs_anew[feature]
        if feature in self.model.schema.dense_layout:
            if feature not in self.previous.schema.dense_layout:
                return "not in the old model"
            ids = self._ids(feature)
            return ids.why or pooling_change(self.model.schema, self.previous.schema, feature)
        return ""

    def _moved_columns(self, feature: str) -> IdMap | None:
        """Return where the columns of an indicator stood, if they stand elsewhere now."""
        declared = self.model.schema.spec.by_name[feature]
        if declared.source_feature is None or feature not in self.previous.schema.dense_layout:
            return None
        ids, old_size = self._ids(feature), self.previous.schema.id_count(feature)
        return None if ids.is_identity and len(ids.old_of_N) == old_size else ids

    def _first_layer(self, key: str, value: Tensor, stored: Mapping[str, NDArray[Any]]) -> str:
        """Take the columns of features that the old layer read too, and that mean the same."""
        weight = stored["weight"]
        if len(weight) != len(value):
            return f"{len(weight)} units became {len(value)}"
        sliced = {slot: a for slot, a in stored.items() if a.shape == weight.shape}
        blocks, anew = [], []
        for feature, new in self.model.layout.columns.items():
            old, basis = self.previous.columns.get(feature), self.projected.get(feature)
            reason = "not in the old model" if old is None else self._input_change(feature)
            if old is None or reason:
                anew.append(f"{feature} ({reason})")
            elif basis is not None and basis.shape[0] == old.stop - old.start:
                blocks.append((new, {"weight": weight[:, old] @ basis}))
            elif (ids := self._moved_columns(feature)) is not None:
                for to, start, width in _runs(ids.old_of_N[FIRST_KNOWN_ID:]):
                    there = slice(old.start + start, old.start + start + width)
                    here = slice(new.start + to, new.start + to + width)
                    blocks.append((here, {slot: array[:, there] for slot, array in sliced.items()}))
                columns = int(np.count_nonzero(ids.old_of_N[FIRST_KNOWN_ID:] < 0))
                if columns:
                    anew.append(f"{feature} ({columns:,} values that the old model had not)")
            elif new.stop - new.start == old.stop - old.start:
                blocks.append((new, {slot: array[:, old] for slot, array in sliced.items()}))
            else:
                anew.append(f"{feature} ({old.stop - old.start} columns became another number)")
        if not blocks:
            return f"it reads nothing that the old one read: {', '.join(anew)}"
        reason = f"anew: {', '.join(anew)}" if anew else ""
        self._parameter(key, value, stored, blocks, reason)
        return ""

    def _parameter(
        self,
        key: str,
        value: Tensor,
        stored: Mapping[str, NDArray[Any]],
        blocks: Sequence[tuple[slice, Mapping[str, NDArray[Any]]]],
        reason: str = "",
    ) -> None:
        step, before = self.state.step, self.previous.optimizers
        group, update = "dense", step.dense
        old = before.get("dense") or before.get("deep")
        if key == WIDE_BIAS and step.wide_bias is not None:
            group, update, old = "wide", step.wide_bias, before.get("wide")
        optimizer = self.optimizers[group]
        state = update.state.get(key, {})
        now = describe_optimizer(optimizer)
        change = state_change(group, now, old, self.scales)
        carried = bool(state) and not change and all(slot in stored for slot in state)
        for columns, arrays in blocks:
            _copy_columns(value, columns, arrays["weight"])
            for slot, tensor in state.items() if carried else ():
                if slot in arrays:
                    _copy_columns(tensor, columns, arrays[slot])
        optimizer_state: OptimizerState = "carried" if carried else "fresh"
        if isinstance(optimizer, FTRL) and state and not (carried and old == now):
            state["z"].copy_(optimizer.z_from_weights(value, state["n"]))
            optimizer_state = "rebuilt"
        if old and change and key in update.parameters:
            reason = "; ".join(filter(None, (reason, f"optimizer: {change}")))
        name, inputs = name_of_module(key), value.shape[-1] if value.ndim else 1
        transferred = sum(len(range(*columns.indices(inputs))) for columns, _ in blocks)
        whole = transferred == inputs and len(blocks) == 1
        self.tensors.append(
            TransferredTensor(
                name=name,
                state="carried"
                if whole or (transferred == inputs and self._same_columns())
                else "remapped",
                transferred=transferred,
                total=inputs,
                optimizer=optimizer_state,
                reason=reason,
            )
        )

    def _same_columns(self) -> bool:
        return dict(self.model.layout.columns) == dict(self.previous.columns) and not self.projected


def _tower_options(options: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The options of a tower that decide what it computes; {} for one without a configuration."""
    table = options.get("towers", {}).get(tower, {})
    return {name: value for name, value in table.items() if name != "dropout"}


def _heads_change(model: WideDeep, previous: PreviousModel) -> str:
    """Why the logits mean something else than they did, or "" if they do not."""
    new = tuple(head_meaning(model.schema, h.kind, h.name, h.width) for h in model.heads)
    if new == previous.heads:
        return ""
    texts = ["; ".join(str(head) for head in heads) for heads in (previous.heads, new)]
    return f"the heads are others: {texts[0]} became {texts[1]}"


def _tower_and_layer(key: str) -> tuple[str, int]:
    """Return the tower of a parameter and which of its layers it is of; "" for the bias."""
    owner, _, parameter = key.partition(".")
    if owner == JOIN:
        return JOIN, _NO_LAYER - 1
    if owner not in ("towers", "outputs"):
        return "", 0
    tower, _, inner = parameter.partition(".")
    layer = re.fullmatch(r"(?:layers|norms)\.(\d+)\..*", inner)
    if tower == "mlp" and layer:
        # A layer's norm stands behind its weight: it starts anew with it.
        return tower, 2 * int(layer[1]) + inner.startswith("norms")
    return tower, _NO_LAYER - 1


def _copy_rows(table_rows: Tensor, stored: NDArray[Any], old_of_N: NDArray[np.int64]) -> None:
    """Copy known rows to their new ids; in parts, so that temporaries stay small."""
    for chunk in _parts(len(old_of_N)):
        old = old_of_N[chunk]
        new = np.flatnonzero(old >= 0)
        rows = torch.from_numpy(as_floats(stored[old[new]]))
        table_rows[chunk][torch.from_numpy(new).to(table_rows.device), : rows.shape[1]] = rows.to(
            table_rows.device, table_rows.dtype
        )


def _runs(old_of_K: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Yield columns that stood side by side as (new start, old start, width)."""
    places = np.flatnonzero(old_of_K >= 0)  # (M,) columns that stood in the older model
    old = old_of_K[places] - FIRST_KNOWN_ID
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(old) != 1)) + 1
    for run in np.split(np.arange(len(places)), breaks) if len(places) else ():
        yield int(places[run[0]]), int(old[run[0]]), len(run)


def _parts(rows: int, at_once: int = 1 << 18) -> Iterator[slice]:
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def _copy_columns(tensor: Tensor, columns: slice, array: NDArray[Any]) -> None:
    values = torch.from_numpy(np.array(array)).to(tensor.device)
    if tensor.ndim:
        tensor[..., columns][..., : values.shape[-1]] = values
    else:
        tensor.copy_(values)


def _basis(weight: NDArray[Any], dim: int) -> NDArray[np.float32]:
    """Return the (old width, new width) matrix that keeps most of the embeddings."""
    width = weight.shape[1]
    if dim > width:
        return np.eye(width, dtype=np.float32)
    gram = np.zeros((width, width))
    for chunk in _parts(len(weight)):
        rows = as_floats(weight[chunk]).astype(np.float64)
        gram += rows.T @ rows
    _, vectors = np.linalg.eigh(gram)
    return np.ascontiguousarray(vectors[:, ::-1][:, :dim], np.float32)
