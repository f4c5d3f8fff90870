"""What a scheduler says about a sampling call, as host numbers: how many evaluations, which timesteps."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .errors import SettingError

FEW_STEPS = 4
DISTILLED = ("LCMScheduler", "TCDScheduler")


@dataclass(frozen=True)
class Timeline:
    """The evaluations of one sampling call, before the first of them.

    ``evaluations`` counts the U-Net calls of one stream: with a second-order solver more than the steps
    asked for, with img2img fewer. ``read`` gives the timesteps and noise levels (sigma, in the
    variance-exploding sense) when a schedule wants them; it reads them from the device, once a call.
    """

    evaluations: int
    scheduler: str | None = None
    read: Callable[[], tuple[list[float], list[float]]] | None = None
    horizon: float | None = None
    """The timestep that counts as t = T; None where time is the noise level itself, as in EDM."""
    noisiest: float | None = None
    """The noise level that counts as t = T where time is the noise level; None: the largest of this call."""

    stochastic: bool = False
    """Whether the scheduler adds fresh noise at each step."""
    timesteps: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """The timesteps as they lie in the scheduler's memory, of which the loop takes views; numbers lie on the CPU."""

    def shares(self) -> list[float] | None:
        """t / T of each evaluation, 1 at the noisiest end; None if timesteps are not known."""
        timesteps, sigmas = self.read() if self.read else ([], [])
        times, last = (
            (sigmas, self.noisiest or max(sigmas, default=0.0)) if self.horizon is None else (timesteps, self.horizon)
        )
        if len(times) != self.evaluations or not all(map(math.isfinite, times)) or not last:
            return None
        return [min(max(t / last, 0.0), 1.0) for t in times]

    def sigmas(self) -> list[float] | None:
        """The noise level of each evaluation, None if not known."""
        levels = self.read()[1] if self.read else []
        return None if len(levels) != self.evaluations or any(map(math.isnan, levels)) else levels

    @property
    def few_steps(self) -> str | None:
        """Why caching is not worth it here, or None."""
        if self.scheduler in DISTILLED:
            return f"{self.scheduler} is made for a few, very different steps"
        if self.evaluations <= FEW_STEPS:
            return f"so few evaluations ({self.evaluations}) leave nothing alike to reuse"
        return None


def of_scheduler(scheduler, evaluations: int | None = None, stop: int | None = None) -> Timeline:
    """The timeline of a scheduler whose timesteps are set.

    Args:
        evaluations: how many of its timesteps the loop visits; by default all from its ``begin_index`` on.
        stop: the first timestep that the loop leaves out at the end (``denoising_end``); by default it visits the last.
    """
    total, begin = len(scheduler.timesteps), getattr(scheduler, "begin_index", None)
    count = total - (begin or 0) if evaluations is None else evaluations
    if begin is None:
        begin = max((total if stop is None else stop) - count, 0)
    visited = slice(begin, begin + count)
    noisiest = _config(scheduler).get("sigma_max")
    return Timeline(
        count,
        _name(scheduler),
        functools.cache(lambda: _levels(scheduler, visited)),
        _horizon(scheduler),
        noisiest,
        _is_stochastic(scheduler),
        scheduler.timesteps[visited] if isinstance(scheduler.timesteps, torch.Tensor) else None,
    )


def _checked(name: str, values: Sequence[float]) -> list[float]:
    try:
        return _floats(values)
    except (TypeError, ValueError) as error:
        raise SettingError(f"run({name}={values!r}): expected one number for each evaluation") from error


def of_numbers(evaluations: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timeline:
    """The timeline of a loop of one's own; timesteps count from a largest of 999. A tensor of them may be on any device.

    Raises:
        SettingError: not one number per evaluation.
    """
    given = {"timesteps": timesteps, "sigmas": sigmas}
    levels = {name: _checked(name, values) for name, values in given.items() if values is not None}
    for name, values in levels.items():
        if len(values) != evaluations:
            raise SettingError(
                f"run({name}=...) has {len(values)} numbers for {evaluations} evaluations: give one for each"
            )
    read = (levels.get("timesteps", []), levels.get("sigmas", []))
    known = levels.get("timesteps")
    return Timeline(
        evaluations,
        None,
        (lambda: read) if levels else None,
        horizon=None if known is None else 999.0,
        timesteps=timesteps
        if isinstance(timesteps, torch.Tensor) or known is None
        else torch.tensor(known, dtype=torch.float64),
    )


def _floats(values: Sequence[float] | torch.Tensor) -> list[float]:
    return [float(v) for v in (values.tolist() if isinstance(values, torch.Tensor) else values)]


def _horizon(scheduler) -> float | None:
    config = _config(scheduler)
    return None if "sigma_data" in config else float(config.get("num_train_timesteps", 1000) - 1)


def timesteps_before(scheduler, share: float) -> int:
    """How many timesteps lie before this share of the noise levels, counted as SDXL pipelines count them."""
    total = scheduler.config.num_train_timesteps
    cutoff = round(total - share * total)
    return sum(t >= cutoff for t in scheduler.timesteps.tolist())


def of_steps(scheduler, steps: int) -> Timeline:
    """The timeline that ``steps`` inference steps would have; the given scheduler is left alone."""
    scheduler = copy.deepcopy(scheduler)
    by_size = _config(scheduler).get("use_dynamic_shifting")
    scheduler.set_timesteps(steps, **({"mu": 0.0} if by_size else {}))  # which moves timesteps and adds none
    return of_scheduler(scheduler)


def _is_stochastic(scheduler) -> bool:
    """Whether it adds noise by what it is; what a call asks of it (``eta``) is not known here."""
    name = type(scheduler).__name__
    kinds = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "CMStochastic", "SASolver", "UnCLIP", "RePaint")
    return any(kind in name for kind in kinds) or str(_config(scheduler).get("algorithm_type", "")).startswith("sde")


def _config(scheduler) -> dict:
    return getattr(scheduler, "config", {})


def _name(scheduler) -> str:
    return next((c.__name__ for c in type(scheduler).__mro__ if c.__name__ in DISTILLED), type(scheduler).__name__)


def _levels(scheduler, visited: slice) -> tuple[list[float], list[float]]:
    """The visited timesteps and their sigmas; sigma is nan where the scheduler does not say."""
    timesteps = [float(t) for t in scheduler.timesteps.tolist()]
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) in (len(timesteps), len(timesteps) + 1):
        levels = [float(s) for s in sigmas.tolist()]
        if "FlowMatch" in type(scheduler).__name__ or _config(scheduler).get("use_flow_sigmas"):
            levels = [s / (1 - s) if s < 1 else math.inf for s in levels]  # of (1 - s) x0 + s noise
    elif hasattr(scheduler, "alphas_cumprod"):
        alphas = scheduler.alphas_cumprod.tolist()
        levels = [_sigma(alphas[min(max(int(t), 0), len(alphas) - 1)]) for t in timesteps]
    else:
        levels = [math.nan] * len(timesteps)
    return timesteps[visited], levels[: len(timesteps)][visited]


def _sigma(alpha: float) -> float:
    return math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf
