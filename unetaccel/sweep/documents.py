"""YAML files of sweeps: no key twice, and files that lie beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

FILES = ("profile", "weights")
"""Settings of methods that name files."""


class SafeLoader(yaml.SafeLoader):
    """As PyYAML's, but a key that stands twice is an error: the last one would win in silence."""

    def construct_mapping(self, node, deep=False):
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for key, at in zip(keys, own, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", at.start_mark)
        return super().construct_mapping(node, deep)


def beside(folder: Path, data: Mapping) -> dict:
    """The sweep with the names of files that are not here but lie in ``folder``, the sweep's own, made into paths."""
    found = dict(data)
    if isinstance(found.get("prompts"), Mapping):
        found["prompts"] = {**found["prompts"], "source": _found(folder, found["prompts"].get("source", "demo"))}
    elif "prompts" in found:
        found["prompts"] = _found(folder, found["prompts"])
    if "real" in found:
        found["real"] = _found(folder, found["real"])
    if isinstance(found.get("weights"), Mapping):
        found["weights"] = {name: _found(folder, value) for name, value in found["weights"].items()}
    if isinstance(found.get("ways"), list):
        found["ways"] = [_in_way(folder, way) for way in found["ways"]]
    return found


def _in_way(folder: Path, way: object) -> object:
    """A family of rows, whose methods may name files too: profiles and weights."""
    if not isinstance(way, Mapping):
        return way
    paths = lambda settings: {k: _found(folder, v) if k in FILES else v for k, v in settings.items()}  # noqa: E731
    return {name: paths(settings) if isinstance(settings, Mapping) else settings for name, settings in way.items()}


def _found(folder: Path, name: object) -> object:
    if not isinstance(name, str) or name in ("demo", "none") or Path(name).exists() or not (folder / name).exists():
        return name
    return str(folder / name)
