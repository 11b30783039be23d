"""The estimators behave as scikit-learn's own do, on the tables people have."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import widedeep as wd
from widedeep.errors import DataError, WideDeepError
from widedeep.estimators.estimator_data import as_table, infer_features

ROWS = 300
RNG = np.random.default_rng(0)
JOB, AGE = RNG.integers(0, 4, ROWS), RNG.normal(size=ROWS)
X = pd.DataFrame({"job": [f"job {value}" for value in JOB], "age": AGE})
Y = np.where(JOB + AGE > 1.5, "yes", "no")
PRICE = JOB + 2.0 * AGE


def classifier(**options: Any) -> wd.WideDeepClassifier:
    settings: dict[str, Any] = {"epochs": 8, "batch_size": 32, "threads": 1}
    return wd.WideDeepClassifier(hidden_units=[8], embedding_dim=4, **{**settings, **options})


def regressor(**options: Any) -> wd.WideDeepRegressor:
    settings: dict[str, Any] = {"epochs": 8, "batch_size": 32, "threads": 1}
    return wd.WideDeepRegressor(hidden_units=[8], embedding_dim=4, **{**settings, **options})


def test_classes_come_back_as_they_were_given() -> None:
    model = classifier().fit(X, Y)
    assert model.classes_.tolist() == ["no", "yes"]
    assert set(model.predict(X)) == {"no", "yes"}
    proba = model.predict_proba(X)
    assert proba.shape == (ROWS, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, atol=1e-12)
    assert (model.predict(X) == model.classes_[proba.argmax(axis=1)]).all()
    assert model.score(X, Y) > 0.8
    assert proba[Y == "yes", 1].mean() > proba[Y == "no", 1].mean() + 0.2


def test_booleans_and_numbers_are_classes_too() -> None:
    for labels in (Y == "yes", np.where(Y == "yes", 7, -3), np.where(Y == "yes", 2.0, 1.0)):
        model = classifier(epochs=4).fit(X, labels)
        assert model.predict(X).dtype == labels.dtype
        assert model.score(X, labels) > 0.75


def test_three_classes() -> None:
    labels = np.array(["red", "green", "blue"])[JOB % 3]
    model = classifier().fit(X, labels)
    assert model.predict_proba(X).shape == (ROWS, 3)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0, atol=1e-12)
    assert model.score(X, labels) > 0.95


def test_parameters_are_read_set_and_cloned() -> None:
    model = classifier(wide=wd.FTRL(lr=0.2), features=[wd.categorical("job")])
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    assert copy.get_params()["wide"] == wd.FTRL(lr=0.2)
    assert copy.set_params(epochs=3, dropout=0.1) is copy
    assert (copy.epochs, copy.dropout, model.epochs) == (3, 0.1, 8)
    with pytest.raises(ValueError, match="Invalid parameter 'epoch'"):
        copy.set_params(epoch=3)
    fitted = model.fit(X, Y)
    assert not hasattr(clone(fitted), "model_")
    assert clone(fitted).fit(X, Y).predict_proba(X).tolist() == fitted.predict_proba(X).tolist()


def test_random_state_is_the_seed() -> None:
    scores = [classifier(random_state=seed).fit(X, Y).predict_proba(X)[:, 1] for seed in (1, 1, 2)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_cross_validation_and_search() -> None:
    found = cross_val_score(classifier(), X, Y, cv=3, scoring="roc_auc")
    assert found.min() > 0.85
    search = GridSearchCV(classifier(), {"epochs": [1, 8], "hidden_units": [(), (8,)]}, cv=2)
    search.fit(X, Y)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert set(search.best_params_) == {"epochs", "hidden_units"}
    assert cross_val_score(regressor(epochs=12), X, PRICE, cv=2).min() > 0.6


def test_pipelines() -> None:
    with_square = FunctionTransformer(lambda frame: frame.assign(square=frame["age"] ** 2))
    pipeline = make_pipeline(with_square, classifier())
    assert pipeline.fit(X, Y).score(X, Y) > 0.8
    assert pipeline[-1].feature_names_in_.tolist() == ["job", "age", "square"]
    pipeline.set_params(widedeepclassifier__epochs=1)
    assert pipeline[-1].epochs == 1


def test_it_is_no_worse_than_logistic_regression_on_categories() -> None:
    labels = JOB % 2 == 0  # not linear in the job's number
    linear = make_pipeline(OneHotEncoder(), LogisticRegression())
    want = linear.fit(X[["job"]], labels).score(X[["job"]], labels)
    assert classifier().fit(X[["job"]], labels).score(X[["job"]], labels) >= want == 1.0


def test_every_kind_of_table_gives_the_same_model() -> None:
    want = classifier().fit(X, Y).predict_proba(X)
    arrow = pa.table({"job": pa.array(X["job"]), "age": pa.array(AGE)})
    tables: list[Any] = [pl.from_pandas(X), arrow, X.astype({"job": "category"})]
    for table in tables:
        assert np.array_equal(classifier().fit(table, Y).predict_proba(table), want)
    mixed = X.to_numpy(dtype=object)
    model = classifier().fit(mixed, Y)
    assert model.feature_names_in_.tolist() == ["x0", "x1"]
    assert model.score(mixed, Y) > 0.8
    numbers = np.stack([AGE, JOB], axis=1)
    model = classifier(epochs=30, deep=wd.Adagrad(lr=0.2)).fit(numbers, pl.Series(Y))
    assert model.score(numbers, Y) > 0.9


def test_the_index_of_a_frame_is_no_feature() -> None:
    shuffled = X.sample(frac=1.0, random_state=0)
    model = classifier(epochs=1).fit(shuffled, Y[shuffled.index])
    assert model.feature_names_in_.tolist() == ["job", "age"]
    assert model.n_features_in_ == 2
    assert as_table(shuffled).column_names == ["job", "age"]


def test_columns_may_come_in_another_order_and_number() -> None:
    model = classifier().fit(X, Y)
    other = X.assign(more=1)[["more", "age", "job"]]
    assert np.array_equal(model.predict_proba(other), model.predict_proba(X))
    with pytest.raises(DataError, match="no column 'job'; known: 'age'"):
        model.predict(X[["age"]])


def test_numbers_are_numeric_and_all_else_categorical() -> None:
    table = pa.table({"a": [1], "b": [1.5], "c": ["x"], "d": [True], "e": [["x", "y"]]})

    features: Any = wd.FeatureSpec(features=infer_features(table)).features
    assert [f"{type(f).__name__} {f.name}" for f in features] == [
        "Numeric a", "Numeric b", "Categorical c", "Categorical d", "Categorical e",
    ]  # fmt: skip


def test_a_weight_of_zero_takes_a_row_away() -> None:
    weights = np.where(Y == "yes", 1.0, 0.0)
    assert classifier().fit(X, Y, sample_weight=weights).predict_proba(X)[:, 1].min() > 0.7
    values = np.where(JOB == 0, 100.0, 0.0)
    heavy = np.where(JOB == 0, 0.0, 1.0)
    assert abs(regressor().fit(X, values, sample_weight=heavy).predict(X)[JOB != 0].mean()) < 8


def test_regression_predicts_in_the_labels_units() -> None:
    model = regressor(epochs=20).fit(X, 1e6 + 1e5 * PRICE)
    assert model.score(X, 1e6 + 1e5 * PRICE) > 0.8
    assert model.predict(X).shape == (ROWS,)
    assert model.predict(X).mean() == pytest.approx(1e6 + 1e5 * PRICE.mean(), rel=0.02)
    assert regressor(epochs=20).fit(X, np.full(ROWS, 7.0)).predict(X) == pytest.approx(7.0, abs=0.3)


def test_a_column_of_labels_counts_as_labels() -> None:
    want = classifier(epochs=1).fit(X, Y).predict_proba(X)
    with pytest.warns(DataConversionWarning):
        assert np.array_equal(classifier(epochs=1).fit(X, Y[:, None]).predict_proba(X), want)
    with pytest.warns(DataConversionWarning, match="give y.ravel"):
        values = regressor(epochs=1).fit(X, PRICE[:, None]).predict(X)
    assert np.array_equal(values, regressor(epochs=1).fit(X, PRICE).predict(X))


@pytest.mark.parametrize(
    "kind", [wd.WideDeepClassifier, pytest.param(wd.WideDeepRegressor, marks=pytest.mark.slow)]
)
def test_scikit_learns_own_checks_pass(kind: Any) -> None:
    model = kind(hidden_units=(4,), embedding_dim=2, epochs=4, threads=1)
    checks = check_estimator(model, on_skip=None)
    others = [check["check_name"] for check in checks if check["status"] != "passed"]
    assert others == ["check_array_api_input"]  # skipped: SCIPY_ARRAY_API is not set
    assert len(checks) >= 58


def test_a_whole_weight_is_as_many_rows() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 4, ROWS)
    rows, shuffled = np.repeat(np.arange(ROWS), counts), rng.permutation(ROWS)
    many = regressor(epochs=2).fit(X.iloc[rows], PRICE[rows])
    weights = counts[shuffled]
    few = regressor(epochs=2).fit(X.iloc[shuffled], PRICE[shuffled], sample_weight=weights)
    assert np.array_equal(few.predict(X), many.predict(X))
    assert few.label_mean_ == pytest.approx(np.average(PRICE, weights=counts))
    halves = regressor(epochs=2).fit(X, PRICE, sample_weight=counts / 2)
    assert halves.spec_.weight == "__weight__" and many.spec_.weight is None
    assert halves.label_mean_ == pytest.approx(few.label_mean_)


def test_classes_have_weights() -> None:
    rare = np.where((JOB == 3) & (AGE > 0), "yes", "no")
    plain, balanced, named = (
        classifier(class_weight=weights).fit(X, rare).predict_proba(X)[:, 1].mean()
        for weights in (None, "balanced", {"yes": 20.0})
    )
    assert 1.2 * plain < balanced < 0.6
    assert named > 1.2 * plain
    certain = classifier(class_weight={"no": 0.0}).fit(X, rare, sample_weight=np.ones(ROWS))
    assert certain.predict_proba(X)[:, 1].min() > 0.6
    for weights, message in (
        ({"maybe": 1.0}, "got the class 'maybe', which y does not hold; its classes"),
        ("even", "got class_weight='even', expected 'balanced' or a dict"),
        ({"yes": -1.0}, "got -1.0, expected a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(class_weight=weights).fit(X, rare)
    with pytest.raises(ValueError, match=f"got {ROWS} rows in X and 1 in sample_weight"):
        classifier(class_weight="balanced").fit(X, rare, sample_weight=[1.0])
    with pytest.raises(ValueError, match="class_weight='balanced' for a regression"):
        regressor(class_weight="balanced").fit(X, PRICE)


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        self.values.append(metrics["valid/log_loss"])


def test_an_eval_set_decides_and_callbacks_see_it() -> None:
    losses = Losses()
    noise = np.random.default_rng(1).permutation(Y)  # what training learns of it is wrong here
    model = classifier(epochs=40).fit(X, noise, eval_set=[(X, Y)], callbacks=[losses])
    assert losses.values == [row["valid/log_loss"] for row in model.history_]
    best = min(losses.values)
    assert model.trainer_.evaluate(X.assign(__label__=(Y == "yes") * 1))["log_loss"] == best
    assert 4 <= len(losses.values) < 20
    whole = classifier(epochs=40, early_stopping=False).fit(X, noise, eval_set=(X, Y))
    assert len(whole.history_) >= 20
    for eval_set, message in (
        ((X, np.full(ROWS, "maybe")), r"eval_set: y \(row 0\): got 'maybe', expected one of"),
        ((X, Y[:9]), "eval_set: got 300 rows in X and 9 in y"),
        (X, "eval_set: got 'DataFrame', expected one pair"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(epochs=1).fit(X, Y, eval_set=eval_set)


@pytest.mark.slow
def test_settings_are_chosen_by_the_eval_set() -> None:
    chosen = regressor(epochs="auto").fit(X, PRICE, eval_set=(X[:50], PRICE[:50]))
    assert len(chosen.candidates_) >= 3 and "valid/rmse" in chosen.history_[-1]


def test_optimizers_parameters_are_nested() -> None:
    model = classifier(wide="ftrl", epochs=1)
    assert model.get_params()["wide__lr"] == wd.FTRL().lr
    assert set(model.get_params(deep=False)) <= set(model.get_params())
    model.set_params(wide__lr=0.5, deep__optimizer="adam", deep__lr=0.01)
    assert (model.wide, model.deep) == (wd.FTRL(lr=0.5), wd.Adam(lr=0.01))
    model.set_params(wide__optimizer="sgd", epochs=2)
    assert (model.wide, model.epochs, clone(model).wide) == (wd.SGD(), 2, wd.SGD())
    with pytest.raises(ValueError, match="unknown key 'rate'"):
        model.set_params(wide__rate=0.5)
    grid = GridSearchCV(classifier(epochs=2), {"wide__lr": [1e-9, 0.5], "deep__lr": [1e-9]}, cv=2)
    assert grid.fit(X[["job"]], Y).best_params_["wide__lr"] == 0.5


def test_importances_are_of_the_columns_that_matter() -> None:
    noise = np.random.default_rng(5).normal(size=ROWS)
    frame = X.assign(noise=noise)
    model = classifier(features=[wd.categorical("job"), wd.numeric("age", "noise")]).fit(frame, Y)
    by_name = dict(zip(model.feature_names_in_, model.feature_importances_, strict=True))
    assert sum(by_name.values()) == pytest.approx(1.0)
    assert by_name["noise"] < 0.03 < 0.05 < by_name["age"] < by_name["job"]
    model.importance_type = "gain"
    job, age, _ = model.feature_importances_
    assert job > age >= 0.0
    selected = SelectFromModel(model, threshold=0.1, prefit=True).get_support()
    assert selected.tolist() == (model.feature_importances_ >= 0.1).tolist()
    with pytest.raises(NotFittedError):
        _ = classifier().feature_importances_
    with pytest.raises(ValueError, match="importance_type='split', expected 'permutation' or"):
        classifier(importance_type="split").fit(X, Y)


def test_frames_of_set_output_and_routed_weights_arrive() -> None:
    scale = ColumnTransformer([("age", StandardScaler(), ["age"])], remainder="passthrough")
    for frames in ("pandas", "polars"):
        pipeline = make_pipeline(scale, classifier(epochs=1)).set_output(transform=frames)
        names = pipeline.fit(X, Y)[-1].feature_names_in_
        assert names.tolist() == ["age__age", "remainder__job"]
    weights = np.where(Y == "yes", 1.0, 0.0)
    with config_context(enable_metadata_routing=True):
        model = classifier().set_fit_request(sample_weight=True)
        model = model.set_score_request(sample_weight=True)
        params = {"sample_weight": weights}
        result = cross_validate(model, X, Y, params=params, cv=2, return_estimator=True)
    assert result["test_score"].tolist() == [1.0, 1.0]
    for fitted in result["estimator"]:
        assert fitted.predict_proba(X)[:, 1].min() > 0.7


@pytest.mark.slow
def test_the_bare_estimators_are_good_on_small_tables() -> None:
    flowers, kinds = load_iris(return_X_y=True, as_frame=True)
    linear = make_pipeline(StandardScaler(), LogisticRegression())
    want = cross_val_score(linear, flowers, kinds, cv=3, scoring="neg_log_loss").mean()
    model = wd.WideDeepClassifier(threads=1)
    assert cross_val_score(model, flowers, kinds, cv=3, scoring="neg_log_loss").mean() > want
    one, again = (wd.WideDeepRegressor(threads=1).fit(X, PRICE) for _ in range(2))
    assert one.score(X, PRICE) > 0.95
    assert again.candidates_ == one.candidates_
    assert np.array_equal(again.predict(X), one.predict(X))


@pytest.mark.parametrize(
    "options", [{"hidden_units": []}, {"features": [wd.bucketized("old", source="age", bins=4)]}]
)
def test_the_best_of_a_model_without_hidden_layers_is_that_model(options: Any) -> None:
    settings = {"hidden_units": [8], "epochs": 4, "batch_size": 64, "threads": 1} | options
    models = [
        wd.WideDeepClassifier(quality=quality, **settings).fit(X, Y) for quality in ("good", "best")
    ]
    good, best = (model.predict_proba(X) for model in models)
    np.testing.assert_array_equal(good, best)


def test_settings_are_chosen_on_rows_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    model = wd.WideDeepClassifier(hidden_units=(), threads=1, verbose=True).fit(X, Y)
    assert len({judged.setting for judged in model.candidates_}) == len(model.candidates_) >= 3
    assert capsys.readouterr().err.count("<- best") == 1
    assert model.inferred_.columns[0].role == "categorical"
    assert model.n_iter_ == model.trainer_.position.epoch > 1
    for options in ({"epochs": 3}, {"early_stopping": False}):
        model = wd.WideDeepClassifier(hidden_units=(), threads=1, **options).fit(X, Y)
        assert model.candidates_ == []
    with pytest.raises(ValueError, match=r"validation_fraction=0.9, expected 0 < fraction"):
        classifier(validation_fraction=0.9).fit(X, Y)


@pytest.mark.slow
def test_rows_without_weight_choose_nothing() -> None:
    noise = pd.concat([X, X])
    labels = np.concatenate([Y, np.random.default_rng(1).permutation(Y)])
    weights = np.repeat([1.0, 0.0], ROWS)
    model = wd.WideDeepClassifier(threads=1).fit(noise, labels, sample_weight=weights)
    assert min(judged.loss for judged in model.candidates_) < 0.3
    assert model.score(X, Y) > 0.9


def test_integers_that_are_keys_and_columns_named_weight_are_features() -> None:
    rng = np.random.default_rng(0)
    users = rng.permutation(60)[np.arange(3_000) % 60]
    likes = rng.random(60) < 0.5
    frame = pd.DataFrame({"user_id": users, "weight": rng.random(3_000)})
    model = classifier().fit(frame, likes[users])
    assert model.score(frame, likes[users]) > 0.95
    assert set(model.spec_.columns()) == {"user_id", "weight"}


def test_a_fitted_estimator_is_pickled() -> None:
    for model in (classifier(epochs=1).fit(X, Y), regressor(epochs=1).fit(X, PRICE)):
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again.predict(X), model.predict(X))


def test_not_fitted() -> None:
    for model in (classifier(), regressor()):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            model.predict(X)


def with_bad(value: object) -> NDArray[Any]:
    labels: NDArray[Any] = Y.astype(object)
    labels[5] = value
    return labels


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, np.full(ROWS, "yes"), r"one class only in y \(\['yes'\]\), expected at least two"),
        (X, np.full(5, "yes"), "got 300 rows in X and 5 in y; expected equally many"),
        (X, Y[:200], "got 300 rows in X and 200 in y; expected equally many"),
        (X, np.stack([Y, Y], axis=1), r"y: got an array of shape \(300, 2\), expected \(rows,\)"),
        (X, with_bad(None), r"y \(row 5\): got None, expected a class; drop the row"),
        (X, with_bad(np.nan), r"y \(row 5\): got nan, expected a class; drop the row"),
        (AGE, Y, r"got an array of 1 dimension\(s\), expected 2: \(rows, columns\)"),
        ([[{"a": 1}], [1]] * 150, Y, r"column 'x0' \(row 0\): got {'a': 1}, but .* a string or a"),
        (csr_matrix([[1, 2]] * ROWS), Y, "sparse input is not supported, call toarray"),
        ("abc", Y, "got str, expected a DataFrame, an Arrow table or a 2-D array"),
        (X.assign(__label__=1), Y, "column '__label__' is the label"),
    ],
)
def test_what_a_classifier_refuses(x: Any, y: Any, message: str) -> None:
    with pytest.raises(WideDeepError, match=message):
        classifier(epochs=1).fit(x, y)


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        (np.where(JOB == 3, np.inf, 1.0), None, r"y \(row \d+\): got inf, expected a finite"),
        (np.stack([AGE, AGE], axis=1), None, r"y: got an array of shape \(300, 2\)"),
        (AGE, np.ones(3), "300 rows in X and 3 in sample_weight; expected equally many"),
        (AGE, -np.ones(ROWS), "got -1.0, expected a finite number of at least 0"),
        (AGE, np.full(ROWS, np.nan), "got nan, expected a finite number of at least 0"),
    ],
)
def test_what_a_regressor_refuses(y: Any, weight: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        regressor(epochs=1).fit(X, y, sample_weight=weight)


def bad_frame(**columns: Any) -> pd.DataFrame:
    return X.assign(**columns)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, pd.Series(Y, dtype="string").where(X.index > 3), r"y \(row 0\): got <NA>, expected a"),
        (X, pd.Series(Y == "yes", dtype="boolean").where(X.index != 7), r"y \(row 7\): got <NA>"),
        (X, pd.Series(Y, dtype="category").where(X.index != 9), r"y \(row 9\): got nan"),
        (X, pd.Series(pd.Timestamp("2024-01-01"), range(ROWS)).where(X.index != 2), r"y \(row 2\)"),
        (X, pl.Series([None, *Y[1:].tolist()]), r"y \(row 0\): got None"),
        (X, pa.array([*Y[:-1].tolist(), None]), r"y \(row 299\): got None"),
        (X, [1, "a"] * (ROWS // 2), "y: got 1 in row 0, 'a' in row 1; expected numbers alone"),
        (X, np.array([True, "a"] * (ROWS // 2), object), "y: got True in row 0, 'a' in row 1"),
        (X, [(1, 2)] * ROWS, r"y: got an array of shape \(300, 2\)"),
        (X, [[1], [1, 2]] * (ROWS // 2), "y: got values of no one shape"),
        (X, AGE, "expected classes: integers, text or booleans; use WideDeepRegressor"),
        (X, np.full(ROWS, np.inf), r"y \(row 0\): got inf, expected classes"),
        (X, pd.DataFrame({"a": Y, "b": Y}), r"y: got an array of shape \(300, 2\)"),
        (X, None, "y: got None, expected one value a row"),
        (X["age"], Y, r"got Series, expected a DataFrame, .* make it a table: to_frame\(\)"),
        (X.iloc[:0], Y[:0], "got 0 rows of"),
        (pd.DataFrame(index=range(ROWS)), Y, r"got 0 feature\(s\) \(shape=\(300, 0\)\)"),
        (pd.DataFrame(np.c_[AGE, AGE], columns=["a", "a"]), Y, "two columns are named 'a'"),
        (bad_frame(m=[1, "a"] * (ROWS // 2)), Y, "column 'm' has no single type"),
        (bad_frame(big=[2**70] * ROWS), Y, "column 'big'"),
        (np.full((ROWS, 1), "\ud83d", object), Y, "column 'x0'"),
        (np.array([[1, "a"], ["b", 2]] * (ROWS // 2), object), Y, "column 'x0' has no single type"),
        (np.zeros((2, 3, 4)), Y, r"got an array of 3 dimension\(s\)"),
        (X.assign(__weight__=1), Y, "its column '__weight__' is the weight's own name"),
        ({"a": [1]}, Y, "got dict, expected a DataFrame"),
    ],
)
def test_tables_and_targets_as_people_bring_them(x: Any, y: Any, message: str) -> None:
    with pytest.raises(WideDeepError, match=message) as caught:
        classifier(epochs=1).fit(x, y)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (pd.Series(PRICE, dtype="Float64").where(X.index != 4), r"y \(row 4\): got nan"),
        (["cheap"] * ROWS, r"y \(row 0\): got 'cheap', expected a finite number"),
        (np.array(["1.5"] * ROWS), r"y \(row 0\): got .*1\.5.*, expected a finite number"),
        ([10**400] * ROWS, r"y \(row 0\): got 1000.*expected a finite number"),
        ([1e308, -1e308] * (ROWS // 2), "y: got values whose spread no number holds"),
        (PRICE * 1j, "y: got complex numbers. Complex data not supported"),
        (pd.date_range("2024-01-01", periods=ROWS), "expected a finite number"),
    ],
)
def test_targets_that_are_no_numbers(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        regressor(epochs=1).fit(X, y)
    assert isinstance(caught.value, WideDeepError)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.where(np.arange(ROWS) == 5, -1.0, 1.0), r"sample_weight \(row 5\): got -1.0, expected"),
        ([None] * ROWS, r"sample_weight \(row 0\): got nan"),
        (["a"] * ROWS, r"sample_weight \(row 0\): got 'a'"),
        (np.ones((ROWS, 2)), r"sample_weight: got an array of shape \(300, 2\)"),
        (2.0, r"sample_weight: got an array of shape \(\)"),
        (np.zeros(ROWS), "got 0 in every row"),
    ],
)
def test_weights_that_cannot_be(weight: Any, message: str) -> None:
    for model, target in ((classifier(epochs=1), Y), (regressor(epochs=1), PRICE)):
        with pytest.raises(ValueError, match=message):
            model.fit(X, target, sample_weight=weight)


def test_targets_of_other_kinds_give_the_same_model() -> None:
    want = classifier(epochs=1).fit(X, Y).predict_proba(X)
    targets: list[Any] = [
        Y.tolist(), pd.Series(Y), pd.Series(Y, dtype="string"), pd.Series(Y, dtype="category"),
        pl.Series(Y.tolist()), pa.array(Y.tolist()), Y.astype(object),
    ]  # fmt: skip
    for target in targets:
        assert np.array_equal(classifier(epochs=1).fit(X, target).predict_proba(X), want)
    flags = classifier(epochs=1).fit(X, pd.Series(Y == "yes", dtype="boolean"))
    assert flags.classes_.tolist() == [False, True]
    assert np.array_equal(flags.predict_proba(X), want)


def test_a_sparse_column_is_read_in_full() -> None:
    ones = (JOB == 2).astype(int)
    dense = classifier(epochs=1).fit(X.assign(s=ones), Y).predict_proba(X.assign(s=ones))
    sparse = X.assign(s=pd.arrays.SparseArray(ones))
    assert np.array_equal(classifier(epochs=1).fit(sparse, Y).predict_proba(sparse), dense)


def test_encodings_of_arrow_give_the_same_model() -> None:
    plain = pa.table({"age": AGE.astype(np.float32), "job": [str(job) for job in JOB]})
    expected = classifier(epochs=1).fit(plain, Y).predict_proba(plain)
    words = plain["job"].combine_chunks()
    for column in (pc.run_end_encode(words), words.cast(pa.string_view())):
        table = plain.set_column(1, "job", column)
        assert np.array_equal(classifier(epochs=1).fit(table, Y).predict_proba(table), expected)
    half = plain.set_column(0, "age", plain["age"].cast(pa.float16()))
    assert classifier(epochs=1).fit(half, Y).predict(half).shape == (ROWS,)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (pd.date_range("2024-01-01", periods=ROWS), "when: is a time"),
        ([{"a": 1}] * ROWS, "when: is of type struct<a: int64>, which no feature reads"),
        (pd.to_timedelta(np.arange(ROWS), unit="D"), "when: is a time"),
    ],
)
def test_columns_that_are_left_out_are_told(column: Any, why: str) -> None:
    table = pa.table({"age": AGE, "when": column})
    with pytest.warns(UserWarning, match=f"columns are left out: {why}"):
        model = classifier(epochs=1).fit(table, Y)
    without = classifier(epochs=1).fit(table.drop(["when"]), Y)
    assert np.array_equal(model.predict_proba(table), without.predict_proba(table))


def test_an_array_of_another_width_is_refused() -> None:
    numbers = np.stack([AGE, AGE**2, AGE**3], axis=1)
    model = classifier(epochs=1).fit(numbers, Y)
    assert model.n_features_in_ == 3
    for other in (np.c_[np.arange(ROWS), numbers], numbers[:, :2]):
        with pytest.raises(
            ValueError, match=r"X has \d features, but WideDeepClassifier is expecti"
        ):
            model.predict(other)
    named = classifier(epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match="no column"):
        named.predict(numbers[:, :2])
    with pytest.raises(ValueError, match="no column 'age'"):
        named.predict(X.rename(columns={"age": "alter"}))


def test_categories_that_training_did_not_see() -> None:
    frame = X.astype({"job": "category"})
    model = classifier(epochs=1).fit(frame, Y)
    new = frame.assign(job=pd.Categorical(["pilot"] * ROWS))
    missing = frame.assign(job=pd.Categorical([None] * ROWS, categories=["pilot"]))
    for other in (new, missing):
        assert np.isfinite(model.predict_proba(other)).all()
    with pytest.raises(ValueError, match="age"):
        model.predict(frame.assign(age="old"))


def test_random_states_as_scikit_learn_has_them() -> None:
    seeds = [np.random.RandomState(3), np.random.RandomState(3)]
    first, second = (classifier(epochs=1, random_state=s).fit(X, Y).predict_proba(X) for s in seeds)
    assert np.array_equal(first, second)
    assert classifier(epochs=1, random_state=None).fit(X, Y).predict_proba(X).shape == (ROWS, 2)
    with pytest.raises(ValueError, match="seed"):
        classifier(random_state=-1).fit(X, Y)
    with pytest.raises(ValueError, match="epochs=0"):
        classifier(epochs=0).fit(X, Y)


@pytest.mark.parametrize("features", [None, [wd.numeric("x")]])
def test_a_bad_value_is_named_by_its_row_in_x(features: Any) -> None:
    # Few rows are sorted and a part of them is left out before any is learned.
    numbers = np.arange(60.0) % 7
    numbers[41] = np.inf
    frame = pd.DataFrame({"x": numbers, "k": ["ab"[i % 2] for i in range(60)]})
    for options in ({}, {"epochs": 1}):
        estimator = wd.WideDeepClassifier(features, **options)
        with pytest.raises(ValueError, match=r"feature 'x' \(row 41 of .*got inf"):
            estimator.fit(frame, np.arange(60) % 2)
