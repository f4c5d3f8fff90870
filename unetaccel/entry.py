"""The entry of a view by kernels: concatenation, skip scaling, norms and activations of the first decoder layer, fused.

diffusers' block concatenates F and the skip, and its layer normalises what it gets. Here the block is handed an empty F
and an empty skip, so that its concatenation costs nothing, and the layer takes the real ones from the port: one pass
writes the concatenation and leaves the moments of its GroupNorm. diffusers' own ``forward`` runs both. Wherever kernels do
not apply (gradients, autocast) the block gets F and the skip, and everything is as without this.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from .folds import can_fold
from .methods.skip_method import SkipEdit
from .ops import Blend, groupnorm_silu, scale_concat
from .overlay import has_foreign_forward, overlay
from .sites import Sites, SkipSite, Strength
from .skips import Skip

BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
"""Whose forward touches F and the skip by their concatenation alone, while FreeU is off."""
FREEU = ("s1", "s2", "b1", "b2")


class Port(Protocol):
    """See ``views.Port``."""

    parts: tuple[torch.Tensor | Blend, torch.Tensor] | None
    moments: torch.Tensor | None
    constants: tuple[torch.Tensor, torch.Tensor] | None


class FusedBlock(nn.Module):
    """Stands for the block at the cut: puts F and the first skip on the port and calls the block with nothing of either."""

    def __init__(self, block: nn.Module, port: Port):
        super().__init__()
        self.block, self.port = block, port

    def forward(self, hidden_states: torch.Tensor | Blend, *args, **kwargs):
        skips = kwargs["res_hidden_states_tuple"] if "res_hidden_states_tuple" in kwargs else args[0]
        blends = isinstance(hidden_states, Blend)
        if not takes(hidden_states.like if blends else hidden_states, skips[-1]):
            return self.block(hidden_states.tensor() if blends else hidden_states, *args, **kwargs)
        return hand_over(self.block, self.port, hidden_states, args, kwargs)


def hand_over(block: nn.Module, port: Port, hidden: torch.Tensor | Blend, args: tuple, kwargs: dict) -> torch.Tensor:
    """Call ``block`` with nothing of its hidden state and of its first skip, which go to the port."""
    skips = kwargs["res_hidden_states_tuple"] if "res_hidden_states_tuple" in kwargs else args[0]
    port.parts = hidden, skips[-1]
    nothing = skips[-1][:, :0]
    skips = (*skips[:-1], nothing)
    if "res_hidden_states_tuple" in kwargs:
        kwargs = {**kwargs, "res_hidden_states_tuple": skips}
    else:
        args = (skips, *args[1:])
    return block(nothing, *args, **kwargs)


def takes(hidden: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether ``hidden`` and what it meets can be put together otherwise than by diffusers, to the same but for rounding."""
    mixed = torch.is_autocast_enabled(hidden.device.type) or hidden.dtype != other.dtype
    return not (torch.is_grad_enabled() or mixed or hidden.is_meta)


class FusedLayer(nn.Module):
    """Stands for the decoder layer at the cut, with parts from the port if they lie there. F may be yet to be blended.

    Args:
        plain: the layer, or its site.
        fused: the layer, with fused norms.
        port: where the parts pass.
        edit: what multiplies the skip, with its strength, or None.
    """

    def __init__(self, plain: nn.Module, fused: nn.Module, port: Port, edit: tuple[SkipEdit, Strength | None] | None):
        super().__init__()
        self.plain, self.fused, self.port, self.edit = plain, fused, port, edit

    def forward(self, joined: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.port.parts is None:
            return self.plain(joined, *args, **kwargs)
        (hidden, skip), self.port.parts = self.port.parts, None
        joined, self.port.moments = scale_concat(hidden, skip, self._scale(skip), backend="triton")
        return self.fused(joined, *args, **kwargs)

    def _scale(self, skip: torch.Tensor) -> float | torch.Tensor:
        if self.edit is None:
            return 1.0
        edit, strength = self.edit
        return edit.multiplier(skip, None if strength is None else strength.value)


class NormSilu(nn.Module):
    """Stands for a GroupNorm that a SiLU follows, and does both; by the moments on the port, if it is given one."""

    def __init__(self, norm: nn.GroupNorm, port: Port | None = None):
        super().__init__()
        self.norm, self.port = norm, port

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moments = None
        if self.port is not None:
            moments, self.port.moments = self.port.moments, None
        return groupnorm_silu(x, None, self.norm, moments, backend="triton")


class SiluOfVectors(nn.SiLU):
    """Stands for the activation of a layer whose norms have activated their feature maps: it is left with the embedding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.ndim == 4 else super().forward(x)


def fuse(unet: nn.Module, skip: Skip, sites: Sites, port: Port) -> tuple[Sites, str | None]:
    """The sites with that of the entry at ``skip`` fused; or these, and why it cannot be."""
    site = sites.of(unet.get_submodule(skip.entry))
    edits = list(zip(site.edits, site.strengths, strict=True)) if type(site) is SkipSite else []
    layer = site.layer if type(site) is SkipSite else site
    why_not = block_obstacle(unet.up_blocks[skip.up_block]) or _layer_obstacle(layer) or _edit_obstacle(edits)
    if why_not:
        return sites, f"{skip.entry} is not fused: {why_not}"
    norms = overlay(layer, {"norm1": NormSilu(layer.norm1, port), **later_norm(layer)})
    fused = FusedLayer(site, norms, port, edits[0] if edits else None)
    return sites.replacing(unet, skip.entry, fused), None


def later_norm(layer: nn.Module) -> dict[str, nn.Module]:
    """What stands in ``layer`` for its second norm and its activation, where the first norm activates too."""
    return {"norm2": NormSilu(layer.norm2), "nonlinearity": SiluOfVectors()}


def block_obstacle(block: nn.Module, known: tuple[str, ...] = BLOCKS) -> str | None:
    """Why the layers of ``block`` cannot be handed F and the skip apart, or None."""
    if type(block).__name__ not in known:
        return f"its block is a {type(block).__name__}, and only {' and '.join(known)} are known to leave F alone"
    if all(getattr(block, name, None) for name in FREEU):
        return "FreeU is on in its block"
    if hasattr(block, "_diffusers_hook") or hasattr(block, "_hf_hook"):
        return "its block has offload hooks"
    return None


def resnet_obstacle(layer: nn.Module) -> str | None:
    """Why ``layer`` cannot be called with other parts and another input, or None."""
    if type(layer).__name__ != "ResnetBlock2D":
        return f"it is a {type(layer).__name__}"
    if layer._forward_hooks or layer._forward_pre_hooks or has_foreign_forward(layer):
        return "it has hooks"
    return None


def _layer_obstacle(layer: nn.Module) -> str | None:
    why_not = resnet_obstacle(layer)
    if why_not:
        return why_not
    if layer.time_embedding_norm != "default" or layer.up or layer.down or type(layer.nonlinearity) is not nn.SiLU:
        return "between its norms and its convolutions is more than a SiLU"
    norms = (layer.norm1, layer.norm2)
    if not all(type(norm) is nn.GroupNorm and can_fold(norm) for norm in norms):
        return "its norms have no weights of their own, or hooks"
    return None


def _edit_obstacle(edits: list) -> str | None:
    if len(edits) > 1:
        return f"{len(edits)} methods edit its skip"
    if edits and type(edits[0][0]).multiplier is SkipEdit.multiplier:
        return f"{type(edits[0][0]).__name__} does more to its skip than to multiply it"
    return None
