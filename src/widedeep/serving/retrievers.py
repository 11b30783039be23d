"""Retrievers: for each ranker, how candidates are found in its catalogue."""

from __future__ import annotations

import threading
import weakref

from widedeep.errors import RequestError
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.ranker import Ranker
from widedeep.serving.retrieval import Retriever, item_vectors


class Retrievers:
    """Makes a retriever when a ranker, or its new catalogue, is first asked for one."""

    def __init__(self, popularity: str | None = None, category: str | None = None) -> None:
        self._popularity, self._category = popularity, category
        self._made: weakref.WeakKeyDictionary[Ranker, tuple[Catalogue, Retriever]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def of(self, ranker: Ranker) -> Retriever:
        """Return the retriever of a ranker's catalogue and embeddings."""
        catalogue = ranker.catalogue
        if catalogue is None:
            raise RequestError("n", "got no catalogue to find candidates in; serve with --items")
        with self._lock:
            found = self._made.get(ranker)
            if found is None or found[0] is not catalogue:
                found = catalogue, self._retriever(ranker, catalogue)
                self._made[ranker] = found
        return found[1]

    def _retriever(self, ranker: Ranker, catalogue: Catalogue) -> Retriever:
        return Retriever.of(
            catalogue.table,
            id_column=catalogue.id_column,
            popularity=self._popularity,
            category=self._category,
            vectors_ND=item_vectors(ranker.bundle, catalogue.id_column, catalogue.ids),
        )
