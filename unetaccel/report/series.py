"""Rows as curves: which belong together, what they are called, and what moves along them."""

from __future__ import annotations

from dataclasses import dataclass

from .results import QualityResult
from .rows import Row

# Okabe and Ito's colours without black and yellow: told apart with any kind of colour vision, on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


@dataclass(frozen=True)
class Family:
    """The rows that share a colour: the settings that name a curve, for any solver and number of steps.

    ``colour`` counts through ``COLOURS``; the plain runs have none and are drawn in ink.
    """

    name: str
    kind: str
    colour: int | None


def families(result: QualityResult) -> dict[str, Family]:
    """Families by their rows' id. Another package's family has the colour of ours with the same settings."""
    colours, found = {}, {}
    for row in sorted(result.rows, key=lambda row: row.kind == "peer"):
        key = tuple(sorted((k, str(v)) for k, v in row.group.items() if k != "method" or row.kind == "method"))
        if row.kind == "peer":
            key = next((k for k in colours if key == tuple(pair for pair in k if pair[0] != "method")), key)
        colour = None if row.kind == "plain" else colours.setdefault(key or (row.label,), len(colours) % len(COLOURS))
        found[row.id] = Family(family_name(row), row.kind, colour)
    return {row.id: found[row.id] for row in result.rows}


def family_name(row: Row) -> str:
    """``{"method": "deepcache", "cut": 0, "schedule": "uniform"}`` as ``deepcache, cut 0, uniform``."""
    if row.kind == "plain":
        return "plain runs"
    if not row.group:
        return row.label
    return ", ".join(str(v) if isinstance(v, str) else f"{k} {v}" for k, v in row.group.items())


def tag(row: Row) -> str:
    """What moves along the curve: the steps of a plain run, else the settings that do not name the curve."""
    return str(row.steps) if row.kind == "plain" else "/".join(str(v) for _, v in _moving(row))


def moving_name(result: QualityResult) -> str:
    """The names of the settings that move along the curves, for a legend."""
    names = {key for row in result.rows if row.kind != "plain" for key, _ in _moving(row)}
    return ", ".join(sorted(names))


def _moving(row: Row) -> list[tuple[str, object]]:
    settings = [item for method in row.methods.values() if isinstance(method, dict) for item in method.items()]
    return [(key, value) for key, value in settings if key not in row.group and isinstance(value, int | float | str)]
