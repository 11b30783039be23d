"""Moves an older model's parameters into a trainer's: by feature value, never by row number."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.data.extend_schema import map_ids
from widedeep.errors import ConfigError, SchemaError
from widedeep.features import IdMap
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import FTRL, Adam, describe_optimizer
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.training.previous_model import (
    OldModel,
    head_of,
    layer_change,
    model_options,
    name_of_module,
    pooling_change,
    read_old_model,
    state_change,
    tower_inputs,
)

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer

State = Literal["carried", "remapped", "fresh"]
Widths = Literal["fresh", "project"]
_NO_LAYER = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What became of one tensor of the new model."""

    name: str  # ``wide/FEATURE``, ``table/TABLE``, ``mlp/LAYER/weight``, ``head/weight``, ``bias``
    # ``"carried"`` whole, ``"remapped"`` (rows by their values, columns by their features), or
    # ``"fresh"``
    state: State
    found: int  # Rows of a table, or inputs of a layer, that came over
    of: int  # Out of so many
    # What became of the optimizer's state: ``"carried"``, ``"rebuilt"`` from the weights, or
    # ``"fresh"``
    optimizer: Literal["carried", "rebuilt", "fresh"] = "fresh"
    why: str = ""  # Why something is fresh: all of it, or the columns, ids or state that are named


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a warm start did."""

    path: str  # The older model
    moved: tuple[Moved, ...]  # One entry a tensor of the new model
    left: tuple[str, ...]  # Tensors of the older model that the new one has no place for

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        return asdict(self)

    def __repr__(self) -> str:
        width = max([len(entry.name) for entry in self.moved], default=0)
        lines = [f"warm start from {self.path}"]
        for entry in self.moved:
            rows = f"{entry.found:,} of {entry.of:,}"
            told = f"optimizer {entry.optimizer}" + (f"; {entry.why}" if entry.why else "")
            lines.append(f"{entry.name:{width}}  {entry.state:8}  {rows:>23}  {told}")
        lines += [f"{name:{width}}  not in the new model" for name in self.left]
        return "\n".join(lines)


def warm_start(
    trainer: Trainer,
    path: str | os.PathLike[str],
    *,
    carry: Sequence[str] = ("*",),
    widths: Widths = "fresh",
) -> WarmStart:
    """Take over what an older model learned; see :meth:`widedeep.Trainer.warm_start`."""
    if widths not in ("fresh", "project"):
        raise ConfigError(f"warm start: got widths={widths!r}, expected 'fresh' or 'project'")
    if isinstance(carry, str):
        raise ConfigError(f"warm start: got carry={carry!r}, expected a list such as [{carry!r}]")
    old = read_old_model(path)
    model = trainer.model
    mine = {slot.name for slot in model.schema.slots} | set(model.schema.dense_layout)
    theirs = {slot.name for slot in old.schema.slots} | set(old.schema.dense_layout)
    if not mine & theirs:
        raise SchemaError(
            f"{path}: got a model of the features {sorted(theirs)}, of which the new one has none "
            f"({sorted(mine)}); start from a model of the same data, or train without a warm start"
        )
    return _Mover(trainer, old, carry, widths).run()


class _Mover:
    def __init__(
        self, trainer: Trainer, old: OldModel, carry: Sequence[str], widths: Widths
    ) -> None:
        self.trainer, self.model, self.old = trainer, trainer.model, old
        self.carry, self.widths = carry, widths
        model = trainer.model
        self.heads_change = _heads_change(model, old)
        self.scales = (
            {
                "grad_scale": trainer.config.grad_scale,
                "loss_reduction": trainer.config.loss_reduction,
            },
            old.scales,
        )
        self.layers_change = layer_change(model_options(model.config), old.options)
        # Feature to why the columns that read it start anew.
        self.inputs_anew: dict[str, str] = {}
        # Feature to the matrix by which its embeddings came to their new width.
        self.projected: dict[str, NDArray[np.float32]] = {}
        self.moved: list[Moved] = []
        self._maps: dict[str, IdMap] = {}

    @torch.no_grad()
    def run(self) -> WarmStart:
        trainer, model, old = self.trainer, self.model, self.old
        if model.wide_table is not None:
            for name in model.wide_table.sizes:
                self._wide(model.wide_table, name)
            model.recount()
        for dim, table in model.deep_tables.items():
            for name in table.sizes:
                self._embeddings(table, name, dim)
        self._dense()
        if self._counts_on():
            trainer.position.updates = max(trainer.position.updates, old.updates)
        mine = {entry.name for entry in self.moved}
        left = tuple(name for name in (*old.rows, *old.dense) if name not in mine)
        return WarmStart(path=str(old.path), moved=tuple(self.moved), left=left)

    def _counts_on(self) -> bool:
        """Whether updates are numbered on: where state came, and no Adam begins without its own."""
        by_part: dict[str, list[str]] = {}
        for entry in self.moved:
            part = entry.name.partition("/")[0]
            by_part.setdefault({"wide": "wide", "table": "deep"}.get(part, "dense"), []).append(
                entry.optimizer
            )
        optimizers = {
            "wide": self.trainer.wide,
            "deep": self.trainer.deep,
            "dense": self.trainer.dense_optimizer,
        }
        anew = any(
            isinstance(optimizers[part], Adam) and "carried" not in states
            for part, states in by_part.items()
        )
        return not anew and any("carried" in states for states in by_part.values())

    def _chosen(self, name: str, size: int) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.carry):
            return True
        self.moved.append(Moved(name=name, state="fresh", found=0, of=size, why="not asked for"))
        return False

    def _ids(self, feature: str) -> IdMap:
        """Find a feature's ids once for its wide weights and its embeddings."""
        if feature not in self._maps:
            self._maps[feature] = map_ids(self.model.schema, self.old.schema, feature)
        return self._maps[feature]

    def _fresh(self, name: str, size: int, why: str) -> None:
        self.moved.append(Moved(name=name, state="fresh", found=0, of=size, why=why))

    # ---- tables ------------------------------------------------------------------------------

    def _wide(self, table: EmbeddingTable, feature: str) -> None:
        name, size = f"wide/{feature}", table.sizes[feature]
        if not self._chosen(name, size):
            return
        if self.heads_change:
            self._fresh(name, size, self.heads_change)
        elif name not in self.old.rows:
            self._fresh(name, size, "not in the old model's wide part")
        elif why := self._wide_change(feature):
            self._fresh(name, size, why)
        else:
            ids = self._ids(feature)
            factor = self._rate(feature) if ids.matched else 1.0
            self._rows(table, feature, name, ids, self.old.rows[name], "wide", factor=factor)

    def _wide_change(self, feature: str) -> str:
        if feature not in self.old.schema.spec.by_name:
            return ""
        combiners = self.model.config.wide_combiner, self.old.options["wide_combiner"]
        return pooling_change(self.model.schema, self.old.schema, feature, combiners)

    def _embeddings(self, table: EmbeddingTable, logical: str, dim: int) -> None:
        name, size = f"table/{logical}", table.sizes[logical]
        features = [f for f, t in table.features.items() if t == logical]
        held = self.old.rows.get(name)
        if not self._chosen(name, size):
            why = "not asked for"
        elif held is None:
            why = "not in the old model's deep part"
        elif held["weight"].shape[1] != dim and self.widths == "fresh":
            why = f"width {held['weight'].shape[1]} became {dim}"
        else:
            why = self._table_change(features)
        if why or held is None:
            self.inputs_anew.update(dict.fromkeys(features, why))
            if why != "not asked for":
                self._fresh(name, size, why)
            return
        ids, width = self._ids(self._known(features)), held["weight"].shape[1]
        if not ids.matched:
            self.inputs_anew.update(dict.fromkeys(features, ids.why or "none of its values"))
        if width == dim:
            self._rows(table, logical, name, ids, held, "deep")
        else:
            basis = _basis(held["weight"], dim)
            self.projected.update(dict.fromkeys(features, basis))
            weight = held["weight"] @ basis
            why = f"width {width} projected to {dim}"
            self._rows(table, logical, name, ids, {"weight": weight}, "deep", why=why)

    def _known(self, features: Sequence[str]) -> str:
        """The first of the features of a table that the old model has too, else the first."""
        known = self.old.schema.spec.by_name
        return next((feature for feature in features if feature in known), features[0])

    def _table_change(self, features: Sequence[str]) -> str:
        """Why a table's rows mean something else, by any of the features that share it."""
        new, old = self.model.schema, self.old.schema
        for feature in features:
            if feature in old.spec.by_name:
                ids = self._ids(feature)
                why = pooling_change(new, old, feature) or ("" if ids.matched else ids.why)
                if why:
                    return why if len(features) == 1 else f"{feature}: {why}"
        return ""

    def _rows(
        self,
        table: EmbeddingTable,
        logical: str,
        name: str,
        ids: IdMap,
        held: Mapping[str, NDArray[Any]],
        part: Literal["wide", "deep"],
        *,
        factor: float = 1.0,
        why: str = "",
    ) -> None:
        optimizer = self.trainer.wide if part == "wide" else self.trainer.deep
        views = table.named_state()
        mine = {slot: views[f"{logical}.{slot}"] for slot in ("weight", *optimizer.state_names)}
        before, after = self.old.optimizers.get(part), describe_optimizer(optimizer)
        change = state_change(part, after, before or None, self.scales)
        slots = [slot for slot in optimizer.state_names if not change and slot in held]
        _copy_rows(mine["weight"], held["weight"], ids)
        for slot in slots:
            _copy_rows(mine[slot], held[slot], ids)
        told: Literal["carried", "rebuilt", "fresh"] = "carried" if slots else "fresh"
        if change and before and ids.matched:
            why = "; ".join(filter(None, (why, ids.why, f"optimizer: {change}")))
        if isinstance(optimizer, FTRL):
            told = self._ftrl_state(optimizer, mine, before, name, told, factor)
        self.moved.append(
            Moved(
                name=name,
                state="fresh" if not ids.matched else "carried" if ids.is_identity else "remapped",
                found=ids.matched,
                of=len(ids.old_of_N),
                optimizer=told if ids.matched else "fresh",
                why=why or ids.why,
            )
        )

    def _ftrl_state(
        self,
        ftrl: FTRL,
        mine: Mapping[str, Tensor],
        before: Mapping[str, Any] | None,
        name: str,
        told: Literal["carried", "rebuilt", "fresh"],
        factor: float,
    ) -> Literal["carried", "rebuilt", "fresh"]:
        """Rebuild z where the one that came, if any, stands for another rate or penalty."""
        rate = self.old.rates.get(name.removeprefix("wide/"))
        old_factor = 1.0 if rate is None else float(np.exp(rate[0]))
        if told == "carried" and before is not None and old_factor == factor:
            now = {**describe_optimizer(ftrl), "adapt": None}
            if {**describe_optimizer(FTRL()), **before, "adapt": None} == now:
                return "carried"
        mine["z"].copy_(ftrl.z_from_weights(mine["weight"], mine["n"], factor=factor))
        return "rebuilt"

    def _rate(self, feature: str) -> float:
        """Take over what is known of a wide feature's rate; return its factor."""
        rates, table = self.trainer.step.feature_rates, self.model.wide_table
        if rates is None or table is None or feature not in self.old.rates:
            return 1.0
        at = list(table.sizes).index(feature)
        rates.log_rates[at], rates.evidence[at] = self.old.rates[feature].tolist()
        return float(np.exp(rates.log_rates[at].item()))

    # ---- layers ------------------------------------------------------------------------------

    def _dense(self) -> None:
        """Carry layers and towers, each up to the first that does not fit."""
        parameters = self.model.dense_state()
        anew: dict[str, tuple[int, str]] = {}  # tower to its first layer that starts anew, and why
        for tower in self.model.towers:
            why = self.old.mlp or (self.layers_change if tower == "mlp" else "")
            why = why or ("" if tower == "mlp" else self._tower_change(tower, parameters))
            if why:
                anew[tower] = -1, why
        for key, value in parameters.items():
            name, inputs = name_of_module(key), value.shape[-1] if value.ndim else 1
            tower, layer = _place(key)
            first, told = anew.get(tower, (_NO_LAYER, ""))
            held = self.old.dense.get(name)
            why = told if layer >= first else ""
            if not self._chosen(name, inputs):
                why = "not asked for"
            elif why:
                self._fresh(name, inputs, why)
            else:
                why = self._layer(key, value, held)
                if why:
                    self._fresh(name, inputs, why)
            if why and tower and key.endswith("weight") and layer < first:
                # What stands behind a layer that starts anew would read other things than it did.
                anew[tower] = layer, f"{name} before it is fresh"

    def _layer(self, key: str, value: Tensor, held: Mapping[str, NDArray[Any]] | None) -> str:
        """Carry one parameter, or return why it starts anew."""
        name = name_of_module(key)
        if held is None:
            return "not in the old model"
        if self.heads_change and (name == "bias" or key.startswith("outputs.")):
            return self.heads_change
        if name == "mlp/0/weight":
            return self._first_layer(key, value, held)
        if tuple(held["weight"].shape) != tuple(value.shape):
            return f"shape {tuple(held['weight'].shape)} became {tuple(value.shape)}"
        self._parameter(key, value, held, [(slice(None), held)])
        return ""

    def _tower_change(self, tower: str, parameters: Mapping[str, Tensor]) -> str:
        """Why a tower of one's own would read, or be, something else; its columns have no names."""
        layout = self.model.layout
        if dict(layout.columns) != dict(self.old.columns):
            return "the columns of its input are others"
        if tower_inputs(layout) != self.old.inputs:
            return "its sequences or extra inputs are others"
        for feature in (*layout.columns, *layout.sequences, *layout.extra):
            why = self._input_change(feature)
            if why:
                return f"its input {feature!r} starts anew: {why}"
        for key, value in parameters.items():
            held = self.old.dense.get(name_of_module(key))
            if key.startswith(f"towers.{tower}.") and (
                held is None or tuple(held["weight"].shape) != tuple(value.shape)
            ):
                return f"{key} is not in the old model in this shape"
        return ""

    def _input_change(self, feature: str) -> str:
        """Why the deep input of a feature means something else, or "" if it does not."""
        if feature in self.inputs_anew:
            return self.inputs_anew[feature]
        if feature in self.model.schema.dense_layout:
            if feature not in self.old.schema.dense_layout:
                return "not in the old model"
            ids = self._ids(feature)
            return ids.why or pooling_change(self.model.schema, self.old.schema, feature)
        return ""

    def _first_layer(self, key: str, value: Tensor, held: Mapping[str, NDArray[Any]]) -> str:
        """Take the columns of features that the old layer read too, and that mean the same."""
        weight = held["weight"]
        if len(weight) != len(value):
            return f"{len(weight)} units became {len(value)}"
        sliced = {slot: a for slot, a in held.items() if a.shape == weight.shape}
        places, anew = [], []
        for feature, new in self.model.layout.columns.items():
            old, basis = self.old.columns.get(feature), self.projected.get(feature)
            why = "not in the old model" if old is None else self._input_change(feature)
            if old is None or why:
                anew.append(f"{feature} ({why})")
            elif basis is not None and basis.shape[0] == old.stop - old.start:
                places.append((new, {"weight": weight[:, old] @ basis}))
            elif new.stop - new.start == old.stop - old.start:
                places.append((new, {slot: array[:, old] for slot, array in sliced.items()}))
            else:
                anew.append(f"{feature} ({old.stop - old.start} columns became another number)")
        if not places:
            return f"it reads nothing that the old one read: {', '.join(anew)}"
        why = f"anew: {', '.join(anew)}" if anew else ""
        self._parameter(key, value, held, places, why)
        return ""

    def _parameter(
        self,
        key: str,
        value: Tensor,
        held: Mapping[str, NDArray[Any]],
        places: Sequence[tuple[slice, Mapping[str, NDArray[Any]]]],
        why: str = "",
    ) -> None:
        dense, optimizer = self.trainer.step.dense, self.trainer.dense_optimizer
        state = dense.state.get(key, {})
        before = self.old.optimizers.get("dense") or self.old.optimizers.get("deep")
        now = describe_optimizer(optimizer)
        change = state_change("dense", now, before, self.scales)
        carried = bool(state) and not change and all(slot in held for slot in state)
        for columns, arrays in places:
            _put(value, columns, arrays["weight"])
            for slot, tensor in state.items() if carried else ():
                if slot in arrays:
                    _put(tensor, columns, arrays[slot])
        told: Literal["carried", "rebuilt", "fresh"] = "carried" if carried else "fresh"
        if isinstance(optimizer, FTRL) and state and not (carried and before == now):
            state["z"].copy_(optimizer.z_from_weights(value, state["n"]))
            told = "rebuilt"
        if before and change and key in dense.parameters:
            why = "; ".join(filter(None, (why, f"optimizer: {change}")))
        name, inputs = name_of_module(key), value.shape[-1] if value.ndim else 1
        found = sum(len(range(*columns.indices(inputs))) for columns, _ in places)
        whole = found == inputs and len(places) == 1
        self.moved.append(
            Moved(
                name=name,
                state="carried" if whole or (found == inputs and self._in_place()) else "remapped",
                found=found,
                of=inputs,
                optimizer=told,
                why=why,
            )
        )

    def _in_place(self) -> bool:
        return dict(self.model.layout.columns) == dict(self.old.columns) and not self.projected


