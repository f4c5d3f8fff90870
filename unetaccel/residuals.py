"""Residuals of ControlNets that were shortened for a cached evaluation, where that turns out to be a full one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from .errors import SettingError

WAY_OUT = (
    "Set strengths by conditioning_scale, give several ControlNets as one MultiControlNetModel, or call the plain ControlNet, which "
    "makes all residuals"
)
SAME = 0.03
"""Relative distance that rounding of a compiled or recorded ControlNet stays within, and a strength does not."""

Residuals = tuple[Sequence[torch.Tensor], torch.Tensor]
"""Of all skips, and of the mid block."""


def summed(made: Iterable[Residuals]) -> Residuals:
    """The residuals of several ControlNets, added up as MultiControlNetModel does."""
    (down, mid), *others = made
    for more, another in others:
        down, mid = [a + b for a, b in zip(down, more, strict=True)], mid + another
    return down, mid


def refuse_changed(given: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> None:
    """Raise if the residuals that a U-Net was given are not those that its ControlNets make.

    Raises:
        SettingError: they are others: what was done to them cannot be repeated for those that are missing.
    """
    for ours, theirs in zip(made, given, strict=False):
        if (theirs.to(ours) - ours).norm() > SAME * ours.norm():
            raise SettingError(
                "this evaluation has to be full though a cached one was expected, and the residuals of a ControlNet that was shortened for it "
                f"were changed on their way here. {WAY_OUT}"
            )


def refuse_short(given: Sequence[torch.Tensor], count: int) -> None:
    """Raise if a U-Net that is to run in full was given fewer residuals than it has skips.

    Raises:
        SettingError: it was.
    """
    if len(given) < count:
        raise SettingError(
            f"this evaluation is full, and of {count} residuals it got {len(given)}: those of a ControlNet that was shortened for a cached "
            f"evaluation, or their sum with another's. Call every ControlNet before each evaluation. {WAY_OUT}"
        )
