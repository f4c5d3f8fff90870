"""Watching forecasts: at full evaluations, what would have been forecast is compared with what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

LAG = 2
"""So many evaluations later a comparison is acted upon: the copy from the device has the one in between to arrive."""


@dataclass
class Watch:
    """The errors of one sampling call. They stay on the device until somebody asks.

    Args:
        limits: by evaluation, the root-mean-square relative error of F above which the plan is to be mended; None where
            nothing is. Then, and only then, errors are copied to the host as they arise.
    """

    limits: Sequence[float] | None = None
    _squares: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    _arrivals: dict[int, list[torch.cuda.Event]] = field(default_factory=dict)

    def note(self, index: int, feature: torch.Tensor, expected: torch.Tensor) -> None:
        """Compare F at the full evaluation ``index``, (N, C, H, W), with its forecast."""
        found = squared_error(feature, expected)
        if self.limits is not None and found.is_cuda:
            there, found = found, torch.empty((), pin_memory=True)
            found.copy_(there, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(there.device))
            self._arrivals.setdefault(index, []).append(event)
        self._squares.setdefault(index, []).append(found)

    def exceeds(self, index: int) -> bool:
        """Whether the forecasts of evaluation ``index`` were worse than its limit. Waits for their copies."""
        if self.limits is None or index not in self._squares:
            return False
        for event in self._arrivals.pop(index, ()):
            event.synchronize()
        return self._error(index) > self.limits[index]

    def errors(self) -> dict[int, float]:
        """Root-mean-square relative errors of F by evaluation, over pictures and streams. Waits for the device."""
        return {index: self._error(index) for index in self._squares}

    def _error(self, index: int) -> float:
        return float(torch.stack(self._squares[index]).mean().sqrt())


def squared_error(feature: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """|F - expected|^2 / |F|^2 of each of the N pictures, and their mean, float32 ()."""
    feature, expected = feature.float().flatten(1), expected.float().flatten(1)
    return ((feature - expected).square().sum(1) / feature.square().sum(1)).mean()
