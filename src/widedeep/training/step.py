"""One training step in four: group and gather, dense forward and backward, reduce, apply."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.errors import CheckpointError, ConfigError, DataError
from widedeep.kernels.torch_device import triton_kernels
from widedeep.kernels.torch_random import seeded
from widedeep.models.mlp import MLP, DeepInput, SequenceInput, has_hooks
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import FTRL, Optimizer
from widedeep.tables.batch_rows import Groups
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.training.checkpoint import as_tensors
from widedeep.training.dense import DenseUpdate, FusedMLP, MixedMLP, NativeMLP, has_bf16_tiles


@dataclass(slots=True)
class Gathered:
    """A batch's ids, grouped by row, and the deep input."""

    wide_groups: Groups | None
    deep_groups: Mapping[int, Groups]
    inputs: DeepInput | None


@dataclass(slots=True)
class DenseResult:
    """What the forward and backward pass of the dense part gives."""

    logits_BC: Tensor
    losses_B: Tensor
    grad_BC: Tensor
    grad_BX: Tensor | None
    sequence_grads: Mapping[str, Tensor]


@dataclass(slots=True)
class RowGradients:
    """The summed example gradients of the rows a batch touched."""

    name: str
    table: EmbeddingTable
    optimizer: Optimizer
    groups: Groups
    grads_UD: Tensor


@dataclass(slots=True)
class StepResult:
    """What a step reports."""

    logits_BC: Tensor  # Logits of the batch before it was learned
    losses_B: Tensor  # Loss of each example, heads summed, before its weight


