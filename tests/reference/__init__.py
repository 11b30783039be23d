"""The kernels in plain NumPy: oracles with the names and signatures of the native module.

`install` puts them in the place of the native functions of this process, for tests that run a whole
system on them; call it before models are made.
"""

from __future__ import annotations

import sys

from tests.reference.counting import CountTable as CountTable
from tests.reference.pairs import attend_pairs as attend_pairs
from tests.reference.pairs import attend_pairs_grad as attend_pairs_grad
from tests.reference.ranker import RankScorer as RankScorer
from tests.reference.score import Scorer as Scorer
from tests.reference.sparse import *  # noqa: F403
from tests.reference.tower import Tower as Tower
from tests.reference.tower import TowerGradients as TowerGradients
from tests.reference.tower import TowerLayer as TowerLayer
from tests.reference.tower import TowerNorm as TowerNorm
from tests.reference.tower import has_bf16_products as has_bf16_products
from tests.reference.tower import pair_products as pair_products
from tests.reference.tower import pair_products_grad as pair_products_grad
from widedeep import _native


class StepProgram:
    """Leaves every step to the kernels of single ones."""

    def __init__(self, **_: object) -> None:
        pass

    def run(self, *_: object, **__: object) -> tuple[int, int]:
        """Say that no step was done."""
        return 0, 0


def install() -> None:
    """Run this process on the reference, wherever a module took a name from the native one."""
    own = {id(getattr(_native, name)): value for name, value in globals().items()
           if not name.startswith("_") and hasattr(_native, name)}  # fmt: skip
    modules = [module for name, module in sys.modules.items() if name.startswith("widedeep")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if id(value) in own:
                setattr(module, name, own[id(value)])
