"""The gate between training and serving: may this model take the traffic?

:func:`validate` tries a bundle in a fresh process, compares it with the model in service on recent
data, and looks for drift; the :class:`Verdict` gives every reason. Nothing here imports torch.
"""

from widedeep.gate.config import GateConfig, load_gate_config
from widedeep.gate.validation import validate
from widedeep.gate.verdict import Verdict, bundle_identity, verdict_path

__all__ = [
    "GateConfig",
    "Verdict",
    "bundle_identity",
    "load_gate_config",
    "validate",
    "verdict_path",
]
