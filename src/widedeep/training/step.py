"""One training step in four: group and gather, dense forward and backward, reduce, apply."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.errors import ConfigError, RowError
from widedeep.kernels.torch_device import seeded
from widedeep.kernels.torch_layers import native_layers
from widedeep.models.tower import DeepInput, TrainingRows
from widedeep.models.wide_deep import WIDE_BIAS, WideDeep
from widedeep.optim import FTRL, Optimizer
from widedeep.ranks.config import Wire
from widedeep.ranks.ranks import Ranks
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.tables.storage import Groups, LaneOrder, batch_rows
from widedeep.training.checkpoint import as_arrays
from widedeep.training.config import TrainConfig
from widedeep.training.dense import DenseOptimizer, DenseUpdate, NativeMLP, fast_mlp
from widedeep.training.embedding_dropout import EmbeddingDropout
from widedeep.training.exchange import COUNTS, Exchange, LookedUp
from widedeep.training.feature_rates import FeatureRates
from widedeep.training.lane_gradients import LaneGradients
from widedeep.training.parts import Parts, model_parts
from widedeep.training.rollback_log import RollbackLog
from widedeep.training.schedules import FULL_RATES, Rates
from widedeep.training.step_program import StepProgram, sum_examples


@dataclass(slots=True)
class Gathered:
    """A batch's ids, grouped by row, and the deep input."""

    wide_groups: Groups | None
    deep_groups: Mapping[int, Groups]  # By embedding width
    inputs: DeepInput | None
    factors_BF: Tensor | None = None  # Dropout of whole embeddings: factor by feature


@dataclass(slots=True)
class DenseResult:
    """The forward and backward pass of the dense part; gradients are sums over examples."""

    logits_BC: Tensor
    losses_B: Tensor  # Loss of each example, heads summed, before its weight
    grad_BC: Tensor
    grad_BX: Tensor | None = None  # Gradient of the deep input, None without towers
    sequence_grads: Mapping[str, Tensor] = field(default_factory=dict)  # (N, D) by feature
    # Of a run of S steps, each one's sum of weighted losses, and of weights where there are some
    totals_S: Tensor | None = None
    weights_S: Tensor | None = None

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return 1 if self.totals_S is None else len(self.totals_S)


@dataclass(slots=True)
class RowGradients:
    """The summed example gradients of the U rows of a table that a batch touched."""

    name: str
    table: EmbeddingTable
    optimizer: Optimizer
    groups: Groups
    grads_UD: Tensor


