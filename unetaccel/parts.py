"""Blocks in parts: what a view runs of a block of layers, as an overlay of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .offload import carry_hook, group_is_cut
from .overlay import overlay
from .sites import NO_SITES, Sites
from .skips import LAYER_LISTS, layers_of


def encoder_through(model: nn.Module, block: int, layer: int) -> list[nn.Module]:
    """The down blocks that run up to this layer of this block (see ``Skip``), the last of them cut short."""
    if block < 0:
        return []
    running = list(model.down_blocks[: block + 1])
    last = running[-1]
    if layer >= len(last.resnets):
        return [*running[:-1], part(last, running)]
    return [*running[:-1], part(last, running, 0, layer + 1, "downsamplers")]


def part(
    block: nn.Module,
    running: Sequence[nn.Module],
    start: int = 0,
    stop: int | None = None,
    without: str | None = None,
    before: bool = True,
    after: bool = True,
    sites: Sites = NO_SITES,
) -> nn.Module:
    """``block`` with layers start..stop only, without its resampler if ``without`` names it, and with sites in their places.

    The block itself if that is all of it, unless it must stand in for another (see ``offload.carry_hook``, also for
    ``running``, ``before`` and ``after``).
    """
    whole = start == 0 and without is None
    if whole and not group_is_cut(block, running) and not sites.any_of(getattr(block, "resnets", ())):
        return block
    changes: dict[str, nn.Module | None] = {
        name: nn.ModuleList(map(sites.of, list(getattr(block, name))[layers_of(block, name, start, stop)]))
        for name in LAYER_LISTS
        if getattr(block, name, None) is not None
    }
    if without is not None:
        changes[without] = None
    copy = overlay(block, changes)
    carry_hook(copy, block, running, before, after)
    return copy
