"""The studies of bench/forecasts.py: which pipeline, which call, and which ways to make it cheaper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import unetaccel
from unetaccel import Calibrated, DeepCache, GuidanceReuse, SkipTuning, calibrate
from unetaccel.demo.pipeline import GUIDANCE, load_pipeline
from unetaccel.demo.scenes import render, sample_scenes
from unetaccel.methods import RECOMMENDED
from unetaccel.sampling import set_scheduler

PROFILES = Path(unetaccel.__file__).parent / "demo" / "profiles"
SPECTRUM = {"interval": 2, "schedule": "growing", "warmup": 5, "abscissa": "index"}


@dataclass(frozen=True)
class Way:
    """A name, and what is applied; or a plain run of other ``steps``."""

    name: str
    methods: tuple = ()
    steps: int | None = None


@dataclass(frozen=True)
class Case:
    """A pipeline with a solver, how it is called, and the ways to compare with its plain run."""

    name: str
    solver: str
    steps: int
    ways: tuple[Way, ...]
    guidance: float = GUIDANCE
    size: tuple[int, int] | None = None
    methods: tuple = ()
    """Of the plain run too."""
    prepare: Callable[[object], object] = lambda pipe: pipe
    """Makes of the demo what is sampled."""
    sample: Callable | None = None
    """Instead of sampling from text; as ``sampling.sample``, giving latents."""

    def pipeline(self):
        return self.prepare(demo(self.solver))


def demo(solver: str):
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, solver)
    return pipe


def shipped(name: str, **settings) -> Way:
    return Way("calibrated", (Calibrated(PROFILES / f"{name}.yaml", **settings),))


def uniform(full: int, steps: int, **settings) -> DeepCache:
    """Uniform with so many full evaluations."""
    return DeepCache(interval=-(-steps // full), **settings)


def bars() -> Iterator[Case]:
    """Uniform hold and calibrated at as many full evaluations, and plain runs of as many steps, at two cuts."""
    for solver, steps, budgets in (("ddim", 50, (17, 10)), ("ddim", 20, (10, 7)), ("dpm++", 20, (10, 7)), ("unipc", 20, (10, 7)),
                                   ("euler-a", 30, (15, 10))):  # fmt: skip
        ways = []
        for full in budgets:
            ways.append(Way("plain", steps=full))
            for cut in (0, 1):
                ways.append(Way(f"uniform hold, cut {cut}", (uniform(full, steps, cut=cut),)))
                ways.append(
                    Way(f"calibrated, cut {cut}", (Calibrated(PROFILES / f"{solver}-{steps}.yaml", full, cut),))
                )
        yield Case(f"{solver}, {steps} steps", solver, steps, tuple(ways))


def ablation() -> Iterator[Case]:
    """Plan and forecast, each alone and both, at cut 0."""
    for solver, steps, budgets in (("ddim", 50, (17, 10)), ("dpm++", 20, (10, 7))):
        profile = PROFILES / f"{solver}-{steps}.yaml"
        ways = []
        for full in budgets:
            for forecast in ("hold", "linear", {"chebyshev": {"blend": 0.5}}):
                kind = forecast if isinstance(forecast, str) else "chebyshev"
                ways.append(Way(f"uniform plan, {kind}", (uniform(full, steps, forecast=forecast),)))
            plan = tuple(unetaccel.load_profile(profile).plans[0][full].full)
            ways.append(Way("calibrated plan, linear", (DeepCache(schedule=plan, forecast="linear"),)))
            for points in (1, 2, 3, 4):
                kind = "hold" if points == 1 else f"fitted from {points}"
                ways.append(Way(f"calibrated plan, {kind}", (Calibrated(profile, full, points=points),)))
        yield Case(f"{solver}, {steps} steps", solver, steps, tuple(ways))


def default() -> Iterator[Case]:
    """What to do without a profile: schedules and forecasts that know nothing of the model."""
    for solver, steps in (("ddim", 50), ("ddim", 20), ("dpm++", 20), ("unipc", 20), ("euler-a", 30)):
        full = sum(RECOMMENDED.flags(_timeline(solver, steps)))
        grown = {"interval": 2, "schedule": "growing"}
        kinds = {
            "recommended": RECOMMENDED,
            "growing, hold": DeepCache(**grown, warmup=5),
            "growing, linear, warm-up 3": DeepCache(**grown, warmup=3, forecast="linear"),
            "growing, linear over the index": DeepCache(**grown, warmup=5, forecast="linear", abscissa="index"),
            "growing, anchored": DeepCache(**grown, warmup=5, forecast="anchored"),
            "growing, newton": DeepCache(**grown, warmup=5, forecast="newton"),
            "Spectrum (chebyshev, blend 0.5)": DeepCache(**SPECTRUM, forecast={"chebyshev": {"blend": 0.5}}),
            "Spectrum (chebyshev, blend 1)": DeepCache(**SPECTRUM, forecast="chebyshev"),
            "warm-up 5, then uniform, hold": DeepCache(interval=5 if steps == 50 else 4, warmup=5),
            "warm-up 5, then uniform, linear": DeepCache(interval=5 if steps == 50 else 4, warmup=5, forecast="linear"),
            "quad, hold": DeepCache(interval=-(-steps // full), schedule="quad"),
            "uniform, hold": uniform(full, steps),
            "uniform, linear": uniform(full, steps, forecast="linear"),
        }
        ways = [Way(name, (method,)) for name, method in kinds.items()]
        yield Case(f"{solver}, {steps} steps", solver, steps, (*ways, Way("plain", steps=full)))


def prompts() -> Iterator[Case]:
    """How many prompts a calibration needs."""
    pipe, captions = demo("ddim"), sample_scenes(16, seed=100).captions()
    ways = []
    for count in (1, 2, 4, 8, 16):
        profile = calibrate(pipe, captions[:count], steps=50, guidance=GUIDANCE)
        ways += [Way(f"{count} prompts", (Calibrated(profile, full),)) for full in (17, 10)]
    yield Case("ddim, 50 steps", "ddim", 50, tuple(ways))


def carry_over() -> Iterator[Case]:
    """Profiles of the plain demo at guidance 3, for calls and models that differ; beside uniform plans there."""
    case = functools.partial(Case, solver="ddim", steps=50, ways=_compared("ddim-50", 50, (17, 10)))
    yield case("as calibrated")
    for guidance in (1.0, 5.0, 7.5):
        yield case(f"guidance {guidance:g}", guidance=guidance)
    yield case("64x64 pixels", size=(64, 64))
    yield case("Skip-Tuning 0.8", methods=(SkipTuning(0.8, profile="constant"),))
    yield case("LoRA", prepare=with_lora)
    for strength in (0.4, 0.8):
        visited = int(50 * strength)
        ways = _compared("ddim-50", visited, (round(visited * 0.34), round(visited * 0.2)), share=True)
        yield case(
            f"image to image, strength {strength}", ways=ways, prepare=as_image_to_image, sample=from_image(strength)
        )
    yield Case("25 of the 50 measured timesteps", "ddim", 25, _compared("ddim-50", 25, (9, 5), share=True))


def adaptive() -> Iterator[Case]:
    """Plans that are mended, where a profile fits and where it does not."""
    profile = PROFILES / "ddim-50.yaml"
    ways = [Way("as planned", (Calibrated(profile, full),)) for full in (10, 12, 14)]
    ways += [Way(f"refresh {factor}", (Calibrated(profile, 10, refresh=factor),)) for factor in (1.0, 1.5, 2.0)]
    ways += [Way("uniform linear", (DeepCache(interval=k, forecast="linear"),)) for k in (5, 4)]
    ways += [Way(f"uniform linear, refresh {limit}", (DeepCache(interval=5, forecast="linear", refresh=limit),))
             for limit in (0.1, 0.3)]  # fmt: skip
    yield Case("as calibrated", "ddim", 50, tuple(ways))
    yield Case("LoRA", "ddim", 50, tuple(ways), prepare=with_lora)
    yield Case("guidance 7.5", "ddim", 50, tuple(ways), guidance=7.5)


def guidance() -> Iterator[Case]:
    """The conditional half alone, late in the run: with a calibrated plan, and without a cache."""
    profile = PROFILES / "ddim-50.yaml"
    starts = (0.5, 0.7, 0.9)
    ways = [Way("calibrated", (Calibrated(profile, full),)) for full in (17, 15, 13, 10)]
    ways += [Way("plain", steps=steps) for steps in (45, 40)]
    for mode in ("hold", "drop"):
        for start in starts:
            reuse = GuidanceReuse(start, mode)
            ways += [Way(f"calibrated, {mode} from {start}", (Calibrated(profile, 17), reuse)),
                     Way(f"{mode} from {start}", (reuse,))]  # fmt: skip
    yield Case("ddim, 50 steps", "ddim", 50, tuple(ways))


def _compared(profile: str, steps: int, budgets: tuple[int, ...], share: bool = False) -> tuple[Way, ...]:
    ways = []
    for full in budgets:
        ways.append(Way("uniform hold", (uniform(full, steps),)))
        ways.append(shipped(profile, full=full / steps if share else full))
    return (*ways, Way("recommended", (RECOMMENDED,)))


def _timeline(solver: str, steps: int):
    from unetaccel.timeline import of_steps

    return of_steps(demo(solver).scheduler, steps)


def with_lora(pipe):
    """Random adapters of rank 4 on all attention, at a strength that changes the pictures and leaves them pictures."""
    from peft import LoraConfig

    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    for name, weight in pipe.unet.named_parameters():
        if "lora" in name:
            weight.data.normal_(std=0.15)
    return pipe


def as_image_to_image(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    new = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    new.set_progress_bar_config(disable=True)
    return new


def from_image(strength: float) -> Callable:
    """Sampling that starts from pictures of other captions."""

    def sampled(pipe, prompts, seeds, how):
        images, found = render(sample_scenes(len(prompts), seed=77), seed=77), []
        for i in range(0, len(prompts), how.batch):
            part = slice(i, i + how.batch)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            call = pipe(prompts[part], image=images[part], strength=strength, num_inference_steps=how.steps,
                        guidance_scale=how.guidance, generator=generators, output_type="latent")  # fmt: skip
            found.append(call.images.numpy())
        return np.concatenate(found)

    return sampled


STUDIES: dict[str, Callable[[], Iterator[Case]]] = {
    "bars": bars,
    "ablation": ablation,
    "default": default,
    "prompts": prompts,
    "carry over": carry_over,
    "adaptive": adaptive,
    "guidance": guidance,
}
