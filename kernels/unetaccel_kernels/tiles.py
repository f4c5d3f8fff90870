"""How tensors are cut into tiles: strides and block sizes. Arithmetic on the host, without Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE = 2048
"""Elements of a program: 16 for each of 128 threads, two loads of 16 bytes in half precision."""
CHUNK = {False: 512, True: 128}
"""Most pixels of a tile, by whether channels are last: each run of memory is 64 bytes or more, and moments a small share."""


def power_of_two(n: int) -> int:
    """The least power of two that is ``n`` or more."""
    return 1 << max(n - 1, 0).bit_length()


def chunk_length(pixels: int, chunks: int) -> int:
    """The pixels of each chunk but the last, where ``pixels`` were cut into so many at a power of two."""
    return power_of_two(-(-pixels // chunks)) if chunks else 1


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether (N, C, H, W), or what it is a slice of the channels of, lies in memory as N, H, W, C, and not as N, C, H, W too."""
    found = None if x.is_contiguous() else planes(x)
    return found is not None and found[1] == 1 and found[2] >= x.shape[1]


def planes(x: torch.Tensor) -> tuple[int, int, int] | None:
    """Strides of ``x`` (N, C, H, W) by sample, channel and pixel; None if its pixels are not evenly spaced."""
    N, C, H, W = x.stride()
    if x.shape[2] > 1 and x.shape[3] > 1 and x.shape[3] * W != H:
        return None
    return N, C, W if x.shape[3] > 1 else H


def as_planes(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """``x``, or a contiguous copy where its pixels are not evenly spaced, with its strides as ``planes``."""
    if planes(x) is None:
        x = x.contiguous()
    return x, planes(x)


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``channels`` by ``pixels`` over (N, C, P)."""

    channels: int
    pixels: int
    chunks: int
    """Of each channel's pixels."""
    programs: int

    @property
    def warps(self) -> int:
        return max(1, min(8, self.channels * self.pixels // 512))


def tiling(N: int, C: int, P: int, channels_last: bool) -> Tiling:
    """The tiles of a tensor (N, C, P) that lies in memory in this order."""
    pixels = min(CHUNK[channels_last], power_of_two(P))
    channels = min(max(1, TILE * (1 + channels_last) // pixels), 32, power_of_two(C))
    chunks = -(-P // pixels)
    return Tiling(channels, pixels, chunks, N * chunks * -(-C // channels))


@dataclass(frozen=True)
class Rows:
    """A tensor as ``rows`` runs of ``cols`` adjacent elements, each beginning ``stride`` elements after the one before."""

    rows: int
    cols: int
    stride: int
    dense: tuple[int, ...]
    """Strides of a tensor of this shape, in this order, without gaps."""


def rows_of(x: torch.Tensor) -> Rows | None:
    """``x`` as rows: one if it has no gaps, several if it is a slice of such a tensor; None if it is neither."""
    order = sorted((d for d in range(x.ndim) if x.shape[d] > 1), key=x.stride)
    dense, size = [1] * x.ndim, 1
    cols, rows, stride = 1, 1, 0
    for d in order:
        dense[d] = size
        if rows == 1 and x.stride(d) == cols:
            cols *= x.shape[d]
        else:
            stride = stride or x.stride(d)
            if x.stride(d) != stride * rows or stride < cols:
                return None
            rows *= x.shape[d]
        size *= x.shape[d]
    return Rows(rows, cols, stride or cols, tuple(dense))


def row_tile(view: Rows) -> tuple[int, int]:
    """Block sizes (rows, cols): whole rows' worth of memory where rows are long, else a power of two that fits them well."""
    if view.cols >= TILE:
        return 1, TILE
    fitting = view.cols & -view.cols  # the largest power of two that divides it
    cols = min(fitting, 128) if fitting >= 32 else power_of_two(view.cols)
    return max(1, min(TILE // cols, power_of_two(view.rows))), cols
