"""Serving: ranked lists from an exported bundle. Nothing here imports torch."""

from widedeep.serving.catalogue import Catalogue
from widedeep.serving.ranker import Ranker, Ranking

__all__ = ["Catalogue", "Ranker", "Ranking"]
