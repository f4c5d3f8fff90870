"""Folds: copies of layers whose weights contain the scaling of a skip, so that nothing is multiplied at run time.

The fold is an overlay too: the copy has a weight of its own, and the model's is not touched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .overlay import has_foreign_forward

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.GroupNorm)
"""Classes, exactly these, whose weights are what they seem; a subclass may quantise or adapt them."""
EDM_FOLDABLE = ("Conv2d", "GroupNorm")
"""Names of EDM's own layers, which hold a weight and a bias as those of torch do."""


class Fold(nn.Module):
    """Calls a copy of ``layer`` with other parameters.

    Where a gradient is asked for, they are computed anew from those of ``layer``, which so gets it.

    Args:
        layer: the layer that this stands for.
        change: of each parameter that is another, by name, how it is made of that of ``layer``.
    """

    def __init__(self, layer: nn.Module, change: dict[str, Callable[[torch.Tensor], torch.Tensor]]):
        super().__init__()
        self._layer, self._change = (layer,), change  # in a tuple: no child of this
        copy = type(layer).__new__(type(layer))
        copy.__dict__.update(layer.__dict__)
        with torch.inference_mode(False):  # or it could serve no gradient later
            own = {name: nn.Parameter(value.detach(), requires_grad=False) for name, value in self._changed().items()}
        copy.__dict__["_parameters"] = {**layer._parameters, **own}
        self.folded = copy
        self._seen = [_state(layer, name) for name in change]

    def is_current(self) -> bool:
        """Whether the parameters that were folded are where they were, and unchanged as far as that leaves a mark."""
        [layer] = self._layer
        return can_fold(layer) and [_state(layer, name) for name in self._change] == self._seen

    @torch.inference_mode(False)
    def refresh(self) -> None:
        """Fold again, in place: what is written through ``.data``, as by diffusers' ``EMAModel``, leaves no mark."""
        for name, value in self._changed().items():
            self.folded._parameters[name].data.copy_(value.detach())

    def forward(self, *args, **kwargs):
        [layer] = self._layer
        if torch.is_grad_enabled() and any(layer._parameters[name].requires_grad for name in self._change):
            return torch.func.functional_call(self.folded, self._changed(), args, kwargs)
        return self.folded(*args, **kwargs)

    def _changed(self) -> dict[str, torch.Tensor]:
        [layer] = self._layer
        return {name: change(layer._parameters[name]) for name, change in self._change.items()}


def _state(layer: nn.Module, name: str) -> tuple:
    value = getattr(layer, name)
    version = None if value.is_inference() else value._version
    return id(value), version, value.data_ptr(), value.device, value.dtype


def can_fold(layer: nn.Module | None) -> bool:
    """Whether ``layer``'s parameters can be copied: there, not quantised, adapted, hooked or away from their device."""
    known = type(layer) in FOLDABLE or _is_edm_layer(layer)
    if not known or has_foreign_forward(layer) or hasattr(layer, "_hf_hook"):
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return not hooked and layer.weight is not None and all(map(_is_plain, layer.parameters()))


def _is_plain(p: nn.Parameter) -> bool:
    """Not of a subclass, which may hold other numbers than it shows (torchao, GGUF, sharded tensors)."""
    return type(p) is nn.Parameter and p.is_floating_point() and p.device.type != "meta"


def _is_edm_layer(layer: nn.Module | None) -> bool:
    if type(layer).__name__ not in EDM_FOLDABLE or isinstance(layer, FOLDABLE):
        return False
    return isinstance(layer, nn.Module) and not layer._modules and layer._parameters.keys() == {"weight", "bias"}


def fold_inputs(layer: nn.Module, start: int, factor: float) -> Fold:
    """A copy of a convolution or ``Linear`` that multiplies its input channels from ``start`` on by ``factor``. Exact."""
    return Fold(layer, {"weight": lambda weight: _scaled_from(weight, 1, start, factor)})


def fold_outputs(norm: nn.GroupNorm, start: int, factor: float) -> Fold:
    """A copy of an affine norm whose output channels from ``start`` on are multiplied by ``factor``. Exact."""
    return Fold(norm, dict.fromkeys(("weight", "bias"), lambda value: _scaled_from(value, 0, start, factor)))


def _scaled_from(x: torch.Tensor, dim: int, start: int, factor: float) -> torch.Tensor:
    kept, skip = x.tensor_split([start], dim=dim)
    return torch.cat([kept, (skip.double() * factor).to(x.dtype)], dim=dim)
