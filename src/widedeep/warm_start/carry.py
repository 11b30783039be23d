"""Moves an older model's parameters into a trainer's: by feature value, never by row number."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.data.id_maps import IdMap, map_ids
from widedeep.errors import ConfigError, SchemaError
from widedeep.model import WideDeep
from widedeep.optim import FTRL, describe_optimizer
from widedeep.tables import EmbeddingTable
from widedeep.warm_start.old_model import OldModel, name_of_module, read_old_model

if TYPE_CHECKING:
    from widedeep.trainer import Trainer

__all__ = ["Moved", "WarmStart", "warm_start"]

State = Literal["carried", "remapped", "fresh"]
Widths = Literal["fresh", "project"]
_HEADS_DIFFER = "the heads are others"


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What became of one tensor of the new model.

    Args:
        name: ``wide/FEATURE``, ``table/TABLE``, ``mlp/LAYER/weight``, ``head/weight``, ``bias``.
        state: ``"carried"`` whole, ``"remapped"`` (rows by their values, columns by their
            features), or ``"fresh"``.
        found: Rows of a table, or inputs of a layer, that came over.
        of: Out of so many.
        optimizer: What became of the optimizer's state: ``"carried"``, ``"rebuilt"`` from the
            weights, or ``"fresh"``.
        why: Why something is fresh.
    """

    name: str
    state: State
    found: int
    of: int
    optimizer: Literal["carried", "rebuilt", "fresh"] = "fresh"
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a warm start did.

    Args:
        path: The older model.
        moved: One entry a tensor of the new model.
        left: Tensors of the older model that the new one has no place for.
    """

    path: str
    moved: tuple[Moved, ...]
    left: tuple[str, ...]

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
        self.same_heads = _heads(trainer.model) == old.heads
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
        if any(entry.optimizer == "carried" for entry in self.moved):
            trainer.position.updates = max(trainer.position.updates, old.updates)
        mine = {entry.name for entry in self.moved}
        left = tuple(name for name in (*old.rows, *old.dense) if name not in mine)
        return WarmStart(path=str(old.path), moved=tuple(self.moved), left=left)

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
        if not self.same_heads:
            self._fresh(name, size, _HEADS_DIFFER)
        elif name not in self.old.rows:
            self._fresh(name, size, "not in the old model's wide part")
        else:
            ids = self._ids(feature)
            factor = self._rate(feature) if ids.found else 1.0
            self._rows(table, feature, name, ids, self.old.rows[name], "wide", factor=factor)

    def _embeddings(self, table: EmbeddingTable, logical: str, dim: int) -> None:
        name, size = f"table/{logical}", table.sizes[logical]
        if not self._chosen(name, size):
            return
        held = self.old.rows.get(name)
        if held is None:
            self._fresh(name, size, "not in the old model's deep part")
            return
        feature = next(f for f, t in table.features.items() if t == logical)
        ids = self._ids(feature)
        width = held["weight"].shape[1]
        if width == dim:
            self._rows(table, logical, name, ids, held, "deep")
        elif self.widths == "fresh":
            self._fresh(name, size, f"width {width} became {dim}")
        else:
            basis = _basis(held["weight"], dim)
            self.projected.update({f: basis for f, t in table.features.items() if t == logical})
            weight = held["weight"] @ basis
            why = f"width {width} projected to {dim}"
            self._rows(table, logical, name, ids, {"weight": weight}, "deep", why=why)

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
        same = bool(before) and before is not None and before["optimizer"] == after["optimizer"]
        slots = [slot for slot in optimizer.state_names if same and slot in held]
        _copy_rows(mine["weight"], held["weight"], ids)
        for slot in slots:
            _copy_rows(mine[slot], held[slot], ids)
        told: Literal["carried", "rebuilt", "fresh"] = "carried" if slots else "fresh"
        if isinstance(optimizer, FTRL):
            told = self._ftrl_state(optimizer, mine, before, name, told, factor)
        self.moved.append(
            Moved(
                name=name,
                state="fresh" if not ids.found else "carried" if ids.is_identity else "remapped",
                found=ids.found,
                of=len(ids.old_of_N),
                optimizer=told if ids.found else "fresh",
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
        broken = self.old.mlp
        for key, value in self.model.state_dict(keep_vars=True).items():
            name = name_of_module(key)
            inputs = value.shape[-1] if value.ndim else 1
            held = self.old.dense.get(name)
            tower = name.startswith(("mlp/", "head/", "tower/"))
            why = ""
            if not self._chosen(name, inputs):
                why = "not asked for"
            elif held is None:
                why = (tower and broken) or "not in the old model"
            elif not self.same_heads and name in ("bias", "head/weight"):
                why = _HEADS_DIFFER
            elif tower and broken:
                why = broken
            elif name == "mlp/0/weight":
                why = self._first_layer(key, value, held)
            elif tuple(held["weight"].shape) != tuple(value.shape):
                old, new = tuple(held["weight"].shape), tuple(value.shape)
                why = f"shape {old} became {new}"
            else:
                self._parameter(key, value, held, [(slice(None), held)])
            if why and why != "not asked for":
                self._fresh(name, inputs, why)
            if why and tower and name.endswith("weight") and not broken:
                # What stands behind a layer that starts anew would read other things than it did.
                broken = f"{name} before it is fresh"

    def _first_layer(self, key: str, value: Tensor, held: Mapping[str, NDArray[Any]]) -> str:
        """Take the columns of features that the old layer read too."""
        weight = held["weight"]
        if len(weight) != len(value):
            return f"{len(weight)} units became {len(value)}"
        places = []
        for feature, new in self.model.layout.columns.items():
            old = self.old.columns.get(feature)
            if old is None:
                continue
            basis = self.projected.get(feature)
            if basis is not None and basis.shape[0] == old.stop - old.start:
                places.append((new, {"weight": weight[:, old] @ basis}))
            elif new.stop - new.start == old.stop - old.start:
                places.append((new, {slot: array[:, old] for slot, array in held.items()}))
        if not places:
            return "it reads no feature that the old one read"
        self._parameter(key, value, held, places)
        return ""

    def _parameter(
        self,
        key: str,
        value: Tensor,
        held: Mapping[str, NDArray[Any]],
        places: Sequence[tuple[slice, Mapping[str, NDArray[Any]]]],
    ) -> None:
        dense = self.trainer.step.dense
        state = dense.state.get(key, {})
        before = self.old.optimizers.get("dense") or self.old.optimizers.get("deep")
        now = describe_optimizer(self.trainer.dense_optimizer)
        same = before is not None and before["optimizer"] == now["optimizer"]
        carried = bool(state) and same and all(slot in held for slot in state)
        for columns, arrays in places:
            _put(value, columns, arrays["weight"])
            for slot, tensor in state.items() if carried else ():
                if slot in arrays:
                    _put(tensor, columns, arrays[slot])
        name, inputs = name_of_module(key), value.shape[-1] if value.ndim else 1
        found = sum(len(range(*columns.indices(inputs))) for columns, _ in places)
        whole = found == inputs and len(places) == 1
        self.moved.append(
            Moved(
                name=name,
                state="carried" if whole or self._in_place(places) else "remapped",
                found=found,
                of=inputs,
                optimizer="carried" if carried else "fresh",
            )
        )

    def _in_place(self, places: Sequence[tuple[slice, Mapping[str, NDArray[Any]]]]) -> bool:
        return dict(self.model.layout.columns) == dict(self.old.columns) and not self.projected


def _heads(model: WideDeep) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    classes = model.schema.classes
    return tuple((head.kind, head.name, tuple(classes.get(head.name, ()))) for head in model.heads)


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
    """Return the (old width, new width) matrix that keeps most of the embeddings.

    Fewer columns: the leading right singular vectors. More: the identity; the new columns keep
    their initial values.
    """
    width = weight.shape[1]
    if dim > width:
        return np.eye(width, dtype=np.float32)
    gram = np.zeros((width, width))
    for part in _parts(len(weight)):
        rows = np.asarray(weight[part], np.float64)
        gram += rows.T @ rows
    _, vectors = np.linalg.eigh(gram)
    return np.ascontiguousarray(vectors[:, ::-1][:, :dim], np.float32)
