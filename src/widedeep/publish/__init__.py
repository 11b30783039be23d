"""Publishing: adds models that passed the gate to a directory of versions that servers follow."""

from widedeep.publish.continuous import Candidate, ContinuousPublisher
from widedeep.publish.lineage import PublishedVersion, read_lineage
from widedeep.publish.publishing import PublishRecord, publish
from widedeep.publish.storage import bundle_in_service

__all__ = [
    "Candidate",
    "ContinuousPublisher",
    "PublishRecord",
    "PublishedVersion",
    "bundle_in_service",
    "publish",
    "read_lineage",
]
