"""What a method that reuses features offers: where, when, and how F comes about in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ..forecast import Table
from ..timeline import Timeline
from .base import Method


class ReuseMethod(Method):
    """Base of the methods that make most evaluations cached ones. At most one is applied at a time.

    Fields that all have: ``cut``, the skip index where cached evaluations enter, or what ``skips.resolve_cut`` understands;
    ``observe``, whether full evaluations are compared with what would have been forecast; ``refresh``, from which error on
    a cached evaluation is made full for it, None for never (see ``limits``).
    """

    role: ClassVar[str] = "reuse"

    def check_model(self, base: Mapping[str, object]) -> None:
        """Raise if the method does not fit a U-Net like ``base`` (see ``weights.base_of``); asked by ``apply``.

        Raises:
            SettingError: it does not.
        """

    def why_plain(self, timeline: Timeline) -> str | None:
        """Why a call on this timeline is kept plain though caching was asked for, or None."""
        return None

    def flags(self, timeline: Timeline) -> list[bool]:
        """One flag per evaluation of ``timeline``, true where it is full.

        Raises:
            SettingError: the settings do not fit such a call.
        """
        raise NotImplementedError

    @property
    def observes(self) -> bool:
        """Whether forecasts are compared with what full evaluations find."""
        return self.observe or self.refresh is not None

    def predicted(self, timeline: Timeline, flags: Sequence[bool]) -> list[float] | None:
        """Predicted relative error of F at every evaluation, were it forecast; None where nothing was measured."""
        return None

    def limits(self, timeline: Timeline, flags: Sequence[bool]) -> list[float] | None:
        """By evaluation, the error of F above which a cached evaluation is made full; None if none is ever."""
        return None if self.refresh is None else [self.refresh] * len(flags)

    def tables(self, timeline: Timeline, flags: Sequence[bool]) -> Callable[[int], Table]:
        """What the evaluations of a call blend that is full where ``flags`` says so, by the first full one of a stream.

        The scheduler's numbers are read here, once, and only for forecasts that want them.
        """
        raise NotImplementedError
