"""The tuner: `vitc tune`, and `vitc.compile(..., tune=True)`."""

from vitc.tune.device import TuningDevice, find_device
from vitc.tune.run import Tuned, TuneReport, tune, tune_graph

__all__ = ["TuneReport", "Tuned", "TuningDevice", "find_device", "tune", "tune_graph"]
