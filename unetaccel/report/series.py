"""Rows as curves: which belong together, what they are called, and what moves along them."""

from __future__ import annotations

from dataclasses import dataclass

from .results import QualityResult
from .rows import Row

# Okabe and Ito's colours without black and yellow: told apart with any kind of colour vision, on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


@dataclass(frozen=True)
class Family:
    """The rows that share a colour: the settings that name a curve, for any solver and number of steps."""

    name: str
    kind: str
    colour: str | None


def families(result: QualityResult) -> dict[str, Family]:
    """Families by their rows' id. The plain runs have no colour: they are drawn in ink."""
    found, by_row = {}, {}
    for row in result.rows:
        name = family_name(row)
        if (name, row.kind) not in found:
            coloured = sum(f.colour is not None for f in found.values())
            colour = None if row.kind == "plain" else COLOURS[coloured % len(COLOURS)]
            found[name, row.kind] = Family(name, row.kind, colour)
        by_row[row.id] = found[name, row.kind]
    return by_row


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
