"""Updates of the dense parameters: by our optimizers, or by any of torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from widedeep.errors import CheckpointError, ConfigError
from widedeep.optim import Optimizer

_LARGE = 1 << 15  # numbers from which an update is worth waking another thread
_WIDTH = 256  # of the flat tensors' rows, which threads share out
_LINE = 16  # floats of a cache line

DenseOptimizer = Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class DenseUpdate:
    """Applies gradients to a model's dense parameters."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: DenseOptimizer,
        *,
        clip_norm: float | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.clip_norm = clip_norm
        self._ours: Optimizer | None = None
        self._torch: torch.optim.Optimizer | None = None
        self._base_rates: list[float] = []
        self.state: dict[str, dict[str, Tensor]] = {}
        self._views: dict[str, tuple[nn.Parameter, int, Tensor]] = {}
        self._flat: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None
        # One of one's own may look at a parameter as a whole, at its norm for one.
        self._at_once = (
            clip_norm is None
            and isinstance(optimizer, Optimizer)
            and optimizer.by_kernels
            and type(optimizer).update_dense is Optimizer.update_dense
        )
        if isinstance(optimizer, Optimizer):
            self._ours = optimizer
            self._flatten(optimizer)
        else:
            made = optimizer(list(self.parameters.values()))
            if not isinstance(made, torch.optim.Optimizer):
                raise ConfigError(
                    f"got {made!r} from dense=..., expected a torch.optim.Optimizer; pass a "
                    "function of the parameters"
                )
            self._torch = made
            self._base_rates = [group["lr"] for group in made.param_groups]

    @torch.no_grad()
    def _flatten(self, optimizer: Optimizer) -> None:
        """Lay the parameters, their gradients and their state side by side."""
        sizes = [-(-p.numel() // _LINE) * _LINE for p in self.parameters.values()]
        rows = max(1, -(-sum(sizes) // _WIDTH))
        like = next(iter(self.parameters.values()), torch.empty(0))
        flat = torch.zeros(rows, _WIDTH, device=like.device)
        grads = torch.zeros_like(flat)
        state = optimizer.initial_state(flat)
        at = 0
        for (name, parameter), size in zip(self.parameters.items(), sizes, strict=True):

            def part(whole: Tensor, at: int = at, parameter: nn.Parameter = parameter) -> Tensor:
                return whole.view(-1)[at : at + parameter.numel()].view(parameter.shape)

            part(flat).copy_(parameter)
            parameter.data = part(flat)
            self._views[name] = (parameter, parameter.data_ptr(), part(grads))
            parameter.grad = part(grads)
            self.state[name] = {slot: part(values) for slot, values in state.items()}
            at += size
            optimizer.start_state(parameter.data, self.state[name])
        self._flat = (flat, grads, state)

    @property
    def is_ours(self) -> bool:
        """True if the state lies in tensors of our own, which are always the same ones."""
        return self._ours is not None

    def _collect(self) -> bool:
        """Bring every gradient to its place; False where one is missing, or a parameter moved."""
        for parameter, address, place in self._views.values():
            grad = parameter.grad
            if grad is None or parameter.data_ptr() != address:
                return False
            if grad.data_ptr() != place.data_ptr():
                place.copy_(grad)
        return True

    @torch.no_grad()
    def apply(self, *, scale: float, rate: float, step: int, threads: int = 1) -> None:
        """Move every parameter along its ``.grad`` and clear nothing."""
        if self._flat is not None and self._ours is not None and self._at_once:
            flat, grads_of_all, state = self._flat
            if self._collect():
                lr, share = self._ours.scheduled(rate)
                self._ours.update_rows(
                    flat, state, None, grads_of_all,
                    lr=lr, grad_scale=scale * share, step=step,
                    threads=threads if flat.numel() >= _LARGE else 1,
                )  # fmt: skip
                return
        moved = {name: p for name, p in self.parameters.items() if p.grad is not None}
        grads = [p.grad for p in moved.values() if p.grad is not None]
        if scale != 1.0 and grads and (self._ours is None or self.clip_norm is not None):
            torch._foreach_mul_(grads, scale)
            scale = 1.0
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(moved.values()), self.clip_norm)
        if self._ours is not None:
            lr, share = self._ours.scheduled(rate)
            for (name, parameter), grad in zip(moved.items(), grads, strict=True):
                self._ours.update_dense(
                    parameter.detach(), grad, self.state[name], lr=lr,
                    grad_scale=scale * share, step=step,
                    threads=threads if grad.numel() >= _LARGE else 1,
                )  # fmt: skip
        elif self._torch is not None:
            for group, base in zip(self._torch.param_groups, self._base_rates, strict=True):
                group["lr"] = base * rate
            self._torch.step()

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
        found: dict[str, Tensor] = {}
        for index, slots in self._torch.state_dict()["state"].items():
            for slot, value in slots.items():
                found[f"{names[index]}/{slot}"] = torch.as_tensor(value)
        return found

    def load_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Take the state :meth:`tensors` returned."""
        if self._ours is not None:
            for key, held in self.tensors().items():
                if key not in tensors or tuple(tensors[key].shape) != tuple(held.shape):
                    raise CheckpointError(
                        f"optimizer state {key!r} is missing or has another shape; use the same "
                        "optimizer"
                    )
                held.copy_(torch.from_numpy(np.array(tensors[key])))
            return
        assert self._torch is not None
        names = list(self.parameters)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            state.setdefault(names.index(name), {})[slot] = torch.from_numpy(np.array(value))
        self._torch.load_state_dict({**self._torch.state_dict(), "state": state})
