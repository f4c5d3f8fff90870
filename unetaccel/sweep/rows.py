"""The rows of a sweep: every combination of settings, each with a name that is also its folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field

from ..errors import SettingError
from ..sampling import SCHEDULERS
from ..settings import METHODS, method_from
from .spec import Sweep

PEERS = {"official_deepcache": ("interval", "branch")}
"""Other packages that a row may use instead of our methods, and their settings."""

MOVING = ("interval", "full")
LONGEST = 120
"""Characters of a row's id: it names a folder and files, of which most systems take 255 bytes."""

WORD = re.compile(r"[a-z][a-z_]*|[a-z]+:\d+")
"""Texts that tell themselves apart in an id, where ``:`` is written ``_``; any other is told apart by a hash."""


@dataclass(frozen=True)
class Row:
    """One way of sampling: a solver, a number of steps and what is applied (``{}`` is plain)."""

    solver: str | None
    steps: int
    methods: dict = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """``plain``, ``method`` or ``peer``."""
        if not self.methods:
            return "plain"
        return "peer" if self.methods.keys() & PEERS.keys() else "method"

    @property
    def id(self) -> str:
        """Such as ``ddim-50-deepcache-interval3-cut0-uniform``; words stand without their setting's name.

        Settings that cannot be written in a file's name or that make it too long (paths, long lists) leave a shortened
        text and a hash of themselves at the end, so that no two rows share a folder.
        """
        parts = [self.solver or "own", str(self.steps)]
        for name, settings in self.methods.items():
            parts += [name, *(v if isinstance(v, str) else f"{k}{_short(v)}" for k, v in settings.items())]
        name = re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join(parts if self.methods else [*parts, "plain"]))
        values = [value for settings in self.methods.values() for value in settings.values()]
        if len(name) <= LONGEST and all(map(_tells_itself, values)):
            return name
        whole = json.dumps([self.solver, self.steps, self.methods], default=str)
        code = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return f"{name[: LONGEST - len(code) - 1]}-{code}"

    @property
    def label(self) -> str:
        """For people."""
        if not self.methods:
            return f"plain, {self.steps} steps"
        return " + ".join(_label(name, settings) for name, settings in self.methods.items())

    @property
    def group(self) -> dict:
        """What names the curve that this row lies on: everything but the interval, or the number of full evaluations."""
        found = {"method": "+".join(self.methods)}
        for settings in self.methods.values():
            found |= {k: v for k, v in settings.items() if k not in MOVING}
        return found

    def plain(self, steps: int | None = None) -> Row:
        """The plain run of the same solver, by default of as many steps."""
        return Row(self.solver, steps or self.steps)


def _short(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _tells_itself(value: object) -> bool:
    """Whether the text of a value in an id cannot be that of another one."""
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None
    if isinstance(value, list | tuple):
        return len(value) > 1 and all(isinstance(v, int | float) for v in value)  # a list of one reads like a number
    return value is None or isinstance(value, int | float)


def _label(name: str, settings: dict) -> str:
    if name == "official_deepcache":
        return f"DeepCache 0.1.1 ({', '.join(f'{k} {v}' for k, v in settings.items())})"
    return repr(method_from(name, settings))


def expand(sweep: Sweep) -> list[Row]:
    """Every row that the sweep names, plain runs first; settings are checked by making each method.

    Raises:
        SettingError: an unknown method or setting, a refused value, or two rows of one name.
    """
    known = {None, *SCHEDULERS, *SCHEDULERS.values()}
    strange = [solver for solver in sweep.solvers if solver not in known]
    if strange:
        raise SettingError(f"unknown solver {strange[0]!r}; known: {', '.join(SCHEDULERS)}, or their class names")
    rows = []
    for solver in sweep.solvers:
        counts = dict.fromkeys([*sweep.steps, *(steps for way in sweep.ways for steps in sweep.steps_of(way))])
        for steps in counts:
            rows.append(Row(solver, steps))
            ways = [way for way in sweep.ways if steps in sweep.steps_of(way)]
            rows += [Row(solver, steps, methods) for way in ways for methods in _combinations(way) if methods]
    for row in rows:
        _check(row)
    names = [row.id for row in rows]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SettingError(f"two rows of the sweep are the same: {sorted(twice)[0]}")
    strangers = sweep.published.keys() - set(names)
    if strangers:
        raise SettingError(
            f"published names {sorted(strangers)[0]!r}, which is no row of this sweep; rows: {', '.join(names)}"
        )
    return sorted(rows, key=lambda row: row.kind != "plain")


def _combinations(way: dict) -> list[dict]:
    way = {name: settings for name, settings in way.items() if name != "steps"}
    axes = [(name, key, value if isinstance(value, list) else [value]) for name, settings in way.items()
            for key, value in (settings or {}).items()]  # fmt: skip
    empty = [f"{name}.{key}" for name, key, values in axes if not values]
    if empty:
        raise SettingError(f"{empty[0]} has no value: [] makes no row")
    found = []
    for values in itertools.product(*(axis[2] for axis in axes)):
        methods: dict[str, dict] = {name: {} for name in way}
        for (name, key, _), value in zip(axes, values, strict=True):
            methods[name][key] = value
        found.append(methods)
    return found


def _check(row: Row) -> None:
    for name, settings in row.methods.items():
        if name not in PEERS:
            _check_method(name, settings)
        elif set(settings) != set(PEERS[name]) or len(row.methods) > 1:
            raise SettingError(f"{name} stands alone and wants the settings {', '.join(PEERS[name])}, got {settings}")


def _check_method(name: str, settings: dict) -> None:
    try:
        method_from(name, settings)
    except SettingError as error:
        if name in METHODS:
            raise
        raise SettingError(f"unknown method {name!r}; known: {', '.join([*METHODS, *PEERS])}") from error
