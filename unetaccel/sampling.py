"""Sampling many prompts with any text-to-image or unconditional pipeline, and comparing two ways to do it."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from .errors import SettingError, check_count
from .methods import Method
from .patch import apply
from .summary import Summary

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-single": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-a": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "tcd": "TCDScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True)
class Settings:
    """How to sample. ``None`` leaves a value to the pipeline."""

    steps: int = 20
    guidance: float | None = None
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    batch: int = 8
    negative_prompt: str | None = None

    def __post_init__(self):
        check_count("steps", self.steps)
        check_count("batch", self.batch)


SPACINGS = ("leading", "linspace", "trailing")


def set_scheduler(
    pipe, name: str | None = None, spacing: str | None = None, overrides: Mapping[str, object] | None = None
) -> None:
    """Give ``pipe`` the scheduler of this short or class name, with its present configuration.

    Args:
        name: a key or value of ``SCHEDULERS``; None keeps the kind.
        spacing: diffusers' ``timestep_spacing``; None keeps the configured one.
        overrides: values of the scheduler's configuration that differ from the present ones, by diffusers' names.

    Raises:
        SettingError: the name or the spacing is not known, or the scheduler has no such override or refuses its value.
    """
    if spacing not in (None, *SPACINGS):
        raise SettingError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    import diffusers

    known = {**SCHEDULERS, **{v: v for v in SCHEDULERS.values()}, None: type(pipe.scheduler).__name__}
    if name not in known:
        raise SettingError(f"unknown scheduler {name!r}; known: {', '.join(SCHEDULERS)}, or their class names")
    changes = {} if spacing is None else {"timestep_spacing": spacing}
    kind = getattr(diffusers, known[name])
    if overrides:
        _check_overrides(kind, overrides)
    try:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes, **(overrides or {}))
    except (NotImplementedError, TypeError, ValueError) as error:
        if not overrides:
            raise
        said = str(error).partition("\n")[0]
        raise SettingError(f"{kind.__name__} refuses the overrides {dict(overrides)}: {said}") from error


def _check_overrides(kind: type, overrides: Mapping[str, object]) -> None:
    """Raise for a key that is not in a scheduler's configuration: ``from_config`` would pass over it in silence."""
    has = {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items() if k not in ("self", "kwargs")}
    strange = [key for key in overrides if key not in has]
    if strange:
        raise SettingError(f"{kind.__name__} has no {strange[0]!r} to override; its configuration has {', '.join(has)}")
    for key, value in overrides.items():
        if isinstance(has[key], bool) != isinstance(value, bool) and isinstance(has[key], bool | int | float | str):
            raise SettingError(f"{kind.__name__}: {key} must be like {has[key]!r}, got {value!r}")


def check_size(pipe, size: tuple[int, int] | None) -> None:
    """Raise ``SettingError`` for a height or width that the pipeline's latents cannot have."""
    factor = getattr(pipe, "vae_scale_factor", None)
    factor = factor and max(factor, 8)  # diffusers' pipelines ask for 8 whatever their autoencoder
    if size is not None and factor and any(side % factor for side in size):
        raise SettingError(f"size {size[0]}x{size[1]}: both sides must be divisible by {factor} for this pipeline")


def sample(
    pipe,
    prompts: list[str],
    seeds: list[int],
    settings: Settings,
    on_step: Callable[[], None] | None = None,
    output: str = "np",
):
    """One image for each prompt and seed, the same whatever the batch size.

    Args:
        prompts, seeds: of one length; an unconditional pipeline ignores the prompts.
        on_step: called after each scheduler step, where the pipeline allows it.
        output: ``"np"``, or ``"latent"`` for the final latents.

    Returns:
        float32 array (N, H, W, 3) in [0, 1]; or (N, C, h, w) of latents.
    """
    images = []
    for i in range(0, len(prompts), settings.batch):
        part = slice(i, i + settings.batch)
        found = pipe(**_arguments(pipe, prompts[part], seeds[part], settings, on_step, output)).images
        images.append(found if isinstance(found, np.ndarray) else found.float().cpu().numpy())
    return np.concatenate(images).astype(np.float32)


def _arguments(pipe, prompts: list[str], seeds: list[int], settings: Settings, on_step, output: str) -> dict:
    known = inspect.signature(pipe.__call__).parameters
    device = getattr(pipe, "_execution_device", pipe.device)
    wanted = {
        "num_inference_steps": settings.steps,
        "generator": [torch.Generator(device).manual_seed(s) for s in seeds],
        "output_type": output,
        "guidance_scale": settings.guidance,
        "height": settings.size and settings.size[0],
        "width": settings.size and settings.size[1],
        "negative_prompt": settings.negative_prompt and [settings.negative_prompt] * len(prompts),
        "callback_on_step_end": on_step and (lambda pipe, i, t, values: on_step() or values),
        "callback_on_step_end_tensor_inputs": on_step and ["latents"],
    }
    subject = {"prompt": prompts} if "prompt" in known else {"batch_size": len(prompts)}
    return {**subject, **{k: v for k, v in wanted.items() if k in known and v is not None}}


