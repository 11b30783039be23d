"""The verb `import`: a run folder that trains on, scores and serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_line import Run
from tests.oracles.models import unpack_model
from widedeep.bundle import Bundle
from widedeep.training.checkpoint import read_checkpoint

SPEC = """
[data]
label = "label"
[features]
numeric = ["price"]
categorical = ["occupation", "genre"]
wide = ["occupation", "genre", "price"]
deep = ["occupation", "price"]
options.price = { transform = "none" }
options.occupation = { hash_buckets = 11, embedding_dim = 3 }
options.genre = { vocabulary = ["drama", "comedy", "horror", "noir"], oov = "drop" }
[train]
wide.lr = 0.1
deep.lr = 0.05
"""


def census_rows(answers: dict, batch: dict) -> list[dict]:
    """The rows of a batch, each column a single value."""
    features = {name: f["rows"] for name, f in batch["features"].items()}
    rows = [{name: values[i][0] for name, values in features.items()} for i in range(6)]
    return [{**row, "label": label[0]} for row, label in zip(rows, batch["labels"], strict=True)]


def test_a_saved_model_becomes_a_run_that_trains_on(run: Run, tmp_path: Path) -> None:
    answers = unpack_model("census", tmp_path)
    rows = [row for batch in answers["batches"] for row in census_rows(answers, batch)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    out = tmp_path / "run"
    words = [
        *("import", str(tmp_path / "saved_model"), "--checkpoint", str(tmp_path / "checkpoint")),
        *("--train", str(tmp_path / "train.parquet"), "--set", "train.batch_size=6"),
        *("--set", "train.shuffle=false", "--set", "train.epochs=5", "--out", str(out)),
    ]
    code, text, error = run(*words)
    assert (code, error) == (0, "")
    imported = json.loads((out / "imported.json").read_text())
    became = {tensor["variable"]: tensor["tensor"] for tensor in imported["tensors"]}
    assert became["linear/linear_model/education/weights"] == "wide/education_vocabulary.weight"
    assert "checked: 6 rows of the warm-up requests" in text
    assert text.splitlines()[-1].startswith("next: widedeep train")

    expected = np.array(answers["predictions"]["logistic"])[:, 0]
    asked = census_rows(answers, answers["rows"])
    assert np.abs(Bundle.load(out / "bundle").score(asked) - expected).max() < 1e-6
    code, text, _ = run("train", str(out / "config.toml"), "--out", str(out), "--resume")
    assert code == 0
    (trained,) = (out / "checkpoints").glob("step-0000000025")
    weights = read_checkpoint(trained).tensors["wide/education_vocabulary.weight"][2:]
    after = answers["states"]["20"]["linear/linear_model/education/weights"]
    assert np.abs(weights - np.array(after)).max() < 1e-5


def test_a_checkpoint_with_a_declaration(run: Run, tmp_path: Path) -> None:
    answers = unpack_model("partitioned", tmp_path)
    (tmp_path / "ads.toml").write_text(SPEC)
    code, text, error = run(
        *("import", str(tmp_path / "checkpoint"), "--spec", str(tmp_path / "ads.toml")),
        *("--lists", "occupation", "--out", str(tmp_path / "run"), "--json"),
    )
    assert (code, error) == (0, "")
    document = json.loads(text)
    assert document["step"] == 5
    states = {tensor["variable"]: tensor["state"] for tensor in document["tensors"]}
    assert states["dnn/logits/kernel"] == ["dnn/logits/kernel/Adagrad"]
    features = {name: f["rows"] for name, f in answers["rows"]["features"].items()}
    rows = [
        {"occupation": jobs, "genre": genre[0], "price": price[0]}
        for jobs, genre, price in zip(
            features["occupation"], features["genre"], features["price"], strict=True
        )
    ]
    expected = np.array(answers["predictions"]["logistic"])[:, 0]
    assert np.abs(Bundle.load(tmp_path / "run" / "bundle").score(rows) - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "got no SavedModel"),
        (["saved_model", "--set", "model.dropout=0.1"], "expected an option of [train]"),
        (["saved_model", "--set", "train.batchsize=6"], "did you mean 'batch_size'"),
        (["saved_model", "--lists", "colour"], "got the list 'colour'"),
        (["saved_model", "--label", "a,b"], "expected one column"),
        (["saved_model", "--checkpoint", "nowhere"], "nowhere.index: got no such file"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    unpack_model("census", tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, error = run("import", *words, "--out", "run")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert said in error
    assert not (tmp_path / "run").exists()


def test_other_answers_of_warmup_requests_stop_it(run: Run, tmp_path: Path) -> None:
    unpack_model("census", tmp_path)
    index = tmp_path / "saved_model" / "variables" / "variables.index"
    unpack_model("multi_label", tmp_path / "other")
    requests = "assets.extra/tf_serving_warmup_requests"
    path = tmp_path / "saved_model" / requests
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    code, _, error = run("import", str(tmp_path / "saved_model"), "--out", str(tmp_path / "run"))
    assert (code, "warm-up requests are damaged" in error) == (2, True)
    path.write_bytes((tmp_path / "other" / "saved_model" / requests).read_bytes())
    code, _, error = run("import", str(tmp_path / "saved_model"), "--out", str(tmp_path / "run"))
    assert code == 2
    path.unlink()
    data = index.with_name("variables.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-4])
    code, _, error = run("import", str(tmp_path / "saved_model"), "--out", str(tmp_path / "run"))
    assert (code, "the file is cut off" in error) == (2, True)
    assert not (tmp_path / "run").exists()