def _heads_change(model: WideDeep, old: OldModel) -> str:
    """Why the logits mean something else than they did, or "" if they do not."""
    mine = tuple(head_of(model.schema, h.kind, h.name, h.width) for h in model.heads)
    if mine == old.heads:
        return ""
    texts = ["; ".join(str(head) for head in heads) for heads in (old.heads, mine)]
    return f"the heads are others: {texts[0]} became {texts[1]}"


def _place(key: str) -> tuple[str, int]:
    """Return the tower of a parameter and which of its layers it is of; "" for the bias."""
    owner, _, rest = key.partition(".")
    if owner not in ("towers", "outputs"):
        return "", 0
    tower, _, inner = rest.partition(".")
    layer = re.fullmatch(r"(?:layers|norms)\.(\d+)\..*", inner)
    if tower == "mlp" and layer:
        # A layer's norm stands behind its weight: it starts anew with it.
        return tower, 2 * int(layer[1]) + inner.startswith("norms")
    return tower, _NO_LAYER - 1


def _copy_rows(mine: Tensor, held: NDArray[Any], ids: IdMap) -> None:
    """Put the rows that are found in their new places; in parts, so that temporaries stay small."""
    for part in _parts(len(ids.old_of_N)):
        old = ids.old_of_N[part]
        new = np.flatnonzero(old >= 0)
        rows = torch.from_numpy(np.ascontiguousarray(held[old[new]], np.float32))
        mine[part][torch.from_numpy(new).to(mine.device), : rows.shape[1]] = rows.to(mine.device)


def _parts(rows: int, at_once: int = 1 << 18) -> Iterator[slice]:
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def _put(tensor: Tensor, columns: slice, array: NDArray[Any]) -> None:
    given = torch.from_numpy(np.array(array)).to(tensor.device)
    if tensor.ndim:
        tensor[..., columns][..., : given.shape[-1]] = given
    else:
        tensor.copy_(given)


def _basis(weight: NDArray[Any], dim: int) -> NDArray[np.float32]:
    """Return the (old width, new width) matrix that keeps most of the embeddings."""
    width = weight.shape[1]
    if dim > width:
        return np.eye(width, dtype=np.float32)
    gram = np.zeros((width, width))
    for part in _parts(len(weight)):
        rows = np.asarray(weight[part], np.float64)
        gram += rows.T @ rows
    _, vectors = np.linalg.eigh(gram)
    return np.ascontiguousarray(vectors[:, ::-1][:, :dim], np.float32)
