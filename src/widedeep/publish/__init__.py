"""Publishing: what passed the gate becomes the next version in a directory that servers follow."""

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
