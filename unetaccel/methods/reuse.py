"""What a method that reuses features offers: where, when, and how F comes about in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ..forecast import Table
from ..timeline import Timeline
from .base import Method


class ReuseMethod(Method):
    """Base of the methods that make most evaluations cached ones. At most one is applied at a time.

    ``cut`` is a field: the skip index where cached evaluations enter, or what ``skips.resolve_cut`` understands.
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

    def tables(self, timeline: Timeline, flags: Sequence[bool]) -> Callable[[int], Table]:
        """What the evaluations of a call blend that is full where ``flags`` says so, by the first full one of a stream.

        The scheduler's numbers are read here, once, and only for forecasts that want them.
        """
        raise NotImplementedError
