"""What surrounds a capture, on stand-ins for torch.cuda: no GPU is needed to see that streams come back."""

import gc
import threading
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch

from unetaccel import capture
from unetaccel.capture import SYNCHRONIZING, CudaGraphs


class Stream:
    def __init__(self, device=None):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


class Graph:
    def __init__(self, cuda):
        self.cuda = cuda

    def pool(self):
        return self.cuda.pools[id(self)]

    def replay(self):
        pass


class Cuda:
    """The parts of ``torch.cuda`` that a recording uses. As torch's own, ``graph`` leaves its stream behind when it fails."""

    def __init__(self):
        self.current, self.pools, self.asked, self.reserved, self.mode = Stream(), {}, [], 100, 0
        self.Stream, self.capturing, self.broken = Stream, 0, False
        self.device = lambda device: nullcontext()
        self.CUDAGraph = lambda: Graph(self)

    def current_stream(self, device=None):
        return self.current

    def memory_reserved(self, device):
        return self.reserved

    def synchronize(self):
        pass

    def empty_cache(self):
        self.reserved = 10

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        assert self.capturing == 0, "one capture at a time"
        self.asked.append(pool)
        self.current, self.capturing = Stream(), self.capturing + 1
        yield
        self.capturing -= 1
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.pools[id(graph)] = pool or object()
        self.reserved += 7
        self.current = stream


USED = (
    "Stream",
    "CUDAGraph",
    "device",
    "current_stream",
    "memory_reserved",
    "synchronize",
    "empty_cache",
    "get_sync_debug_mode",
    "set_sync_debug_mode",
    "stream",
    "graph",
)


class OnCuda:
    is_cuda, device = True, torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    found = Cuda()
    for name in USED:
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    monkeypatch.setattr(capture, "_failed", [])
    return found


def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda):
    before, cuda.broken = cuda.current, True
    with pytest.raises(RuntimeError, match="previous error"):
        CudaGraphs().record(lambda x: None, [OnCuda()])
    assert cuda.current is before
    assert len(capture._failed) == 1
    cuda.broken = False
    CudaGraphs().record(lambda x: None, [OnCuda()])
    assert cuda.current is before


def test_work_that_waits_for_the_device_is_not_captured(cuda):
    def work(x):
        if cuda.mode == "warn":
            warnings.warn(f"{SYNCHRONIZING} (Triggered internally)", stacklevel=1)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="waits for the device"):
            CudaGraphs().record(work, [OnCuda()])
    assert (cuda.asked, cuda.mode, told) == ([], 0, [])


def test_waiting_in_other_threads_and_other_warnings_do_not_count(cuda):
    def work(x):
        other = threading.Thread(target=lambda: warnings.warn(SYNCHRONIZING, stacklevel=1))
        other.start(), other.join()
        warnings.warn("something else", stacklevel=1)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        CudaGraphs().record(work, [OnCuda()])
    assert len(cuda.asked) == 1
    assert "something else" in {str(w.message) for w in told}


def test_memory_is_shared_with_graphs_that_are_there(cuda):
    """The pool of graphs that are gone can't be used again: torch asserts that somebody uses it."""
    graphs = CudaGraphs()
    first, second = (graphs.record(lambda x: None, [OnCuda()]) for _ in range(2))
    assert cuda.asked == [None, first.replay.__self__.pool()]
    assert second.nbytes == 7, "without what the runs before it had reserved"
    del first, second
    gc.collect()
    graphs.record(lambda x: None, [OnCuda()])
    assert cuda.asked[-1] is None


def test_another_stream_waits_for_the_last(cuda):
    graphs, x, first, second = CudaGraphs(), OnCuda(), Stream(), Stream()
    for cuda.current in (first, first, second, second, first):
        graphs.in_turn(x)
    assert (first.waited, second.waited) == ([second], [first])


def test_one_capture_at_a_time(cuda):
    threads = [threading.Thread(target=CudaGraphs().record, args=(lambda x: None, [OnCuda()])) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(cuda.asked) == 4
