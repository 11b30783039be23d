"""Train small estimators by TensorFlow 2.15 and keep their checkpoints, SavedModels and answers.

In the environment that `make_tensorflow_vectors.py` describes, from the root of the repository::

    tensorflow-venv/bin/python -m tests.oracles.make_tensorflow_models [NAME ...]

writes `tensorflow_models/NAME/`, the models of `tensorflow_model_cases.py`. The formats are in
``README.md`` beside this file.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import numpy as np

from tests.oracles.make_tensorflow_vectors import plain
from tests.oracles.tensorflow_columns import build_column, build_features, column_ids
from tests.oracles.tensorflow_model_cases import MODELS
from tests.oracles.tensorflow_warmup import serialize_examples, write_warmup_requests

tf: Any = import_module("tensorflow")

FOLDER = Path(__file__).parent / "tensorflow_models"
STEPS_BEFORE = 5
STEPS_AFTER = 20
RECORDED_STEPS = (1, 3, 20)
BATCHES = 4
EXAMPLES = 6
CATEGORICAL = {"bucketized", "vocabulary", "vocabulary_file", "hash_bucket", "identity", "crossed"}
DNN_OPTIONS = {"dnn_hidden_units", "dnn_activation_fn", "dnn_dropout", "dnn_optimizer"}


def random_features(rng: np.random.Generator, inputs: dict[str, Any]) -> dict[str, Any]:
    """Rows of every input, as the case declares them."""
    features: dict[str, Any] = {}
    for key, declaration in inputs.items():
        sizes = (
            [len(row) for row in features[declaration["like"]]["rows"]]
            if "like" in declaration
            else rng.integers(declaration["bag"][0], declaration["bag"][1] + 1, size=EXAMPLES)
        )
        rows = [_random_row(rng, declaration, int(size)) for size in sizes]
        features[key] = {"dtype": declaration["dtype"], "rows": rows}
        if declaration.get("dense"):
            features[key]["dense"] = True
    return features


def _random_row(rng: np.random.Generator, declaration: dict[str, Any], size: int) -> list[Any]:
    if declaration["dtype"] == "string":
        return [str(word) for word in rng.choice(declaration["values"], size=size)]
    if declaration["dtype"] == "int64":
        return [int(value) for value in rng.integers(*declaration["range"], size=size)]
    values = rng.uniform(*declaration["range"], size=size).round(2)
    return [float(np.float32(value)) for value in values]


def random_batch(rng: np.random.Generator, case: dict[str, Any]) -> dict[str, Any]:
    """Features, labels and, where the model has them, the examples' weights."""
    batch = {
        "features": random_features(rng, case["inputs"]),
        "labels": _random_labels(rng, case["label"]),
    }
    if "weight" in case:
        rows = [[float(weight)] for weight in rng.choice(case["weight"], size=EXAMPLES)]
        batch["features"]["weight"] = {"dtype": "float32", "dense": True, "rows": rows}
    return batch


def _random_labels(rng: np.random.Generator, label: dict[str, Any]) -> list[list[Any]]:
    shape = (EXAMPLES, label.get("dimension", 1))
    if "vocabulary" in label:
        return [[str(word)] for word in rng.choice(label["vocabulary"], size=EXAMPLES)]
    if "multi_hot" in label:
        return plain(rng.integers(0, 2, size=(EXAMPLES, label["multi_hot"])))
    if "classes" in label:
        return plain(rng.integers(0, label["classes"], size=shape))
    if "mean" in label:
        return plain(rng.poisson(label["mean"], size=shape).astype(np.float32))
    return plain(rng.normal(size=shape).round(2).astype(np.float32))


def dataset(batches: list[dict[str, Any]]) -> Any:
    """The batches, one after another."""
    whole = None
    for batch in batches:
        tensors = (build_features(batch["features"]), tf.constant(batch["labels"]))
        part = tf.data.Dataset.from_tensors(tensors)
        whole = whole.concatenate(part) if whole else part
    return whole


def build_columns(declarations: list[dict[str, Any]]) -> list[Any]:
    """TensorFlow's columns; shared embeddings give several at once, and need a graph."""
    columns: list[Any] = []
    with tf.Graph().as_default():
        for declaration in declarations:
            column = build_column(declaration)
            columns += column if isinstance(column, list) else [column]
    return columns


