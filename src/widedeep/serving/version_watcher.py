"""Following a directory of versions: what is loaded, what leaves, and who answers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from widedeep.errors import ConfigError, WideDeepError
from widedeep.serving.background import BackgroundThread, ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.loading import RankerOptions, load_ranker, lower_thread_priority
from widedeep.serving.shadow import ShadowScoring
from widedeep.serving.versions import (
    LoadedVersion,
    Plan,
    Policy,
    ServingState,
    Signature,
    find_versions,
    make_plan,
    read_state,
    signature,
)

_IDLE_S = 1.0
_LONGEST_LOAD_S = 3600.0
_RETRY_S = (2.0, 60.0)


@dataclass(frozen=True, slots=True)
class Routes:
    """Who answers what; replaced as a whole."""

    default: LoadedVersion | None = None  # Takes the traffic
    labels: Mapping[str, LoadedVersion] = field(default_factory=dict)  # By label
    canary: LoadedVersion | None = None  # Answers ``share`` of the requests
    share: float = 0.0  # Of the request ids
    shadow: ShadowScoring | None = None  # Scores what others answer


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version did not load."""

    files: Signature  # The version's
    items: Signature  # The catalogue's; with others of either it is worth another try
    why: str  # As told to the operator
    attempts: int = 1  # How often it was tried
    # When it is tried again though nothing has changed, by the monotonic clock; None: never, for
    # the reason lies in the files
    again_at: float | None = None


