"""The one declaration of features: what training, evaluation and serving all read.

A :class:`FeatureSpec` lists features by name. It holds no data: vocabularies and quantiles are
learned from it by :func:`widedeep.fit_schema` and live in a :class:`widedeep.Schema`.
"""

from widedeep.features.bucketized import Bucketized, bucketized
from widedeep.features.categorical import Categorical, categorical
from widedeep.features.crossed import Crossed, crossed
from widedeep.features.embedding import EmbeddingOptions
from widedeep.features.id_map import IdMap
from widedeep.features.kind import (
    BucketEncoding,
    Combiner,
    CrossEncoding,
    Encoding,
    Feature,
    Learned,
    NumberEncoding,
    NumberInput,
    PeriodicEmbedding,
    PiecewiseEncoding,
    SchemaChange,
    ValueEncoding,
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
    "CrossEncoding",
    "Crossed",
    "EmbeddingOptions",
    "Encoding",
    "Feature",
    "FeatureSpec",
    "IdMap",
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
    "numeric",
    "register_kind",
]
