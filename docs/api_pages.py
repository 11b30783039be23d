"""Makes the API reference: an index of the public names, and a page for each module.

A hook of mkdocs: the pages exist only while the site is built, so none can fall behind the code.
A module has a page if it says in `__all__` what it offers.
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# What a user meets, in the order of the data path; every other module is shown as the inside.
FRONT = (
    *("features", "data.infer", "join", "schema", "data.fit", "config", "models", "optim"),
    *(
        "training.trainer",
        "training.config",
        "training.schedules",
        "training.early_stopping",
        "training.checkpoint",
        "callbacks",
    ),
    *("metrics", "bundle", "estimators", "importing", "tuning", "serving.ranker"),
    *(
        "serving.catalogue",
        "serving.registry",
        "serving.exploration",
        "serving.impressions",
        "serving.retrieval",
    ),
    *("gate", "publish", "report", "simulate", "census", "datasets", "errors"),
)

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "widedeep"


def assigned(path: Path, name: str) -> object:
    """Return the literal that a module assigns to `name`, or None."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def summary(path: Path) -> str:
    """Return the first line of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def modules() -> dict[str, Path]:
    """Return every module with an `__all__` by its dotted name, the package itself left out.

    What a package offers again from its own modules is shown on the package's page alone.
    """
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name != "widedeep" and assigned(path, "__all__"):
            found[name] = path
    packages = [name for name, path in found.items() if path.name == "__init__.py"]
    return {
        name: path
        for name, path in found.items()
        if not any(name.startswith(f"{package}.") for package in packages)
    }


def page_of(module: str) -> str:
    """Return where a module's page lies, from the root of the documents."""
    return f"api/{module.removeprefix('widedeep.')}.md"


def in_order(pages: dict[str, Path], *, front: bool) -> list[str]:
    """Return the modules a user meets, or all the others."""
    known = [f"widedeep.{name}" for name in FRONT if f"widedeep.{name}" in pages]
    return known if front else [module for module in pages if module not in known]


def menu_entry(module: str) -> dict[str, str]:
    """Return a module's line of the navigation."""
    return {module.removeprefix("widedeep."): page_of(module)}


def index_page(pages: dict[str, Path]) -> str:
    """Return the index: what `import widedeep as wd` gives, then every module."""
    module_of = assigned(PACKAGE / "__init__.py", "_MODULE_OF")
    assert isinstance(module_of, dict)
    lines = [
        "# API reference",
        "",
        "## `import widedeep as wd`",
        "",
        "| name | module |",
        "|---|---|",
    ]
    for name, short in module_of.items():
        module = f"widedeep.{short}"
        if module not in pages:  # the package offers it again
            module = module.rpartition(".")[0]
        if module in pages:
            file = page_of(module).removeprefix("api/")
            lines.append(f"| [`wd.{name}`]({file}#{module}.{name}) | `{module}` |")
    for title, front in (("Modules", True), ("Inside", False)):
        lines += ["", f"## {title}", "", "| module | what |", "|---|---|"]
        for module in in_order(pages, front=front):
            file = page_of(module).removeprefix("api/")
            lines.append(f"| [`{module}`]({file}) | {summary(pages[module])} |")
    return "\n".join(lines) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    assert config.nav is not None
    pages = modules()
    front = [menu_entry(module) for module in in_order(pages, front=True)]
    inside = [menu_entry(module) for module in in_order(pages, front=False)]
    config.nav.append({"API reference": ["api/index.md", *front, {"Inside": inside}]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference's pages."""
    pages = modules()
    files.append(File.generated(config, "api/index.md", content=index_page(pages)))
    for module in pages:
        content = f"# {module}\n\n::: {module}\n"
        files.append(File.generated(config, page_of(module), content=content))
    return files
