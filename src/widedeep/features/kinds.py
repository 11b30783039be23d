"""The kinds of features."""

from __future__ import annotations

from widedeep.features.bucketized import Bucketized
from widedeep.features.categorical import Categorical
from widedeep.features.crossed import Crossed
from widedeep.features.numeric import Numeric

Feature = Numeric | Categorical | Bucketized | Crossed
