"""The table of a U-Net's skips, in the one numbering used everywhere in this package.

Skip ``b`` counts the skip tensors in the order in which the encoder makes them: 0 is the output of
``conv_in``, then each layer of each down block and, where there is one, its downsampler. The
decoder consumes them from the last to the first, one per layer. The foreign numberings
are translated here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .errors import SettingError, UnsupportedModelError
from .refusals import block_refusal, unet_refusal

UNETS = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "UNet3DConditionModel",
    "I2VGenXLUNet",
    "DreamLiteUNetModel",
    "AudioLDM2UNet2DConditionModel",
)
BLOCKS = {
    "down": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "AttnDownBlock2D",
        "ResnetDownsampleBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "DownBlockMotion",
        "CrossAttnDownBlockMotion",
        "DownBlockSpatioTemporal",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlock3D",
        "CrossAttnDownBlock3D",
        "DreamLiteDownBlock2D",
        "DreamLiteCrossAttnDownBlock2D",
        "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
    ),
    "up": (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "AttnUpBlock2D",
        "ResnetUpsampleBlock2D",
        "SimpleCrossAttnUpBlock2D",
        "UpBlockMotion",
        "CrossAttnUpBlockMotion",
        "UpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
        "UpBlock3D",
        "CrossAttnUpBlock3D",
        "DreamLiteUpBlock2D",
        "DreamLiteCrossAttnUpBlock2D",
        "DreamLiteCrossAttnNoSelfAttnUpBlock2D",
    ),
}
"""Blocks whose layers are parallel lists, one entry per skip, with at most one resampler after them."""

LAYER_LISTS = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
"""Parts of one layer, in the order in which they run. A list may hold several for each layer (AudioLDM 2's attentions)."""


@dataclass(frozen=True)
class Skip:
    """One skip tensor: where the encoder makes it and where the decoder consumes it."""

    b: int
    block: int
    """Index of the down block that makes it, or -1 for ``conv_in``."""
    layer: int
    """Index of the layer in that block; the downsampler counts as one past the last layer."""
    source: str
    """Path of the module that makes it, as in ``named_modules()``."""
    entry: str
    """Path of the decoder resnet that consumes it: the layer at which cut ``b`` enters."""
    up_block: int
    up_layer: int
    channels: int
    """Channels of the skip."""
    hidden: int
    """Channels of F, the hidden state that the skip is concatenated to."""
    stride: int
    """Side of the model's input over the side of the skip (and of F)."""


def skip_table(unet: nn.Module) -> list[Skip]:
    """Every skip of a supported U-Net, ordered by ``b``.

    Raises:
        UnsupportedModelError: the class, or one of its blocks, is not supported.
    """
    check_supported(unet)
    made = encoder_skips(unet)
    layers = [(i, j, r) for i, block in enumerate(unet.up_blocks) for j, r in enumerate(block.resnets)]
    if len(made) != len(layers):
        raise UnsupportedModelError(
            f"the encoder makes {len(made)} skips but the decoder consumes {len(layers)}: not a U-Net this package knows"
        )
    table = []
    for b, ((block, layer, source, channels, stride), (i, j, resnet)) in enumerate(
        zip(made, reversed(layers), strict=True)
    ):
        hidden = _spatial(resnet).in_channels - channels
        table.append(Skip(b, block, layer, source, f"up_blocks.{i}.resnets.{j}", i, j, channels, hidden, stride))
    return table


def encoder_skips(unet: nn.Module) -> list[tuple[int, int, str, int, int]]:
    """(block, layer, source, channels, stride) of each skip that an encoder makes; also of a ControlNet's."""
    conv_in = getattr(unet.conv_in, "base_layer", unet.conv_in)  # a LoRA may wrap it
    first = "transformer_in" if hasattr(unet, "transformer_in") else "conv_in"  # video U-Nets mix the frames first
    made, stride = [(-1, 0, first, conv_in.out_channels, 1)], 1
    for i, block in enumerate(unet.down_blocks):
        path = f"down_blocks.{i}"
        last = [name for name in LAYER_LISTS if getattr(block, name, None)][-1]
        for j, resnet in enumerate(block.resnets):
            made_by = layers_of(block, last, j, j + 1).stop - 1
            made.append((i, j, f"{path}.{last}.{made_by}", _spatial(resnet).out_channels, stride))
        if block.downsamplers is not None:
            stride *= 2
            made.append((i, len(block.resnets), f"{path}.downsamplers.0", block.downsamplers[0].out_channels, stride))
    return made


def layers_of(block: nn.Module, name: str, start: int, stop: int | None) -> slice:
    """Where the parts of layers start..stop lie in one of a block's ``LAYER_LISTS``."""
    each = len(getattr(block, name)) // len(block.resnets)
    return slice(start * each, None if stop is None else stop * each)


def _spatial(resnet: nn.Module) -> nn.Module:
    """The resnet that knows its widths: video resnets wrap a spatial one."""
    return getattr(resnet, "spatial_res_block", resnet)


def check_supported(unet: nn.Module) -> None:
    """Raise ``UnsupportedModelError``, naming the part at fault, unless ``unet`` can be split at its skips."""
    refuse_compiled(unet)
    if not {c.__name__ for c in type(unet).__mro__} & set(UNETS):
        raise UnsupportedModelError(unet_refusal(type(unet).__name__, UNETS))
    for kind, known in BLOCKS.items():
        for i, block in enumerate(getattr(unet, f"{kind}_blocks")):
            if hasattr(block, "_orig_mod"):
                raise UnsupportedModelError(
                    f"{kind}_blocks.{i} was wrapped by torch.compile. Put it back (its _orig_mod), and use {OUR_COMPILE}"
                )
            if type(block).__name__ not in known:
                raise UnsupportedModelError(block_refusal(f"{kind}_blocks.{i}", type(block).__name__, known))


OUR_COMPILE = "unetaccel.apply(..., compile=True), which compiles each view once"


def refuse_compiled(unet: nn.Module) -> None:
    """What is compiled as a whole cannot be split; compiled layers (``compile_repeated_blocks``) are no obstacle."""
    if hasattr(unet, "_orig_mod"):
        how, undo = "was wrapped by torch.compile", "Put the plain one back (pipe.unet = pipe.unet._orig_mod)"
    elif hasattr(unet.__dict__.get("forward"), "_torchdynamo_orig_callable"):
        how, undo = "has a `forward` wrapped by torch.compile", "Remove that (del unet.forward)"
    elif getattr(unet, "_compiled_call_impl", None) is not None:
        how, undo = "was compiled in place (unet.compile())", "Undo that (unet._compiled_call_impl = None)"
    else:
        return
    raise UnsupportedModelError(f"this U-Net {how}. {undo}, and use {OUR_COMPILE}")


def resolve_cut(cut: int | str, table: list[Skip]) -> int:
    """The skip index that ``cut`` names. ``"auto"`` needs costs and is resolved by ``costs.auto_cut``.

    Accepted: an int ``b`` in 0..n-1; ``"paper:m"`` (the paper's 1-based branch, b = m - 1);
    ``"helper:i"`` (``cache_branch_id`` of DeepCacheSDHelper: down block i // 3, layer i % 3);
    the path of a decoder layer, such as ``"up_blocks.3.resnets.2"``.

    Raises:
        SettingError: none of these, or out of range.
    """
    n = len(table)
    if isinstance(cut, int) and not isinstance(cut, bool):
        return _in_range(cut, cut, n)
    if isinstance(cut, str):
        entries = {s.entry: s.b for s in table}
        if cut in entries:
            return entries[cut]
        scheme, _, number = cut.partition(":")
        if scheme in ("paper", "helper") and number.isdecimal():
            return _in_range(int(number) - 1 if scheme == "paper" else _from_helper(int(number), table), cut, n)
    raise SettingError(
        f"cut={cut!r} is not a cut. Allowed: 0..{n - 1}, 'auto', 'paper:1'..'paper:{n}', 'helper:0' and up, "
        f"or the path of a decoder layer such as {table[0].entry!r}"
    )


def _in_range(b: int, given: int | str, n: int) -> int:
    if 0 <= b < n:
        return b
    raise SettingError(
        f"cut={given!r} is out of range: this U-Net has {n} skips, so a cut is 0 (cached steps run least) "
        f"to {n - 1} (only the mid block is skipped)"
    )


def _from_helper(i: int, table: list[Skip]) -> int:
    """The helper keeps layers below i % 3 of down block i // 3, three layers a block whatever the model has."""
    block, layer = divmod(i, 3)
    own = [s for s in table if s.block == block]
    if not own:
        return len(table)
    return own[0].b - 1 + min(layer, len(own))
