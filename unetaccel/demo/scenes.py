"""Procedural captioned shapes: sampling scenes, writing their captions and drawing them.

A scene is one shape, or a pair beside or above one another, on a plain background. Every
caption determines every label, so a picture can be checked against its caption exactly.
Lengths are in units of 1/64 of the picture's side, whatever the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (0.89, 0.13, 0.14),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.88, 0.12),
    "green": (0.15, 0.66, 0.22),
    "cyan": (0.12, 0.82, 0.86),
    "blue": (0.15, 0.28, 0.90),
    "purple": (0.52, 0.16, 0.70),
    "pink": (1.00, 0.52, 0.75),
}
BACKGROUNDS = {
    "black": (0.06, 0.06, 0.07),
    "white": (0.95, 0.95, 0.94),
    "gray": (0.52, 0.52, 0.53),
    "brown": (0.36, 0.21, 0.11),
}
SIZES = ("small", "large")
RELATIONS = {1: ("left of", "right of"), 2: ("above", "below")}
SINGLE, BESIDE, ABOVE = range(3)
NONE = -1

HEADS = {
    "layout": 3,  # single, beside, above
    "shape1": len(SHAPES),
    "colour1": len(COLOURS),
    "shape2": len(SHAPES) + 1,  # the last class is "no second shape"
    "colour2": len(COLOURS) + 1,
    "background": len(BACKGROUNDS),
    "size": len(SIZES) + 1,  # the last class is "a pair"
}
"""Number of classes of each label. Slot 1 is the left or upper shape."""

CELL = 8  # one latent cell: positions move by whole cells, so that few latents need to be learned


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes: one int64 tensor of shape (N,) per label; absent things are ``NONE``."""

    layout: torch.Tensor
    shape1: torch.Tensor
    colour1: torch.Tensor
    shape2: torch.Tensor
    colour2: torch.Tensor
    background: torch.Tensor
    size: torch.Tensor
    swapped: torch.Tensor  # 1: the caption names slot 2 first

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index) -> Scenes:
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def labels(self) -> dict[str, torch.Tensor]:
        """Class indices (N,) for each entry of ``HEADS``; ``NONE`` becomes the last class."""
        return {k: torch.where(getattr(self, k) < 0, n - 1, getattr(self, k)) for k, n in HEADS.items()}

    def captions(self) -> list[str]:
        return [_caption(*row) for row in zip(*(getattr(self, f.name).tolist() for f in fields(self)), strict=True)]

    @staticmethod
    def cat(parts: list[Scenes]) -> Scenes:
        return Scenes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Scenes)))


def _caption(layout, shape1, colour1, shape2, colour2, background, size, swapped) -> str:
    colours, ground = list(COLOURS), list(BACKGROUNDS)[background]
    if layout == SINGLE:
        return f"a {SIZES[size]} {colours[colour1]} {SHAPES[shape1]} on a {ground} background"
    first, second = (
        f"{'an' if colours[c] == 'orange' else 'a'} {colours[c]} {SHAPES[s]}"
        for c, s in ((colour1, shape1), (colour2, shape2))
    )
    if swapped:
        first, second = second, first
    return f"{first} {RELATIONS[layout][swapped]} {second} on a {ground} background"


def sample_scenes(n: int, seed: int, held_out: bool = False) -> Scenes:
    """Draw ``n`` scenes: half single shapes, half pairs.

    One caption in 8, chosen by a hash of its labels, is never drawn unless ``held_out`` is
    true, in which case only those are drawn: training and evaluation share no caption.
    """
    generator = torch.Generator().manual_seed(seed)
    parts, count = [], 0
    while count < n:
        batch = _draw(max(2 * n if not held_out else 12 * n, 64), generator)
        batch = batch[_is_held_out(batch) == held_out]
        parts.append(batch)
        count += len(batch)
    return Scenes.cat(parts)[slice(0, n)]


def _draw(n: int, generator: torch.Generator) -> Scenes:
    def draw(k):
        return torch.randint(k, (n,), generator=generator)

    layout = torch.multinomial(torch.tensor([0.5, 0.25, 0.25]), n, replacement=True, generator=generator)
    single = layout == SINGLE

    def unless(mask, value):
        return torch.where(mask, torch.full_like(value, NONE), value)

    return Scenes(
        layout=layout,
        shape1=draw(len(SHAPES)),
        colour1=draw(len(COLOURS)),
        shape2=unless(single, draw(len(SHAPES))),
        colour2=unless(single, draw(len(COLOURS))),
        background=draw(len(BACKGROUNDS)),
        size=unless(~single, draw(len(SIZES))),
        swapped=torch.where(single, 0, draw(2)),
    )


