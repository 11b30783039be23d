"""Runs of training steps of the standard models, learned natively: no interpreter in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.errors import DataError
from widedeep.kernels.torch_device import seed_of
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import FTRL, SGD, Adagrad, Adam, Optimizer
from widedeep.optim.base import Step
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.tables.storage import Groups, csr_batch
from widedeep.training.config import TrainConfig
from widedeep.training.dense import DenseUpdate, NativeMLP, TorchMLP
from widedeep.training.embedding_dropout import EmbeddingDropout
from widedeep.training.exchange import Exchange
from widedeep.training.feature_rates import RANGE, FeatureRates
from widedeep.training.rollback_log import RollbackLog

MOST_SECONDS = 0.1
"""A run ends after so long, however many steps are left: signals and clocks wait for it."""

# What a step costs, in products of two numbers: a weight's update, an id's row, and the least that
# is worth a second thread
_PRODUCTS_OF_UPDATE, _PRODUCTS_OF_ID, _LITTLE = 17, 500, 1 << 21

_KERNELS = {FTRL: "ftrl_rows", Adagrad: "adagrad_rows", Adam: "adam_rows", SGD: "sgd_rows"}


class StepParts(Protocol):
    """What a program reads of a :class:`widedeep.training.step.TrainStep`."""

    model: WideDeep
    config: TrainConfig
    threads: int
    wide: Optimizer
    deep: Optimizer
    dense: DenseUpdate
    wide_bias: DenseUpdate | None
    exchange: Exchange | None
    fused: NativeMLP | TorchMLP | None
    dropout: EmbeddingDropout
    feature_rates: FeatureRates | None
    rollback: RollbackLog

    def group(self, batch: Batch) -> Mapping[str, Groups]:
        """Return the rows of each table that a batch touches."""

    def concat_buffer(self, rows: int) -> Tensor:
        """Return the buffer of the deep input for this many rows."""


class StepProgram:
    """Learns consecutive batches in one call, with the bits of one step after the other.

    For a wide part, the standard tower over pooled embeddings and numbers, or both; FTRL, Adagrad,
    Adam and SGD. One log loss is computed natively; other heads are asked for theirs, step by step.
    Whatever else a model has makes :meth:`run` return None, as does a change of it that a program
    cannot follow.
    """

    def __init__(self, step: StepParts) -> None:
        self._step = step
        self._made_of: list[object] = []
        self._native: kernels.StepProgram | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the native program, which is made again."""
        return {"_step": self._step, "_made_of": [], "_native": None}

    @property
    def fits(self) -> bool:
        """Whether the model and its optimizers are of the kind that a program learns."""
        step, model = self._step, self._step.model
        dense = step.dense.optimizer
        tables = [(model.wide_table, step.wide)] if model.wide_table is not None else []
        frozen = model.frozen_tables.values() if model.towers else ()
        if model.towers:  # else no table of embeddings is read
            tables += [(table, step.deep) for table in model.deep_tables.values()]
        return (
            model.device.type == "cpu"
            and step.exchange is None
            and step.wide_bias is None
            and isinstance(dense, Optimizer)
            and step.dense.moves_flat
            and _is_known(dense)
            and (not model.towers or isinstance(step.fused, NativeMLP))
            and not (step.dropout or model.layout.sequences or model.layout.extra)
            and not any(slot.deep and slot.combiner == "max" for slot in model.schema.slots)
            and all(t.dtype == torch.float32 for t in (*frozen, *(table for table, _ in tables)))
            and all(_moves(table, optimizer) for table, optimizer in tables)
        )

    def run(
        self, batch: Batch, batch_rows: int, *, rates_S3: NDArray[np.float64], step: int
    ) -> tuple[int, dict[str, Tensor]] | None:
        """Learn batches of ``batch_rows`` examples, the last one of what is left.

        It stops before a batch with an id, label, loss or gradient out of range, of which nothing
        moves, and after :data:`MOST_SECONDS`.

        Args:
            batch: The examples.
            batch_rows: Examples of each step.
            rates_S3: Factors of the rates of the wide part, the embeddings and the dense part.
            step: Number of the first step, from 1.

        Returns:
            The steps done, and ``logits_BC`` (before each example was learned), ``losses_B`` and
            ``grads_BC`` of all examples; of each step ``totals_S``, the sum of its losses times
            their weights, and ``weights_S``, where examples have weights. None: no step was done.
        """
        owner, n, steps = self._step, len(batch), len(rates_S3)
        native = None
        if batch.labels_BL is not None and n and self.fits:
            native = self._prepared(batch_rows, n)
        if native is None or not self._keep_old_rows(batch):
            return None
        fused, model = owner.fused, owner.model
        keys = None
        if isinstance(fused, NativeMLP) and fused.drops:
            seeds = [seed_of("step", owner.config.seed, step + i) for i in range(steps)]
            keys = np.array(seeds, np.uint64)
        results = {name: torch.empty(n, model.n_logits) for name in ("logits_BC", "grads_BC")}
        results |= {"losses_B": torch.empty(n)}
        results |= {name: torch.empty(steps) for name in ("totals_S", "weights_S")}
        slots, is_log_loss = len(model.schema.slots), model.losses.is_log_loss
        threads = self._threads_of(batch, batch_rows)
        with kernels.spin_wait() if threads > 1 else nullcontext():
            done, change = native.run(
                csr_batch(batch, slots) if slots else None,
                dense_BK=batch.dense_BK,
                labels_B=model.losses.labels(batch, 0) if is_log_loss else None,
                losses=None if is_log_loss else self._losses_of(batch, results),
                weight_B=batch.weight_B,
                batch_rows=batch_rows,
                step=step,
                factors_S3=rates_S3.reshape(-1),
                keys_S=keys,
                frozen_rates=owner.feature_rates is None or owner.feature_rates.frozen,
                threads=threads,
                most_seconds=MOST_SECONDS,
                **{name: tensor.numpy() for name, tensor in results.items()},
            )
        if model.wide_table is not None:
            model.wide_table.count_change(change)
        if isinstance(fused, NativeMLP):
            fused.count_batches(done)
        return (done, results) if done else None

    def _threads_of(self, batch: Batch, batch_rows: int) -> int:
        """Return one thread for steps that end before another one would be of use."""
        weights = sum(p.numel() for p in self._step.dense.parameters.values())
        ids = len(batch.ids_N) * batch_rows // len(batch)
        work = weights * (3 * batch_rows + _PRODUCTS_OF_UPDATE) + ids * _PRODUCTS_OF_ID
        return 1 if work < _LITTLE else self._step.threads

    def _losses_of(self, batch: Batch, results: Mapping[str, Tensor]) -> Callable[[int, int], bool]:
        """Return the function that fills in the losses of some examples from their logits."""
        model = self._step.model
        learn = model.losses.of_rows(batch, lambda name: model.batch_tensor(batch, name))
        logits_BC, grads_BC, losses_B = (
            results[name] for name in ("logits_BC", "grads_BC", "losses_B")
        )
        assert model.bias.grad is not None
        grad_C = model.bias.grad

        def fill(first: int, last: int) -> bool:
            try:
                losses, grads = learn(logits_BC[first:last], first, last)
            except Exception:  # the step by itself says what is wrong
                return False
            losses_B[first:last], grads_BC[first:last] = losses, grads
            sum_examples(grads, grad_C)
            return True

        return fill

    def _keep_old_rows(self, batch: Batch) -> bool:
        """Keep what all steps of a run change, for the best model; False for ids out of range."""
        if not self._step.rollback.marked:
            return True
        try:
            groups = self._step.group(batch)
        except DataError:
            return False
        for name, of_table in groups.items():
            self._step.rollback.before_update(name, of_table.rows)
        return True

    def _prepared(self, batch_rows: int, n: int) -> kernels.StepProgram | None:
        """Return the program over the arrays as they are now: made anew if one has moved."""
        owner, model, fused = self._step, self._step.model, self._step.fused
        shortest = n % batch_rows or batch_rows
        spans = owner.dense.flat_updates()
        if spans is None or (isinstance(fused, NativeMLP) and not fused.takes(shortest)):
            return None
        if model.bias.grad is None:
            model.bias.grad = torch.empty_like(model.bias)
        tower = concat_BX = None
        if isinstance(fused, NativeMLP):
            concat_BX = owner.concat_buffer(batch_rows)
            tower = fused.tower(concat_BX)
        optimizers = (owner.wide, owner.deep, owner.dense.optimizer)
        tables = model.tables
        for name, table in tables.items():
            if not name.startswith("frozen/"):
                table.attach_if_other(owner.wide if name == "wide" else owner.deep)
        made_of: list[object] = [
            *optimizers, tower, spans, model.bias.data_ptr(), model.bias.grad.data_ptr(),
            *((table.weight.data_ptr(), table.n_rows) for table in tables.values()),
        ]  # fmt: skip
        if self._native is None or made_of != self._made_of:
            self._made_of = made_of
            self._native = self._make(spans, tower, concat_BX)
        return self._native

    def _make(
        self, spans: list[Any], tower: kernels.Tower | None, concat_BX: Tensor | None
    ) -> kernels.StepProgram:
        owner, model, config = self._step, self._step.model, self._step.config
        slots, layout = model.schema.slots, model.gathered
        assert isinstance(owner.dense.optimizer, Optimizer) and model.bias.grad is not None
        wide = None
        if model.wide_table is not None:
            own = model.wide_table.own_slots(slots, None, model.config.wide_combiner)
            update = _update(owner.wide, model.wide_table.weight, model.wide_table.state)
            wide = kernels.StepTable(own, model.wide_table.weight.numpy(), update)
        tables = []
        for name, table in model.tables.items() if tower is not None else ():
            if name == "wide":
                continue
            own, weight = table.own_slots(slots, layout.columns, None), table.weight
            if name.startswith("frozen/"):
                tables.append(kernels.StepTable(own, weight.numpy(), None))
                continue
            shared = None if model.wide_table is None else table.tables_in(model.wide_table)
            shifts: list[int] = []
            if shared is not None and model.wide_table is not None:
                shifts = (table.bases - model.wide_table.bases[shared]).tolist()
            update = _update(owner.deep, weight, table.state)
            tables.append(kernels.StepTable(own, weight.numpy(), update, shared or (), shifts))
        dense = [
            (_update(owner.dense.optimizer, flat, state), grads.numpy(), factor)
            for factor, flat, grads, state in spans
        ]
        rates = owner.feature_rates
        return kernels.StepProgram(
            n_features=len(slots),
            wide=wide,
            tables=tables,
            tower=tower,
            input_BX=None if concat_BX is None else concat_BX.numpy(),
            first_dense=layout.dense.start if tower is not None else 0,
            dense_columns=layout.dense_columns if tower is not None else (),
            bias=model.bias.detach().numpy(),
            bias_grad=model.bias.grad.numpy(),
            dense=dense,
            log_rates=None if rates is None else rates.log_rates.numpy(),
            evidence=None if rates is None else rates.evidence.numpy(),
            rate_step=0.0 if rates is None else rates.step,
            lowest_rate=RANGE[0],
            highest_rate=RANGE[1],
            row_scale=0.0 if config.grad_scale == "mean" else config.grad_scale,
            mean_loss=config.loss_reduction == "mean",
        )


