"""What is timed: a U-Net of a known shape with random weights, perhaps with a ControlNet, in a guided sampling loop of its own.

The loop does what a pipeline does around its U-Net (both halves of guidance, deterministic DDIM), by numbers that are on the
host beforehand: it never waits for the device. Pipelines with diffusers' schedulers do wait, so their steps are slower.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import nn

from ..costs import example_inputs
from ..errors import SettingError
from ..shapes import SHAPES, build_shape
from .timers import Marks

GUIDANCE = 1.5
"""Low, because the difference of the halves is that of two random networks' outputs: rounding grows with it, and the time does not."""
SIZES = {"svd": (72, 128)}
"""Height and width of the latents, where that is not the configuration's ``sample_size``."""
FRAMES = {"svd": 25, "animatediff": 16}


@dataclass(frozen=True)
class Case:
    """A shape and how many pictures (or videos) a call makes; guidance doubles the U-Net's batch."""

    name: str
    batch: int = 1
    controlled: bool = False
    """A ControlNet runs before every evaluation of the U-Net."""

    def __str__(self) -> str:
        return f"{self.name}{CONTROLNET * self.controlled}:{self.batch}"


CONTROLNET = "-controlnet"
CONTROLLED = tuple(name for name, (kind, _) in SHAPES.items() if kind == "UNet2DConditionModel")
"""Shapes that ControlNets are made for."""
CASES = (
    Case("sd15"),
    Case("sd15", 8),
    Case("sd15", controlled=True),
    Case("sdxl"),
    Case("sdxl", 4),
    Case("svd"),
    Case("animatediff"),
)


def read_case(text: str) -> Case:
    """``"sd15"``, ``"sd15:8"`` or ``"sd15-controlnet:8"``.

    Raises:
        SettingError: no such shape, or the batch is not a positive number.
    """
    name, colon, batch = text.partition(":")
    controlled = name.endswith(CONTROLNET)
    name = name.removesuffix(CONTROLNET)
    if name not in (CONTROLLED if controlled else SHAPES):
        raise SettingError(
            f"unknown case {text.partition(':')[0]!r}; known: {', '.join(SHAPES)}, with a batch as in sd15:8; with a ControlNet: "
            f"{', '.join(name + CONTROLNET for name in CONTROLLED)}"
        )
    if colon and not (batch.isdecimal() and int(batch) > 0):
        raise SettingError(f"case {text!r}: the batch after the colon must be a number of at least 1, as in sd15:8")
    return Case(name, int(batch or 1), controlled)


