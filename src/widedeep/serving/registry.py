"""Registry: the versions of a model in a directory, loaded, swapped and freed while it serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from widedeep.errors import ConfigError, nearest
from widedeep.serving import admin_actions as orders
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.candidates import MAX_VALUES
from widedeep.serving.loading import PrivateCopies, RankerOptions, default_cache
from widedeep.serving.shadow import ShadowReport
from widedeep.serving.shared_rows import ROWS_DIRECTORY, SharedRows
from widedeep.serving.version_watcher import Following, Routes
from widedeep.serving.versions import (
    Latest,
    Lease,
    LoadedVersion,
    NoVersion,
    OrderPending,
    Policy,
    Served,
    ServingState,
    Specific,
    VersionState,
    VersionStatus,
    change_state,
    is_canary_request,
    state_path,
)

__all__ = [
    "Latest",
    "NoVersion",
    "OrderPending",
    "Registry",
    "Served",
    "ShadowReport",
    "Specific",
    "VersionStatus",
]


class Registry:
    """The versions of one model in a directory, followed while they serve.

    Each directory in ``root`` is a version: a bundle, named by a number or a name. A new one is
    checksummed, loaded, its catalogue's rows are built, and it answers the requests stored with it,
    all in a thread of low priority beside the version that serves; then it takes the traffic in one
    step. The old one is freed after its last request. A version that does not load changes nothing;
    :meth:`status` says why.

    What an operator asks for (:meth:`load`, :meth:`rollback`, labels, canary, shadow) is kept in
    one file, ``serving.json`` in the directory, which every registry of the directory reads
    ``poll_s`` seconds later at most. The registry that was told follows at once.

    Args:
        root: The directory of versions; or one bundle.
        items: The catalogue's Parquet file. When it is replaced, it is loaded anew.
        item_id: The catalogue's column of item ids.
        policy: Which versions are served.
        poll_s: Seconds between looks at the directory, the state and the catalogue.
        unknown_items: As for :class:`~widedeep.serving.ranker.Ranker`.
        precision: As for :class:`~widedeep.serving.ranker.Ranker`.
        threads: As for :class:`~widedeep.serving.ranker.Ranker`.
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
        name: Of the model, where one process serves several.

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
        max_values: int = MAX_VALUES,
        state: str | os.PathLike[str] | None = None,
        rows: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        monitor: ThreadMonitor | None = None,
        name: str = "",
    ) -> None:
        if items is not None and item_id is None:
            raise ConfigError("Registry: got items without item_id; name the column of their ids")
        if poll_s <= 0:
            raise ConfigError(f"Registry: got poll_s={poll_s!r}, expected seconds > 0")
        self.root = Path(root)
        self.policy: Policy = Latest(1) if policy is None else policy
        self.poll_s = poll_s
        rows = os.environ.get(ROWS_DIRECTORY) if rows is None else rows
        self._state_file = state_path(self.root) if state is None else Path(state)
        self._copies = PrivateCopies(default_cache() if cache is None else cache)
        options = RankerOptions(
            items=items,
            item_id=item_id,
            unknown_items=unknown_items,
            precision=precision,
            threads=threads,
            max_values=max_values,
            shared_rows=None if rows is None else SharedRows(rows),
            copies=self._copies,
        )
        self._at = Following(
            self.root, self._state_file, self.policy, poll_s, options, monitor, name
        )

    # ---- what a server calls --------------------------------------------------------------------

    def start(self) -> None:
        """Look at the directory once, and begin to load and to follow it in the background.

        Raises:
            ConfigError: If there is no such directory, or the state cannot be read.
        """
        self._at.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop following, and free the versions once their requests have ended."""
        self._at.close(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lease(
        self, request_id: str, *, version: str | None = None, label: str | None = None
    ) -> Lease:
        """Return the version for a request; it stays in memory while the ``with`` block runs.

        Args:
            request_id: Decides whether the canary answers: the same id, the same answer, in every
                process.
            version: Ask for one version.
            label: Ask for the version with this label.

        Raises:
            NoVersion: On entry, if none is ready, or not the one asked for.
        """
        return Lease(lambda: self._take(request_id, version, label), self._give_back)

    def ready(self) -> bool:
        """Tell whether a version takes the traffic."""
        return self._at.routes.default is not None

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until a version takes the traffic; return False if none does in time."""
        with self._at.changed:
            return self._at.changed.wait_for(self.ready, timeout_s)

    def status(self) -> list[VersionStatus]:
        """Return how each version in the directory stands, oldest first."""
        at = self._at
        with at.lock:
            gone = [name for name in at.loaded if name not in at.found]
            found = [self._status_of(name, at.loaded.get(name)) for name in (*gone, *at.found)]
            leaving = [self._status_of(old.name, old) for old in at.leaving]
        return found + [replace(each, state="unloading", labels=(), error=None) for each in leaving]

    def _status_of(self, name: str, held: LoadedVersion | None) -> VersionStatus:
        at, failure = self._at, self._at.failed.get(name)
        error = None if failure is None else failure.why
        labels = tuple(label for label, of in at.routes.labels.items() if of is held)
        if held is None:
            state: VersionState = "loading" if at.loading == name else "available"
            return VersionStatus(version=name, state="failed" if error else state, error=error)
        catalogue = held.ranker.catalogue
        return VersionStatus(
            version=name,
            state="ready",
            error=error,
            labels=labels,
            catalogue_version=None if catalogue is None else catalogue.version,
            catalogue_error=held.catalogue_error,
            loaded_at=held.loaded_at,
            load_s=held.load_s,
            requests=held.requests + held.native_requests,
            in_use=held.in_use,
        )

    @property
    def problem(self) -> str | None:
        """Why the directory or the state could not be read at the last look; None: they could."""
        return self._at.problem

    @property
    def problems(self) -> int:
        """How many looks at the directory or the state have failed."""
        return self._at.problems

    @property
    def state(self) -> ServingState:
        """What operators have asked for, as of the last look."""
        return self._at.state

    def follow(
        self,
        prepare: Callable[[LoadedVersion], None] | None,
        routed: Callable[[Routes], None] | None,
    ) -> None:
        """Tell somebody who answers what; see :meth:`Following.follow`.

        Args:
            prepare: Called with a version before it answers.
            routed: Called with the routes.
        """
        self._at.follow(prepare, routed)

    def shadow_report(self) -> ShadowReport | None:
        """Return how far the shadow's scores are from those answered; None without a shadow."""
        shadow = self._at.routes.shadow
        return None if shadow is None else shadow.report()

    # ---- what an operator asks for --------------------------------------------------------------

    def load(self, version: str, *, wait_s: float = 0.0) -> None:
        """Keep a version loaded, and let it be served again if it was withdrawn.

        Args:
            version: Its name.
            wait_s: Wait this long until it is ready.

        Raises:
            NoVersion: If there is no such version, or it is not ready within ``wait_s``.
        """
        self._order(orders.load, version)
        if wait_s > 0:
            self._wait_loaded(version, wait_s)

    def unload(self, version: str) -> None:
        """Withdraw a version; the newest other one takes its traffic, if there is one.

        Raises:
            NoVersion: If there is no such version.
        """
        self._order(orders.withdraw, version)

    def rollback(self, to: str | None = None, *, wait_s: float = 0.0) -> str:
        """Go back to an older version; see :func:`widedeep.serving.admin_actions.roll_back`.

        Args:
            to: The version; None: the one before the version that serves.
            wait_s: Wait this long until it serves.

        Returns:
            The version that serves from now on, or as soon as it is loaded.

        Raises:
            NoVersion: If there is no older version or it does not load, which changes nothing; or
                if it does not serve within ``wait_s``, and the order stands.
            OrderPending: If the order is written and this registry cannot read it.
        """
        with self._at.lock:
            loaded = list(self._at.loaded)
            failed = [name for name in self._at.failed if name not in loaded]
            default = self._at.routes.default

        def check(version: str) -> None:
            if version not in loaded:
                orders.check_loads(self.root, version, self._copies)

        target = orders.roll_back(
            self.root,
            to=to,
            state_file=self._state_file,
            serving=None if default is None else default.name,
            failed=failed,
            check=check,
        )
        self._look_for_order()
        if wait_s > 0:
            self._wait_loaded(target, wait_s)
            self._wait_serving(target, wait_s)
        return target

    def _wait_serving(self, version: str, wait_s: float) -> None:
        at = self._at

        def serves() -> bool:
            return at.closing or (at.routes.default is not None and self.serving() == version)

        with at.changed:
            in_time = at.changed.wait_for(serves, wait_s)
        if not in_time:
            raise NoVersion(
                f"version {version!r} is asked for, and {self.serving()!r} serves after {wait_s:g} "
                "s; look at the status of the versions"
            )

    def serving(self) -> str | None:
        """Return the version that takes the traffic in this process; None: none does."""
        default = self._at.routes.default
        return None if default is None else default.name

    def set_label(self, label: str, version: str | None) -> None:
        """Give a version a label, so that it stays loaded and can be asked for by it.

        Args:
            label: ``"stable"`` makes it the version that takes the traffic.
            version: Its name; None takes the label away.

        Raises:
            NoVersion: If there is no such version.
        """
        self._order(lambda state, name: orders.label(state, label, name), version)

    def set_canary(self, version: str | None, share: float = 0.0) -> None:
        """Have a version answer a share of the requests, told by their ids.

        Args:
            version: Its name; None ends the trial.
            share: Of the request ids, 0 to 1; 0 ends the trial.

        Raises:
            NoVersion: If there is no such version.
            ConfigError: If the share is not between 0 and 1.
        """
        self._order(lambda state, name: orders.canary(state, name, share), version)

    def set_shadow(self, version: str | None) -> None:
        """Have a version score what others answer, to compare the scores; None ends that.

        Raises:
            NoVersion: If there is no such version.
        """
        self._order(orders.shadow, version)

    def _order(
        self, order: Callable[[ServingState, Any], ServingState], version: str | None
    ) -> None:
        if version is not None:
            orders.check_known(self.root, version)
            with self._at.lock:
                # Asked for again: worth another try.
                self._at.failed.pop(version, None)
        change_state(self._state_file, lambda state: order(state, version))
        self._look_for_order()

    def _look_for_order(self) -> None:
        """Follow an order at once."""
        self._at.look()
        if self._at.problem is not None:
            raise OrderPending(
                f"the order is written, and will be followed when this can be read: "
                f"{self._at.problem}"
            )

    def _wait_loaded(self, version: str, wait_s: float) -> None:
        at = self._at

        def settled() -> bool:
            held, found = at.loaded.get(version), at.found.get(version)
            current = held is not None and found is not None and held.files == found[1]
            return current or version in at.failed or at.closing

        with at.changed:
            in_time = at.changed.wait_for(settled, wait_s)
            failure = at.failed.get(version)
        if failure is not None:
            raise NoVersion(f"version {version!r} does not load: {failure.why}")
        if not in_time:
            raise NoVersion(f"version {version!r} is not loaded after {wait_s:g} s; ask again")

    # ---- a request ------------------------------------------------------------------------------

    def _take(
        self, request_id: str, version: str | None, label: str | None
    ) -> tuple[LoadedVersion, Served]:
        at, plain = self._at, version is None and label is None
        # Before the lock: a hash takes longer than all that the lock is for.
        share = at.routes.share if plain else 0.0
        trial = share > 0 and is_canary_request(request_id, share)
        with at.lock:
            routes = at.routes
            if version is not None:
                held, by = at.loaded.get(version), None
            elif label is not None:
                held, by = routes.labels.get(label), label
            elif trial and routes.canary is not None:
                held, by = routes.canary, "canary"
            else:
                held, by = routes.default, "stable"
            if held is None:
                raise self._no_version(version, label)
            held.requests += 1
            held.in_use += 1
        shadow = routes.shadow
        if shadow is not None and shadow.version == held.name:
            shadow = None
        return held, Served(held.name, held.ranker, by, shadow)

    def _give_back(self, held: LoadedVersion) -> None:
        with self._at.changed:
            held.in_use -= 1
            if not held.in_use and held in self._at.leaving:
                self._at.changed.notify_all()

    def _no_version(self, version: str | None, label: str | None) -> NoVersion:
        at = self._at
        if version is not None:
            failure = at.failed.get(version)
            told = f"it did not load: {failure.why}" if failure else nearest(version, at.loaded)
            return NoVersion(f"got version {version!r}; {told}")
        if label is not None:
            return NoVersion(f"got label {label!r}; {nearest(label, at.routes.labels)}")
        failures = "; ".join(failure.why for failure in at.failed.values())
        why = failures or ("one is loading" if at.loading else "there is none to be served")
        return NoVersion(f"{self.root}: no version is ready: {why}")
