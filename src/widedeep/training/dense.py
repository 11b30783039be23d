"""Dense parameters: the fast forward and backward of the standard tower, and the updates."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from widedeep.errors import CheckpointError, ConfigError
from widedeep.kernels import Tower, TowerGradients, has_bf16_products
from widedeep.kernels.torch_device import seed_of
from widedeep.kernels.torch_layers import DenseLayer, TowerRoom, count_batch, make_tower
from widedeep.metrics.registry import is_better
from widedeep.models.blocks import has_hooks
from widedeep.models.mlp import MLPTower
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import Optimizer
from widedeep.tables.storage import batch_rows
from widedeep.training.config import Precision

_LARGE = 1 << 15  # numbers from which an update is worth waking another thread
_WIDTH = 256  # of the flat tensors' rows, which are divided among threads
_LINE = 16  # floats of a cache line

TorchOptimizer = torch.optim.Optimizer | tuple[torch.optim.Optimizer, LRScheduler]
DenseOptimizer = Optimizer | Callable[[Iterable[nn.Parameter]], TorchOptimizer]
_SCHEDULER = "scheduler"  # its state among the optimizer's tensors, as bytes


class DenseUpdate:
    """Applies gradients to a model's dense parameters, by our optimizers or any of torch's."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: DenseOptimizer,
        *,
        clip_norm: float | None = None,
        rates: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        # By factor of the rate, so that those of one factor lie side by side
        self._factors = {name: rates.get(name, 1.0) for name in parameters}
        order = list(dict.fromkeys(self._factors.values()))
        names = sorted(parameters, key=lambda name: order.index(self._factors[name]))
        self.parameters = {name: parameters[name] for name in names}
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self._ours: Optimizer | None = None
        self._torch: torch.optim.Optimizer | None = None
        self.scheduler: LRScheduler | None = None
        # Of each group of torch's optimizer: its first rate, and the factor that parts give it
        self._base_rates: list[float] = []
        self._group_factors: list[float] = []
        self.state: dict[str, dict[str, Tensor]] = {}
        # By name: the parameter, its address, its gradient's slice of the flat gradients
        self._views: dict[str, tuple[nn.Parameter, int, Tensor]] = {}
        # By factor of the rate: the rows of the flat tensors
        self._spans: list[tuple[float, Tensor, Tensor, dict[str, Tensor]]] = []
        # One of one's own may look at a parameter as a whole, at its norm for one.
        self._update_flat = (
            clip_norm is None
            and isinstance(optimizer, Optimizer)
            and optimizer.by_kernels
            and type(optimizer).update_dense is Optimizer.update_dense
        )
        if isinstance(optimizer, Optimizer):
            self._ours = optimizer
            self._flatten(optimizer)
        else:
            self._torch, self.scheduler = _torch_optimizer(optimizer(self._torch_groups()))
            factor_of = {id(p): self._factors[name] for name, p in self.parameters.items()}
            self._base_rates = [group["lr"] for group in self._torch.param_groups]
            self._group_factors = [
                next((factor_of[id(p)] for p in group["params"]), 1.0)
                for group in self._torch.param_groups
            ]
            if self.scheduler is not None:
                self._check_scheduler()

    @torch.no_grad()
    def _flatten(self, optimizer: Optimizer) -> None:
        """Lay the parameters, their gradients and their state side by side.

        Each parameter becomes a view of one (R, 256) tensor, from the next cache line on; its
        gradient and state are the same numbers of tensors of that shape, so that one update of
        rows moves all parameters.
        """
        starts, spans = self._flat_starts()
        n_rows = max(1, sum(rows.stop - rows.start for _, (rows, _) in spans))
        like = next(iter(self.parameters.values()), torch.empty(0))
        flat = torch.zeros(n_rows, _WIDTH, device=like.device)
        grads = torch.zeros_like(flat)
        state = optimizer.initial_state(flat)
        for (name, parameter), start in zip(self.parameters.items(), starts, strict=True):
            numbers, shape = slice(start, start + parameter.numel()), parameter.shape
            view = flat.view(-1)[numbers].view(shape)
            view.copy_(parameter)
            parameter.data = view
            grad = grads.view(-1)[numbers].view(shape)
            parameter.grad = grad
            self._views[name] = (parameter, parameter.data_ptr(), grad)
            self.state[name] = {k: v.view(-1)[numbers].view(shape) for k, v in state.items()}
            optimizer.start_state(parameter.data, self.state[name])
        self._spans = [
            (factor, flat[part], grads[part], {k: v[part] for k, v in state.items()})
            for factor, part in spans
        ]

    def _flat_starts(self) -> tuple[list[int], list[tuple[float, tuple[slice, slice]]]]:
        """Return where each parameter begins in the flat tensors, and the part of each factor."""
        starts: list[int] = []
        spans: list[tuple[float, tuple[slice, slice]]] = []
        start = first_row = 0
        factors = list(self._factors[name] for name in self.parameters)
        for i, parameter in enumerate(self.parameters.values()):
            starts.append(start)
            start += -(-parameter.numel() // _LINE) * _LINE
            if i + 1 == len(factors) or factors[i + 1] != factors[i]:
                row = max(1, -(-start // _WIDTH))
                used = min(start - first_row * _WIDTH, _WIDTH)  # the only row may be short
                spans.append((factors[i], (slice(first_row, row), slice(0, used))))
                first_row, start = row, row * _WIDTH
        return starts, spans

    def _torch_groups(self) -> Any:
        """Return the parameters as a torch optimizer takes them: in groups where rates differ."""
        if not self.parameters:
            raise ConfigError(
                "got dense=... for a model whose dense parameters are all frozen; leave it out"
            )
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            by_factor.setdefault(self._factors[name], []).append(parameter)
        if len(by_factor) == 1:
            return list(self.parameters.values())
        return [{"params": parameters} for parameters in by_factor.values()]

    @property
    def is_ours(self) -> bool:
        """True if the state lies in tensors of our own, which are always the same ones."""
        return self._ours is not None

    def _collect(self) -> bool:
        """Copy gradients into the flat ones; False where one is missing, or a parameter moved."""
        for parameter, address, flat_grad in self._views.values():
            grad = parameter.grad
            if grad is None or parameter.data_ptr() != address:
                return False
            if grad.data_ptr() != flat_grad.data_ptr():
                flat_grad.copy_(grad)
        return True

    @property
    def moves_flat(self) -> bool:
        """True if one of our optimizers moves all numbers alike, wherever they lie."""
        return self._update_flat

    def flat_updates(self) -> list[tuple[float, Tensor, Tensor, dict[str, Tensor]]] | None:
        """Return the flat parameters, gradients and state of each factor of the rate.

        From then on gradients belong there. None where a parameter was moved from outside.
        """
        for parameter, address, flat_grad in self._views.values():
            if parameter.data_ptr() != address:
                return None
            if parameter.grad is not flat_grad:
                parameter.grad = flat_grad
        return self._spans

    @torch.no_grad()
    def apply(self, *, scale: float, rate: float, step: int, threads: int = 1) -> None:
        """Move every parameter along its ``.grad`` and clear nothing."""
        if self._ours is not None and self._update_flat and self._collect():
            for factor, flat, flat_grads, state in self._spans:
                lr, grad_factor = self._ours.apply_schedule(rate * factor)
                self._ours.update_rows(
                    flat, state, None, flat_grads,
                    lr=lr, grad_scale=scale * grad_factor, step=step,
                    threads=threads if flat.numel() >= _LARGE else 1,
                )  # fmt: skip
            return
        parameters = {name: p for name, p in self.parameters.items() if p.grad is not None}
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        if scale != 1.0 and grads and (self._ours is None or self.clip_norm is not None):
            torch._foreach_mul_(grads, scale)
            scale = 1.0
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(parameters.values()), self.clip_norm)
        if self._ours is not None:
            for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
                lr, grad_factor = self._ours.apply_schedule(rate * self._factors[name])
                self._ours.update_dense(
                    parameter.detach(), grad, self.state[name], lr=lr,
                    grad_scale=scale * grad_factor, step=step,
                    threads=threads if grad.numel() >= _LARGE else 1,
                )  # fmt: skip
        elif self._torch is not None:
            self._step_torch(rate)

    def _step_torch(self, rate: float) -> None:
        """Let torch's optimizer move, at the rates of its own scheduler if it has one."""
        assert self._torch is not None
        groups, bases = self._torch.param_groups, self._base_rates
        if self.scheduler is not None:
            bases, rate = [group["lr"] for group in groups], 1.0
        for group, base, factor in zip(groups, bases, self._group_factors, strict=True):
            group["lr"] = base * factor * rate
        self._torch.step()
        if self.scheduler is not None:
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base
            if not self.follows_metric:
                self.scheduler.step()

    @property
    def follows_metric(self) -> bool:
        """True if torch's scheduler looks at a validation metric: :meth:`observe` tells it."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def observe(self, value: float) -> None:
        """Tell torch's scheduler the monitored metric of an evaluation."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)

    def check_monitor(self, monitor: str) -> None:
        """Refuse a metric that torch's scheduler would improve in the wrong direction."""
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            return
        mode = "max" if is_better(monitor, 1.0, 0.5) else "min"
        if self.scheduler.mode != mode:
            raise ConfigError(
                f"dense: got ReduceLROnPlateau(mode={self.scheduler.mode!r}) where the monitored "
                f"metric is {monitor!r}; make it with mode={mode!r}, or set monitor="
            )

    def _scheduler_state(self) -> Tensor:
        """Return the state of torch's scheduler, and what it changes in groups, as bytes."""
        assert self._torch is not None and self.scheduler is not None
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self._torch.param_groups]
        buffer = io.BytesIO()
        torch.save({"scheduler": self.scheduler.state_dict(), "groups": groups}, buffer)
        return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)

    def _load_scheduler(self, state: Any) -> None:
        assert self._torch is not None and self.scheduler is not None
        stored = torch.load(io.BytesIO(bytes(np.asarray(state))), weights_only=True)
        self.scheduler.load_state_dict(stored["scheduler"])
        for group, values in zip(self._torch.param_groups, stored["groups"], strict=True):
            group.update(values)

    def _check_scheduler(self) -> None:
        """Refuse a scheduler whose state no checkpoint could bring back."""
        try:
            self._load_scheduler(self._scheduler_state())
        except (AttributeError, TypeError, ValueError, pickle.PickleError) as error:
            raise ConfigError(
                f"dense: got the scheduler {type(self.scheduler).__name__}, whose state holds more "
                f"than plain values and tensors ({error}); give it a state_dict of these"
            ) from error

    def restart(self) -> None:
        """Start the optimizer's state anew, after the parameters were set from outside."""
        if self._torch is not None:
            self._torch.state.clear()
        for name, slots in self.state.items():
            for values in slots.values():
                values.zero_()
            if self._ours is not None:
                self._ours.start_state(self.parameters[name].data, slots)

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state, one named tensor each."""
        if self._ours is not None:
            return {
                f"{name}/{slot}": t
                for name, slots in self.state.items()
                for slot, t in slots.items()
            }
        assert self._torch is not None
        names = list(self.parameters)
        tensors = {
            f"{names[index]}/{slot}": torch.as_tensor(value)
            for index, slots in self._torch.state_dict()["state"].items()
            for slot, value in slots.items()
        }
        if self.scheduler is not None:
            tensors[_SCHEDULER] = self._scheduler_state()
        return tensors

    def load_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Take the state :meth:`tensors` returned."""
        if self._ours is not None:
            for key, tensor in self.tensors().items():
                if key not in tensors or tuple(tensors[key].shape) != tuple(tensor.shape):
                    raise CheckpointError(
                        f"optimizer state {key!r} is missing or has another shape; use the same "
                        "optimizer"
                    )
                tensor.copy_(torch.from_numpy(np.array(tensors[key])))
            return
        assert self._torch is not None
        if (_SCHEDULER in tensors) != (self.scheduler is not None):
            has = "a" if _SCHEDULER in tensors else "no"
            raise CheckpointError(
                f"got a checkpoint of a run with {has} scheduler of torch's for the dense part; "
                "make the trainer with the optimizer and scheduler of its run"
            )
        names = list(self.parameters)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key == _SCHEDULER:
                continue
            name, _, slot = key.rpartition("/")
            state.setdefault(names.index(name), {})[slot] = torch.from_numpy(np.array(value))
        self._torch.load_state_dict({**self._torch.state_dict(), "state": state})
        if self.scheduler is not None:
            self._load_scheduler(tensors[_SCHEDULER])


