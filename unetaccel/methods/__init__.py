"""The methods: frozen settings, one paper each. ``base`` and ``skip_method`` state the contract."""

from .base import Method
from .deepcache import DeepCache
from .freeu import FreeU
from .scalelong import ScaleLong
from .skip_tuning import SkipTuning

__all__ = ["DeepCache", "FreeU", "Method", "ScaleLong", "SkipTuning"]
