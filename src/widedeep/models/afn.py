"""AFN: products of powers of fields, whose exponents are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError
from widedeep.kernels.torch_blocks import exp_norm
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.blocks import has_hooks
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count, Widths

_LEAST = 1e-7  # of an embedding's magnitude, before the logarithm


class LogNeurons(nn.Module):
    """Products of powers of fields: ``exp(norm(ln |v|) w_j)``, normalised.

    Both norms are batch norms, of each field's logarithms and of each neuron's products.

    Shape:
        (B, F, D) -> (B, J, D)
    """

    def __init__(self, n_fields: int, neurons: int) -> None:
        super().__init__()
        self.field_norm = nn.BatchNorm1d(n_fields)
        self.exponents_JF = nn.Parameter(torch.empty(neurons, n_fields))
        self.neuron_norm = nn.BatchNorm1d(neurons)
        nn.init.xavier_normal_(self.exponents_JF)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the products, (B, J, D)."""
        logs_BFD = self.field_norm(fields_BFD.abs().clamp(min=_LEAST).log())
        if runs_native(logs_BFD) and self._is_standard and len(logs_BFD):
            return self._products(logs_BFD)
        sums_BJD = torch.matmul(self.exponents_JF, logs_BFD)
        products_BJD: Tensor = self.neuron_norm(sums_BJD.exp())
        return products_BJD

    @property
    def _is_standard(self) -> bool:
        """True if the neurons' norm does what our kernel does in training."""
        norm = self.neuron_norm
        return norm.training and norm.affine and norm.momentum is not None and not has_hooks(norm)

    def _products(self, logs_BFD: Tensor) -> Tensor:
        """Return the products, and move the norm's averages."""
        norm, logs_BDF = self.neuron_norm, logs_BFD.transpose(1, 2).contiguous()
        products_BJD, mean_J, variance_J = exp_norm(
            logs_BDF, self.exponents_JF, norm.weight, norm.bias, norm.eps
        )
        if norm.running_mean is not None and norm.running_var is not None:
            assert norm.momentum is not None and norm.num_batches_tracked is not None
            count = logs_BFD.shape[0] * logs_BFD.shape[2]
            norm.running_mean.lerp_(mean_J, norm.momentum)
            norm.running_var.lerp_(variance_J * (count / max(count - 1, 1)), norm.momentum)
            norm.num_batches_tracked += 1
        return products_BJD


class AFNTower(nn.Module):
    """Hidden layers over logarithmic neurons; beside them, others over embeddings of their own.

    Shape:
        DeepInput -> features (B, width)
    """

    def __init__(self, layout: DeepLayout, config: AFN) -> None:
        super().__init__()
        self.dim, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
        self.n_powers = self.dim
        self.beside = None
        if config.beside_units:
            if self.dim % 2:
                raise ConfigError(
                    f"tower {config.name!r}: got embeddings of width {self.dim}, expected an even "
                    "one: with beside_units each part reads half of it; change embedding_dim"
                )
            self.n_powers //= 2
            beside = n_fields * self.n_powers + layout.numbers
            self.beside = config.hidden_layers(beside, config.beside_units)
        self.neurons = LogNeurons(n_fields, config.log_neurons)
        self.hidden = config.hidden_layers(config.log_neurons * self.n_powers)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, or both side by side."""
        fields_BFD = inputs.fields_BFD(self.dim)
        hidden_BH: Tensor = self.hidden(self.neurons(fields_BFD[:, :, : self.n_powers]).flatten(1))
        if self.beside is None:
            return hidden_BH
        own_BX = torch.cat([fields_BFD[:, :, self.n_powers :].flatten(1), inputs.dense_BK], dim=1)
        return torch.cat([hidden_BH, self.beside(own_BX)], dim=1)


@register_tower
class AFN(HiddenConfig):
    """Interactions of learned order (Cheng et al. 2020, *Adaptive Factorization Network*).

    Equation: ``y_j = exp(sum_i w_ij ln |v_i|) = prod_i |v_i|^(w_ij)`` for each neuron j (its
    equations 6 and 7), then hidden layers over all y_j. Where the paper leaves batch norm open, it
    is the authors' code's and FuxiCTR's: of each field's logarithms and of each neuron. AFN+ is
    ``beside_units``: a perceptron that reads embeddings of its own, which are the second half of
    each embedding here, and the numbers; AFN reads no numbers unless they have an embedding.

    Args:
        log_neurons: Number of logarithmic neurons.
        hidden_units: Width of each hidden layer over the neurons, at least one.
        beside_units: Width of each hidden layer of the perceptron beside; empty for none.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer too.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1] + beside_units[-1]); embeddings of one width D
    """

    name = "afn"
    network = AFNTower
    log_neurons: Count = 256
    beside_units: Widths = ()
