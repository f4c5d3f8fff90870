"""Capture: work on fixed addresses, recorded as a CUDA graph."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

SYNCHRONIZING = "called a synchronizing CUDA operation"
"""What torch warns of where it is told to, see ``torch.cuda.set_sync_debug_mode``."""

_one_at_a_time = threading.Lock()
"""Captures and the emptying of caches before them disturb one another, whatever threads they are in."""
_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture did not end: torch's allocator may ask them until the process ends."""


class Recorder(Protocol):
    """Records work on fixed addresses."""

    def why_not(self, x: torch.Tensor) -> str | None:
        """Why work on ``x`` cannot be recorded; None if it can."""

    def in_turn(self, x: torch.Tensor) -> None:
        """Called before buffers are written for ``x``: what was replayed before may still read them."""

    def record(self, work: Callable[..., object], buffers: list[torch.Tensor]) -> Recorded:
        """Record ``work(*buffers)``."""


@dataclass(frozen=True)
class Recorded:
    """``replay`` writes what the work returned, where it lies."""

    replay: Callable[[], None]
    result: object
    nbytes: int
    """Memory that the recording holds, its buffers apart."""


class CudaGraphs:
    """CUDA graphs of one set of views. They share memory, since one runs at a time and results are copied out of it."""

    def __init__(self):
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._graphs: dict[torch.device, weakref.WeakSet[torch.cuda.CUDAGraph]] = {}
        self._latest: torch.cuda.Stream | None = None

    def why_not(self, x: torch.Tensor) -> str | None:
        if not x.is_cuda:
            return f"CUDA graphs need a CUDA device, and this call is on {x.device}"
        with torch.cuda.device(x.device):
            return "a graph is being captured already" if torch.cuda.is_current_stream_capturing() else None

    def in_turn(self, x: torch.Tensor) -> None:
        stream = torch.cuda.current_stream(x.device)
        if self._latest not in (None, stream):  # the call before was made on another, and perhaps not waited for
            stream.wait_stream(self._latest)
        self._latest = stream

    def record(self, work: Callable[..., object], buffers: list[torch.Tensor]) -> Recorded:
        """Record ``work(*buffers)``, after two runs in which libraries choose and build their kernels.

        Raises:
            RuntimeError: it waits for the device. This is found out beforehand, because a capture that breaks off leaves
                torch's allocator and random numbers in disorder.
        """
        device = next(b.device for b in buffers if b.is_cuda)
        with _one_at_a_time, torch.cuda.device(device):
            with _aside(torch.cuda.Stream()):
                work(*buffers)
                with _no_waiting():
                    work(*buffers)
            return self._captured(device, lambda: work(*buffers))

    def _captured(self, device: torch.device, work: Callable[[], object]) -> Recorded:
        # One stream for all of them, or they would share no memory; of this device, which torch's own need not be;
        # and not that of the runs before, so that workspaces of libraries lie in the graphs' memory.
        stream = self._streams.setdefault(device, torch.cuda.Stream())
        graphs = self._graphs.setdefault(device, weakref.WeakSet())
        pool = next((graph.pool() for graph in graphs), None)  # that of no graph any more can't be used again
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # as captures begin by: what it frees is not of this one
        before, graph = torch.cuda.memory_reserved(device), torch.cuda.CUDAGraph()
        with _aside(stream):  # of which the inner block does not come back where the capture fails
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    result = work()
            except BaseException:
                _failed.append(graph)
                raise
        graphs.add(graph)
        return Recorded(graph.replay, result, max(0, torch.cuda.memory_reserved(device) - before))


@contextmanager
def _aside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Do it on another stream, between what was and what will be done on the current one."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError at the end of the block if this thread has waited for the device in it."""
    thread, found, mode = threading.get_ident(), [], torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{SYNCHRONIZING}")
        show = warnings.showwarning

        def note(message, *args, **kwargs):
            if SYNCHRONIZING not in str(message):
                show(message, *args, **kwargs)
            elif threading.get_ident() == thread:
                found.append(message)

        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")  # of all threads: "error" would raise in others
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    if found:
        raise RuntimeError("an operation waits for the device")