def _torch_optimizer(
    made: object,
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Return what a function of the parameters made: an optimizer, perhaps with a scheduler."""
    optimizer, scheduler = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(optimizer, torch.optim.Optimizer) or not isinstance(
        scheduler, LRScheduler | None
    ):
        raise ConfigError(
            f"got {made!r} from dense=..., expected a torch.optim.Optimizer, or a pair of it and a "
            "scheduler of torch.optim.lr_scheduler; pass a function of the parameters"
        )
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ConfigError(
            "got a scheduler of another optimizer from dense=...; make it with the optimizer that "
            "is returned beside it"
        )
    return optimizer, scheduler


# ---- the standard tower without autograd ---------------------------------------------------------


def fast_mlp(model: WideDeep, precision: Precision, threads: int) -> NativeMLP | TorchMLP | None:
    """Return the fast path if the standard tower is the only one, else None."""
    tower = model.towers["mlp"] if list(model.towers) == ["mlp"] else None
    if type(tower) is not MLPTower or model.numbers is not None:
        return None
    if not all(parameter.requires_grad for parameter in tower.parameters()):
        return None
    output = model.outputs["mlp"]
    trainable = [name for name, p in output.named_parameters() if p.requires_grad]
    if type(output) is not nn.Linear or has_hooks(output) or trainable != ["weight"]:
        return None
    bf16 = precision == "bf16"
    on_cpu = output.weight.device.type == "cpu"
    if on_cpu and (not bf16 or (has_bf16_products() and not has_bf16_tiles())):
        known = tower.training and tower.dense_layers is not None
        return NativeMLP(tower, output, threads=threads, bf16=bf16) if known else None
    return TorchMLP(tower, output, bf16=bf16) if tower.is_plain else None


def _grad_of(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


_LANES = 32  # bfloat16 numbers of a cache line


class TorchMLP:
    """Computes a plain :class:`MLPTower` and its output layer by torch, in bfloat16 if asked.

    The output layer and the sums of biases' gradients are float32 in both.
    """

    def __init__(self, tower: MLPTower, output: nn.Linear, *, bf16: bool = False) -> None:
        assert tower.is_plain
        self.layers = [layer for layer in tower.layers if isinstance(layer, nn.Linear)]
        self.output = output
        self.bf16 = bf16
        # Each layer's weight and bias in bfloat16, filled by every forward pass.
        self._copies = [
            [torch.empty_like(p, dtype=torch.bfloat16) for p in (layer.weight, layer.bias)]
            for layer in (self.layers if bf16 else ())
        ]
        self._weight_grads = [torch.empty_like(weight) for weight, _ in self._copies]
        self._buffers: dict[str, Tensor] = {}
        self._hidden: list[Tensor] = []  # The input of each layer, then the last output
        self._last = torch.empty(0)  # The last output in float32

    def _buffer(self, name: str, like: Tensor, width: int, *, bf16: bool = False) -> Tensor:
        rows, buffer = len(like), self._buffers.get(name)
        if buffer is None or buffer.shape[0] < rows or buffer.shape[1] != width:
            if bf16:
                lanes = -(-width // _LANES) * _LANES
                buffer = torch.zeros(rows, lanes, dtype=torch.bfloat16, device=like.device)
                buffer = buffer[:, :width]
            else:
                buffer = batch_rows(rows, width, like.device)
            self._buffers[name] = buffer
        return buffer[:rows]

    def _converted(self, name: str, tensor: Tensor, *, bf16: bool) -> Tensor:
        """Return a tensor in the other precision, or as it is where all is float32."""
        if not self.bf16:
            return tensor
        return self._buffer(name, tensor, tensor.shape[1], bf16=bf16).copy_(tensor)

    def takes(self, rows: int) -> bool:
        """Return True: it computes every batch, in training or not."""
        return True

    @torch.no_grad()
    def forward(self, concat_BX: Tensor, key: tuple[object, ...] = ()) -> Tensor:
        """Return the logits, (B, C), in a buffer that the next call overwrites."""
        hidden = self._converted("input", concat_BX, bf16=True)
        self._hidden = [hidden]
        for i, layer in enumerate(self.layers):
            parameters: list[Tensor] = [layer.weight, layer.bias]
            if self.bf16:
                for copy, parameter in zip(self._copies[i], parameters, strict=True):
                    copy.copy_(parameter)
                parameters = self._copies[i]
            weight, bias = parameters
            out_BH = self._buffer(f"hidden.{i}", hidden, layer.out_features, bf16=self.bf16)
            torch.addmm(bias, hidden, weight.t(), out=out_BH)
            hidden = out_BH.relu_()
            self._hidden.append(hidden)
        self._last = self._converted("last", hidden, bf16=False)
        logits_BC = self._buffer("logits", hidden, self.output.out_features)
        return torch.mm(self._last, self.output.weight.t(), out=logits_BC)

    @torch.no_grad()
    def backward(self, grad_BC: Tensor) -> Tensor:
        """Write the parameters' gradients into ``.grad``; return the gradient of ``concat_BX``."""
        torch.mm(grad_BC.t(), self._last, out=_grad_of(self.output.weight))
        grad_BH = self._buffer("grad.last", grad_BC, self._last.shape[1])
        torch.mm(grad_BC, self.output.weight, out=grad_BH)
        grad_BH = self._converted("grad.rounded", grad_BH, bf16=True)
        for i in reversed(range(len(self.layers))):
            layer, hidden = self.layers[i], self._hidden[i + 1]
            torch.ops.aten.threshold_backward.grad_input(grad_BH, hidden, 0.0, grad_input=grad_BH)
            weight: Tensor = layer.weight
            weight_grad = _grad_of(layer.weight)
            if self.bf16:
                weight, weight_grad = self._copies[i][0], self._weight_grads[i]
            torch.mm(grad_BH.t(), self._hidden[i], out=weight_grad)
            if self.bf16:
                _grad_of(layer.weight).copy_(weight_grad)
            torch.sum(grad_BH, dim=0, dtype=torch.float32, out=_grad_of(layer.bias))
            inputs_BH = self._buffer(f"grad.{i}", grad_BC, layer.in_features, bf16=self.bf16)
            grad_BH = torch.mm(grad_BH, weight, out=inputs_BH)
        return self._converted("grad.input", grad_BH, bf16=False)

    def finish(self) -> None:
        """Do nothing: :meth:`backward` leaves nothing under way."""


_CPU = torch.device("cpu")


class NativeMLP:
    """Computes an :class:`MLPTower` and its output layer by the native tower, in training."""

    def __init__(
        self, tower: MLPTower, output: nn.Linear, *, threads: int = 1, bf16: bool = False
    ) -> None:
        self.threads = threads
        self.bf16 = bf16
        hidden = tower.dense_layers
        assert hidden is not None
        self._tower, self._modules, self._dropout = tower, list(tower.modules()), tower.drop.p
        self._layers = [*hidden, DenseLayer(output)]
        self._parameters = [p for layer in self._layers for p in layer.parameters]
        self._has_norms = tower.norms is not None
        self._drops = any(layer.dropout for layer in hidden)
        self._room: TowerRoom | None = None
        self._native_tower: Tower | None = None
        self._addresses: tuple[int, ...] = ()
        self._running: TowerGradients | None = None
        self._logits = self._grad_logits = self._grad_BX = torch.empty(0)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the native tower, which is made again for the next batch."""
        return {**self.__dict__, "_native_tower": None}

    def takes(self, rows: int) -> bool:
        """Tell whether it computes a batch of this size: its modules are as they were."""
        return (
            (rows > 1 or not self._has_norms)
            and self._tower.drop.p == self._dropout
            and all(module.training for module in self._modules)
        )

    @property
    def drops(self) -> bool:
        """Whether units are dropped, by the key of :meth:`forward`."""
        return self._drops

    def tower(self, concat_BX: Tensor) -> Tower:
        """Return the arrays for a batch: those of the last one if nothing changed its address."""
        addresses = (
            len(concat_BX), concat_BX.data_ptr(), concat_BX.stride(0),
            *(p.data_ptr() for p in self._parameters),
            *(0 if p.grad is None else p.grad.data_ptr() for p in self._parameters),
        )  # fmt: skip
        if self._native_tower is None or addresses != self._addresses:
            self._addresses, self._native_tower = addresses, self._make_arrays(concat_BX)
        return self._native_tower

    def _make_arrays(self, concat_BX: Tensor) -> Tower:
        rows = len(concat_BX)
        if self._room is None or rows > self._room.rows:
            self._room = TowerRoom(self._layers, rows, _make_rows)
        room = self._room
        self._logits, self._grad_logits = room.outputs[-1][:rows], room.grads[-1][:rows]
        self._grad_BX = room.grad_input[:rows]
        gradients = [_grad_of(parameter) for parameter in self._parameters]
        return make_tower(concat_BX, room, gradients, bf16=self.bf16)

    def forward(self, concat_BX: Tensor, key: tuple[object, ...] = ()) -> Tensor:
        """Return the logits, (B, C), in a buffer that the next call overwrites.

        What is dropped is a function of ``key``, the layer, the row and the unit.
        """
        self.finish()
        tower = self.tower(concat_BX)
        tower.forward(self.threads, seed_of(*key) if self._drops else 0)
        self.count_batches(1)
        return self._logits

    def count_batches(self, batches: int) -> None:
        """Do what norms do in training beside their running figures."""
        if self._has_norms:
            count_batch(self._layers, batches)

    def backward(self, grad_BC: Tensor) -> Tensor:
        """Return the gradient of ``concat_BX``; ``finish`` leaves the parameters' in ``.grad``."""
        assert self._native_tower is not None
        self._grad_logits.copy_(grad_BC)
        self._running = self._native_tower.backward(self.threads)
        return self._grad_BX

    def backward_rows(self, grad_BC: Tensor) -> Tensor:
        """Return the gradient of ``concat_BX``, but leave the parameters' to :meth:`sum_rows`."""
        assert self._native_tower is not None
        self._grad_logits.copy_(grad_BC)
        self._native_tower.backward_rows(self.threads)
        return self._grad_BX

    def sum_rows(self, first: int, last: int) -> None:
        """Compute the gradients of the parameters over some examples; ``finish`` leaves them."""
        assert self._native_tower is not None
        self.finish()
        self._running = self._native_tower.gradients(first, last, self.threads)

    def finish(self) -> None:
        """Wait for the gradients that were left to other threads."""
        if self._running is not None:
            self._running.wait()
            self._running = None


def _make_rows(rows: int, width: int) -> Tensor:
    return batch_rows(rows, width, _CPU)


# ---- precision -----------------------------------------------------------------------------------

_CPU_INFO = Path("/proc/cpuinfo")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Turn ``"auto"`` into what suits the processor: the same on every run on it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_fast_bf16(_read_cpu_info()) else "fp32"


def has_fast_bf16(cpu_info: str) -> bool:
    r"""Tell whether a processor multiplies in bfloat16 faster than in float32."""
    vendor, flags = _vendor_and_flags(cpu_info)
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def has_bf16_tiles() -> bool:
    """Tell whether this processor has AMX, which torch's products use and our kernels do not."""
    return "amx_bf16" in _vendor_and_flags(_read_cpu_info())[1]


def _vendor_and_flags(cpu_info: str) -> tuple[str, list[str]]:
    lines = dict(re.findall(r"^(vendor_id|flags)\s*:\s*(.*)$", cpu_info, re.MULTILINE))
    return lines.get("vendor_id", ""), lines.get("flags", "").split()


def _read_cpu_info() -> str:
    try:
        return _CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return ""
