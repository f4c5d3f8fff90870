"""The methods: frozen settings, one paper each. ``base`` and ``skip_method`` state the contract."""

from .base import Method
from .calibrated import Calibrated
from .deepcache import RECOMMENDED, DeepCache
from .freeu import FreeU
from .guidance import GuidanceReuse
from .reuse import ReuseMethod
from .scalelong import ScaleLong
from .skip_tuning import SkipTuning

__all__ = [
    "RECOMMENDED",
    "Calibrated",
    "DeepCache",
    "FreeU",
    "GuidanceReuse",
    "Method",
    "ReuseMethod",
    "ScaleLong",
    "SkipTuning",
]