@dataclass(frozen=True)
class Comparison:
    """The same prompts and seeds sampled without and with the methods, and without them at equal cost.

    What caching loses is told by the distance to the same run without it. So where skips are edited too, the edited
    run takes the plain one's place: an edit is meant to move the pictures, and its distance says nothing of its worth.
    """

    plain: np.ndarray = field(repr=False)
    """Without what is compared: with no method at all, or with the edits of skips alone where caching comes on top."""
    cached: np.ndarray = field(repr=False)
    """With all methods."""
    rival: np.ndarray = field(repr=False)
    """As ``plain``, at ``rival_steps``: the run of fewer steps that costs as many MACs."""
    unedited: np.ndarray | None = field(repr=False)
    """With no method at all, where that is not ``plain``."""
    rival_steps: int
    psnr: tuple[float, ...]
    """Of each cached image to the plain one, dB; infinite where they are equal."""
    rival_psnr: tuple[float, ...]
    ratios: tuple[float, ...]
    """Whole-call time of the plain run over the cached one, one per interleaved repeat."""
    rival_ratios: tuple[float, ...]
    unedited_ratios: tuple[float, ...]
    """As ``ratios``, of the run with no method at all; empty where that is ``plain``."""
    summary: Summary

    def as_dict(self) -> dict:
        """Everything but the images, ready for JSON; a PSNR of None stands for identical images."""
        return {
            "images": len(self.plain),
            "beside": "plain" if self.unedited is None else "edited",
            "psnr_db": _spread(self.psnr),
            "speedup": _spread(self.ratios),
            "speedup_over_unedited": _spread(self.unedited_ratios) if self.unedited_ratios else None,
            "equal_macs_plain_run": {
                "steps": self.rival_steps,
                "psnr_db": _spread(self.rival_psnr),
                "speedup": _spread(self.rival_ratios),
            },
            "summary": self.summary.as_dict(),
        }


def _spread(values: tuple[float, ...]) -> dict:
    """Median and extremes; None for infinity, which JSON has no word for."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {k: round(v, 3) if math.isfinite(v) else None for k, v in found.items()}


def compare(
    pipe,
    methods: tuple[Method, ...],
    prompts: list[str],
    seeds: list[int],
    settings: Settings,
    repeats: int = 3,
    on_step: Callable[[], None] | None = None,
) -> Comparison:
    """Sample with and without ``methods``, see ``Comparison``; the pipeline is left as it was.

    Times are whole calls of the first batch, plain, cached and rival in turn, ``repeats`` times, after the
    images themselves have warmed everything up.
    """
    edits = tuple(method for method in methods if method.role == "skips")
    base = edits if len(edits) < len(methods) else ()

    def run(applied: tuple[Method, ...], steps: int, prompts=prompts, seeds=seeds):
        how = Settings(steps, settings.guidance, settings.size, settings.batch, settings.negative_prompt)
        with apply(pipe, *applied) if applied else nullcontext() as handle:
            start = time.perf_counter()
            images = sample(pipe, prompts, seeds, how, on_step)
            return time.perf_counter() - start, images, handle and handle.summary()

    unedited = run((), settings.steps)[1] if base else None
    _, plain, _ = run(base, settings.steps)
    _, cached, summary = run(methods, settings.steps)
    rival_steps = max(1, round(settings.steps * (summary.macs_share or 1)))
    _, rival, _ = run(base, rival_steps)
    first = {"prompts": prompts[: settings.batch], "seeds": seeds[: settings.batch]}
    ways = (
        (base, settings.steps),
        (methods, settings.steps),
        (base, rival_steps),
        *([((), settings.steps)] * bool(base)),
    )
    times = [[run(applied, steps, **first)[0] for applied, steps in ways] for _ in range(repeats)]
    return Comparison(
        plain,
        cached,
        rival,
        unedited,
        rival_steps,
        psnr(cached, plain),
        psnr(rival, plain),
        tuple(p / c for p, c, *_ in times),
        tuple(p / r for p, _, r, *_ in times),
        tuple(plain / c for _, c, _, *rest in times for plain in rest),
        summary,
    )


def psnr(images: np.ndarray, reference: np.ndarray) -> tuple[float, ...]:
    """Peak signal-to-noise ratio of each image (N, H, W, 3), in [0, 1], in dB; infinite where it equals its reference."""
    errors = np.square(images.astype(np.float64) - reference).mean(axis=(1, 2, 3))
    return tuple(math.inf if e == 0 else float(-10 * math.log10(e)) for e in errors)
