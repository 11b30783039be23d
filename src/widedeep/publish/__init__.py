"""Publishing: what passed the gate becomes the next version in a directory that servers follow."""

from widedeep.publish.continuous import Attempt, LivePublisher
from widedeep.publish.lineage import PublishedVersion, read_lineage
from widedeep.publish.publishing import publish
from widedeep.publish.record import PublishRecord
from widedeep.publish.service import bundle_in_service

__all__ = [
    "Attempt",
    "LivePublisher",
    "PublishRecord",
    "PublishedVersion",
    "bundle_in_service",
    "publish",
    "read_lineage",
]
