"""A history keeps what was measured and shows it as a table."""

from __future__ import annotations

from widedeep.training.state import History


def filled() -> History:
    history = History()
    history.add({"epoch": 1, "step": 10, "rows": 1_250, "loss": 0.6931, "rows_per_s": 123_456.7})
    history.add({"epoch": 2, "step": 20, "rows": 2_500, "loss": 0.5, "valid/auc": 0.75, "x": "no"})
    return history


def test_rows_and_columns() -> None:
    history = filled()
    assert len(history) == 2
    assert history[-1]["valid/auc"] == 0.75
    assert [row["step"] for row in history] == [10, 20]
    assert history.column("loss") == [0.6931, 0.5]
    assert history.column("valid/auc") == [None, 0.75]
    assert history.column("nothing") == [None, None]


def test_it_prints_as_a_table() -> None:
    lines = repr(filled()).splitlines()
    assert lines[0].split() == ["epoch", "step", "rows", "loss", "rows_per_s", "valid/auc"]
    assert lines[1].split() == ["1", "10", "1,250", "0.6931", "123,457"]
    assert lines[2].split() == ["2", "20", "2,500", "0.5000", "0.7500"]
    assert len({len(line) for line in lines}) == 1, "columns stand under each other"


def test_what_is_not_for_the_table_is_kept_all_the_same() -> None:
    history = filled()
    assert "no" not in repr(history)
    assert history[1]["x"] == "no"


def test_an_empty_history_says_so() -> None:
    assert repr(History()) == "History (empty)"
    assert len(History()) == 0


def test_it_does_not_share_the_list_it_was_made_of() -> None:
    rows = [{"epoch": 1}]
    history = History(rows)
    history.add({"epoch": 2})
    assert len(rows) == 1