def _is_held_out(scenes: Scenes) -> torch.Tensor:
    code = torch.zeros(len(scenes), dtype=torch.int64)
    for f in fields(scenes):
        code = code * 11 + getattr(scenes, f.name) + 1
    for factor in (2246822519, 3266489917):  # a 32-bit multiply-and-shift hash: no label decides alone
        code = (code ^ code >> 15) % 2**32 * factor % 2**32
    return (code >> 16) % 8 == 0


def render(scenes: Scenes, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Draw scenes as float32 images of shape (N, 3, size, size) in [0, 1].

    ``seed`` moves everything that the caption does not name: position by whole latent cells,
    radius, rotation, tint, shading and the background's gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(scenes)

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator)

    def jitter():  # a whole cell either way
        return CELL * (torch.randint(3, (n,), generator=generator) - 1).float()

    axis = (torch.arange(size) + 0.5) * 64 / size
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1])  # (2, H, W): x, y
    image = _background(scenes, grid, uniform, generator)

    single, beside = scenes.layout == SINGLE, scenes.layout == BESIDE
    large = scenes.size == 1
    small_radius, large_radius, pair_radius = uniform(12.2, 13.4), uniform(21, 23), uniform(13.2, 14.4)
    for slot, (shape, colour) in enumerate(((scenes.shape1, scenes.colour1), (scenes.shape2, scenes.colour2))):
        x, y, place = 32 + jitter(), 32 + jitter(), 16.0 + 32 * slot
        x = torch.where(large, 32.0, torch.where(beside, place, x))
        y = torch.where(large, 32.0, torch.where(single | beside, y, place))
        radius = torch.where(single, torch.where(large, large_radius, small_radius), pair_radius)
        local = _rotate(grid[None] - torch.stack([x, y], 1)[:, :, None, None], uniform(-0.12, 0.12))
        distance = _distance(shape, local, radius[:, None, None])
        cover = (0.5 - distance * size / 64).clamp(0, 1) * (shape >= 0)[:, None, None]
        image = torch.lerp(image, _paint(colour, local, radius, uniform, generator), cover[:, None])
    return image.clamp(0, 1)


def _tint(table: dict, index: torch.Tensor, sd: float, generator) -> torch.Tensor:
    colour = torch.tensor(list(table.values()))[index]
    return colour + sd * torch.randn(colour.shape, generator=generator)  # (N, 3)


def _background(scenes: Scenes, grid, uniform, generator) -> torch.Tensor:
    colour = _tint(BACKGROUNDS, scenes.background, 0.03, generator)[:, :, None, None]
    angle, strength = uniform(0, 6.2832), uniform(0, 0.08)
    slope = torch.stack([angle.cos(), angle.sin()], 1) * strength[:, None]
    ramp = torch.einsum("nc,chw->nhw", slope, grid / 32 - 1)
    return (colour + ramp[:, None]).clamp(0, 1)


def _paint(colour, local, radius, uniform, generator) -> torch.Tensor:
    """A flat colour, a little lighter towards the upper left: (N, 3, H, W)."""
    base = _tint(COLOURS, colour, 0.02, generator)[:, :, None, None]
    shade = uniform(0, 0.16)[:, None, None] * (local.sum(1) / (2 * radius[:, None, None])).clamp(-1, 1)
    return base - shade[:, None]


def _rotate(p: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return torch.stack([c * p[:, 0] + s * p[:, 1], c * p[:, 1] - s * p[:, 0]], 1)


def _distance(shape: torch.Tensor, p: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Signed distance (N, H, W), negative inside, from points ``p`` (N, 2, H, W) to a shape of radius ``r``."""
    x, y = p[:, 0], p[:, 1]
    length = p.norm(dim=1)

    def box(a, b):
        return torch.maximum(x.abs() - a, y.abs() - b)

    triangle = torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.55 * r
    candidates = torch.stack(
        [
            length - 0.95 * r,
            box(0.82 * r, 0.82 * r),
            triangle,
            torch.minimum(box(r, 0.34 * r), box(0.34 * r, r)),
            (length - 0.74 * r).abs() - 0.25 * r,
        ]
    )
    index = shape.clamp(min=0)[None, :, None, None].expand(1, *x.shape)
    return candidates.gather(0, index)[0]
