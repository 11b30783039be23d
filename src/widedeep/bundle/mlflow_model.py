"""Bundles as MLflow models: ``mlflow.pyfunc.load_model(uri).predict(frame)``, without torch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from widedeep._version import __version__
from widedeep.bundle.bundle import Bundle
from widedeep.errors import extra_imports

_DATA = "bundle"  # Name of the folder in the model's that is the bundle


class ScoringModel:
    """A bundle as MLflow calls it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: object, params: Mapping[str, Any] | None = None) -> Any:
        """Return what :meth:`widedeep.Bundle.score` does; as a frame if it is more than a vector.

        Args:
            model_input: A data frame, in which an absent column counts as null; an Arrow table, or
                a list of dicts.
            params: Unused; MLflow passes it.
        """
        frame: Any = model_input
        if hasattr(frame, "assign"):
            absent = [c for c in self.bundle.input_columns if c not in frame.columns]
            frame = frame.assign(**dict.fromkeys(absent)) if absent else frame
        by_head = self.bundle.scores_by_head(self.bundle.row_logits(frame))
        if len(by_head) == 1 and next(iter(by_head.values())).ndim == 1:
            return next(iter(by_head.values()))
        import pandas as pd

        columns: dict[str, Any] = {}
        for head, array in by_head.items():
            if array.ndim == 1:
                columns[head] = array
                continue
            for index in range(array.shape[1]):
                columns[f"{head}/{index}" if head else str(index)] = array[:, index]
        return pd.DataFrame(columns)


def _load_pyfunc(path: str) -> ScoringModel:
    """Load what :func:`save_mlflow_model` wrote; MLflow calls it."""
    return ScoringModel(Bundle.load(path))


def save_mlflow_model(
    bundle: Bundle | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    extra_requirements: Sequence[str] = (),
) -> None:
    """Write a bundle as an MLflow model, a folder.

    Args:
        bundle: The bundle, or its folder.
        path: Folder of the model, which must not exist.
        extra_requirements: Requirements of pip beside widedeep of this version.

    Raises:
        BundleError: If it is damaged.
        MissingPackageError: If MLflow is not installed (``widedeep[mlflow]``).

    Example:
        >>> import widedeep as wd
        >>> from widedeep.bundle import load_mlflow_model, save_mlflow_model
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False)
        >>> bundle = trainer.export("jobs_bundle")
        >>> save_mlflow_model(bundle, "jobs_model")  # doctest: +SKIP
        >>> load_mlflow_model("jobs_model").score({"job": "a"})  # doctest: +SKIP
        array([0.5])
    """
    with extra_imports():
        import mlflow.pyfunc
    flavor = _flavor(bundle, extra_requirements)
    with _without_advice():
        mlflow.pyfunc.save_model(path=os.fspath(path), **flavor)


def log_mlflow_model(
    bundle: Bundle | str | os.PathLike[str],
    *,
    name: str = "bundle",
    run_id: str | None = None,
    tracking_uri: str | None = None,
    registered_model_name: str | None = None,
    extra_requirements: Sequence[str] = (),
) -> str:
    """Log a bundle as a model of an MLflow run.

    Args:
        bundle: The bundle, or its folder.
        name: Name of the model in its run.
        run_id: The run; None: the active one, or a new one.
        tracking_uri: Where the run is; None: MLflow's own setting.
        registered_model_name: Name in the model registry under which it becomes a version.
        extra_requirements: Requirements of pip beside widedeep of this version.

    Returns:
        The model's URI, for ``mlflow.pyfunc.load_model`` and :func:`load_mlflow_model`.

    Raises:
        BundleError: If it is damaged.
        MissingPackageError: If MLflow is not installed (``widedeep[mlflow]``).
    """
    with extra_imports():
        import mlflow.pyfunc
    flavor = _flavor(bundle, extra_requirements)
    flavor |= {"name": name, "registered_model_name": registered_model_name}
    before = mlflow.get_tracking_uri()
    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    try:
        with _without_advice():
            return _logged(flavor, run_id)
    finally:
        mlflow.set_tracking_uri(before)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out MLflow's advice to store rows of the data; a bundle has some, if it may."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example", UserWarning)
        yield


def _logged(flavor: Mapping[str, Any], run_id: str | None) -> str:
    """Log a model to a run, whose status stays as it is; return its URI."""
    import mlflow.pyfunc

    active = mlflow.active_run()
    uri: str
    if run_id is None or (active is not None and active.info.run_id == run_id):
        uri = mlflow.pyfunc.log_model(**flavor).model_uri
        return uri
    client = mlflow.MlflowClient()
    status = client.get_run(run_id).info.status
    with mlflow.start_run(run_id=run_id, nested=active is not None):
        uri = mlflow.pyfunc.log_model(**flavor).model_uri
    client.update_run(run_id, status)
    return uri


def _flavor(
    bundle: Bundle | str | os.PathLike[str], extra_requirements: Sequence[str]
) -> dict[str, Any]:
    """Return the arguments of MLflow's ``save_model`` and ``log_model``."""
    from mlflow.models import ModelSignature

    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    return {
        "loader_module": __name__,
        "data_path": str(bundle.path),
        "signature": ModelSignature(inputs=_input_schema(bundle)),
        "pip_requirements": [f"widedeep=={__version__}", "pandas", *extra_requirements],
        "metadata": {"widedeep.schema": bundle.schema.fingerprint},
    }


def _input_schema(bundle: Bundle) -> Any:
    """Return the columns that a row may bring; all may be absent, which counts as null.

    Numbers are of any type: MLflow refuses integers for a double, and pandas holds integers with
    nulls as floats.
    """
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    any_number: Any = AnyType
    columns: list[Any] = []
    for name, column in bundle.input_columns.items():
        kind = DataType.string if column.kind == "string" else any_number()
        columns.append(ColSpec(Array(kind) if column.nested else kind, name, required=False))
    return Schema(columns)


def load_mlflow_model(uri: str | os.PathLike[str]) -> Bundle:
    """Return the bundle of an MLflow model.

    Args:
        uri: The model's URI (``models:/...``, ``runs:/.../bundle``), or its folder.

    Raises:
        BundleError: If it is damaged, or another kind of model.
        MissingPackageError: If MLflow is not installed (``widedeep[mlflow]``).
    """
    with extra_imports():
        import mlflow.artifacts
    folder = Path(uri)
    if not folder.is_dir():
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=os.fspath(uri)))
    return Bundle.load(folder / "data" / _DATA)
