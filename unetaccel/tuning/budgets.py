"""Budgets: what tuning has to keep to, a floor of quality or a ceiling of cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import SettingError

FLOORS = {
    "psnr": "psnr=45 (dB to the run without caching)",
    "ssim": "ssim=0.95 (to the run without caching)",
    "labels": "labels=0.99 (share of the demo's pictures with every label right)",
    "metric": "metric=0.9 (a function of yours)",
}
CEILINGS = {
    "macs": "macs=0.4 (share of the plain run's)",
    "time": "time=0.5 (share of the plain run's)",
}
ALLOWED = "; ".join([*FLOORS.values(), *CEILINGS.values()])


@dataclass(frozen=True)
class Budget:
    """One number to keep to.

    Args:
        kind: a floor, ``"psnr"``, ``"ssim"``, ``"labels"`` or ``"metric"``: means over the held-out pictures, of PSNR in dB.
            Or a ceiling, ``"macs"`` or ``"time"``: a share of the plain run of as many steps.
        limit: the number.

    Raises:
        SettingError: an unknown kind, or a number that no run could have.
    """

    kind: str
    limit: float

    def __post_init__(self):
        if self.kind not in (*FLOORS, *CEILINGS):
            raise SettingError(f"unknown budget {self.kind!r}; allowed are {ALLOWED}")
        limit = self.limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
            raise SettingError(f"budget {self.kind} must be a number, as in {self._example}, got {limit!r}")
        if self.kind != "metric" and limit <= 0:
            raise SettingError(f"budget {self.kind} must be above 0, as in {self._example}, got {limit!r}")
        if (self.kind in CEILINGS and limit >= 1) or (self.kind in ("ssim", "labels") and limit > 1):
            highest = "below 1, the plain run's cost" if self.kind in CEILINGS else "at most 1"
            raise SettingError(f"budget {self.kind} must be {highest}, as in {self._example}, got {limit!r}")

    @property
    def is_floor(self) -> bool:
        return self.kind in FLOORS

    @property
    def _example(self) -> str:
        return {**FLOORS, **CEILINGS}[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}={self.limit:g}"


def budget_from(value: Budget | str | Mapping) -> Budget:
    """A budget from ``"psnr=45"``, ``{"psnr": 45}``, or itself.

    Raises:
        SettingError: it is none.
    """
    if isinstance(value, Budget):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        return Budget(*next(iter(value.items())))
    if isinstance(value, str) and value.count("=") == 1:
        kind, _, number = (part.strip() for part in value.partition("="))
        try:
            return Budget(kind, float(number))
        except ValueError as error:
            if isinstance(error, SettingError):
                raise
            raise SettingError(f"budget {value!r}: {number!r} is not a number; allowed are {ALLOWED}") from error
    raise SettingError(f"budget must be one NAME=NUMBER, got {value!r}; allowed are {ALLOWED}")