class TrainStep:
    """Moves a model by one batch; each touched row moves once, untouched rows cost nothing."""

    def __init__(
        self,
        model: WideDeep,
        config: TrainConfig | None = None,
        *,
        wide: Optimizer,
        deep: Optimizer,
        dense: DenseOptimizer,
        threads: int = 1,
        ranks: Ranks | None = None,
        wire: Wire = "fp32",
    ) -> None:
        self.model = model
        self.ranks = ranks or Ranks()
        self.config = config or TrainConfig()
        self.threads = threads
        self.wide, self.deep = wide, deep
        self.parts = model_parts(model, self.config)
        model.freeze_tables(self.parts.frozen_tables)
        self.parts.set_rules(model)
        trained = {n: p for n, p in model.named_parameters() if n not in self.parts.frozen}
        self._trains_all = len(trained) == len(list(model.parameters()))
        wide_bias = trained.pop(WIDE_BIAS, None)
        if model.wide_bias is not None and not model.towers:
            trained.pop("bias", None)  # of the deep part, which is none
        rates = self.parts.rates
        self.dense = DenseUpdate(trained, dense, clip_norm=self.config.clip_norm, rates=rates)
        self.wide_bias: DenseUpdate | None = None
        if wide_bias is not None:
            self.wide_bias = DenseUpdate({WIDE_BIAS: wide_bias}, wide, rates=rates)
        self.exchange: Exchange | None = None
        # Bytes that this rank sent in steps, and the examples that all ranks learned in them
        self.sent_bytes = self.learned_rows = 0
        if self.ranks.lanes > 1:
            model.set_shard(self.ranks.rank, self.ranks.size)
            self.exchange = Exchange(model, self.ranks, wire=wire, threads=threads)
            reduced = list(self.dense.parameters.values())
            if not any(parameter is model.bias for parameter in reduced):
                reduced.append(model.bias)
            self._lane_gradients = LaneGradients(reduced, self.ranks, wire=wire)
        self._frozen_norms = _frozen_norms(model, self.parts)
        self.dropout = EmbeddingDropout(model, self.config.seed)
        self.feature_rates: FeatureRates | None = None
        if model.wide_table is not None:
            model.wide_table.attach(wide)
            self.feature_rates = _feature_rates(model, model.wide_table, wide)
        for table in model.deep_tables.values():
            table.attach(deep)
        # The native path moves the statistics of a norm, which are frozen here.
        frozen_norms = bool(self._frozen_norms)
        self.fused = None if frozen_norms else fast_mlp(model, self.config.precision, threads)
        if self.fused is None and model.towers and model.device.type == "cpu":
            kernels.keep_freed_memory()
        self._parameters = list(model.parameters())
        # Modules of one's own may draw from NumPy's or Python's generator too.
        rooms = {type(module).__module__.partition(".")[0] for module in model.modules()}
        self._draws_torch_alone = rooms <= {"widedeep", "torch"}
        self.rollback = RollbackLog()
        self._best_dense: dict[str, NDArray[Any]] = {}
        self._concat: Tensor | None = None
        self._grads: Tensor | None = None
        self._computed_lane: int | None = None  # whose dense gradients are still to be taken
        self._loads = model.loads
        self.program = StepProgram(self)

    @property
    def is_current(self) -> bool:
        """False if a state dict was loaded into the model since the last step."""
        return self._loads == self.model.loads

    def __call__(self, batch: Batch, *, rates: Rates = FULL_RATES, step: int = 1) -> DenseResult:
        """Learn one batch of B examples; ``rates`` are the schedules' factors of this step.

        The result holds the logits of the batch before it was learned.
        """
        return self.run(batch, max(1, len(batch)), rates_S3=np.array([rates]), step=step)

    def run(
        self, batch: Batch, batch_rows: int, *, rates_S3: NDArray[np.float64], step: int = 1
    ) -> DenseResult:
        """Learn consecutive batches of ``batch_rows`` examples, the last one of what is left.

        The first batch is learned, or refused; the others as far as they can be without the
        interpreter: the result says how many steps were done, and tells of their examples alone.

        Args:
            batch: The examples of all batches.
            batch_rows: Examples of each.
            rates_S3: The schedules' factors at each step, as :class:`Rates` names them.
            step: Number of the first step, from 1.
        """
        if not self.is_current:
            self._restart()
        done = self.program.run(batch, batch_rows, rates_S3=rates_S3, step=step)
        if done is not None:
            return _first_steps(*done, batch_rows)
        first = batch if len(batch) <= batch_rows else batch.slice(0, batch_rows)
        with kernels.spin_wait() if self.model.device.type == "cpu" else nullcontext():
            return self.by_parts(first, Rates(*rates_S3[0].tolist()), step)

    def by_parts(self, batch: Batch, rates: Rates = FULL_RATES, step: int = 1) -> DenseResult:
        """Learn one batch by the four parts of a step."""
        if self.exchange is not None:
            return self._learn_lanes(self.exchange, batch, rates=rates, step=step)
        gathered = self.group_and_gather(batch, step=step)
        result = self.dense_pass(batch, gathered, step=step)
        gradients = self.reduce(batch, gathered, result)
        self.apply(gradients, len(batch), rates=rates, step=step)
        return result

    def _learn_lanes(
        self, exchange: Exchange, batch: Batch, *, rates: Rates, step: int
    ) -> DenseResult:
        """Learn this rank's lanes of a batch; sums are added as the tree of lanes says."""
        ranks, starts = self.ranks, batch.lane_starts
        assert starts is not None
        first_lane, sent_before = ranks.lanes_of().start, ranks.sent_bytes
        self._computed_lane = None
        self._lane_gradients.start()
        edges = [starts[s.start - first_lane : s.stop - first_lane + 1] for s in ranks.spans_of()]
        looked_up = exchange.ask(
            [batch.slice(int(e[0]), int(e[-1])) for e in edges],
            [len(ranks.spans_of(rank)) for rank in range(ranks.size)],
        )
        sums: dict[str, list[Tensor]] = {}
        results: list[DenseResult] = []
        for i, span in enumerate(ranks.spans_of()):
            own = edges[i] - edges[i][0]
            try:
                results += self._learn_span(looked_up, i, sums, span=span, starts=own, step=step)
            except RowError as error:
                row = error.row + int(edges[i][0])
                raise RowError(error.subject, row, error.problem) from None
        received = exchange.send(looked_up, sums)  # other threads sum the weights' gradients
        self._take_dense()
        gradients = [
            RowGradients(name, table, optimizer, *received[name])
            for name, table, optimizer in self._trained_tables()
        ]
        self._lane_gradients.reduce()
        self.apply(gradients, looked_up.rows, rates=rates, step=step)
        self.sent_bytes += ranks.sent_bytes - sent_before
        self.learned_rows += looked_up.rows
        return _joined(results)

    def _learn_span(
        self,
        looked_up: LookedUp,
        index: int,
        sums: dict[str, list[Tensor]],
        *,
        span: range,
        starts: NDArray[np.int64],
        step: int,
    ) -> list[DenseResult]:
        """Compute some lanes of this rank, together or one by one, and the sums of their rows."""
        exchange, batch = self.exchange, looked_up.batches[index]
        assert exchange is not None
        groups, lanes = exchange.groups(looked_up, index), (span, starts)
        if self._sums_rows and len(batch):
            with exchange.reading(looked_up, index):
                results = [self._learn_at_once(batch, groups, *lanes, step=step)]
        else:
            results = self._learn_one_by_one(looked_up, index, groups, *lanes, step=step)
        for name, table, _ in self._trained_tables():
            if any(rule.l2 is not None for rule in table.rules.values()):
                counts_U1 = groups[name].counts.float()[:, None]
                sums.setdefault(name + COUNTS, []).append(counts_U1)
            if not len(batch):
                sums.setdefault(name, []).append(torch.zeros(0, table.dim))
        if len(batch):
            lane_B = np.repeat(np.arange(span.start, span.stop, dtype=np.int32), np.diff(starts))
            result = _joined(results)
            if result.grad_BX is None and self.model.towers:
                result.grad_BX = self._grad_buffer(len(batch))
            with exchange.reading(looked_up, index):
                for gradient in self.reduce(batch, self._grouped(groups), result, lane_B=lane_B):
                    sums.setdefault(gradient.name, []).append(gradient.grads_UD)
        return results

    def _learn_one_by_one(
        self,
        looked_up: LookedUp,
        index: int,
        groups: Mapping[str, Groups],
        span: range,
        starts: NDArray[np.int64],
        *,
        step: int,
    ) -> list[DenseResult]:
        """Compute some lanes one after the other, and their deep inputs' gradients."""
        results, batch = [], looked_up.batches[index]
        assert self.exchange is not None
        for lane, (start, stop) in zip(span, pairwise(starts.tolist()), strict=True):
            part, first_id = batch.slice(start, stop), batch.offsets_BF[start * batch.n_slots]
            try:
                with self.exchange.reading(looked_up, index, part, int(first_id)):
                    results.append(self._learn_lane(part, groups, lane=lane, step=step))
            except RowError as error:
                raise RowError(error.subject, error.row + start, error.problem) from None
            if results[-1].grad_BX is not None and len(part) < len(batch):
                self._grad_buffer(len(batch))[start:stop] = results[-1].grad_BX
                results[-1].grad_BX = None
        return results

    @property
    def _sums_rows(self) -> bool:
        """Whether lanes are computed together: no number of an example depends on others of it."""
        model, fused = self.model, self.fused
        native = not model.towers
        if isinstance(fused, NativeMLP):
            native = fused.takes(1) and not fused.drops
        return native and not self.dropout and model.n_logits == 1 and model.losses.is_log_loss

    def _learn_at_once(
        self,
        batch: Batch,
        groups: Mapping[str, Groups],
        span: range,
        starts: NDArray[np.int64],
        *,
        step: int,
    ) -> DenseResult:
        """Compute some lanes together; only the dense gradients are summed lane after lane."""
        self._take_dense()
        result = self.dense_pass(batch, self._gather(batch, groups, step=step), step=step)
        for lane, (start, stop) in zip(span, pairwise(starts.tolist()), strict=True):
            self._take_dense()
            if start == stop:
                self._lane_gradients.take(lane, empty=True)
                continue
            if isinstance(self.fused, NativeMLP):
                self.fused.sum_rows(start, stop)
            assert self.model.bias.grad is not None
            sum_examples(result.grad_BC[start:stop], self.model.bias.grad)
            self._computed_lane = lane
        return result

    def _learn_lane(
        self, batch: Batch, groups: Mapping[str, Groups], *, lane: int, step: int
    ) -> DenseResult:
        """Compute one of this rank's lanes, whose number on all ranks is ``lane``."""
        self._take_dense()
        if not len(batch):
            self._lane_gradients.take(lane, empty=True)
            empty_BC = torch.zeros(0, self.model.n_logits)
            return DenseResult(empty_BC, empty_BC[:, 0], empty_BC)
        gathered = self._gather(batch, groups, step=step, lane=lane)
        result = self.dense_pass(batch, gathered, step=step, lane=lane)
        self._computed_lane = lane
        self._scale_dropped(gathered, result)
        return result

    def _take_dense(self) -> None:
        """Wait for the dense gradients of the lane that was computed last, and take them."""
        if self._computed_lane is None:
            return
        if self.fused is not None:
            self.fused.finish()
        self._lane_gradients.take(self._computed_lane)
        self._computed_lane = None

    def _trained_tables(self) -> Iterator[tuple[str, EmbeddingTable, Optimizer]]:
        """Yield what rows of a batch move: names, tables and their optimizers."""
        if self.model.wide_table is not None:
            yield "wide", self.model.wide_table, self.wide
        for dim, table in self.model.deep_tables.items() if self.model.towers else ():
            yield f"deep/{dim}", table, self.deep

    def group_and_gather(self, batch: Batch, *, step: int = 1) -> Gathered:
        """Group duplicate ids and look their rows up."""
        # Groups first: they check the ids, so that a device is asked once, not by every lookup.
        return self._gather(batch, self.group(batch), step=step)

    def group(self, batch: Batch) -> dict[str, Groups]:
        """Return the rows of each table that a batch touches, where they are trained."""
        model, slots, threads = self.model, self.model.schema.slots, self.threads
        all_groups: dict[str, Groups] = {}
        if model.wide_table is not None:
            all_groups["wide"] = model.wide_table.group(batch, slots, threads=threads)
        if model.towers:
            for dim, table in model.deep_tables.items():
                groups = None
                if model.wide_table is not None:
                    groups = table.regroup(model.wide_table, all_groups["wide"])  # grouped once
                if groups is None:
                    groups = table.group(batch, slots, threads=threads)
                all_groups[f"deep/{dim}"] = groups
        return all_groups

    def concat_buffer(self, rows: int) -> Tensor:
        """Return the buffer of the deep input for this many rows, kept for the next step."""
        if self._concat is None or len(self._concat) < rows:
            self._concat = self.model.concat_buffer(rows)
        return self._concat[:rows, : self.model.gathered.width]

    def _gather(
        self, batch: Batch, groups: Mapping[str, Groups], *, step: int, lane: int = 0
    ) -> Gathered:
        """Look the rows of a batch, or of a lane of it, up."""
        model, inputs = self.model, None
        if model.towers:
            concat_BX = self.concat_buffer(len(batch))
            inputs = model.gather(batch, threads=self.threads, out=concat_BX)
        factors_BF = None
        if inputs is not None and self.dropout:
            factors_BF = self.dropout.draw(len(batch), step, lane)
            self.dropout.scale_inputs(inputs, factors_BF)
        return replace(self._grouped(groups), inputs=inputs, factors_BF=factors_BF)

    def _grouped(self, groups: Mapping[str, Groups]) -> Gathered:
        dims = self.model.deep_tables if self.model.towers else ()
        return Gathered(groups.get("wide"), {dim: groups[f"deep/{dim}"] for dim in dims}, None)

    def _grad_buffer(self, rows: int) -> Tensor:
        """Return the buffer of the deep input's gradients, over the lanes of a batch."""
        if self._grads is None or len(self._grads) < rows:
            self._grads = batch_rows(rows, self.model.gathered.width, self.model.device)
        return self._grads[:rows]

    def dense_pass(
        self, batch: Batch, gathered: Gathered, *, step: int = 1, lane: int = 0
    ) -> DenseResult:
        """Compute the logits, the losses and every dense gradient (sums over examples)."""
        logits_BC = self.model.wide_logits(batch, threads=self.threads)  # with the bias
        inputs = gathered.inputs
        if inputs is None:
            losses_B, grad_BC = self._losses(logits_BC, batch)
            return DenseResult(logits_BC, losses_B, grad_BC)
        key = ("step", self.config.seed, step, *((lane,) if self.ranks.lanes > 1 else ()))
        if self.fused is not None and self.fused.takes(len(batch)):
            logits_BC += self.fused.forward(inputs.concat_BX, key)  # (B, X) -> (B, C)
            losses_B, grad_BC = self._losses(logits_BC, batch)
            unread = {name: torch.zeros_like(s.values_ND) for name, s in inputs.sequences.items()}
            if self.exchange is not None and self._sums_rows:
                assert isinstance(self.fused, NativeMLP)
                grad_BX = self.fused.backward_rows(grad_BC)  # the layers' .grad by lane
            else:
                grad_BX = self.fused.backward(grad_BC)  # (B, C) -> (B, X), and the layers' .grad
            return DenseResult(logits_BC, losses_B, grad_BC, grad_BX, unread)
        with (
            seeded(self.model.device, *key, torch_alone=self._draws_torch_alone),
            self._native_layers(),
        ):
            return self._autograd_pass(batch, logits_BC, inputs)

    def _native_layers(self) -> AbstractContextManager[None]:
        """Let towers compute their hidden layers by our kernels, where those are as good."""
        native = self.model.device.type == "cpu" and self.config.precision != "bf16"
        return native_layers(self.threads) if native else nullcontext()

    def _autograd_pass(self, batch: Batch, logits_BC: Tensor, inputs: DeepInput) -> DenseResult:
        concat_BX = inputs.concat_BX.detach().requires_grad_()
        sequences = {
            name: replace(s, values_ND=s.values_ND.detach().requires_grad_())
            for name, s in inputs.sequences.items()
        }
        leaf = DeepInput(
            concat_BX=concat_BX,
            layout=inputs.layout,
            dense_BK=concat_BX[:, self.model.gathered.dense],
            sequences=sequences,
            extra=inputs.extra,
            own_losses=[],
            training=TrainingRows(batch, self.model.schema),
        )
        for parameter in self._parameters:
            parameter.grad = None
        for norm in self._frozen_norms:
            norm.eval()  # Its statistics stay
        in_bf16 = torch.autocast(
            concat_BX.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )
        with torch.enable_grad(), in_bf16:
            deep = self.model.member_logits(leaf)  # (B, X) and sequences -> (B, C) or (B, M, C)
        assert deep is not None
        deep = deep.float()
        if deep.dim() == 3:
            logits_BMC = logits_BC.unsqueeze(1) + deep.detach()
            losses_B, grad = self._member_losses(logits_BMC, batch)
            logits_BC, grad_BC = logits_BMC.mean(dim=1), grad.sum(dim=1)
        else:
            logits_BC += deep.detach()
            losses_B, grad = self._losses(logits_BC, batch)
            grad_BC = grad
        roots, grads = [deep], [grad]
        for own_B in leaf.own_losses or ():
            roots.append(own_B)
            grads.append(self._own_loss_grad(own_B, batch))
        torch.autograd.backward(roots, grads, inputs=self._leaves(leaf))
        return DenseResult(
            logits_BC,
            losses_B,
            grad_BC,
            _grad_or_zeros(concat_BX),
            {name: _grad_or_zeros(s.values_ND) for name, s in sequences.items()},
        )

    def _leaves(self, inputs: DeepInput) -> list[Tensor] | None:
        """Return what a backward pass is for: not what is frozen; None: everything."""
        if self._trains_all:
            return None
        unpooled = [s.values_ND for s in inputs.sequences.values()]
        trained = [p for p in self.dense.parameters.values() if p.requires_grad]
        return [inputs.concat_BX, *unpooled, *trained]

    def _losses(self, logits_BC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each example's loss, and the gradient of the weighted sum by the logits."""
        model = self.model
        losses_B, grad_BC = model.losses(
            logits_BC, batch, lambda name: model.batch_tensor(batch, name)
        )
        if model.bias.grad is None:
            model.bias.grad = torch.empty_like(model.bias)
        sum_examples(grad_BC, model.bias.grad)
        if logits_BC.device.type == "cpu":  # a device would be waited for: the run asks it later
            self._check_finite(losses_B, grad_BC, model.bias.grad)
        return losses_B, grad_BC

    def _own_loss_grad(self, own_B: Tensor, batch: Batch) -> Tensor:
        """Return the gradient of the weighted sum of a tower's own losses by these."""
        if own_B.device.type == "cpu" and not math.isfinite(float(own_B.detach().sum())):
            row = int((~torch.isfinite(own_B)).int().argmax())
            raise RowError(
                "a tower's own loss", row, f"{float(own_B[row]):g}, expected a finite number; "
                "nothing was learned from this batch: lower the learning rates, or its weight",
            )  # fmt: skip
        if batch.weight_B is None:
            return torch.ones_like(own_B)
        return self.model.batch_tensor(batch, "weight_B").to(own_B.dtype)

    def _member_losses(self, logits_BMC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean of the members' losses, (B,), and its gradient by their logits."""
        members = [self._losses(one_BC.contiguous(), batch) for one_BC in logits_BMC.unbind(1)]
        losses_B = torch.stack([losses for losses, _ in members]).mean(dim=0)
        grad_BMC = torch.stack([grad for _, grad in members], dim=1) / len(members)
        assert self.model.bias.grad is not None
        torch.sum(grad_BMC, dim=(0, 1), out=self.model.bias.grad)  # (C,)
        return losses_B, grad_BMC

    def _check_finite(self, losses_B: Tensor, grad_BC: Tensor, grad_C: Tensor) -> None:
        """Raise a RowError for a loss or gradient that is no number, before anything is moved."""
        if math.isfinite(float(losses_B.sum() + grad_C.sum())):
            return
        wrong_B = ~(torch.isfinite(losses_B) & torch.isfinite(grad_BC).all(dim=1))
        if not bool(wrong_B.any()):  # each is finite, their sum is not
            wrong_B[int(losses_B.abs().argmax())] = True
        row = int(wrong_B.nonzero()[0])
        named = dict(zip([h.name for h in self.model.heads], self.model.head_slices, strict=True))
        finite = {name: bool(torch.isfinite(grad_BC[row, c]).all()) for name, c in named.items()}
        name = next((name for name in named if not finite[name]), next(iter(named)))
        gradient = grad_BC[row, named[name]]
        raise RowError(
            f"head {name!r}" if name else "the head",
            row,
            f"loss {float(losses_B[row]):g} and gradient {gradient.tolist()}, expected finite "
            "numbers; nothing was learned from this batch: lower the learning rates, correct the "
            "row, or mend the loss",
        )

    def _scale_dropped(self, gathered: Gathered, result: DenseResult) -> None:
        """Multiply the gradients of embeddings by the factors of their dropout."""
        if gathered.factors_BF is not None and gathered.inputs is not None:
            assert result.grad_BX is not None
            self.dropout.scale(
                result.grad_BX, result.sequence_grads, gathered.inputs, gathered.factors_BF
            )

    def reduce(
        self,
        batch: Batch,
        gathered: Gathered,
        result: DenseResult,
        *,
        lane_B: NDArray[np.int32] | None = None,
    ) -> list[RowGradients]:
        """Sum the examples' gradients by row; ``lane_B``: by lane, gradients scaled already."""
        model, slots, threads = self.model, self.model.schema.slots, self.threads
        gradients = []
        if lane_B is None:
            self._scale_dropped(gathered, result)

        def order(name: str) -> LaneOrder | None:
            lanes = self.exchange if lane_B is not None else None
            return None if lanes is None or lane_B is None else lanes.order_of(name, lane_B)

        if model.wide_table is not None and gathered.wide_groups is not None:
            groups = gathered.wide_groups
            grads_UC = model.wide_table.sum_wide(
                batch, groups, slots, model.config.wide_combiner, result.grad_BC,
                threads=threads, order=order("wide"),
            )  # fmt: skip
            gradients.append(RowGradients("wide", model.wide_table, self.wide, groups, grads_UC))
        for dim, groups in gathered.deep_groups.items():
            assert result.grad_BX is not None
            table, columns = model.deep_tables[dim], model.gathered.columns
            grads_UD = table.sum_deep(
                batch, groups, slots, columns, result.grad_BX, result.sequence_grads,
                threads=threads, order=order(f"deep/{dim}"),
            )  # fmt: skip
            gradients.append(RowGradients(f"deep/{dim}", table, self.deep, groups, grads_UD))
        return gradients

    def apply(self, gradients: list[RowGradients], rows: int, *, rates: Rates, step: int) -> None:
        """Move each touched row, and the dense parameters, once."""
        row_scale = 1.0 / rows if self.config.grad_scale == "mean" else self.config.grad_scale
        for gradient in gradients:
            groups = gradient.groups
            self.rollback.before_update(gradient.name, groups.rows)
            is_wide = gradient.name == "wide"
            feature_rates = self.feature_rates if is_wide else None
            rates_U = products_U = None
            starts_T, device_starts_T = groups.table_starts
            if feature_rates is not None:
                rates_U = feature_rates.of_rows(starts_T, device_starts_T)
                products_U = torch.empty_like(rates_U)
            rate = rates.wide if is_wide else rates.deep
            lr, grad_factor = gradient.optimizer.apply_schedule(rate)
            gradient.table.apply(
                groups, gradient.grads_UD, gradient.optimizer,
                lr=lr, grad_scale=row_scale * grad_factor, step=step,
                threads=self.threads, rates_U=rates_U, products_U=products_U,
            )  # fmt: skip
            if feature_rates is not None and products_U is not None:
                if self.exchange is not None:
                    feature_rates.learn_over(self.ranks, products_U, starts_T)
                else:
                    feature_rates.learn(products_U, starts_T, device_starts_T)
        if self.fused is not None:
            self.fused.finish()  # its weights' gradients, summed while rows moved
        if self.wide_bias is not None and self.model.wide_bias is not None:
            # The gradient of the logits' sum, as the other bias has it
            self.model.wide_bias.grad = self.model.bias.grad
            self.wide_bias.apply(scale=row_scale, rate=rates.wide, step=step, threads=self.threads)
        scale = 1.0 / rows if self.config.loss_reduction == "mean" else 1.0
        self.dense.apply(scale=scale, rate=rates.dense, step=step, threads=self.threads)

    @property
    def _dense_updates(self) -> list[DenseUpdate]:
        return [self.dense] if self.wide_bias is None else [self.dense, self.wide_bias]

    def with_optimizers(self, *, wire: Wire, **optimizers: Any) -> TrainStep:
        """Return a step of the same model with other optimizers, whose state begins anew."""
        return TrainStep(
            self.model,
            self.config,
            **optimizers,
            threads=self.threads,
            ranks=self.ranks,
            wire=wire,
        )

    def dense_tensors(self) -> dict[str, Tensor]:
        """Return the optimizers' state of parameters that are no tables, one named tensor each."""
        return {k: v for update in self._dense_updates for k, v in update.tensors().items()}

    def load_dense_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take the state that :meth:`dense_tensors` returned."""
        own = {k: v for k, v in tensors.items() if k.rpartition("/")[0] == WIDE_BIAS}
        self.dense.load_tensors({k: v for k, v in tensors.items() if k not in own})
        if self.wide_bias is not None:
            self.wide_bias.load_tensors(own)

    def _restart(self) -> None:
        """Start the optimizers of the dense parameters anew: a state dict was loaded."""
        self._loads = self.model.loads
        for update in self._dense_updates:
            update.restart()
        if self.feature_rates is not None:
            for tensor in self.feature_rates.tensors().values():
                tensor.zero_()

    # ---- the best model so far ------------------------------------------------------------------

    def keep_best(self, limit_bytes: float = math.inf) -> None:
        """Track from now on what :meth:`restore_best` needs; called once, before training.

        Args:
            limit_bytes: Most bytes of old rows; with more of them there is no best model here.
        """
        self.rollback.limit_bytes = limit_bytes
        for name, table in self.model.tables.items():
            if name.startswith("frozen/"):
                continue
            self.rollback.track(name, {"weight": table.weight, **table.state})
        small = {f"module/{name}": tensor for name, tensor in self.model.dense_state().items()}
        if self.feature_rates is not None:
            small |= {f"rates/{k}": v for k, v in self.feature_rates.tensors().items()}
        for update in self._dense_updates:
            if update.is_ours:
                small |= {f"optimizer/{k}": v for k, v in update.tensors().items()}
        self.rollback.track_small(small)

    @property
    def has_best(self) -> bool:
        """True once a model was marked as the best, unless too many rows moved since."""
        return self.rollback.marked

    def mark_best(self) -> None:
        """Make the present model, and the optimizers' state, those that come back."""
        self.rollback.mark()
        if not self.dense.is_ours:  # torch makes its state, and replaces it, as it goes
            state = as_arrays(self.dense.tensors())
            self._best_dense = {name: array.copy() for name, array in state.items()}

    def restore_best(self) -> None:
        """Go back to the last mark; what is learned from there can be undone again."""
        self.rollback.restore()
        if not self.dense.is_ours:
            self.dense.load_tensors(self._best_dense)
        self.model.recount()


def _joined(results: list[DenseResult]) -> DenseResult:
    """Put the results of lanes one behind the other, but for a deep input's gradient of several."""
    results = [result for result in results if len(result.losses_B)] or results[:1]
    if len(results) == 1:
        return results[0]
    names = results[0].sequence_grads
    return DenseResult(
        torch.cat([result.logits_BC for result in results]),
        torch.cat([result.losses_B for result in results]),
        torch.cat([result.grad_BC for result in results]),
        sequence_grads={
            name: torch.cat([result.sequence_grads[name] for result in results]) for name in names
        },
    )


def _first_steps(steps: int, results: Mapping[str, Tensor], batch_rows: int) -> DenseResult:
    """Return what a run did, without the examples of batches that it stopped before."""
    rows = slice(0, steps * batch_rows)
    return DenseResult(
        results["logits_BC"][rows],
        results["losses_B"][rows],
        results["grads_BC"][rows],
        totals_S=results["totals_S"][:steps],
        weights_S=results["weights_S"][:steps],
    )


def _frozen_norms(model: WideDeep, parts: Parts) -> list[nn.Module]:
    """Return the modules whose buffers, the statistics of a batch norm for one, are frozen."""
    return [
        module
        for name, module in model.named_modules()
        if any(f"{name}.{key}" in parts.frozen for key, _ in module.named_buffers(recurse=False))
    ]


def _grad_or_zeros(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _feature_rates(model: WideDeep, table: EmbeddingTable, wide: Optimizer) -> FeatureRates | None:
    """Return the rates that a wide optimizer adapts, or None where it adapts none."""
    if not isinstance(wide, FTRL) or not wide.adapt:
        return None
    if not wide.by_kernels:
        raise ConfigError(
            f"got wide={type(wide).__name__}, which updates by itself, so that no rate of a "
            "feature is learned on the way; make it with adapt=0"
        )
    return FeatureRates(len(table.sizes), wide.adapt, device=model.device)
