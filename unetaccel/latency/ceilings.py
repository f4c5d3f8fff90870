"""What this device could do: its measured rates, and the time that the work of each evaluation takes at them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..controlnet import truncated
from ..costs import count_macs, cut_costs
from ..views import build_views
from .jobs import Job, Walk

COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm")
"""Operations whose operands are traffic; attention too. Everything between them is taken to be fused into them."""
TRIALS = 8


@dataclass(frozen=True)
class Rates:
    """Best of a few trials on the device at hand."""

    macs: float
    """Multiply-accumulates per second of a large square matrix product in this dtype."""
    bytes: float
    """Bytes read and written per second by a copy that no cache holds."""


@dataclass(frozen=True)
class Work:
    """Of one evaluation."""

    macs: int
    bytes: int
    """Weights, operands and results of convolutions, matrix products and attention, each once."""

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.bytes + other.bytes)

    def as_dict(self, rates: Rates) -> dict:
        seconds = {"macs": self.macs / rates.macs, "bytes": self.bytes / rates.bytes}
        return {"macs": self.macs, "bytes": self.bytes, "seconds": seconds}


def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """A second or two of measurement. Sizes are past what caches hold: 8192 and 512 MiB on CUDA, 1024 and 64 MiB elsewhere."""
    side, size = (8192, 2**29) if device.type == "cuda" else (1024, 2**26)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: torch.mm(a, b), device)
    copy = _best(lambda: target.copy_(source), device)
    return Rates(side**3 / product, 2 * size / copy)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of ``TRIALS`` after one to warm up."""
    found = []
    for _ in range(TRIALS + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Works:
    """Of one job, with its ControlNet."""

    full: Work
    cached: dict[int, Work]
    """By cut, with a ControlNet that makes only what is read."""
    beside_whole: dict[int, Work]
    """By cut, with one that runs whole, as it does for those who do not shorten it."""


@torch.no_grad()
def works(job: Job, cuts: Iterable[int]) -> Works:
    """Of a full evaluation, and of a cached one at each cut. The bytes are counted in one evaluation of each."""
    inputs = {"sample": _first(job), "timestep": Walk(1, job.device).timesteps[0], **job.condition}
    cuts, cached, beside_whole = list(cuts), {}, {}
    control = _control(job, inputs, None)
    full_bytes = _traffic(lambda: type(job.unet).forward(job.unet, **inputs))
    costs = list(cut_costs(job.unet, job.structure, cuts or [0]))
    for cut, cost in zip(cuts, costs, strict=False):
        views = build_views(job.unet, cut)
        _, feature = views.run_full(inputs)
        moved = _traffic(lambda v=views, f=feature: v.run_cached(inputs, f))
        alone = Work(cost.cached_macs, moved)
        cached[cut], beside_whole[cut] = alone + _control(job, inputs, cut), alone + control
    return Works(Work(costs[0].full_macs, full_bytes) + control, cached, beside_whole)


def _control(job: Job, inputs: dict, cut: int | None) -> Work:
    """Of the job's ControlNet before a full evaluation, or before a cached one at ``cut``."""
    if job.controlnet is None:
        return Work(0, 0)
    net = job.controlnet if cut is None else truncated(job.controlnet, cut)
    call = partial(type(net).forward, net, **inputs, controlnet_cond=job.hint, return_dict=False)
    return Work(count_macs(call), _traffic(call))


def _first(job: Job) -> torch.Tensor:
    noise = job.noise(0).to(job.dtype)
    return torch.cat([noise, noise]) if job.guided else noise


def _traffic(work: Callable[[], object]) -> int:
    with _Traffic() as counter:
        work()
    return counter.bytes


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what ``COUNTED`` operations and attention read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in COUNTED or name.startswith("_scaled_dot_product"):
            written = result[0] if isinstance(result, tuple) else result
            self.bytes += sum(t.nbytes for t in (*args, written) if isinstance(t, torch.Tensor))
        return result
