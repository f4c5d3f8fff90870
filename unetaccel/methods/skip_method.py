"""What a method that edits skips offers: edits of a decoder layer's input, and parts of the layer to exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from os import PathLike
from typing import ClassVar

import torch
from torch import nn

from ..skips import Skip
from ..timeline import Timeline
from .base import Method


class SkipEdit(nn.Module):
    """An edit of what enters one decoder layer, made in place just before it.

    ``forward(hidden, skip, strength)`` gets the backbone's part (N, C_hidden, H, W) and the skip (N, C_skip, H, W), views
    of one tensor that nobody else reads, and ``strength``: None, or for a method with a time schedule a tensor of no
    dimensions, 0 (neutral) to 1. It returns nothing.
    """

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor, strength: torch.Tensor | None) -> None:
        raise NotImplementedError

    def multiplier(self, skip: torch.Tensor, strength: torch.Tensor | None) -> float | torch.Tensor:
        """What the skip is multiplied by, where an edit does that and nothing else: a number, or a tensor of shape (),
        (N, C_skip, 1, 1) or (N, 1, H, W). Others leave this out.
        """
        raise NotImplementedError

    def check(self, sample: torch.Tensor) -> None:
        """Asked of an edit that learns before each evaluation on ``sample`` (N, ..., H, W), outside of any graph.

        Raises:
            SettingError: what it has learned does not fit an input of this size.
        """


@dataclass(frozen=True)
class Place:
    """One skip as a method sees it."""

    skip: Skip
    order: int
    """In the order of consumption: 0 is the innermost skip, ``count - 1`` the outermost."""
    count: int
    layer: nn.Module
    """The decoder layer that consumes it; of a video U-Net's layer the spatial part."""
    shortcut: str
    """Name in the layer of the projection around its nonlinear path."""
    norm: str | None
    """Name of the norm that its nonlinear path begins with, or None."""
    spatial: bool = True
    """Whether the skip is a feature map (N, C, H, W). Else it is a token sequence (N, L, C), which edits see as (N, C, L, 1)."""
    size: tuple[int, int] | None = None
    """(H, W) of the skip at the sample size in the model's config, of tokens (L, 1); None if the config names none."""
    stays: bool = True
    """Whether the layer's weights lie where they are used, and no offloading of the block around it moves them."""


class SkipMethod(Method):
    """Base of the methods that edit skips. The model's layers are never written to."""

    role: ClassVar[str] = "skips"
    schedule: ClassVar[object] = None
    """A field of this name: when a method acts, where it does not act alike at all times."""
    weights: ClassVar[str | PathLike | None] = None
    """A field of this name: a file of what the method has learned, read into its edits before anything is applied."""

    def edits(self, places: Sequence[Place]) -> dict[int, SkipEdit]:
        """By skip index b. Asked once per ``apply``, so what they learn outlives every view of the model.

        Raises:
            SettingError: the settings do not fit these places.
        """
        return {}

    def check_model(self, unet: nn.Module) -> None:
        """Raise if something that was done to the model excludes the method; asked whenever views are made.

        Raises:
            SettingError: it does.
        """

    def parts(self, place: Place, strength: nn.Module | None) -> dict[str, nn.Module]:
        """Children of the layer, by path inside it, that stand for its own; asked whenever views are made."""
        return {}

    def strengths(self, timeline: Timeline) -> list[float] | None:
        """One number in 0..1 per evaluation, or None if the method acts alike at all of them."""
        return None

    def account(self, places: Sequence[Place]) -> str:
        """For people: what is done to which skips."""
        return ""

    def learning_settings(self) -> dict[str, object]:
        """The settings that a file of learned weights belongs to."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "weights"}

    def residual_factors(self, places: Sequence[Place]) -> list[float] | None:
        """What a ControlNet's residuals are multiplied by to reach the decoder unscaled, per skip index; or None."""
        return None


def listed(factors: Sequence[float]) -> str:
    """Factors by skip index, alike ones once: ``1 x 8, 0.8``."""
    runs = [(factor, len(list(run))) for factor, run in groupby(f"{factor:.3g}" for factor in factors)]
    return ", ".join(factor + (f" x {count}" if count > 1 else "") for factor, count in runs)


def at_strength(factor: float, strength: torch.Tensor | None) -> float | torch.Tensor:
    """A factor at this strength: 1 at 0, itself at 1."""
    return factor if strength is None else 1 + strength * (factor - 1)


def scaled(x: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """``x * factor`` in the type of ``x``, rounded once, also where the factor is a float32 tensor."""
    if isinstance(factor, torch.Tensor):
        return (x.to(torch.promote_types(x.dtype, factor.dtype)) * factor).to(x.dtype)
    return x * factor


def straddles(place: Place) -> bool:
    """Whether a group of the layer's first norm holds channels of both the backbone and the skip."""
    norm = getattr(place.layer, place.norm or "", None)
    groups = getattr(norm, "num_groups", None)
    return groups is not None and place.skip.hidden % ((place.skip.hidden + place.skip.channels) // groups) != 0
