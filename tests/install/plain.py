"""After `pip install WHEEL[train]`: verbs, names, modules and documents work or name an extra."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.install.commands import ROOT, blocks, python, run_lanes, widedeep

EXTRAS = {
    "join": ("duckdb", "sqlglot"),
    "spark": ("pyspark",),
    "serve": ("starlette", "uvicorn", "uvloop", "httptools", "msgspec", "prometheus_client"),
    "grpc": ("grpc", "google"),
    "retrieval": ("faiss",),
    "sklearn": ("sklearn",),
    "onnx": ("onnx", "onnxruntime"),
}
OTHERS = ("pandas", "polars", "scipy", "pytest")

SKLEARN = "The same through scikit-learn"
"""The tutorial's last section, which says that it needs an extra."""

NEEDS_SERVE = ("serving.http", "serving.metrics")
NEEDS_GRPC = ("serving.grpc",)
WITH_TRITON = ("kernels.torch_triton", "kernels.torch_triton_programs")

# A model with items, for the serving image, which cannot train one.
ITEMS = """
import pyarrow as pa, pyarrow.parquet as pq
import widedeep as wd

spec = wd.FeatureSpec(
    label="income",
    features=[*wd.numeric("age"), *wd.categorical("education", "occupation")],
    item=["occupation"],
)
model = wd.WideDeep(wd.fit_schema(spec, "train.parquet"), hidden_units=[16])
trainer = wd.Trainer(model, progress=False)
for version in ("1", "2", "3"):
    trainer.fit("train.parquet")
    trainer.export(f"items/{version}")
column = pq.read_table("train.parquet", columns=["occupation"])["occupation"].value_counts()
pq.write_table(
    pa.table({"occupation": column.field("values"), "people": column.field("counts")}),
    "items.parquet",
)
"""


NAMES = """
from widedeep import *
import pyarrow as pa
import widedeep as wd

assert Trainer is wd.Trainer and join_actions is wd.join_actions
X, y = pa.table({"age": [20, 30, 40]}), [0, 1, 1]
for estimator in (WideDeepClassifier, WideDeepRegressor):
    try:
        estimator().fit(X, y)
    except wd.WideDeepError as error:
        assert "pip install 'widedeep[sklearn]'" in str(error), error
    else:
        raise AssertionError("an estimator did without scikit-learn")
"""


def environment() -> None:
    """The package comes from the wheel, and no extra is there."""
    import widedeep as package

    assert Path(package.__file__).is_relative_to(sys.prefix), package.__file__
    for name in (*(name for names in EXTRAS.values() for name in names), *OTHERS):
        assert find_spec(name) is None, f"{name} is installed: this is no plain install"


def names() -> None:
    """`help` and `import *` work; an estimator names scikit-learn's extra."""
    python("import widedeep; help(widedeep)", says="WideDeepClassifier")
    python(NAMES)


def modules() -> None:
    """Each imports, or raises an error that names its extra."""
    import widedeep as package

    missing: dict[str, str] = {}
    for module in pkgutil.walk_packages(package.__path__, "widedeep.", onerror=lambda _: None):
        short = module.name.removeprefix("widedeep.")
        if short == "__main__" or short in WITH_TRITON:
            continue
        try:
            importlib.import_module(module.name)
        except package.WideDeepError as error:
            assert isinstance(error, ImportError), module.name
            missing[short] = str(error)
    for short, error in missing.items():
        extra = "grpc" if short in NEEDS_GRPC else "serve"
        assert f"pip install 'widedeep[{extra}]'" in error, (short, error)
    assert set(missing) == {*NEEDS_SERVE, *NEEDS_GRPC}, sorted(missing)


def data() -> None:
    """The tutorial's first block makes the files from the repository's."""
    Path("widedeep").symlink_to(ROOT)
    python(blocks("docs/tutorial.md", "python")[0])


def documents() -> None:
    """README's lines, then the tutorial's, as printed."""
    python("".join(blocks("README.md", "python")), says="calibration")
    _, *tutorial = blocks("docs/tutorial.md", "python", before=SKLEARN)
    python("".join(tutorial), says="probability")


def commands() -> None:
    """The tutorial's commands, in order, as printed."""
    for block in blocks("docs/tutorial.md", "sh"):
        for line in block.splitlines():
            command = line.partition("#")[0].strip()
            assert command.startswith("widedeep "), command
            serves = command.startswith("widedeep serve ")
            says = "pip install 'widedeep[serve]'" if serves else ""
            widedeep(command.removeprefix("widedeep "), code=2 if serves else 0, says=says)


def helps() -> None:
    """`widedeep` alone is help, and every verb that it lists has its own."""
    verbs = re.findall(r"^ {4}(\w+) ", widedeep("", says="'widedeep VERB --help'"), re.MULTILINE)
    assert {"init", "train", "rollback", "serve", "bench"} <= set(verbs)
    for verb in verbs:
        widedeep(f"{verb} --help", says="example:")


def verbs() -> None:
    """On the tutorial's run, as its commands left it."""
    widedeep("score runs/people test.parquet -o scores.parquet")
    widedeep("inspect runs/people", says="Strongest positive wide weights")
    widedeep("prepare people.toml --out runs/prepared")
    widedeep("validate runs/people --against models --data test.parquet")
    widedeep("publish runs/people models --force --reason second")
    widedeep("inspect models", says="serves")
    widedeep("rollback models", says="version 1 is requested")
    widedeep("report runs/people --data test.parquet -o report.html")
    widedeep("simulate store --days 1 --users 50 --apps 90 --requests 20", says="next:")
    widedeep("join store/join.toml", code=2, says="pip install 'widedeep[join]'")
    widedeep("check store/join.toml", code=1, says="pip install 'widedeep[join]'")
    spark = 'join store/join.toml --set join.engine="spark"'
    widedeep(spark, code=2, says="pip install 'widedeep[spark]'")
    widedeep("serve models", code=2, says="pip install 'widedeep[serve]'")
    widedeep("bench serve models", code=2, says="pip install 'widedeep[serve]'")
    table1 = "bench table1 --seeds 2 --days 1 --requests 20"
    widedeep(table1, code=2, says="pip install 'widedeep[join]'")


def items() -> None:
    """Models with items, for the serving image."""
    python(ITEMS)


def main() -> None:
    """Run every part in the folder that is named, which is made."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    run_lanes("plain install", [environment, data])
    lanes = ([modules, names, helps, documents, items], [commands, verbs])
    run_lanes("plain install", *lanes)


if __name__ == "__main__":
    main()
