"""Clocks that do not wait inside what they time, and how repeats are summed up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Measured = TypeVar("Measured")


class Marks:
    """Moments in the order in which they were marked.

    On CUDA these are events on the current stream, read after the last; elsewhere wall-clock times.

    Args:
        device: whose work is timed; None for marks that nobody reads.
    """

    def __init__(self, device: torch.device | None):
        self._device, self._found = device, []
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    def mark(self) -> None:
        if self._device is None:
            return
        if self._device.type != "cuda":
            self._found.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._found.append(event)

    def seconds(self) -> list[float]:
        """From the first mark to each; waits for the last."""
        if not self._found or self._device.type != "cuda":
            return [moment - self._found[0] for moment in self._found]
        self._found[-1].synchronize()
        return [self._found[0].elapsed_time(event) / 1000 for event in self._found]


@dataclass(frozen=True)
class Loop:
    """One timed sampling loop, in seconds."""

    whole: float
    evaluations: tuple[float, ...]
    """Of the U-Net alone, one per step."""

    @classmethod
    def of(cls, marks: Marks) -> Loop:
        """From the marks of ``Job.sample``."""
        seconds = marks.seconds()
        inner = seconds[1:-1]
        return cls(seconds[-1], tuple(b - a for a, b in zip(inner[::2], inner[1::2], strict=True)))


def interleaved(ways: Mapping[Key, Callable[[], Measured]], repeats: int) -> dict[Key, list[Measured]]:
    """Run every way once per repeat, starting with another one each time; a first round is not counted."""
    names, found = list(ways), {name: [] for name in ways}
    for i in range(repeats + 1):
        turn = i % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            measured = ways[name]()
            if i:
                found[name].append(measured)
    return found


def spread(values: list[float], digits: int = 7) -> dict[str, float]:
    """Median with the 20th and 80th percentile."""
    cuts = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    found = {"median": statistics.median(values), "p20": cuts[0], "p80": cuts[-1]}
    return {name: round(value, digits) for name, value in found.items()}
