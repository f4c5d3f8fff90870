"""Names of a U-Net's inputs that mean something to more than one module here."""

from __future__ import annotations

import inspect

from torch import nn

RESIDUALS = "down_block_additional_residuals"
"""A ControlNet's: one per skip."""
MID_RESIDUAL = "mid_block_additional_residual"
ADAPTER_STATES = "down_intrablock_additional_residuals"
"""A T2I-Adapter's: one per down block."""

OTHER_NAMES = {
    "x": "sample",
    "sigma": "timestep",
    "noise_labels": "timestep",
    "latent_image_embeds": "sample",
    "timestep_img": "timestep",
}
"""What EDM's networks and UniDiffuser call the inputs that are ``sample`` and ``timestep`` elsewhere, and here."""


def input_names(model: nn.Module) -> dict[str, str]:
    """The model's own name of each input, by its name here, in the order of the arguments."""
    own = list(inspect.signature(type(model).forward).parameters)[1:]
    foreign = "sample" not in own
    return {OTHER_NAMES.get(name, name) if foreign else name: name for name in own}
