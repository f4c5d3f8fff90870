"""What the tests of kernels share: where they run, in what layouts, and how far from the float64 result they may be."""

from __future__ import annotations

from contextlib import contextmanager

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on CPU in Triton's interpreter: see conftest.py
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "slice": lambda x: torch.cat([x, x, x], dim=1)[:, x.shape[1] : 2 * x.shape[1]],
    "channels_last_slice": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[
        :, x.shape[1] :
    ],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every_other": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}
"""Six ways of holding the same numbers (N, C, H, W)."""


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, layout: str = "contiguous") -> torch.Tensor:
    """Standard normal numbers, the same for one seed wherever they lie."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    return LAYOUTS[layout](x)


def check(found: torch.Tensor, exact: torch.Tensor, amplitude: torch.Tensor | float) -> None:
    """``found`` is the float64 ``exact``, rounded once to its own type after float32 arithmetic on terms of this amplitude."""
    kind = torch.finfo(found.dtype)
    truncates = DEVICE == "cpu" and found.dtype == torch.bfloat16  # the interpreter does, GPUs do not
    rounding = kind.eps if truncates else kind.eps / 2
    allowed = exact.abs() * rounding + 16 * torch.finfo(torch.float32).eps * amplitude + kind.smallest_normal * kind.eps
    error = (found.double() - exact).abs()
    assert not found.isnan().any(), "an element was not written"
    assert (error <= allowed).all(), f"off by {(error / allowed).max():.2f} of what rounding allows"


@contextmanager
def unwritten_is_nan():
    """Within, new tensors hold NaN: what a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
