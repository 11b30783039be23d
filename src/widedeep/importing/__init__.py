"""Models of other libraries, read without them and carried over.

Example:
    >>> from widedeep import importing
    >>> importing.from_estimator("export/1700000000", checkpoint="model_dir")
    Traceback (most recent call last):
        ...
    widedeep.errors.CheckpointError: export/1700000000: got no SavedModel (saved_model.pb), expected
    what estimator.export_saved_model wrote; a checkpoint alone does not say what its rows stand
    for: name a configuration that does (spec=, --spec)
"""

from widedeep.importing.estimator import ImportedModel, from_estimator
from widedeep.importing.feature_columns import from_feature_columns
from widedeep.importing.tensor_bundle import StoredTensor, TensorBundle
from widedeep.importing.weights import ImportedTensor

__all__ = [
    "ImportedModel",
    "ImportedTensor",
    "StoredTensor",
    "TensorBundle",
    "from_estimator",
    "from_feature_columns",
]
