"""Callbacks: what a trainer calls while it trains, and where its figures go."""

from widedeep.callbacks.base import Callback, LambdaCallback
from widedeep.callbacks.control import ModelCheckpoint, OptunaPruning
from widedeep.callbacks.loggers import CSVLog, MLflow, TensorBoard, WandB

__all__ = [
    "CSVLog",
    "Callback",
    "LambdaCallback",
    "MLflow",
    "ModelCheckpoint",
    "OptunaPruning",
    "TensorBoard",
    "WandB",
]
