"""Members of an ensemble that train apart: each by itself, then all of them in one model.

Members that learn in the same steps see the same batches in the same order, and are wrong together
where the last batches pull. Apart each has an order of its own, and the errors of orders cancel in
the mean, as those of initial values do. The wide part and biases are linear in the logits: the mean
of members' weights scores as the mean of members does.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Mapping
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor

from widedeep.errors import ConfigError
from widedeep.models.ensemble import Ensemble
from widedeep.models.head_config import describe_head
from widedeep.models.tower import tower_configs
from widedeep.models.wide_deep import LINEAR, WideDeep
from widedeep.training.state import Position, TrainState

__all__ = ["fit_members", "member_seed", "members_apart"]

Trainer: TypeAlias = Any
"""A :class:`widedeep.Trainer`, whose module imports this one."""

_OF_MEMBER = re.compile(r"(\w+/)towers\.(\w+)\.(towers|outputs)\.(\d+)\.(.+)")


def members_apart(model: WideDeep) -> int:
    """Return how many members of a model train apart, 0 where all parts learn in the same steps.

    Raises:
        ConfigError: If some of its towers would, and others not.
    """
    configs = tower_configs(model.config.deep)
    apart = {n: c for n, c in configs.items() if isinstance(c, Ensemble) and c.training == "apart"}
    if not apart:
        return 0
    others = sorted(model.towers.keys() - apart.keys() - {LINEAR})
    counts = {name: config.members for name, config in apart.items()}
    reason = None
    if others:
        reason = f"the tower{'s' if len(others) > 1 else ''} {', '.join(others)} beside it"
    elif len(set(counts.values())) > 1:
        reason = f"different numbers of members, {counts}"
    elif any(config.embeddings == "shared" for config in apart.values()):
        reason = 'embeddings = "shared"'
    elif model.join is not None:
        reason = "join"
    elif model.numbers is not None:
        reason = 'numbers of embedding = "periodic", which members share'
    if reason is not None:
        raise ConfigError(
            f'tower {min(apart)!r}: got training = "apart" and {reason}; members train apart where '
            'they share no layer: write training = "together"'
        )
    return min(counts.values())


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member's order of rows; the first has the run's own."""
    return (seed + 1_000_003 * member) % 2**63


def fit_members(
    trainer: Trainer,
    members: int,
    data: object,
    *,
    valid: object | None,
    early_stopping: Any,
    **arguments: Any,
) -> None:
    """Train each member as a model of its own, from where it is in the trainer's; then join them.

    Those that were finished before a run was interrupted are read from their checkpoints.
    """
    state = trainer.state
    joined = _Joined(state, members)
    rows: list[dict[str, Any]] = []
    losses: list[float] = []  # The last of each member
    before = state.position.updates
    position = Position()
    for member in range(members):
        if trainer.show_progress:
            print(f"member {member + 1} of {members}", file=sys.stderr)
        alone = _trainer_of(trainer, member, joined.model_of_member())
        joined.give(alone.state, member)
        alone.position.updates = before // members
        stopping = copy.deepcopy(early_stopping)
        alone.fit(data, valid=valid, early_stopping=stopping, **arguments)
        joined.take(alone.state, member)
        for row in alone.history:
            counts = {"step": position.step + row["step"], "rows": position.rows + row["rows"]}
            rows.append({**row, **counts, "member": member + 1})
        losses += [row["loss"] for row in alone.history if "loss" in row][-1:]
        state.history.warnings += alone.history.warnings
        position.epoch = max(position.epoch, alone.position.epoch)
        position.step += alone.position.step
        position.rows += alone.position.rows
    joined.finish()
    state.position = dataclasses.replace(position, updates=before + position.step)
    state.inputs, state.step.deep = alone.state.inputs, alone.step.deep
    state.warmup.rows, state.warmup.sample = alone.state.warmup.rows, alone.state.warmup.sample
    state.config = dataclasses.replace(
        alone.config, seed=state.config.seed, log=state.config.log, threads=state.config.threads
    )
    last: dict[str, Any] = {
        "epoch": position.epoch,
        "step": position.step,
        "rows": position.rows,
    }
    last |= {"loss": fmean(losses)} if losses else {}
    state.valid_metrics = {}
    if valid is not None:
        with trainer.evaluator.open(valid, "validation data") as source:
            state.valid_metrics = dict(trainer.evaluator.evaluate(source))
    last |= {f"valid/{name}": value for name, value in state.valid_metrics.items()}
    state.history.rows += [*rows, last]
    if trainer.directory is not None:
        trainer.save_checkpoint(best=valid is not None)


