"""Times the evaluations of a run without ever waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch


class StepClock:
    """Durations of full and of cached evaluations; those of another kind (None) are not told.

    On CUDA a pair of events per evaluation is recorded and only read when ``medians`` is asked for;
    elsewhere wall-clock time is taken.
    """

    def __init__(self):
        self._spans: list[tuple[bool | None, object, object]] = []

    @contextmanager
    def measure(self, full: bool | None, device: torch.device | None = None) -> Iterator[None]:
        start = _mark(device)
        yield
        self._spans.append((full, start, _mark(device)))

    def medians(self) -> tuple[float | None, float | None]:
        """Median seconds of a full and of a cached evaluation; None where there was none."""
        return tuple(_median([_seconds(a, b) for kind, a, b in self._spans if kind is full]) for full in (True, False))


def _mark(device: torch.device | None):
    if device is not None and device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    return time.perf_counter()


def _seconds(start, end) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _median(values: list[float]) -> float | None:
    return median(values) if values else None
