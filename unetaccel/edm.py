"""The skips of NVIDIA's EDM networks, which are not diffusers models: ADM and DDPM++/NCSN++ as EDM builds them.

Karras, Aittala, Aila, Laine: "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, arXiv
2206.00364. They are known by their structure, whatever package they come from (NVIDIA's PhysicsNeMo has them too): an encoder ``enc`` and a decoder ``dec``,
``ModuleDict``s of layers named by their resolution (``16x16_block0``). The decoder concatenates a skip before a layer
that takes more channels than the layer before it gives. A preconditioner may hold the network as ``model``. Entries with
``aux`` in their name make or read a small picture beside the hidden state and consume no skip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from .errors import UnsupportedModelError
from .skips import Skip

UNCUT = (
    "DeepCache is not supported on EDM's networks: their encoder and decoder are flat lists that one loop runs, so that no part "
    "of them can be left out at a step. Skip methods work; to save time, sample with fewer steps (SkipTuning makes up for some)"
)


def network_path(model: nn.Module) -> str | None:
    """Where in ``model`` an EDM network lies, as a prefix of paths ("" or "model."); None if there is none."""
    for path, net in (("", model), ("model.", getattr(model, "model", None))):
        if all(isinstance(getattr(net, name, None), nn.ModuleDict) for name in ("enc", "dec")):
            return path
    return None


def edm_skips(model: nn.Module, path: str) -> list[Skip]:
    """Every skip of an EDM network at ``path`` in ``model``, ordered by ``b``.

    ``block`` and ``up_block`` count resolutions, from the image inwards and from the innermost outwards.

    Raises:
        UnsupportedModelError: its layers are not as EDM's.
    """
    net = model.get_submodule(path.rstrip("."))
    made, table = list(_made(net.enc, path)), []
    consumed = list(_consumed(net.dec, made[-1][3] if made else 0))
    if len(made) != len(consumed):
        raise _strange(f"its encoder makes {len(made)} skips and its decoder consumes {len(consumed)}")
    for b, ((block, layer, source, channels, stride), (name, hidden, taken, i, j)) in enumerate(
        zip(made, reversed(consumed), strict=True)
    ):
        if taken != channels:
            raise _strange(f"dec.{name} takes a skip of {taken} channels, but skip {b} has {channels}")
        table.append(Skip(b, block, layer, source, f"{path}dec.{name}", i, j, channels, hidden, stride))
    return table


def _made(enc: nn.ModuleDict, path: str) -> list[tuple[int, int, str, int, int]]:
    """(level, layer, source, channels, stride) of each skip that the encoder makes; the first convolution has level -1."""
    made, sides = [], []
    for name, layer in enc.items():
        source = f"{path}enc.{name}"
        if "aux" in name:
            if "aux_down" not in name:  # replaces the skip before it by a sum with itself
                made[-1] = (*made[-1][:2], source, *made[-1][3:])
            continue
        side = _side(name)
        sides.append(side)
        level = len(set(sides)) - 1
        made.append((level if made else -1, sides.count(side) - 1, source, layer.out_channels, sides[0] // side))
    return made


def _consumed(dec: nn.ModuleDict, channels: int) -> Iterator[tuple[str, int, int, int, int]]:
    """(name, hidden, skip's channels, level, layer) of each decoder layer that consumes a skip.

    Args:
        channels: of what enters the decoder.
    """
    sides, found = [], []
    for name, layer in dec.items():
        if "aux" in name:
            continue
        if not all(hasattr(layer, part) for part in ("in_channels", "out_channels", "norm0", "skip")):
            raise _strange(f"dec.{name} ({type(layer).__name__}) lacks in_channels, out_channels, norm0 or skip")
        side = _side(name)
        sides.append(side)
        if layer.in_channels != channels:
            yield name, channels, layer.in_channels - channels, len(set(sides)) - 1, found.count(side)
            found.append(side)
        channels = layer.out_channels


def _side(name: str) -> int:
    """The resolution in a layer's name."""
    side = re.match(r"(\d+)x\d+_", name)
    if side is None:
        raise _strange(f"the layer {name!r} is not named by its resolution")
    return int(side[1])


def _strange(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this network has enc and dec like EDM's, but {what}. Supported are EDM's ADM and DDPM++/NCSN++ networks; EDM2's, whose "
        "concatenation is weighted already, are not"
    )
