"""Environments with exactly the named packages: installed by pip, or linked from this one.

Linking takes a second where an installation takes minutes: the files that a distribution's RECORD
lists are hard links to those of the running environment, so nothing is there but the named
distributions and what they require. The wheel itself is installed by pip either way.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


class Environment:
    """A virtual environment in `folder`, made anew.

    `full` installs from the index, as a user does; otherwise packages are linked.
    """

    def __init__(self, folder: Path, *, full: bool) -> None:
        self.folder, self.full = folder.absolute(), full
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = self.folder / "bin" / "python"

    def install_wheel(self, wheel: Path) -> None:
        """Install the wheel, and nothing that it requires."""
        self._pip("install", "--quiet", "--no-deps", "--no-index", str(wheel))

    def install(self, *requirements: str, index: str = "") -> None:
        """Install the requirements and what they require, at the versions that are tested."""
        if self.full:
            where = ["--index-url", index] if index else []
            self._pip("install", "--quiet", "-c", str(CONSTRAINTS), *where, *requirements)
        else:
            _link(_distributions(requirements), self.folder)

    def missing(self) -> list[str]:
        """Return what pip finds missing: one line for each requirement."""
        done = self._pip("check", check=False)
        assert (done.returncode == 0) == ("No broken requirements found" in done.stdout), done
        return [] if done.returncode == 0 else done.stdout.splitlines()

    def run(self, module: str, *words: str | Path) -> None:
        """Run a module of this repository."""
        words = tuple(map(str, words))
        subprocess.run([self.python, "-m", module, *words], cwd=ROOT, env=environ(), check=True)

    def _pip(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        command = [*pip, "--python", str(self.python), *words]
        return subprocess.run(command, capture_output=not check, text=True, check=check)


def environ() -> dict[str, str]:
    """The variables of this process, less those that lead to packages elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _distributions(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Return the distributions of this environment that the requirements come to."""
    result: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        result[name] = distribution(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                queue += _requires(result[name], extra)
    return result


def wheel_requirements(wheel: Path, *extras: str) -> list[str]:
    """Return what a wheel requires, with these extras."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        path = zipfile.Path(archive, metadata).parent
        package = PathDistribution(path)
        return [str(each) for extra in ("", *extras) for each in _requires(package, extra)]


def _requires(package: Distribution, extra: str) -> Iterator[Requirement]:
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            yield requirement


def _link(packages: dict[str, Distribution], folder: Path) -> None:
    site = next(folder.glob("lib/python*/site-packages"))
    for package in packages.values():
        for file in package.files or ():
            target = site / file
            if ".." in file.parts or target.exists():  # a script, which nobody needs here
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.locate(), target)
            except FileNotFoundError:  # bytecode that was never written
                continue
            except OSError:  # another file system
                shutil.copy2(file.locate(), target)
