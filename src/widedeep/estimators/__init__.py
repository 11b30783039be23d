"""scikit-learn estimators over the same parts: spec, schema, model, trainer."""

from widedeep.estimators.classifier import WideDeepClassifier
from widedeep.estimators.regressor import WideDeepRegressor

__all__ = ["WideDeepClassifier", "WideDeepRegressor"]
