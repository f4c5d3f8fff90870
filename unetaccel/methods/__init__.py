"""The methods: frozen settings, one paper each. ``base`` states the contract."""

from .base import Method
from .deepcache import DeepCache

__all__ = ["DeepCache", "Method"]
