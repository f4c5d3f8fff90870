"""Held and Memo: stand in a view for layers whose result is known before the evaluation."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import nn

from .overlay import Fingerprint, has_foreign_forward


class Held(nn.Module):
    """Returns ``value``, which is set before the evaluation, whatever it is called with.

    Args:
        layer: what it stands for, and what answers while ``value`` is None.
    """

    def __init__(self, layer: nn.Module | None = None):
        super().__init__()
        self.layer = layer
        self.value: torch.Tensor | None = None

    def hold(self, value: torch.Tensor | None) -> None:
        """Set ``value``, past ``nn.Module.__setattr__``, which takes as long as a small layer."""
        self.__dict__["value"] = value

    def forward(self, *args, **kwargs) -> torch.Tensor:
        if self.value is None and self.layer is not None:
            return self.layer(*args, **kwargs)
        return self.value


class Memo(nn.Module):
    """Stands for a layer that gets the same tensors in many evaluations, and computes what it makes of each once.

    The same means this very memory, not written to since; the layer unchanged too, as far as that leaves a mark (a new
    LoRA scale does). So the result is exactly the layer's, whatever it is given. Not used where a gradient is asked for, nor
    while the layer has hooks, nor for tensors of inference mode, whose writes are not counted.

    Args:
        layer: what it stands for.
        keep: how many tensors it remembers, the latest first.
    """

    def __init__(self, layer: nn.Module, keep: int = 1):
        super().__init__()
        self.layer, self._keep = layer, keep
        self.clear()

    def clear(self) -> None:
        """Let go of all tensors."""
        self._results: list[_Result] = []

    @property
    def nbytes(self) -> int:
        """Of what it remembers."""
        return sum(known.value.nbytes for known in self._results)

    @property
    def results(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Tensors that it remembers, the latest first, and what the layer made of each."""
        return [(known.given, known.value) for known in self._results]

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if args or kwargs or torch.is_grad_enabled() or _is_hooked(self.layer):
            return self.layer(x, *args, **kwargs)
        latest = self._results[0] if self._results else None
        if latest is not None and latest.given is x and latest.place[-1] == x._version and latest.is_current():
            return latest.value  # nearly always
        place = spot(x)
        if place is None:
            return self.layer(x)
        known = next((r for r in self._results if r.place == place), None)
        if known is None or not known.is_current():
            known = _Result(self.layer, x)
        if known is not latest:
            others = [r for r in self._results if r.place[:-1] != place[:-1]]  # but for how often it was written to
            self._results = [known, *others][: self._keep]
        return known.value


class _Result:
    """What a layer makes of one tensor."""

    def __init__(self, layer: nn.Module, given: torch.Tensor):
        self.given, self.value, self._layer = given, layer(given), Unchanged(layer)
        self.place, self._cast = spot(given), autocast(given)
        self._written = _version(self.value)

    def is_current(self) -> bool:
        """Whether the layer would still make the same of what lies in its place, and nobody has written to it."""
        return (
            self._written is not None
            and self._written == self.value._version
            and self._cast == autocast(self.given)
            and self._layer.is_current()
        )


class Unchanged:
    """Remembers a layer as it is, with all that is in it, as far as changes leave a mark."""

    def __init__(self, layer: nn.Module):
        modules = [*layer.modules()]
        self._state, self._weights = Fingerprint(modules, deep=True), Versions(modules)

    def is_current(self) -> bool:
        return self._state.is_current() and self._weights.are_current()


class Versions:
    """Remembers the weights of some modules, where they lie, and how often they were written to.

    Args:
        modules: whose own parameters and buffers count.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._dicts = [d for m in modules for d in (m._parameters, m._buffers) if d]
        self._tensors = self._now()
        self._seen = list(map(_state, self._tensors))

    def are_current(self) -> bool:
        now = self._now()
        return (
            None not in self._seen
            and len(now) == len(self._seen)
            and all(map(operator.is_, now, self._tensors))
            and list(map(_state, now)) == self._seen
        )

    def _now(self) -> list[torch.Tensor]:
        return [tensor for d in self._dicts for tensor in d.values() if tensor is not None]


def spot(x: torch.Tensor) -> tuple | None:
    """Which memory a tensor shows, and how often that was written to; None where this is not counted.

    Two tensors of one spot are equal, as long as one of them is held so that the memory is not given to others.
    """
    version = _version(x)
    if version is None or x.layout != torch.strided or x.is_meta:
        return None
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, version


def _state(weight: torch.Tensor) -> tuple[int, int] | None:
    """Where a weight lies, if that can be told of its kind, and its version; None where writes are not counted."""
    if weight.is_inference():
        return None
    return weight.data_ptr() if type(weight) in (torch.Tensor, nn.Parameter) else 0, weight._version


def _version(x: torch.Tensor) -> int | None:
    """How often it was written to; None where that is not counted."""
    return None if x.is_inference() else x._version


def touched_on_the_way(unet: nn.Module, path: str) -> str | None:
    """Why the layer at ``path`` must run as it is: something hooks, offloads, patches or compiles it or a module around it."""
    module, names = unet, path.split(".")
    for i, name in enumerate(names):
        module = module._modules[name]
        offloaded = hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
        if offloaded or _is_hooked(module) or has_foreign_forward(module) or module._compiled_call_impl is not None:
            return f"{'.'.join(names[: i + 1])} has hooks, or is patched or compiled"
    return None


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def autocast(x: torch.Tensor) -> torch.dtype | None:
    """What autocast computes in where ``x`` lies, if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
