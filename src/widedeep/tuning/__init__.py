"""Search for the settings of a run: rates, penalties, widths, dropout and the model.

Example:
    >>> from widedeep.tuning import TuneConfig
    >>> TuneConfig(trials=5).minutes
    10.0
"""

from widedeep.training.config import TuneConfig
from widedeep.tuning.study import Study, Trial, tune

__all__ = ["Study", "Trial", "TuneConfig", "tune"]