@dataclass
class Job:
    """A U-Net and everything that a sampling loop with it needs."""

    name: str
    unet: nn.Module
    structure: tuple
    """Of the inputs, see ``costs.example_inputs``: both halves of guidance where there is a condition."""
    guided: bool = True
    controlnet: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def batch(self) -> int:
        """Pictures or videos of a call."""
        return self.sample_shape[0] // (1 + self.guided)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return dict(self.structure)["sample"][0]

    @cached_property
    def condition(self) -> dict:
        """Every input but sample and timestep: random, the same at every step."""
        generator = torch.Generator().manual_seed(1)
        given = ((name, value) for name, value in self.structure if name != "sample")
        return {name: _filled(value, generator) for name, value in given}

    @cached_property
    def hint(self) -> torch.Tensor:
        """The picture that a ControlNet is given, eight times as high and wide as the latents: (N, 3, 8 H, 8 W)."""
        *_, height, width = self.sample_shape
        shape = (self.sample_shape[0], 3, 8 * height, 8 * width)
        return torch.rand(shape, generator=torch.Generator().manual_seed(2)).to(self.device, self.dtype)

    def together(self, unet: Callable, controlnet: Callable | None = None) -> Callable:
        """``unet``, to be called as ``sample`` does, with ``controlnet`` (default: the job's) before it where the job has one."""
        if self.controlnet is None:
            return unet
        controlnet = controlnet or self.controlnet

        def both(sample: torch.Tensor, timestep: torch.Tensor, **inputs):
            down, mid = controlnet(sample, timestep, controlnet_cond=self.hint, **inputs)
            return unet(
                sample, timestep, down_block_additional_residuals=down, mid_block_additional_residual=mid, **inputs
            )

        return both

    @property
    def channels(self) -> int:
        """The dimension of the sample's channels: SVD's frames come before them."""
        return 2 if type(self.unet).__name__ == "UNetSpatioTemporalConditionModel" else 1

    def noise(self, seed: int) -> torch.Tensor:
        """Latents to begin with, float32, with as many channels as the U-Net takes: (batch, C, [frames,] H, W)."""
        shape = (self.batch, *self.sample_shape[1:])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def split(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The channels that the U-Net makes, and those that it is only given (SVD's first frame)."""
        made = self.unet.config.out_channels
        return sample.split([made, sample.shape[self.channels] - made], self.channels)

    def twin(self) -> nn.Module:
        """A copy of the U-Net that shares every tensor with it: what is done to its modules stays with it."""
        tensors = [*self.unet.parameters(), *self.unet.buffers()]
        return copy.deepcopy(self.unet, {id(tensor): tensor for tensor in tensors})

    @torch.no_grad()
    def sample(self, unet, walk: Walk, seed: int = 0, marks: Marks | None = None) -> torch.Tensor:
        """One sampling loop: the final latents, float32, of as many channels as the U-Net makes.

        Args:
            unet: called as ``unet(sample, timestep, **condition)``; returns a tuple whose first is the output.
            marks: before the loop, before and after each evaluation, and after the loop.
        """
        marks = marks or Marks(None)
        latents, fixed = self.split(self.noise(seed))
        marks.mark()
        for timestep, (keep, add) in zip(walk.timesteps, walk.factors, strict=True):
            sample = torch.cat([latents, fixed], self.channels).to(self.dtype)
            sample = torch.cat([sample, sample]) if self.guided else sample
            marks.mark()
            output = unet(sample, timestep, **self.condition, return_dict=False)[0]
            marks.mark()
            latents = keep * latents + add * self._guide(output.float())
        marks.mark()
        return latents

    def part(self, latents: torch.Tensor, walk: Walk, seed: int) -> torch.Tensor:
        """What the U-Net added to the noise in a loop that ended in ``latents``: without it, a distance says little."""
        return latents - math.prod(keep for keep, _ in walk.factors) * self.split(self.noise(seed))[0]

    def _guide(self, output: torch.Tensor) -> torch.Tensor:
        if not self.guided:
            return output
        without, with_condition = output.chunk(2)
        return without + GUIDANCE * (with_condition - without)


class Walk:
    """The timesteps of a sampling loop, on the device, and what DDIM does at each.

    ``x' = sqrt(a'/a) x + (sqrt(1 - a') - sqrt(a' (1 - a) / a)) eps`` (Song et al. 2020, equation 12 with sigma 0), as a pair
    of numbers per step.
    """

    def __init__(self, steps: int, device: torch.device):
        from diffusers import DDIMScheduler

        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        )
        self.scheduler.set_timesteps(steps, device=device)
        self.timesteps = tuple(self.scheduler.timesteps)  # int64 tensors without dimensions
        numbers = self.scheduler.timesteps.tolist()
        levels = [self.scheduler.alphas_cumprod[t].item() for t in numbers] + [1.0]
        self.factors = tuple(((b / a) ** 0.5, (1 - b) ** 0.5 - (b * (1 - a) / a) ** 0.5) for a, b in pairwise(levels))

    def __len__(self) -> int:
        return len(self.timesteps)


def build_job(
    case: Case, scale: float, device: str | torch.device, dtype: torch.dtype, channels_last: bool = False
) -> Job:
    """The U-Net of this shape with random weights, the same ones every time.

    Args:
        scale: factor on widths, on the latents' sides and on the number of frames. Of a ControlNet, what it makes of its
            picture keeps its width.
        channels_last: lay weights of 2D convolutions out as (N, H, W, C).

    Raises:
        SettingError: as ``shapes.build_shape``.
    """
    torch.manual_seed(0)
    unet = build_shape(case.name, scale, device, dtype).requires_grad_(False)
    controlnet = _controlnet(unet) if case.controlled else None
    for model in (unet, controlnet) if case.controlled else (unet,):
        _wake(model)
        if channels_last:
            _lay_channels_last(model)
    size, frames = SIZES.get(case.name), FRAMES.get(case.name)
    return job_of(
        str(case),
        unet,
        case.batch,
        size and tuple(max(8, round(side * scale / 8) * 8) for side in size),
        frames and max(2, round(frames * scale)),
        controlnet,
    )


def job_of(
    name: str,
    unet: nn.Module,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    controlnet: nn.Module | None = None,
) -> Job:
    """A job with this U-Net, guided if it takes a condition; ``size`` is that of the latents."""
    guided = any(key == "encoder_hidden_states" for key, _ in example_inputs(unet))
    return Job(name, unet, example_inputs(unet, batch * (1 + guided), size, frames=frames), guided, controlnet)


def _controlnet(unet: nn.Module) -> nn.Module:
    """One with the U-Net's encoder and weights of its own."""
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return net.to(unet.device, unet.dtype).eval().requires_grad_(False)


def _lay_channels_last(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _wake(model: nn.Module) -> None:
    """Layers that begin as zeros (those that mix frames, those behind a ControlNet) would hide from every check what goes on."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _filled(value: object, generator: torch.Generator) -> object:
    """Tensors from their structure: normal numbers, or zeros where they are ints."""
    if isinstance(value[1], torch.dtype):
        shape, dtype, device = value
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=generator).to(device, dtype)
    return {name: _filled(inner, generator) for name, inner in value}
