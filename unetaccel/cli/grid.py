"""PNG grids of samples: one cell per prompt, one picture per column of the comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

GAP, MARGIN, HEADER, SHOWN_SIDE, COLUMNS = 2, 10, 14, 128, 4


def to_image(picture: np.ndarray) -> Image.Image:
    """(H, W, 3) in [0, 1] as an 8-bit image."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))


def write_grid(path: Path, variants: list[np.ndarray], titles: list[str] | None = None) -> None:
    """Write one cell per image index; each cell shows the variants (N, H, W, 3) from left to right.

    Pictures smaller than 128 pixels are enlarged by whole factors. ``titles`` name the variants over every cell.
    """
    count, height, width = len(variants[0]), *variants[0].shape[1:3]
    factor = max(1, SHOWN_SIDE // max(height, width))
    height, width = height * factor, width * factor
    cell_width = len(variants) * (width + GAP) - GAP
    columns = min(count, COLUMNS if len(variants) == 1 else max(1, COLUMNS // len(variants) + 1))
    top = HEADER if titles else 0
    rows = -(-count // columns)
    canvas = Image.new(
        "RGB", (columns * (cell_width + MARGIN) + MARGIN, rows * (height + top + MARGIN) + MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for i in range(count):
        x = MARGIN + (i % columns) * (cell_width + MARGIN)
        y = MARGIN + (i // columns) * (height + top + MARGIN)
        for j, variant in enumerate(variants):
            left = x + j * (width + GAP)
            if titles:
                draw.text((left, y), titles[j], fill="black")
            canvas.paste(to_image(variant[i]).resize((width, height), Image.Resampling.NEAREST), (left, y + top))
    canvas.save(path)