def build_optimizer(case: dict[str, Any], part: str) -> Any:
    """The declared optimizer, of Keras or of TensorFlow 1; None leaves the estimator's default."""
    options = dict(case["optimizers"].get(part) or {})
    if not options:
        return None
    name = options.pop("name")
    if case.get("version") == 1:
        return getattr(tf.compat.v1.train, f"{name}Optimizer")(**options)
    return getattr(tf.keras.optimizers.legacy, name)(**options)


def build_estimator(case: dict[str, Any], model_dir: Path, **changes: Any) -> Any:
    """The estimator of a case; `changes` replace options of its constructor."""
    combined = case["estimator"].startswith("DNNLinear")
    options = {**case["options"], **changes}
    if "linear" in case:
        options["linear_feature_columns"] = build_columns(case["linear"])
        options["linear_optimizer"] = build_optimizer(case, "linear")
    if "deep" in case:
        options["dnn_feature_columns"] = build_columns(case["deep"])
        options["dnn_optimizer"] = build_optimizer(case, "dnn")
    if "dnn_activation_fn" in options:
        options["dnn_activation_fn"] = getattr(tf.nn, options["dnn_activation_fn"])
    if "head" in case:
        head = dict(case["head"])
        options["head"] = getattr(tf.estimator, head.pop("name"))(**head)
    if not combined:
        options = {
            key.removeprefix("linear_").removeprefix("dnn_"): value
            for key, value in options.items()
        }
    options = {key: value for key, value in options.items() if value is not None}
    module = tf.compat.v1.estimator if case.get("version") == 1 else tf.estimator
    if "partitions" in case:
        partitioner = tf.compat.v1.min_max_variable_partitioner(
            case["partitions"], min_slice_size=16
        )
        options["input_layer_partitioner"] = partitioner
    config = tf.estimator.RunConfig(
        tf_random_seed=7, save_summary_steps=10**6, **_two_devices(case.get("devices", 1))
    )
    return getattr(module, case["estimator"])(model_dir=str(model_dir), config=config, **options)


def _two_devices(count: int) -> dict[str, Any]:
    """Variables on several processors in turn: one shard of the checkpoint for each."""
    if count == 1:
        return {}
    names: dict[str, int] = {}

    def device(op: Any) -> str:
        if op.type not in ("VariableV2", "VarHandleOp"):
            return ""
        return f"/device:CPU:{names.setdefault(op.name, len(names)) % count}"

    session = tf.compat.v1.ConfigProto(device_count={"CPU": count})
    return {"device_fn": device, "session_config": session}


class StateRecorder(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]
    """Keeps the loss of every step, and every variable before the first and after some steps."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.states: dict[int, dict[str, Any]] = {}

    def begin(self) -> None:
        losses = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.LOSSES)
        # Some heads keep every example's loss there too, or the loss twice.
        (self._loss,) = {loss.name: loss for loss in losses if loss.shape.rank == 0}.values()

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.states[0] = self._saved_state(session)

    def before_run(self, run_context: Any) -> Any:
        return tf.compat.v1.train.SessionRunArgs(self._loss)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.losses.append(run_values.results)
        if len(self.losses) in RECORDED_STEPS:
            self.states[len(self.losses)] = self._saved_state(run_context.session)

    def _saved_state(self, session: Any) -> dict[str, Any]:
        """Variables under the names, and as whole, as a checkpoint holds them."""
        (saver,) = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.SAVERS)
        with tempfile.TemporaryDirectory() as folder:
            path = saver.save(session, f"{folder}/state", write_meta_graph=False, write_state=False)
            reader = tf.train.load_checkpoint(path)
            names = sorted(reader.get_variable_to_shape_map())
            return {name: np.asarray(reader.get_tensor(name)) for name in names}


def categorical_columns(declaration: Any) -> list[dict[str, Any]]:
    """The columns of ids that a declaration stands on, itself included."""
    if isinstance(declaration, str):
        return []
    inner = [
        declaration.get("source"),
        *declaration.get("sources", ()),
        *declaration.get("parts", ()),
    ]
    own = [declaration] if declaration["kind"] in CATEGORICAL else []
    return own + [column for part in inner if part for column in categorical_columns(part)]


def ids_by_column(case: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
    """The ids of every categorical column, by TensorFlow's name of the column."""
    declarations = [*case.get("linear", ()), *case.get("deep", ())]
    columns = [column for entry in declarations for column in categorical_columns(entry)]
    features = {key: value for key, value in features.items() if key not in case.get("missing", ())}
    return {build_column(column).name: column_ids(column, features) for column in columns}


