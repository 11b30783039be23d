"""Publishing: what passed the gate becomes the next version in a directory that servers follow."""

from widedeep.publish.lineage import PublishedVersion, read_lineage
from widedeep.publish.publishing import publish
from widedeep.publish.record import PublishRecord

__all__ = ["PublishRecord", "PublishedVersion", "publish", "read_lineage"]
