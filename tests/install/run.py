"""Makes the environments and runs each part in its own: `make test-install`.

    python -m tests.install.run FOLDER WHEEL [--full] [--torch-index URL]

FOLDER is made anew. `--full` installs from the index as a user does, which takes minutes, and tells
the sizes; otherwise packages are linked from the running environment.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from tests.install.commands import ROOT, run_lanes
from tests.install.environments import CONSTRAINTS, Environment, wheel_requirements


def plain(folder: Path, wheel: Path, *, full: bool, torch_index: str) -> Environment:
    """Return an environment made by `pip install WHEEL[train]`, torch from its index first."""
    environment = Environment(folder, full=full)
    pins = CONSTRAINTS.read_text(encoding="utf-8")
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    environment.install(torch, index=torch_index)
    say_size(environment, "torch and what it requires")
    environment.install(*wheel_requirements(wheel, "train"))
    environment.install_wheel(wheel)
    say_size(environment, "widedeep[train] in all")
    assert environment.missing() == []
    return environment


def serving_image(folder: Path, wheel: Path, *, full: bool) -> Environment:
    """Return what deploy/serve.Dockerfile installs."""
    text = (ROOT / "deploy" / "serve.Dockerfile").read_text(encoding="utf-8")
    install = re.search(r"pip install -c \S+/constraints\.txt .*\[([\w,]+)\]", text)
    assert install, "deploy/serve.Dockerfile installs no wheel with extras"
    environment = Environment(folder, full=full)
    environment.install(*wheel_requirements(wheel, *install[1].split(",")))
    environment.install_wheel(wheel)
    say_size(environment, "the serving image's packages")
    assert environment.missing() == []
    return environment


def say_size(environment: Environment, what: str) -> None:
    """Tell what is on the disk, where it was installed and not linked."""
    if environment.full:
        files = [path for path in environment.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_blocks for path in files if not path.is_symlink()) * 512
        print(f"{what}: {size / 1e6:,.0f} MB", flush=True)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where environments are made, anew")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--full", action="store_true", help="install from the index, as users do")
    parser.add_argument("--torch-index", default="", metavar="URL")
    arguments = parser.parse_args()
    folder, wheel, full = arguments.folder.absolute(), arguments.wheel.absolute(), arguments.full
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    first = plain(folder / "plain", wheel, full=full, torch_index=arguments.torch_index)
    first.run("tests.install.plain", work)

    def with_sklearn() -> None:
        """The extra that the tutorial names."""
        first.install("widedeep[sklearn]" if full else "scikit-learn", "pandas")
        first.run("tests.install.with_sklearn", work)

    def image() -> None:
        """What the docs say of an image without torch."""
        serving = serving_image(folder / "image", wheel, full=full)
        serving.run("tests.install.serving_image", work)

    run_lanes("test-install", [image], [with_sklearn])


if __name__ == "__main__":
    main()
