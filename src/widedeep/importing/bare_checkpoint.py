"""A checkpoint without a SavedModel: what its variables are, by their names and a declaration.

A checkpoint holds tensors alone. Which values stand for which rows, how numbers are scaled, the
activation and the head are what a configuration has to say.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa

from widedeep.data.sources import open_source
from widedeep.errors import CheckpointError, FeatureError, nearest
from widedeep.features import Feature, FeatureSpec
from widedeep.features.bucketized import Bucketized
from widedeep.features.categorical import Categorical
from widedeep.features.crossed import Crossed
from widedeep.features.numeric import Numeric
from widedeep.importing.columns import (
    CountColumn,
    DenseColumn,
    IdColumn,
    NumberColumn,
    ParsedFeature,
    TableColumn,
)
from widedeep.importing.declaration import schema_without_data
from widedeep.importing.network import Layer, Network, Norm, WideColumn
from widedeep.importing.optimizers import read_optimizers
from widedeep.importing.tensor_bundle import TensorBundle
from widedeep.importing.weights import EstimatorSource, part_variables
from widedeep.schema import Schema
from widedeep.training.config import RunConfig

_LINEAR = "linear/linear_model"
_INPUT = "dnn/input_from_feature_columns/input_layer"
_FIRST_ID = 2
_FLOAT = 1


class CheckpointEstimator:
    """Understands the variables of a checkpoint by a configuration.

    Args:
        bundle: The checkpoint.
        config: Its features give vocabularies, buckets and scales; ``[model]`` the activation and
            the head.
        lists: Columns of lists, where ``[data]`` names no training data that would show them.
    """

    def __init__(self, bundle: TensorBundle, config: RunConfig, lists: Collection[str]) -> None:
        self.bundle, self.config = bundle, config
        self.spec = config.spec
        self._check_crosses()
        self.schema = self._schema(lists)

    def source(self) -> EstimatorSource:
        """Return what was understood.

        Raises:
            CheckpointError: If a variable is missing, or has another shape than the feature.
            FeatureError: If a feature is of a kind that an estimator does not have.
        """
        inputs = sorted(self._inputs(), key=lambda entry: entry[0])
        wide = [(name, self._wide(name)) for name in self.spec.wide_names]
        layers = tuple(self._layers())
        network = Network(
            wide=tuple(column for _, column in wide),
            wide_bias=self._optional(f"{_LINEAR}/bias_weights"),
            deep=tuple((name, column) for name, _, column in inputs),
            layers=layers,
            output=self._output() if inputs else None,
        )
        keys = {name: name for name in self.bundle}
        optimizers = read_optimizers(self.bundle, part_variables(network, keys))
        return EstimatorSource(
            bundle=self.bundle,
            keys=keys,
            network=network,
            inputs=[(feature, column) for _, feature, column in inputs],
            wide=wide,
            schema=self.schema,
            config=self._run_config(network),
            slots=self.bundle,
            optimizers=optimizers,
        )

    # ---- schema and configuration ---------------------------------------------------------------

    def _schema(self, lists: Collection[str]) -> Schema:
        spec, data = self.spec, self.config.data.train
        labels = [*spec.labels.values(), *spec.weights]
        if data is not None:
            columns = [*dict.fromkeys([*spec.columns(), *labels])]
            with open_source(data, columns=columns) as rows:
                fields = {field.name: field.type for field in rows.arrow_schema}
        else:
            fields = dict(_declared_types(spec, lists))
        return schema_without_data(spec, fields)

    def _check_crosses(self) -> None:
        """Refuse crosses of columns whose type nothing says: integers have other ids than text."""
        types = _declared_types(self.spec, ())
        crosses = [f for f in self.spec.all_features if isinstance(f, Crossed)]
        for part in [part for cross in crosses for part in cross.part_names]:
            feature = self.spec.by_name.get(part)
            column = part if feature is None else None
            if isinstance(feature, Categorical) and feature.hash_buckets is not None:
                column = feature.source
            if self.config.data.train is None and types.get(column or "") == pa.string():
                raise CheckpointError(
                    f"{self.bundle.index}: a cross reads column {column!r}, and nothing says "
                    "whether it holds text or integers, whose crosses have other ids; name data "
                    "that shows it: train = FILE under [data], a few rows are enough"
                )

    def _run_config(self, network: Network) -> RunConfig:
        model = dataclasses.replace(
            self.config.model,
            hidden_units=tuple(self.bundle.shape(layer.kernel)[1] for layer in network.layers),
            wide_bias=network.wide_bias is not None,
            bias_init="zeros",
            compat="tensorflow",
            batch_norm=self.config.model.batch_norm
            or ("tensorflow" if any(layer.norm for layer in network.layers) else False),
        )
        return dataclasses.replace(self.config, model=model)

    # ---- variables ------------------------------------------------------------------------------

    def _inputs(self) -> Iterator[tuple[str, str, DenseColumn]]:
        """Yield TensorFlow's name of each deep column, our feature, and the column."""
        for name in self.spec.deep_names:
            feature = self.spec.by_name[name]
            if isinstance(feature, Numeric):
                yield feature.source, name, _number(feature)
            elif feature.kind == "indicator":
                source = self.spec.by_name[feature.source]  # type: ignore[attr-defined]
                width = self.schema.id_count(source.name) - _FIRST_ID
                column = CountColumn(column=self._ids(source), width=width)
                yield f"{self._column(source)}_indicator", name, column
            else:
                yield self._table(feature)

    def _table(self, feature: Feature) -> tuple[str, str, TableColumn]:
        column = self._column(feature)
        shared = [f for f in self.spec.all_features if f.table_name == feature.table_name]
        if len(shared) > 1:
            joined = "_".join(sorted(self._column(f) for f in shared)) + "_shared_embedding"
            variable = self._one_of(feature, joined, f"{_INPUT}/{_scope(joined)}/embedding_weights")
            name = f"{column}_shared_embedding"
        else:
            name = f"{column}_embedding"
            scopes = (name, _scope(name))  # a slash stays here
            names = [f"{_INPUT}/{scope}/embedding_weights" for scope in scopes]
            variable = self._one_of(feature, *names)
        self._check_rows(feature, variable)
        table = TableColumn(
            column=self._ids(feature),
            variable=variable,
            combiner="sum",  # the configuration's is in use
            max_norm=feature.embedding_options.max_norm,
        )
        return name, feature.name, table

    def _wide(self, name: str) -> WideColumn:
        feature = self.spec.by_name[name]
        column = self._column(feature)
        variable = self._one_of(feature, f"{_LINEAR}/{_scope(column)}/weights")
        if isinstance(feature, Numeric):
            return WideColumn(name=column, column=_number(feature), variable=variable)
        self._check_rows(feature, variable)
        table = TableColumn(column=self._ids(feature), variable=variable, combiner="sum")
        return WideColumn(name=column, column=table, variable=variable)

    def _check_rows(self, feature: Feature, variable: str) -> None:
        rows, expected = self.bundle.shape(variable)[0], self.schema.id_count(feature.name)
        if rows != expected - _FIRST_ID:
            raise CheckpointError(
                f"{self.bundle.index}: {variable!r} has {rows:,} rows, and feature "
                f"{feature.name!r} has {expected - _FIRST_ID:,} ids; declare it as the estimator's "
                "column was: vocabulary, buckets, boundaries"
            )

    def _layers(self) -> Iterator[Layer]:
        i = 0
        while (kernel := f"dnn/hiddenlayer_{i}/kernel") in self.bundle:
            scopes = (f"dnn/hiddenlayer_{i}/batchnorm_{i}", f"dnn/batchnorm_{i}")
            scope = next((s for s in scopes if f"{s}/moving_mean" in self.bundle), None)
            norm = None
            if scope is not None:
                norm = Norm(
                    gamma=self._optional(f"{scope}/gamma"),
                    beta=self._optional(f"{scope}/beta"),
                    mean=f"{scope}/moving_mean",
                    variance=f"{scope}/moving_variance",
                    eps=1e-3,
                )
            bias = self._required(f"dnn/hiddenlayer_{i}/bias")
            activation = self.config.model.activation
            yield Layer(kernel=kernel, bias=bias, activation=activation, norm=norm)
            i += 1

    def _output(self) -> Layer:
        return Layer(
            kernel=self._required("dnn/logits/kernel"), bias=self._required("dnn/logits/bias")
        )

    def _optional(self, name: str) -> str | None:
        return name if name in self.bundle else None

    def _required(self, name: str) -> str:
        self.bundle.shape(name)  # or an error that names the nearest
        return name

    def _one_of(self, feature: Feature, *names: str) -> str:
        for name in names:
            if name in self.bundle:
                return name
        raise CheckpointError(
            f"{self.bundle.index}: got no variable {names[0]!r} for feature {feature.name!r}; "
            f"{nearest(names[0], self.bundle)} A feature's column is its key in TensorFlow "
            "(source=...)"
        )

    # ---- names ----------------------------------------------------------------------------------

    def _column(self, feature: Feature) -> str:
        """Return the name that TensorFlow gives the column of a feature."""
        if isinstance(feature, Categorical):
            weighted = "" if feature.weights is None else f"_weighted_by_{feature.weights}"
            return feature.source + weighted
        if isinstance(feature, Bucketized):
            return f"{feature.source}_bucketized"
        if isinstance(feature, Crossed):
            by_name = self.spec.by_name
            names = [
                self._column(by_name[part]) if part in by_name else part
                for part in feature.part_names
            ]
            return "_X_".join(sorted(names))
        if isinstance(feature, Numeric) and not feature.has_cut_points and not feature.is_sequence:
            return feature.source
        raise FeatureError(
            f"feature {feature.name!r}: is {feature.kind_text}, which no feature column of "
            "TensorFlow is; declare what the estimator had"
        )

    def _ids(self, feature: Feature) -> IdColumn:
        buckets = getattr(feature, "oov_buckets", 0)
        return IdColumn(kind="vocabulary", buckets=buckets) if buckets else IdColumn(kind="hashed")


