from pathlib import Path

import pytest

from widedeep.config import load_config
from widedeep.errors import ConfigError

CENSUS = """
[data]
train = "train.parquet"
test = "test.parquet"
label = "income"
[features]
numeric = ["age", "hours_per_week"]
categorical = ["education", "occupation"]
crossed = [
  ["education", "occupation"],
  { parts = ["age_bucket", "education"], hash_buckets = 100000 },
]
bucketized.age_bucket = { source = "age", boundaries = [18, 25, 30] }
options.education = { embedding_dim = 16, min_count = 2 }
item = []
[model]
hidden_units = [100, 75]
[train]
epochs = 5
wide = { optimizer = "ftrl", lr = 0.1, l1 = 1.0 }
deep = { optimizer = "adagrad", lr = 0.05 }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_reads_every_section(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, CENSUS))
    assert config.data.train == str(tmp_path / "train.parquet")
    assert config.model.hidden_units == (100, 75)
    assert config.train.wide == {"optimizer": "ftrl", "lr": 0.1, "l1": 1.0}
    assert config.spec.labels == {"": "income"}
    assert [f.name for f in config.spec.all_features][-1] == "age_bucket_x_education"


def test_written_and_read_again_is_equal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, CENSUS))
    again = load_config(write(tmp_path, config.to_toml()))
    assert again == config


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, CENSUS)
    config = load_config(
        path,
        ["train.epochs=3", "model.activation=tanh", "train.wide.lr=0.2", "model.hidden_units=[8]"],
    )
    assert (config.train.epochs, config.model.activation, config.model.hidden_units) == (
        3,
        "tanh",
        (8,),
    )
    assert config.train.wide["lr"] == 0.2


def test_paths_are_relative_to_the_file_and_overrides_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    path = write(tmp_path / "configs", CENSUS)
    monkeypatch.chdir(tmp_path)
    data = load_config(path, ["data.test=other.parquet"]).data
    assert data.train == str(tmp_path / "configs" / "train.parquet")
    assert data.test == str(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "[train]: got the unknown key 'epoch'; did you mean 'epochs'?"),
        ("train.epochs=0", "got epochs=0, expected an integer of at least 1"),
        ("train.epochs=many", "got epochs = 'many', expected an integer"),
        ("train.schedule=cosin", "[train] schedule: got name='cosin'; did you mean 'cosine'?"),
        ("modle.dropout=0.1", "got the unknown section [modle]; did you mean 'model'?"),
        ("model.dropout=1.5", "got dropout=1.5, expected 0 <= dropout < 1"),
        ("model.hidden_units=5", "got hidden_units = 5 (int), expected a list of integers"),
        ("data.lable=x", "[data]: got the unknown key 'lable'; did you mean 'label'?"),
        (
            'model.deep={name="mlp", has_members=true}',
            "tower 'mlp': got the unknown key 'has_members'; known: 'activation'",
        ),
        (
            "features.numerics=[]",
            "got the unknown key 'numerics' in [features]; did you mean 'numeric'?",
        ),
        ("train.monitor=''", "got monitor='', expected a metric's name"),
        ('train.schedule={name="plateau",monitor=""}', "got monitor='', expected a metric's name"),
        ("data.train=''", "got train='', expected a path, a glob or a list of paths"),
        ('data.test=["x.csv",""]', "expected a path, a glob or a list of paths"),
        ("epochs=3", "expected SECTION.KEY=VALUE"),
        ("train.epochs.x=3", "'epochs' is a value, not a table"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, CENSUS), [override])
    assert message in str(caught.value)


def test_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; 'widedeep init DATA' writes one"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="got text that is no TOML"):
        load_config(write(tmp_path, "[data\n"))
    with pytest.raises(
        ConfigError, match=r"got the key 'epochs' outside of a section; .*\[train\]"
    ):
        load_config(write(tmp_path, "epochs = 3\n"))
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"'widedeep init .*train\.csv' writes one for a table"):
        load_config(tmp_path / "train.csv")
    with pytest.raises(ConfigError, match=r"got no \[features\] section"):
        load_config(write(tmp_path, "[data]\n"))
