"""The one declaration of features: what training, evaluation and serving all read.

A :class:`FeatureSpec` lists features by name. It holds no data: vocabularies and quantiles are
learned from it by :func:`widedeep.fit_schema` and live in a :class:`widedeep.Schema`.
"""

from widedeep.features.kinds import (
    Bucketized,
    Categorical,
    Combiner,
    Crossed,
    Feature,
    Numeric,
    bucketized,
    categorical,
    crossed,
    numeric,
)
from widedeep.features.spec import FeatureSpec

__all__ = [
    "Bucketized",
    "Categorical",
    "Combiner",
    "Crossed",
    "Feature",
    "FeatureSpec",
    "Numeric",
    "bucketized",
    "categorical",
    "crossed",
    "numeric",
]
