"""Optimizers from tables, and mistakes in them."""

from __future__ import annotations

import pytest
import torch

from widedeep.errors import ConfigError
from widedeep.optim import Adam, RMSProp, describe_optimizer, make_optimizer


def test_a_table_may_hold_lists() -> None:
    adam = make_optimizer({"optimizer": "adam", "betas": [0.8, 0.9]})
    assert adam == Adam(betas=(0.8, 0.9))
    assert describe_optimizer(adam)["betas"] == [0.8, 0.9]


def test_mistakes_are_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="got optimizer='adagard'; did you mean 'adagrad'"):
        make_optimizer({"optimizer": "adagard"})
    with pytest.raises(ConfigError, match="got optimizer=None; known: 'adagrad'"):
        make_optimizer({"lr": 0.1})
    with pytest.raises(ConfigError, match="'ftrl': got the unknown key 'learning_rate'"):
        make_optimizer({"optimizer": "ftrl", "learning_rate": 0.1})


def test_a_torch_optimizer_is_described_by_its_name() -> None:
    assert describe_optimizer(torch.optim.AdamW) == {"optimizer": "torch: AdamW"}


def test_a_name_makes_an_optimizer_with_its_defaults() -> None:
    assert make_optimizer("rmsprop") == RMSProp()
    with pytest.raises(ConfigError, match="got optimizer='rmsporp'; did you mean 'rmsprop'"):
        make_optimizer("rmsporp")
