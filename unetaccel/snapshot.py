"""Snapshot: everything of a module tree that a recorded graph has fixed, so that a change of it is noticed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .held import Held, Memo

DEPTH = 3
PLAIN = (torch.Tensor, nn.Parameter)
ROOTS = ("", "view", "unet")
"""A step and its view, whose hooks are run around the whole evaluation."""


class Snapshot:
    """Remembers children, parameters and where they lie, buffers, hooks and plain attributes of all modules.

    Lists and dicts among the attributes are compared by what is in them, ``DEPTH`` levels deep: IP-Adapters keep
    their scales so. Values of parameters are not looked at: graphs read them. Costs below a microsecond per module.
    """

    def __init__(self, root: nn.Module):
        self._live = [d for m in _modules(root) for d in _attributes(m)]
        self._seen = [_copied(d, DEPTH + 1) for d in self._live]
        self._tensors = list(_tensors(root))
        self._plain = all(type(t) in PLAIN for t in self._tensors)
        self._places = self._where()

    def is_current(self) -> bool:
        try:
            same = self._live == self._seen
        except (RuntimeError, ValueError):  # of tensors or arrays in a list, one replaced by another
            return False
        return same and self._where() == self._places

    def _where(self) -> list[object]:
        tensors = self._tensors if self._plain else (part for t in self._tensors for part in _parts(t))
        return list(map(_place, tensors))


def _modules(root: nn.Module) -> Iterator[nn.Module]:
    """All but the layers of memos, which run by themselves, and stand-ins, which change between evaluations and are inputs."""
    seen, stack = set(), [root]
    while stack:
        module = stack.pop()
        if id(module) in seen or isinstance(module, Memo):
            continue
        seen.add(id(module))
        stack += [m for m in module._modules.values() if m is not None]
        if not isinstance(module, Held):
            yield module


def _attributes(module: nn.Module) -> Iterator[dict]:
    yield module.__dict__
    processor = module.__dict__.get("processor")  # of attention; a module, or a plain object
    if processor is not None and hasattr(processor, "__dict__"):
        yield processor.__dict__


def _copied(value: object, depth: int = DEPTH) -> object:
    if depth and isinstance(value, dict):
        return {k: _copied(v, depth - 1) for k, v in value.items()}
    return [_copied(v, depth - 1) for v in value] if depth and type(value) is list else value


def _tensors(root: nn.Module) -> Iterator[torch.Tensor]:
    for module in _modules(root):
        yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors with memory of their own that it consists of: quantised ones have several."""
    if type(tensor) in PLAIN or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _place(tensor: torch.Tensor) -> object:
    """Where it lies; with strides, where a memory format could change these: memory given back may be had again."""
    return (tensor.data_ptr(), tensor.stride()) if tensor.ndim > 3 else tensor.data_ptr()


def hooked(root: nn.Module) -> list[str]:
    """Names of the modules below ``root`` that have hooks, of torch's or of an offloading library."""
    return [
        name
        for name, m in root.named_modules()
        if name not in ROOTS
        and (m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") or hasattr(m, "_diffusers_hook"))
    ]
