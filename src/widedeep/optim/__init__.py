"""Optimizers of the wide weights, the embeddings and the dense parameters.

Example:
    >>> from widedeep.optim import FTRL
    >>> FTRL(lr=0.1, l1=1.0).state_names
    ('z', 'n')
"""

from widedeep.optim.adagrad import Adagrad
from widedeep.optim.adam import Adam
from widedeep.optim.base import (
    Optimizer,
    OptimizerChoice,
    describe_optimizer,
    make_optimizer,
)
from widedeep.optim.ftrl import FTRL
from widedeep.optim.rmsprop import RMSProp
from widedeep.optim.sgd import SGD

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Optimizer",
    "OptimizerChoice",
    "RMSProp",
    "describe_optimizer",
    "make_optimizer",
]
