"""The entry of a cached view, hoisted: what its first layer makes of F alone is computed once and then added.

The layer normalises, activates and convolves the concatenation [F, s] of F and a skip s. A norm sees one group of channels at
a time, and a convolution is a sum over channels. So let K be the first channels of F, whose groups hold nothing of s, and R the
rest of F, which shares a group with s (nothing, where no group straddles the seam):

    conv1(act(norm1([F, s]))) = A + conv1_Rs(act(norm1_Rs([R, s]))),  A = conv1_K(act(norm1_K(K)))
    conv_shortcut([F, s]) = B + conv_shortcut_s(s),                   B = conv_shortcut_F(F)

and A and B last as long as F. diffusers' own ``forward`` does the rest. Sums are taken in another order, so outputs equal
plain ones up to rounding. Wherever a view is given no A and B (forecasts, gradients, autocast) all is as without this.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .entry import BLOCKS, Port, block_obstacle, hand_over, later_norm, resnet_obstacle, takes
from .folds import Fold, can_fold
from .methods.skip_method import SkipEdit
from .ops import groupnorm_silu
from .overlay import overlay
from .sites import Sites, SkipSite, Strength
from .skips import Skip

HOISTABLE = (*BLOCKS, "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")
"""Blocks whose forward touches F and the skip by their concatenation alone."""
POINTWISE = (nn.SiLU, nn.GELU, nn.Mish, nn.ReLU)
PARTS = ("norm1", "conv1", "conv_shortcut")
"""Of a layer, what sees F."""
ALIGNED = 8
"""Channels that matrix units take at a time in half precision: R is enlarged until R and s are a multiple."""

Constants = tuple[torch.Tensor, torch.Tensor]
"""A, without the bias of conv1, and B, without that of conv_shortcut: (N, C_out, H, W) each."""


class HoistedBlock(nn.Module):
    """Stands for the block at the cut: with constants on the port, calls it with nothing of F and of the first skip."""

    def __init__(self, plain: nn.Module, block: nn.Module, port: Port):
        super().__init__()
        self.plain, self.block, self.port = plain, block, port

    def forward(self, hidden_states, *args, **kwargs):
        if self.port.constants is None:
            return self.plain(hidden_states, *args, **kwargs)
        return hand_over(self.block, self.port, hidden_states, args, kwargs)


class HoistedLayer(nn.Module):
    """Stands for the decoder layer at the cut, which with constants on the port sees the skip alone.

    Args:
        plain: what stands there without constants.
        layer: the layer.
        hidden: channels of F.
        port: where the constants and the parts pass.
        edits: what multiplies the skip, each with its strength or None.
        fused: its norms and activations are run by kernels.
    """

    def __init__(
        self,
        plain: nn.Module,
        layer: nn.Module,
        hidden: int,
        port: Port,
        edits: list[tuple[SkipEdit, Strength | None]],
        fused: bool,
    ):
        super().__init__()
        self.plain, self.layer, self.port, self.edits = plain, layer, port, edits
        self.known = known_channels(layer.norm1, hidden)
        live = {
            "norm1": LiveNorm(_norm_from(layer.norm1, self.known), port, fused),
            "conv1": Plus(_from(layer.conv1, self.known), port, 0),
            "conv_shortcut": Plus(_from(layer.conv_shortcut, hidden), port, 1),
        }
        self.live = overlay(layer, live | (later_norm(layer) if fused else {}))

    def takes(self, feature: torch.Tensor) -> bool:
        """Whether the constants of ``feature`` would make what the plain layer makes now, but for rounding."""
        return takes(feature, self.layer.conv1.weight)

    @torch.no_grad()
    def constants(self, feature: torch.Tensor) -> Constants:
        """A and B for F = ``feature`` (N, C_F, H, W), by the weights as they are now."""
        return constants(self.layer, feature)

    def forward(self, joined: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.port.constants is None:
            return self.plain(joined, *args, **kwargs)
        feature, skip = self.port.parts
        skip = self._edited(skip)
        self.port.parts = feature[:, self.known :], skip
        return self.live(skip, *args, **kwargs)

    def _edited(self, skip: torch.Tensor) -> torch.Tensor:
        """The skip after all edits, which are made in place, but not where others may still read it."""
        if self.edits:
            skip = skip.clone()
        for edit, strength in self.edits:
            edit(skip[:, :0], skip, None if strength is None else strength.value)
        return skip


class LiveNorm(nn.Module):
    """Stands for the first norm: of R, which lies on the port, and the skip; with the activation, where kernels run it."""

    def __init__(self, norm: Fold, port: Port, fused: bool):
        super().__init__()
        self.norm, self.port, self.fused = norm, port, fused

    def forward(self, skip: torch.Tensor) -> torch.Tensor:
        (rest, _), self.port.parts = self.port.parts, None
        parts = (rest, skip) if rest.shape[1] else (skip, None)
        if self.fused:
            return groupnorm_silu(*parts, self.norm.folded, backend="triton")
        return self.norm(skip if parts[1] is None else torch.cat(parts, dim=1))


class Plus(nn.Module):
    """Stands for a convolution of both parts: that of the skip, plus the constant on the port at ``place``."""

    def __init__(self, conv: nn.Module, port: Port, place: int):
        super().__init__()
        self.conv, self.port, self.place = conv, port, place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).add_(self.port.constants[self.place])


def constants(layer: nn.Module, feature: torch.Tensor) -> Constants:
    """What ``layer`` makes of the first channels of its input alone, if these are ``feature`` (N, C_F, H, W)."""
    norm, known = layer.norm1, known_channels(layer.norm1, feature.shape[1])
    groups = known * norm.num_groups // norm.num_channels
    x = functional.group_norm(feature[:, :known], groups, norm.weight[:known], norm.bias[:known], norm.eps)
    return _of_feature(layer.conv1, layer.nonlinearity(x)), _of_feature(layer.conv_shortcut, feature)


def _of_feature(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    weight = conv.weight[:, : x.shape[1]]
    return functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)


def known_channels(norm: nn.GroupNorm, hidden: int) -> int:
    """The size of K: how many of the first ``hidden`` channels are normalised by themselves, whatever follows them."""
    width = norm.num_channels // norm.num_groups
    whole = hidden // width
    if hidden % width == 0:
        return hidden
    aligned = (n for n in range(whole, 0, -1) if (norm.num_channels - n * width) % ALIGNED == 0)
    return width * next(aligned, whole)


def _from(conv: nn.Conv2d, start: int) -> Fold:
    """``conv`` of its input channels from ``start`` on."""
    fold = Fold(conv, {"weight": lambda weight: weight[:, start:].clone()})
    fold.folded.in_channels -= start
    return fold


def _norm_from(norm: nn.GroupNorm, start: int) -> Fold:
    """``norm`` of its channels from ``start`` on, where a group begins."""
    fold = Fold(norm, dict.fromkeys(("weight", "bias"), lambda value: value[start:].clone()))
    fold.folded.num_groups -= start * norm.num_groups // norm.num_channels
    fold.folded.num_channels -= start
    return fold


def hoist(
    unet: nn.Module, skip: Skip, plain: Sites, sites: Sites, port: Port, fused: bool = False
) -> tuple[HoistedLayer | None, str | None]:
    """What stands for the entry at ``skip`` in a cached view; or None, and why there is nothing.

    Args:
        plain: the sites as the skip methods made them.
        sites: these, perhaps with the entry fused.
        fused: they are.
    """
    entry = unet.get_submodule(skip.entry)
    site = plain.of(entry)
    edits = list(zip(site.edits, site.strengths, strict=True)) if type(site) is SkipSite else []
    layer = site.layer if type(site) is SkipSite else site
    why_not = obstacle(unet, skip, layer) or _edit_obstacle(edits) or _weight_obstacle(layer)
    if why_not:
        return None, f"{skip.entry} is not hoisted: {why_not}"
    return HoistedLayer(sites.of(entry), layer, skip.hidden, port, edits, fused), None


def obstacle(unet: nn.Module, skip: Skip, layer: nn.Module) -> str | None:
    """Why ``layer``, at the entry of ``skip`` in ``unet``, cannot be taken apart, whatever its weights; or None."""
    why_not = block_obstacle(unet.up_blocks[skip.up_block], HOISTABLE) or resnet_obstacle(layer)
    if why_not:
        return why_not
    kinds = {name: type(getattr(layer, name)) for name in PARTS}
    if kinds["conv_shortcut"] is type(None):
        return "it adds its input to its output without a projection"
    strange = [name for name, kind in kinds.items() if kind is not (nn.GroupNorm if name == "norm1" else nn.Conv2d)]
    if strange:
        return (
            f"its {strange[0]} was exchanged (it is a {kinds[strange[0]].__name__} of {kinds[strange[0]].__module__})"
        )
    if layer.up or layer.down or type(layer.nonlinearity) not in POINTWISE:
        return "between its norm and its convolution is more than a pointwise activation"
    if layer.conv1.groups != 1 or layer.conv_shortcut.groups != 1 or layer.conv1.padding_mode != "zeros":
        return "its convolutions are grouped, or padded with other than zeros"
    if known_channels(layer.norm1, skip.hidden) == 0:
        groups = layer.norm1.num_groups
        return f"no group of its norm holds channels of F alone ({skip.hidden} + {skip.channels} in {groups} groups)"
    return None


def _weight_obstacle(layer: nn.Module) -> str | None:
    strange = [name for name in PARTS if not can_fold(getattr(layer, name))]
    return f"its {strange[0]} is quantised, hooked or offloaded, or has no weight" if strange else None


def _edit_obstacle(edits: list) -> str | None:
    for edit, _ in edits:
        if type(edit).multiplier is SkipEdit.multiplier:
            return f"{type(edit).__name__} does more to its skip than to multiply it"
    return None