class Following:
    """Looks at a directory, its state and its catalogue, and loads and frees versions by them."""

    def __init__(
        self,
        root: Path,
        state_file: Path,
        policy: Policy,
        poll_s: float,
        options: RankerOptions,
        monitor: ThreadMonitor | None = None,
        name: str = "",
    ) -> None:
        self._root, self._state_file, self._policy = root, state_file, policy
        self._poll_s, self._options = poll_s, options
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.state = ServingState()
        self.found: dict[str, tuple[Path, Signature]] = {}
        self.failed: dict[str, Failure] = {}
        self.loaded: dict[str, LoadedVersion] = {}
        self.leaving: list[LoadedVersion] = []
        self.loading: str | None = None
        self.problem: str | None = None
        self.problems = 0
        self.routes = Routes()
        self._monitor, self._name = monitor or ThreadMonitor(), name
        self._prepare: Callable[[LoadedVersion], None] | None = None
        self._routed: Callable[[Routes], None] | None = None
        self._looking = threading.Lock()
        self._items: Signature = ()
        self._catalogue: tuple[Signature, Catalogue] | None = None
        self._attempts: dict[str, int] = {}
        self._plan = Plan((), None)
        self._closing = threading.Event()
        self._threads: list[BackgroundThread] = []

    def start(self) -> None:
        """Look once, then go on in the background."""
        self.look()
        if self.problem is not None:
            raise ConfigError(self.problem)
        of = f":{self._name}" if self._name else ""
        watcher = self._monitor.start(
            f"versions{of}", self._watch, stuck_s=max(60.0, 10 * self._poll_s)
        )
        self._threads = [
            watcher,
            self._monitor.start(f"loading{of}", self._work, stuck_s=_LONGEST_LOAD_S),
        ]

    def close(self, timeout_s: float) -> None:
        """Stop; each version is freed when its last request ends, for ``timeout_s`` at most."""
        self._closing.set()
        with self.changed:
            shadow = self.routes.shadow
            self.routes = Routes()
            self._tell_routes()
            self.leaving += self.loaded.values()
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
        if self._closing.wait(self._poll_s):
            return False
        self.look()
        return True

    def look(self) -> None:
        """Read the directory and the state, and change the routes by what is loaded already."""
        with self._looking:  # one after the other: a slow look must not bring back older orders
            try:
                state = read_state(self._state_file)
                paths = find_versions(self._root)
                found: dict[str, tuple[Path, Signature]] = {}
                for name, path in paths.items():
                    with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                        found[name] = (path, signature(path))
                items = _file_signature(self._options.items)
            except (ConfigError, OSError) as error:
                # What is served is served on: a file system may be away for a moment.
                self._set_problem(str(error))
                return
            now = time.monotonic()
            with self.changed:
                self.state, self.found, self._items = state, found, items
                self.failed = {
                    name: failure
                    for name, failure in self.failed.items()
                    if name in found
                    and failure.files == found[name][1]
                    and failure.items == items
                    and (failure.again_at is None or now < failure.again_at)
                }
                self._attempts = {n: k for n, k in self._attempts.items() if n in found}
                self._settle()
            self._set_problem(None)

    def _set_problem(self, problem: str | None) -> None:
        """Note whether the look went well; log it when that changes."""
        before, self.problem = self.problem, problem
        self.problems += problem is not None
        if before != problem:
            event = "versions_unreadable" if problem else "versions_readable"
            self._monitor.log.event(event, model=self._name or None, error=problem)

    def _settle(self) -> None:
        """Plan anew and route by it; with the lock held."""
        if self._closing.is_set():
            return
        failed = [name for name in self.failed if name not in self.loaded]
        self._plan = plan = make_plan(list(self.found), self._policy, self.state, failed)
        before, default = self.routes.default, None
        if plan.default is not None:
            # Until it is ready, the version that serves goes on.
            default = self.loaded.get(plan.default, before)
        elif before is not None and before.name not in self.state.withdrawn:
            # Its directory is gone, and there is no other: better the old answers than none.
            default = before
        keep = {*plan.keep, *([] if default is None else [default.name])}
        for name in [name for name in self.loaded if name not in keep]:
            self.leaving.append(self.loaded.pop(name))
        self.routes = self._routes_with(default)
        self._tell_routes()
        self.changed.notify_all()

    def follow(
        self,
        prepare: Callable[[LoadedVersion], None] | None,
        routed: Callable[[Routes], None] | None,
    ) -> None:
        """Tell somebody who answers what, now and whenever that changes; None: no longer."""
        self._prepare, self._routed = prepare, routed
        for held in list(self.loaded.values()) if prepare is not None else ():
            self._tell_prepare(held)
        with self.changed:
            self._tell_routes()

    def _tell_routes(self) -> None:
        if self._routed is not None:
            self._routed(self.routes)

    def _tell_prepare(self, held: LoadedVersion) -> None:
        if self._prepare is not None:
            self._prepare(held)

    def _routes_with(self, default: LoadedVersion | None) -> Routes:
        state, loaded = self.state, self.loaded
        canary = None if state.canary is None else loaded.get(state.canary.version)
        labels = {} if canary is None else {"canary": canary}
        labels |= {label: loaded[of] for label, of in state.labels.items() if of in loaded}
        if default is not None:
            labels["stable"] = default
        return Routes(
            default=default,
            labels=labels,
            canary=canary,
            share=0.0 if state.canary is None else state.canary.share,
            shadow=self._shadow(None if state.shadow is None else loaded.get(state.shadow)),
        )

    def _shadow(self, wanted: LoadedVersion | None) -> ShadowScoring | None:
        """Return the scoring by this version: the one that runs, or a new one."""
        running = self.routes.shadow
        if running is not None and wanted is not None and running.ranker is wanted.ranker:
            return running
        if running is not None:
            # Its thread ends by itself; waiting for it here would hold the lock.
            running.close(timeout_s=0)
        if wanted is None:
            return None
        return ShadowScoring(wanted.name, wanted.ranker, self._monitor)

    # ---- loading and freeing --------------------------------------------------------------------

    def _work(self) -> bool:
        with self.changed:
            if not self.changed.wait_for(self._has_work, _IDLE_S):
                return True
            if self._closing.is_set() and not self.leaving:
                return False
            unused = [old for old in self.leaving if not old.in_use]
            self.leaving = [old for old in self.leaving if old.in_use]
            name, stale = self._next_load(), self._next_catalogue()
            place = None if name is None else self.found[name]
            self.loading = name
            self.changed.notify_all()
        for old in unused:
            old.free()
        unused.clear()
        if name is not None and place is not None:
            self._beside(partial(self._load, name, *place))
        elif stale is not None:
            self._beside(partial(self._refresh_catalogue, stale))
        return True

    def _beside(self, work: Callable[[], None]) -> None:
        """Do it in a thread of low priority while a version serves, and at full speed before."""
        failures: list[Exception] = []

        def run() -> None:
            if self.routes.default is not None:
                lower_thread_priority()
            try:
                work()
            except Exception as error:  # for the thread that waits
                failures.append(error)

        # A thread each: one that has lowered its priority may not raise it again.
        thread = threading.Thread(target=run, name="widedeep-load", daemon=True)
        thread.start()
        thread.join()
        for error in failures:
            raise error

    def _has_work(self) -> bool:
        if any(not old.in_use for old in self.leaving):
            return True
        if self._closing.is_set():
            return not self.leaving
        return self._next_load() is not None or self._next_catalogue() is not None

    def _next_load(self) -> str | None:
        """Return the first version of the plan that is not loaded, or not as it is now."""
        if self._closing.is_set():
            return None
        for name in self._plan.keep:
            held, files = self.loaded.get(name), self.found[name][1]
            current = held is not None and held.files == files
            if not current and name not in self.failed:
                return name
        return None

    def _next_catalogue(self) -> LoadedVersion | None:
        if self._closing.is_set() or not self._items:
            return None
        now = time.monotonic()
        return next(
            (
                held
                for held in self.loaded.values()
                if held.items != self._items or now >= held.items_again_at
            ),
            None,
        )

    def _load(self, name: str, path: Path, files: Signature) -> None:
        items, default = self._items, self.routes.default
        like = None if default is None or default.name == name else default.ranker
        started = time.perf_counter()
        copies, copy = self._options.copies, None
        try:
            copy = None if copies is None else copies.take(path)
            ranker = load_ranker(
                path,
                self._options,
                self._read_catalogue(items),
                like=like,
                files=None if copy is None else copy.path,
            )
            made = LoadedVersion(name, ranker, files, items, time.perf_counter() - started, copy)
            self._tell_prepare(made)
        except Exception as error:  # whatever is in the files, the version that serves goes on
            if copy is not None:
                copy.close()
            with self.changed:
                self.failed[name] = self._failure(name, path, files, items, error)
                self.loading = None
                self._settle()
            return
        with self.changed:
            self.loading = None
            self.failed.pop(name, None)
            self._attempts.pop(name, None)
            before = self.loaded.get(name)
            self.leaving += [] if before is None else [before]
            self.loaded[name] = made
            if self.routes.default is before:
                self.routes = replace(self.routes, default=made)
            self._settle()

    def _failure(
        self, name: str, path: Path, files: Signature, items: Signature, error: Exception
    ) -> Failure:
        """Remember why a version did not load, until its files change; log it."""
        is_foreseen = isinstance(error, WideDeepError | OSError | MemoryError)
        why = str(error) if isinstance(error, WideDeepError) else f"{path}: {error!r}"
        attempts = self._attempts[name] = self._attempts.get(name, 0) + 1
        again_at = None
        if _is_passing(error):
            pause = min(_RETRY_S[0] * 2.0 ** min(attempts - 1, 20), _RETRY_S[1])
            again_at = time.monotonic() + pause
        if not is_foreseen:
            self._count_bug(error)
        self._monitor.log.event(
            "version_failed",
            model=self._name or None,
            version=name,
            error=why,
            attempts=attempts,
            tried_again=again_at is not None,
        )
        return Failure(files, items, why, attempts, again_at)

    def _count_bug(self, error: Exception) -> None:
        for thread in self._threads[1:]:
            thread.failed(error)

    def _read_catalogue(self, items: Signature) -> Catalogue | None:
        """Return the items: the same object for every version."""
        path, id_column = self._options.items, self._options.item_id
        if path is None or id_column is None:
            return None
        if self._catalogue is None or self._catalogue[0] != items:
            self._catalogue = (items, Catalogue.read(os.fspath(path), id_column=id_column))
        return self._catalogue[1]

    def _refresh_catalogue(self, held: LoadedVersion) -> None:
        items, error = self._items, None
        held.items_again_at = float("inf")
        try:
            held.ranker.replace_catalogue(self._read_catalogue(items))
            self._tell_prepare(held)
        except Exception as failure:  # whatever is in the file, the old one serves on
            error = str(failure) if isinstance(failure, WideDeepError) else repr(failure)
            if not isinstance(failure, WideDeepError | OSError | MemoryError):
                self._count_bug(failure)
            self._monitor.log.event("catalogue_failed", version=held.name, error=error)
            if _is_passing(failure):
                held.items_again_at = time.monotonic() + _RETRY_S[0]
        with self.changed:
            held.items, held.catalogue_error = items, error
            self._tell_routes()
            self.changed.notify_all()


def _is_passing(error: BaseException | None) -> bool:
    """Tell whether what was lacking is the machine's, and may be there the next time."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__
    return False


def _file_signature(path: str | os.PathLike[str] | None) -> Signature:
    if path is None:
        return ()
    try:
        about = os.stat(path)
    except OSError:
        return ()
    return ((os.fspath(path), about.st_size, about.st_mtime_ns, about.st_ino),)
