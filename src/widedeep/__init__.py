"""Wide & Deep ranking: one declaration of features, one transform, one artefact.

The public names load when they are first used, so that ``import widedeep`` costs next to nothing
and a process that only scores never imports torch.

Example:
    >>> import widedeep as wd
    >>> wd.crossed("education", "occupation").name
    'education_x_occupation'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from widedeep._version import __version__ as __version__

if TYPE_CHECKING:
    from widedeep import callbacks as callbacks
    from widedeep.bundle import Bundle
    from widedeep.config import load_config
    from widedeep.data.fit import fit_schema
    from widedeep.data.infer import infer_spec
    from widedeep.data.reuse import reuse_inputs
    from widedeep.errors import WideDeepError
    from widedeep.estimators import WideDeepClassifier, WideDeepRegressor
    from widedeep.features import (
        FeatureSpec,
        bucketized,
        categorical,
        crossed,
        indicator,
        numeric,
    )
    from widedeep.join import join_actions
    from widedeep.models.wide_deep import WideDeep
    from widedeep.optim import FTRL, SGD, Adagrad, Adam, RMSProp
    from widedeep.report import make_report
    from widedeep.schema import Schema
    from widedeep.serving.catalogue import Catalogue
    from widedeep.serving.ranker import Ranker
    from widedeep.training.early_stopping import EarlyStopping
    from widedeep.training.trainer import Trainer
    from widedeep.tuning import tune

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Bundle",
    "Catalogue",
    "EarlyStopping",
    "FeatureSpec",
    "RMSProp",
    "Ranker",
    "Schema",
    "Trainer",
    "WideDeep",
    "WideDeepClassifier",
    "WideDeepError",
    "WideDeepRegressor",
    "bucketized",
    "categorical",
    "crossed",
    "fit_schema",
    "indicator",
    "infer_spec",
    "join_actions",
    "load_config",
    "make_report",
    "numeric",
    "reuse_inputs",
    "tune",
]

_MODULE_OF = {
    "FTRL": "optim",
    "SGD": "optim",
    "Adagrad": "optim",
    "Adam": "optim",
    "Bundle": "bundle",
    "Catalogue": "serving.catalogue",
    "EarlyStopping": "training.early_stopping",
    "FeatureSpec": "features",
    "RMSProp": "optim",
    "Ranker": "serving.ranker",
    "Schema": "schema",
    "Trainer": "training.trainer",
    "WideDeep": "models.wide_deep",
    "WideDeepClassifier": "estimators",
    "WideDeepError": "errors",
    "WideDeepRegressor": "estimators",
    "bucketized": "features",
    "categorical": "features",
    "crossed": "features",
    "fit_schema": "data.fit",
    "indicator": "features",
    "infer_spec": "data.infer",
    "join_actions": "join",
    "load_config": "config",
    "make_report": "report",
    "numeric": "features",
    "reuse_inputs": "data.reuse",
    "tune": "tuning",
}
_MODULES = ("callbacks",)  # Modules that need no import of their own


def __getattr__(name: str) -> object:
    """Load a public name from its module, on first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"widedeep.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'widedeep' has no attribute {name!r}")
    from widedeep import errors

    with errors.extra_imports():
        value = getattr(importlib.import_module(f"widedeep.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
