"""The one declaration of features: what training, evaluation and serving all read.

A :class:`FeatureSpec` lists features by name. It holds no data: vocabularies and quantiles are
learned from it by :func:`widedeep.fit_schema` and live in a :class:`widedeep.Schema`.
"""

from widedeep.features.bucketized import Bucketized, bucketized
from widedeep.features.categorical import Categorical, categorical
from widedeep.features.crossed import Crossed, crossed
from widedeep.features.kind import Combiner
from widedeep.features.kinds import Feature
from widedeep.features.numeric import Numeric, numeric
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