def _scope(column: str) -> str:
    """Return a column's name as TensorFlow has it in the names of variables."""
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", column)


def _number(feature: Numeric) -> NumberColumn:
    return NumberColumn(source=ParsedFeature(key=feature.source, dtype=_FLOAT, size=feature.size))


def _declared_types(spec: FeatureSpec, lists: Collection[str]) -> Mapping[str, Any]:
    """Return what columns hold as far as a spec says it: text where it does not."""
    types: dict[str, pa.DataType] = dict.fromkeys(spec.columns(), pa.string())
    for feature in spec.all_features:
        if isinstance(feature, Categorical):
            vocabulary = feature.vocabulary
            if feature.num_buckets or (vocabulary and isinstance(vocabulary[0], int)):
                types[feature.source] = pa.int64()
            if feature.weights is not None:
                types[feature.weights] = pa.float32()
    types = {name: pa.list_(t) if name in lists else t for name, t in types.items()}
    for feature in spec.all_features:
        numbers = feature.number_input
        if numbers is not None:
            wide = numbers.size > 1
            types[numbers.column] = pa.list_(pa.float32()) if wide else pa.float32()
    label = pa.string() if spec.label_vocabulary else pa.float64()
    types.update(dict.fromkeys(spec.labels.values(), label))
    types.update(dict.fromkeys(spec.weights, pa.float64()))
    return types
