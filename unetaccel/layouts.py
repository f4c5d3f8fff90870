"""Layout: where a model's skips are, and what the layers that consume them call their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from . import edm, uvit
from .methods.skip_method import Place
from .offload import is_group_offloaded
from .overlay import copied_containers
from .sites import SkipSite, TokenSite
from .skips import Skip, refuse_compiled, skip_table


@dataclass(frozen=True)
class Layout:
    """The skips of one model, ordered by b."""

    skips: tuple[Skip, ...]
    site: Callable[..., nn.Module]
    """Makes a site of a layer, its hidden width and its edits."""
    inside: str = ""
    """Path, with its dot, from the layer to the part that reads the skip."""
    shortcut: str = "conv_shortcut"
    """Name in that part of the projection around its nonlinear path."""
    norm: str | None = "norm1"
    """Name of the norm that the nonlinear path begins with; None if there is none."""
    tokens: int | None = None
    """L, where skips are token sequences (N, L, C); None where they are feature maps (N, C, H, W)."""
    uncut: str | None = None
    """Why no part of the model can be left out at a step, and what to do instead; None where DeepCache works."""

    def part_of(self, layer: nn.Module) -> nn.Module:
        """The part of a layer that reads the skip."""
        return layer.get_submodule(self.inside.rstrip("."))

    def places(self, unet: nn.Module) -> list[Place]:
        """Every skip of ``unet``, the model itself or an overlay of it, as methods see it."""
        n, side = len(self.skips), getattr(unet, "config", {}).get("sample_size")
        sides = (side, side) if isinstance(side, int) else side
        length = self.tokens and (self.tokens, 1)
        return [
            Place(
                skip=s,
                order=n - 1 - s.b,
                count=n,
                layer=self.part_of(unet.get_submodule(s.entry)),
                shortcut=self.shortcut,
                norm=self.norm,
                spatial=self.tokens is None,
                size=length or (sides and tuple(-(-side // s.stride) for side in sides)),
                stays=not any(map(is_group_offloaded, copied_containers(unet, [f"{s.entry}."])[1:])),
            )
            for s in self.skips
        ]


def layout_of(unet: nn.Module) -> Layout:
    """The layout of a supported model.

    Raises:
        UnsupportedModelError: the class, or one of its blocks, is not supported.
    """
    refuse_compiled(unet)
    path = edm.network_path(unet)
    if path is not None:
        return Layout(tuple(edm.edm_skips(unet, path)), SkipSite, shortcut="skip", norm="norm0", uncut=edm.UNCUT)
    if uvit.is_uvit(unet):
        table = tuple(uvit.uvit_skips(unet))
        return Layout(table, TokenSite, shortcut="skip_linear", norm=None, tokens=uvit.length(unet), uncut=uvit.UNCUT)
    table = tuple(skip_table(unet))
    wrapped = hasattr(unet.get_submodule(table[0].entry), "spatial_res_block")
    return Layout(table, SkipSite, inside="spatial_res_block." if wrapped else "")
