"""Models: which registry answers for which name in a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import ConfigError, nearest
from widedeep.serving.http.errors import HttpError
from widedeep.serving.registry import NoVersion, Registry, Served


def find_models(paths: list[str]) -> dict[str, Path]:
    """Return the models that paths hold, by name: the name of their directory."""
    found: dict[str, Path] = {}
    for text in paths:
        given, equals, rest = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        for name, path in _models_in(Path(rest if named else text)):
            name = given if named else name
            if name in found:
                raise ConfigError(
                    f"got two models named {name!r}: {found[name]} and {path}; name one: NAME=PATH"
                )
            if not name or "/" in name or ":" in name:
                raise ConfigError(f"got the model name {name!r}; it stands in paths: no / and no :")
            found[name] = path
    return found


def _models_in(path: Path) -> Iterator[tuple[str, Path]]:
    name = path.resolve().name
    if (path / MANIFEST).is_file() or not path.is_dir():
        if not path.is_dir():
            raise ConfigError(f"{path}: no such directory; name a bundle, or a directory of them")
        yield name, path
        return
    if (path / "bundle" / MANIFEST).is_file() and (path / "config.toml").is_file():
        yield name, path / "bundle"
        return
    inner = sorted(
        Path(entry.path)
        for entry in os.scandir(path)
        if entry.is_dir() and entry.name[0] not in "._"
    )
    several = [
        each
        for each in inner
        if not (each / MANIFEST).is_file() and any(each.glob(f"[!._]*/{MANIFEST}"))
    ]
    # A directory without versions yet is a model too: the first may be on its way.
    if several:
        yield from ((each.name, each) for each in several)
    else:
        yield name, path


class Models:
    """The models of a server, by name."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self.registries = dict(registries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.registries)

    def ready(self) -> bool:
        """Tell whether every model can answer."""
        return all(registry.ready() for registry in self.registries.values())

    def registry(self, name: str | None) -> Registry:
        """Return a model's registry."""
        if name is None:
            if len(self.registries) > 1:
                known = ", ".join(map(repr, self.registries))
                raise HttpError(400, f"got no model; name one of {known}", pointer="/model")
            return next(iter(self.registries.values()))
        found = self.registries.get(name)
        if found is None:
            raise HttpError(404, f"got model {name!r}; {nearest(name, self.registries)}")
        return found

    def name_of(self, name: str | None) -> str:
        """Return the name of the only model for None."""
        return next(iter(self.registries)) if name is None else name

    @contextmanager
    def lease(
        self,
        name: str | None,
        request_id: str,
        version: str | None = None,
        label: str | None = None,
    ) -> Iterator[Served]:
        """Hold a version for one request."""
        registry = self.registry(name)
        lease = registry.lease(request_id, version=version, label=label)
        try:
            served = lease.__enter__()
        except NoVersion as error:
            if version is not None or label is not None:
                raise HttpError(404, str(error)) from error
            raise HttpError(503, str(error), retry_after=1) from error
        try:
            yield served
        finally:
            lease.__exit__(None, None, None)
