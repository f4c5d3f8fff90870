"""Reading the demo's captions back into the scenes that they describe."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from ..errors import SettingError
from .scenes import BACKGROUNDS, COLOURS, NONE, RELATIONS, SHAPES, SINGLE, SIZES, Scenes

_COLOUR, _SHAPE, _GROUND = "|".join(COLOURS), "|".join(SHAPES), "|".join(BACKGROUNDS)
_PLACES = {word: (layout, swapped) for layout, words in RELATIONS.items() for swapped, word in enumerate(words)}
_ENDING = rf"on a ({_GROUND}) background"
ONE = re.compile(rf"a ({'|'.join(SIZES)}) ({_COLOUR}) ({_SHAPE}) {_ENDING}")
TWO = re.compile(rf"an? ({_COLOUR}) ({_SHAPE}) ({'|'.join(_PLACES)}) an? ({_COLOUR}) ({_SHAPE}) {_ENDING}")


def read_captions(captions: Sequence[str]) -> Scenes:
    """The scenes of these captions: ``Scenes.captions`` turned round.

    Raises:
        SettingError: one of them is not a caption of the demo.
    """
    rows = torch.tensor([_row(caption) for caption in captions], dtype=torch.int64).reshape(-1, 8)
    return Scenes(*rows.unbind(1))


def _row(caption: str) -> tuple[int, ...]:
    """The fields of ``Scenes``, in their order."""
    colours, shapes, grounds = list(COLOURS), SHAPES, list(BACKGROUNDS)
    if found := ONE.fullmatch(caption.strip()):
        size, colour, shape, ground = found.groups()
        return (
            SINGLE,
            shapes.index(shape),
            colours.index(colour),
            NONE,
            NONE,
            grounds.index(ground),
            SIZES.index(size),
            0,
        )
    if found := TWO.fullmatch(caption.strip()):
        colour1, shape1, place, colour2, shape2, ground = found.groups()
        layout, swapped = _PLACES[place]
        first, second = (shapes.index(shape1), colours.index(colour1)), (shapes.index(shape2), colours.index(colour2))
        if swapped:
            first, second = second, first
        return layout, *first, *second, grounds.index(ground), NONE, swapped
    raise SettingError(
        f"labels are read against the demo's own captions, such as 'a large red ring on a black background', and {caption!r} is "
        "none: take psnr, ssim or a metric of your own"
    )
