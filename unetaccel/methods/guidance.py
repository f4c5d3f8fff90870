"""Guidance reuse: late in the run, only the conditional half of classifier-free guidance is evaluated.

The idea of T-GATE (Zhang et al., arXiv 2404.02747), FasterCache (Lv et al., arXiv 2410.19355) and of guidance in an interval
(Kynkaanniemi et al., arXiv 2404.07724), in the form that needs no change of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Method, is_point

MODES = ("hold", "drop")


@dataclass(frozen=True, repr=False)
class GuidanceReuse(Method):
    """From ``start`` on, evaluate the conditional half of the batch alone: half the work of full and cached evaluations alike.

    With c and u the outputs for the condition and without it, the pipeline makes u + s (c - u) of them. It is given c, and for
    u either c - d with d = c - u of the last evaluation of both (``mode="hold"``), or c itself (``"drop"``: no guidance any more).

    Args:
        start: the first such evaluation; an int is an index (the first evaluation is always of both), a float a share of the
            run, 1.0 never.
        mode: ``"hold"`` or ``"drop"``.

    Acts in pipelines that put both halves into one batch, unconditional first, as diffusers' do; evaluations where theirs
    do not (guidance of 1, perturbed attention, instructions for pictures) run as always. Features that were kept for reuse are cut to
    their conditional half when it begins. A compiled model is compiled again for half the batch.

    Raises:
        SettingError: a value out of range; from ``apply``: a pipeline that does not say whether it guides.
    """

    start: int | float = 0.8
    mode: str = "hold"

    role: ClassVar[str] = "guidance"
    headline: ClassVar[tuple[str, ...]] = ("start", "mode")

    def first(self, evaluations: int) -> int:
        """The first evaluation of the conditional half alone, in a run of so many."""
        return max(round(self.start * evaluations) if isinstance(self.start, float) else self.start, 1)

    def _check_start(self, value):
        """an evaluation index, or a share of the run between 0.0 and 1.0"""
        return is_point(value)

    def _check_mode(self, value):
        """'hold' or 'drop'"""
        return value in MODES
