"""Models: the Wide & Deep model, its towers and its heads.

A tower is named in Python by its configuration, ``WideDeep(schema, deep=models.DCNv2(layers=3))``,
and in TOML by its name, ``deep = { name = "dcn_v2", layers = 3 }``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widedeep.models.afm import AFM
    from widedeep.models.afn import AFN
    from widedeep.models.autoint import AutoInt
    from widedeep.models.bst import BST
    from widedeep.models.ccpm import CCPM
    from widedeep.models.config import ModelConfig
    from widedeep.models.dbmtl import DBMTL
    from widedeep.models.dcn import DCN, DCNMix, DCNv2
    from widedeep.models.deep_fm import DeepFM
    from widedeep.models.dien import DIEN
    from widedeep.models.difm import DIFM
    from widedeep.models.din import DIN
    from widedeep.models.dlrm import DLRM
    from widedeep.models.ensemble import Ensemble
    from widedeep.models.esmm import ESMM
    from widedeep.models.ffm import FFM, DeepFFM
    from widedeep.models.fibinet import FiBiNET
    from widedeep.models.finalmlp import FinalMLP
    from widedeep.models.fm import FM
    from widedeep.models.gdcn import GDCN
    from widedeep.models.head_base import (
        Head,
        register_head,
        registered_heads,
        unregister_head,
    )
    from widedeep.models.heads import (
        Binary,
        FunctionHead,
        Multiclass,
        Multilabel,
        Poisson,
        Ranking,
        Regression,
        Tweedie,
        ZeroInflatedLognormal,
    )
    from widedeep.models.history_pooling import HistoryPooling
    from widedeep.models.history_transformer import HistoryTransformer
    from widedeep.models.ifm import IFM
    from widedeep.models.losses import register_loss, registered_losses, unregister_loss
    from widedeep.models.lr import LR
    from widedeep.models.masknet import MaskNet
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
    from widedeep.models.two_tower import TwoTower
    from widedeep.models.wide_deep import WideDeep
    from widedeep.models.wukong import WuKong
    from widedeep.models.xdeepfm import XDeepFM

__all__ = [
    "AFM",
    "AFN",
    "BST",
    "CCPM",
    "DBMTL",
    "DCN",
    "DIEN",
    "DIFM",
    "DIN",
    "DLRM",
    "ESMM",
    "FFM",
    "FM",
    "GDCN",
    "IFM",
    "LR",
    "MLP",
    "MLR",
    "NFM",
    "ONN",
    "PLE",
    "PNN",
    "AutoInt",
    "Binary",
    "DCNMix",
    "DCNv2",
    "DeepFFM",
    "DeepFM",
    "DeepInput",
    "DeepLayout",
    "Ensemble",
    "FiBiNET",
    "FinalMLP",
    "FunctionHead",
    "Head",
    "HistoryPooling",
    "HistoryTransformer",
    "MMoE",
    "MaskNet",
    "ModelConfig",
    "Multiclass",
    "Multilabel",
    "Poisson",
    "Ranking",
    "Regression",
    "SequenceInput",
    "SharedBottom",
    "TabM",
    "TowerConfig",
    "Tweedie",
    "TwoTower",
    "WideDeep",
    "WuKong",
    "XDeepFM",
    "ZeroInflatedLognormal",
    "register_head",
    "register_loss",
    "register_tower",
    "registered_heads",
    "registered_losses",
    "registered_towers",
    "unregister_head",
    "unregister_loss",
    "unregister_tower",
]


_MODULE_OF = {
    **{"WideDeep": "wide_deep", "ModelConfig": "config"},
    **dict.fromkeys(("Head", "register_head", "registered_heads", "unregister_head"), "head_base"),
    **dict.fromkeys(("Binary", "FunctionHead", "Multiclass", "Multilabel", "Poisson"), "heads"),
    **dict.fromkeys(("Ranking", "Regression", "Tweedie", "ZeroInflatedLognormal"), "heads"),
    **dict.fromkeys(("register_loss", "registered_losses", "unregister_loss"), "losses"),
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
