"""Models: the Wide & Deep model, its towers and its heads.

A tower is named in Python by its configuration, ``WideDeep(schema, deep=models.DCNv2(layers=3))``,
and in TOML by its name, ``deep = { name = "dcn_v2", layers = 3 }``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widedeep.models.afm import AFM
    from widedeep.models.ccpm import CCPM
    from widedeep.models.config import ModelConfig
    from widedeep.models.dbmtl import DBMTL
    from widedeep.models.dcn_v2 import DCNv2
    from widedeep.models.deep_fm import DeepFM
    from widedeep.models.difm import DIFM
    from widedeep.models.din import DIN
    from widedeep.models.esmm import ESMM
    from widedeep.models.ffm import FFM, DeepFFM
    from widedeep.models.fm import FM
    from widedeep.models.heads import Binary, Head, Multiclass, Regression
    from widedeep.models.history_pooling import HistoryPooling
    from widedeep.models.ifm import IFM
    from widedeep.models.lr import LR
    from widedeep.models.mlp import MLP
    from widedeep.models.mlr import MLR
    from widedeep.models.mmoe import MMoE
    from widedeep.models.nfm import NFM
    from widedeep.models.onn import ONN
    from widedeep.models.ple import PLE
    from widedeep.models.pnn import PNN
    from widedeep.models.shared_bottom import SharedBottom
    from widedeep.models.tabm import TabM
    from widedeep.models.tower import (
        DeepInput,
        DeepLayout,
        SequenceInput,
        TowerConfig,
        register_tower,
        registered_towers,
        unregister_tower,
    )
    from widedeep.models.wide_deep import WideDeep

__all__ = [
    "AFM",
    "CCPM",
    "DBMTL",
    "DIFM",
    "DIN",
    "ESMM",
    "FFM",
    "FM",
    "IFM",
    "LR",
    "MLP",
    "MLR",
    "NFM",
    "ONN",
    "PLE",
    "PNN",
    "Binary",
    "DCNv2",
    "DeepFFM",
    "DeepFM",
    "DeepInput",
    "DeepLayout",
    "Head",
    "HistoryPooling",
    "MMoE",
    "ModelConfig",
    "Multiclass",
    "Regression",
    "SequenceInput",
    "SharedBottom",
    "TabM",
    "TowerConfig",
    "WideDeep",
    "register_tower",
    "registered_towers",
    "unregister_tower",
]


_MODULE_OF = {
    **{"WideDeep": "wide_deep", "ModelConfig": "config"},
    **dict.fromkeys(("Binary", "Head", "Multiclass", "Regression"), "heads"),
}


def __getattr__(name: str) -> object:
    """Load a public name on first use: a process that only scores never imports torch."""
    if name not in __all__:
        raise AttributeError(f"module 'widedeep.models' has no attribute {name!r}")
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"widedeep.models.{_MODULE_OF[name]}"), name)
    tower = importlib.import_module("widedeep.models.tower")
    towers = {config.__name__: config for config in tower.registered_towers().values()}
    return towers.get(name) or getattr(tower, name)
