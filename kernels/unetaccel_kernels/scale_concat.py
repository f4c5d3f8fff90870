"""Scale and concatenate: what enters a decoder layer, in one pass that leaves the moments its GroupNorm needs.

A program takes a tile of channels x pixels, writes it, and writes of each channel the sum and the sum of squares about its own
mean over these pixels. Nothing is summed atomically, so results are the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rules import check_kernel_dtype, check_parts, check_scale, hidden_part
from .tiles import Tiling, as_planes, is_channels_last, planes, tiling

NUMBER, CHANNEL, PIXEL = 0, 1, 2
"""What a scale is: one number (in memory, or none), one per channel, one per pixel."""


@triton.jit
def join_kernel(
    hidden,  # (N, CH, P)
    skip,  # (N, C - CH, P); not read where CH is C
    gate,  # the skip's factors, or None for 1
    out,  # (N, C, P), or None: moments alone
    moments,  # (N, C, chunks, 2) float32
    C,
    CH,
    P,
    chunks,
    hn,  # strides by sample, channel, pixel: of hidden, skip, gate (of what it has), out
    hc,
    hp,
    sn,
    sc,
    sp,
    gn,
    g,
    on,
    oc,
    op,
    factor,  # where there is no gate
    KIND: tl.constexpr,
    THERE: tl.constexpr,  # hidden is where out has it
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    down = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0)
    chunk = block % chunks
    n = (block // (chunks * down)).to(tl.int64)
    c = (block // chunks % down).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = chunk.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < C)[:, None] & (p < P)[None, :]
    first = (c < CH)[:, None]
    x = tl.load(hidden + n * hn + c[:, None] * hc + p[None, :] * hp, mask=inside & first, other=0)
    y = tl.load(skip + n * sn + (c - CH)[:, None] * sc + p[None, :] * sp, mask=inside & (c >= CH)[:, None], other=0)
    y = y.to(tl.float32)
    if gate is None:
        y = y * factor
    elif KIND == 1:
        y = y * tl.load(gate + n * gn + (c - CH) * g, mask=(c >= CH) & (c < C), other=0).to(tl.float32)[:, None]
    elif KIND == 2:
        y = y * tl.load(gate + n * gn + p * g, mask=p < P, other=0).to(tl.float32)[None, :]
    else:
        y = y * tl.load(gate).to(tl.float32)
    z = tl.where(first, x, y.to(x.dtype))
    if out is not None:
        changed = inside & (c >= CH)[:, None] if THERE else inside
        tl.store(out + n * on + c[:, None] * oc + p[None, :] * op, z, mask=changed)
    z = z.to(tl.float32)
    total = tl.sum(z, axis=1)
    mean = total / tl.minimum(P - chunk * BLOCK_P, BLOCK_P).to(tl.float32)
    apart = tl.where(inside, z - mean[:, None], 0.0)
    at = moments + ((n * C + c) * chunks + chunk) * 2
    tl.store(at, total, mask=c < C)
    tl.store(at + 1, tl.sum(apart * apart, axis=1), mask=c < C)


def tiles_of(hidden: torch.Tensor, channels: int) -> Tiling:
    """The tiles of a concatenation that lies in memory as ``hidden`` does."""
    N, _, H, W = hidden.shape
    return tiling(N, channels, H * W, is_channels_last(hidden))


def launch(
    hidden: torch.Tensor,
    skip: torch.Tensor | None,
    out: torch.Tensor | None,
    scale: float = 1.0,
    gate: torch.Tensor | None = None,
    there: bool = False,
) -> torch.Tensor:
    """Write the concatenation to ``out``, if that is given; returns its moments (N, C, chunks, 2).

    Args:
        there: ``hidden`` is the first channels of ``out``, and nothing is written there.

    Raises:
        ValueError: what ``rules`` does not allow.
    """
    check_parts(hidden, skip)
    check_kernel_dtype(hidden)
    channels = hidden.shape[1] + (0 if skip is None else skip.shape[1])
    if gate is not None:
        check_scale(gate, skip)
    tiles = tiles_of(hidden, channels)
    moments = hidden.new_empty((len(hidden), channels, tiles.chunks, 2), dtype=torch.float32)
    if not tiles.programs:
        return moments
    gate, kind, gate_strides = _gate(gate)
    hidden, hidden_strides = as_planes(hidden)
    skip, skip_strides = (hidden, (0, 0, 0)) if skip is None else as_planes(skip)
    pixels = hidden.shape[2] * hidden.shape[3]
    with torch.cuda.device_of(hidden):
        join_kernel[(tiles.programs,)](
            *(hidden, skip, gate, out, moments),
            *(channels, hidden.shape[1], pixels, tiles.chunks),
            *(*hidden_strides, *skip_strides, *gate_strides, *((0, 0, 0) if out is None else planes(out))),
            float(scale),
            KIND=kind,
            THERE=there,
            BLOCK_C=tiles.channels,
            BLOCK_P=tiles.pixels,
            num_warps=tiles.warps,
        )
    return moments


def _gate(gate: torch.Tensor | None) -> tuple[torch.Tensor | None, int, tuple[int, int]]:
    """The gate, what it is, and its strides by sample and by channel or pixel."""
    if gate is None or not gate.ndim:
        return gate, NUMBER, (0, 0)
    if gate.shape[2:] == (1, 1):  # of a picture of one pixel too: one per pixel is then the same for all channels
        return gate, CHANNEL, (gate.stride(0), gate.stride(1) if gate.shape[1] > 1 else 0)
    gate, (by_sample, _, by_pixel) = as_planes(gate)
    return gate, PIXEL, (by_sample, by_pixel)


def empty_joined(hidden: torch.Tensor, channels: int) -> torch.Tensor:
    """A tensor (N, channels, H, W) that lies in memory as ``hidden`` does."""
    order = torch.channels_last if is_channels_last(hidden) else torch.contiguous_format
    N, _, H, W = hidden.shape
    return torch.empty((N, channels, H, W), dtype=hidden.dtype, device=hidden.device, memory_format=order)


@torch.library.custom_op(
    "unetaccel::scale_concat",
    mutates_args=(),
    schema="(Tensor hidden, Tensor skip, float scale=1.0, Tensor? gate=None) -> (Tensor, Tensor)",
)
def scale_concat(
    hidden: torch.Tensor, skip: torch.Tensor, scale: float = 1.0, gate: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.scale_concat`` by one kernel; the skip's factor is ``gate`` where that is given, else ``scale``.

    The moments are in chunks of pixels, each of one tile.
    """
    check_parts(hidden, skip)
    joined = empty_joined(hidden, hidden.shape[1] + skip.shape[1])
    return joined, launch(hidden, skip, joined, scale, gate)


@scale_concat.register_fake
def _(hidden, skip, scale=1.0, gate=None):
    joined = empty_joined(hidden, hidden.shape[1] + skip.shape[1])
    chunks = tiles_of(hidden, joined.shape[1]).chunks
    return joined, hidden.new_empty((len(hidden), joined.shape[1], chunks, 2), dtype=torch.float32)


@torch.library.custom_op(
    "unetaccel::scale_concat_into",
    mutates_args=("joined",),
    schema="(Tensor(a!) joined, Tensor skip, float scale=1.0, Tensor? gate=None) -> Tensor",
)
def scale_concat_into(
    joined: torch.Tensor, skip: torch.Tensor, scale: float = 1.0, gate: torch.Tensor | None = None
) -> torch.Tensor:
    """``reference.scale_concat_into``: the same, of a hidden part that is in its place already; the moments."""
    return launch(hidden_part(joined, skip), skip, joined, scale, gate, there=True)


@scale_concat_into.register_fake
def _(joined, skip, scale=1.0, gate=None):
    chunks = tiles_of(joined, joined.shape[1]).chunks
    return joined.new_empty((len(joined), joined.shape[1], chunks, 2), dtype=torch.float32)
