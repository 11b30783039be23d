"""The search of settings: what is left out, what is tried, what is kept."""

from __future__ import annotations

import numpy as np

from widedeep.estimators.settings import FEW_ROWS, MOST_ROWS, Setting, search, validation_splits


def test_few_rows_are_left_out_once_each_with_their_share_of_each_class() -> None:
    classes = np.arange(300) // 100
    parts = validation_splits(classes, 0.1, 0)
    assert np.array_equal(np.sort(np.concatenate([left for _, left in parts])), np.arange(300))
    for learned, left in parts:
        assert not set(learned) & set(left)
        assert np.bincount(classes[left]).min() >= 33


def test_of_many_rows_a_share_is_left_out_and_of_too_few_none() -> None:
    ((learned, left),) = validation_splits(np.zeros(FEW_ROWS + 1, np.int64), 0.1, 0)
    assert (len(learned), len(left)) == (4_500, 501)
    ((learned, left),) = validation_splits(np.zeros(3 * MOST_ROWS, np.int64), 0.25, 0)
    assert len(learned) + len(left) == MOST_ROWS
    assert max(learned) > MOST_ROWS
    assert validation_splits(np.zeros(29, np.int64), 0.1, 0) == []
    again = validation_splits(np.zeros(100, np.int64), 0.1, 1)
    assert not np.array_equal(again[0][1], validation_splits(np.zeros(100, np.int64), 0.1, 0)[0][1])


def test_each_direction_is_kept_where_it_is_better() -> None:
    def judge(setting: Setting, part: int) -> float:
        return 1.0 - 0.2 * setting.bins + abs(setting.weight_decay - 0.3) + 100 / setting.steps

    best, tried = search(judge, 1, bins=True)
    assert best == Setting(bins=True, weight_decay=0.3, steps=1_800)
    assert min(tried, key=lambda judged: judged.loss).setting == best
    assert [judged.setting.weight_decay for judged in tried] == [1.0, 1.0, 3.0, 0.3, 0.3]
    best, tried = search(judge, 3, bins=False)
    assert best == Setting(bins=False, weight_decay=0.3)
    assert not any(judged.setting.bins for judged in tried)


def test_a_hopeless_setting_is_left_after_one_part_and_is_not_the_best() -> None:
    seen = []

    def worse(setting: Setting, part: int) -> float:
        seen.append((setting.bins, part))
        return 1.2 if setting.bins else (1.0, 2.0, 3.0)[part]

    best, tried = search(worse, 3, bins=True)
    assert best.bins is False
    assert [part for bins, part in seen if bins] == [0]
    assert tried[1].loss == 1.2
