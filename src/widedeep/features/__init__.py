"""The one declaration of features: what training, evaluation and serving all read.

A :class:`FeatureSpec` lists features by name. It holds no data: vocabularies and quantiles are
learned from it by :func:`widedeep.fit_schema` and live in a :class:`widedeep.Schema`.
"""

from widedeep.features.bucketized import Bucketized, bucketized
from widedeep.features.categorical import Categorical, categorical
from widedeep.features.crossed import Crossed, crossed
from widedeep.features.embedding import EmbeddingOptions
from widedeep.features.encoding import (
    BucketEncoding,
    CountEncoding,
    CrossEncoding,
    Encoding,
    NumberEncoding,
    PiecewiseEncoding,
    ValueEncoding,
)
from widedeep.features.id_map import IdMap
from widedeep.features.indicator import Indicator, indicator
from widedeep.features.kind import (
    Combiner,
    Feature,
    Learned,
    NumberInput,
    PeriodicEmbedding,
    SchemaChange,
    ValueInput,
    WeightInput,
    register_kind,
)
from widedeep.features.numbers import NumberSummary
from widedeep.features.numeric import Numeric, numeric
from widedeep.features.spec import FeatureSpec

__all__ = [
    "BucketEncoding",
    "Bucketized",
    "Categorical",
    "Combiner",
    "CountEncoding",
    "CrossEncoding",
    "Crossed",
    "EmbeddingOptions",
    "Encoding",
    "Feature",
    "FeatureSpec",
    "IdMap",
    "Indicator",
    "Learned",
    "NumberEncoding",
    "NumberInput",
    "NumberSummary",
    "Numeric",
    "PeriodicEmbedding",
    "PiecewiseEncoding",
    "SchemaChange",
    "ValueEncoding",
    "ValueInput",
    "WeightInput",
    "bucketized",
    "categorical",
    "crossed",
    "indicator",
    "numeric",
    "register_kind",
]
