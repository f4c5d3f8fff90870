"""Methods as plain data, as YAML files and command lines write them: ``{"deepcache": {"interval": 3, "cut": 0}}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields

from .errors import SettingError
from .methods import Calibrated, DeepCache, FreeU, GuidanceReuse, Method, ScaleLong, SkipTuning

METHODS: dict[str, type[Method]] = {
    "deepcache": DeepCache,
    "calibrated": Calibrated,
    "freeu": FreeU,
    "guidance_reuse": GuidanceReuse,
    "scalelong": ScaleLong,
    "skip_tuning": SkipTuning,
}
FOREIGN = {"cache_interval": ("interval", ""), "cache_branch_id": ("cut", "helper:")}
"""Names that DeepCacheSDHelper gives its settings: our name for each, and what goes before the value."""


def method_from(name: str, settings: Mapping | None = None) -> Method:
    """The method of this name with these settings.

    The names in ``FOREIGN`` are understood too.

    Raises:
        SettingError: no such method or setting, or a value that the method refuses.
    """
    if name not in METHODS:
        raise SettingError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    if not isinstance(settings or {}, Mapping):
        raise SettingError(f"settings of {name!r} must be NAME: VALUE pairs, got {settings!r}")
    method, found = METHODS[name], dict(_own(*item) for item in (settings or {}).items())
    known = [f.name for f in fields(method) if f.init]
    strange = [key for key in found if key not in known]
    if strange:
        raise SettingError(f"{name} has no setting {strange[0]!r}; it has {', '.join(known)}")
    missing = missing_settings(name, found)
    if missing:
        raise SettingError(f"{name} needs {missing[0]}, for example {name}: {method.example}")
    return method(**found)


def missing_settings(name: str, settings: Mapping) -> list[str]:
    """The settings that the method of this name cannot do without, and that are not given."""
    return [f.name for f in fields(METHODS[name]) if f.default is MISSING and f.name not in settings]


def _own(key: str, value: object) -> tuple[str, object]:
    own, prefix = FOREIGN.get(key, (key, ""))
    return own, f"{prefix}{value}" if prefix else value