class TrainStep:
    """Moves a model by one batch; each touched row moves once, untouched rows cost nothing."""

    def __init__(
        self,
        model: WideDeep,
        *,
        wide: Optimizer,
        deep: Optimizer,
        dense: DenseUpdate,
        grad_scale: float = 1.0,
        loss_reduction: str = "mean",
        threads: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
        seed: int = 0,
    ) -> None:
        self.model = model
        self.seed = seed
        self.precision = precision
        self.dense = dense
        self.grad_scale = grad_scale
        self.loss_reduction = loss_reduction
        self.threads = threads
        self.undo = UndoLog()
        self._best_dense: dict[str, NDArray[Any]] = {}
        self._loads = model.loads
        self._wide, self._deep = wide, deep
        self._concat: Tensor | None = None
        self.fused = fast_mlp(model, precision, threads)
        self.feature_rates: FeatureRates | None = None
        if model.wide_table is not None:
            model.wide_table.attach(wide)
            if isinstance(wide, FTRL) and wide.adapt:
                if not wide.by_kernels:
                    raise ConfigError(
                        f"got wide={type(wide).__name__}, which updates by itself, so that no rate "
                        "of a feature is learned on the way; make it with adapt=0"
                    )
                self.feature_rates = FeatureRates(
                    len(model.wide_table.sizes), wide.adapt, device=model.device
                )
        for table in model.deep_tables.values():
            table.attach(deep)

    @property
    def is_current(self) -> bool:
        """False if a state dict was loaded into the model since the last step."""
        return self._loads == self.model.loads

    def __call__(self, batch: Batch, *, rate: float = 1.0, step: int = 1) -> StepResult:
        """Learn one batch."""
        if not self.is_current:
            self._loads = self.model.loads
            self.dense.restart()
            if self.feature_rates is not None:
                for tensor in self.feature_rates.tensors().values():
                    tensor.zero_()
        with kernels.awake() if self.model.device.type == "cpu" else nullcontext():
            gathered = self.group_and_gather(batch)
            result = self.dense_pass(batch, gathered, step=step)
            gradients = self.reduce(batch, gathered, result)
            self.apply(gradients, len(batch), rate=rate, step=step)
        return StepResult(result.logits_BC, result.losses_B)

    def group_and_gather(self, batch: Batch) -> Gathered:
        """Group duplicate ids and look their rows up."""
        model = self.model
        wide_groups = None
        # First the groups, which check the ids: a device is then asked once, not by every lookup.
        if model.wide_table is not None:
            wide_groups = model.wide_table.group(batch, model.schema.slots, threads=self.threads)
        deep_groups = {
            dim: self._group_deep(table, batch, wide_groups)
            for dim, table in model.deep_tables.items()
            if model.towers
        }
        inputs = None
        if model.towers:
            if self._concat is None or len(self._concat) < len(batch):
                self._concat = model.concat_buffer(len(batch))
            inputs = model.gather(batch, threads=self.threads, out=self._concat)
        return Gathered(wide_groups=wide_groups, deep_groups=deep_groups, inputs=inputs)

    def _group_deep(
        self, table: EmbeddingTable, batch: Batch, wide_groups: Groups | None
    ) -> Groups:
        """Take the wide part's groups where they serve, so that ids are grouped once."""
        wide = self.model.wide_table
        found = None
        if wide is not None and wide_groups is not None:
            found = table.regroup(wide, wide_groups)
        if found is None:
            found = table.group(batch, self.model.schema.slots, threads=self.threads)
        return found

    def dense_pass(self, batch: Batch, gathered: Gathered, *, step: int = 1) -> DenseResult:
        """Compute the logits, the losses and every dense gradient (sums over examples)."""
        logits_BC = self.model.wide_logits(batch, threads=self.threads)
        inputs = gathered.inputs
        if inputs is None:
            losses_B, grad_BC = self._losses(logits_BC, batch)
            self._bias_grad(grad_BC)
            return DenseResult(logits_BC, losses_B, grad_BC, None, {})
        if self.fused is not None:
            logits_BC += self.fused.forward(inputs.concat_BX)
            losses_B, grad_BC = self._losses(logits_BC, batch)
            self._bias_grad(grad_BC)
            unread = {name: torch.zeros_like(s.values_ND) for name, s in inputs.sequences.items()}
            grad_BX = self.fused.backward(grad_BC)
            return DenseResult(logits_BC, losses_B, grad_BC, grad_BX, unread)
        standard = all(type(tower) is MLP for tower in self.model.towers.values())
        with seeded(self.model.device, "step", self.seed, step, torch_alone=standard):
            return self._autograd_pass(batch, logits_BC, inputs)

    def _autograd_pass(self, batch: Batch, logits_BC: Tensor, inputs: DeepInput) -> DenseResult:
        concat = inputs.concat_BX.detach().requires_grad_()
        sequences = {
            name: SequenceInput(s.values_ND.detach().requires_grad_(), s.offsets)
            for name, s in inputs.sequences.items()
        }
        leaf = DeepInput(
            concat_BX=concat,
            layout=inputs.layout,
            dense_BK=concat[:, self.model.layout.dense],
            sequences=sequences,
            extra=inputs.extra,
        )
        self.model.zero_grad(set_to_none=True)
        in_bf16 = torch.autocast(
            concat.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        with torch.enable_grad(), in_bf16:
            deep_BC = self.model.deep_logits(leaf)
        assert deep_BC is not None
        deep_BC = deep_BC.float()
        logits_BC += deep_BC.detach()
        losses_B, grad_BC = self._losses(logits_BC, batch)
        deep_BC.backward(grad_BC)  # type: ignore[no-untyped-call]
        self._bias_grad(grad_BC)
        return DenseResult(
            logits_BC,
            losses_B,
            grad_BC,
            torch.zeros_like(concat) if concat.grad is None else concat.grad,
            {
                name: torch.zeros_like(s.values_ND)
                if s.values_ND.grad is None
                else s.values_ND.grad
                for name, s in sequences.items()
            },
        )

    def _losses(self, logits_BC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each example's loss, and the gradient of the weighted sum by the logits."""
        if batch.labels_BL is None:
            raise DataError("got a batch without labels; give the spec a label column")
        columns_of_labels = list(self.model.schema.spec.labels.values())
        given_BL = torch.from_numpy(batch.labels_BL)
        bring = self.model.batches.array
        labels_BL = bring(batch, "labels_BL")
        heads = self.model.heads
        for index, head in enumerate(heads):
            # Where they came from: a look at the device's copy would wait for it.
            head.check_labels(given_BL[:, index].contiguous(), columns_of_labels[index])
        if len(heads) == 1 and heads[0].loss_weight == 1.0 and batch.weight_B is None:
            return heads[0].losses_and_gradient(logits_BC, labels_BL[:, 0].contiguous())
        losses_B = torch.zeros(len(batch), device=logits_BC.device)
        grad_BC = torch.empty_like(logits_BC)
        for index, (head, columns) in enumerate(zip(heads, self.model.head_slices, strict=True)):
            labels_B = labels_BL[:, index].contiguous()
            losses, gradient = head.losses_and_gradient(logits_BC[:, columns], labels_B)
            losses_B += head.loss_weight * losses
            grad_BC[:, columns] = head.loss_weight * gradient
        if batch.weight_B is not None:
            grad_BC *= bring(batch, "weight_B")[:, None]
        return losses_B, grad_BC

    def _bias_grad(self, grad_BC: Tensor) -> None:
        bias = self.model.bias
        if bias.grad is None:
            bias.grad = torch.empty_like(bias)
        torch.sum(grad_BC, dim=0, out=bias.grad)

    def reduce(self, batch: Batch, gathered: Gathered, result: DenseResult) -> list[RowGradients]:
        """Sum the examples' gradients by row."""
        model, found = self.model, []
        if model.wide_table is not None and gathered.wide_groups is not None:
            grads = model.wide_table.sum_wide(
                batch,
                gathered.wide_groups,
                model.schema.slots,
                model.config.wide_combiner,
                result.grad_BC,
                threads=self.threads,
            )
            found.append(
                RowGradients("wide", model.wide_table, self._wide, gathered.wide_groups, grads)
            )
        for dim, groups in gathered.deep_groups.items():
            assert result.grad_BX is not None
            table = model.deep_tables[dim]
            grads = table.sum_deep(
                batch,
                groups,
                model.schema.slots,
                model.layout.columns,
                result.grad_BX,
                result.sequence_grads,
                threads=self.threads,
            )
            found.append(RowGradients(f"deep/{dim}", table, self._deep, groups, grads))
        return found

    def apply(self, gradients: list[RowGradients], rows: int, *, rate: float, step: int) -> None:
        """Move each touched row, and the dense parameters, once."""
        for found in gradients:
            self.undo.before_update(found.name, found.groups.rows)
            rates = self.feature_rates if found.name == "wide" else None
            rates_U = products_U = None
            starts, there = found.groups.table_starts
            if rates is not None:
                rates_U = rates.of_rows(starts, there)
                products_U = torch.empty_like(rates_U)
            lr, share = found.optimizer.scheduled(rate)
            found.table.apply(
                found.groups,
                found.grads_UD,
                found.optimizer,
                lr=lr,
                grad_scale=self.grad_scale * share,
                step=step,
                threads=self.threads,
                rates_U=rates_U,
                products_U=products_U,
            )
            if rates is not None and products_U is not None:
                rates.learn(products_U, starts, there)
        if self.fused is not None:
            self.fused.finish()  # its weights' gradients, summed while rows moved
        scale = 1.0 / rows if self.loss_reduction == "mean" else 1.0
        self.dense.apply(scale=scale, rate=rate, step=step, threads=self.threads)

    def keep_best(self) -> None:
        """Remember from now on what :meth:`UndoLog.undo` needs; called once, before training."""
        model = self.model
        for name, table in model.tables.items():
            self.undo.watch(name, {"weight": table.weight, **table.state})
        small = {f"module/{name}": tensor for name, tensor in model.dense_state().items()}
        if self.feature_rates is not None:
            small |= {f"rates/{k}": v for k, v in self.feature_rates.tensors().items()}
        if self.dense.is_ours:
            small |= {f"optimizer/{k}": v for k, v in self.dense.tensors().items()}
        self.undo.watch_small(small)

    def mark_best(self) -> None:
        """Make the present model, and the optimizers' state, those that come back."""
        self.undo.mark()
        if not self.dense.is_ours:  # torch makes its state, and replaces it, as it goes
            state = as_tensors(self.dense.tensors())
            self._best_dense = {name: array.copy() for name, array in state.items()}

    def restore_best(self) -> None:
        """Go back to the last mark; what is learned from there can be undone again."""
        self.undo.undo()
        if not self.dense.is_ours:
            self.dense.load_tensors(self._best_dense)
        self.model.recount()


def fast_mlp(
    model: WideDeep, precision: str, threads: int
) -> NativeMLP | FusedMLP | MixedMLP | None:
    """Return the fast path if the standard tower is the only one, else None."""
    tower = model.towers["mlp"] if list(model.towers) == ["mlp"] else None
    if not isinstance(tower, MLP) or not tower.is_plain:
        return None
    output = model.outputs["mlp"]
    learned = [name for name, p in output.named_parameters() if p.requires_grad]
    if type(output) is not torch.nn.Linear or has_hooks(output) or learned != ["weight"]:
        return None
    bf16 = precision == "bf16"
    on_cpu = output.weight.device.type == "cpu"
    if on_cpu and (not bf16 or (kernels.has_bf16_products() and not has_bf16_tiles())):
        return NativeMLP(tower, output, threads=threads, bf16=bf16)
    return MixedMLP(tower, output) if bf16 else FusedMLP(tower, output)


LOWEST = 0.01
HIGHEST = 5.0
_RANGE = (LOWEST, HIGHEST)
_PARTS = ("log_rates", "evidence")


class FeatureRates:
    """Factors of a wide table's learning rate, one per feature, moved by Adagrad on their log."""

    def __init__(self, n_features: int, step: float, *, device: str | torch.device = "cpu") -> None:
        self.step = step
        self.frozen = False
        self.log_rates = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.evidence = torch.zeros_like(self.log_rates)
        self._told: Tensor | None = None

    @property
    def factors(self) -> NDArray[np.float32]:
        """The present factor of each feature's rate."""
        found: NDArray[np.float32] = np.exp(self.log_rates.cpu().numpy()).astype(np.float32)
        return found

    def of_rows(self, starts_T: NDArray[np.int64], there: Tensor | None = None) -> Tensor:
        """Return each touched row's factor, float32 (U,)."""
        if there is not None and there.device.type != "cpu":
            factors, rows = self.log_rates.exp().float(), int(starts_T[-1])
            kernels = triton_kernels(there.device)
            if kernels is None:
                return torch.repeat_interleave(factors, there.diff(), output_size=rows)
            found: Tensor = kernels.expand(factors, there, rows)
            return found
        return torch.from_numpy(np.repeat(self.factors, np.diff(starts_T)))

    def learn(
        self, products_U: Tensor, starts_T: NDArray[np.int64], there: Tensor | None = None
    ) -> None:
        """Move the factors."""
        touched = np.diff(starts_T) > 0
        if self.frozen or not touched.any():
            return
        if there is not None and there.device.type != "cpu":
            self._learn_there(products_U, there)
            return
        products = products_U.numpy().astype(np.float64)
        starts = starts_T[:-1][touched]
        log_rates, evidence = self.log_rates.numpy(), self.evidence.numpy()
        sums = np.add.reduceat(products, starts)
        evidence[touched] += np.add.reduceat(products * products, starts)
        # A feature whose weights are all 0 so far has no evidence: its rate stays.
        roots = np.sqrt(np.maximum(evidence[touched], np.finfo(np.float64).tiny))
        moved = log_rates[touched] - self.step * sums / roots
        log_rates[touched] = moved.clip(math.log(LOWEST), math.log(HIGHEST))

    def _learn_there(self, products_U: Tensor, starts_T: Tensor) -> None:
        """Do it on a device, without waiting for it; a feature without rows has sums of 0."""
        kernels = triton_kernels(starts_T.device)
        if kernels is not None:
            if self._told is None:
                told = [self.step, float(np.finfo(np.float64).tiny), *map(math.log, _RANGE)]
                self._told = torch.tensor(told, dtype=torch.float64, device=starts_T.device)
            kernels.learn_rates(products_U, starts_T, self.log_rates, self.evidence, self._told)
            return

        def sums(values_U: Tensor) -> Tensor:
            return torch.segment_reduce(
                values_U, "sum", lengths=starts_T.diff(), initial=0.0, unsafe=True
            )

        products = products_U.double()
        self.evidence += sums(products * products)
        roots = self.evidence.clamp(min=np.finfo(np.float64).tiny).sqrt()
        self.log_rates -= self.step * sums(products) / roots
        self.log_rates.clamp_(math.log(LOWEST), math.log(HIGHEST))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: views."""
        return {name: getattr(self, name) for name in _PARTS}

    def load_tensors(self, tensors: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the state that :meth:`tensors` returned."""
        for name, held in self.tensors().items():
            if name not in tensors or tuple(tensors[name].shape) != tuple(held.shape):
                raise CheckpointError(
                    f"the wide features' rates ({name!r}) are missing or of another number; use "
                    "the checkpoint's own features and wide optimizer"
                )
            held.copy_(torch.from_numpy(np.array(tensors[name])))


@dataclass(slots=True)
class _Journal:
    """Old values of one group of row-aligned tensors."""

    tensors: Mapping[str, Tensor]
    epoch_R: Tensor
    rows: list[Tensor] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)


class UndoLog:
    """Remembers rows as they are first touched after a mark, so that :meth:`undo` restores them."""

    def __init__(self) -> None:
        self._journals: dict[str, _Journal] = {}
        self._small: dict[str, Tensor] = {}
        self._small_copy: dict[str, Tensor] = {}
        self._epoch = 0

    @property
    def marked(self) -> bool:
        """True once there is a state to go back to."""
        return self._epoch > 0

    def watch(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a group of tensors that have the same rows (weights and their optimizer state)."""
        first = next(iter(tensors.values()))
        epochs = torch.zeros(len(first), dtype=torch.int32, device=first.device)
        self._journals[name] = _Journal(tensors, epochs)

    def watch_small(self, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors that every step changes as a whole; a mark copies them."""
        self._small.update(tensors)

    def mark(self) -> None:
        """Make the present values those that :meth:`undo` brings back."""
        self._epoch += 1
        for journal in self._journals.values():
            journal.rows.clear()
            journal.values.clear()
        self._small_copy = {name: tensor.detach().clone() for name, tensor in self._small.items()}

    def before_update(self, name: str, rows_U: Tensor) -> None:
        """Remember the rows about to be changed, unless they were remembered since the mark."""
        if not self.marked:
            return
        journal = self._journals[name]
        fresh = rows_U[journal.epoch_R[rows_U] != self._epoch]
        if len(fresh) == 0:
            return
        journal.epoch_R[fresh] = self._epoch
        journal.rows.append(fresh)
        journal.values.append({key: tensor[fresh] for key, tensor in journal.tensors.items()})

    def undo(self) -> None:
        """Bring back the values of the last mark. Does nothing if there was none."""
        if not self.marked:
            return
        for journal in self._journals.values():
            for rows, values in zip(journal.rows, journal.values, strict=True):
                for key, old in values.items():
                    journal.tensors[key][rows] = old
            journal.rows.clear()
            journal.values.clear()
        self._epoch += 1
        with torch.no_grad():
            for name, tensor in self._small.items():
                tensor.copy_(self._small_copy[name])