def _trainer_of(trainer: Trainer, member: int, model: WideDeep) -> Trainer:
    """Return the trainer of one member, with checkpoints of its own."""
    options, directory = trainer.options, trainer.directory
    seed = member_seed(options.seed, member)
    return type(trainer)(
        model,
        dataclasses.replace(options, seed=seed, log=[]),
        checkpoints=None if directory is None else directory.of_member(member + 1).path,
        keep_last=1 if directory is None else directory.keep_last,
        callbacks=trainer.all_callbacks().objects,
        progress=trainer.show_progress,
        distributed=trainer.state.distributed,
        **trainer.objects,
    )


class _Joined:
    """The tensors of a model of M members, and where each member's are among them.

    Those of a member's layers and its columns of embeddings are its own. The others (the wide
    part, biases, rates of features) start alike in all members and end as their mean.
    """

    def __init__(self, state: TrainState, members: int) -> None:
        self.state, self.members = state, members
        self.tensors = _tensors(state)
        configs = tower_configs(state.model.config.deep)
        tables = tuple(
            dict(config.of) for config in configs.values() if isinstance(config, Ensemble)
        )
        self.config = dataclasses.replace(state.model.config, deep=tables, hidden_units=())
        # What an ensemble's tower is called in a member's model
        self.names = dict(zip(configs, tower_configs(tables), strict=True))
        self.sums: dict[str, Tensor] = {}

    def model_of_member(self) -> WideDeep:
        """Return a model for one member; its weights are to be given."""
        model = self.state.model
        alone = WideDeep(model.schema, self.config, device=model.device, pretrained=False)
        if list(map(describe_head, alone.heads)) == list(map(describe_head, model.heads)):
            return alone
        heads = {head.name: head for head in model.heads}  # no table says what they are
        return WideDeep(
            model.schema, self.config, head=heads, device=model.device, pretrained=False
        )

    def give(self, alone: TrainState, member: int) -> None:
        """Let a member start from its part of the joined model."""
        for own, whole, _ in self._pairs(alone, member):
            own.copy_(whole)
        alone.model.recount()

    def take(self, alone: TrainState, member: int) -> None:
        """Put a trained member into its place, and add up what members share."""
        for own, whole, shared in self._pairs(alone, member):
            if shared is None:
                whole.copy_(own)
            else:
                kind = torch.float64 if own.dtype == torch.float64 else torch.float32
                if shared in self.sums:
                    self.sums[shared] += own
                else:
                    self.sums[shared] = own.to(kind, copy=True)

    def finish(self) -> None:
        """Let what members share be their mean."""
        for name, total in self.sums.items():
            self.tensors[name].copy_(total / self.members)
        self.state.model.recount()

    def _pairs(self, alone: TrainState, member: int) -> list[tuple[Tensor, Tensor, str | None]]:
        """Return a member's tensors, their places, and the name of each that is shared."""
        tensors = _tensors(alone)
        pairs: list[tuple[Tensor, Tensor, str | None]] = []
        for name, whole in self.tensors.items():
            match = _OF_MEMBER.fullmatch(name)
            if match is not None:
                group, tower, layers, number, parameter = match.groups()
                own = tensors.get(f"{group}{layers}.{self.names[tower]}.{parameter}")
                if int(number) == member and own is not None:
                    pairs.append((own, whole, None))
                continue
            own = tensors.get(name)
            if own is None:
                continue  # the state of an optimizer that has not made a step
            if own.shape == whole.shape:
                pairs.append((own, whole, name))
            else:
                width = own.shape[1]
                pairs.append((own, whole[:, member * width : (member + 1) * width], None))
        return pairs


def _tensors(state: TrainState) -> Mapping[str, Tensor]:
    """Return all that training moves, by names without the width of embeddings; views."""
    groups: dict[str, Mapping[str, Tensor]] = {
        "module": state.model.dense_state(),
        "optimizer": state.step.dense_tensors(),
    }
    if state.step.feature_rates is not None:
        groups["rates"] = state.step.feature_rates.tensors()
    tensors = {
        f"{kind}/{name}": tensor.detach()
        for kind, group in groups.items()
        for name, tensor in group.items()
    }
    for table_name, table in state.model.tables.items():
        kind = "wide" if table_name == "wide" else "rows"
        tensors |= {f"{kind}/{name}": tensor for name, tensor in table.named_state().items()}
    return tensors
