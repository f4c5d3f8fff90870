"""What a method is: settings only. It never touches a model; ``patch.apply`` reads it and builds overlays."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from ..errors import SettingError


@dataclass(frozen=True)
class Method:
    """Base of every method: a frozen dataclass whose ``__post_init__`` checks each field.

    ``role`` says which part of the U-Net it speaks about, and so the order in which methods compose.
    Neutral settings leave every output bit unchanged while applied.
    """

    role: ClassVar[str]
    headline: ClassVar[tuple[str, ...]] = ()
    """Fields that ``repr`` always shows; others only where they differ from their default."""
    example: ClassVar[str] = "{}"
    """What a configuration file might give it."""

    def __repr__(self) -> str:
        shown = [f.name for f in fields(self) if f.name in self.headline or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __post_init__(self):
        for f in fields(self):
            check = getattr(self, f"_check_{f.name}", None)
            if check is not None and not check(getattr(self, f.name)):
                allowed = (check.__doc__ or "").strip()
                raise SettingError(
                    f"{type(self).__name__}({f.name}={getattr(self, f.name)!r}): {f.name} must be {allowed}"
                )


def is_int(value, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_above(value, low: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < math.inf


def is_point(value) -> bool:
    """A place in a run: an evaluation index, or a share of the run."""
    return is_int(value, 0) or (isinstance(value, float) and 0.0 <= value <= 1.0)