def export(case: dict[str, Any], estimator: Any, folder: Path) -> None:
    """A SavedModel that parses tf.Example messages, without what differs between two runs."""
    columns = build_columns([*case.get("linear", ()), *case.get("deep", ())])
    module = tf.compat.v1 if case.get("version") == 1 else tf
    spec = module.feature_column.make_parse_example_spec(columns)
    receiver = tf.estimator.export.build_parsing_serving_input_receiver_fn(spec)
    with tempfile.TemporaryDirectory() as exported:
        path = Path(os.fsdecode(estimator.export_saved_model(exported, receiver)))
        shutil.copytree(path, folder)
    graph = folder / "saved_model.pb"
    graph.with_name("saved_model.pb.xz").write_bytes(
        lzma.compress(graph.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
    )


def copy_checkpoint(model_dir: Path, folder: Path) -> None:
    """The latest checkpoint's tensors, without the graph that TensorFlow writes beside them."""
    name = Path(tf.train.latest_checkpoint(model_dir)).name
    folder.mkdir()
    for path in model_dir.glob(f"{name}.*"):
        if path.suffix != ".meta":
            shutil.copy(path, folder)
    lines = [
        f'{key}: "{name}"\n' for key in ("model_checkpoint_path", "all_model_checkpoint_paths")
    ]
    (folder / "checkpoint").write_text("".join(lines))


def text_of(value: Any) -> Any:
    """Bytes as text, in nested lists."""
    if isinstance(value, list):
        return [text_of(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def make_model(name: str, case: dict[str, Any], folder: Path, work: Path) -> dict[str, Any]:
    """Train, save, export, ask, train on; files into `folder`, the answers as a dictionary."""
    rng = np.random.default_rng([*name.encode()])
    rows, *batches = (random_batch(rng, case) for _ in range(BATCHES + 1))
    for key in case.get("missing", ()):
        rows["features"][key]["rows"][0] = []
    estimator = build_estimator(case, work)
    cycle = [batches[step % BATCHES] for step in range(STEPS_BEFORE)]
    estimator.train(lambda: dataset(cycle))
    copy_checkpoint(work, folder / "checkpoint")
    export(case, estimator, folder / "saved_model")
    examples = serialize_examples(rows["features"])
    predict = tf.saved_model.load(str(folder / "saved_model")).signatures["predict"]
    outputs = {key: value.numpy() for key, value in predict(tf.constant(examples)).items()}
    (folder / "saved_model" / "saved_model.pb").unlink()
    warmup = folder / "saved_model" / "assets.extra" / "tf_serving_warmup_requests"
    write_warmup_requests(warmup, examples, outputs)
    metrics = estimator.evaluate(lambda: dataset(batches[:1]))
    recorder = StateRecorder()
    dropout = {"dnn_dropout": None} if "dnn_dropout" in case["options"] else {}
    cycle = [batches[step % BATCHES] for step in range(STEPS_AFTER)]
    build_estimator(case, work, **dropout).train(lambda: dataset(cycle), hooks=[recorder])
    return {
        "made_with": f"tensorflow {tf.__version__}",
        "model": case,
        "rows": {**rows, "ids": ids_by_column(case, rows["features"])},
        "predictions": {key: text_of(plain(value)) for key, value in sorted(outputs.items())},
        "metrics": plain(metrics),
        "batches": batches,
        "losses": plain(recorder.losses),
        "states": {step: plain(state) for step, state in recorder.states.items()},
    }


def write_json(path: Path, answers: dict[str, Any]) -> None:
    """One line an entry, and one a recorded step."""
    lines = []
    for key, value in answers.items():
        if key in ("batches", "states"):
            pairs = value.items() if isinstance(value, dict) else [(None, item) for item in value]
            body = ",\n".join(
                ("" if name is None else f'"{name}": ') + json.dumps(item, separators=(",", ":"))
                for name, item in pairs
            )
            lines.append(
                f'"{key}": ' + ("{\n%s\n}" if isinstance(value, dict) else "[\n%s\n]") % body
            )
        else:
            lines.append(f'"{key}": {json.dumps(value, separators=(",", ":"), ensure_ascii=False)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(names: list[str]) -> None:
    """Make the models of these names, or all of them."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for name in names or MODELS:
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as work:
            write_json(folder / "answers.json", make_model(name, MODELS[name], folder, Path(work)))
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        print(f"{name}: {sum(sizes.values()):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
