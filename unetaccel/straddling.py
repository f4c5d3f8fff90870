"""What folding a scaled skip into the shortcut loses: the groups of a norm that hold both parts of its input.

A GroupNorm undoes the scale of a group that lies in the skip altogether, up to its eps. Only a group that straddles
the border between the parts, of which a layer has at most one, lets the scale through, and no constant weight can
reproduce that.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from .errors import SettingError
from .folds import can_fold
from .layouts import layout_of
from .methods.skip_method import Place, straddles
from .methods.skip_tuning import ScaledInput, SkipTuning
from .overlay import overlay
from .patch import plain_unet


@dataclass(frozen=True)
class FoldError:
    """Relative L2 differences of one decoder layer's output, on standard normal inputs."""

    straddles: bool
    effect: float
    """Of scaling the skip, to not scaling it."""
    error: float
    """Of the fold, to scaling the skip."""


def fold_errors(pipe_or_unet, method: SkipTuning, side: int = 8) -> dict[int, FoldError]:
    """What ``SkipTuning(backend="fold")`` loses at each skip of a pipeline's U-Net, or of a U-Net, that it scales, by skip index b.

    Computed in float64 on copies of the layers, with inputs of ``side`` x ``side`` pixels whose channels are standard normal;
    real features have other statistics, so this is the order of magnitude. Layers without a norm lose nothing and are left out.

    Raises:
        UnsupportedModelError: see ``apply``.
        SettingError: not a ``SkipTuning`` of the concatenation, whose folds alone lose something; or a layer's weights are not there
            (offloaded) or not plain numbers (quantised, adapted).
    """
    if not isinstance(method, SkipTuning) or method.where != "concat":
        raise SettingError(
            f"fold_errors({method!r}): give a SkipTuning with where='concat', the only fold that is not exact"
        )
    unet = plain_unet(pipe_or_unet)
    places = layout_of(unet).places(unet)
    rhos = method.rhos(len(places))
    lossy = [p for p in places if rhos[p.skip.b] != 1 and p.norm is not None]
    strange = [p.skip.entry for p in lossy if not can_fold(getattr(p.layer, p.norm)) or not _is_there(p)]
    if strange:
        raise SettingError(
            f"fold_errors computes with copies of layers, but the weights of {strange[0]} are offloaded, quantised or adapted: "
            "give the U-Net as from_pretrained loads it"
        )
    return {p.skip.b: _fold_error(p, rhos[p.skip.b], side) for p in lossy}


def _is_there(place: Place) -> bool:
    """Whether the layer's shortcut, if it has one, holds weights that can be copied."""
    shortcut = getattr(place.layer, place.shortcut)
    return shortcut is None or can_fold(shortcut)


@torch.no_grad()
def _fold_error(place: Place, rho: float, side: int) -> FoldError:
    layer, hidden = copy.deepcopy(place.layer).cpu().double().eval(), place.skip.hidden
    generator = torch.Generator().manual_seed(place.skip.b)
    x = torch.randn(1, hidden + place.skip.channels, side, side, generator=generator, dtype=torch.float64)
    embedding = getattr(layer, "time_emb_proj", getattr(layer, "affine", None))  # as diffusers and EDM call it
    condition = None if embedding is None else x.new_zeros(1, embedding.in_features)
    plain = layer(x, condition)
    weaker = x.clone()
    weaker[:, hidden:] *= rho
    scaled = layer(weaker, condition)
    around = getattr(layer, place.shortcut) or nn.Identity()
    folded = overlay(layer, {place.shortcut: ScaledInput(around, hidden, rho, None)})(x, condition)
    return FoldError(straddles(place), _relative(scaled, plain), _relative(folded, scaled))


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
