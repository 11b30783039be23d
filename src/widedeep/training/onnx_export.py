"""Custom towers as an ONNX graph, from the gathered deep input to their part of the logits."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from widedeep.deep import DeepInput
from widedeep.errors import BundleError
from widedeep.model import WideDeep


class _Towers(nn.Module):
    """A model's towers as a module of plain tensors."""

    def __init__(self, model: WideDeep) -> None:
        super().__init__()
        self.towers = model.towers
        self.outputs = model.outputs
        self._model = [model]  # in a list: not a submodule

    def forward(self, concat_BX: Tensor, *extra: Tensor) -> Tensor:
        """Return the towers' part of the logits, (B, C)."""
        model = self._model[0]
        inputs = DeepInput(
            concat_BX=concat_BX,
            layout=model.layout.columns,
            dense_BK=concat_BX[:, model.layout.dense],
            extra=dict(zip(model.layout.extra, extra, strict=True)),
        )
        logits_BC = model.deep_logits(inputs)
        assert logits_BC is not None
        return logits_BC


def tower_graph(model: WideDeep) -> bytes:
    """Return the towers of a model as a serialised ONNX graph."""
    names = ", ".join(repr(name) for name in model.towers)
    if model.layout.sequences:
        raise BundleError(
            f"towers {names} read the sequences {list(model.layout.sequences)}, which a bundle "
            "cannot hold; "
            "pool them (combiner='mean'), or serve the model from its checkpoint"
        )
    example = model._empty_input(2)
    arguments = (example.concat_BX, *example.extra.values())
    inputs = ["concat_BX", *(f"extra/{name}" for name in model.layout.extra)]
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Towers(model).eval(),
                arguments,
                buffer,  # type: ignore[arg-type]  # this exporter takes files too
                input_names=inputs,
                output_names=["logits_BC"],
                dynamic_axes={name: {0: "B"} for name in [*inputs, "logits_BC"]},
                dynamo=False,
            )
    except ImportError as error:
        raise BundleError(
            f"exporting towers {names} needs ONNX; run: pip install 'widedeep[onnx]'"
        ) from error
    except Exception as error:
        raise BundleError(f"towers {names} cannot be exported to ONNX: {error}") from error
    return buffer.getvalue()
