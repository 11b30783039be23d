"""The artefact: a directory that holds a trained model and all it takes to score with it.

:func:`write_bundle` writes one, :meth:`Bundle.load` reads it back, without torch and without
pickle. Nothing here imports torch.
"""

from widedeep.bundle.bundle import Bundle
from widedeep.bundle.calibration import Calibration, Isotonic, Platt, PriorCorrection
from widedeep.bundle.explain import Explanation, WideTerm
from widedeep.bundle.layout import BundleHead, BundleModel, BundleSequence, DeepColumn
from widedeep.bundle.manifest import FORMAT_VERSION, Engine, FileEntry, Manifest
from widedeep.bundle.mlflow_model import load_mlflow_model, log_mlflow_model, save_mlflow_model
from widedeep.bundle.onnx_model import export_onnx, onnx_inputs
from widedeep.bundle.write import write_bundle

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "BundleHead",
    "BundleModel",
    "BundleSequence",
    "Calibration",
    "DeepColumn",
    "Engine",
    "Explanation",
    "FileEntry",
    "Isotonic",
    "Manifest",
    "Platt",
    "PriorCorrection",
    "WideTerm",
    "export_onnx",
    "load_mlflow_model",
    "log_mlflow_model",
    "onnx_inputs",
    "save_mlflow_model",
    "write_bundle",
]
