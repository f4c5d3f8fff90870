"""PNG grids of samples: one cell per prompt, one picture per column of the comparison."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

GAP, MARGIN, LINE, SHOWN_SIDE, COLUMNS = 2, 10, 14, 128, 4
LETTER, MOST_LINES = 6.5, 3
"""Pixels that a letter of a caption takes, and lines that it may have."""


def to_image(picture: np.ndarray) -> Image.Image:
    """(H, W, 3) in [0, 1] as an 8-bit image."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))


def write_grid(
    path: Path, variants: list[np.ndarray], titles: list[str] | None = None, captions: list[str] | None = None
) -> None:
    """Write one cell per image index; each cell shows the variants (N, H, W, 3) from left to right.

    Pictures smaller than 128 pixels are enlarged by whole factors. ``titles`` name the variants over every cell,
    ``captions`` stand under it.
    """
    count, height, width = len(variants[0]), *variants[0].shape[1:3]
    factor = max(1, SHOWN_SIDE // max(height, width))
    height, width = height * factor, width * factor
    cell_width = len(variants) * (width + GAP) - GAP
    columns = min(count, COLUMNS if len(variants) == 1 else max(1, COLUMNS // len(variants) + 1))
    top = LINE if titles else 0
    lines = [_wrapped(text, cell_width) for text in captions or [""] * count]
    cell_height = top + height + LINE * max(map(len, lines))
    rows = -(-count // columns)
    canvas = Image.new(
        "RGB", (columns * (cell_width + MARGIN) + MARGIN, rows * (cell_height + MARGIN) + MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for i in range(count):
        x = MARGIN + (i % columns) * (cell_width + MARGIN)
        y = MARGIN + (i // columns) * (cell_height + MARGIN)
        for j, variant in enumerate(variants):
            left = x + j * (width + GAP)
            if titles:
                draw.text((left, y), titles[j], fill="black")
            canvas.paste(to_image(variant[i]).resize((width, height), Image.Resampling.NEAREST), (left, y + top))
            draw.rectangle((left - 1, y + top - 1, left + width, y + top + height), outline="lightgray")
        for k, line in enumerate(lines[i]):
            draw.text((x, y + top + height + k * LINE + 1), line, fill="black")
    canvas.save(path)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(8, int(width / LETTER)), max_lines=MOST_LINES, placeholder=" ...")
