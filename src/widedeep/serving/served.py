"""A version while it serves: who holds it, what it answers, how it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeAlias

from widedeep.errors import WideDeepError
from widedeep.serving.private_copies import PrivateCopy
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.shadow import AnsweredRequest, ShadowScoring
from widedeep.serving.versions import Signature

VersionState: TypeAlias = Literal["available", "loading", "ready", "failed", "unloading"]


class NoVersion(WideDeepError):
    """No version can answer: none is loaded, or not the one that was asked for."""


class OrderPending(WideDeepError):
    """An operator's order is written, and not followed yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionStatus:
    """A version, as the status endpoint tells it."""

    version: str  # Its name
    state: VersionState  # ``"available"`` stands for: it is there, and nobody wants it loaded
    error: str | None = None  # Why it, or the newer copy of it in its directory, did not load
    labels: tuple[str, ...] = ()  # That it bears; ``"stable"`` where it takes the traffic
    catalogue_version: str | None = None  # Of the items it serves
    catalogue_error: str | None = None  # Why the newest catalogue did not load
    loaded_at: float | None = None  # Seconds since 1970
    load_s: float | None = None  # How long loading took
    requests: int = 0  # That it has answered since it was loaded
    in_use: int = 0  # Leases not yet given back


class LoadedVersion:
    """A loaded copy of a version, and how many requests use it."""

    def __init__(
        self,
        name: str,
        ranker: Ranker,
        files: Signature,
        items: Signature,
        load_s: float,
        copy: PrivateCopy | None = None,
    ) -> None:
        self.name, self.ranker, self.files, self.items = name, ranker, files, items
        self.loaded_at, self.load_s = time.time(), load_s
        self.catalogue_error: str | None = None
        # When its catalogue is read again though the file has not changed, by the monotonic clock.
        self.items_again_at = float("inf")
        self.requests = self.in_use = 0
        self._copy = copy
        # What the native server made of it, and the requests that it answered without a lease.
        self.native: object = None
        self.native_requests = 0

    def free(self) -> None:
        """Let go of the ranker; nobody may use this version any more."""
        self.native = None
        del self.ranker
        if self._copy is not None:
            self._copy.close()


class Served:
    """The version that answers one request, as long as its lease is held."""

    __slots__ = ("_shadow", "label", "ranker", "version")

    def __init__(
        self, version: str, ranker: Ranker, label: str | None, shadow: ShadowScoring | None
    ) -> None:
        self.version, self.ranker, self.label = version, ranker, label
        self._shadow = shadow

    def rank(
        self,
        user: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        candidates: Any = (),
        *,
        k: int | None = None,
        explain: bool = False,
        head: str | None = None,
    ) -> Ranking:
        """Rank as :meth:`widedeep.serving.ranker.Ranker.rank` does; the shadow follows later."""
        ranking = self.ranker.rank(user, context, candidates, k=k, explain=explain, head=head)
        if self._shadow is not None:
            request = AnsweredRequest(user, context, candidates, head, ranking, self.ranker)
            self._shadow.offer(request)
        return ranking


class Lease:
    """Keeps a version alive for one request; made by :meth:`widedeep.serving.Registry.lease`."""

    __slots__ = ("_give_back", "_held", "_take")

    def __init__(
        self,
        take: Callable[[], tuple[LoadedVersion, Served]],
        give_back: Callable[[LoadedVersion], None],
    ) -> None:
        self._take, self._give_back = take, give_back
        self._held: LoadedVersion | None = None

    def __enter__(self) -> Served:
        self._held, served = self._take()
        return served

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._give_back(held)
