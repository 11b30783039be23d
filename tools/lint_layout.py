"""Checks the layout that no general linter knows: import direction, sizes, names, `__all__`.

    python tools/lint_layout.py            # the repository this file stands in

Prints one line a finding and ends with 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from cpp_functions import function_sizes

ROOT = Path(__file__).resolve().parent.parent

MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 80
MAX_PUBLIC_NAMES = 40
MAX_FLOORS = 12

# Each room of src/widedeep and the rooms directly before it. A room may import from any room
# before it, however far back; a new room needs a place here. Every import counts, those inside
# functions and for type checkers alone too: who reads the one file must read the other.
BEFORE: dict[str, tuple[str, ...]] = {
    "errors": (),
    "_native": (),
    "_version": (),
    "files": ("errors", "_version"),
    "remote": ("errors",),
    "traces": ("errors",),
    "page": ("errors",),
    "metrics": ("errors",),
    "options": ("errors",),
    "kernels": ("errors", "_native"),
    "features": ("options", "kernels"),
    "census": ("features", "files"),
    "schema": ("features", "options", "kernels", "files", "page"),
    "optim": ("options", "kernels"),
    "ranks": ("options", "kernels", "files"),
    "data": ("schema", "page", "metrics", "ranks", "remote", "traces"),
    "join": ("data",),
    "bundle": ("data",),
    "tables": ("data", "optim"),
    "callbacks": ("bundle",),
    "models": ("bundle", "tables"),
    "training": ("models", "callbacks"),
    "estimators": ("training", "evaluation"),
    "importing": ("training",),
    "serving": ("bundle",),
    "evaluation": ("bundle",),
    "gate": ("evaluation", "serving", "page"),
    "config": ("training", "gate"),
    "tuning": ("config",),
    "publish": ("training", "gate"),
    "report": ("publish",),
    "simulate": ("config", "join"),
    "datasets": ("census", "simulate"),
    "cli": ("report", "census", "simulate", "tuning", "importing"),
    "__main__": ("cli",),
}

# Where `import torch` raises, a bundle loads, scores and is served. Kernels that run
# by torch say so by name.
WITHOUT_TORCH = {
    *("__init__", "errors", "files", "remote", "traces", "features", "options", "config"),
    "kernels",
    *("schema", "data", "join", "bundle", "metrics", "serving", "page", "evaluation", "gate"),
    *("publish", "report", "cli", "callbacks"),
}
TORCH_MODULES = "torch_"

# Only kernels speak to the native module: everything else gets typed functions.
NATIVE_USERS = {"kernels"}

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
SIZED = ("src", "native", "tests", "benchmarks", "examples", "tools", "docs")


def reachable(room: str) -> set[str]:
    """Return every room that stands before `room`."""
    rooms: set[str] = set()
    open_rooms = list(BEFORE[room])
    while open_rooms:
        name = open_rooms.pop()
        if name not in rooms:
            rooms.add(name)
            open_rooms.extend(BEFORE[name])
    return rooms


def is_for_type_checkers(node: ast.AST) -> bool:
    """Tell whether `node` is an `if TYPE_CHECKING:` block."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported_modules(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted module) of each import; `package` is where relative ones start."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from widedeep import schema` names the room in the alias, not in the module.
            if module == "widedeep":
                for alias in node.names:
                    yield node.lineno, f"widedeep.{alias.name}"
            else:
                yield node.lineno, module


def import_time_nodes(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run when the module is imported (classes and `if`s opened)."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and is_for_type_checkers(node):
            pending.extend(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            pending.extend(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            pending.extend(handler.body)


def imports_torch(tree: ast.Module) -> int | None:
    """Return the line on which importing the module would import torch, if there is one."""
    for statement in import_time_nodes(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            alone = ast.Module(body=[statement], type_ignores=[])
            for line, module in imported_modules(alone, []):
                if module.split(".")[0] == "torch":
                    return line
    return None


def check_imports(path: Path, tree: ast.Module, package_root: Path) -> Iterator[str]:
    """Yield the findings on one module's imports."""
    parts = list(path.relative_to(package_root).with_suffix("").parts)
    room = parts[0]
    if room != "__init__" and room not in BEFORE:
        yield f"{path}:1: no place in the import order; add {room!r} to BEFORE"
        return
    if room in WITHOUT_TORCH and not path.name.startswith(TORCH_MODULES):
        line = imports_torch(tree)
        if line:
            yield f"{path}:{line}: imports torch; {room!r} must work where torch does not exist"
    if room == "__init__":
        return
    allowed = reachable(room) | {room}
    for line, module in imported_modules(tree, ["widedeep", *parts[:-1]]):
        names = module.split(".")
        if names[0] != "widedeep" or len(names) < 2 or names[1] not in BEFORE:
            continue
        if names[1] not in allowed:
            yield f"{path}:{line}: {room!r} imports {names[1]!r}, which does not stand before it"
        elif names[1] == "_native" and room not in NATIVE_USERS:
            yield f"{path}:{line}: {room!r} imports '_native'; go through 'kernels'"


def import_graph(package_root: Path) -> dict[str, set[str]]:
    """Return each module of the package and the modules of it that it imports."""
    paths = {}
    for path in sorted(package_root.rglob("*.py")):
        parts = path.relative_to(package_root).with_suffix("").parts
        paths[".".join(part for part in parts if part != "__init__")] = path
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
        package = ["widedeep", *parent.split(".")] if parent else ["widedeep"]
        imports: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                alone = ast.Module(body=[node], type_ignores=[])
                for _, module in imported_modules(alone, package):
                    dotted = [f"{module}.{alias.name}" for alias in node.names]
                    imports.update(dotted, (module,))
            elif isinstance(node, ast.Import):
                imports.update(alias.name for alias in node.names)
        # `from widedeep.data import fit` names the module fit, not the package.
        known = {module.removeprefix("widedeep.") for module in imports} & set(paths)
        graph[name] = {m for m in known - {name} if not any(k.startswith(f"{m}.") for k in known)}
    graph.pop("", None)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others."""
    reach: dict[str, set[str]] = {}
    for name in graph:
        pending, reached = [name], set()
        while pending:
            for module in graph.get(pending.pop(), ()):
                if module not in reached:
                    reached.add(module)
                    pending.append(module)
        reach[name] = reached
    groups = {
        tuple(sorted({name} | {m for m in reach[name] if name in reach.get(m, ())}))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def floors() -> int:
    """Return the longest chain of rooms that stand on one another."""

    def height(room: str) -> int:
        return 1 + max((height(below) for below in BEFORE[room]), default=0)

    return max(height(room) for room in BEFORE)


def check_graph(package_root: Path) -> Iterator[str]:
    """Yield the findings on the imports as a whole."""
    for group in circles(import_graph(package_root)):
        yield f"{package_root}: modules import each other in a circle: {', '.join(group)}"
    if floors() > MAX_FLOORS:
        yield f"{package_root}: {floors()} floors of rooms, at most {MAX_FLOORS}"


def check_sizes(path: Path, text: str) -> Iterator[str]:
    """Yield the findings on the size of a file and its functions, and on its name."""
    n_lines = text.count("\n")
    if n_lines > MAX_FILE_LINES:
        yield f"{path}:1: {n_lines} lines, at most {MAX_FILE_LINES}; split it along the data path"
    for line, name, size in function_lines(path, text):
        if size > MAX_FUNCTION_LINES:
            yield f"{path}:{line}: {name} has {size} lines, at most {MAX_FUNCTION_LINES}"
    if path.stem in VAGUE_NAMES:
        yield f"{path}:1: the name {path.stem!r} does not say what is inside"


def function_lines(path: Path, text: str) -> Iterator[tuple[int, str, int]]:
    """Yield (first line, name, number of lines) of every function in a Python or C++ file.

    A docstring does not count: it is for the reader, and asked for.
    """
    if path.suffix != ".py":
        yield from function_sizes(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            end = node.end_lineno or node.lineno
            doc = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            doc_lines = (doc.end_lineno or doc.lineno) - doc.lineno + 1 if doc else 0
            yield node.lineno, node.name, end - node.lineno + 1 - doc_lines


def check_public_names(init: Path) -> Iterator[str]:
    """Yield a finding if the package exports more names than a person keeps in mind."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            if len(names) > MAX_PUBLIC_NAMES:
                yield f"{init}:{node.lineno}: {len(names)} public names, at most {MAX_PUBLIC_NAMES}"
            return
    yield f"{init}:1: no __all__"


def sized_files(root: Path) -> Iterator[Path]:
    """Yield every Python and C++ source of the repository."""
    for folder in SIZED:
        for path in sorted((root / folder).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix in {".py", ".cpp", ".hpp"} and "build" not in path.parts and not hidden:
                yield path


def findings(root: Path) -> list[str]:
    """Return one line for each breach of the layout."""
    package = root / "src" / "widedeep"
    lines: list[str] = []
    for path in sized_files(root):
        text = path.read_text(encoding="utf-8")
        lines.extend(check_sizes(path, text))
        if package in path.parents:
            lines.extend(check_imports(path, ast.parse(text), package))
    lines.extend(check_graph(package))
    lines.extend(check_public_names(package / "__init__.py"))
    return [line.removeprefix(f"{root}/") for line in lines]


def main() -> int:
    """Print the findings; return the exit code."""
    lines = findings(ROOT)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
