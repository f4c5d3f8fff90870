"""Folds: copies of layers whose weights contain the scaling of a skip, so that nothing is multiplied at run time.

The fold is an overlay too: the copy has a weight of its own, and the model's is not touched.
"""

from __future__ import annotations

import torch
from torch import nn

from .overlay import has_foreign_forward

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.GroupNorm)
"""Classes, exactly these, whose weights are what they seem; a subclass may quantise or adapt them."""
EDM_FOLDABLE = ("Conv2d", "GroupNorm")
"""Names of EDM's own layers, which hold a weight and a bias as those of torch do."""


class Fold(nn.Module):
    """Calls a copy of ``layer`` with other parameters.

    Args:
        layer: the layer that this stands for.
        changed: its new parameters by name.
    """

    def __init__(self, layer: nn.Module, changed: dict[str, torch.Tensor]):
        super().__init__()
        copy = type(layer).__new__(type(layer))
        copy.__dict__.update(layer.__dict__)
        own = {name: nn.Parameter(value, requires_grad=False) for name, value in changed.items()}
        copy.__dict__["_parameters"] = {**layer._parameters, **own}
        self.folded = copy
        self._watched = [(layer, name, *_state(layer, name)) for name in changed]

    def is_current(self) -> bool:
        """Whether the parameters that were folded are as they were, in value and place."""
        return all(_state(layer, name) == tuple(state) for layer, name, *state in self._watched)

    def forward(self, *args, **kwargs):
        return self.folded(*args, **kwargs)


def _state(layer: nn.Module, name: str) -> tuple:
    value = getattr(layer, name)
    version = None if value.is_inference() else value._version
    return id(value), version, value.data_ptr(), value.device, value.dtype


def can_fold(layer: nn.Module | None) -> bool:
    """Whether ``layer``'s parameters can be copied: not quantised, adapted, hooked or away from their device."""
    known = type(layer) in FOLDABLE or _is_edm_layer(layer)
    if not known or has_foreign_forward(layer) or hasattr(layer, "_hf_hook"):
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return not hooked and all(p.is_floating_point() and p.device.type != "meta" for p in layer.parameters())


def _is_edm_layer(layer: nn.Module | None) -> bool:
    if type(layer).__name__ not in EDM_FOLDABLE or isinstance(layer, FOLDABLE):
        return False
    return isinstance(layer, nn.Module) and not layer._modules and layer._parameters.keys() == {"weight", "bias"}


@torch.no_grad()
def fold_inputs(layer: nn.Module, start: int, factor: float) -> Fold:
    """A copy of a convolution or ``Linear`` that multiplies its input channels from ``start`` on by ``factor``. Exact."""
    weight = layer.weight.detach().clone()
    weight[:, start:] = (weight[:, start:].double() * factor).to(weight.dtype)
    return Fold(layer, {"weight": weight})


@torch.no_grad()
def fold_outputs(norm: nn.GroupNorm, start: int, factor: float) -> Fold:
    """A copy of an affine norm whose output channels from ``start`` on are multiplied by ``factor``. Exact."""
    changed = {}
    for name in ("weight", "bias"):
        value = getattr(norm, name).detach().clone()
        value[start:] = (value[start:].double() * factor).to(value.dtype)
        changed[name] = value
    return Fold(norm, changed)
