"""What the tests of recorded graphs share: a recorder that does on a CPU what a CUDA graph does. It repeats operations, not Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from unetaccel.capture import Recorded


class Tape(TorchDispatchMode):
    """Operations with the memory that they read and wrote, to be repeated on the very same."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read = {t.untyped_storage().data_ptr() for t in tensors_of((args, kwargs))}
        written = [None if t.untyped_storage().data_ptr() in read else t for t in tensors_of(result)]
        views = not func._schema.is_mutable and written and written[0] is None
        if not views:  # what a view shows is where it was
            here = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))  # a parameter may move
            self.operations.append((func, here, written))
        return result

    def play(self) -> None:
        for func, (args, kwargs), written in self.operations:
            found = func(*args, **kwargs)
            for old, new in zip(written, tensors_of(found), strict=True):
                if old is not None:
                    old.copy_(new)


def tensors_of(value) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Taped:
    """Records operations and memory; everything else is a constant, as in a CUDA graph."""

    def __init__(self):
        self.graphs = 0

    def why_not(self, x):
        return None

    def in_turn(self, x):
        pass

    def record(self, work, buffers):
        work(*buffers)
        self.graphs += 1
        with Tape() as tape:
            result = work(*buffers)
        for tensor in tensors_of(result):
            tensor.fill_(float("nan"))  # a replay has to write it
        return Recorded(tape.play, result, 0)


def count(recorders) -> int:
    return sum(r.graphs for r in recorders)