def sum_examples(grad_BC: Tensor, grad_C: Tensor) -> None:
    """Fill the sum over examples; of one logit on a processor as runs of steps add it."""
    if grad_BC.shape[1] == 1 and grad_BC.device.type == "cpu" and grad_BC.is_contiguous():
        grad_C.fill_(kernels.float_sum(grad_BC.numpy()[:, 0]))
    else:
        torch.sum(grad_BC, dim=0, out=grad_C)


def _is_known(optimizer: Optimizer) -> bool:
    if any(optimizer.state_width(name, 2) != 2 for name in optimizer.state_names):
        return False  # one number for a row
    return _KERNELS.get(type(optimizer)) == optimizer.kernel


def _moves(table: EmbeddingTable, optimizer: Optimizer) -> bool:
    """Whether the native side can do all that an update of a table's rows does."""
    counts = table.std != 0.0 or optimizer.counts_nonzero
    return _is_known(optimizer) and counts and not table.rules and table.shard[1] == 1


def _update(optimizer: Optimizer, weight: Tensor, state: dict[str, Tensor]) -> kernels.RowUpdate:
    if isinstance(optimizer, Adam):  # whose rate is another one in each step
        options = {name: getattr(optimizer, name) for name in ("lr", "eps", "weight_decay")}
        options["beta1"], options["beta2"] = optimizer.betas
    else:
        numbers = Step(lr=optimizer.lr, grad_scale=1.0, number=1, threads=1)
        options = {k: v for k, v in optimizer.kernel_options(numbers).items() if v is not None}
    arrays = [state[name].numpy() for name in optimizer.state_names]
    assert optimizer.kernel is not None
    return kernels.RowUpdate(optimizer.kernel, weight.numpy(), arrays, **options)
