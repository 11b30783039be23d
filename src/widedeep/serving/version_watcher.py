"""VersionWatcher: the threads that follow a directory of versions, load, route and free them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from widedeep.bundle.patch import BaseMissing
from widedeep.errors import ConfigError, WideDeepError
from widedeep.options import show_path
from widedeep.remote import RemoteUnavailable
from widedeep.serving.background import BackgroundThread, ThreadMonitor
from widedeep.serving.catalogue import Catalogue, SharedRows
from widedeep.serving.loading import PrivateCopies, load_ranker, lower_thread_priority
from widedeep.serving.remote_models import RemoteModels
from widedeep.serving.shadow import ShadowScoring
from widedeep.serving.versions import (
    LoadedVersion,
    LoadFailure,
    Plan,
    RegistryOptions,
    ServingState,
    Signature,
    file_signature,
    find_versions,
    make_plan,
    read_state,
    signature,
)
from widedeep.traces import traced

_IDLE_S = 1.0
_LONGEST_LOAD_S = 3600.0
_RETRY_S = (2.0, 60.0)  # First and longest pause before loading is tried again


@dataclass(frozen=True, slots=True)
class Routes:
    """Which version answers which requests; replaced as a whole."""

    default: LoadedVersion | None = None  # Takes the traffic
    labels: Mapping[str, LoadedVersion] = field(default_factory=dict)  # Version by label
    canary: LoadedVersion | None = None  # Answers ``canary_fraction`` of the requests
    canary_fraction: float = 0.0  # Fraction of the request ids
    shadow: ShadowScoring | None = None  # Scores answered requests again


class VersionWatcher:
    """Follows a directory, its state and its catalogue; loads and frees versions accordingly.

    Attributes are read and changed with ``lock`` held, but for ``routes``, ``problem`` and
    ``problems``, which may be read without.
    """

    def __init__(
        self,
        root: Path,
        state_file: Path,
        options: RegistryOptions,
        copies: PrivateCopies,
        *,
        remote: RemoteModels | None = None,
        shared_rows: SharedRows | None = None,
        monitor: ThreadMonitor | None = None,
        name: str = "",
    ) -> None:
        self._remote = remote  # What ``root`` holds a part of, if that is behind a URL
        self._root, self._state_file, self._options = root, state_file, options
        self._copies, self._shared_rows = copies, shared_rows
        self._monitor, self._name = monitor or ThreadMonitor(), name
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.state = ServingState()
        self.versions: dict[str, tuple[Path, Signature]] = {}  # Those in the directory
        self.failures: dict[str, LoadFailure] = {}
        self.loaded: dict[str, LoadedVersion] = {}
        self.retiring: list[LoadedVersion] = []  # To be freed after their last request
        self.loading: str | None = None
        self.problem: str | None = None
        self.problems = 0
        self.routes = Routes()
        self._prepare: Callable[[LoadedVersion], None] | None = None
        self._on_routes: Callable[[Routes], None] | None = None
        self._look_lock = threading.Lock()
        self._items: Signature = ()
        self._catalogue: tuple[tuple[Signature, tuple[str, ...]], Catalogue] | None = None
        self._attempts: dict[str, int] = {}
        self._plan = Plan((), None)
        self._closing = threading.Event()
        self._threads: list[BackgroundThread] = []

    def start(self) -> None:
        """Look once, then go on in the background."""
        self.look()
        if self.problem is not None:
            raise ConfigError(self.problem)
        suffix = f":{self._name}" if self._name else ""
        stuck_s = max(60.0, 10 * self._options.poll_s)
        self._threads = [
            self._monitor.start(f"versions{suffix}", self._watch, stuck_s=stuck_s),
            self._monitor.start(f"loading{suffix}", self._work, stuck_s=_LONGEST_LOAD_S),
        ]

    def close(self, timeout_s: float) -> None:
        """Stop; each version is freed when its last request ends, for ``timeout_s`` at most."""
        self._closing.set()
        with self.changed:
            shadow = self.routes.shadow
            self.routes = Routes()
            self._announce_routes()
            self.retiring += self.loaded.values()
            self.loaded = {}
            self.changed.notify_all()
        if shadow is not None:
            shadow.close()
        for thread in self._threads:
            thread.join(timeout_s)

    @property
    def closing(self) -> bool:
        """Tell whether :meth:`close` was called."""
        return self._closing.is_set()

    # ---- looking --------------------------------------------------------------------------------

    def _watch(self) -> bool:
        if self._closing.wait(self._options.poll_s):
            return False
        self.look()
        return True

    def look(self) -> None:
        """Read the directory and the state, and route to the versions that are loaded."""
        with self._look_lock:  # in turn: a slow look must not bring back an older state
            try:
                versions = self._present()  # first: it brings the state from behind a URL
                state = read_state(self._state_file)
                items = () if self._options.items is None else file_signature(self._options.items)
            except (WideDeepError, OSError) as error:
                # Serving goes on: a file system may be away for a moment.
                self._set_problem(str(error))
                return
            now = time.monotonic()
            with self.changed:
                self.state, self.versions, self._items = state, versions, items
                self.failures = {
                    name: failure
                    for name, failure in self.failures.items()
                    if name in versions
                    and failure.files == versions[name][1]
                    and failure.items == items
                    and (failure.retry_at is None or now < failure.retry_at)
                }
                self._attempts = {n: k for n, k in self._attempts.items() if n in versions}
                self._apply_plan()
            self._set_problem(None)

    def _present(self) -> dict[str, tuple[Path, Signature]]:
        """Return the versions in the directory with their signatures."""
        if self._remote is not None:
            return {n: (self._root / n, files) for n, files in self._remote.refresh().items()}
        versions: dict[str, tuple[Path, Signature]] = {}
        for name, path in find_versions(self._root).items():
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                versions[name] = (path, signature(path))
        return versions

    def _set_problem(self, problem: str | None) -> None:
        """Keep whether the look succeeded; log a change."""
        problem = None if problem is None else show_path(problem)
        before, self.problem = self.problem, problem
        self.problems += problem is not None
        if before != problem:
            event = "versions_unreadable" if problem else "versions_readable"
            self._monitor.log.event(event, model=self._name or None, error=problem)

    def _apply_plan(self) -> None:
        """Make a new plan and route by it; with the lock held."""
        if self.closing:
            return
        failed = [name for name in self.failures if name not in self.loaded]
        policy = self._options.policy
        self._plan = plan = make_plan(list(self.versions), policy, self.state, failed)
        before, default = self.routes.default, None
        if plan.default is not None:
            # Until it is loaded, the version that serves goes on.
            default = self.loaded.get(plan.default, before)
        elif before is not None and before.name not in self.state.withdrawn:
            # Its directory is gone, and there is no other: better the old answers than none.
            default = before
        keep = {*plan.keep, *([] if default is None else [default.name])}
        for name in [name for name in self.loaded if name not in keep]:
            self.retiring.append(self.loaded.pop(name))
        self.routes = self._routes_with(default)
        self._announce_routes()
        self.changed.notify_all()

    def subscribe(
        self,
        prepare: Callable[[LoadedVersion], None] | None,
        on_routes: Callable[[Routes], None] | None,
    ) -> None:
        """Pass each version before it answers, and the routes now and when they change."""
        self._prepare, self._on_routes = prepare, on_routes
        for version in list(self.loaded.values()):
            self._announce_version(version)
        with self.changed:
            self._announce_routes()

    def _announce_version(self, version: LoadedVersion) -> None:
        if self._prepare is not None:
            self._prepare(version)

    def _announce_routes(self) -> None:
        if self._on_routes is not None:
            self._on_routes(self.routes)

    def _routes_with(self, default: LoadedVersion | None) -> Routes:
        state, loaded = self.state, self.loaded
        canary = None if state.canary is None else loaded.get(state.canary.version)
        labels = {} if canary is None else {"canary": canary}
        labels |= {label: loaded[name] for label, name in state.labels.items() if name in loaded}
        if default is not None:
            labels["stable"] = default
        return Routes(
            default=default,
            labels=labels,
            canary=canary,
            canary_fraction=0.0 if state.canary is None else state.canary.share,
            shadow=self._shadow(None if state.shadow is None else loaded.get(state.shadow)),
        )

    def _shadow(self, version: LoadedVersion | None) -> ShadowScoring | None:
        """Return the scoring by this version: the one that runs, or a new one."""
        running = self.routes.shadow
        if running is not None and version is not None and running.ranker is version.ranker:
            return running
        if running is not None:
            # Its thread ends by itself; waiting for it here would hold the lock.
            running.close(timeout_s=0)
        if version is None:
            return None
        return ShadowScoring(version.name, version.ranker, self._monitor)

    # ---- loading and freeing --------------------------------------------------------------------

    def _work(self) -> bool:
        with self.changed:
            if not self.changed.wait_for(self._has_work, _IDLE_S):
                return True
            if self.closing and not self.retiring:
                return False
            unused = [version for version in self.retiring if not version.in_use]
            self.retiring = [version for version in self.retiring if version.in_use]
            name, outdated = self._next_load(), self._next_catalogue()
            location = None if name is None else self.versions[name]
            self.loading = name
            self.changed.notify_all()
        for version in unused:
            version.free()
        unused.clear()
        if name is not None and location is not None:
            self._run_in_background(partial(self._load, name, *location))
        elif outdated is not None:
            self._run_in_background(partial(self._refresh_catalogue, outdated))
        return True

    def _run_in_background(self, work: Callable[[], None]) -> None:
        """Run in a thread of low priority while a version serves, at full speed otherwise."""
        errors: list[Exception] = []

        def run() -> None:
            if self.routes.default is not None:
                lower_thread_priority()
            try:
                work()
            except Exception as error:  # for the thread that waits
                errors.append(error)

        # A new thread each time: one that has lowered its priority may not raise it again.
        thread = threading.Thread(target=run, name="widedeep-load", daemon=True)
        thread.start()
        thread.join()
        for error in errors:
            raise error

    def _has_work(self) -> bool:
        if any(not version.in_use for version in self.retiring):
            return True
        if self.closing:
            return not self.retiring
        return self._next_load() is not None or self._next_catalogue() is not None

    def _next_load(self) -> str | None:
        """Return the first version of the plan that is not loaded, or whose files have changed."""
        if self.closing:
            return None
        for name in self._plan.keep:
            loaded, files = self.loaded.get(name), self.versions[name][1]
            current = loaded is not None and loaded.files == files
            if not current and name not in self.failures:
                return name
        return None

    def _next_catalogue(self) -> LoadedVersion | None:
        """Return the first loaded version whose catalogue is outdated."""
        if self.closing or not self._items:
            return None
        now = time.monotonic()
        for version in self.loaded.values():
            if version.items != self._items or now >= version.catalogue_retry_at:
                return version
        return None

    @traced("load version")
    def _load(self, name: str, path: Path, files: Signature) -> None:
        items, default = self._items, self.routes.default
        serving = None if default is None or default.name == name else default.ranker
        started = time.perf_counter()
        copy = None
        try:
            if self._remote is not None:
                path = self._remote.fetch(name)
            copy = self._copies.take(path)
            ranker = load_ranker(
                path,
                self._options,
                partial(self._read_catalogue, items),
                serving=serving,
                copy=copy.path,
                shared_rows=self._shared_rows,
            )
            version = LoadedVersion(name, ranker, files, items, time.perf_counter() - started, copy)
            self._announce_version(version)
        except Exception as error:  # whatever is in the files, the version that serves goes on
            if copy is not None:
                copy.close()
            with self.changed:
                self.failures[name] = self._failure(name, path, files, items, error)
                self.loading = None
                self._apply_plan()
            return
        with self.changed:
            self.loading = None
            self.failures.pop(name, None)
            self._attempts.pop(name, None)
            before = self.loaded.get(name)
            self.retiring += [] if before is None else [before]
            self.loaded[name] = version
            if self.routes.default is before:
                self.routes = replace(self.routes, default=version)
            self._apply_plan()

    def _failure(
        self, name: str, path: Path, files: Signature, items: Signature, error: Exception
    ) -> LoadFailure:
        """Return and log why a version did not load."""
        # Answers and figures quote it, whatever the bytes of a path or a file are.
        reason = show_path(error if isinstance(error, WideDeepError) else f"{path}: {error!r}")
        attempts = self._attempts[name] = self._attempts.get(name, 0) + 1
        retry_at = None
        if _is_transient(error):
            pause = min(_RETRY_S[0] * 2.0 ** min(attempts - 1, 20), _RETRY_S[1])
            retry_at = time.monotonic() + pause
        self._count_bug(error)
        self._monitor.log.event(
            "version_failed",
            model=self._name or None,
            version=name,
            error=reason,
            attempts=attempts,
            tried_again=retry_at is not None,
        )
        return LoadFailure(files, items, reason, retry_at)

    def _count_bug(self, error: Exception) -> None:
        """Report an exception that no check foresaw."""
        if not isinstance(error, WideDeepError | OSError | MemoryError):
            for thread in self._threads[1:]:
                thread.failed(error)

    def _read_catalogue(self, items: Signature, null_values: Sequence[str]) -> Catalogue | None:
        """Return the items: the same object for every version that reads CSV alike."""
        path, id_column = self._options.items, self._options.item_id
        if path is None or id_column is None:
            return None
        key = items, tuple(null_values)
        if self._catalogue is None or self._catalogue[0] != key:
            catalogue = Catalogue.read(
                os.fspath(path), id_column=id_column, null_values=null_values
            )
            self._catalogue = key, catalogue
        return self._catalogue[1]

    def _refresh_catalogue(self, version: LoadedVersion) -> None:
        items, message = self._items, None
        version.catalogue_retry_at = float("inf")
        try:
            words = version.ranker.bundle.schema.spec.null_values
            version.ranker.replace_catalogue(self._read_catalogue(items, words))
            self._announce_version(version)
        except Exception as error:  # whatever is in the file, the old catalogue serves on
            message = show_path(error if isinstance(error, WideDeepError) else repr(error))
            self._count_bug(error)
            self._monitor.log.event("catalogue_failed", version=version.name, error=message)
            if _is_transient(error):
                version.catalogue_retry_at = time.monotonic() + _RETRY_S[0]
        with self.changed:
            version.items, version.catalogue_error = items, message
            self._announce_routes()
            self.changed.notify_all()


def _is_transient(error: BaseException | None) -> bool:
    """Tell whether loading may succeed the next time: memory or a file system was lacking."""
    while error is not None:
        if isinstance(error, MemoryError | RemoteUnavailable | BaseMissing):
            return True
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__
    return False
