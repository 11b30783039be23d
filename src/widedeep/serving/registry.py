"""Registry: the versions of a model in a directory, loaded, swapped and freed while it serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from widedeep.errors import ConfigError, nearest
from widedeep.remote import is_url, local_path
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.catalogue import ROWS_DIRECTORY, SharedRows
from widedeep.serving.exploration import Exploration
from widedeep.serving.loading import PrivateCopies, default_cache
from widedeep.serving.ranker import MAX_VALUES, Ranker, Ranking
from widedeep.serving.remote_models import RemoteModels
from widedeep.serving.shadow import AnsweredRequest, ShadowReport, ShadowScoring
from widedeep.serving.version_watcher import Routes, VersionWatcher
from widedeep.serving.versions import (
    Latest,
    LoadedVersion,
    NoVersion,
    OrderPending,
    Policy,
    RegistryOptions,
    ServingState,
    Specific,
    VersionState,
    VersionStatus,
    change_state,
    check_loads,
    check_version,
    is_canary_request,
    roll_back,
    state_path,
)

__all__ = [
    "Latest",
    "NoVersion",
    "OrderPending",
    "Registry",
    "RegistryOptions",
    "Served",
    "ShadowReport",
    "Specific",
    "VersionStatus",
]


class Served:
    """The version that answers one request; valid until its lease ends."""

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
        request_id: str | None = None,
    ) -> Ranking:
        """Rank as :meth:`widedeep.serving.ranker.Ranker.rank` does; the shadow follows later."""
        ranking = self.ranker.rank(
            user, context, candidates, k=k, explain=explain, head=head, request_id=request_id
        )
        if self._shadow is not None:
            request = AnsweredRequest(
                user, context, candidates, head, ranking, self.ranker, request_id
            )
            self._shadow.offer(request)
        return ranking


class Registry:
    """The versions of one model in a directory, followed while they serve.

    Each directory in ``root`` is a version: a bundle, named by a number or a name. A new one is
    checksummed, loaded, its catalogue's rows are built, and it answers the requests stored with it,
    all in a thread of low priority beside the version that serves; then it takes the traffic in one
    step. The old one is freed after its last request. A version that does not load changes nothing;
    :meth:`status` says why.

    What operators set (:meth:`load`, :meth:`rollback`, labels, canary, shadow) is stored in
    one file, ``serving.json`` in the directory, which every registry of the directory reads
    ``poll_s`` seconds later at most. The registry that was called follows at once.

    Args:
        root: The directory of versions; or one bundle. Behind a URL (``s3://bucket/models``) the
            versions to serve are fetched to ``cache``; a lost connection changes nothing.
        items: The catalogue's Parquet file. When it is replaced, it is loaded anew.
        item_id: The catalogue's column of item ids.
        policy: Policy of the versions to serve.
        poll_s: Seconds between looks at the directory, the state and the catalogue.
        unknown_items: As for :class:`~widedeep.serving.ranker.Ranker`.
        precision: As for :class:`~widedeep.serving.ranker.Ranker`.
        threads: As for :class:`~widedeep.serving.ranker.Ranker`.
        rank_by: As for :class:`~widedeep.serving.ranker.Ranker`.
        exploration: As for :class:`~widedeep.serving.ranker.Ranker`.
        max_values: Most ids and numbers that a request may come to, over all its candidates.
        state: The state's file, if it is not in ``root``.
        rows: A directory in which the processes that serve ``root`` on this machine keep one copy
            of the catalogue's rows; None: the workers of
            :func:`widedeep.serving.supervisor.run_workers` have one, and other processes keep their
            own rows.
        cache: Where versions are copied to before they are served, so that nobody who writes to
            ``root`` can change what serves; None: this user's cache
            (:func:`widedeep.serving.loading.default_cache`).
        monitor: Watches the background threads; None: a monitor of its own.
        name: Name of the model, where one process serves several.
        options: ``items``, ``item_id``, ``policy``, ``poll_s``, ``unknown_items``, ``precision``,
            ``threads``, ``exploration``, ``max_values`` and ``cache`` as one value, instead of
            these keywords.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(
        ...     label="income", features=wd.categorical("education", "workclass"),
        ...     item=["workclass"],
        ... )
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.export("models/1")
        >>> with Registry("models") as registry:
        ...     registry.wait_ready(60)
        ...     with registry.lease("request 1") as served:
        ...         ranking = served.rank(
        ...             {"education": "Masters"}, candidates={"workclass": ["Private", "State-gov"]}
        ...         )
        ...         print(served.version, served.label, len(ranking.scores))
        True
        1 stable 2
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        items: str | os.PathLike[str] | None = None,
        item_id: str | None = None,
        policy: Policy | None = None,
        poll_s: float = 2.0,
        unknown_items: Literal["score", "refuse"] = "score",
        precision: Literal["float32", "bfloat16"] = "float32",
        threads: int = 1,
        rank_by: str | None = None,
        exploration: Exploration | None = None,
        max_values: int = MAX_VALUES,
        state: str | os.PathLike[str] | None = None,
        rows: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        monitor: ThreadMonitor | None = None,
        name: str = "",
        options: RegistryOptions | None = None,
    ) -> None:
        keywords = RegistryOptions(
            items=items,
            item_id=item_id,
            policy=Latest(1) if policy is None else policy,
            poll_s=poll_s,
            unknown_items=unknown_items,
            precision=precision,
            threads=threads,
            rank_by=rank_by,
            exploration=exploration,
            max_values=max_values,
            cache=cache,
        )
        if options is not None and keywords != RegistryOptions():
            raise ConfigError("Registry: got options and further keywords; set them in options=")
        self.options = options = keywords if options is None else options
        url = os.fspath(root)
        self._remote = RemoteModels(url, options.cache) if is_url(url) else None
        self.root = Path(local_path(url)) if self._remote is None else self._remote.root
        rows = os.environ.get(ROWS_DIRECTORY) if rows is None else rows
        self._state_file = state_path(self.root) if state is None else Path(state)
        self._copies = PrivateCopies(default_cache() if options.cache is None else options.cache)
        self._watcher = VersionWatcher(
            self.root,
            self._state_file,
            options,
            self._copies,
            remote=self._remote,
            shared_rows=None if rows is None else SharedRows(rows),
            monitor=monitor,
            name=name,
        )

    # ---- what a server calls --------------------------------------------------------------------

    def start(self) -> None:
        """Look at the directory once, and begin to load and to follow it in the background.

        Raises:
            ConfigError: If there is no such directory, or the state cannot be read.
        """
        self._watcher.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop following, and free the versions once their requests have ended."""
        self._watcher.close(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def lease(
        self, request_id: str, *, version: str | None = None, label: str | None = None
    ) -> Iterator[Served]:
        """Return the version for a request; it stays in memory while the ``with`` block runs.

        Args:
            request_id: Decides whether the canary answers: the same id, the same answer, in every
                process.
            version: Ask for one version.
            label: Ask for the version with this label.

        Raises:
            NoVersion: On entry, if none is ready, or not the one asked for.
        """
        loaded, served = self._acquire(request_id, version, label)
        try:
            yield served
        finally:
            self._release(loaded)

    def ready(self) -> bool:
        """Tell whether a version takes the traffic."""
        return self._watcher.routes.default is not None

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until a version takes the traffic; return False if none does in time."""
        with self._watcher.changed:
            return self._watcher.changed.wait_for(self.ready, timeout_s)

    def status(self) -> list[VersionStatus]:
        """Return how each version in the directory stands, oldest first."""
        watcher = self._watcher
        with watcher.lock:
            deleted = [name for name in watcher.loaded if name not in watcher.versions]
            names = [*deleted, *watcher.versions]
            statuses = [self._status_of(name, watcher.loaded.get(name)) for name in names]
            retiring = [self._status_of(version.name, version) for version in watcher.retiring]
        return statuses + [
            replace(status, state="unloading", labels=(), error=None) for status in retiring
        ]

    def _status_of(self, name: str, loaded: LoadedVersion | None) -> VersionStatus:
        watcher = self._watcher
        failure = watcher.failures.get(name)
        error = None if failure is None else failure.reason
        if loaded is None:
            state: VersionState = "loading" if watcher.loading == name else "available"
            return VersionStatus(version=name, state="failed" if error else state, error=error)
        catalogue = loaded.ranker.catalogue
        return VersionStatus(
            version=name,
            state="ready",
            error=error,
            labels=tuple(label for label, v in watcher.routes.labels.items() if v is loaded),
            catalogue_version=None if catalogue is None else catalogue.version,
            catalogue_error=loaded.catalogue_error,
            loaded_at=loaded.loaded_at,
            load_s=loaded.load_s,
            requests=loaded.requests + loaded.native_requests,
            in_use=loaded.in_use,
        )

    @property
    def problem(self) -> str | None:
        """Why the directory or the state could not be read at the last look; None: they could."""
        return self._watcher.problem

    @property
    def problems(self) -> int:
        """Number of failed looks at the directory or the state."""
        return self._watcher.problems

    @property
    def state(self) -> ServingState:
        """What operators have set, as of the last look."""
        return self._watcher.state

    def subscribe(
        self,
        prepare: Callable[[LoadedVersion], None] | None,
        on_routes: Callable[[Routes], None] | None,
    ) -> None:
        """Receive the loaded versions and the routes, now and whenever they change.

        Args:
            prepare: Called with a version before it answers; None: no longer.
            on_routes: Called with the routes; None: no longer.
        """
        self._watcher.subscribe(prepare, on_routes)

    def shadow_report(self) -> ShadowReport | None:
        """Return how far the shadow's scores are from those answered; None without a shadow."""
        shadow = self._watcher.routes.shadow
        return None if shadow is None else shadow.report()

    # ---- what an operator asks for --------------------------------------------------------------

    def load(self, version: str, *, wait_s: float = 0.0) -> None:
        """Keep a version loaded, and let it be served again if it was withdrawn.

        Args:
            version: Version name.
            wait_s: Wait this long until it is ready.

        Raises:
            NoVersion: If there is no such version, or it is not ready within ``wait_s``.
        """
        self._change(version, lambda state: state.load(version))
        if wait_s > 0:
            self._wait_loaded(version, wait_s)

    def load_newest(self, *, wait_s: float = 0.0) -> None:
        """Keep the newest version in the directory loaded; see :meth:`load`."""
        with self._watcher.lock:
            versions = list(self._watcher.versions)
        if not versions:
            raise NoVersion(f"{self.root}: there is no version to load")
        self.load(versions[-1], wait_s=wait_s)

    def unload(self, version: str) -> None:
        """Withdraw a version; the newest other one takes its traffic, if there is one.

        Raises:
            NoVersion: If there is no such version, neither loaded nor in the directory.
        """
        with self._watcher.lock:
            is_loaded = version in self._watcher.loaded  # its directory may be gone
        self._change(None if is_loaded else version, lambda state: state.withdraw(version))

    def unload_all(self) -> None:
        """Withdraw every version, loaded or in the directory."""
        with self._watcher.lock:
            versions = {*self._watcher.versions, *self._watcher.loaded}
        self._change(None, lambda state: state.withdraw(*versions))

    def rollback(self, to: str | None = None, *, wait_s: float = 0.0) -> str:
        """Go back to an older version; see :func:`widedeep.serving.versions.roll_back`.

        Args:
            to: The version; None: the one before the version that serves.
            wait_s: Wait this long until it serves.

        Returns:
            The version that serves from now on, or as soon as it is loaded.

        Raises:
            NoVersion: If there is no older version or it does not load, which changes nothing; or
                if it does not serve within ``wait_s``, and the change stands.
            OrderPending: If the change is written and this registry cannot read it.
        """
        watcher = self._watcher
        with watcher.lock:
            loaded = list(watcher.loaded)
            failed = [name for name in watcher.failures if name not in loaded]

        def check(version: str) -> None:
            if version not in loaded:
                if self._remote is not None:
                    self._remote.fetch(version)
                check_loads(self.root, version, self._copies)

        with self._changing_state():
            target = roll_back(
                self.root,
                to=to,
                state_file=self._state_file,
                serving=self.serving(),
                failed=failed,
                check=check,
            )
        self._look()
        if wait_s > 0:
            self._wait_loaded(target, wait_s)
            self._wait_serving(target, wait_s)
        return target

    def _wait_serving(self, version: str, wait_s: float) -> None:
        watcher = self._watcher
        with watcher.changed:
            in_time = watcher.changed.wait_for(
                lambda: watcher.closing or self.serving() == version, wait_s
            )
        if not in_time:
            raise NoVersion(
                f"version {version!r} is asked for, and {self.serving()!r} serves after {wait_s:g} "
                "s; look at the status of the versions"
            )

    def serving(self) -> str | None:
        """Return the version that takes the traffic in this process; None: none does."""
        default = self._watcher.routes.default
        return None if default is None else default.name

    def set_label(self, label: str, version: str | None) -> None:
        """Give a version a label: it stays loaded, and requests may ask for the label.

        Args:
            label: ``"stable"`` makes it the version that takes the traffic.
            version: Version name; None removes the label.

        Raises:
            NoVersion: If there is no such version.
        """
        self._change(version, lambda state: state.set_label(label, version))

    def set_canary(self, version: str | None, share: float = 0.0) -> None:
        """Let a version answer a fraction of the requests, chosen by their ids.

        Args:
            version: Version name; None ends the trial.
            share: Fraction of the request ids, 0 to 1; 0 ends the trial.

        Raises:
            NoVersion: If there is no such version.
            ConfigError: If the share is not between 0 and 1.
        """
        self._change(version, lambda state: state.set_canary(version, share))

    def set_shadow(self, version: str | None) -> None:
        """Let a version score answered requests again, to compare the scores; None ends that.

        Raises:
            NoVersion: If there is no such version.
        """
        self._change(version, lambda state: state.set_shadow(version))

    def _change(self, version: str | None, change: Callable[[ServingState], ServingState]) -> None:
        if version is not None:
            check_version(self.root, version)
            with self._watcher.lock:
                # Asked for again: worth another try.
                self._watcher.failures.pop(version, None)
        with self._changing_state():
            change_state(self._state_file, change)
        self._look()

    def _changing_state(self) -> AbstractContextManager[None]:
        return nullcontext() if self._remote is None else self._remote.changing_state()

    def _look(self) -> None:
        """Follow a changed state at once."""
        self._watcher.look()
        if self._watcher.problem is not None:
            raise OrderPending(
                "the order is written, and will be followed when this can be read: "
                f"{self._watcher.problem}"
            )

    def _wait_loaded(self, version: str, wait_s: float) -> None:
        watcher = self._watcher

        def is_settled() -> bool:
            loaded, in_directory = watcher.loaded.get(version), watcher.versions.get(version)
            current = (
                loaded is not None and in_directory is not None and loaded.files == in_directory[1]
            )
            return current or version in watcher.failures or watcher.closing

        with watcher.changed:
            in_time = watcher.changed.wait_for(is_settled, wait_s)
            failure = watcher.failures.get(version)
        if failure is not None:
            raise NoVersion(f"version {version!r} does not load: {failure.reason}")
        if not in_time:
            raise NoVersion(f"version {version!r} is not loaded after {wait_s:g} s; ask again")

    # ---- a request ------------------------------------------------------------------------------

    def _acquire(
        self, request_id: str, version: str | None, label: str | None
    ) -> tuple[LoadedVersion, Served]:
        watcher = self._watcher
        # Before the lock: a hash takes longer than all that the lock is for.
        fraction = watcher.routes.canary_fraction if version is None and label is None else 0.0
        on_trial = fraction > 0 and is_canary_request(request_id, fraction)
        with watcher.lock:
            routes = watcher.routes
            if version is not None:
                loaded, role = watcher.loaded.get(version), None
            elif label is not None:
                loaded, role = routes.labels.get(label), label
            elif on_trial and routes.canary is not None:
                loaded, role = routes.canary, "canary"
            else:
                loaded, role = routes.default, "stable"
            if loaded is None:
                raise self._no_version(version, label)
            loaded.requests += 1
            loaded.in_use += 1
        shadow = routes.shadow
        if shadow is not None and shadow.version == loaded.name:
            shadow = None
        return loaded, Served(loaded.name, loaded.ranker, role, shadow)

    def _release(self, version: LoadedVersion) -> None:
        with self._watcher.changed:
            version.in_use -= 1
            if not version.in_use and version in self._watcher.retiring:
                self._watcher.changed.notify_all()

    def _no_version(self, version: str | None, label: str | None) -> NoVersion:
        watcher = self._watcher
        if version is not None:
            failure = watcher.failures.get(version)
            reason = (
                f"it did not load: {failure.reason}"
                if failure
                else nearest(version, watcher.loaded)
            )
            return NoVersion(f"got version {version!r}; {reason}")
        if label is not None:
            return NoVersion(f"got label {label!r}; {nearest(label, watcher.routes.labels)}")
        failures = "; ".join(failure.reason for failure in watcher.failures.values())
        reason = failures or ("one is loading" if watcher.loading else "there is none to be served")
        return NoVersion(f"{self.root}: no version is ready: {reason}")
