"""Native impressions: the queue of answered requests, and their rows as Parquet."""

from __future__ import annotations

from widedeep._native import ImpressionFile as ImpressionFile
from widedeep._native import ImpressionQueue as ImpressionQueue
from widedeep._native import LogShape as LogShape
