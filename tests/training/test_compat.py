"""`compat="tensorflow"`: the defaults and the names of `tf.estimator`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from widedeep.errors import ConfigError
from widedeep.metrics.estimator import estimator_metrics
from widedeep.optim import describe_optimizer
from widedeep.training.config import TrainConfig

ROWS = [{"job": "abcd"[i % 4], "age": float(i % 7), "y": ["no", "yes"][i % 2]} for i in range(64)]


def make_model(*, deep: bool = True, **options: Any) -> wd.WideDeep:
    features = [wd.categorical("job"), wd.categorical("again", source="job"), wd.numeric("age")]
    placement = {} if deep else {"deep": []}
    spec = wd.FeatureSpec(label="y", label_vocabulary=("no", "yes"), features=features, **placement)
    options = {"hidden_units": [4], "compat": "tensorflow", "seed": 1, **options}
    return wd.WideDeep(wd.fit_schema(spec, ROWS), **options)


def make_trainer(model: wd.WideDeep, **options: Any) -> wd.Trainer:
    return wd.Trainer(model, batch_size=10, threads=1, progress=False, **options)


def test_what_is_left_open_is_as_the_estimator_has_it() -> None:
    trainer = make_trainer(make_model())
    ftrl = wd.FTRL(
        lr=0.005, l1=0, beta=0, initial_accumulator=0.1, convention="tensorflow", adapt=0
    )
    assert trainer.step.wide == ftrl
    assert trainer.step.deep == wd.Adagrad(lr=0.001, initial_accumulator=0.1, eps=1e-7)
    assert trainer.step.dense.optimizer == trainer.step.deep
    assert trainer.config.grad_scale == "mean"
    assert trainer.config.schedule == "constant"
    assert trainer.step.feature_rates is None
    assert trainer.model.wide_bias is not None
    assert trainer.model.bias.item() == trainer.model.wide_bias.item() == 0.0
    assert make_model(batch_norm=True).config.norm == "tensorflow"
    linear = make_trainer(make_model(deep=False))
    assert linear.step.wide.lr == 0.2  # of LinearClassifier
    table = pa.table({"a": ["x", "y"] * 4, "y": [0, 1] * 4})
    spec = wd.FeatureSpec(
        label="y", features=[wd.categorical("a")]
    )  # in deep, of which no tower is
    model = wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[], compat="tensorflow")
    assert wd.Trainer(model).step.wide.lr == 0.2


def test_a_table_keeps_its_own_options_and_an_object_is_as_it_is() -> None:
    config = TrainConfig(wide={"lr": 0.1, "l1": 0.5}, deep={"optimizer": "adam"})
    trainer = make_trainer(make_model(), config=config)
    wide = trainer.step.wide
    assert isinstance(wide, wd.FTRL)
    assert (wide.lr, wide.l1, wide.beta, wide.convention) == (0.1, 0.5, 0, "tensorflow")
    assert trainer.step.deep == wd.Adam(lr=0.001, eps=1e-7)
    rmsprop = make_trainer(make_model(), deep={"optimizer": "rmsprop", "momentum": 0.5}).step.deep
    assert describe_optimizer(rmsprop)["convention"] == "tensorflow"
    assert make_trainer(make_model(), wide=wd.FTRL()).step.wide == wd.FTRL()
    summed = make_trainer(make_model(), loss_reduction="sum")
    assert summed.config.grad_scale == 1.0


def test_embeddings_start_by_their_width() -> None:
    rows = [{"job": str(i), "y": i % 2} for i in range(4000)]
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job", embedding_dim=4)])
    schema = wd.fit_schema(spec, rows)
    # A normal distribution of deviation 1/2, cut at 1, has 0.44; the model's own is not cut.
    for options, std in (({}, 0.44), ({"embedding_std": 0.1}, 0.1)):
        model = wd.WideDeep(schema, hidden_units=[2], compat="tensorflow", **options)
        weight = model.embedding_table("job").weight
        assert float(weight.std()) == pytest.approx(std, rel=0.05)
    ours = wd.WideDeep(schema).embedding_table("job").weight
    assert float(ours.std()) == pytest.approx(0.02, rel=0.05)


def test_gradients_of_tables_are_means_of_a_short_batch_too() -> None:
    """The last of 64 rows in batches of 10 are 4: their sum is divided by 4."""
    model = make_model(deep=False)
    trainer = make_trainer(model, wide=wd.SGD(lr=1.0), shuffle=False)
    trainer.fit(ROWS[:4], steps=1)
    assert model.wide_table is not None
    weights = model.wide_table.named_weights()["job"]
    # Before any step p is the label's mean, 1/2; each job has one of four rows.
    expected = [0.0, 0.0, *[-0.5 / 4, 0.5 / 4] * 2]
    moved = sorted(weights[:, 0].tolist())
    assert moved == pytest.approx(sorted(expected), abs=1e-7)


def test_predictions_have_the_estimators_names(tmp_path: Path) -> None:
    trainer = make_trainer(make_model())
    trainer.fit(ROWS)
    predictions = trainer.predictions(ROWS)
    scores = trainer.predict(ROWS)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_array_equal(predictions["logistic"], scores[:, None])
    np.testing.assert_array_equal(predictions["logits"], trainer.logits(ROWS))
    assert set(predictions["classes"].ravel()) <= {"no", "yes"}
    bundle = trainer.export(tmp_path / "bundle")
    assert bundle.compat == "tensorflow"
    served = bundle.predictions(ROWS, keys=["logits", "classes"])
    assert list(served) == ["logits", "classes"]
    np.testing.assert_allclose(served["logits"], predictions["logits"], atol=1e-6)
    with pytest.raises(ConfigError, match="did you mean 'logits'"):
        bundle.predictions(ROWS, keys=["logit"])
    assert set(bundle.predictions(ROWS, keys="classes")) == {"classes"}


def test_metrics_have_the_estimators_names_too() -> None:
    trainer = make_trainer(make_model())
    trainer.fit(ROWS)
    metrics = trainer.evaluate(ROWS)
    names = {
        "average_loss": "log_loss",
        "loss": "log_loss",
        "auc_precision_recall": "pr_auc",
        "label/mean": "label_mean",
        "prediction/mean": "prediction_mean",
    }
    for theirs, ours in names.items():
        assert metrics[theirs] == metrics[ours]
    assert metrics["global_step"] == 7
    assert {"accuracy", "accuracy_baseline", "auc", "precision", "recall"} <= metrics.keys()
    heads = {"a/log_loss": 1.0, "b/mse": 2.0, "a/auc": 0.5, "loss": 3.0, "b/label_mean": 4.0}
    assert estimator_metrics(heads, ("a", "b")) == {
        "auc/a": 0.5,
        "average_loss/a": 1.0,
        "loss/a": 1.0,
        "label/mean/b": 4.0,
        "average_loss/b": 2.0,
        "loss/b": 2.0,
        "loss": 3.0,
    }


def test_a_run_in_compat_goes_on_with_its_bits(tmp_path: Path) -> None:
    whole = make_trainer(make_model())
    whole.fit(ROWS, epochs=2)
    make_trainer(make_model(), checkpoints=tmp_path).fit(ROWS, epochs=1)
    resumed = make_trainer(make_model(), checkpoints=tmp_path)
    resumed.fit(ROWS, epochs=2, resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


ORACLES = Path(__file__).parent.parent / "oracles" / "tensorflow_estimator.json"
JOINT = json.loads(ORACLES.read_text())["training"]
EDUCATION = ("Bachelors", "HS-grad", "Masters", "Doctorate")
TENSORS = {
    "wide/edu": "linear/education",
    "wide/job": "linear/jobs",
    "wide/cross": "linear/education_X_jobs",
    "wide_bias": "linear/bias",
    "table/edu": "dnn/education_embedding",
    "table/job": "dnn/jobs_embedding",
    "towers.mlp.layers.0.weight": "dnn/hiddenlayer_0/kernel",
    "towers.mlp.layers.0.bias": "dnn/hiddenlayer_0/bias",
    "towers.mlp.layers.1.weight": "dnn/hiddenlayer_1/kernel",
    "towers.mlp.layers.1.bias": "dnn/hiddenlayer_1/bias",
    "outputs.mlp.weight": "dnn/logits/kernel",
    "bias": "dnn/logits/bias",
}


def rows_of(step: dict[str, Any], weighted: bool) -> list[dict[str, Any]]:
    columns = {name: feature["rows"] for name, feature in step["features"].items()}
    return [
        {
            "education": columns["education"][row][0],
            "jobs": columns["jobs"][row],
            "numbers": columns["numbers"][row],
            "y": label,
            **({"weight": columns["weight"][row][0]} if weighted else {}),
        }
        for row, label in enumerate(step["labels"])
    ]


def as_ours(name: str, values: list[Any]) -> torch.Tensor:
    """TensorFlow's variable as a tensor of ours: two more rows, layers transposed."""
    tensor = torch.tensor(values)
    if name.startswith(("wide/", "table/")):
        return torch.cat([torch.zeros(2, tensor.shape[1]), tensor])
    return tensor.T if tensor.dim() == 2 else tensor


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in JOINT])
def test_joint_training_is_the_estimators(case: dict[str, Any]) -> None:
    weighted = case["weight_column"] is not None
    steps = [rows_of(step, weighted) for step in case["steps"]]
    features = [
        wd.categorical("edu", source="education", vocabulary=EDUCATION, oov="drop"),
        wd.categorical("job", source="jobs", hash_buckets=7),
        wd.numeric("numbers", size=2, transform="none"),
        wd.crossed("education", "jobs", name="cross", hash_buckets=12),
    ]
    spec = wd.FeatureSpec(label="y", weight=case["weight_column"], features=features)
    model = wd.WideDeep(
        wd.fit_schema(spec, [row for step in steps for row in step]),
        hidden_units=[4, 3],
        embedding_dim=3,
        wide_combiner=case["linear_sparse_combiner"],
        compat="tensorflow",
    )
    assert list(model.gathered.columns) == ["edu", "job", "numbers"]
    initial = {
        name: as_ours(name, case["initial"]["weights"][theirs]) for name, theirs in TENSORS.items()
    }
    model.load_state_dict({**model.state_dict(), **initial})
    summed = case["loss_reduction"] == "sum"
    trainer = wd.Trainer(
        model,
        wide={"optimizer": "ftrl", "lr": case["ftrl"]["lr"], "l1": case["ftrl"]["l1"]},
        deep={"optimizer": "adagrad", "lr": case["adagrad"]["lr"]},
        loss_reduction="sum" if summed else "mean",
        batch_size=8,
        shuffle=False,
        threads=1,
        progress=False,
    )
    for step, rows in zip(case["steps"], steps, strict=True):
        trainer.fit(rows)
        state = model.state_dict()
        for name, theirs in TENSORS.items():
            expected = as_ours(name, step["after"]["weights"][theirs])
            skip = 2 if name.startswith(("wide/", "table/")) else 0
            torch.testing.assert_close(
                state[name][skip:], expected[skip:], rtol=3e-6, atol=3e-6, msg=name
            )


def test_an_unknown_compat_is_refused() -> None:
    with pytest.raises(ConfigError, match="compat"):
        make_model(compat="keras")
